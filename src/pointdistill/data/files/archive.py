"""Reads zip and tar files, or the folder extracted from one, through one interface, in place and without trust.

Nothing is extracted. A tar that is compressed as a whole cannot be read in any order, so it becomes a plain tar in
a temporary file, for as long as the process that began. Archives come from strangers and from broken downloads, so
every kind of damage ends as a one-line error that names the file and what to do.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import lzma
import os
import string
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

from pointdistill.data.files.packed_tars import PACKED_TARS, plain_tar, remove_abandoned
from pointdistill.data.files.workspace import file_checksum
from pointdistill.errors import DataError, one_line
from pointdistill.reporter import plural

log = logging.getLogger("pointdistill")

_SAFE = frozenset(string.ascii_letters + string.digits + "-_.+=@ ()")
_DEVICES = frozenset(
    ("CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10)))
)
"""What Windows keeps for devices."""

_MOST_NAME = 200  # characters of one part of a path; file systems take 255 bytes

MEMBER_LIMIT_BYTES = 1 << 30
"""Largest member that is read; the largest real one (ScanObjectNN PB-T50-RS) has some 0.4 GiB."""

POINTER_START = b"version https://git-lfs"
"""The beginning of the pointer file that Git LFS leaves in place of a file that it did not fetch."""

_ENCRYPTED = 1  # a zip member's flag
_GZIP_START = b"\x1f\x8b"
_TAR_MAGIC, _TAR_MAGIC_AT = b"ustar", 257
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,  # it needs a password, or Python does not know the compression
)
"""What reading a member of a zip raises."""

_PAGE_STARTS = (b"<!doctype html", b"<html")


@dataclass(frozen=True, slots=True)
class MemberLocation:
    """Where a member's bytes are, so that `read_member_at` needs no table of contents."""

    name: str
    offset: int = 0
    """Position of a zip member's own header, or of a tar member's first byte; 0 in a folder."""

    packed: int = 0
    """Bytes that it takes up in the archive."""

    size: int = 0
    """Bytes of its content."""

    crc: int | None = None
    """CRC-32 of its content, which only zip files state."""

    method: int | None = None
    """Compression method of a zip member; -1 if it needs a password; None elsewhere."""


class Archive(ABC):
    """Members of an archive or folder by their POSIX names, without the hidden files of operating systems."""

    path: Path
    names: tuple[str, ...]
    """Sorted member names; folders, ``__MACOSX/`` and dot files are left out."""

    unsafe: tuple[str, ...] = ()
    """Names that lead outside the archive; such members are not read."""

    irregular: tuple[str, ...] = ()
    """Names in a folder that are no regular files: broken links, pipes and devices; not among ``names``."""

    def find(self, suffix: str) -> str | None:
        """The member whose path ends in ``suffix``, whatever folder it is in; None if absent.

        Raises:
            DataError: if there are several.
        """
        members = [name for name in self.names if name == suffix or name.endswith(f"/{suffix}")]
        if len(members) > 1:
            msg = (
                f"{self.path}: holds {suffix} twice ({members[0]}, {members[1]}); keep one of them"
            )
            raise DataError(msg)
        return members[0] if members else None

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of one member.

        Raises:
            DataError: if it cannot be read completely, is larger than `MEMBER_LIMIT_BYTES`, or is a Git-LFS
            pointer.
        """

    @abstractmethod
    def head(self, name: str, count: int) -> bytes:
        """The first ``count`` bytes of one member; none of one that cannot be read in part."""

    @abstractmethod
    def locate(self, name: str) -> MemberLocation:
        """Where one member is."""

    @abstractmethod
    def checksum(self, names: Sequence[str]) -> str:
        """Hexadecimal SHA-256 of the archive, or of names and contents of a folder's ``names``."""

    def refuse(self, name: str, cause: object) -> NoReturn:
        """Raise the DataError for a member that cannot be read."""
        msg = f"{self.path}: {name} is damaged ({cause}); fetch the archive again"
        raise DataError(msg)

    def _check_size(self, name: str, size: int) -> None:
        if size > MEMBER_LIMIT_BYTES:
            self.refuse(name, f"{size:,} bytes, at most {MEMBER_LIMIT_BYTES:,} are read")

    def _no_pointer(self, name: str, content: bytes) -> bytes:
        if content.startswith(POINTER_START):
            msg = (
                f"{self.path}: {name} is a Git-LFS pointer in place of the file; run `git lfs pull`"
            )
            raise DataError(msg)
        return content


