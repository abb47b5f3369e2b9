"""Stanford PLY, text and binary of either byte order, with or without faces.

In binary files, rows of fixed size are read in blocks and ragged rows one by one; text has one line per row.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.content import (
    Span,
    check_more_rows,
    check_rest,
    check_text_size,
    excerpt,
    open_content,
    parse_indices,
    parse_points,
    parse_polygons,
    token_blocks,
)
from pointdistill.data.meshes.formats.fast_numbers import Tokens
from pointdistill.data.meshes.formats.ply_header import Element, Header, read_header
from pointdistill.data.meshes.formats.tables import number
from pointdistill.data.meshes.records import Floats, Indices, MeshLimits, Part, RawMesh
from pointdistill.errors import DataError

_AXES = ("x", "y", "z")
_INDEX_NAMES = ("vertex_indices", "vertex_index")
_FACE_ELEMENTS = (
    "face",
    "faces",
    "polygon",
    "polygons",
    "triangle",
    "triangles",
    "tri",
    "tris",
    "quad",
    "quads",
)
_STRIPS = ("tristrips", "tristrip")
_NO_SURFACE = ("vertex", "edge", "edges", "line", "lines", "polyline", "polylines", "range_grid")
_REST_BYTES = 1 << 20
_UNCOUNTED = "rows of vertices after the last that the header counts"
_RESTART = -1
"""The index in a strip after which another strip begins."""

_Polygons: TypeAlias = dict[str, tuple[Indices, Indices]]


def read(path: Path, limits: MeshLimits) -> RawMesh:
    """Read a PLY file as one part, or as points where it has no faces.

    Raises:
        DataError: if there is no valid header, or it promises more than the file holds, lacks coordinates, or
            stores its surface as something other than faces or strips.
    """
    header = read_header(path)
    vertex = header.element("vertex")
    if vertex is None:
        msg = f"no vertex element, found {header.names}; it is not a mesh or a point cloud"
        raise DataError(msg)
    vertex.lower_axes()
    if missing := [axis for axis in _AXES if axis not in vertex.scalar_names]:
        msg = f"the vertices have no {', '.join(missing)}; export them with x, y and z"
        raise DataError(msg)
    check_size("vertices", vertex.count, limits.vertices)
    index_names, unknown = _index_names(header)
    check_size(
        "faces", sum(e.count for e in header.elements if e.name in index_names), limits.faces
    )
    read_data = _read_text if header.form == "ascii" else _read_binary
    vertices, faces, uncounted = read_data(path, header, index_names, limits)
    if not index_names:
        return RawMesh(points=[vertices], left_out={_UNCOUNTED: uncounted} if uncounted else {})
    return RawMesh(
        [
            Part(vertices, *(_cut_strips(*polygons) if name in _STRIPS else polygons))
            for name, polygons in faces.items()
        ],
        left_out={"elements of faces that are not read": unknown} if unknown else {},
    )


def _index_names(header: Header) -> tuple[dict[str, str], int]:
    """For each element that holds faces or strips, the list with their indices; and how many are not read.

    Raises:
        DataError: if the faces have no such list, or only an element has one that is not known to hold faces.
    """
    found, unknown = dict[str, str](), list[str]()
    for element in header.elements:
        if not element.count or element.name in _NO_SURFACE:
            continue
        name = next((name for name in _INDEX_NAMES if name in element.list_names), None)
        if element.name in (*_FACE_ELEMENTS, *_STRIPS) and name is not None:
            found[element.name] = name
        elif element.name == "face":
            msg = (
                f"the faces have no vertex_indices list, found {element.property_names}; "
                "export the mesh again"
            )
            raise DataError(msg)
        elif name is not None or element.name in (*_FACE_ELEMENTS, *_STRIPS):
            unknown.append(element.name)
    if unknown and not found:
        msg = (
            f"the surface may be in {', '.join(unknown)}, which is not read; export it with an element face "
            "that has a list vertex_indices"
        )
        raise DataError(msg)
    return found, len(unknown)


def _cut_strips(corners: Indices, sizes: Indices) -> tuple[Indices, Indices]:
    """Strips as triangles: every three corners in a row, every second reversed; (3 * T,) corners, (T,) sizes."""
    places = np.arange(len(corners))
    begins = np.zeros(len(corners), bool)
    begins[(np.cumsum(sizes) - sizes)[sizes > 0]] = True
    begins[1:] |= corners[:-1] == _RESTART
    place = places - np.maximum.accumulate(np.where(begins, places, 0))
    third = np.flatnonzero((place >= 2) & (corners != _RESTART))
    odd = place[third] % 2
    triangles = np.stack(
        [corners[third - 2 + odd], corners[third - 1 - odd], corners[third]], axis=1
    )
    return triangles.reshape(-1), np.full(len(third), 3, np.int64)


def _read_binary(
    path: Path, header: Header, index_names: dict[str, str], limits: MeshLimits
) -> tuple[Floats, _Polygons, int]:
    """Read the data of a binary PLY file.

    Returns:
        vertices: (V, 3).
        faces: for each element of faces their corners (C,) and sizes (F,).
        uncounted: 0, as `_read_text` has it.

    Raises:
        DataError: if the data end before the header's counts are reached.
    """
    content = open_content(path, limits)
    offset = header.data_start
    vertices = np.empty((0, 3))
    faces: _Polygons = {}
    for element in header.elements:
        if not element.count or not element.properties:
            continue
        list_name = index_names.get(element.name)
        is_vertex = element.name == "vertex"
        row = _row_like_first(content, offset, element, header.byte_order)
        end = offset + element.count * row.itemsize
        if not element.list_names:
            _check_end(content, end, element)
        names = _AXES if is_vertex else () if list_name is None else (list_name,)
        if list_name is not None and end <= len(content):
            check_size("corners", element.count * math.prod(row[list_name].shape), 3 * limits.faces)
        table = _uniform_rows(content, offset, element, row, names) if end <= len(content) else None
        if table is None:
            polygons, points, offset = _ragged_rows(
                content, offset, element, header.byte_order, list_name, 3 * limits.faces
            )
            vertices = points if is_vertex else vertices
        else:
            offset = end
            if is_vertex:
                vertices = table
            elif list_name is not None:
                polygons = table.reshape(-1), np.full(len(table), table.shape[1], np.int64)
        if list_name is not None:
            faces[element.name] = polygons
    rest = content.read(offset, offset + _REST_BYTES)
    check_rest(rest, header.elements[-1].usual_bytes, _promised(header))
    return vertices, faces, 0


def _promised(header: Header) -> str:
    return ", ".join(f"{element.count:,} of {element.name!r}" for element in header.elements)


def _uniform_rows(
    content: Span, offset: int, element: Element, row: np.dtype[np.void], names: tuple[str, ...]
) -> NDArray[Any] | None:
    """Some columns of an element if every row has the layout of the first; else None.

    Returns:
        (rows, 3) float64 of the vertices' axes, or (rows, items) int64 of a list of indices.
    """
    counts = [name for name in row.names or () if "#" in name]
    width = sum(math.prod(row[name].shape) for name in names)
    dtype = np.float64 if names == _AXES else np.int64
    values: NDArray[Any] = np.empty((element.count, width), dtype)
    if not (names or counts):
        return values
    first, at = None, 0
    for rows in content.blocks(row, element.count, offset):
        first = [rows[name][0] for name in counts] if first is None else first
        if any((rows[name] != count).any() for name, count in zip(counts, first, strict=True)):
            return None
        block = values[at : at + len(rows)]
        if names == _AXES:
            for column, axis in enumerate(_AXES):
                block[:, column] = rows[axis]
        elif names:
            block[:] = rows[names[0]]
        at += len(rows)
    return values


def _row_like_first(data: Span, offset: int, element: Element, order: str) -> np.dtype[np.void]:
    """The layout of the first row; the count of the list ``name`` is the field ``#name``."""
    fields: list[tuple[str, str] | tuple[str, str, tuple[int]]] = []
    for item in element.properties:
        if item.count_type is None:
            fields.append((item.name, order + item.item_type))
            offset += np.dtype(item.item_type).itemsize
        else:
            count_type = np.dtype(order + item.count_type)
            _check_end(data, offset + count_type.itemsize, element)
            stored = np.frombuffer(data.read(offset, offset + count_type.itemsize), count_type)
            count = _count(stored[0].item(), element)
            offset += count_type.itemsize + count * np.dtype(item.item_type).itemsize
            _check_end(data, offset, element)
            fields.append((f"#{item.name}", count_type.str))
            fields.append((item.name, order + item.item_type, (count,)))
    return np.dtype(fields)


