"""From an object's surface to what a depth sensor sees of it in a room: one side, and clutter.

Frame: z up. Unit: the object's bounding radius. Points reach the sensor through a z-buffer: of all
surface points in one cell of the image, only those near the front one are seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.synthetic_shapes.shape import bounds, cross, lengths

Points = NDArray[np.float64]
Flags = NDArray[np.bool_]
Range = tuple[float, float]

_CELL = 0.05
"""Side of an image cell at the object's centre."""

_DEPTH_TOLERANCE = 0.07
"""How far behind the front of its own cell a point is still seen; keeps slopes of up to 54 degrees."""

_GAP_TOLERANCE = 0.2
"""The same for the eight cells around, which close the gaps between the points of a surface.

For a ball of 8,192 points seen from close by, every third cell is empty, but no square of nine cells is.
"""

_ROOM = 1.7
"""Half-side of the room around an object, as a factor on the half-sides of its box."""

_WALL_AT = (0.9, 1.0)
"""Where a wall stands between the box's middle (0) and its far side (1): tight boxes contain a little of it."""

_FLOOR_POINTS = 2500
_WALL_POINTS = 2500


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardness:
    """What makes a scan harder than the shape; the unit is the object's bounding radius.

    Decides how hard the ScanObjectNN stand-in is. Results on it are comparable only within one version: any change
    of a value here, or of the code that reads it, makes a new version.
    """

    version: int = 1
    """Increased with every change, and written into the archive."""

    tilt_degrees: float = 2.0
    """Largest error of the scanner's vertical direction."""

    elevation_degrees: Range = (20.0, 45.0)
    """The camera's height above the horizon, seen from the object."""

    distance: Range = (2.5, 4.0)
    """From the object's centre to the camera."""

    views: int = 3
    """Cameras that see an object; with one, much less of it is seen."""

    between_views_degrees: Range = (40.0, 50.0)
    """How far around the object each camera stands from the one before."""

    occluder: float = 0.1
    """Share of views in which something in front hides one side of the object."""

    occluded_share: Range = (0.1, 0.25)
    """The share of the visible points that is hidden in such a view."""

    wall: float = 0.15
    """Share of rooms with a wall close behind the object, beside the floor that every room has."""

    neighbour: float = 0.2
    """Share of rooms with another object that reaches into this one's box."""

    clutter_share: Range = (0.05, 0.15)
    """Background points among all points of an OBJ-BG cloud."""

    jitter: float = 0.005
    """Standard deviation of the sensor's noise, on every axis."""


HARDNESS = Hardness()
"""The setting that every reported number refers to."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What the sensor saw of an object and of the room around it, before noise.

    Sizes: n object points, m background points.
    """

    object_points: Points  # (n, 3)
    background_points: Points  # (m, 3)
    low: Points  # (3,) corner of the object's own bounding box, hidden parts included
    high: Points  # (3,) the opposite corner


def pose(points: Points, hardness: Hardness, *, rng: np.random.Generator) -> Points:
    """Turn an object to a random heading, tilt it slightly, and fit it into the unit sphere.

    Args:
        points: (n, 3), z up.
        hardness: gives ``tilt_degrees``.
        rng: source of randomness.

    Returns:
        (n, 3), its box centred on the origin, the farthest point at distance 1.
    """
    heading = rotation_about_z(rng.uniform(0.0, 2.0 * np.pi))
    tilt = _tilt(np.radians(rng.uniform(0.0, hardness.tilt_degrees)), rng.uniform(0.0, 2.0 * np.pi))
    turned = points @ (tilt @ heading).T
    low, high = bounds(turned)
    turned -= (low + high) / 2.0
    return turned / lengths(turned).max()


def look_at_room(
    object_points: Points,
    neighbour: Points | None,
    hardness: Hardness,
    *,
    rng: np.random.Generator,
) -> Scene:
    """Put a posed object into a room and keep what the cameras see.

    Args:
        object_points: (n, 3), as `pose` gives them.
        neighbour: (k, 3), another posed object, set beside the first; None for none.
        hardness: cameras and occluders.
        rng: source of randomness.
    """
    low, high = bounds(object_points)
    azimuth = rng.uniform(0.0, 2.0 * np.pi)
    background = _background(low, high, neighbour, azimuth, hardness, rng=rng)
    everything = np.concatenate([object_points, background])
    is_object = np.arange(len(everything)) < len(object_points)
    seen = np.zeros(len(everything), dtype=bool)
    for view_azimuth in _view_azimuths(azimuth, hardness, rng=rng):
        image, depth = _project(everything, view_azimuth, hardness, rng=rng)
        view = front_points(image, depth)
        if rng.random() < hardness.occluder:
            view &= ~_behind_occluder(image, view & is_object, hardness.occluded_share, rng=rng)
        seen |= view
    return Scene(everything[seen & is_object], everything[seen & ~is_object], low, high)


