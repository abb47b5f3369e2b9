"""What a part segmentation benchmark is once it has been read: clouds of any size, a part at every point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class PartClouds:
    """One side (train or test) of a part segmentation benchmark.

    Sizes: n clouds, n_i points in cloud i.
    """

    points: tuple[NDArray[np.float32], ...]
    """n arrays (n_i, 3) float32, finite, z up, in the archive's own unit and place: not yet normalised."""

    parts: tuple[NDArray[np.uint8], ...]
    """n arrays (n_i,) uint8, the part of each point; always one of its category's own."""

    categories: NDArray[np.int64]
    """(n,) int64, indices into the benchmark's ``categories``."""

    ids: tuple[str, ...]
    """n names, unique in the benchmark: ``<synset>/<id>``, the ids of ShapeNet."""

    def __len__(self) -> int:
        """Number of clouds."""
        return len(self.categories)


@dataclass(frozen=True, slots=True)
class PartBenchmark:
    """A set with part labels and its official split, and what a result must say of it."""

    name: str
    """The published benchmark whose protocol applies: ``ShapeNetPart``."""

    categories: tuple[str, ...]
    """Names of all categories of the benchmark, in the order of its numbers."""

    category_parts: tuple[tuple[int, ...], ...]
    """For each category in turn, the part labels that belong to it."""

    train: PartClouds
    """The official training and validation splits together, as published results use them."""

    test: PartClouds

    data_name: str
    """What the data really is, for every result: ``ShapeNetPart``, ``ShapeNetPart stand-in``."""

    form: str
    """Which of the distributed forms was read."""

    checksum: str
    """Hexadecimal SHA-256 of the archive, as ``sha256sum`` prints it, or of a folder's files."""

    stand_in: bool
    """True when the data only has the real archive's layout; its numbers are its own."""
