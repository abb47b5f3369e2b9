"""Unpacks one member of an archive into a file of its own, with the files that it refers to beside it.

Mesh readers take files, and a glTF refers to others by relative paths; nothing else is unpacked.
"""

from __future__ import annotations

import errno
import functools
import json
import posixpath
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from pointdistill.data.archive import MEMBER_LIMIT_BYTES, Archive, open_archive
from pointdistill.errors import DataError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class HeldArchive:
    """An open archive."""

    archive: Archive
    names: frozenset[str]
    """Names of its members."""

    opened: AbstractContextManager[Archive]
    """The context manager that keeps it open."""


def hold_archive(path: Path) -> HeldArchive:
    """An archive that stays open between calls as long as its file is unchanged.

    Raises:
        DataError: if it is gone or is not an archive.
    """
    return _archive(path, file_state(path))


@functools.lru_cache(maxsize=1)
def _archive(
    path: Path,
    state: tuple[int, ...],  # noqa: ARG001  part of the key: a changed file is opened again
) -> HeldArchive:
    """An open archive; shapes are read in order, so one at a time is enough."""
    opened = open_archive(path, absent=f"{path}: is gone; put it back and go on")
    archive = opened.__enter__()
    return HeldArchive(archive, frozenset(archive.names), opened)


def file_state(path: Path) -> tuple[int, ...]:
    """Values that change when a file is rewritten; empty if it is gone, which its reader will report."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def unpack(held: HeldArchive, name: str, folder: Path) -> Path:
    """Unpack one member into ``folder``, and beside it the buffer files that a glTF names.

    Raises:
        DataError: if a member cannot be read, or no file can have the name of a buffer on this system.
    """
    content = held.archive.read(name)
    if PurePosixPath(name).suffix.lower() == ".gltf":
        unpacked = len(content)
        for relative in _buffers(content):
            member = posixpath.join(posixpath.dirname(name), relative)
            if member in held.names and unpacked <= MEMBER_LIMIT_BYTES:
                buffer = held.archive.read(member)
                unpacked += len(buffer)
                _write(folder, relative, buffer)
    # The member's own name could lead anywhere, and the reader needs only its suffix.
    return _write(folder, f"member{PurePosixPath(name).suffix}", content)


def _write(folder: Path, name: str, content: bytes) -> Path:
    """Write a file in ``folder``, creating sub-folders as needed; returns its path.

    Raises:
        DataError: if no file can have that name on this system.
    """
    path = folder / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    # The name is too long or not text, or it is both a folder and a file.
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise  # the machine's problem, not the shape's
        msg = f"its buffer {name[:60]!r} cannot be unpacked ({type(error).__name__}); rename it"
        raise DataError(msg) from error
    return path


def _buffers(content: bytes) -> list[str]:
    """Names of a glTF's buffer files in its own folder or below; damage is left to the reader."""
    try:
        named = [unquote(buffer["uri"]) for buffer in json.loads(content)["buffers"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    plain = {posixpath.normpath(uri) for uri in named if not uri.startswith("data:")}
    return sorted(uri for uri in plain if not uri.startswith(("..", "/")) and "\\" not in uri)
