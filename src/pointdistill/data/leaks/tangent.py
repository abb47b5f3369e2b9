"""The local plane of a cloud beside each of some points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

Floats: TypeAlias = NDArray[np.float64]

NEIGHBOURS = 8


@dataclass(frozen=True, slots=True)
class Planes:
    """Planes beside p probes."""

    nearest: Floats
    """(p,) distance to the nearest point of the cloud."""

    middle: Floats
    """(p, 3) mean of the nearest eight."""

    normal: Floats
    """(p, 3) unit vectors, of either sign: the direction in which those eight spread least."""

    def offset(self, probes: Floats) -> Floats:
        """(p,) distance of each probe to its plane, not signed."""
        offsets: Floats = np.abs(np.einsum("ij,ij->i", probes - self.middle, self.normal))
        return offsets


def nearest_distances(tree: KDTree, probes: Floats, *, skip: int = 0) -> Floats:
    """(p,) distances of (p, 3) probes to the nearest point of a cloud, after ``skip`` nearer ones."""
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
