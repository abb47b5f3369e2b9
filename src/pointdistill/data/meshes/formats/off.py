"""Object File Format, text: OFF, COFF, NOFF, STOFF and their combinations; the counts may follow without a
space."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.content import (
    check_more_rows,
    check_text_size,
    excerpt,
    parse_indices,
    parse_points,
    parse_polygons,
    token_blocks,
)
from pointdistill.data.meshes.formats.fast_numbers import Tokens, split_tokens
from pointdistill.data.meshes.records import Floats, Indices, MeshLimits, Part, RawMesh
from pointdistill.errors import DataError

_KEYWORD = re.compile(rb"(?:(?:ST)?C?N?OFF|off)(?![A-Za-z])\s*(.*)", re.DOTALL)
_NOTHING = split_tokens(b"")
_LONGEST_FACE = 1 << 20
"""Bytes of a face that is read over several lines."""


@dataclass(frozen=True, slots=True)
class _Header:
    vertices: int
    faces: int


def read(path: Path, limits: MeshLimits) -> RawMesh:
    """Read an OFF file as one part, or as points if its header says that it has no faces.

    Raises:
        DataError: if there is no valid header, it promises more than the file holds, or a row cannot be read.
    """
    size = check_text_size(path, limits.text_bytes)
    blocks = token_blocks(path, comment=b"#")
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


def _header(blocks: Iterator[Tokens]) -> tuple[_Header, Tokens]:
    """The counts, and the lines of the first block after them."""
    rows = next(blocks, _NOTHING)
    match = _KEYWORD.fullmatch(rows.line(0)) if len(rows) else None
    if match is None:
        got = excerpt(rows.line(0)) if len(rows) else "an empty file"
        msg = f"expected a text OFF file that begins with OFF, COFF, NOFF or STOFF, got {got}"
        raise DataError(msg)
    counts, rows = match[1].split(), rows.lines(slice(1, None))
    if not counts:
        rows = rows if len(rows) else next(blocks, _NOTHING)
        counts = rows.line(0).split() if len(rows) else []
        rows = rows.lines(slice(1, None))
    if len(counts) < 2 or not all(count.isdigit() for count in counts):
        msg = f"expected the counts of vertices, faces and edges after OFF, got {excerpt(b' '.join(counts))}"
        raise DataError(msg)
    return _Header(int(counts[0]), int(counts[1])), rows


def _body(header: _Header, rows: Tokens, blocks: Iterator[Tokens]) -> RawMesh:
    vertices: list[Floats] = []
    corners: list[Indices] = []
    sizes: list[Indices] = []
    vertices_left, faces_left = header.vertices, header.faces
    one_to_a_line = True
    while True:
        vertex_rows, rows = rows.lines(slice(vertices_left)), rows.lines(slice(vertices_left, None))
        if len(vertex_rows):
            vertices.append(parse_points(vertex_rows))
            vertices_left -= len(vertex_rows)
        face_rows = rows.lines(slice(faces_left))
        unfinished = b""
        if len(face_rows):
            try:
                block_corners, block_sizes = parse_polygons(face_rows)
            except DataError:
                face_rows, unfinished = _whole_faces(rows, faces_left)
                one_to_a_line = False
                block_corners, block_sizes = parse_polygons(face_rows)
            corners.append(block_corners)
            sizes.append(block_sizes)
            faces_left -= len(face_rows)
        if not (vertices_left or faces_left):
            if one_to_a_line:
                rest = rows.lines(slice(len(face_rows), None))
                promised = f"{header.vertices:,} vertices and {header.faces:,} faces"
                check_more_rows(rest if len(rest) else next(blocks, None), promised, again=b"OFF")
            break
        rows = next(blocks, _NOTHING)
        if unfinished:
            if not len(rows):
                raise _broken_face(unfinished)
            rows = split_tokens(unfinished + b"\n" + rows.text)
        if not len(rows):
            msg = (
                f"the header promises {header.vertices:,} vertices and {header.faces:,} faces, the file has "
                f"{header.vertices - vertices_left:,} and {header.faces - faces_left:,} lines of them; it is cut "
                "short, or not one to a line"
            )
            raise DataError(msg)
    points = np.concatenate(vertices) if vertices else np.empty((0, 3))
    if not header.faces:
        return RawMesh(points=[points])
    return RawMesh([Part(points, np.concatenate(corners), np.concatenate(sizes))])


def _whole_faces(rows: Tokens, most: int) -> tuple[Tokens, bytes]:
    """Faces, each as one line, and the text of a last one that goes on in the next block.

    Args:
        rows: lines of faces. A face whose line has fewer indices than it promises goes on over the next lines, and
            must end where one of them ends.
        most: how many faces are left; what follows is not read.

    Raises:
        DataError: if a face has another number of indices than it promises.
    """
    one_each = rows.lines(slice(most))
    if (parse_indices(one_each, one_each.first) < one_each.counts).all():
        return one_each, b""
    promised = parse_indices(rows, rows.first) + 1
    first, counts = list[int](), list[int]()
    needed = found = 0
    for start, need, count in zip(
        rows.first.tolist(), promised.tolist(), rows.counts.tolist(), strict=True
    ):
        if found < needed:
            found += count
            counts[-1] = found
            if found > needed:
                raise _broken_face(rows.text[rows.starts[first[-1]] :])
        elif len(first) == most:
            break
        else:
            first.append(start)
            counts.append(count)
            needed, found = need, count
    whole = Tokens(
        rows.text, rows.starts, rows.ends, np.array(first, np.int64), np.array(counts, np.int64)
    )
    if found >= needed:
        return whole, b""
    unfinished = rows.text[rows.starts[first[-1]] :].rstrip()
    if len(unfinished) > _LONGEST_FACE:
        raise _broken_face(unfinished)
    return whole.lines(slice(-1)), unfinished


def _broken_face(text: bytes) -> DataError:
    row = excerpt(text.partition(b"\n")[0])
    return DataError(
        f"a face promises more indices than it has: {row}; the file is damaged or cut short"
    )
