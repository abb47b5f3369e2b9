"""Temporary folders; tars that are compressed as a whole become plain ones in one of them, once for all processes.

The process that makes the folder removes it at its end. One that is killed cannot; what it left behind is removed
by the next process of the same user that opens an archive. A lock, which ends with the process, tells which of the
folders are abandoned.
"""

from __future__ import annotations

import atexit
import errno
import functools
import gzip
import hashlib
import importlib.util
import logging
import os
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pointdistill.errors import DataError, one_line

log = logging.getLogger("pointdistill")

PACKED_TARS = (".tgz", ".tar.gz")
"""Endings of tars that are compressed as a whole."""

UNPACKED_VARIABLE = "POINTDISTILL_UNPACKED"
"""Tells the processes that a process starts where it unpacks such tars, so that each is unpacked once."""

MOST_UNPACKED = 200
"""Times its own size that a compressed tar may unpack to; shapes written as text compress to about a tenth."""

_LEAST_REFUSED = 2**26  # bytes that any may unpack to: small files of few values compress better

_SECONDS_BEFORE_PROGRESS, _SECONDS_BETWEEN_PROGRESS = 5.0, 60.0

_PREFIX = "pointdistill-unpacked-"
_LOCK_NAME, _NEW_LOCK_NAME, _CONTENT_NAME = "lock", "lock.new", "content"
_DAY_SECONDS = 86_400


def plain_tar(path: Path) -> Path:
    """The tar in a compressed tar, unpacked at the first call of this process or of those above it; else ``path``.

    Raises:
        DataError: if it is damaged, unpacks to more than 200 times its size, or there is no room for it.
    """
    if not path.name.lower().endswith(PACKED_TARS):
        return path
    status = path.stat()
    key = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}"
    plain = _unpacking_folder() / f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:32]}.tar"
    if not plain.exists():
        # Two processes that need it at once both write it, and the second replaces the first's by the same bytes.
        aside = plain.with_suffix(f".{os.getpid()}")
        try:
            _unpack_tar(path, aside, status.st_size)
            aside.replace(plain)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            msg = f"{path}: a compressed tar that is damaged or ends early ({error}); fetch the archive again"
            raise DataError(msg) from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise _no_room(path, aside.parent) from error
        finally:
            aside.unlink(missing_ok=True)
    return plain


def _unpack_tar(path: Path, plain: Path, size: int) -> None:
    most = max(MOST_UNPACKED * size, _LEAST_REFUSED)
    room = shutil.disk_usage(plain.parent).free
    written, said = 0, time.monotonic() + _SECONDS_BEFORE_PROGRESS - _SECONDS_BETWEEN_PROGRESS
    with path.open("rb") as packed, gzip.open(packed) as tar, plain.open("wb") as file:
        while block := tar.read(2**20):
            written += len(block)
            if written > most:
                msg = (
                    f"{path}: {size:,} bytes unpack to more than {most:,}, as no archive of shapes does; if it is "
                    "one after all, gunzip it and use the tar"
                )
                raise DataError(msg)
            if written > room:
                raise _no_room(path, plain.parent)
            file.write(block)
            if time.monotonic() - said > _SECONDS_BETWEEN_PROGRESS:
                said = time.monotonic()
                log.warning(
                    "%s: being unpacked once, %.0f %% of it is read; a plain tar spares this",
                    *(one_line(str(path)), 100 * packed.tell() / max(size, 1)),
                )


def _no_room(path: Path, folder: Path) -> DataError:
    return DataError(
        f"{path}: no room to unpack it in {folder.parent}; set TMPDIR to a folder that has some, or gunzip it "
        "elsewhere and use the tar"
    )


def _unpacking_folder() -> Path:
    """Where this process, or one above it, unpacks; the one that made it removes it when it ends."""
    known = Path(os.environ.get(UNPACKED_VARIABLE) or os.devnull)
    if not known.is_dir():
        known, _ = _locked_folder()
        os.environ[UNPACKED_VARIABLE] = str(known)
        atexit.register(shutil.rmtree, known, ignore_errors=True)
    return known


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder for the block, such as for a member of an archive.

    What a killed process leaves in it is removed by the next one of the same user, as an unpacked tar is.
    """
    remove_abandoned()
    place, lock = _locked_folder()
    try:
        inside = place / _CONTENT_NAME
        inside.mkdir()
        yield inside
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked_folder() -> tuple[Path, int | None]:
    """A new folder, and its open lock, which this process holds; None without locks: then nobody removes it."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = None
    with suppress(OSError, ImportError):
        lock = _hold(folder / _NEW_LOCK_NAME, os.O_CREAT | os.O_EXCL)
    with suppress(OSError):
        # It gets its name once it is held: whoever finds a lock that nobody holds removes the folder.
        (folder / _NEW_LOCK_NAME).rename(folder / _LOCK_NAME)
    return folder, lock


@functools.cache
def remove_abandoned() -> None:
    """Remove what killed processes of this user have unpacked; looks once in each process.

    A folder is removed only if it has our prefix, belongs to this user, is no link, and its lock is held by no
    process. One without a lock, whose maker was killed at once or is an earlier version, is removed after a day.
    """
    if importlib.util.find_spec("fcntl") is None:
        return
    with suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            with suppress(OSError):
                _remove_if_abandoned(folder)


def _remove_if_abandoned(folder: Path) -> None:
    """Remove one folder, unless a process may still use it.

    Raises:
        OSError: if it is gone, in use, or cannot be locked.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        return
    try:
        lock = _hold(folder / _LOCK_NAME)
    except FileNotFoundError:
        if time.time() - status.st_mtime > _DAY_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
        return
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _hold(path: Path, create: int = 0) -> int:
    """An open lock file, held until it is closed or this process ends.

    Raises:
        OSError: if there is none, another process holds it, or the file system has no locks.
    """
    import fcntl

    lock = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | create, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def tar_names(name: str) -> tuple[str, ...]:
    """The names under which a file may lie: a tar may have been compressed as a whole."""
    if not name.endswith(".tar"):
        return (name,)
    return (name, *(name.removesuffix(".tar") + ending for ending in PACKED_TARS))
