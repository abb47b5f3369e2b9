"""Whether two clouds are samples of one surface, up to a turn about z, a uniform scale and a shift.

They are laid upon each other, then compared at their own sampling density. A new sample of a surface lies as far
from a cloud as the cloud's own points do: from the nearest point, and from the plane through the nearest few. So
each distance is divided by what the cloud itself gives, one point left out. Two samples of one surface have ratios
about 1 at any number of points and for any shape, and the gap between two clouds is the root mean square of the
four ratios: nearest point and plane, from each cloud to the other.

Clouds are centred and scaled to unit root mean square radius; lengths below are in that unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from pointdistill.data.leaks.fingerprint import centred, thinned
from pointdistill.data.leaks.register import Similarity, aligned, starts
from pointdistill.data.leaks.tangent import nearest_distances, tangent_planes

Floats: TypeAlias = NDArray[np.float64]

SAME_SURFACE = 1.12
"""Largest gap of two samples of one surface; set on what ``benchmarks/leaks.py --calibrate`` prints."""

_DENSEST = 16_384
_PROBES, _POSE_PROBES, _FIRST_PROBES = 2048, 512, 256
_KEPT = 0.95
"""Of the distances; the farthest are those of stray points, or of thin parts that a small sample misses."""

_RESOLUTION = 0.003
"""Distances below it tell nothing: a flat surface has none at all from its own planes."""

_ASTRAY, _FAR = 4.0, 1.4
"""Ratios of nearest distances above which a pose is given up: at once, and after the first steps. Two samples of
one surface are at 1.1 and 1.0, one in a hundred beyond 1.4 and 1.1; thin folds begin beyond 2."""

_NEARLY = 1.6
"""Gap up to which every angle is tried again, on all points."""

_FIRST_STEPS, _STEPS = 3, 20


class Survey:
    """A cloud made ready to be compared; what costs much is made when it is first asked for.

    Sizes: n points, at most 16,384 of those given, p probes of them.
    """

    def __init__(self, points: NDArray[np.floating]) -> None:
        """Of (n, 3) points, n at least 32, z up."""
        self._points = centred(thinned(points, _DENSEST))

    @cached_property
    def tree(self) -> KDTree:
        """Of the (n, 3) points."""
        return KDTree(self._points)

    @cached_property
    def probes(self) -> Floats:
        """(p, 3) some of the points."""
        return thinned(self._points, _PROBES)

    @cached_property
    def spacing(self) -> float:
        """Trimmed distance of a probe to the nearest other point."""
        return _size(nearest_distances(self.tree, self.probes, skip=1))

    @cached_property
    def roughness(self) -> float:
        """Trimmed distance of a probe to the plane through the nearest others."""
        return _size(tangent_planes(self.tree, self.probes, skip=1).offset(self.probes))


def surface_gap(test: Survey, seen: Survey, poses: Sequence[Similarity]) -> float:
    """How far two surfaces are apart: about 1 for samples of one, 0 for the same points, larger for others.

    Costs 15 ms of one core where they are plainly different, some 50 ms where they are alike.

    Args:
        test: the cloud that is turned, scaled and moved.
        seen: the cloud it is laid upon.
        poses: that may lay ``test`` upon ``seen`` but for a little, the likeliest first.

    Returns:
        The gap; infinite where the clouds are plainly different.
    """
    few = thinned(test.probes, _FIRST_PROBES)
    tries = [pose for pose in poses if _nearest_ratio(pose.apply(few), seen) <= _ASTRAY]
    best, pose = _best(tries, test, seen)
    if SAME_SURFACE < best <= _NEARLY:
        # A shape that is round but for a little looks alike at every angle, until it is looked at closely.
        turns = starts(pose.apply(thinned(test.probes, _POSE_PROBES)), seen.tree)
        best = min(best, _best([pose.then(turn) for turn in turns], test, seen)[0])
    return best


def _best(tries: Sequence[Similarity], test: Survey, seen: Survey) -> tuple[float, Similarity]:
    """The lowest gap reached from some poses, and the pose there; stops at the first of one surface."""
    best, best_pose = np.inf, Similarity.turn(0.0)
    few, probes = thinned(test.probes, _FIRST_PROBES), thinned(test.probes, _POSE_PROBES)
    for start in tries:
        pose = aligned(few, seen.tree, start, steps=_FIRST_STEPS)
        if _nearest_ratio(pose.apply(probes), seen) > _FAR:
            continue
        pose = aligned(probes, seen.tree, pose, steps=_STEPS)
        gap = _gap_at(pose, test, seen)
        if gap < best:
            best, best_pose = gap, pose
        if best <= SAME_SURFACE:
            break
    return best, best_pose


def _nearest_ratio(probes: Floats, seen: Survey) -> float:
    return _ratio(_size(nearest_distances(seen.tree, probes)), seen.spacing)


def _gap_at(pose: Similarity, test: Survey, seen: Survey) -> float:
    """The gap with ``test`` moved by ``pose`` and, for the way back, ``seen`` moved by its inverse."""
    ratios = []
    for probes, target in (
        (pose.apply(test.probes), seen),
        (pose.inverse().apply(seen.probes), test),
    ):
        planes = tangent_planes(target.tree, probes)
        ratios.append(_ratio(_size(planes.nearest), target.spacing))
        ratios.append(_ratio(_size(planes.offset(probes)), target.roughness))
    return float(np.sqrt(np.mean(np.square(ratios))))


def _size(distances: Floats) -> float:
    """Root mean square of the smallest 95 %."""
    kept = max(1, round(_KEPT * len(distances)))
    return float(np.sqrt(np.square(np.partition(distances, kept - 1)[:kept]).mean()))


def _ratio(found: float, expected: float) -> float:
    return float(np.hypot(found, _RESOLUTION) / np.hypot(expected, _RESOLUTION))
