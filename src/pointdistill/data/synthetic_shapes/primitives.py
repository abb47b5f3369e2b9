"""The solids that objects are assembled from.

Unless a docstring says otherwise a solid stands on its base point ``at``: the centre of its footprint, at its
lowest z. All are closed surfaces; where a cross-section shrinks to a point some triangles have no area, and
the assembly drops them. Lengths are metres.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from pointdistill.data.synthetic_shapes.shape import Faces, Floats, Mesh, Vector, cross, lengths

ORIGIN: Vector = (0.0, 0.0, 0.0)
_BOX_CUTS = 4  # cells along a box's longest side, so that a bent board is round


def ring(around: int, power: float = 2.0) -> Floats:
    """(around, 2) points of the superellipse |x|^power + |y|^power = 1, counter-clockwise.

    Power 2 is a circle, 1 a diamond, and from about 6 a square with soft corners.
    """
    angle = (np.arange(around) + 0.5) * (2.0 * np.pi / around)
    cos, sin = np.cos(angle), np.sin(angle)
    reach = (np.abs(cos) ** power + np.abs(sin) ** power) ** (-1.0 / power)
    return np.column_stack((reach * cos, reach * sin))


def arc(radius: float, start: float, stop: float, count: int = 12) -> Floats:
    """(count, 2) points of a circle about the origin, from ``start`` to ``stop`` degrees."""
    angle = np.deg2rad(np.linspace(start, stop, count))
    return radius * np.column_stack((np.cos(angle), np.sin(angle)))


@lru_cache(maxsize=512)
def _skin_faces(rings: int, around: int, closed: bool) -> Faces:
    """Two triangles per cell of a (rings, around) grid that wraps around, then the caps unless ``closed``."""
    along = np.arange(rings if closed else rings - 1)[:, None]
    across = np.arange(around)[None, :]
    here, above = along * around, (along + 1) % rings * around
    right = (across + 1) % around
    a, b, c, d = here + across, here + right, above + right, above + across
    parts = [np.stack((a, b, c), -1).reshape(-1, 3), np.stack((a, c, d), -1).reshape(-1, 3)]
    if not closed:
        low, high = np.full(around, rings * around), np.full(around, rings * around + 1)
        last = (rings - 1) * around
        parts += [
            np.column_stack((low, right[0], across[0])),
            np.column_stack((high, last + across[0], last + right[0])),
        ]
    faces = np.concatenate(parts).astype(np.int32)
    faces.setflags(write=False)
    return faces


def skin(sections: ArrayLike, *, closed: bool = False) -> Mesh:
    """A surface stretched over cross-sections.

    Sizes: S sections, M points each.

    Args:
        sections: (S, M, 3), each counter-clockwise seen against the direction of travel.
        closed: join the last section to the first (a torus); otherwise both ends get a flat cap.
    """
    grid = np.asarray(sections, dtype=np.float64)
    rings, around, _ = grid.shape
    vertices = grid.reshape(-1, 3)
    if not closed:
        vertices = np.concatenate((vertices, grid[:1].mean(axis=1), grid[-1:].mean(axis=1)))
    return Mesh(vertices, _skin_faces(rings, around, closed))


def lathe(
    profile: ArrayLike,
    at: Vector = ORIGIN,
    *,
    around: int = 24,
    power: float = 2.0,
    stretch: tuple[float, float] = (1.0, 1.0),
    closed: bool = False,
) -> Mesh:
    """A profile turned about the vertical line through ``at``.

    Args:
        profile: (S, 2) rows of (radius, height above ``at``), the solid to the left of the way along it: up
            the outside, then down the inside of a vessel. Its two ends are closed by discs.
        closed: the profile's end leads back to its start, which leaves a hole along the axis.
        at: the foot of the axis.
        around: points around the axis.
        power: cross-section, see `ring`.
        stretch: factors of the cross-section along x and y.
    """
    rows = np.asarray(profile, dtype=np.float64)
    section = ring(around, power) * np.array(stretch)
    flat = rows[:, :1, None] * section
    height = np.broadcast_to(rows[:, 1, None, None], (len(rows), around, 1))
    return skin(np.concatenate((flat, height), axis=-1) + np.array(at), closed=closed)


def cylinder(
    radius: float,
    height: float,
    at: Vector = ORIGIN,
    *,
    top: float | None = None,
    around: int = 20,
    power: float = 2.0,
    stretch: tuple[float, float] = (1.0, 1.0),
) -> Mesh:
    """An upright cylinder, or a cone or frustum where ``top`` gives another upper radius."""
    radii = np.linspace(radius, radius if top is None else top, 4)
    profile = np.column_stack((radii, np.linspace(0.0, height, 4)))
    return lathe(profile, at, around=around, power=power, stretch=stretch)


def vessel(
    outline: ArrayLike,
    wall: float,
    at: Vector = ORIGIN,
    *,
    around: int = 24,
    power: float = 2.0,
    stretch: tuple[float, float] = (1.0, 1.0),
) -> Mesh:
    """A hollow body, open at the top, with ``outline`` as its outside and a wall of thickness ``wall``.

    Args:
        outline: (S, 2) rows of (radius, height), from the foot up to the rim.
        wall: thickness of wall and floor, less than every radius.
        at, around, power, stretch: as in `lathe`.
    """
    outside = np.asarray(outline, dtype=np.float64)
    inside = outside[::-1] - np.array((wall, 0.0))
    inside[:, 0] = np.maximum(inside[:, 0], 0.1 * wall)
    inside[:, 1] = np.maximum(inside[:, 1], outside[0, 1] + wall)
    return lathe(np.concatenate((outside, inside)), at, around=around, power=power, stretch=stretch)


@lru_cache(maxsize=512)
def _cube_grid(cuts: tuple[int, int, int]) -> tuple[Floats, Faces]:
    """Vertices as integer grid positions (0 .. cuts) on a cube's surface, shared along its edges."""
    quads = []
    for axis in range(3):
        u_axis, v_axis = (axis + 1) % 3, (axis + 2) % 3
        u, v = np.meshgrid(np.arange(cuts[u_axis]), np.arange(cuts[v_axis]), indexing="ij")
        for side in (0, cuts[axis]):
            order = ((0, 0), (1, 0), (1, 1), (0, 1)) if side else ((0, 0), (0, 1), (1, 1), (1, 0))
            corners = np.empty((u.size, 4, 3), dtype=np.int64)
            corners[..., axis] = side
            for corner, (du, dv) in enumerate(order):
                corners[:, corner, u_axis] = u.ravel() + du
                corners[:, corner, v_axis] = v.ravel() + dv
            quads.append(corners)
    corners = np.concatenate(quads)
    grid, index = np.unique(corners.reshape(-1, 3), axis=0, return_inverse=True)
    quad = index.reshape(-1, 4)
    faces = np.concatenate((quad[:, [0, 1, 2]], quad[:, [0, 2, 3]])).astype(np.int32)
    return grid.astype(np.float64), faces


