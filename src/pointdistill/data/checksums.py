"""SHA-256 of archives: large ones are read once, not at every call, and not at all for a plan.

Checksums of large files are kept in ``.pointdistill/checksums.json`` of the current folder, each with all that
the system says of the file's state; for convenience alone, so it may be deleted, or not be writable.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from pointdistill.data.files import read_json, sha256_of, write_json
from pointdistill.data.workspace import WORKSPACE_NAME
from pointdistill.errors import DataError

CHECKSUMS_NAME = WORKSPACE_NAME.with_name("checksums.json")

REMEMBERED_BYTES = 64 * 2**20
"""Size from which a file's checksum is kept; one of a smaller file takes a tenth of a second."""

_SETTLED_SECONDS = 2.0  # coarsest clock of a file system: a change this young may leave no trace

_left_out: ContextVar[bool] = ContextVar("checksums left out", default=False)


@contextlib.contextmanager
def without_checksums() -> Iterator[None]:
    """Inside, `file_checksum` reads nothing and gives an empty text: for plans, of which nothing is kept."""
    token = _left_out.set(True)
    try:
        yield
    finally:
        _left_out.reset(token)


def file_checksum(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, worked out again only if anything about the file has changed."""
    return "" if _left_out.get() else _checksum_of(path.resolve(), _state(path))


def _state(path: Path) -> tuple[int, ...]:
    """Size, times and identity; the time of the last change of any kind cannot be set back by a program."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


@functools.lru_cache(maxsize=64)
def _checksum_of(path: Path, state: tuple[int, ...]) -> str:
    """Of a file in this state; forty folds are read from one archive, so it is kept in memory too."""
    if state[0] < REMEMBERED_BYTES:
        return sha256_of(path)
    match _kept().get(str(path)):
        case {"state": known, "sha256": str(found)} if known == list(state):
            return found
    settled = time.time() - max(state[1:3]) / 1e9 > _SETTLED_SECONDS
    found = sha256_of(path)
    if settled and _state(path) == state:
        with contextlib.suppress(
            OSError, UnicodeEncodeError
        ):  # the latter: a name that is not UTF-8
            write_json(CHECKSUMS_NAME, _kept() | {str(path): {"state": state, "sha256": found}})
    return found


def _kept() -> dict[str, Any]:
    try:
        stored = read_json(CHECKSUMS_NAME)
    except DataError:
        return {}
    return stored if isinstance(stored, dict) else {}
