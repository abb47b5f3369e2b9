"""Whether two clouds may be samples of one surface, and at which turns about z, in a millisecond.

A fingerprint forgets the phases of its averages; here they are kept, so that one turn has to explain all of them.
What is left between two clouds is measured in units of what sampling explains: the averages of one surface scatter
by the covariance of their waves over its points, little in most directions, and another shape differs in those.

Sizes: n points, 312 averages (24 profiles by 13 turns), a angles, at most 6.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from pointdistill.data.leaks.fingerprint import (
    ANGULAR,
    POINTS,
    SLOPE_STEP,
    averages,
    centred,
    slopes,
    thinned,
    waves,
)
from pointdistill.data.leaks.register import Similarity

Floats: TypeAlias = NDArray[np.float32]

LIKELY = 240.0
"""Largest squared distance of two samples of one surface; set on what ``benchmarks/leaks.py --calibrate`` prints.
"""

_SCATTER_POINTS = 1024  # of a test cloud, from which its covariance is taken
_FLOOR = 0.01
"""Added to every variance, which is at most 1: less than that few points cannot tell."""

_GRID = 72
_STEPS = 3
_LONGEST_TURN = 0.2
_SMALLEST = np.float32(1e-12)
_ORDERS = np.arange(1, ANGULAR)
_WHEEL = np.exp(-2j * np.pi * np.outer(np.arange(_GRID), _ORDERS) / _GRID)


def pattern(points: NDArray[np.floating]) -> Floats:
    """The averages of (n, 3) points, z up, with their phases: (24, 13). Costs 0.6 ms of one core."""
    return _pattern(centred(thinned(points, POINTS)))


class Likeness:
    """A test cloud, ready to be compared with the patterns of other clouds. Costs 10 ms of one core."""

    def __init__(self, cloud: NDArray[np.floating]) -> None:
        """Of (n, 3) points, n at least 2, z up."""
        placed = centred(thinned(cloud, POINTS))
        self._noise = 1.0 / len(placed)
        self._pattern = _pattern(placed)
        scale = _scale(placed)
        free, mixing = np.linalg.qr(scale @ slopes(placed, _pattern).reshape(4, -1).T)
        self._moves = np.linalg.pinv(mixing) @ (free.T @ scale)  # (4, 312)
        self._scale = np.ascontiguousarray(scale - free @ (free.T @ scale), np.float32)
        self._scaled = self._scale @ self._pattern.ravel()

    def poses(self, seen: Floats, points: int) -> list[tuple[float, Similarity]]:
        """How far another cloud is from this one, and the pose that lays this one upon it.

        Args:
            seen: the other's pattern (24, 13).
            points: that it was computed from.

        Returns:
            One pair for each turn that is better than those beside it, at most 6, the nearest first: the squared
            distance, some 80 for two samples of one surface, and the pose.
        """
        angles = _peaks(self._pattern, seen)
        for _ in range(_STEPS):
            left, slope = self._left(seen, angles)
            change = np.einsum("ji,ji->i", slope, left)
            change /= np.maximum(np.einsum("ji,ji->i", slope, slope), _SMALLEST)
            angles = angles - np.clip(change, -_LONGEST_TURN, _LONGEST_TURN)
        left, _ = self._left(seen, angles)
        apart = np.einsum("ji,ji->i", left, left) / (self._noise + 1.0 / points)
        differing = _turned(seen, angles).reshape(-1, len(angles)) - self._pattern.reshape(-1, 1)
        moves = (self._moves @ differing).T  # (a, 4)
        return [
            (float(apart[k]), _pose(float(angles[k]), moves[k].astype(np.float64)))
            for k in np.argsort(apart, kind="stable")
        ]

    def _left(self, seen: Floats, angles: Floats) -> tuple[Floats, Floats]:
        """What differs at each angle, and its slope; both in units of the scatter, (312, a)."""
        turned = _turned(seen, angles)  # (24, 13, a)
        slope = np.zeros_like(turned)
        slope[:, 1::2] = -_ORDERS[:, None] * turned[:, 2::2]
        slope[:, 2::2] = _ORDERS[:, None] * turned[:, 1::2]
        count = len(angles)
        both = self._scale @ np.concatenate((turned, slope), axis=2).reshape(-1, 2 * count)
        return both[:, :count] - self._scaled[:, None], both[:, count:]


def _pattern(placed: NDArray[np.float64]) -> Floats:
    return averages(*waves(placed))


def _scale(placed: NDArray[np.float64]) -> Floats:
    """(312, 312), after which the averages of new samples scatter alike in all directions."""
    profiles, turns = waves(thinned(placed, _SCATTER_POINTS))
    each = (profiles[:, None] * turns[None]).reshape(-1, profiles.shape[1])  # (312, n)
    each -= each.mean(axis=1, keepdims=True)
    scatter = each @ each.T / each.shape[1]
    scatter[np.diag_indices_from(scatter)] += np.float32(_FLOOR)
    factor = np.linalg.cholesky(scatter)
    return solve_triangular(factor, np.eye(len(factor), dtype=np.float32), lower=True)


def _pose(angle: float, moves: NDArray[np.float64]) -> Similarity:
    """Shift and scale as ``moves`` (4,) say, then turn back by the angle."""
    shift, stretch = 2.0 * SLOPE_STEP * moves[:3], float((1.0 + SLOPE_STEP) ** (2.0 * moves[3]))
    placed = Similarity.turn(0.0, scale=stretch, shift=shift)
    return placed.then(Similarity.turn(-angle))


def _peaks(test: Floats, seen: Floats) -> Floats:
    """Angles (a,) by which ``seen`` is turned to be more like ``test`` than beside them, of 72."""
    mine = test[:, 1::2] + 1j * test[:, 2::2]
    other = seen[:, 1::2] + 1j * seen[:, 2::2]
    like = (_WHEEL.conj() @ (mine.conj() * other).sum(axis=0)).real
    top = np.flatnonzero((like >= np.roll(like, 1)) & (like > np.roll(like, -1)))
    if not len(top):  # round: all turns are alike
        top = np.zeros(1, np.int64)
    return (top * (2.0 * np.pi / _GRID)).astype(np.float32)


def _turned(seen: Floats, angles: Floats) -> Floats:
    """Averages (24, 13) of the cloud turned by each of the angles: (24, 13, a)."""
    cosine, sine = np.cos(np.outer(_ORDERS, angles)), np.sin(np.outer(_ORDERS, angles))
    found = np.repeat(seen[:, :, None], len(angles), axis=2)
    found[:, 1::2] = seen[:, 1::2, None] * cosine - seen[:, 2::2, None] * sine
    found[:, 2::2] = seen[:, 1::2, None] * sine + seen[:, 2::2, None] * cosine
    return found
