"""What a benchmark is once it has been read: labelled clouds, and what they are to be called."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.archive import Archive
from pointdistill.errors import DataError

STAND_IN_MARKER = "STAND-IN.json"
"""Member of an archive that is a stand-in, with what it was made from."""


@dataclass(frozen=True, slots=True)
class LabelledClouds:
    """One side (train or test) of a benchmark.

    Sizes: n clouds, N points a cloud.
    """

    points: NDArray[np.float32]
    """(n, N, 3) float32, finite, z up, in the archive's own unit and place: not yet normalised."""

    labels: NDArray[np.int64]
    """(n,) int64, indices into the benchmark's ``classes``."""

    ids: tuple[str, ...] | None = None
    """n names as a corpus made of the same data has them; None where the data has none."""

    def __len__(self) -> int:
        """Number of clouds."""
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A labelled set with its official split, and what a result must say of it."""

    name: str
    """The published benchmark whose protocol applies: ``ScanObjectNN`` or ``ModelNet40``."""

    split: str | None
    """Which official variant, such as ``PB-T50-RS``; None where the benchmark has one only."""

    classes: tuple[str, ...]
    """Class names; a label is an index into them."""

    train: LabelledClouds
    test: LabelledClouds

    data_name: str
    """What the data really is, for every result: ``ScanObjectNN``, ``ScanObjectNN stand-in``."""

    form: str
    """Which of the distributed forms was read; forms of one benchmark are not interchangeable."""

    checksum: str
    """Hexadecimal SHA-256 of the archive, as ``sha256sum`` prints it, or of a folder's files."""

    stand_in: bool
    """True when the data only has the real archive's layout; its numbers are its own."""


def named_data(
    name: str, *, stand_in: bool, counts: tuple[int, int], official: tuple[int, int]
) -> str:
    """The name under which results on this data are reported.

    Args:
        name: the benchmark, with its split where it has several.
        stand_in: whether the archive says that it is a stand-in.
        counts: clouds found for training and testing.
        official: clouds that the published benchmark has; other counts are named, since a result on
            part of a benchmark is not comparable with a published one.
    """
    if stand_in:
        return f"{name} stand-in"
    if counts == official:
        return name
    return f"{name} ({counts[0]} + {counts[1]} clouds, officially {official[0]} + {official[1]})"


def is_stand_in(archive: Archive) -> bool:
    """Whether an archive carries the stand-ins' marker (see `pointdistill.data.standins`).

    Raises:
        DataError: if the marker is there and is not JSON.
    """
    marker = archive.find(STAND_IN_MARKER)
    if marker is None:
        return False
    try:
        json.loads(archive.read(marker))
    except ValueError as error:
        archive.refuse(marker, error)
    return True


def check_clouds(points: NDArray[np.float32], source: str) -> None:
    """Raise unless ``points`` is a finite (n, N, 3) array with at least one cloud.

    Raises:
        DataError: naming ``source``, the shape found or the number of clouds that are not finite.
    """
    if points.ndim != 3 or points.shape[2] != 3 or 0 in points.shape:
        msg = f"{source}: expected clouds of shape (n, N, 3), got {points.shape}; fetch it again"
        raise DataError(msg)
    bad = int((~np.isfinite(points)).any(axis=(1, 2)).sum())
    if bad:
        msg = f"{source}: {bad} of {len(points)} clouds are not finite; fetch the archive again"
        raise DataError(msg)
