"""Whether two clouds are samples of one surface, up to a turn about z, a uniform scale and a shift.

Phase matching, a millisecond a pair, rules out most pairs. It proposes poses for the others, from which the clouds
are registered and then compared at their own sampling density.

A new sample of a surface lies as far from a cloud as the cloud's own points lie from each other: from the nearest
point, and from the plane through the nearest few. So each distance is divided by the same distance measured within
the cloud, with one point left out. Two samples of one surface have ratios of about 1 at any number of points and
for any shape, and the gap between two clouds is the root mean square of four ratios: nearest point and plane, from
each cloud to the other.

Clouds are centred and scaled to unit root mean square radius; lengths below are in that unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.spatial import KDTree

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

Floats: TypeAlias = NDArray[np.float64]

SAME_SURFACE = 1.12
"""Largest gap between two samples of one surface; chosen from the calibration in ``benchmarks/leaks.py``."""

NEIGHBOURS = 8

# Registering clouds.
_ANGLES = 30
_MOST_STARTS = 4
_HOPELESS = 3.0  # mean squared distance, as a multiple of the best start's
_NEAR_SHARE = 0.95
_ALONG = 0.05  # weight of the squared distance along the plane; the distance to the plane weighs 1
_DAMPING = 1e-6
_CONVERGED = 1e-3
_LONGEST_TURN, _LONGEST_STRETCH = 0.2, 0.1

# Measuring the gap.
_DENSEST = 16_384
_PROBES, _POSE_PROBES, _FIRST_PROBES = 2048, 512, 256
_TRIMMED_SHARE = 0.95
"""Share of the distances that counts; the largest belong to stray points, or to thin parts that a small sample
misses."""

_RESOLUTION = 0.003
"""Distances below it say nothing: a flat surface has no distance at all to its own planes."""

_ASTRAY, _FAR = 4.0, 1.4
"""Ratios of nearest distances above which a pose is given up: at once, and after the first steps. Two samples of
one surface are at 1.1 and 1.0, one in a hundred beyond 1.4 and 1.1; thin folds begin beyond 2."""

_NEARLY = 1.6
"""Gap up to which every angle is tried again, on all points."""

_FIRST_STEPS, _STEPS = 3, 20


@dataclass(frozen=True, slots=True)
class Planes:
    """The local planes of a cloud at p probes."""

    nearest: Floats
    """(p,) distance to the nearest point of the cloud."""

    middle: Floats
    """(p, 3) mean of the nearest eight."""

    normal: Floats
    """(p, 3) unit vectors, of either sign: the direction in which those eight vary least."""

    def offset(self, probes: Floats) -> Floats:
        """(p,) unsigned distance of each probe from its plane."""
        offsets: Floats = np.abs(np.einsum("ij,ij->i", probes - self.middle, self.normal))
        return offsets


def nearest_distances(tree: KDTree, probes: Floats, *, skip: int = 0) -> Floats:
    """(p,) distances of (p, 3) probes to the nearest point of a cloud, ``skip`` nearer ones left out."""
    distance, _ = tree.query(probes, k=[1 + skip])
    return np.asarray(distance, np.float64)[:, 0]


def tangent_planes(tree: KDTree, probes: Floats, *, skip: int = 0) -> Planes:
    """Fit a plane to the eight points of a cloud nearest to each probe.

    Args:
        tree: of the cloud.
        probes: (p, 3).
        skip: nearest points to leave out; 1 where the probes are points of the cloud.
    """
    count = min(NEIGHBOURS, tree.n - skip)
    distance, index = tree.query(probes, k=range(1 + skip, 1 + skip + count))
    near = tree.data[index]  # (p, 8, 3)
    middle = near.mean(axis=1)
    near = near - middle[:, None]
    _, axes = np.linalg.eigh(near.transpose(0, 2, 1) @ near)
    return Planes(np.asarray(distance, np.float64)[:, 0], middle, axes[:, :, 0])


@dataclass(frozen=True, slots=True)
class Similarity:
    """Maps x to x @ matrix.T + shift; the matrix turns about z and scales uniformly."""

    matrix: Floats  # (3, 3)
    shift: Floats  # (3,)

    @classmethod
    def turn(cls, angle: float, *, scale: float = 1.0, shift: Floats | None = None) -> Similarity:
        """A turn about z by an angle in radians, then a shift."""
        cosine, sine = np.cos(angle), np.sin(angle)
        matrix = scale * np.array(((cosine, -sine, 0.0), (sine, cosine, 0.0), (0.0, 0.0, 1.0)))
        return cls(matrix, np.zeros(3) if shift is None else shift)

    def apply(self, points: Floats) -> Floats:
        """The image of (n, 3) points."""
        return points @ self.matrix.T + self.shift

    def then(self, other: Similarity) -> Similarity:
        """This one followed by ``other``."""
        return Similarity(other.matrix @ self.matrix, other.apply(self.shift[None])[0])

    def inverse(self) -> Similarity:
        """The similarity that undoes this one."""
        back = np.linalg.inv(self.matrix).astype(np.float64)
        return Similarity(back, -back @ self.shift)


def starting_turns(probes: Floats, tree: KDTree) -> list[Similarity]:
    """Turns to start from: of 30, the local minima of the probes' distance to the cloud.

    Args:
        probes: (p, 3), placed on the cloud but for a turn about z.
        tree: the cloud's points.

    Returns:
        At most 4, the closest first.
    """
    turns = [Similarity.turn(2.0 * np.pi * k / _ANGLES) for k in range(_ANGLES)]
    distance = nearest_distances(tree, np.concatenate([turn.apply(probes) for turn in turns]))
    far = np.square(distance.reshape(_ANGLES, -1)).mean(axis=1)
    low = (far <= np.roll(far, 1)) & (far <= np.roll(far, -1)) & (far <= _HOPELESS * far.min())
    lowest = np.flatnonzero(low)
    return [turns[k] for k in lowest[np.argsort(far[lowest], kind="stable")][:_MOST_STARTS]]


def align(probes: Floats, tree: KDTree, start: Similarity, *, steps: int) -> Similarity:
    """Register (p, 3) probes with a cloud: at most ``steps`` Gauss-Newton steps from ``start``.

    Each step minimises distances to the cloud's local planes. A small share of the distance to the mean of the
    nearest points is added: it pins down what planes leave free, such as thin rods and slides along a flat side.
    """
    pose = start
    moved = pose.apply(probes)
    for _ in range(steps):
        step, length = _gauss_newton_step(moved, tangent_planes(tree, moved))
        pose = pose.then(step)
        moved = step.apply(moved)
        if length < _CONVERGED:
            break
    return pose


def _gauss_newton_step(points: Floats, planes: Planes) -> tuple[Similarity, float]:
    """One Gauss-Newton step, and the largest of its turn, shift and stretch."""
    # The farthest probes have no counterpart in a cloud with gaps, and would pull the pose towards them.
    near = planes.nearest <= np.quantile(planes.nearest, _NEAR_SHARE)
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
    # The step is linear in the turn; beyond some 0.2 radians that no longer holds.
    turn = float(np.clip(change[0], -_LONGEST_TURN, _LONGEST_TURN))
    stretch = float(np.clip(change[4], -_LONGEST_STRETCH, _LONGEST_STRETCH))
    pose = Similarity.turn(turn, scale=float(np.exp(stretch)), shift=change[1:4])
    return pose, float(np.abs(change).max())


class SurfaceSamples:
    """A cloud prepared for comparison; its costly parts are computed at their first use.

    Sizes: n points, a subset of at most 16,384 of the cloud's, p probes among them.
    """

    def __init__(self, points: NDArray[np.floating]) -> None:
        """Of (n, 3) points, n at least 32, z up."""
        self._points = centred(subsample(points, _DENSEST))
        self._given = points

    @cached_property
    def size(self) -> float:
        """Root mean square distance of the cloud's points from their mean, in the unit they came in."""
        points = subsample(self._given, _DENSEST).astype(np.float64)
        rms = np.sqrt(np.square(points - points.mean(axis=0)).sum(axis=1).mean())
        return max(float(rms), np.finfo(np.float64).tiny)  # sizes are divided; points may coincide

    @cached_property
    def tree(self) -> KDTree:
        """Of the (n, 3) points."""
        return KDTree(self._points)

    @cached_property
    def probes(self) -> Floats:
        """(p, 3), a subset of the points."""
        return subsample(self._points, _PROBES)

    @cached_property
    def spacing(self) -> float:
        """Trimmed distance of a probe to the nearest other point."""
        return _trimmed_rms(nearest_distances(self.tree, self.probes, skip=1))

    @cached_property
    def roughness(self) -> float:
        """Trimmed distance of a probe to the plane through the nearest others."""
        return _trimmed_rms(tangent_planes(self.tree, self.probes, skip=1).offset(self.probes))


