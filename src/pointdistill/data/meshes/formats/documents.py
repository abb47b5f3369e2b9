"""XML documents and zip archives, bounded before a library opens them."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from xml.parsers import expat

from lxml import etree

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.records import MeshLimits
from pointdistill.errors import DataError

_DENSEST: Final = 200
"""Largest accepted ratio of a packed document's sizes; lists of coordinates reach about 20."""

_HARMLESS: Final = 2**20
"""Bytes below which the ratio says nothing."""


def parse_xml(data: bytes, limits: MeshLimits, *, long_texts: bool = False) -> Any:
    """The root element of a document, an ``lxml.etree`` element, comments left out.

    Args:
        data: the document.
        limits: bounds its bytes, and its tags and attributes, each of which costs about 200 bytes.
        long_texts: accept single texts and attributes of more than 10 MB.

    Raises:
        DataError: if it is not well-formed, too large, or declares a document type.
    """
    check_size("bytes of XML", len(data), limits.document_bytes)
    check_size("tags and attributes", _values(data), limits.document_values)
    try:
        _refuse_document_type(data)
        parser = etree.XMLParser(
            huge_tree=long_texts,
            no_network=True,
            resolve_entities=False,
            remove_comments=True,
            remove_pis=True,
        )
        return etree.fromstring(data, parser)
    except (expat.ExpatError, etree.XMLSyntaxError, ValueError, LookupError) as error:
        # The last two are for encodings.
        msg = f"expected XML ({error}); the file is damaged, cut short or of another format"
        raise DataError(msg) from error


def _values(data: bytes) -> int:
    return data.count(b"<") + data.count(b"=")


class _PrologEnd(Exception):  # noqa: N818 - no error: it stops a parser that has seen enough
    """The first element begins: whatever a document declares stands before it."""


def _refuse_document_type(data: bytes) -> None:
    """Refuse what can declare entities, which expand or name other files, before lxml acts on it."""
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        msg = "declares a document type, which no model needs; export the file again"
        raise DataError(msg)

    def stop(*_: object) -> None:
        raise _PrologEnd

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = stop
    try:
        parser.Parse(data, True)
    except _PrologEnd:
        return


class Archive:
    """An open zip archive. All documents that are taken from it stay within the limits together."""

    def __init__(self, file: zipfile.ZipFile, limits: MeshLimits) -> None:
        self._file = file
        self._limits = limits
        self._bytes = 0
        self._values = 0
        self.names = frozenset(file.namelist())

    def parse(self, name: str) -> Any:
        """The root element of one document.

        Raises:
            DataError: if there is none of that name, or it is too large, too dense, locked or damaged.
        """
        data = self._read(name)
        self._values += _values(data)
        check_size("tags and attributes", self._values, self._limits.document_values)
        return parse_xml(data, self._limits)

    def _read(self, name: str) -> bytes:
        if name not in self.names:
            msg = f"the archive has no {name!r}; it is damaged, export it again"
            raise DataError(msg)
        member = self._file.getinfo(name)
        self._bytes += member.file_size
        check_size("bytes of XML", self._bytes, self._limits.document_bytes)
        if member.file_size > max(_HARMLESS, _DENSEST * member.compress_size):
            msg = (
                f"{name!r} unpacks {member.compress_size:,} bytes to {member.file_size:,}, at most "
                f"{_DENSEST} times as many are accepted; export the model again"
            )
            raise DataError(msg)
        try:
            # Never more than the size that was just checked: zipfile stops there.
            return self._file.read(member)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
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