def _ragged_rows(
    content: Span, start: int, element: Element, order: str, list_name: str | None, most: int
) -> tuple[tuple[Indices, Indices], Floats, int]:
    """Rows with lists, one by one, at a microsecond each; only lists of several sizes come here.

    Returns:
        corners and sizes: of the list ``list_name``.
        points: x, y and z of each row, if the element is the vertices; else (0, 3).
        end: the byte after the rows.
    """
    axes = _AXES if element.name == "vertex" else ()
    layout = [
        (
            item.name == list_name or (item.count_type is None and item.name in axes),
            None
            if item.count_type is None
            else struct.Struct(order + np.dtype(item.count_type).char),
            np.dtype(item.item_type),
        )
        for item in element.properties
    ]
    corners, sizes, values = array("q"), array("q"), array("d")
    data, offset = content.read(start), 0
    for _ in range(element.count):
        for is_selected, count_type, item_type in layout:
            if count_type is None:
                if is_selected:
                    _check_end(data, offset + item_type.itemsize, element)
                    values.extend(struct.unpack_from(f"{order}{item_type.char}", data, offset))
                offset += item_type.itemsize
                continue
            _check_end(data, offset + count_type.size, element)
            count = _count(count_type.unpack_from(data, offset)[0], element)
            offset += count_type.size
            _check_end(data, offset + count * item_type.itemsize, element)
            if is_selected:
                if len(corners) + count > most:
                    check_size("corners", len(corners) + count, most)
                items = struct.unpack_from(f"{order}{count}{item_type.char}", data, offset)
                corners.extend(map(int, items))
                sizes.append(count)
            offset += count * item_type.itemsize
    _check_end(data, offset, element)
    points = np.array(values, dtype=np.float64).reshape(-1, 3)
    named = [item.name for item in element.properties if item.name in axes]
    points = points[:, [named.index(axis) for axis in axes]] if axes else points
    polygons = np.array(corners, dtype=np.int64), np.array(sizes, dtype=np.int64)
    return polygons, points, start + offset