class _ZipArchive(Archive):
    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path = path
        self._file = file
        self.names, self.unsafe = _sort_names(
            i.filename for i in file.infolist() if not i.filename.endswith("/")
        )

    def read(self, name: str) -> bytes:
        self._check_size(name, self._file.getinfo(name).file_size)
        try:
            return self._no_pointer(name, self._file.read(name))
        except _UNREADABLE as error:
            self.refuse(name, error)

    def head(self, name: str, count: int) -> bytes:
        # Of other methods `zipfile` unpacks all that a block of the file holds, which can be gigabytes.
        if self._file.getinfo(name).compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            with suppress(*_UNREADABLE), self._file.open(name) as stream:
                return stream.read(count)
        return b""

    def locate(self, name: str) -> MemberLocation:
        info = self._file.getinfo(name)
        method = -1 if info.flag_bits & _ENCRYPTED else info.compress_type
        return MemberLocation(
            name, info.header_offset, info.compress_size, info.file_size, info.CRC, method
        )

    def checksum(self, names: Sequence[str]) -> str:  # noqa: ARG002  a zip file is one thing
        return file_checksum(self.path)


class _TarArchive(Archive):
    def __init__(self, path: Path, file: tarfile.TarFile) -> None:
        self.path = path
        self._file = file
        # If a name occurs twice the last one counts, as in tar itself. A file of two names on the disk is here
        # once, and its second name is a hard link; other links are not followed.
        self._members: dict[str, tarfile.TarInfo] = {}
        links = list[str]()
        for member in file.getmembers():
            kept = self._members.get(member.linkname) if member.islnk() else member
            if kept is not None and kept.isreg():
                self._members[member.name] = kept
            elif member.islnk() or member.issym():
                links.append(member.name)
        if links:
            what = f"holds {plural(len(links), 'link')} that {'is' if len(links) == 1 else 'are'} not followed"
            _say_unused(path, f"{what} ({links[0]}); unpack it and give the folder")
        self._check_end()
        self.names, self.unsafe = _sort_names(self._members)

    def read(self, name: str) -> bytes:
        member = self._members[name]
        self._check_size(name, member.size)
        try:
            stream = self._file.extractfile(member)
            assert stream is not None  # it never is for a regular file
            return self._no_pointer(name, stream.read())
        except (tarfile.TarError, EOFError, OSError) as error:
            self.refuse(name, error)

    def head(self, name: str, count: int) -> bytes:
        with suppress(tarfile.TarError, EOFError, OSError):
            stream = self._file.extractfile(self._members[name])
            assert stream is not None  # it never is for a regular file
            return stream.read(count)
        return b""

    def locate(self, name: str) -> MemberLocation:
        member = self._members[name]
        return MemberLocation(name, member.offset_data, member.size, member.size)

    def checksum(self, names: Sequence[str]) -> str:  # noqa: ARG002  a tar file is one thing
        return file_checksum(self.path)

    def _check_end(self) -> None:
        """Raise unless the members are followed by an empty block: ``tarfile`` accepts any end of file."""
        assert self._file.fileobj is not None
        self._file.fileobj.seek(self._file.offset)
        if self._file.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            msg = "no end mark"
            raise tarfile.ReadError(msg)


