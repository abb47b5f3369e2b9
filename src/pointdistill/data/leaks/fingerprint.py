"""A shape as 168 numbers that hardly change when it is resampled, scaled, moved, or turned about z.

The points are centred on their mean and scaled to unit root mean square distance from it. Then the averages of
cos(k pi rho / 3) cos(l pi (z + 3) / 6) e^(i m theta) are taken over the points (rho, theta, z cylindrical), for
m below 7, k below 4, l below 6. A turn about z changes only the phase of such an average, so its magnitude is
kept. An average over n points is off by at most 1/sqrt(n), whatever the shape: fingerprints of one surface differ
by a known amount, and the bias that this error adds to the squared magnitudes is subtracted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Real = TypeVar("Real", bound=np.floating[Any])

ANGULAR, RADIAL, VERTICAL = 7, 4, 6
SIZE = ANGULAR * RADIAL * VERTICAL
POINTS = 4096
"""Most points used: more would hardly sharpen a comparison with a test cloud of one or two thousand."""

VERSION = 1
"""Increased whenever the same points would give other numbers."""

_REACH = 3.0
"""In units of the root mean square radius; the few points beyond it are treated as if they lay on it."""

SLOPE_STEP = 0.05
"""As a share of the radius: an error of the centre that a sample of 1,000 points may have."""

_SMALLEST = 1e-12


def subsample(points: NDArray[Real], count: int) -> NDArray[Real]:
    """At most ``count`` of (n, 3) points, evenly spaced in their order; the array itself if it has no more."""
    if len(points) <= count:
        return points
    return points[np.arange(count) * len(points) // count]


def centred(points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Points (n, 3) about their mean, scaled to unit root mean square distance from it; all 0 if they coincide."""
    # One row per axis: means along the columns of (n, 3) take ten times as long.
    exact = np.ascontiguousarray(points.T, np.float64)
    exact -= exact.mean(axis=1, keepdims=True)
    radius = float(np.sqrt(np.square(exact).sum() / len(points)))
    exact /= max(radius, _SMALLEST)
    return exact.T


def fingerprint(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """The fingerprint of (n, 3) points, z up, n at least 2: (168,) float32, each within -1 to 1.

    Costs some 0.6 ms of one core.
    """
    return _magnitudes(centred(subsample(points, POINTS)))


def tangents(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """How a shift or a scaling moves the fingerprint of (n, 3) points: (168, 4), orthonormal columns.

    The mean and the radius of a sample are off from those of its surface by some 1/sqrt(n); a difference between
    two fingerprints along these directions is therefore no difference of shape. Costs 2 ms of one core for 1,024
    points, 5 ms for 4,096.
    """
    directions, _ = np.linalg.qr(slopes(centred(subsample(points, POINTS)), _magnitudes).T)
    return directions.astype(np.float32)


def slopes(
    placed: NDArray[np.float64], numbers: Callable[[NDArray[np.float64]], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Changes of ``numbers`` of (n, 3) placed points with a shift along x, y and z and with the scale: (4, ...).

    Differences between a step of `SLOPE_STEP` forwards and one backwards.
    """
    found = []
    for shift in (*(SLOPE_STEP * np.eye(3)), np.zeros(3)):
        scale = 1.0 if shift.any() else 1.0 + SLOPE_STEP
        found.append(numbers(placed * scale + shift) - numbers(placed / scale - shift))
    return np.array(found)


def waves(placed: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The functions whose averages describe a shape, at each of (n, 3) points that are centred and scaled already.

    Returns:
        profiles: (24, n), functions of height and distance from the axis.
        turns: (13, n), functions of the angle about it: 1, then the cosine and sine of each m from 1 to 6.
    """
    x, y, z = np.ascontiguousarray(placed.T, np.float32)
    rho = np.hypot(x, y)
    rings = _cosines(np.minimum(rho, _REACH) * (np.pi / _REACH), RADIAL)
    levels = _cosines((np.clip(z, -_REACH, _REACH) + _REACH) * (np.pi / (2 * _REACH)), VERTICAL)
    profiles = (rings[:, None] * levels[None]).reshape(RADIAL * VERTICAL, -1)
    return profiles, _turns(x, y, rho)


def averages(profiles: NDArray[np.float32], turns: NDArray[np.float32]) -> NDArray[np.float32]:
    """Averages of the products of (24, n) profiles and (13, n) turns: (24, 13)."""
    # Not through BLAS: its threads get in the way of the other processes that do the same.
    return np.einsum("in,jn->ij", profiles, turns) / profiles.shape[1]


def _magnitudes(placed: NDArray[np.float64]) -> NDArray[np.float32]:
    profiles, turns = waves(placed)
    count = len(placed)
    sums = averages(profiles, turns)
    power = sums[:, 1::2] ** 2 + sums[:, 2::2] ** 2
    # The square of a noisy average is too large by its variance, estimated here and subtracted.
    spread = np.einsum("ij,ij->i", profiles, profiles)[:, None] / count - power
    power -= np.maximum(spread, 0.0) / max(count - 1, 1)
    return np.hstack((sums[:, :1], np.sqrt(np.maximum(power, 0.0)))).ravel()


def _cosines(angle: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """cos(k angle) for k from 0 to count - 1, (count, n), by Chebyshev's recurrence."""
    found = np.empty((count, len(angle)), np.float32)
    found[0], found[1] = 1.0, np.cos(angle)
    for k in range(2, count):
        found[k] = 2.0 * found[1] * found[k - 1] - found[k - 2]
    return found


def _turns(
    x: NDArray[np.float32], y: NDArray[np.float32], rho: NDArray[np.float32]
) -> NDArray[np.float32]:
    """1, then cos(m theta) and sin(m theta) for m from 1 on: (2 * ANGULAR - 1, n)."""
    inverse = 1.0 / np.maximum(rho, np.float32(_SMALLEST))
    cosine, sine = x * inverse, y * inverse
    found = np.empty((2 * ANGULAR - 1, len(x)), np.float32)
    found[0], found[1], found[2] = 1.0, cosine, sine
    for m in range(2, ANGULAR):
        before_cosine, before_sine = found[2 * m - 3], found[2 * m - 2]
        found[2 * m - 1] = before_cosine * cosine - before_sine * sine
        found[2 * m] = before_cosine * sine + before_sine * cosine
    return found
