"""The triangles and polygons of one COLLADA geometry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pointdistill.data.meshes.formats.xml import Element, float_list, index_list
from pointdistill.data.meshes.polygons import fan_triangles, strip_triangles
from pointdistill.data.meshes.records import Floats, Indices, Part
from pointdistill.errors import DataError

_SURFACES = ("triangles", "polylist", "polygons", "tristrips", "trifans")


def geometry_parts(geometry: Element) -> list[Part]:
    """One part for each group of faces, untransformed. Lines are ignored.

    Raises:
        DataError: if a source is missing, or counts and indices disagree.
    """
    mesh = geometry.find("mesh")
    if mesh is None:
        return []
    sources = {f"#{source.attributes.get('id')}": source for source in mesh.all("source")}
    positions: dict[str, Floats] = {}
    parts = []
    for group in mesh.children:
        if group.name not in _SURFACES:
            continue
        where = _Inputs.of(group, mesh)
        if where.source not in positions:
            positions[where.source] = _positions(sources.get(where.source), where.source)
        corners, sizes = _faces(group, where)
        parts.append(Part(positions[where.source], corners, sizes))
    return parts


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Which of each corner's indices names its position, and the source of positions."""

    offset: int
    stride: int
    source: str

    @classmethod
    def of(cls, group: Element, mesh: Element) -> _Inputs:
        inputs = list(group.all("input"))
        offsets = [int(item.attributes.get("offset", 0)) for item in inputs]
        named = {item.attributes.get("semantic"): index for index, item in enumerate(inputs)}
        vertices = mesh.find("vertices")
        position = vertices.all("input") if vertices is not None else ()
        source = [
            item.attribute("source")
            for item in position
            if item.attributes.get("semantic") == "POSITION"
        ]
        if "VERTEX" not in named or not source or min(offsets) < 0:
            msg = f"<{group.name}> names no vertex positions; the file is damaged, export it again"
            raise DataError(msg)
        return cls(offsets[named["VERTEX"]], max(offsets) + 1, source[0])


def _positions(source: Element | None, name: str) -> Floats:
    """x, y, z of a source; (V, 3)."""
    values = source.find("float_array") if source is not None else None
    technique = source.find("technique_common") if source is not None else None
    accessor = technique.find("accessor") if technique is not None else None
    if values is None or accessor is None:
        msg = f"the positions {name!r} are not in the file; export the model again"
        raise DataError(msg)
    numbers = float_list(values.text)
    count = int(accessor.attribute("count"))
    stride = int(accessor.attributes.get("stride", 1))
    offset = int(accessor.attributes.get("offset", 0))
    if stride < 3 or min(count, offset) < 0 or offset + count * stride > len(numbers):
        msg = (
            f"the positions {name!r} state {count:,} points of {stride} numbers, {len(numbers):,} numbers "
            "are there; the file is damaged or cut short"
        )
        raise DataError(msg)
    # A parameter without a name is skipped: only X, Y and Z are coordinates.
    names = [item.attributes.get("name", "").upper() for item in accessor.all("param")]
    columns = [names.index(axis) if axis in names else place for place, axis in enumerate("XYZ")]
    table = numbers[offset : offset + count * stride].reshape(count, stride)
    return table[:, columns]


def _faces(group: Element, where: _Inputs) -> tuple[Indices, Indices | None]:
    """Corners (C,) and sizes (F,) of one group; no sizes where all are triangles."""
    if group.find("ph") is not None:
        msg = "has polygons with holes (<ph>); triangulate the mesh in a 3-D program"
        raise DataError(msg)
    lists = [_corner_list(item.text, where) for item in group.all("p")]
    if group.name == "tristrips":
        return strip_triangles([corners for corners in lists if len(corners) > 2]), None
    if group.name == "trifans":
        return fan_triangles([corners for corners in lists if len(corners) > 2]), None
    corners = np.concatenate([np.empty(0, np.int64), *lists])
    if group.name == "polygons":
        return corners, np.array([len(corners) for corners in lists], dtype=np.int64)
    if group.name == "polylist":
        counts = group.find("vcount")
        sizes = index_list(counts.text) if counts is not None else np.empty(0, np.int64)
        _check_corners(group, len(corners), int(sizes.sum()))
        return corners, sizes
    _check_corners(group, len(corners), 3 * int(group.attributes.get("count", len(corners) // 3)))
    return corners, None


def _corner_list(text: str, where: _Inputs) -> Indices:
    indices = index_list(text)
    if len(indices) % where.stride:
        msg = f"{len(indices):,} indices, not a multiple of {where.stride}; the file is damaged"
        raise DataError(msg)
    return indices[where.offset :: where.stride]


def _check_corners(group: Element, found: int, expected: int) -> None:
    if found != expected:
        msg = f"<{group.name}> states {expected:,} corners and has {found:,}; the file is damaged or cut short"
        raise DataError(msg)
