"""Points on a surface, uniform by area; points of a cloud; turning either upright.

Pure functions of arrays and a generator. Sizes: V vertices, F triangles, P points of a cloud, N drawn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.meshes.records import (
    MINIMUM_POINTS,
    AnyFloats,
    Axis,
    Floats,
    Indices,
    PointSet,
    Surface,
)
from pointdistill.errors import ConfigError, DataError

_CHUNK = 1536
"""Triangles measured, and points drawn, at a time: their corners, 110 KB, fit in a processor's cache."""

_SAFE_AREAS = (1e-100, 1e100)
"""If the largest area of a mesh lies between these, no area that matters leaves the range of floats."""

_FEWEST_STEPS = 1000
"""A shape fewer float64 steps across would visibly snap to a lattice."""

_PLENTY = 2**19
"""With as many float32 steps across a shape, rounding moves no point by more than a millionth of its size."""

# New (x, y, z) = signs * old[order]. Each row is a rotation: an even permutation with an even number of minus
# signs.
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
    """The axis with that name.

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
    """Triangle areas in units of ``unit`` squared, so that neither tiny nor huge models underflow or overflow.

    Args:
        vertices: (V, 3).
        faces: (F, 3), each in [0, V).

    Returns:
        areas: (F,); 0 for degenerate triangles.
        unit: 1 for models of usual size; otherwise the longest edge component of the mesh, in the
            vertices' unit: 0 if all are points, infinite if an edge overflows.
    """
    areas = np.empty(len(faces))
    chunks = [slice(start, start + _CHUNK) for start in range(0, len(faces), _CHUNK)]
    with np.errstate(over="ignore", invalid="ignore"):
        for chunk in chunks:
            areas[chunk] = _half_cross(*_edges(vertices, faces[chunk]))
        if _SAFE_AREAS[0] < areas.max(initial=0.0) < _SAFE_AREAS[1]:
            return areas, 1.0
        lengths = np.empty(len(faces))
        for chunk in chunks:
            first, second = _edges(vertices, faces[chunk])
            longest = np.maximum(np.abs(first).max(axis=0), np.abs(second).max(axis=0))
            scale = np.where(longest > 0, longest, 1.0)
            areas[chunk], lengths[chunk] = _half_cross(first / scale, second / scale), longest
    unit = float(lengths.max(initial=0.0))
    if np.isfinite(unit):
        areas *= (lengths / (unit or 1.0)) ** 2
    return areas, unit


def _edges(vertices: Floats, faces: Indices) -> tuple[Floats, Floats]:
    """The edges from each triangle's first corner to the other two; (3, F) each, one row per axis."""
    corners = _corners(vertices, faces)
    return corners[3:6] - corners[:3], corners[6:] - corners[:3]


def _corners(vertices: Floats, faces: Indices) -> Floats:
    """x, y, z of the first, second and third corner; (9, F)."""
    # Taking whole rows and transposing them costs a fraction of gathering axis by axis, or of np.cross later.
    return np.ascontiguousarray(vertices.take(faces.reshape(-1), axis=0).reshape(-1, 9).T)


def _half_cross(first: Floats, second: Floats) -> Floats:
    """Half the length of each cross product; (F,)."""
    (ux, uy, uz), (vx, vy, vz) = first, second
    x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    areas: Floats = np.sqrt(x * x + y * y + z * z)
    areas /= 2
    return areas


def has_area(vertices: Floats, faces: Indices) -> bool:
    """Whether any triangle, of vertices (V, 3) and faces (F, 3), has an area."""
    # In larger and larger blocks, since usually one of the first few has.
    step = 64
    start = 0
    while start < len(faces):
        if relative_areas(vertices, faces[start : start + step])[0].any():
            return True
        start, step = start + step, 4 * step
    return False


def surface_area(surface: Surface) -> float:
    """Area of all triangles together, in the file's unit squared."""
    areas, unit = relative_areas(surface.vertices, surface.faces)
    return float(areas.sum() * unit**2)


