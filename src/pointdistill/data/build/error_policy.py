"""What to do about an error while reading a shape: refuse the shape, allow another attempt, or stop the build."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from pointdistill.data.build.state import Refusal
from pointdistill.data.files import disk_is_full
from pointdistill.data.sources.base import printable
from pointdistill.errors import DataError

READ_ERROR = "machine"
"""The retryable failure of a shape whose file this machine could not read: the next attempt may succeed."""

_CAUSE_CHARACTERS = 500
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""An object's address in its repr, which differs between processes."""


def _numbers(*names: str) -> frozenset[int]:
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


# These would hit every shape that follows: going on would lose the whole corpus.
_FATAL = _numbers(
    *("ENOSPC", "EDQUOT", "EROFS", "EMFILE", "ENFILE", "ENOMEDIUM"),
    *("ESTALE", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"),
)

# These may hit a single file for ever, like a bad sector: stopping would end every build at that file.
_RETRYABLE = _numbers(
    *("EIO", "EREMOTEIO", "ENODATA", "EBADMSG", "EUCLEAN", "ENODEV", "ENXIO"),
    *("ETIMEDOUT", "ECONNRESET", "ECONNABORTED", "EAGAIN", "EACCES", "EPERM"),
)


def classify_read_error(shape_id: str, error: Exception, *, outer: BaseException | None) -> Refusal:
    """The refusal of a shape whose reading raised an error; raises if the error must stop the build.

    Args:
        shape_id: the shape.
        error: what was raised; libraries may have wrapped the first cause.
        outer: the exception that was being handled when reading began; it and its causes are ignored.

    Raises:
        MemoryError: if memory ran out.
        OSError: if the disk is full.
        DataError: if anything else is wrong with the machine, so that no shape can be read now.
    """
    chain = list(_chain(error, outer))
    # Of several with the same number the one raised last, which knows most, such as the disk.
    system_errors = {
        e.errno: e for e in reversed(chain) if isinstance(e, OSError) and e.errno is not None
    }
    for number in system_errors.keys() & _FATAL:
        fatal = system_errors[number]
        if disk_is_full(fatal):
            raise fatal  # itself: on its way out of a worker an exception loses its cause
        where = fatal.filename or shape_id
        msg = f"{where}: {fatal.strerror or fatal}; put that right and run the same again to go on"
        raise DataError(printable(msg)) from error
    if errno.ENOMEM in system_errors or any(isinstance(e, MemoryError) for e in chain):
        msg = f"{shape_id}: {error}"
        raise MemoryError(msg) from error
    if system_errors.keys() & _RETRYABLE:
        return Refusal(shape_id, one_line(error), READ_ERROR)
    late = any(isinstance(e, TimeoutError) for e in chain)
    return Refusal(shape_id, one_line(error), "deadline" if late else None)


def one_line(error: Exception) -> str:
    """The cause of a refusal, the same in every process: our own errors as they are, others with their type."""
    text = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
    return printable(" ".join(_ADDRESS.sub("", text).split()))[:_CAUSE_CHARACTERS]


def _chain(error: BaseException | None, outer: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes and contexts, up to ``outer``."""
    while error is not None and error is not outer:
        yield error
        error = error.__cause__ or error.__context__
