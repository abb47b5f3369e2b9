"""Stanford PLY, text and binary of either byte order, with or without faces.

In binary files, rows of fixed size are one view and ragged rows are read one by one; text has one line per row.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.content import (
    check_text_size,
    map_file,
    parse_points,
    parse_polygons,
    token_blocks,
)
from pointdistill.data.meshes.formats.fast_numbers import Tokens
from pointdistill.data.meshes.formats.ply_header import Element, Header, read_header
from pointdistill.data.meshes.records import Floats, Indices, MeshLimits, Part, RawMesh
from pointdistill.errors import DataError

_AXES = ("x", "y", "z")
_INDEX_NAMES = ("vertex_indices", "vertex_index")


def read(path: Path, limits: MeshLimits) -> RawMesh:
    """Read a PLY file as one part, or as points where it has no faces.

    Raises:
        DataError: if there is no valid header, or it promises more than the file holds, lacks coordinates, or
            stores its surface as something other than faces.
    """
    header = read_header(path)
    vertex = header.element("vertex")
    if vertex is None:
        msg = f"no vertex element, found {header.names}; it is not a mesh or a point cloud"
        raise DataError(msg)
    if missing := [axis for axis in _AXES if axis not in vertex.scalar_names]:
        msg = f"the vertices have no {', '.join(missing)}; export them with x, y and z"
        raise DataError(msg)
    check_size("vertices", vertex.count, limits.vertices)
    face = header.element("face")
    if face is not None:
        check_size("faces", face.count, limits.faces)
    index_name = _index_name(header)
    read_data = _read_text if header.form == "ascii" else _read_binary
    vertices, corners, sizes = read_data(path, header, index_name, limits)
    if index_name is None:
        return RawMesh(points=[vertices])
    return RawMesh([Part(vertices, corners, sizes)])


def _index_name(header: Header) -> str | None:
    """The property that holds the faces' indices; None for a file without faces."""
    face = header.element("face")
    if face is None or not face.count:
        strips = header.element("tristrips")
        if strips is not None and strips.count:
            msg = "the surface is stored as tristrips; export it with faces"
            raise DataError(msg)
        return None
    for name in _INDEX_NAMES:
        if name in face.list_names:
            return name
    msg = (
        f"the faces have no vertex_indices list, found {face.property_names}; export the mesh again"
    )
    raise DataError(msg)


def _read_binary(
    path: Path, header: Header, index_name: str | None, limits: MeshLimits
) -> tuple[Floats, Indices, Indices]:
    """Vertices (V, 3), corners (C,) and sizes (F,) of a binary PLY file.

    Raises:
        DataError: if the data end before the header's counts are reached.
    """
    data = map_file(path, limits)
    offset = header.data_start
    vertices = np.empty((0, 3))
    corners = sizes = np.empty(0, np.int64)
    for element in header.elements:
        list_name = index_name if element.name == "face" else None
        if not element.count or not element.properties:
            continue
        if not element.list_names:
            table, offset = _table(data, offset, element, header.byte_order)
            if element.name == "vertex":
                vertices = np.stack([table[axis] for axis in "xyz"], axis=1).astype(np.float64)
        else:
            corners_here, sizes_here, offset = _rows(data, offset, element, header, list_name)
            if element.name == "face":
                corners, sizes = corners_here, sizes_here
    return vertices, corners, sizes


def _table(
    data: memoryview, offset: int, element: Element, order: str
) -> tuple[NDArray[np.void], int]:
    """All rows of an element without lists."""
    dtype = np.dtype(
        {
            "names": [f"{item.name}" for item in element.properties],
            "formats": [order + item.item_type for item in element.properties],
        }
    )
    _check_end(data, offset + element.count * dtype.itemsize, element)
    table = np.frombuffer(data, dtype, element.count, offset)
    return table, offset + table.nbytes


