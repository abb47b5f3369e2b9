"""Files that are either complete or absent: written under a temporary name, flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import functools
import hashlib
import importlib.util
import json
import logging
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pointdistill.data.files.schema import (
    MOST_RECORD_BYTES,
    Record,
    from_plain,
    parse_json,
    read_bounded,
    refusing_damage,
)
from pointdistill.errors import DataError, PointDistillError

log = logging.getLogger("pointdistill")

LOCK_NAME = ".lock"
"""File in a folder that one process works in, while it does."""

_POLL_SECONDS = 0.02

_FULL_BYTES = 1 << 16
"""A disk with less is full: a write is refused where its next blocks do not fit."""

_NAMED = 32
"""Characters of a name that a temporary name repeats, so that it is never too long where the final one is not."""


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds.

    Parent folders are created. The file is flushed to the disk before the rename, so that a crash at any
    instant leaves the old content or the new, never a mixture. On an error the temporary file is removed. A link
    stays a link: the file that it leads to is replaced.

    Raises:
        DataError: if ``path`` is or leads to anything but a regular file, such as a folder, a device or a pipe.
    """
    path = check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A random name, because processes on two hosts may share a process id and this folder. The suffix stays last:
    # numpy and h5py choose the format, or append an ending, by it.
    suffix = path.suffix if len(path.suffix) <= _NAMED else ""
    aside = path.with_name(f".{path.stem[:_NAMED]}.{secrets.token_hex(8)}.part{suffix}")
    try:
        yield aside
        flush(aside)
        aside.replace(path)
        flush(path.parent)
    except OSError as error:
        if _is_without_place(error, path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if error.filename == str(aside):  # a name that the user has never seen
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        aside.unlink(missing_ok=True)


def _is_without_place(error: OSError, path: Path) -> bool:
    """Whether an error is a full disk that says not where: a copy names its source, NumPy how much it wrote."""
    if error.errno is None:
        return shutil.disk_usage(path.parent).free < _FULL_BYTES
    return error.errno == errno.ENOSPC and (error.filename is None or error.filename2 is not None)


def check_replaceable(path: Path) -> Path:
    """The file that ``path`` leads to, which may be absent.

    Raises:
        DataError: if it is no regular file, or ``path`` is a link into a folder that does not exist.
    """
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    if target.is_symlink() or (target != path and not target.parent.is_dir()):
        msg = f"{path}: is a broken link; choose another output, or remove the link"
        raise DataError(msg, settings=("output",))
    if target.exists() and not target.is_file():
        where = f"{path}: leads to {target}, which" if target != path else f"{path}:"
        kind = "a folder" if target.is_dir() else "no regular file"
        msg = f"{where} is {kind}, and is not replaced; choose another output"
        raise DataError(msg, settings=("output",))
    return target


def check_own_folder(folder: Path) -> None:
    """Refuse a link in place of a folder that the program makes, and clears, for its work.

    Raises:
        DataError: if ``folder`` is one; a folder from elsewhere may hold such a link.
    """
    if folder.is_symlink():
        msg = f"{folder}: is a link in place of a folder for unfinished work; remove it, and run the same again"
        raise DataError(msg)


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
    # A random name, as for files: another process of this id, on another host, may be writing in this folder.
    aside = path.with_name(f".{path.name[:_NAMED]}.{secrets.token_hex(8)}.part")
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


def check_folders_can_be_renamed(folder: Path) -> None:
    """Try in a folder what `folder_aside` needs: mounts of buckets, for example, rename files alone.

    Raises:
        DataError: if it does not work there.
    """
    tried = folder / f".try.{secrets.token_hex(8)}.part"
    renamed = tried.with_suffix(".done.part")
    try:
        tried.mkdir()
        (tried / "file").touch()
        tried.rename(renamed)
    except OSError as error:
        msg = (
            f"{folder}: folders cannot be renamed there ({error.strerror}), as checkpoints "
            "need it; choose a folder on another disk"
        )
        raise DataError(msg, settings=("run",)) from error
    finally:
        shutil.rmtree(tried, ignore_errors=True)
        shutil.rmtree(renamed, ignore_errors=True)


@contextmanager
def hold_lock(
    lock: Path, busy: PointDistillError, make_folder: Callable[[], None]
) -> Iterator[None]:
    """Hold a lock file, under the name by which other processes look for it; the lock ends with the process.

    The caller removes the file, within the block. Where the file system has no locks, one line says so, and the
    work goes on.

    Args:
        lock: the file.
        busy: raised if another process holds the lock.
        make_folder: makes the folder of the lock; called again if another process removes it meanwhile.

    Raises:
        DataError: if a link, a folder or a pipe has the lock's name.
    """
    make_folder()
    if importlib.util.find_spec("fcntl") is None:
        # On Windows it is up to the user not to let two processes work in one place.
        yield
        return
    while True:
        try:
            file = _open_lock(lock)
        except FileNotFoundError:  # another process has just removed the folder
            make_folder()
            continue
        with file:
            _acquire(file, lock, busy)
            if _has_name(file, lock):
                yield
                return


@contextmanager
def hold_folder(folder: Path, busy: PointDistillError) -> Iterator[None]:
    """Keep other processes out of a folder that one at a time may write to.

    It is made, with the folders above it; those that were made are removed again if they are left empty. Does
    nothing where a file, or a folder that may not be written to, is in the way: the work itself reports that.

    Raises:
        PointDistillError: ``busy``, if another process works in the folder.
    """
    if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK)):
        yield
        return
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    with hold_lock(folder / LOCK_NAME, busy, lambda: folder.mkdir(parents=True, exist_ok=True)):
        try:
            yield
        finally:
            # Within the lock: a process that has the file open notices that, and makes a new one.
            (folder / LOCK_NAME).unlink(missing_ok=True)
            with suppress(OSError):  # where one is not empty
                for place in made:
                    place.rmdir()