def box(size: Vector, at: Vector = ORIGIN, *, edge: float = 0.0) -> Mesh:
    """A block of ``size`` (x, y, z), its edges and corners rounded to the radius ``edge``."""
    half = np.array(size) / 2.0
    edge = min(edge, 0.95 * float(half.min()))
    longest = max(size)
    cuts = _BOX_CUTS if edge == 0.0 else _BOX_CUTS // 2
    cells = [max(1, round(cuts * side / longest)) for side in size]
    steps = []
    for side, count in zip(half, cells, strict=True):
        inner = np.linspace(edge - side, side - edge, count + 1)
        if edge > 0.0:
            inner = np.concatenate(([-side], inner, [side]))
        steps.append(inner)
    grid, faces = _cube_grid((len(steps[0]) - 1, len(steps[1]) - 1, len(steps[2]) - 1))
    vertices = np.column_stack([steps[i][grid[:, i].astype(np.intp)] for i in range(3)])
    if edge > 0.0:
        core = np.clip(vertices, edge - half, half - edge)
        offset = vertices - core
        vertices = core + offset * (edge / lengths(offset)[:, None])
    return Mesh(vertices + np.array(at) + np.array((0.0, 0.0, half[2])), faces)


def rod(
    start: Vector,
    end: Vector,
    radius: float,
    *,
    end_radius: float | None = None,
    around: int = 10,
    power: float = 2.0,
) -> Mesh:
    """A straight bar between two points, tapering to ``end_radius`` if given."""
    path = np.linspace(start, end, 4)
    radii = np.linspace(radius, radius if end_radius is None else end_radius, 4)
    return tube(path, radii, around=around, power=power)


def tube(
    path: ArrayLike,
    radius: float | ArrayLike,
    *,
    around: int = 8,
    power: float = 2.0,
    closed: bool = False,
    flatten: float = 1.0,
) -> Mesh:
    """A bar swept along a polyline.

    Args:
        path: (S, 3) points, no two neighbours equal.
        radius: one number, or (S,) numbers.
        around, power: cross-section, see `ring`.
        closed: the last point leads back to the first.
        flatten: factor of the cross-section along the normal of a planar path (a strap rather than a cord).
    """
    points = np.asarray(path, dtype=np.float64)
    around_path = np.concatenate((points[-1:], points, points[:1])) if closed else points
    tangent = np.gradient(around_path, axis=0)
    tangent = tangent[1:-1] if closed else tangent
    tangent /= lengths(tangent)[:, None]
    # The axis that the path turns towards least keeps the frame from flipping on the way.
    reference = np.eye(3)[np.abs(tangent).max(axis=0).argmin()]
    side = cross(reference, tangent)
    side /= lengths(side)[:, None]
    normal = cross(tangent, side) * flatten
    section = ring(around, power)
    reach = np.broadcast_to(np.asarray(radius, dtype=np.float64), (len(points),))[:, None, None]
    offset = section[None, :, :1] * side[:, None] + section[None, :, 1:] * normal[:, None]
    return skin(points[:, None] + reach * offset, closed=closed)


