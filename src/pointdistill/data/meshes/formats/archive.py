"""Members of a zip archive, read by name into memory and never written to a disk."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.records import MeshLimits
from pointdistill.errors import DataError


class Archive:
    """An open zip archive."""

    def __init__(self, file: zipfile.ZipFile, limits: MeshLimits) -> None:
        self._file = file
        self._limits = limits
        self.names = file.namelist()

    def document(self, name: str) -> bytes:
        """A member of at most ``limits.document_bytes``.

        Raises:
            DataError: if there is none of that name, or it is too large, locked or damaged.
        """
        try:
            member = self._file.getinfo(name)
        except KeyError:
            msg = f"the archive has no {name!r}; it is damaged, export it again"
            raise DataError(msg) from None
        check_size(f"bytes in {name!r}", member.file_size, self._limits.document_bytes)
        try:
            return self._file.read(member)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            RuntimeError,
            NotImplementedError,
        ) as error:
            msg = f"{name!r} in the archive cannot be unpacked ({error}); it is damaged or locked"
            raise DataError(msg) from error


@contextmanager
def open_archive(path: Path, limits: MeshLimits) -> Iterator[Archive]:
    """Open a zip archive.

    Raises:
        DataError: if it is none, or is too large.
    """
    check_size("bytes", path.stat().st_size, limits.file_bytes)
    try:
        with zipfile.ZipFile(path) as file:
            yield Archive(file, limits)
    except zipfile.BadZipFile as error:
        msg = (
            f"expected a zip archive ({error}); the file is damaged, cut short or of another format"
        )
        raise DataError(msg) from error
