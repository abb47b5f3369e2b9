"""One member of an archive: its bytes, read from a known location, or a file of its own, unpacked.

Opening a zip of a million members costs seconds and half a GiB for their names. A worker that knows the location
of its member, from an earlier listing, needs none of them. Mesh readers take files, and a glTF refers to others by
relative paths: `unpack` writes a member and those files into a folder, and nothing else.
"""

from __future__ import annotations

import errno
import functools
import posixpath
import struct
import zipfile
import zlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, NoReturn
from urllib.parse import unquote

from pointdistill.data.files.archive import (
    MEMBER_LIMIT_BYTES,
    POINTER_START,
    Archive,
    MemberLocation,
    open_archive,
    still_there,
)
from pointdistill.data.files.packed_tars import plain_tar
from pointdistill.data.files.schema import parse_json
from pointdistill.errors import DataError

_HEADER = struct.Struct("<4s22x2H")
_HEADER_START = b"PK\x03\x04"

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class LocalHeader:
    """The header that directly precedes the bytes of a zip member."""

    name: bytes
    start: int
    """Where the member's bytes begin in the file."""


def read_local_header(file: IO[bytes], offset: int) -> LocalHeader | None:
    """The header of the zip member at an offset; None where there is none.

    The lengths of its name and extra field may differ from those in the archive's table of contents, so only this
    header says where the bytes begin.
    """
    file.seek(offset)
    fixed = file.read(_HEADER.size)
    if len(fixed) < _HEADER.size:
        return None
    signature, name_length, extra_length = _HEADER.unpack(fixed)
    if signature != _HEADER_START:
        return None
    name = file.read(name_length)
    return LocalHeader(name, offset + _HEADER.size + name_length + extra_length)


def read_member_at(root: Path, location: MemberLocation) -> bytes:
    """The content of one member.

    Args:
        root: the archive, or the folder extracted from it.
        location: what `pointdistill.data.files.archive.Archive.locate` returned for this very file.

    Raises:
        DataError: if the member is damaged, too large, or a Git-LFS pointer; its message names no path.
        OSError: ESTALE if the archive, or the file in the folder, is gone, which is not the member's fault.
    """
    if location.size > MEMBER_LIMIT_BYTES:
        _refuse(location, f"{location.size:,} bytes, at most {MEMBER_LIMIT_BYTES:,} are read")
    content = _read(root, location)
    if location.crc is not None and (
        len(content) != location.size or zlib.crc32(content) != location.crc
    ):
        _refuse(location, "its checksum is another")
    if content.startswith(POINTER_START):
        msg = f"{location.name} is a Git-LFS pointer in place of the file; run `git lfs pull`"
        raise DataError(msg)
    return content


def _read(root: Path, location: MemberLocation) -> bytes:
    in_folder = root.is_dir()
    path = root / location.name if in_folder else root
    with still_there(path):
        try:
            with (path if in_folder else plain_tar(path)).open("rb") as file:
                return (_from_folder if in_folder else _from_archive)(file, location)
        except (OSError, zlib.error) as error:
            _refuse(location, getattr(error, "strerror", None) or error, error)


def _from_folder(file: IO[bytes], location: MemberLocation) -> bytes:
    content = file.read(MEMBER_LIMIT_BYTES + 1)
    if len(content) > MEMBER_LIMIT_BYTES:
        _refuse(location, f"more than {MEMBER_LIMIT_BYTES:,} bytes")
    return content


def _from_archive(file: IO[bytes], location: MemberLocation) -> bytes:
    if location.method is None:
        file.seek(location.offset)
        return _exactly(file, location.packed, location)
    header = read_local_header(file, location.offset)
    if header is None:
        _refuse(location, "it is not where the archive's list says")
    file.seek(header.start)
    packed = _exactly(file, location.packed, location)
    if location.method == zipfile.ZIP_STORED:
        return packed
    if location.method != zipfile.ZIP_DEFLATED:
        _refuse(location, "it asks for a password or is packed in a way that is not read")
    # One byte more than stated is enough to detect a zip bomb.
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, location.size + 1)


def _exactly(file: IO[bytes], count: int, location: MemberLocation) -> bytes:
    content = file.read(count)
    if len(content) < count:
        _refuse(location, "the archive ends before it does")
    return content


def _refuse(
    location: MemberLocation, cause: object, error: BaseException | None = None
) -> NoReturn:
    msg = f"{location.name} is damaged ({cause}); fetch the archive again"
    raise DataError(msg) from error


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
    """An open archive; shapes are read in order, so it is enough to hold one open."""
    opened = open_archive(path, absent=f"{path}: is gone; put it back and go on")
    archive = opened.__enter__()
    return HeldArchive(archive, frozenset(archive.names), opened)


def file_state(path: Path) -> tuple[int, ...]:
    """Numbers that change when a file is rewritten; empty if it is gone, which the next read will report."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def unpack(source: HeldArchive, name: str, folder: Path) -> Path:
    """Unpack one member into ``folder``, and beside it the buffer files that a glTF names.

    Raises:
        DataError: if a member cannot be read, or no file can have the name of a buffer on this system.
    """
    content = source.archive.read(name)
    if PurePosixPath(name).suffix.lower() == ".gltf":
        unpacked = len(content)
        for relative in _buffers(content):
            member = posixpath.join(posixpath.dirname(name), relative)
            if member in source.names and unpacked <= MEMBER_LIMIT_BYTES:
                buffer = source.archive.read(member)
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
    # The name may be too long, be no text, or belong to a folder and a file at once.
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise  # the machine's problem, not the shape's
        msg = f"its buffer {name[:60]!r} cannot be unpacked ({type(error).__name__}); rename it"
        raise DataError(msg) from error
    return path


def _buffers(content: bytes) -> list[str]:
    """Names of a glTF's buffer files in its own folder or below; damage is left to the reader."""
    try:
        named = [unquote(buffer["uri"]) for buffer in parse_json(content)["buffers"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    plain = {posixpath.normpath(uri) for uri in named if not uri.startswith("data:")}
    return sorted(uri for uri in plain if not uri.startswith(("..", "/")) and "\\" not in uri)