def torus(radius: float, thickness: float, at: Vector = ORIGIN, *, around: int = 24) -> Mesh:
    """A horizontal ring about ``at``: ``radius`` up to the middle of its bar, ``thickness`` the bar's radius."""
    circle = np.column_stack((ring(around) * radius, np.zeros(around)))
    return tube(circle + np.array(at), thickness, closed=True)


def ellipsoid(
    size: Vector, at: Vector = ORIGIN, *, power: float = 2.0, around: int = 20, rows: int = 10
) -> Mesh:
    """An ellipsoid of full ``size`` (x, y, z); a higher ``power`` makes it boxier."""
    angle = np.linspace(-np.pi / 2.0, np.pi / 2.0, rows + 1)
    cos, sin = np.cos(angle), np.sin(angle)
    profile = np.column_stack(
        (np.abs(cos) ** (2.0 / power), np.sign(sin) * np.abs(sin) ** (2.0 / power))
    )
    solid = lathe(profile, around=around, power=power)
    half = np.array(size) / 2.0
    return Mesh(solid.vertices * half + np.array(at) + np.array((0.0, 0.0, half[2])), solid.faces)


def prism(outline: ArrayLike, height: float, at: Vector = ORIGIN) -> Mesh:
    """A flat outline raised by ``height``.

    Args:
        outline: (M, 2) points in x and y, counter-clockwise, every one in sight of their mean.
        height: positive.
        at: where the outline's origin goes.
    """
    flat = np.asarray(outline, dtype=np.float64)
    low = np.column_stack((flat, np.zeros(len(flat)))) + np.array(at)
    return skin(np.stack((low, low + np.array((0.0, 0.0, height)))))


@lru_cache(maxsize=128)
def _sheet_faces(rows: int, columns: int) -> Faces:
    """Faces of two (rows, columns) grids, front then back, and of the rim that joins them."""
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b = index[:-1, :-1].ravel(), index[:-1, 1:].ravel()
    c, d = index[1:, 1:].ravel(), index[1:, :-1].ravel()
    front = np.concatenate((np.column_stack((a, b, c)), np.column_stack((a, c, d))))
    back = front[:, ::-1] + rows * columns
    rim = np.concatenate((index[0, :-1], index[:-1, -1], index[-1, :0:-1], index[:0:-1, 0]))
    after = np.roll(rim, -1)
    far, far_after = rim + rows * columns, after + rows * columns
    edge = np.concatenate(
        (np.column_stack((rim, far, far_after)), np.column_stack((rim, far_after, after)))
    )
    return np.concatenate((front, back, edge)).astype(np.int32)


def sheet(grid: ArrayLike, thickness: float) -> Mesh:
    """A curved plate.

    Args:
        grid: (R, C, 3) points of its front surface; the front is where columns x rows points.
        thickness: the back lies this far behind, along the normals.
    """
    front = np.asarray(grid, dtype=np.float64)
    normal = cross(np.gradient(front, axis=1), np.gradient(front, axis=0))
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
    vertices = np.concatenate((front, front - thickness * normal)).reshape(-1, 3)
    return Mesh(vertices, _sheet_faces(front.shape[0], front.shape[1]))


@lru_cache(maxsize=64)
def _layer_faces(rows: int, columns: int) -> Faces:
    """Two triangles per cell of a (rows, columns) grid."""
    return _sheet_faces(rows, columns)[: 2 * (rows - 1) * (columns - 1)]


def surface(grid: Floats) -> Mesh:
    """One open layer of triangles through (R, C, 3) points: a `sheet` without thickness."""
    return Mesh(grid.reshape(-1, 3), _layer_faces(grid.shape[0], grid.shape[1]))


def cushion(size: Vector, at: Vector = ORIGIN, *, pinch: float = 0.5, cells: int = 10) -> Mesh:
    """A stuffed rectangle: fullest in the middle, thin at the seams.

    Args:
        size: full width, depth and height.
        at: base point.
        pinch: 0 is nearly a block; 1 draws the sides in between its corners and thins it early.
        cells: grid cells along a side.
    """
    step = np.linspace(-1.0, 1.0, cells + 1)
    u, v = np.meshgrid(step, step, indexing="ij")
    sharp = 8.0 - 6.0 * pinch
    full = ((1.0 - np.abs(u) ** sharp) * (1.0 - np.abs(v) ** sharp)) ** 0.5
    x = u * (1.0 - 0.12 * pinch * (1.0 - v**2))
    y = v * (1.0 - 0.12 * pinch * (1.0 - u**2))
    half = np.array(size) / 2.0
    rise = 0.04 + 0.96 * full
    top = np.stack((x * half[0], y * half[1], rise * half[2]), axis=-1)
    bottom = top * np.array((1.0, 1.0, -1.0))
    vertices = np.concatenate((top, bottom)).reshape(-1, 3)
    # Rows run along x and columns along y here, so the sheet's faces look inwards; flip them.
    faces = _sheet_faces(cells + 1, cells + 1)[:, ::-1]
    return Mesh(vertices + np.array(at) + np.array((0.0, 0.0, half[2])), faces)
