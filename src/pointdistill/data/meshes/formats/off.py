"""Object File Format, text: OFF, COFF, NOFF, STOFF and their mixtures, with the counts glued or not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.text import (
    check_text_size,
    line_blocks,
    parse_points,
    parse_polygons,
    shown,
)
from pointdistill.data.meshes.records import Draft, Floats, Indices, MeshLimits, Part
from pointdistill.errors import DataError

_KEYWORD = re.compile(rb"(?:ST)?C?N?OFF(?![A-Za-z])\s*(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Header:
    vertices: int
    faces: int


def read(path: Path, limits: MeshLimits) -> Draft:
    """Read an OFF file as one part, or as points where its header says that it has no faces.

    Raises:
        DataError: if the header is none, promises more than the file holds, or a row cannot be read.
    """
    size = check_text_size(path, limits.text_bytes)
    blocks = line_blocks(path, comment=b"#")
    header, rows = _header(blocks)
    check_size("vertices", header.vertices, limits.vertices)
    check_size("faces", header.faces, limits.faces)
    if 2 * (header.vertices + header.faces) > size:
        msg = (
            f"the header promises {header.vertices:,} vertices and {header.faces:,} faces, which "
            f"{size:,} bytes cannot hold; the file is damaged or cut short"
        )
        raise DataError(msg)
    return _body(header, rows, blocks)


def _header(blocks: Iterator[list[bytes]]) -> tuple[_Header, list[bytes]]:
    """The counts, and the lines of the first block after them."""
    rows = next(blocks, [])
    match = _KEYWORD.fullmatch(rows[0]) if rows else None
    if match is None:
        got = shown(rows[0]) if rows else "an empty file"
        msg = f"expected a text OFF file that begins with OFF, COFF, NOFF or STOFF, got {got}"
        raise DataError(msg)
    counts, rows = match[1].split(), rows[1:]
    if not counts:
        if not rows:
            rows = next(blocks, [])
        counts, rows = (rows[0].split(), rows[1:]) if rows else ([], [])
    if len(counts) < 2 or not all(count.isdigit() for count in counts):
        msg = f"expected the counts of vertices, faces and edges after OFF, got {shown(b' '.join(counts))}"
        raise DataError(msg)
    return _Header(int(counts[0]), int(counts[1])), rows


def _body(header: _Header, rows: list[bytes], blocks: Iterator[list[bytes]]) -> Draft:
    vertices: list[Floats] = []
    corners: list[Indices] = []
    sizes: list[Indices] = []
    vertices_left, faces_left = header.vertices, header.faces
    while True:
        vertex_rows, rows = rows[:vertices_left], rows[vertices_left:]
        if vertex_rows:
            vertices.append(parse_points(vertex_rows))
            vertices_left -= len(vertex_rows)
        if face_rows := rows[:faces_left]:
            block_corners, block_sizes = parse_polygons(face_rows)
            corners.append(block_corners)
            sizes.append(block_sizes)
            faces_left -= len(face_rows)
        if not (vertices_left or faces_left):
            break
        rows = next(blocks, [])
        if not rows:
            msg = (
                f"the header promises {header.vertices:,} vertices and {header.faces:,} faces, the file has "
                f"{header.vertices - vertices_left:,} and {header.faces - faces_left:,}; it is cut short"
            )
            raise DataError(msg)
    points = np.concatenate(vertices) if vertices else np.empty((0, 3))
    if not header.faces:
        return Draft(points=[points])
    return Draft([Part(points, np.concatenate(corners), np.concatenate(sizes))])
