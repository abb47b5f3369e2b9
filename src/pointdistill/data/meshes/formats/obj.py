"""Wavefront OBJ: `v`, `f` (in old files `fo`) and, in files without faces, `p` statements.

Materials, normals, texture coordinates and lines are ignored.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.content import (
    check_text_size,
    parse_indices,
    parse_points,
    ragged_ranges,
    token_blocks,
)
from pointdistill.data.meshes.formats.fast_numbers import Tokens
from pointdistill.data.meshes.records import Floats, Indices, MeshLimits, Part, RawMesh
from pointdistill.errors import DataError

_FREE_FORM = (b"surf", b"curv", b"bsp", b"bzp", b"cdc", b"cdp")
_ELSEWHERE = b"call"
"""The statement that stands for the content of another file, which is not opened."""


def read(path: Path, limits: MeshLimits) -> RawMesh:
    """Read all groups of an OBJ file as one part, or as points where it has no faces.

    The points of a file with `p` statements are the vertices that these name, otherwise all.

    Raises:
        DataError: if a statement cannot be read, or the shape is made of curves, lines or free-form surfaces.
    """
    check_text_size(path, limits.text_bytes)
    vertices: list[Floats] = []
    corners: list[Indices] = []
    sizes: list[Indices] = []
    points: list[Indices] = []
    lines = seen = faces = 0
    for tokens in token_blocks(path, comment=b"#", continued=b"vf"):
        is_vertex, is_face = tokens.lines_that_begin(b"v"), tokens.lines_that_begin(b"f")
        rare = _rare_statements(tokens, ~(is_vertex | is_face))
        if len(rare):
            _check_free_form(rare)
        if len(rare) and rare.lines_that_begin(b"fo").any():
            is_face |= tokens.lines_that_begin(b"fo")
        if is_face.any():
            block_corners, block_sizes = _faces(tokens, is_vertex, is_face, seen)
            corners.append(block_corners)
            sizes.append(block_sizes)
            faces += len(block_sizes)
        if len(rare) and not faces:
            lines += int(rare.lines_that_begin(b"l").sum())
            if rare.lines_that_begin(b"p").any():
                is_point = tokens.lines_that_begin(b"p")
                points.append(_faces(tokens, is_vertex, is_point, seen)[0])
        if is_vertex.any():
            vertices.append(parse_points(tokens.lines(is_vertex), columns=(1, 2, 3), skip=1))
            seen += len(vertices[-1])
        check_size("vertices", seen, limits.vertices)
        check_size("faces", faces, limits.faces)
    all_vertices = np.concatenate(vertices) if vertices else np.empty((0, 3))
    if faces:
        return RawMesh([Part(all_vertices, np.concatenate(corners), np.concatenate(sizes))])
    if not seen or (lines and not points):
        found = f"{seen:,} vertices and no faces" + (f" but {lines:,} lines" if lines else "")
        msg = f"an OBJ file with {found}; export the mesh with its faces, or a cloud as vertices alone"
        raise DataError(msg)
    return RawMesh(points=[_named_points(all_vertices, points) if points else all_vertices])


def _rare_statements(tokens: Tokens, among: NDArray[np.bool_]) -> Tokens:
    """Some lines without those that begin with a v, such as vn and vt, of which a file may have many."""
    lines = tokens.lines(among)
    heads = np.frombuffer(tokens.text, np.uint8)[lines.starts[lines.first]]
    return lines.lines((heads != ord("v")) & (heads != ord("V")))


def _check_free_form(tokens: Tokens) -> None:
    """Refuse surfaces and curves whose vertices are control points and no part of the shape, and other files."""
    for statement in _FREE_FORM:
        if tokens.lines_that_begin(statement).any():
            name = statement.decode()
            msg = f"the shape has free-form geometry ({name}), which is not read; export it as triangles"
            raise DataError(msg)
    if tokens.lines_that_begin(_ELSEWHERE).any():
        msg = "a part of the shape is in another file (call), which is not read; export it as one file"
        raise DataError(msg)


def _named_points(vertices: Floats, indices: list[Indices]) -> Floats:
    """The vertices that `p` statements name, each once, in the order of the file."""
    named = np.unique(np.concatenate(indices))
    if not len(named) or named[0] < 0 or named[-1] >= len(vertices):
        msg = f"points are named that are not among the {len(vertices):,} vertices; export the file again"
        raise DataError(msg)
    return vertices[named]


def _faces(
    tokens: Tokens, is_vertex: NDArray[np.bool_], is_face: NDArray[np.bool_], seen: int
) -> tuple[Indices, Indices]:
    """Zero-based vertex indices of a block's faces; an index outside the vertices stays outside."""
    faces = tokens.lines(is_face)
    sizes = faces.counts - 1
    values = parse_indices(faces, ragged_ranges(faces.first + 1, sizes), skip=1)
    if (values >= 0).all():
        values -= 1
        return values, sizes
    # A negative index counts back from the last vertex above the face: -1 is that vertex.
    before = (seen + np.cumsum(is_vertex))[is_face]
    return np.where(values < 0, np.repeat(before, sizes) + values, values - 1), sizes