def surface_gap(test: SurfaceSamples, other: SurfaceSamples, poses: Sequence[Similarity]) -> float:
    """How far apart two surfaces are: about 1 for two samples of one, 0 for the same points, larger for others.

    Costs 15 ms of one core if they are plainly different, some 50 ms if they are alike.

    Args:
        test: the cloud that is turned, scaled and moved.
        other: the cloud that it is registered with.
        poses: candidates that roughly map ``test`` onto ``other``, the likeliest first.

    Returns:
        The gap; infinite if the clouds are plainly different.
    """
    return surface_match(test, other, poses)[0]


def surface_match(
    test: SurfaceSamples, other: SurfaceSamples, poses: Sequence[Similarity]
) -> tuple[float, float]:
    """The gap, as `surface_gap` measures it, and how many times as large as ``other`` the cloud ``test`` is."""
    few = subsample(test.probes, _FIRST_PROBES)
    candidates = [pose for pose in poses if _nearest_ratio(pose.apply(few), other) <= _ASTRAY]
    best, pose = _best(candidates, test, other)
    if SAME_SURFACE < best <= _NEARLY:
        # An almost round shape looks the same at every angle until it is examined closely.
        turns = starting_turns(pose.apply(subsample(test.probes, _POSE_PROBES)), other.tree)
        best, pose = min(
            (best, pose), _best([pose.then(turn) for turn in turns], test, other), key=itemgetter(0)
        )
    return best, test.size / (other.size * np.cbrt(np.linalg.det(pose.matrix)))


