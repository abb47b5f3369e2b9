"""XML documents, alone (COLLADA) or in zip archives (3MF, 3DXML): bounded before a library opens them.

After trimesh has read an archive, its triangles are counted and compared with those that the documents promise.
"""

from __future__ import annotations

import logging
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from graphlib import CycleError, TopologicalSorter
from io import BytesIO
from pathlib import Path
from typing import Any, Final, TypeAlias
from xml.parsers import expat
from zipfile import ZipFile

import numpy as np
from lxml import etree

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.records import MeshLimits, Part
from pointdistill.errors import DataError

_DENSEST: Final = 200
"""Largest accepted compression ratio of a document; lists of coordinates reach about 20."""

_HARMLESS: Final = 2**20
"""Size in bytes below which the ratio says nothing."""

_COUNTLESS: Final = 2**62

Loader: TypeAlias = Callable[[BytesIO], Mapping[str, Any]]
"""A function of ``trimesh.exchange``: from an archive to the geometries and placements of a scene."""

# trimesh logs what it leaves out, on stderr if there is no handler; the counts are checked here instead.
logging.getLogger("trimesh").addHandler(logging.NullHandler())


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
        # ValueError and LookupError come from encodings.
        msg = f"expected XML ({error}); the file is damaged, cut short or of another format"
        raise DataError(msg) from error


def _values(data: bytes) -> int:
    return data.count(b"<") + data.count(b"=")


class _PrologEnd(Exception):  # noqa: N818 - not an error: it stops a parser that has seen enough
    """The first element begins: all declarations of a document come before it."""


def _refuse_document_type(data: bytes) -> None:
    """Refuse document types before lxml acts on them: they declare entities, which expand or name other files."""
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


class ZippedDocuments:
    """An open zip archive. All documents read from it together stay within the limits."""

    def __init__(self, file: zipfile.ZipFile, limits: MeshLimits) -> None:
        self._file = file
        self._limits = limits
        self._bytes = 0
        self._values = 0
        self.names = frozenset(file.namelist())

    def parse(self, name: str) -> Any:
        """The root element of one document.

        Raises:
            DataError: if there is none with that name, or it is too large, too dense, encrypted or damaged.
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
            # zipfile never returns more than the size that was just checked.
            return self._file.read(member)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            msg = f"{name!r} in the archive cannot be unpacked ({error}); it is damaged or locked"
            raise DataError(msg) from error


@contextmanager
def open_zipped_documents(path: Path, limits: MeshLimits) -> Iterator[ZippedDocuments]:
    """Open a zip archive.

    Raises:
        DataError: if it is not a zip archive, or is too large.
    """
    check_size("bytes", path.stat().st_size, limits.file_bytes)
    try:
        with zipfile.ZipFile(path) as file:
            yield ZippedDocuments(file, limits)
    except zipfile.BadZipFile as error:
        msg = (
            f"expected a zip archive ({error}); the file is damaged, cut short or of another format"
        )
        raise DataError(msg) from error


def load_parts(loader: Loader, members: Mapping[str, bytes], *, triangles: int) -> list[Part]:
    """The parts of a scene, placed by its assembly.

    Args:
        loader: trimesh's loader of the format.
        members: the documents that it needs, by their names in the archive.
        triangles: how many triangles the documents promise, all instances counted.

    Raises:
        DataError: if the loader gives another number of triangles.
    """
    archive = BytesIO()
    with ZipFile(archive, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    with strict_numbers():
        scene = loader(archive)
    parts = [
        _part(scene["geometry"][node["geometry"]], node["matrix"])
        for node in scene["graph"]
        if node.get("geometry") in scene["geometry"]
    ]
    loaded = sum(part.face_count for part in parts)
    if loaded != triangles:
        msg = f"{triangles:,} triangles are stored, {loaded:,} were read; export the model as GLB or OBJ"
        raise DataError(msg)
    return parts


def _part(geometry: Mapping[str, Any], matrix: Any) -> Part:
    return Part(
        np.asarray(geometry["vertices"], dtype=np.float64).reshape(-1, 3),
        np.asarray(geometry["faces"], dtype=np.int64).reshape(-1),
        matrix=np.asarray(matrix, dtype=np.float64),
    )


@contextmanager
def strict_numbers() -> Iterator[None]:
    """Silence the libraries, except where numpy reads only the first numbers of a text: that becomes an error.

    Newer versions of numpy raise a ValueError there themselves.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="string or file could not be read")
        yield


def count_placed(
    children: Mapping[str, Sequence[str]], triangles: Mapping[str, int], roots: Sequence[str]
) -> tuple[int, int]:
    """How many instances and triangles a scene has, counted without placing any.

    Args:
        children: for every object of the scene, the objects that it contains, one entry per instance.
        triangles: of each object itself; 0 if it is not listed.
        roots: the objects that the scene contains.

    Raises:
        DataError: if an object is missing, or contains itself.
    """
    if (
        missing := {name for contained in (*children.values(), roots) for name in contained}
        - children.keys()
    ):
        msg = f"object {min(missing)!r} is not in the file; export the model again, all in one file"
        raise DataError(msg)
    counts: dict[str, tuple[int, int]] = {}
    for name in contents_first(children):
        contained = [counts[child] for child in children[name]]
        instances = 1 + sum(count for count, _ in contained)
        total = triangles.get(name, 0) + sum(count for _, count in contained)
        # Capped, since nested doubling would give numbers with as many digits as there are objects.
        counts[name] = (min(instances, _COUNTLESS), min(total, _COUNTLESS))
    placed = [counts[name] for name in roots]
    return sum(count for count, _ in placed), sum(count for _, count in placed)


def contents_first(children: Mapping[str, Sequence[str]]) -> list[str]:
    """All objects, each after those that it contains.

    Raises:
        DataError: if an object contains itself.
    """
    try:
        return list(TopologicalSorter(children).static_order())
    except CycleError as error:
        msg = f"object {error.args[1][0]!r} contains itself; the file is damaged, export it again"
        raise DataError(msg) from error
