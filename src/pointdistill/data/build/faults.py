"""Whose fault an error is that came of reading a shape: the shape's, this one reading's, or the machine's."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from pointdistill.data.build.state import Refusal
from pointdistill.data.files import disk_is_full
from pointdistill.data.sources.base import printable
from pointdistill.errors import DataError

UNREADABLE = "machine"
"""Backstop of a shape whose file the machine could not read: it may read it the next time."""

_CAUSE_CHARACTERS = 500
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""Of an object, in its repr: another in each process."""


def _numbers(*names: str) -> frozenset[int]:
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


# They meet every shape that follows: to go on would lose a whole corpus.
_STOPS = _numbers(
    *("ENOSPC", "EDQUOT", "EROFS", "EMFILE", "ENFILE", "ENOMEDIUM"),
    *("ESTALE", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"),
)

# They may meet one file for ever, as a bad sector does: to stop would end the build at it every time.
_UNREADABLE = _numbers(
    *("EIO", "EREMOTEIO", "ENODATA", "EBADMSG", "EUCLEAN", "ENODEV", "ENXIO"),
    *("ETIMEDOUT", "ECONNRESET", "ECONNABORTED", "EAGAIN", "EACCES", "EPERM"),
)


def judged(shape_id: str, error: Exception, *, outer: BaseException | None) -> Refusal:
    """What becomes of a shape whose reading raised an error.

    Args:
        shape_id: of the shape.
        error: what was raised, whatever a library made of its first cause.
        outer: what was being handled when the reading began; of it and of what led to it nothing is the shape's.

    Raises:
        MemoryError: if memory ran out.
        OSError: if the disk is full.
        DataError: if anything else is wrong with the machine, so that no shape can be read now.
    """
    chain = list(_chain(error, outer))
    # Of several with one number the last that was raised, which knows most, such as which disk it was.
    faults = {e.errno: e for e in reversed(chain) if isinstance(e, OSError) and e.errno is not None}
    for number in faults.keys() & _STOPS:
        fault = faults[number]
        if disk_is_full(fault):
            raise fault  # itself, for on its way from a worker it loses what it was raised from
        where = fault.filename or shape_id
        msg = f"{where}: {fault.strerror or fault}; put that right and run the same again to go on"
        raise DataError(printable(msg)) from error
    if errno.ENOMEM in faults or any(isinstance(e, MemoryError) for e in chain):
        msg = f"{shape_id}: {error}"
        raise MemoryError(msg) from error
    if faults.keys() & _UNREADABLE:
        return Refusal(shape_id, one_line(error), UNREADABLE)
    late = any(isinstance(e, TimeoutError) for e in chain)
    return Refusal(shape_id, one_line(error), "deadline" if late else None)


def one_line(error: Exception) -> str:
    """The cause of a refusal, the same in every process: our own errors as they are, others with their kind."""
    text = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
    return printable(" ".join(_ADDRESS.sub("", text).split()))[:_CAUSE_CHARACTERS]


def _chain(error: BaseException | None, outer: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it was raised from or while handling, as far as ``outer``."""
    while error is not None and error is not outer:
        yield error
        error = error.__cause__ or error.__context__