def _rows(
    data: memoryview, offset: int, element: Element, header: Header, list_name: str | None
) -> tuple[Indices, Indices, int]:
    """Rows with lists: read as a table if every row has the layout of the first, otherwise one by one."""
    row = _row_like_first(data, offset, element, header.byte_order)
    if offset + element.count * row.itemsize <= len(data):
        table = np.frombuffer(data, row, element.count, offset)
        uniform = all(
            (table[name] == table[name][0]).all() for name in row.names or () if "#" in name
        )
        if uniform:
            if list_name is None:
                return np.empty(0, np.int64), np.empty(0, np.int64), offset + table.nbytes
            items = table[list_name].astype(np.int64)
            sizes = np.full(len(items), items.shape[1], np.int64)
            return items.reshape(-1), sizes, offset + table.nbytes
    return _ragged_rows(data, offset, element, header.byte_order, list_name)


def _row_like_first(
    data: memoryview, offset: int, element: Element, order: str
) -> np.dtype[np.void]:
    """The layout of the first row; the count of the list ``name`` is the field ``#name``."""
    fields: list[tuple[str, str] | tuple[str, str, tuple[int]]] = []
    for item in element.properties:
        if item.count_type is None:
            fields.append((item.name, order + item.item_type))
            offset += np.dtype(item.item_type).itemsize
        else:
            count_type = np.dtype(order + item.count_type)
            _check_end(data, offset + count_type.itemsize, element)
            count = _count(np.frombuffer(data, count_type, 1, offset)[0].item(), element)
            offset += count_type.itemsize + count * np.dtype(item.item_type).itemsize
            _check_end(data, offset, element)
            fields.append((f"#{item.name}", count_type.str))
            fields.append((item.name, order + item.item_type, (count,)))
    return np.dtype(fields)


def _ragged_rows(
    data: memoryview, offset: int, element: Element, order: str, list_name: str | None
) -> tuple[Indices, Indices, int]:
    """Rows with lists, one by one, at a microsecond each; only meshes with faces of several sizes come here."""
    layout = [
        (
            item.name == list_name,
            None
            if item.count_type is None
            else struct.Struct(order + np.dtype(item.count_type).char),
            np.dtype(item.item_type),
        )
        for item in element.properties
    ]
    corners, sizes = array("q"), array("q")
    for _ in range(element.count):
        for is_selected, count_type, item_type in layout:
            if count_type is None:
                offset += item_type.itemsize
                continue
            _check_end(data, offset + count_type.size, element)
            count = _count(count_type.unpack_from(data, offset)[0], element)
            offset += count_type.size
            _check_end(data, offset + count * item_type.itemsize, element)
            if is_selected:
                items = struct.unpack_from(f"{order}{count}{item_type.char}", data, offset)
                corners.extend(map(int, items))
                sizes.append(count)
            offset += count * item_type.itemsize
    _check_end(data, offset, element)
    return np.array(corners, dtype=np.int64), np.array(sizes, dtype=np.int64), offset


def _count(value: float, element: Element) -> int:
    count = int(value)
    if count < 0 or count != value:
        msg = f"a list of {element.name!r} has {value} items; the file is damaged, export it again"
        raise DataError(msg)
    return count


def _check_end(data: memoryview, end: int, element: Element) -> None:
    if end > len(data):
        msg = (
            f"the header promises {element.count:,} of {element.name!r}, the file ends before the last; "
            "it is damaged or cut short"
        )
        raise DataError(msg)


def _read_text(
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
    """The rows after the header, element by element."""

    def __init__(self, path: Path, start: int) -> None:
        self._blocks = token_blocks(path, start=start)
        self._rows: Tokens | None = None

    def take(self, element: Element) -> Iterator[Tokens]:
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


def _points(rows: Tokens, element: Element) -> Floats:
    names = [item.name for item in element.properties]
    if element.list_names:
        msg = "the vertices have list properties; export them as plain numbers"
        raise DataError(msg)
    columns = (names.index("x"), names.index("y"), names.index("z"))
    return parse_points(rows, columns=columns)


def _polygons(rows: Tokens, element: Element, index_name: str) -> tuple[Indices, Indices]:
    before = [item.name for item in element.properties].index(index_name)
    if any(item.count_type is not None for item in element.properties[:before]):
        msg = (
            f"the faces have a list before {index_name}; export the mesh with vertex indices first"
        )
        raise DataError(msg)
    return parse_polygons(rows, lead=before)
