"""Points on a surface, uniform by area; points of a cloud; turning either upright.

Pure functions of arrays and a generator. Sizes: V vertices, F triangles, P points of a cloud, N drawn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.meshes.records import (
    MINIMUM_POINTS,
    Axis,
    Floats,
    Indices,
    PointSet,
    Surface,
)
from pointdistill.errors import ConfigError, DataError

_CHUNK = 1 << 14
"""Triangles measured at once: their corners stay in a processor's cache."""

_FEWEST_STEPS = 1000
"""Float32 steps across a shape below which its points would visibly snap to a lattice."""

# new (x, y, z) = sign * old (order); every row is a rotation: an even order with an even number of minus
# signs. "y" is the order zxy.
_TURNS: dict[Axis, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "z": ((0, 1, 2), (1, 1, 1)),
    "y": ((2, 0, 1), (1, 1, 1)),
    "x": ((1, 2, 0), (1, 1, 1)),
    "-z": ((0, 1, 2), (1, -1, -1)),
    "-y": ((2, 0, 1), (1, -1, -1)),
    "-x": ((1, 2, 0), (1, -1, -1)),
}

AXES = tuple(_TURNS)
"""The values that ``up`` accepts."""


def check_axis(up: str) -> Axis:
    """The axis of that name.

    Raises:
        ConfigError: if there is none.
    """
    for axis in AXES:
        if up == axis:
            return axis
    msg = f"up must be one of {', '.join(AXES)}, got {up!r}"
    raise ConfigError(msg)


def to_z_up(points: Floats, up: Axis) -> Floats:
    """Rotate (N, 3) points so that the axis ``up`` becomes z; a rotation, never a mirror image.

    For "y": new (x, y, z) = old (z, x, y).
    """
    order, signs = _TURNS[up]
    return points[:, order] * np.array(signs, dtype=points.dtype)


