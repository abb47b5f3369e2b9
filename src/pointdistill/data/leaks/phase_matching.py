"""Whether two clouds may be samples of one surface, and at which turns about z, in a millisecond.

This rules out most pairs, and proposes poses from which `registration` starts on the others.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from pointdistill.data.leaks.candidates import (
    ANGULAR,
    POINTS,
    SLOPE_STEP,
    averages,
    centred,
    slopes,
    subsample,
    waves,
)
from pointdistill.data.leaks.registration import Similarity

Floats32: TypeAlias = NDArray[np.float32]

LIKELY = 240.0
"""Largest squared phase distance between two samples of one surface; chosen from the calibration in
``benchmarks/leaks.py``."""

_SCATTER_POINTS = 1024  # of a test cloud, from which its covariance is estimated
_FLOOR = 0.01
"""Added to every variance, which is at most 1: smaller ones cannot be estimated from so few points."""

_GRID = 72  # turns tried before the best ones are refined
_TURN_STEPS = 3
_LONGEST_TURN_STEP = 0.2
_SMALLEST = np.float32(1e-12)
_ORDERS = np.arange(1, ANGULAR)
_WHEEL = np.exp(-2j * np.pi * np.outer(np.arange(_GRID), _ORDERS) / _GRID)


def pattern(points: NDArray[np.floating]) -> Floats32:
    """The averages of (n, 3) points, z up, with their phases: (24, 13). Costs 0.6 ms of one core."""
    return _pattern(centred(subsample(points, POINTS)))


class PhaseMatcher:
    """A test cloud, prepared for comparison with the patterns of other clouds. Costs 10 ms of one core.

    A fingerprint drops the phases of its averages; here they are kept, so that one turn has to explain all of
    them. What differs between two clouds is measured in units of what sampling explains: the averages of one
    surface scatter by the covariance of their waves over its points. That is little in most directions, and
    another shape differs in those.

    Sizes: 312 averages (24 profiles by 13 turns), a angles, at most 6.
    """

    def __init__(self, cloud: NDArray[np.floating]) -> None:
        """Of (n, 3) points, n at least 2, z up."""
        placed = centred(subsample(cloud, POINTS))
        # The centre and scale of a sample are uncertain themselves: directions in which a change of them moves the
        # averages are projected out of the comparison, and solved for when a pose is needed.
        self._noise = 1.0 / len(placed)
        self._pattern = _pattern(placed)
        scale = _whitening(placed)
        free, mixing = np.linalg.qr(scale @ slopes(placed, _pattern).reshape(4, -1).T)
        self._moves = np.linalg.pinv(mixing) @ (free.T @ scale)  # (4, 312)
        self._whitening = np.ascontiguousarray(scale - free @ (free.T @ scale), np.float32)
        self._scaled = self._whitening @ self._pattern.ravel()

    def poses(self, other: Floats32, points: int) -> list[tuple[float, Similarity]]:
        """How far another cloud is from this one, and the poses that lay this one onto it.

        Args:
            other: the other cloud's pattern, (24, 13).
            points: how many points it was computed from.

        Returns:
            One pair for each turn that is a local optimum, at most 6, the closest first: the squared distance,
            some 80 for two samples of one surface, and the pose.
        """
        angles = _best_turns(self._pattern, other)
        for _ in range(_TURN_STEPS):
            residual, slope = self._residuals(other, angles)
            change = np.einsum("ji,ji->i", slope, residual)
            change /= np.maximum(np.einsum("ji,ji->i", slope, slope), _SMALLEST)
            angles = angles - np.clip(change, -_LONGEST_TURN_STEP, _LONGEST_TURN_STEP)
        residual, _ = self._residuals(other, angles)
        apart = np.einsum("ji,ji->i", residual, residual) / (self._noise + 1.0 / points)
        differing = _turned(other, angles).reshape(-1, len(angles)) - self._pattern.reshape(-1, 1)
        moves = (self._moves @ differing).T  # (a, 4)
        return [
            (float(apart[k]), _pose(float(angles[k]), moves[k].astype(np.float64)))
            for k in np.argsort(apart, kind="stable")
        ]

    def _residuals(self, other: Floats32, angles: Floats32) -> tuple[Floats32, Floats32]:
        """The difference at each angle and its derivative, both in units of the scatter, (312, a)."""
        turned = _turned(other, angles)  # (24, 13, a)
        slope = np.zeros_like(turned)
        slope[:, 1::2] = -_ORDERS[:, None] * turned[:, 2::2]
        slope[:, 2::2] = _ORDERS[:, None] * turned[:, 1::2]
        count = len(angles)
        both = self._whitening @ np.concatenate((turned, slope), axis=2).reshape(-1, 2 * count)
        return both[:, :count] - self._scaled[:, None], both[:, count:]


def _pattern(placed: NDArray[np.float64]) -> Floats32:
    return averages(*waves(placed))


def _whitening(placed: NDArray[np.float64]) -> Floats32:
    """(312, 312) matrix after which the averages of new samples scatter equally in all directions."""
    profiles, turns = waves(subsample(placed, _SCATTER_POINTS))
    each = (profiles[:, None] * turns[None]).reshape(-1, profiles.shape[1])  # (312, n)
    each -= each.mean(axis=1, keepdims=True)
    scatter = each @ each.T / each.shape[1]
    scatter[np.diag_indices_from(scatter)] += np.float32(_FLOOR)
    factor = np.linalg.cholesky(scatter)
    return solve_triangular(factor, np.eye(len(factor), dtype=np.float32), lower=True)


def _pose(angle: float, moves: NDArray[np.float64]) -> Similarity:
    """Shift and scale by ``moves`` (4,), then turn back by the angle."""
    shift, stretch = 2.0 * SLOPE_STEP * moves[:3], float((1.0 + SLOPE_STEP) ** (2.0 * moves[3]))
    placed = Similarity.turn(0.0, scale=stretch, shift=shift)
    return placed.then(Similarity.turn(-angle))


def _best_turns(test: Floats32, other: Floats32) -> Floats32:
    """Angles (a,), of 72, at which ``other`` turned agrees with ``test`` better than at the angles beside them."""
    first = test[:, 1::2] + 1j * test[:, 2::2]
    second = other[:, 1::2] + 1j * other[:, 2::2]
    # A turn multiplies order m by e^(im angle), so agreement over all turns is one short Fourier sum.
    likeness = (_WHEEL.conj() @ (first.conj() * second).sum(axis=0)).real
    top = np.flatnonzero((likeness >= np.roll(likeness, 1)) & (likeness > np.roll(likeness, -1)))
    if not len(top):  # round: all turns are alike
        top = np.zeros(1, np.int64)
    return (top * (2.0 * np.pi / _GRID)).astype(np.float32)


def _turned(other: Floats32, angles: Floats32) -> Floats32:
    """Averages (24, 13) of the cloud turned by each of the angles: (24, 13, a)."""
    cosine, sine = np.cos(np.outer(_ORDERS, angles)), np.sin(np.outer(_ORDERS, angles))
    turned = np.repeat(other[:, :, None], len(angles), axis=2)
    turned[:, 1::2] = other[:, 1::2, None] * cosine - other[:, 2::2, None] * sine
    turned[:, 2::2] = other[:, 1::2, None] * sine + other[:, 2::2, None] * cosine
    return turned
