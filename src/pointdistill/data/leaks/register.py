"""Laying one cloud upon another by a turn about z, a uniform scale and a shift: nothing else may change.

Gauss-Newton steps on the distances to the other cloud's local planes. A small share of the distance to the mean
of the nearest points is added, which holds what planes leave free: thin rods, and slides along a flat side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from pointdistill.data.leaks.tangent import Planes, nearest_distances, tangent_planes

Floats: TypeAlias = NDArray[np.float64]

_ANGLES = 30
_STARTS = 4
_HOPELESS = 3.0  # mean squared distance, against that of the best start
_KEPT = 0.95
_ALONG = 0.05  # weight of the squared distance along the plane; that of the distance to it is 1
_DAMPING = 1e-6
_CONVERGED = 1e-3
_LONGEST_TURN, _LONGEST_STRETCH = 0.2, 0.1


@dataclass(frozen=True, slots=True)
class Similarity:
    """x to x @ matrix.T + shift, with a matrix that turns about z and scales."""

    matrix: Floats  # (3, 3)
    shift: Floats  # (3,)

    @classmethod
    def turn(cls, angle: float, *, scale: float = 1.0, shift: Floats | None = None) -> Similarity:
        """By an angle in radians about z, then shifted."""
        cosine, sine = np.cos(angle), np.sin(angle)
        matrix = scale * np.array(((cosine, -sine, 0.0), (sine, cosine, 0.0), (0.0, 0.0, 1.0)))
        return cls(matrix, np.zeros(3) if shift is None else shift)

    def apply(self, points: Floats) -> Floats:
        """(n, 3) points moved."""
        return points @ self.matrix.T + self.shift

    def then(self, other: Similarity) -> Similarity:
        """This one first, the other after it."""
        return Similarity(other.matrix @ self.matrix, other.apply(self.shift[None])[0])

    def inverse(self) -> Similarity:
        """The way back."""
        back = np.linalg.inv(self.matrix).astype(np.float64)
        return Similarity(back, -back @ self.shift)


def starts(probes: Floats, tree: KDTree) -> list[Similarity]:
    """Turns from which to begin: those of 30 whose probes lie nearer to the cloud than at the angles beside it.

    Returns:
        At most 4, the nearest first.
    """
    turns = [Similarity.turn(2.0 * np.pi * k / _ANGLES) for k in range(_ANGLES)]
    distance = nearest_distances(tree, np.concatenate([turn.apply(probes) for turn in turns]))
    far = np.square(distance.reshape(_ANGLES, -1)).mean(axis=1)
    low = (far <= np.roll(far, 1)) & (far <= np.roll(far, -1)) & (far <= _HOPELESS * far.min())
    lowest = np.flatnonzero(low)
    return [turns[k] for k in lowest[np.argsort(far[lowest], kind="stable")][:_STARTS]]


def aligned(probes: Floats, tree: KDTree, start: Similarity, *, steps: int) -> Similarity:
    """The pose that lays (p, 3) probes upon a cloud, from ``start`` in at most ``steps`` steps."""
    pose = start
    moved = pose.apply(probes)
    for _ in range(steps):
        step, length = _step(moved, tangent_planes(tree, moved))
        pose = pose.then(step)
        moved = step.apply(moved)
        if length < _CONVERGED:
            break
    return pose


def _step(points: Floats, planes: Planes) -> tuple[Similarity, float]:
    """One Gauss-Newton step and the largest of its turn, shift and stretch."""
    near = planes.nearest <= np.quantile(planes.nearest, _KEPT)
    points, normal = points[near], planes.normal[near]
    residual = points - planes.middle[near]
    # How each coordinate changes with the turn, the shift and the logarithm of the scale.
    slope = np.zeros((len(points), 3, 5))
    slope[:, 0, 0], slope[:, 1, 0] = -points[:, 1], points[:, 0]
    slope[:, :, 1:4] = np.eye(3)
    slope[:, :, 4] = points
    across = np.einsum("pi,pij->pj", normal, slope)
    along = slope.reshape(-1, 5)
    matrix = across.T @ across + _ALONG * along.T @ along
    matrix += _DAMPING * np.trace(matrix) * np.eye(5)
    gradient = across.T @ np.einsum("pi,pi->p", normal, residual)
    gradient += _ALONG * along.T @ residual.ravel()
    change = -np.linalg.solve(matrix, gradient)
    turn = float(np.clip(change[0], -_LONGEST_TURN, _LONGEST_TURN))
    stretch = float(np.clip(change[4], -_LONGEST_STRETCH, _LONGEST_STRETCH))
    pose = Similarity.turn(turn, scale=float(np.exp(stretch)), shift=change[1:4])
    return pose, float(np.abs(change).max())