def relative_areas(vertices: Floats, faces: Indices) -> tuple[Floats, float]:
    """Triangle areas in units of ``unit`` squared, so that neither tiny nor huge models lose them.

    Args:
        vertices: (V, 3).
        faces: (F, 3), each in [0, V).

    Returns:
        areas: (F,), in [0, 1]; 0 for degenerate triangles.
        unit: the longest edge component of the mesh, in the vertices' unit; 0 where all are points,
            infinite where an edge overflows.
    """
    areas, lengths = np.empty(len(faces)), np.empty(len(faces))
    for start in range(0, len(faces), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        areas[chunk], lengths[chunk] = _unit_areas(vertices, faces[chunk])
    unit = float(lengths.max(initial=0.0))
    if np.isfinite(unit):
        areas *= (lengths / (unit or 1.0)) ** 2
    return areas, unit


def _unit_areas(vertices: Floats, faces: Indices) -> tuple[Floats, Floats]:
    """Areas (F,) in units of each triangle's own longest edge component squared, and those lengths (F,)."""
    a, b, c = vertices[faces.T]
    with np.errstate(over="ignore", invalid="ignore"):
        # One row an axis: a third of the time of np.cross.
        first, second = np.ascontiguousarray((b - a).T), np.ascontiguousarray((c - a).T)
        lengths = np.maximum(np.abs(first).max(axis=0), np.abs(second).max(axis=0))
        first /= (scale := np.where(lengths > 0, lengths, 1.0))
        second /= scale
        (ux, uy, uz), (vx, vy, vz) = first, second
        areas = (
            np.sqrt((uy * vz - uz * vy) ** 2 + (uz * vx - ux * vz) ** 2 + (ux * vy - uy * vx) ** 2)
            / 2
        )
    return areas, lengths


def has_area(vertices: Floats, faces: Indices) -> bool:
    """Whether any triangle has an area; stops at the first stretch of triangles that does."""
    return any(
        bool((_unit_areas(vertices, faces[start : start + _CHUNK])[0] > 0).any())
        for start in range(0, len(faces), _CHUNK)
    )


def surface_area(surface: Surface) -> float:
    """Area of all triangles together, in the file's unit squared."""
    areas, unit = relative_areas(surface.vertices, surface.faces)
    return float(areas.sum() * unit**2)


def draw_on_surface(surface: Surface, count: int, *, rng: np.random.Generator) -> Floats:
    """Draw points uniformly by area; a triangle without area is never chosen.

    Costs one pass over the triangles and a binary search a point.

    Args:
        surface: at least one triangle of positive area, as the readers guarantee.
        count: number of points, at least 1.
        rng: source of randomness.

    Returns:
        (N, 3) float64, in the unit and frame of the surface.

    Raises:
        DataError: if an edge of the surface overflows.
    """
    areas, unit = relative_areas(surface.vertices, surface.faces)
    if not np.isfinite(unit):
        msg = "the coordinates are too large for floating point; scale the model down"
        raise DataError(msg)
    reached = np.cumsum(areas)
    total = reached[-1]
    # A product that rounds up to the total would fall past the last triangle that has an area.
    targets = np.minimum(rng.random(count) * total, np.nextafter(total, 0.0))
    chosen = surface.faces[np.searchsorted(reached, targets, side="right")]
    a, b, c = (surface.vertices[chosen[:, corner]] for corner in range(3))
    along = rng.random((count, 2, 1))
    folded = along.sum(axis=1, keepdims=True) > 1.0
    along = np.where(folded, 1.0 - along, along)
    drawn: Floats = a + along[:, 0] * (b - a) + along[:, 1] * (c - a)
    return drawn


def draw_from_points(cloud: PointSet, count: int, *, rng: np.random.Generator) -> Floats:
    """The points of a cloud, a random subset in the file's order where there are more than ``count``.

    Returns:
        (N, 3) float64.

    Raises:
        DataError: if the cloud has fewer than ``count`` points, or fewer than 32.
    """
    available = len(cloud.points)
    needed = max(count, MINIMUM_POINTS)
    if available < needed:
        enough = available >= MINIMUM_POINTS
        ask = f"ask for at most {available:,}" if enough else "use a denser scan"
        msg = f"a point cloud of {available:,} points, {needed:,} are needed; {ask}"
        raise DataError(msg)
    if available == count:
        return cloud.points
    chosen = np.sort(rng.choice(available, size=count, replace=False, shuffle=False))
    return cloud.points[chosen]


def draw(
    shape: Surface | PointSet, count: int, *, rng: np.random.Generator, up: Axis | None
) -> NDArray[np.float32]:
    """Points of a surface or a cloud, turned z-up where ``up`` names the shape's up axis.

    Returns:
        (N, 3) float32.

    Raises:
        DataError: if the shape cannot give ``count`` points, or they do not fit float32.
        ConfigError: if ``count`` is not positive.
    """
    if count < 1:
        msg = f"the number of points must be at least 1, got {count}"
        raise ConfigError(msg)
    if isinstance(shape, Surface):
        points = draw_on_surface(shape, count, rng=rng)
    else:
        points = draw_from_points(shape, count, rng=rng)
    if up is not None:
        points = to_z_up(points, up)
    _check_float32(points)
    return points.astype(np.float32)


def _check_float32(points: Floats) -> None:
    """Refuse points so large, or so far from the origin, that float32 would not hold their shape."""
    farthest = float(np.abs(points).max())
    if farthest > float(np.finfo(np.float32).max):
        msg = f"coordinates of up to {farthest:.3g} do not fit float32; scale the model down"
        raise DataError(msg)
    extent = float(np.ptp(points, axis=0).max())
    step = float(np.spacing(np.float32(farthest)))
    if 0 < extent < _FEWEST_STEPS * step:
        msg = (
            f"the shape is {extent:.3g} across but lies {farthest:.3g} from the origin, where float32 has "
            f"steps of {step:.3g}; move it to the origin"
        )
        raise DataError(msg)