class _FolderArchive(Archive):
    def __init__(self, path: Path) -> None:
        self.path = path
        paths = [Path(below, file) for below, _, files in walk(path) for file in files]
        regular = {file for file in paths if file.is_file()}
        self.names, self.unsafe = _sort_names(f.relative_to(path).as_posix() for f in regular)
        others = (f.relative_to(path).as_posix() for f in paths if f not in regular)
        self.irregular = _sort_names(others)[0]

    def read(self, name: str) -> bytes:
        with still_there(self.path / name):
            try:
                self._check_size(name, (self.path / name).stat().st_size)
                return self._no_pointer(name, (self.path / name).read_bytes())
            except OSError as error:
                self.refuse(name, error)

    def head(self, name: str, count: int) -> bytes:
        with suppress(OSError), (self.path / name).open("rb") as file:
            return file.read(count)
        return b""

    def locate(self, name: str) -> MemberLocation:
        with still_there(self.path / name):
            try:
                size = (self.path / name).stat().st_size
            except OSError as error:
                self.refuse(name, error)
        return MemberLocation(name, packed=size, size=size)

    def checksum(self, names: Sequence[str]) -> str:
        whole = hashlib.sha256()
        for name in sorted(names):
            whole.update(os.fsencode(f"{file_checksum(self.path / name)}  {name}\n"))
        return whole.hexdigest()


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` in the order of names, into linked folders too, skipping folders that the user may not read.

    Each real folder is walked once, so that a loop of links ends: those that are no links first, then those that
    links lead to. A link that adds nothing, because it is broken or leads to a folder that was walked already, is
    named in a warning to the logger ``pointdistill``.

    Raises:
        OSError: if a folder cannot be listed for any other reason, because its files would be silently missing.
    """

    def check(error: OSError) -> None:
        if not isinstance(error, PermissionError):
            raise error

    walked = {_identity(folder)}
    starts = [folder]
    while starts:
        links: list[Path] = []
        for start in starts:
            if start != folder and not _is_new(start, walked):
                _say_unused(start, "a link that leads to a folder whose files are read already")
                continue
            for below, subfolders, files in os.walk(start, onerror=check):
                subfolders.sort()
                yield below, subfolders, sorted(files)
                for name in files:
                    # Only a name without an ending may have been meant as a folder; a broken file is the reader's.
                    if "." not in name and _is_broken_link(Path(below, name)):
                        why = "a link that is broken; put there what it stands for, or remove it"
                        _say_unused(Path(below, name), why)
                here = [Path(below, name) for name in subfolders]
                linked = {path for path in here if path.is_symlink()}
                links += sorted(linked)
                real = (path for path in here if path not in linked)
                subfolders[:] = [path.name for path in real if _is_new(path, walked)]
        starts = links


def _is_broken_link(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _identity(path: Path) -> tuple[int, int] | str:
    """What two names of one folder have in common."""
    try:
        status = path.stat()
    except OSError:
        return os.path.realpath(path)
    # Some systems number no files.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _is_new(folder: Path, walked: set[tuple[int, int] | str]) -> bool:
    """Whether a folder was not walked before; it is from now on."""
    identity = _identity(folder)
    if identity in walked:
        return False
    walked.add(identity)
    return True


_said: set[tuple[str, str]] = set()


def _say_unused(path: Path, why: str) -> None:
    """Say it once, however often a folder is walked or an archive is opened, and by whatever path."""
    known = (os.path.realpath(path.parent) + os.sep + path.name, why)
    if known not in _said:
        _said.add(known)
        log.warning("%s: %s", one_line(str(path)), one_line(why))


@contextmanager
def still_there(path: Path) -> Iterator[None]:
    """For reading a file or folder that was listed before: tells one that is gone from one that is damaged.

    Raises:
        OSError: ESTALE, in place of what was raised, if ``path`` is gone: a problem of the machine, such as a disk
            that was unplugged, not of the file.
    """
    try:
        yield
    except (DataError, OSError) as error:
        if path.exists():
            raise
        msg = "was there when it was listed and is gone"
        raise OSError(errno.ESTALE, msg, str(path)) from error


@contextmanager
def open_archive(path: Path, *, absent: str, tolerate_unsafe: bool = False) -> Iterator[Archive]:
    """Open a zip or tar file, or a folder that was extracted from one.

    Args:
        path: the file or the folder.
        absent: the message if there is nothing at ``path``.
        tolerate_unsafe: leave members whose names lead outside to the caller, as ``unsafe``.

    Raises:
        DataError: if there is nothing, if it is not a complete archive, or if a member's name leads outside.
    """
    if not path.exists():
        raise DataError(absent)
    if path.is_dir():
        yield _FolderArchive(path)
        return
    if not path.is_file():  # opening a pipe would wait for someone to write to it
        msg = f"{path}: is a device or a pipe, not an archive; save its content to a file"
        raise DataError(msg)
    with ExitStack() as resources:
        try:
            remove_abandoned()
            archive = _open_file(path, resources)
        except (
            zipfile.BadZipFile,
            tarfile.TarError,
            OSError,
            ValueError,
            NotImplementedError,
        ) as error:
            msg = f"{path}: {_why_no_archive(path)}; fetch the archive again"
            raise DataError(msg) from error
        if archive.unsafe and not tolerate_unsafe:
            msg = f"{path}: member {archive.unsafe[0]!r} leads out of the archive; fetch it from its own site"
            raise DataError(msg)
        yield archive


def _open_file(path: Path, resources: ExitStack) -> Archive:
    if _looks_like_tar(path):
        return _TarArchive(path, resources.enter_context(tarfile.open(plain_tar(path), "r:")))
    try:
        # `zip` on Linux writes names in UTF-8, and no flag that says so.
        file = zipfile.ZipFile(path, metadata_encoding="utf-8")
    except UnicodeDecodeError:
        file = zipfile.ZipFile(path)
    return _ZipArchive(path, resources.enter_context(file))


def _looks_like_tar(path: Path) -> bool:
    if path.name.lower().endswith((".tar", *PACKED_TARS)):
        return True
    with path.open("rb") as file:
        file.seek(_TAR_MAGIC_AT)
        return file.read(len(_TAR_MAGIC)) == _TAR_MAGIC


def leads_outside(name: str) -> bool:
    """Whether a member's name is empty, or could on any system lead out of the folder that it is unpacked to."""
    path = PurePosixPath(name.replace("\\", "/"))
    return not path.parts or ".." in path.parts or path.is_absolute()


def safe_name(name: str, reserved: AbstractSet[str] = frozenset()) -> str:
    """A name that every file system takes and that leads nowhere else.

    Different names stay different, where upper and lower case are told apart.

    Args:
        name: any text.
        reserved: what it may not begin with, in upper case, besides what Windows keeps for devices.
    """
    quoted = [c if c in _SAFE else "".join(f"%{b:02X}" for b in c.encode()) for c in name] or ["%"]
    for end in (0, -1):  # a dot or a blank there hides a file, leads elsewhere, or is dropped
        quoted[end] = {".": "%2E", " ": "%20"}.get(quoted[end], quoted[end])
    if "".join(quoted).split(".")[0].upper() in reserved | _DEVICES:
        quoted[0] = f"%{ord(quoted[0][0]):02X}"
    whole = "".join(quoted)
    if len(whole) > _MOST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        whole = f"{whole[: _MOST_NAME - 17]}%{digest}"
    return whole


def _sort_names(names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sorted names without hidden files, and those that lead outside the archive; each once."""
    visible, unsafe = set(), set()
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if leads_outside(name):
            unsafe.add(name)
        elif "__MACOSX" not in parts and not parts[-1].startswith("."):
            visible.add(name)
    return tuple(sorted(visible)), tuple(sorted(unsafe))


def _why_no_archive(path: Path) -> str:
    """Why a file is not an archive, judging by its first bytes."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    packed = path.name.lower().endswith(PACKED_TARS)
    kind = "tar" if path.suffix == ".tar" or packed else "zip"
    if not start:
        return f"an empty file, not a {kind} archive"
    if start.startswith(POINTER_START):
        return f"a Git-LFS pointer in place of the {kind} archive; run `git lfs pull`"
    if start.lstrip().lower().startswith(_PAGE_STARTS):
        return f"a web page (a login or form?) in place of the {kind} archive"
    if start.startswith(b"PK"):
        return "a zip archive that ends early, as a broken download does"
    if start[_TAR_MAGIC_AT:].startswith(_TAR_MAGIC):
        return "a tar archive that ends early, as a broken download does"
    if packed and start.startswith(_GZIP_START):
        return "unpacks to no tar archive, or to one that ends early"
    if start.startswith(_GZIP_START):
        return "gzip-compressed as a whole: gunzip it and use the result; if that is refused too"
    return f"not a {kind} archive"


def zip_damage(path: Path) -> str:
    """What is wrong with a zip; empty if its directory and every member are whole. Reads all of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (*_UNREADABLE, ValueError) as error:
        return f"is no whole zip ({type(error).__name__})"
    return f"its member {broken!a} is damaged" if broken else ""
