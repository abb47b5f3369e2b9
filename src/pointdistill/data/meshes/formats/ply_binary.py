"""The data of a binary PLY file: rows of fixed size in one view, ragged rows one by one."""

from __future__ import annotations

import struct
from array import array
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.meshes.formats.binary import map_file
from pointdistill.data.meshes.formats.ply_header import Element, Header
from pointdistill.data.meshes.records import Floats, Indices, MeshLimits
from pointdistill.errors import DataError


def read(
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
        wanted = index_name if element.name == "face" else None
        if not element.count or not element.properties:
            continue
        if not element.list_names:
            table, offset = _table(data, offset, element, header.byte_order)
            if element.name == "vertex":
                vertices = np.stack([table[axis] for axis in "xyz"], axis=1).astype(np.float64)
        else:
            corners_here, sizes_here, offset = _rows(data, offset, element, header, wanted)
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
    data: memoryview, offset: int, element: Element, header: Header, wanted: str | None
) -> tuple[Indices, Indices, int]:
    """Rows with lists: as a table where every row is like the first, else one after another."""
    row = _row_like_first(data, offset, element, header.byte_order)
    if offset + element.count * row.itemsize <= len(data):
        table = np.frombuffer(data, row, element.count, offset)
        uniform = all(
            (table[name] == table[name][0]).all() for name in row.names or () if "#" in name
        )
        if uniform:
            if wanted is None:
                return np.empty(0, np.int64), np.empty(0, np.int64), offset + table.nbytes
            items = table[wanted].astype(np.int64)
            sizes = np.full(len(items), items.shape[1], np.int64)
            return items.reshape(-1), sizes, offset + table.nbytes
    return _ragged_rows(data, offset, element, header.byte_order, wanted)


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
    data: memoryview, offset: int, element: Element, order: str, wanted: str | None
) -> tuple[Indices, Indices, int]:
    """About a microsecond a row; meshes whose faces all have one size never come here."""
    layout = [
        (
            item.name == wanted,
            None
            if item.count_type is None
            else struct.Struct(order + np.dtype(item.count_type).char),
            np.dtype(item.item_type),
        )
        for item in element.properties
    ]
    corners, sizes = array("q"), array("q")
    for _ in range(element.count):
        for is_wanted, count_type, item_type in layout:
            if count_type is None:
                offset += item_type.itemsize
                continue
            _check_end(data, offset + count_type.size, element)
            count = _count(count_type.unpack_from(data, offset)[0], element)
            offset += count_type.size
            _check_end(data, offset + count * item_type.itemsize, element)
            if is_wanted:
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
