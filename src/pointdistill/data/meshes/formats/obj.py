"""Wavefront OBJ: `v` and `f` statements; materials, normals, texture coordinates and curves are ignored."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.text import (
    check_text_size,
    line_blocks,
    parse_points,
    parse_rows,
)
from pointdistill.data.meshes.records import Draft, Floats, Indices, MeshLimits, Part
from pointdistill.errors import DataError

_VERTEX = (b"v ", b"v\t")
_FACE = (b"f ", b"f\t")
_AFTER_SLASH = re.compile(rb"/\S*")


def read(path: Path, limits: MeshLimits) -> Draft:
    """Read all groups of an OBJ file as one part.

    Raises:
        DataError: if a statement cannot be read, or there are no faces.
    """
    check_text_size(path, limits.text_bytes)
    vertices: list[Floats] = []
    corners: list[Indices] = []
    sizes: list[Indices] = []
    seen = 0
    faces = 0
    for lines in line_blocks(path, join=b"\\"):
        rows = [line[2:] for line in lines if line[:2] in _VERTEX]
        if face_rows := [line[2:] for line in lines if line[:2] in _FACE]:
            block_corners, block_sizes = _faces(lines, face_rows, seen)
            corners.append(block_corners)
            sizes.append(block_sizes)
            faces += len(block_sizes)
        if rows:
            vertices.append(parse_points(rows))
            seen += len(rows)
        check_size("vertices", seen, limits.vertices)
        check_size("faces", faces, limits.faces)
    if not faces:
        msg = (
            f"an OBJ file with {seen:,} vertices and no faces; export the mesh with its faces, or a point "
            "cloud as .ply or .xyz"
        )
        raise DataError(msg)
    part = Part(
        np.concatenate(vertices) if vertices else np.empty((0, 3)),
        np.concatenate(corners),
        np.concatenate(sizes),
    )
    return Draft([part])


def _faces(lines: list[bytes], rows: list[bytes], seen: int) -> tuple[Indices, Indices]:
    """Vertex indices from 0 of a block's faces; what is outside the vertices stays outside."""
    text = b"\n".join(rows)
    if b"/" in text:
        text = _AFTER_SLASH.sub(b"", text)
    values, sizes = parse_rows(text.split(b"\n"), np.int64)
    if (values >= 0).all():
        return values - 1, sizes
    # A negative index counts back from the last vertex before its face: -1 is that vertex.
    before = seen + np.cumsum([line[:2] in _VERTEX for line in lines])
    at_face = before[[line[:2] in _FACE for line in lines]]
    return np.where(values < 0, np.repeat(at_face, sizes) + values, values - 1), sizes
