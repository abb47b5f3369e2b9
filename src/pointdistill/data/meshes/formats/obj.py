"""Wavefront OBJ: `v` and `f` statements; materials, normals, texture coordinates and curves are ignored."""

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


def read(path: Path, limits: MeshLimits) -> RawMesh:
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
    for tokens in token_blocks(path, comment=b"#", continued=b"vf"):
        is_vertex, is_face = tokens.lines_that_begin(b"v"), tokens.lines_that_begin(b"f")
        if is_face.any():
            block_corners, block_sizes = _faces(tokens, is_vertex, is_face, seen)
            corners.append(block_corners)
            sizes.append(block_sizes)
            faces += len(block_sizes)
        if is_vertex.any():
            vertices.append(parse_points(tokens.lines(is_vertex), columns=(1, 2, 3), skip=1))
            seen += len(vertices[-1])
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
    return RawMesh([part])


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