def hold_output(folder: Path, *, setting: str = "output") -> AbstractContextManager[None]:
    """Keep other processes out of a folder of results; one that begins meanwhile raises a DataError.

    Args:
        folder: where the results are written.
        setting: what chooses another folder, for the message.
    """
    msg = f"{folder}: another process is writing there; wait for it, or choose another folder"
    return hold_folder(folder, DataError(msg, settings=(setting,)))


@contextmanager
def hold_file(path: Path, busy: PointDistillError) -> Iterator[None]:
    """Keep other processes out that would make the same file; the lock lies beside it, hidden, and is removed.

    A link and the file that it leads to are the same.

    Raises:
        PointDistillError: ``busy``, if another process is making it.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    lock = path.with_name(f".{path.name.removeprefix('.')}.lock")
    with hold_lock(lock, busy, lambda: lock.parent.mkdir(parents=True, exist_ok=True)):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def share_lock(lock: Path) -> Iterator[None]:
    """Hold a lock file together with any number of others, for `wait_until_free`; does nothing without locks.

    Raises:
        FileNotFoundError: if its folder is gone.
        DataError: if a link, a folder or a pipe has its name.
    """
    if importlib.util.find_spec("fcntl") is None:
        yield
        return
    import fcntl

    with _open_lock(lock) as file:
        with suppress(OSError):  # of a file system without locks
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def wait_until_free(lock: Path, seconds: float) -> bool:
    """Wait until nobody shares a lock file, at most so long; whether that came to be, or cannot be known."""
    if importlib.util.find_spec("fcntl") is None or not lock.exists():
        return True
    import fcntl

    end = time.monotonic() + seconds
    with _open_lock(lock) as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    return False
                time.sleep(_POLL_SECONDS)
            except OSError:
                return True
            else:
                return True


def _open_lock(lock: Path) -> IO[str]:
    """A lock file, made if need be; a folder from elsewhere may hold a link, or a pipe that opening waits for."""

    strange = f"{lock}: is no lock file of this program; remove it, and run the same again"
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        handle = os.open(lock, flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
        raise DataError(strange) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise DataError(strange)
    return os.fdopen(handle, "w")


def _acquire(file: IO[str], lock: Path, busy: PointDistillError) -> None:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise busy from None
    except OSError as error:
        _say_no_locks(lock.parent, error.strerror)


@functools.cache
def _say_no_locks(folder: Path, reason: str) -> None:
    msg = "%s: this file system has no file locks (%s), so nothing keeps a second process out of this folder"
    log.warning(msg, folder, reason)


def _has_name(file: IO[str], path: Path) -> bool:
    """Whether an open file is still the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def write_json(path: Path, value: Any, *, any_text: bool = False) -> None:
    r"""Write ``value`` as indented JSON with a final newline, whole or not at all.

    Args:
        path: the file.
        value: plain values. Bytes of file names that are not UTF-8, which are halves of surrogate pairs in text,
            are written as the six characters \udcff, so that every reader takes the file.
        any_text: write them so that `read_json` with ``any_text`` returns the same text, for files that nothing
            else reads.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    if not any_text:
        text = re.sub("[\ud800-\udfff]", lambda half: f"\\\\u{ord(half[0]):04x}", text)
    with write_aside(path) as aside:
        aside.write_bytes(text.encode("utf-8", "backslashreplace"))


def read_json(path: Path, *, most: int = MOST_RECORD_BYTES, any_text: bool = False) -> Any:
    """The value in a JSON file of at most ``most`` bytes; ``any_text`` as for `parse_json`.

    Raises:
        DataError: if the file is missing or is not JSON.
    """
    try:
        return parse_json(read_bounded(path, most), most=most, any_text=any_text)
    except FileNotFoundError as error:
        msg = f"{path}: no such file"
        raise DataError(msg) from error
    except (OSError, ValueError) as error:
        msg = f"{path}: not readable as JSON ({error}); it may be cut short; create it again"
        raise DataError(msg) from error


def read_record(path: Path, kind: type[Record], *, partial: bool = False) -> Record:
    """The record in a JSON file, whose fields are checked; see `pointdistill.data.files.schema.from_plain`.

    Raises:
        DataError: if the file is missing, is not JSON, or holds anything else.
    """
    with refusing_damage(path):
        return from_plain(kind, read_json(path), partial=partial)


def path_from(folder: Path, path: Path) -> str:
    """The way from a folder to ``path``, for files that may be shared: absolute paths name this machine's folders.

    It begins with a dot, so that it is never taken for the name of a repository; only on another drive of Windows
    is it absolute.
    """
    try:
        way = Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:
        return str(path.resolve())
    return way if way.startswith("../") or way in (".", "..") else f"./{way}"


def short_name(path: Path) -> Path:
    """A path without this machine's folders: as it is if relative, else within this folder, else two names."""
    if not path.is_absolute():
        return path
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else Path(*path.parts[1:][-2:])


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_one_at_a_time = threading.Lock()


def _seek_and_read(descriptor: int, size: int, offset: int, /) -> bytes:
    with _one_at_a_time:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, size)


read_some: Callable[[int, int, int], bytes] = getattr(os, "pread", _seek_and_read)
"""Bytes of an open file: of this descriptor, at most so many, from there on; fewer at its end or above 2 GiB.

A read, and not a map: a page of a map that the file no longer has, because it was cut short meanwhile, ends the
process with a signal. Windows has no ``pread``."""


def read_exactly(descriptor: int, size: int, offset: int) -> bytes:
    """``size`` bytes of an open file from ``offset`` on; fewer only where the file ends."""
    content = read_some(descriptor, size, offset)
    while len(content) < size:
        more = read_some(descriptor, size - len(content), offset + len(content))
        if not more:
            break
        content += more
    return content


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
