"""Points as 16-bit whole numbers on each shape's own cube, and back.

A shape's cube is centred on the middle of its bounding box and just contains it. One step is
1/32767 of the half side, so rounding to the nearest step errs by at most 1.53e-5 of the half side
on an axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pointdistill.errors import DataError

LEVELS = 32767
"""Steps from the cube's centre to a side."""

LARGEST_COORDINATE = 1e30
"""Beyond this a difference of two coordinates may not be a float32; no unit makes such a shape."""

_TILE_ROWS = 2048
"""Centres in a row, 24 KiB: numpy adds half as many at little more than half the speed, and more at no more."""

Points: TypeAlias = NDArray[np.float32]
"""(n, 3) float32: x, y, z; z is up."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """One shape as it lies on disk: xyz = center + scale * points / 32767."""

    points: NDArray[np.int16]
    """(n, 3) int16, each within -32767 to 32767."""

    center: NDArray[np.float32]
    """(3,) float32, the middle of the bounding box."""

    scale: np.float32
    """Half the side of the cube, in the unit of the points; 0 where all points coincide."""


def quantise(points: NDArray[np.floating]) -> Quantised:
    """Put points on their own cube.

    Args:
        points: (n, 3), finite, n at least 1; flat, straight or coinciding points are fine.

    Raises:
        DataError: if the array has another shape, is empty, or holds values that are not finite or
            huge.
    """
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
        msg = f"expected points of shape (n, 3) with n at least 1, got {points.shape}"
        raise DataError(msg)
    # Axis by axis in contiguous rows: a reduction over the columns of (n, 3) is ten times slower.
    # In float64, because the difference of two float32 coordinates may not be a float32.
    exact = np.ascontiguousarray(points.T, np.float64)
    low, high = exact.min(axis=1), exact.max(axis=1)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        bad = int((~np.isfinite(points)).any(axis=1).sum())
        msg = f"{bad:,} of {len(points):,} points are not finite"
        raise DataError(msg)
    largest = max(-float(low.min()), float(high.max()))
    if largest > LARGEST_COORDINATE:
        msg = f"coordinates reach {largest:.3g}, at most {LARGEST_COORDINATE:.0e} is accepted"
        raise DataError(msg)
    center = ((low + high) / 2).astype(np.float32)
    exact -= center[:, None]
    reach = max(-float(exact.min()), float(exact.max()))
    scale = np.float32(reach)
    if scale < reach:
        scale = np.nextafter(scale, np.float32(np.inf))
    exact *= LEVELS / float(scale) if scale > 0 else 0.0
    steps = np.ascontiguousarray(np.rint(exact, out=exact).T, np.int16)
    return Quantised(points=steps, center=center, scale=scale)


def restore(
    points: NDArray[np.int16], center: NDArray[np.float32], scale: np.float32 | float
) -> Points:
    """Points in their own unit and place, as a new (n, 3) float32 array.

    Args:
        points: (n, 3) int16, in C order.
        center: (3,) float32.
        scale: half the side of the cube.
    """
    return restore_stored(points, np.asarray(center, "<f4").tobytes(), float(scale))


def restore_stored(points: NDArray[np.int16], center: bytes, scale: float) -> Points:
    """`restore`, of a centre in its 12 bytes on disk: making arrays is what small shapes cost most.

    One operation at a time over long runs of memory: numpy is several times slower at (n, 3) against (3,),
    whose inner loops are three long.
    """
    restored = points.astype(np.float32, order="C")
    restored *= np.float32(scale / LEVELS)
    count = len(points)
    rows = min(count, _TILE_ROWS) or 1
    tile = np.frombuffer(center * rows, "<f4")
    flat = restored.reshape(-1)
    if count == rows:
        flat += tile
        return restored
    whole = count - count % rows
    runs = flat[: 3 * whole].reshape(-1, 3 * rows)
    runs += tile
    flat[3 * whole :] += tile[: 3 * (count - whole)]
    return restored