def _count(value: float, element: Element) -> int:
    count = int(value)
    if count < 0 or count != value:
        msg = f"a list of {element.name!r} has {value} items; the file is damaged, export it again"
        raise DataError(msg)
    return count


def _check_end(data: Span | memoryview, end: int, element: Element) -> None:
    if end > len(data):
        msg = (
            f"the header promises {element.count:,} of {element.name!r}, the file ends before the last; "
            "it is damaged or cut short"
        )
        raise DataError(msg)


def _read_text(
    path: Path, header: Header, index_names: dict[str, str], limits: MeshLimits
) -> tuple[Floats, _Polygons, int]:
    """Read the data of a text PLY file.

    Returns:
        vertices: (V, 3).
        faces: for each element of faces their corners (C,) and sizes (F,).
        uncounted: rows of a cloud after the last that the header counts, at most 1.

    Raises:
        DataError: if there are fewer rows than the header promises, or one cannot be read.
    """
    check_text_size(path, limits.text_bytes)
    lines = _Lines(path, header.data_start)
    vertices: list[Floats] = []
    faces: _Polygons = {}
    for element in header.elements:
        list_name = index_names.get(element.name)
        blocks = [(np.empty(0, np.int64), np.empty(0, np.int64))]
        for rows in lines.take(element):
            if element.name == "vertex":
                vertices.append(_points(rows, element))
            elif list_name is not None:
                blocks.append(parse_polygons(_from_property(rows, element, list_name)))
        if list_name is not None:
            corners, sizes = zip(*blocks, strict=True)
            faces[element.name] = np.concatenate(corners), np.concatenate(sizes)
    rest = lines.rest()
    # Some programs count one point too few. To leave it out, and say so, costs a cloud less than to refuse it.
    if _is_one_point(rest, header) and lines.rest() is None:
        return np.concatenate(vertices), faces, 1
    check_more_rows(rest, _promised(header), again=b"PLY")
    return np.concatenate([np.empty((0, 3)), *vertices]), faces, 0


def _is_one_point(rest: Tokens | None, header: Header) -> bool:
    """Whether a row as those of the vertices follows a cloud."""
    filled = [element for element in header.elements if element.count]
    return (
        rest is not None
        and len(rest) == 1
        and [element.name for element in filled] == ["vertex"]
        and not filled[0].list_names
        and rest.counts[0] == len(filled[0].properties)
        and all(number(word, comma=False) is not None for word in rest.line(0).split())
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
                    f"{element.count - left:,} lines of them; it is cut short, or not one to a line"
                )
                raise DataError(msg)
            rows, self._rows = self._rows.lines(slice(left)), self._rows.lines(slice(left, None))
            left -= len(rows)
            if not element.list_names and (rows.counts != len(element.properties)).any():
                row = rows.line(int(np.argmax(rows.counts != len(element.properties))))
                msg = (
                    f"a row of {element.name!r} is {excerpt(row)}, the header names {len(element.properties)} "
                    f"properties: {element.property_names}; export it again"
                )
                raise DataError(msg)
            yield rows

    def rest(self) -> Tokens | None:
        """Further rows, a block at a time, of which there may be several; None if there are none."""
        rows, self._rows = self._rows, None
        return rows or next(self._blocks, None)


def _points(rows: Tokens, element: Element) -> Floats:
    names = [item.name for item in element.properties]
    columns = names.index("x"), names.index("y"), names.index("z")
    if all(item.count_type is None for item in element.properties[: max(columns)]):
        return parse_points(rows, columns=columns)
    # Lists before the coordinates: these stand elsewhere in each row.
    columns = (0, 0, 0)
    parts = [parse_points(_from_property(rows, element, axis), columns=columns) for axis in _AXES]
    return np.stack([part[:, 0] for part in parts], axis=1)


def _from_property(rows: Tokens, element: Element, name: str) -> Tokens:
    """The rest of each row from one property on; of a row that ends before, no tokens."""
    at = np.zeros(len(rows), np.int64)
    for item in element.properties:
        if item.name == name:
            break
        if item.count_type is not None:
            if (at >= rows.counts).any():
                break
            items = parse_indices(rows, rows.first + at)
            if (items < 0).any():
                msg = f"a list of {element.name!r} has fewer than 0 items; the file is damaged, export it again"
                raise DataError(msg)
            at += np.minimum(items, rows.counts)
        at += 1
    at = np.minimum(at, rows.counts)
    return Tokens(rows.text, rows.starts, rows.ends, rows.first + at, rows.counts - at)
