"""Files that are either complete or absent: written under a temporary name, flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pointdistill.errors import DataError


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds.

    Parent folders are created. The file is flushed to the disk before the rename, so that a crash at any
    instant leaves the old content or the new, never a mixture. On an error the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A random name, because processes on two hosts may share a process id and this folder. The suffix stays last:
    # numpy and h5py choose the format, or append an ending, by it.
    aside = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.part{path.suffix}")
    try:
        yield aside
        flush(aside)
        aside.replace(path)
        flush(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``path``; rename it to ``path`` if the block succeeds.

    Raises:
        DataError: if ``path`` exists already.
    """
    if path.exists():
        msg = f"{path} exists already; choose another name or remove it first"
        raise DataError(msg)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                flush(file)
        flush(aside)
        aside.rename(path)
        flush(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with a final newline, whole or not at all."""
    with write_aside(path) as aside:
        aside.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        DataError: if the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        msg = f"{path}: no such file"
        raise DataError(msg) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        msg = f"{path}: not readable as JSON ({error}); it may be cut short; create it again"
        raise DataError(msg) from error


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, is a write that failed for lack of space or quota."""
    return _lack_of_space(error) is not None


def no_room(path: Path, error: BaseException, *, safe: str = "what is done is safe") -> DataError:
    """The error for work that was stopped by a full disk, whose path it names if it is not the disk of ``path``.

    Args:
        path: file or folder that was being written.
        error: an error for which `disk_is_full` holds.
        safe: a clause that says what has been saved.
    """
    cause = _lack_of_space(error)
    other = Path(str(cause.filename)) if cause is not None and cause.filename else path
    where = path if _disk_of(other) == _disk_of(path) else f"{path}: {other}"
    msg = f"{where}: no space left on the disk; {safe}: make room and run the same again to go on"
    return DataError(msg)


def _disk_of(path: Path) -> int:
    """Id of the file system that holds a path, or the nearest existing folder above it."""
    whole = path.absolute()
    return next(place for place in (whole, *whole.parents) if place.exists()).stat().st_dev


def _lack_of_space(error: BaseException | None) -> OSError | None:
    """The error or cause that is a lack of space. Contexts are ignored: they may be about something earlier."""
    full = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
    while error is not None:
        if isinstance(error, OSError) and error.errno in full:
            return error
        error = error.__cause__
    return None


def flush(path: Path) -> None:
    """Ask the system to write a file or a folder's entries to the disk (not possible for folders on Windows)."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return
    # Windows flushes only what is open for writing; elsewhere that would exclude folders and read-only files.
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