def _best(
    starts: Sequence[Similarity], test: SurfaceSamples, other: SurfaceSamples
) -> tuple[float, Similarity]:
    """The lowest gap reached from some poses, with its pose; stops at the first that means one surface."""
    best, best_pose = np.inf, Similarity.turn(0.0)
    few, probes = subsample(test.probes, _FIRST_PROBES), subsample(test.probes, _POSE_PROBES)
    for start in starts:
        pose = align(few, other.tree, start, steps=_FIRST_STEPS)
        if _nearest_ratio(pose.apply(probes), other) > _FAR:
            continue
        pose = align(probes, other.tree, pose, steps=_STEPS)
        gap = _gap_at(pose, test, other)
        if gap < best:
            best, best_pose = gap, pose
        if best <= SAME_SURFACE:
            break
    return best, best_pose


def _nearest_ratio(probes: Floats, other: SurfaceSamples) -> float:
    return _ratio(_trimmed_rms(nearest_distances(other.tree, probes)), other.spacing)


def _gap_at(pose: Similarity, test: SurfaceSamples, other: SurfaceSamples) -> float:
    """The gap with ``test`` moved by ``pose`` and, in the other direction, ``other`` moved by its inverse."""
    ratios = []
    for probes, target in (
        (pose.apply(test.probes), other),
        (pose.inverse().apply(other.probes), test),
    ):
        planes = tangent_planes(target.tree, probes)
        ratios.append(_ratio(_trimmed_rms(planes.nearest), target.spacing))
        ratios.append(_ratio(_trimmed_rms(planes.offset(probes)), target.roughness))
    return float(np.sqrt(np.mean(np.square(ratios))))


def _trimmed_rms(distances: Floats) -> float:
    """Root mean square of the smallest 95 %."""
    count = max(1, round(_TRIMMED_SHARE * len(distances)))
    return float(np.sqrt(np.square(np.partition(distances, count - 1)[:count]).mean()))


def _ratio(measured: float, expected: float) -> float:
    return float(np.hypot(measured, _RESOLUTION) / np.hypot(expected, _RESOLUTION))


Floats32: TypeAlias = NDArray[np.float32]

# Phase matching.
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
