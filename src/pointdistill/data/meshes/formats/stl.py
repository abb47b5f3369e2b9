"""STL, binary and text; every facet has its own corners, and several solids make one surface."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.content import (
    check_text_size,
    map_file,
    parse_points,
    token_blocks,
)
from pointdistill.data.meshes.records import Floats, Indices, MeshLimits, Part, RawMesh
from pointdistill.errors import DataError

_HEADER = 84
_FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def read(path: Path, limits: MeshLimits) -> RawMesh:
    """Read an STL file as one part.

    Raises:
        DataError: if the file is cut short or is neither form of STL.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_HEADER)
    facets = struct.unpack("<I", start[80:])[0] if len(start) == _HEADER else 0
    expected = _HEADER + facets * _FACET.itemsize
    # Binary files may begin with "solid" too, so the length decides before the first word.
    if size == expected and facets:
        return _read_binary(path, facets, limits)
    if start.lstrip()[:5].lower() == b"solid" and b"\0" not in start:
        return _read_text(path, limits)
    if len(start) < _HEADER or not facets:
        msg = f"expected an STL file, got {size:,} bytes and 0 facets; export the file again"
        raise DataError(msg)
    if size < expected:
        msg = (
            f"the header promises {facets:,} triangles ({expected:,} bytes), the file has {size:,} bytes; "
            "it is cut short or not an STL file"
        )
        raise DataError(msg)
    return _read_binary(path, facets, limits)


def _read_binary(path: Path, facets: int, limits: MeshLimits) -> RawMesh:
    check_size("triangles", facets, limits.faces)
    data = map_file(path, limits)
    corners = np.frombuffer(data, _FACET, facets, _HEADER)["corners"]
    vertices = corners.reshape(-1, 3).astype(np.float64)
    return RawMesh([Part(vertices, np.arange(len(vertices)))])


def _read_text(path: Path, limits: MeshLimits) -> RawMesh:
    """Facets are counted by their `endloop`, so that one without exactly three corners is noticed."""
    check_text_size(path, limits.text_bytes)
    vertices: list[Floats] = []
    ends: list[Indices] = []
    seen = 0
    last = b""
    for tokens in token_blocks(path):
        is_vertex = tokens.lines_that_begin(b"vertex")
        ends.append(seen + np.cumsum(is_vertex)[tokens.lines_that_begin(b"endloop")])
        vertices.append(parse_points(tokens.lines(is_vertex), columns=(1, 2, 3), skip=1))
        seen += len(vertices[-1])
        check_size("vertices", seen, 3 * limits.faces)
        last = tokens.line(-1)
    facet_ends = np.concatenate(ends) if ends else np.empty(0, np.int64)
    if not last.lower().startswith(b"endsolid") or (seen and seen != facet_ends[-1:].sum()):
        msg = f"the file ends inside a solid, after {len(facet_ends):,} facets; it is cut short"
        raise DataError(msg)
    if not seen:
        msg = "0 facets in the file; export it again"
        raise DataError(msg)
    sizes = np.diff(facet_ends, prepend=0)
    return RawMesh([Part(np.concatenate(vertices), np.arange(seen), sizes)])
