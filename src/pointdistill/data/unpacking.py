"""One member of an archive as a file of its own, with what else it needs beside it.

Readers of meshes take files, and a glTF names others by their place; nothing else is unpacked.
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
    """Of its members."""

    opened: AbstractContextManager[Archive]
    """What holds it open."""


def hold_archive(path: Path) -> HeldArchive:
    """An archive, kept open from one call to the next as long as its file is the same.

    Raises:
        DataError: if it is gone, or no archive.
    """
    return _archive(path, file_state(path))


@functools.lru_cache(maxsize=1)
def _archive(
    path: Path,
    state: tuple[int, ...],  # noqa: ARG001  what is built anew at its place is opened anew
) -> HeldArchive:
    """An open archive; shapes come in order, so one at a time is enough."""
    opened = open_archive(path, absent=f"{path}: is gone; put it back and go on")
    archive = opened.__enter__()
    return HeldArchive(archive, frozenset(archive.names), opened)


def file_state(path: Path) -> tuple[int, ...]:
    """What changes when a file is written anew; nothing of one that is gone, which its reader reports."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def unpack(held: HeldArchive, name: str, folder: Path) -> Path:
    """One member as a file in ``folder``, with the buffers beside it that a glTF names.

    Raises:
        DataError: if a member cannot be read, or the buffers' names cannot be those of files here.
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
    # The member's own name could lead anywhere; its ending is all that the reader needs.
    return _write(folder, f"member{PurePosixPath(name).suffix}", content)


def _write(folder: Path, name: str, content: bytes) -> Path:
    """A file in ``folder``, its own folder made if need be; its path.

    Raises:
        DataError: if no file can have that name here.
    """
    path = folder / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    # Too long, of bytes that are no text, or one buffer's folder and another's file.
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise  # of this machine, not of the shape
        msg = f"its buffer {name[:60]!r} cannot be unpacked ({type(error).__name__}); rename it"
        raise DataError(msg) from error
    return path


def _buffers(content: bytes) -> list[str]:
    """Names of a glTF's buffer files that lie in its own folder or below; damage is left to the reader."""
    try:
        named = [unquote(buffer["uri"]) for buffer in json.loads(content)["buffers"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    plain = {posixpath.normpath(uri) for uri in named if not uri.startswith("data:")}
    return sorted(uri for uri in plain if not uri.startswith(("..", "/")) and "\\" not in uri)
