"""SHA-256 of archives: large ones are read once, not at every call, and not at all for a plan.

Checksums of large files are cached in ``.pointdistill/checksums.json`` of the current folder, each with the size,
times and identity that the file had. It is a convenience: it may be deleted, or not be writable.
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
"""Size from which a file's checksum is cached; that of a smaller file takes a tenth of a second."""

_SETTLED_SECONDS = (
    2.0  # the coarsest clock of a file system: a more recent change may leave no trace
)

_disabled: ContextVar[bool] = ContextVar("checksums disabled", default=False)


@contextlib.contextmanager
def without_checksums() -> Iterator[None]:
    """Within this context `file_checksum` reads nothing and returns an empty string: for plans, which record
    none."""
    token = _disabled.set(True)
    try:
        yield
    finally:
        _disabled.reset(token)


def file_checksum(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, computed again only if anything about the file has changed."""
    return "" if _disabled.get() else _checksum_of(path.resolve(), _state(path))


def _state(path: Path) -> tuple[int, ...]:
    """Size, times and identity. No program can set back the time of the last change of any kind (ctime)."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


@functools.lru_cache(maxsize=64)
def _checksum_of(path: Path, state: tuple[int, ...]) -> str:
    """The checksum of a file in this state; cached in memory too, since forty folds are read from one archive."""
    if state[0] < REMEMBERED_BYTES:
        return sha256_of(path)
    match _cached().get(str(path)):
        case {"state": known, "sha256": str(checksum)} if known == list(state):
            return checksum
    settled = time.time() - max(state[1:3]) / 1e9 > _SETTLED_SECONDS
    checksum = sha256_of(path)
    if settled and _state(path) == state:
        with contextlib.suppress(
            OSError, UnicodeEncodeError
        ):  # the latter: a name that is not UTF-8
            write_json(
                CHECKSUMS_NAME, _cached() | {str(path): {"state": state, "sha256": checksum}}
            )
    return checksum


def _cached() -> dict[str, Any]:
    try:
        stored = read_json(CHECKSUMS_NAME)
    except DataError:
        return {}
    return stored if isinstance(stored, dict) else {}
