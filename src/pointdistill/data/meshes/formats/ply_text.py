"""The data of a text PLY file: one line a row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pointdistill.data.meshes.formats.ply_header import Element, Header
from pointdistill.data.meshes.formats.text import (
    check_text_size,
    parse_points,
    parse_polygons,
    word_blocks,
)
from pointdistill.data.meshes.formats.words import Words
from pointdistill.data.meshes.records import Floats, Indices, MeshLimits
from pointdistill.errors import DataError


def read(
    path: Path, header: Header, index_name: str | None, limits: MeshLimits
) -> tuple[Floats, Indices, Indices]:
    """Vertices (V, 3), corners (C,) and sizes (F,) of a text PLY file.

    Raises:
        DataError: if there are fewer rows than the header promises, or one cannot be read.
    """
    check_text_size(path, limits.text_bytes)
    lines = _Lines(path, header.data_start)
    vertices: list[Floats] = []
    corners: list[Indices] = []
    sizes: list[Indices] = []
    for element in header.elements:
        for rows in lines.take(element):
            if element.name == "vertex":
                vertices.append(_points(rows, element))
            elif element.name == "face" and index_name is not None:
                block_corners, block_sizes = _polygons(rows, element, index_name)
                corners.append(block_corners)
                sizes.append(block_sizes)
    empty = [np.empty(0, np.int64)]
    return (
        np.concatenate([np.empty((0, 3)), *vertices]),
        np.concatenate(empty + corners),
        np.concatenate(empty + sizes),
    )


class _Lines:
    """The rows after the header, handed out element by element."""

    def __init__(self, path: Path, start: int) -> None:
        self._blocks = word_blocks(path, start=start)
        self._rows: Words | None = None

    def take(self, element: Element) -> Iterator[Words]:
        """Yield the element's rows, a block at a time."""
        left = element.count if element.properties else 0
        while left:
            if not self._rows:
                self._rows = next(self._blocks, None)
            if self._rows is None:
                msg = (
                    f"the header promises {element.count:,} of {element.name!r}, the file has "
                    f"{element.count - left:,}; it is cut short"
                )
                raise DataError(msg)
            rows, self._rows = self._rows.lines(slice(left)), self._rows.lines(slice(left, None))
            left -= len(rows)
            yield rows


def _points(rows: Words, element: Element) -> Floats:
    names = [item.name for item in element.properties]
    if element.list_names:
        msg = "the vertices have list properties; export them as plain numbers"
        raise DataError(msg)
    columns = (names.index("x"), names.index("y"), names.index("z"))
    return parse_points(rows, columns=columns)


def _polygons(rows: Words, element: Element, index_name: str) -> tuple[Indices, Indices]:
    before = [item.name for item in element.properties].index(index_name)
    if any(item.count_type is not None for item in element.properties[:before]):
        msg = (
            f"the faces have a list before {index_name}; export the mesh with vertex indices first"
        )
        raise DataError(msg)
    return parse_polygons(rows, lead=before)