def front_points(image: Points, depth: Points) -> Flags:
    """Which points a sensor sees: those near the front of their image cell and of the cells around.

    Args:
        image: (n, 2) place in the image, in units that make a cell `_CELL` wide.
        depth: (n,) distance from the camera.

    Returns:
        (n,) true where no point of the same cell lies more than `_DEPTH_TOLERANCE` in front, and none
        of the eight cells around more than `_GAP_TOLERANCE`.
    """
    column, row = np.floor(image / _CELL).astype(np.int64).T
    column -= column.min() - 1  # a border of empty cells, so that every cell has eight around it
    row -= row.min() - 1
    front = np.full((int(column.max()) + 2, int(row.max()) + 2), np.inf)
    cell = column * front.shape[1] + row
    by_cell = front.reshape(-1)
    np.minimum.at(by_cell, cell, depth)  # with one index, which NumPy has a fast loop for
    beside = np.minimum(np.minimum(front[:-2], front[1:-1]), front[2:])
    around = np.minimum(np.minimum(beside[:, :-2], beside[:, 1:-1]), beside[:, 2:])
    inner = cell - 2 * column - front.shape[1] + 1  # the same cell in an image without the border
    limit = np.minimum(by_cell.take(cell) + _DEPTH_TOLERANCE, around.take(inner) + _GAP_TOLERANCE)
    return np.asarray(depth <= limit)


def rotation_about_z(angle: float) -> Points:
    """The (3, 3) rotation by ``angle`` radians about the vertical."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _view_azimuths(first: float, hardness: Hardness, *, rng: np.random.Generator) -> Points:
    """Directions around the vertical, in radians, from which the cameras look; (views,)."""
    step = np.radians(rng.uniform(*hardness.between_views_degrees)) * rng.choice([-1.0, 1.0])
    return np.asarray(first + step * np.arange(hardness.views))


def _project(
    points: Points, azimuth: float, hardness: Hardness, *, rng: np.random.Generator
) -> tuple[Points, Points]:
    """Perspective image (n, 2), scaled to the object's distance, and depth (n,) for one camera."""
    elevation = np.radians(rng.uniform(*hardness.elevation_degrees))
    distance = rng.uniform(*hardness.distance)
    backward = np.array(
        [
            np.cos(azimuth) * np.cos(elevation),
            np.sin(azimuth) * np.cos(elevation),
            np.sin(elevation),
        ]
    )
    right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
    up = cross(backward, right)
    # Nothing comes closer than a tenth of the way: parts of a room may reach the camera or lie
    # behind it.
    depth = np.maximum(distance - points @ backward, 0.1 * distance)
    image = np.stack([points @ right, points @ up]) * (distance / depth)
    return image.T, depth


def _behind_occluder(
    image: Points, reference: Flags, share: Range, *, rng: np.random.Generator
) -> Flags:
    """Which points lie behind a straight edge that hides a ``share`` of ``reference``."""
    angle = rng.uniform(0.0, 2.0 * np.pi)
    along = image @ np.array([np.cos(angle), np.sin(angle)])
    edge = np.quantile(along[reference], 1.0 - rng.uniform(*share))
    return along > edge


def _background(
    low: Points,
    high: Points,
    neighbour: Points | None,
    azimuth: float,
    hardness: Hardness,
    *,
    rng: np.random.Generator,
) -> Points:
    """A floor under the object, perhaps a wall behind it, and the neighbour beside it."""
    middle, half = (low + high) / 2.0, (high - low) / 2.0
    reach = _ROOM * half
    floor = middle + rng.uniform(-reach, reach, size=(_FLOOR_POINTS, 3))
    floor[:, 2] = low[2]
    parts = [floor]
    if rng.random() < hardness.wall:
        wall = middle + rng.uniform(-reach, reach, size=(_WALL_POINTS, 3))
        # On the side of the box that faces away from the camera.
        axis = int(abs(np.sin(azimuth)) > abs(np.cos(azimuth)))
        away = -np.sign((np.cos(azimuth), np.sin(azimuth))[axis])
        wall[:, axis] = middle[axis] + away * half[axis] * rng.uniform(*_WALL_AT)
        parts.append(wall[wall[:, 2] >= low[2]])
    if neighbour is not None:
        parts.append(_beside(low, high, neighbour, rng=rng))
    return np.concatenate(parts)


def _beside(low: Points, high: Points, neighbour: Points, *, rng: np.random.Generator) -> Points:
    """The neighbour (k, 3) on the same floor, just touching the object's box or reaching in."""
    middle = (low + high) / 2.0
    angle = rng.uniform(0.0, 2.0 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle), 0.0])
    size = rng.uniform(0.6, 1.2)
    near = ((neighbour * size) @ direction).min()
    far = np.abs(direction) @ (high - low) / 2.0
    moved = neighbour * size + middle + direction * (far * rng.uniform(0.8, 1.0) - near)
    moved[:, 2] += low[2] - moved[:, 2].min()
    return moved


def _tilt(angle: float, azimuth: float) -> Points:
    """The (3, 3) rotation by ``angle`` radians about the horizontal axis at ``azimuth``."""
    c, s = np.cos(angle), np.sin(angle)
    lean = np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])
    turn = rotation_about_z(azimuth)
    return turn @ lean @ turn.T
