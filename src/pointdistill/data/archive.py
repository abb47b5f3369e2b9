"""A zip file or the folder extracted from it, read alike, in place, and without trust.

Nothing is extracted. Archives come from strangers and from broken downloads, so every way in which
one can be damaged ends as one line that names the file and what to do.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NoReturn

from pointdistill.data.files import sha256_of
from pointdistill.errors import DataError

MEMBER_LIMIT_BYTES = 1 << 30
"""Largest member that is read; the largest real one (ScanObjectNN PB-T50-RS) has some 0.4 GiB."""

_POINTER_START = b"version https://git-lfs"
_PAGE_STARTS = (b"<!doctype html", b"<html")


class Archive(ABC):
    """Members of a zip file or folder by their POSIX names, without the litter of other systems."""

    path: Path
    names: tuple[str, ...]
    """Sorted member names; folders, ``__MACOSX/`` and dot files are left out."""

    def find(self, suffix: str) -> str | None:
        """The member whose path ends in ``suffix``, whatever folder it lies in; None if absent.

        Raises:
            DataError: if there are several.
        """
        found = [name for name in self.names if name == suffix or name.endswith(f"/{suffix}")]
        if len(found) > 1:
            msg = f"{self.path}: holds {suffix} twice ({found[0]}, {found[1]}); keep one of them"
            raise DataError(msg)
        return found[0] if found else None

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of one member.

        Raises:
            DataError: if it cannot be read whole, or is larger than `MEMBER_LIMIT_BYTES`.
        """

    @abstractmethod
    def checksum(self, names: Sequence[str]) -> str:
        """Hexadecimal SHA-256 of the zip file, or of names and contents of a folder's ``names``."""

    def refuse(self, name: str, cause: object) -> NoReturn:
        """Raise the DataError for a member that cannot be read."""
        msg = f"{self.path}: {name} is damaged ({cause}); fetch the archive again"
        raise DataError(msg)

    def _check_size(self, name: str, size: int) -> None:
        if size > MEMBER_LIMIT_BYTES:
            self.refuse(name, f"{size:,} bytes, at most {MEMBER_LIMIT_BYTES:,} are read")


class _ZipArchive(Archive):
    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path = path
        self._file = file
        self.names = _wanted(
            path, [i.filename for i in file.infolist() if not i.filename.endswith("/")]
        )

    def read(self, name: str) -> bytes:
        self._check_size(name, self._file.getinfo(name).file_size)
        try:
            return self._file.read(name)
        # RuntimeError: a password is asked for. NotImplementedError: a compression Python does not
        # know.
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            self.refuse(name, error)

    def checksum(self, names: Sequence[str]) -> str:  # noqa: ARG002  a zip file is one thing
        return sha256_of(self.path)


class _FolderArchive(Archive):
    def __init__(self, path: Path) -> None:
        self.path = path
        files = (file for file in path.rglob("*") if file.is_file())
        self.names = _wanted(path, [file.relative_to(path).as_posix() for file in files])

    def read(self, name: str) -> bytes:
        try:
            self._check_size(name, (self.path / name).stat().st_size)
            return (self.path / name).read_bytes()
        except OSError as error:
            self.refuse(name, error)

    def checksum(self, names: Sequence[str]) -> str:
        whole = hashlib.sha256()
        for name in sorted(names):
            whole.update(f"{sha256_of(self.path / name)}  {name}\n".encode())
        return whole.hexdigest()


@contextmanager
def open_archive(path: Path, *, absent: str) -> Iterator[Archive]:
    """Open a zip file, or a folder that was extracted from one.

    Args:
        path: the zip file or the folder.
        absent: what to tell the user when there is nothing at ``path``.

    Raises:
        DataError: if there is nothing, if it is no whole zip file, or if a member's name leads out
        of it.
    """
    if not path.exists():
        raise DataError(absent)
    if path.is_dir():
        yield _FolderArchive(path)
        return
    try:
        file = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        msg = f"{path}: {_what_it_is(path)}; fetch the archive again"
        raise DataError(msg) from error
    with file:
        yield _ZipArchive(path, file)


def _wanted(path: Path, names: list[str]) -> tuple[str, ...]:
    """Names sorted, litter dropped; a name that leads out of the archive is refused."""
    wanted = []
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if not parts or ".." in parts or PurePosixPath(name).is_absolute():
            msg = f"{path}: member {name!r} leads out of the archive; fetch it from its own site"
            raise DataError(msg)
        if "__MACOSX" not in parts and not parts[-1].startswith("."):
            wanted.append(name)
    return tuple(sorted(wanted))


def _what_it_is(path: Path) -> str:
    """Why a file is no zip file, as far as its first bytes tell."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not start:
        return "an empty file, not a zip archive"
    if start.startswith(_POINTER_START):
        return "a Git-LFS pointer in place of the zip archive; run `git lfs pull`"
    if start.lstrip().lower().startswith(_PAGE_STARTS):
        return "a web page (a login or form?) in place of the zip archive"
    if start.startswith(b"PK"):
        return "a zip archive that ends early, as a broken download does"
    return "not a zip archive"