def draw_on_surface(surface: Surface, count: int, *, rng: np.random.Generator) -> Floats:
    """Draw points uniformly by area; a triangle without area is never chosen.

    Costs one pass over the triangles and one binary search per point.

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
    targets = rng.random(count)
    targets *= total
    # A product that rounds up to the total would fall past the last triangle with an area.
    np.minimum(targets, np.nextafter(total, 0.0), out=targets)
    along = rng.random((count, 2))
    drawn = np.empty((count, 3))
    # In the order of the triangles, so that areas and corners are read sequentially. A point does not depend on
    # when it is computed, and so not on how a machine sorts equal targets.
    order = np.argsort(targets)
    for start in range(0, count, _CHUNK):
        which = order[start : start + _CHUNK]
        chosen = np.searchsorted(reached, targets.take(which), side="right")
        corners = _corners(surface.vertices, surface.faces.take(chosen, axis=0))
        drawn[which] = _between(corners, along.take(which, axis=0))
    return drawn


def _between(corners: Floats, along: Floats) -> Floats:
    """A point in each triangle, (N, 3), from its corners, (9, N), and two numbers in [0, 1) for each, (N, 2).

    Overwrites ``corners``: at these sizes, allocating new arrays would cost as much as the arithmetic.
    """
    u, v = along.T
    folded = u + v > 1.0
    # A point beyond the diagonal of the parallelogram is reflected into the triangle.
    u, v = np.where(folded, 1.0 - u, u), np.where(folded, 1.0 - v, v)
    a, b, c = corners[:3], corners[3:6], corners[6:]
    b -= a
    b *= u
    c -= a
    c *= v
    b += a
    b += c
    points: Floats = b.T
    return points


def draw_from_points(cloud: PointSet, count: int, *, rng: np.random.Generator) -> Floats:
    """The points of a cloud; a random subset in the file's order if there are more than ``count``.

    Returns:
        (N, 3) float64.

    Raises:
        DataError: if the cloud has fewer than ``count`` points, or fewer than 32.
    """
    available = len(cloud.points)
    needed = max(count, MINIMUM_POINTS)
    if available < needed:
        enough = available >= MINIMUM_POINTS
        advice = f"ask for at most {available:,}" if enough else "use a denser scan"
        msg = f"a point cloud of {available:,} points, {needed:,} are needed; {advice}"
        raise DataError(msg)
    if available == count:
        return cloud.points
    chosen = np.sort(rng.choice(available, size=count, replace=False, shuffle=False))
    return cloud.points[chosen]


def draw(
    shape: Surface | PointSet, count: int, *, rng: np.random.Generator, up: Axis | None
) -> NDArray[np.float32]:
    """Points of a surface or a cloud, turned z-up if ``up`` names the shape's up axis.

    Returns:
        (N, 3) float32; centred where float32 would distort them, see `to_float32`.

    Raises:
        DataError: if the shape cannot give ``count`` points, or they do not fit float32.
        ConfigError: if ``count`` is not positive.
    """
    return to_float32(_draw(shape, count, rng=rng, up=up))


def draw_in_place(
    shape: Surface | PointSet, count: int, *, rng: np.random.Generator, up: Axis | None
) -> AnyFloats:
    """The points of `draw` where the shape has them, never centred.

    Returns:
        (N, 3) float32, or float64 where float32 would distort them: as georeferenced scans are.

    Raises:
        DataError: if the shape cannot give ``count`` points, or they do not fit float32.
        ConfigError: if ``count`` is not positive.
    """
    points = _draw(shape, count, rng=rng, up=up)
    _, is_far = _centre(points)
    if is_far and (points != points.astype(np.float32)).any():
        return points
    return points.astype(np.float32)


def to_float32(points: AnyFloats) -> NDArray[np.float32]:
    """(N, 3) points as float32; those so far from the origin that float32 would distort them are centred first.

    Raises:
        DataError: if they do not fit float32 even then.
    """
    centre, is_far = _centre(points)
    return (points - centre if is_far else points).astype(np.float32)


def _draw(
    shape: Surface | PointSet, count: int, *, rng: np.random.Generator, up: Axis | None
) -> Floats:
    if count < 1:
        msg = f"the number of points must be at least 1, got {count}"
        raise ConfigError(msg)
    if isinstance(shape, Surface):
        points = draw_on_surface(shape, count, rng=rng)
    else:
        points = draw_from_points(shape, count, rng=rng)
    return points if up is None else to_z_up(points, up)


def _centre(points: AnyFloats) -> tuple[Floats, bool]:
    """The middle of the points' box, (3,), and whether the points are too far from the origin for float32.

    Raises:
        DataError: if they are too large for float32, or too far away for the number format of the file.
    """
    # Axis by axis: numpy reduces slowly along the first of two axes.
    low = np.array([axis.min() for axis in points.T], dtype=np.float64)
    high = np.array([axis.max() for axis in points.T], dtype=np.float64)
    farthest = float(max(-low.min(), high.max()))
    extent = float((high - low).max())
    largest = float(np.finfo(np.float32).max)
    if extent > largest:
        msg = f"coordinates of up to {farthest:.3g} do not fit float32; scale the model down"
        raise DataError(msg)
    step = float(np.spacing(farthest))
    if 0 < extent < _FEWEST_STEPS * step:
        msg = (
            f"the shape is {extent:.3g} across but lies {farthest:.3g} from the origin, where float64 has "
            f"steps of {step:.3g}; move it to the origin"
        )
        raise DataError(msg)
    far = farthest > largest or 0 < extent < _PLENTY * float(np.spacing(np.float32(farthest)))
    return low + (high - low) / 2, far
