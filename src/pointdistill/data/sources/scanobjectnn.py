"""ScanObjectNN as a source: the unchanged clouds of its three training sets, turned to z up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.benchmarks.records import read_points_and_labels
from pointdistill.data.benchmarks.scanobjectnn import CLASSES, SPLITS
from pointdistill.data.corpus.manifest import SourceFacts
from pointdistill.data.files.archive import Archive, open_archive
from pointdistill.data.meshes.sampling import to_z_up
from pointdistill.data.sources.base import (
    ArchiveSource,
    Entry,
    SourceCloud,
    SourceInfo,
    SourceRequest,
    archive_facts,
    archive_paths,
)
from pointdistill.errors import DataError


class ScanObjectNNSource(ArchiveSource):
    """Clouds of 2,048 points, by split, side and row: ``OBJ-BG/train/00000``.

    A worker holds one HDF5 member at a time: 0.3 GiB for the largest.
    """

    def __init__(self, path: Path, facts: SourceFacts, members: dict[str, str]) -> None:
        """Use `open_source`; ``members`` maps ``OBJ-BG/train`` and so on to the archive's names."""
        super().__init__(path, facts)
        self._members = members
        self._held: tuple[str, NDArray[np.generic]] | None = None

    def entries(self) -> Sequence[Entry]:
        """All rows of all members; reads each member completely, which also checks it."""
        entries: list[Entry] = []
        for name, member in self._members.items():
            _, labels = _read(self.archive, member)
            entries += [
                Entry(id=f"{name}/{row:05d}", label=int(label), where=member)
                for row, label in enumerate(labels)
            ]
        return entries

    def read(self, entry: Entry, count: int, *, rng: np.random.Generator) -> SourceCloud:  # noqa: ARG002
        """One row's points; see `pointdistill.data.sources.base.Source`."""
        if self._held is None or self._held[0] != entry.where:
            self._held = None  # first, so that two are never in memory
            self._held = entry.where, _read(self.archive, entry.where)[0]
        row = int(entry.id.rsplit("/", 1)[1])
        return SourceCloud(to_z_up(self._held[1][row].astype(np.float64), "y"))

    def __getstate__(self) -> dict[str, Any]:
        """Without the member that this process holds."""
        return super().__getstate__() | {"_held": None}


def open_source(request: SourceRequest, info: SourceInfo) -> ScanObjectNNSource:
    """The source for an ``h5_files.zip``: its training sets, and its test sets if asked for.

    Raises:
        DataError: if the archive is absent, damaged, or holds none of the sets.
    """
    path = archive_paths(request, info)[0]
    sides = ("train", "test") if request.include_test else ("train",)
    with open_archive(path, absent=str(path)) as archive:
        archive_members = {
            f"{split}/{side}": archive.find(files.members[("train", "test").index(side)])
            for split, files in SPLITS.items()
            for side in sides
        }
        members = {name: member for name, member in archive_members.items() if member is not None}
        if not members:
            expected = SPLITS["OBJ-BG"].members[0]
            msg = f"{path}: holds no {expected} nor another training set; get it from {info.origin}"
            raise DataError(msg)
        facts = archive_facts(
            archive,
            info,
            names=list(members.values()),
            turned="zxy",
            labels=CLASSES,
            settings={"sets": sorted(members)},
        )
    return ScanObjectNNSource(path, facts, members)


def _read(archive: Archive, member: str) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    """Points (n, N, 3), y up, and labels (n,) of one HDF5 member.

    Raises:
        DataError: if the member is damaged or has another layout.
    """
    points, labels = read_points_and_labels(archive, member)
    if points.ndim != 3 or points.shape[2] != 3 or len(points) != len(labels):
        archive.refuse(member, f"data of shape {points.shape} with {len(labels)} labels")
    with np.errstate(invalid="ignore"):
        classes: NDArray[np.int64] = labels.astype(np.int64)
    if len(classes) and (classes.min() < 0 or classes.max() >= len(CLASSES)):
        archive.refuse(member, f"labels from {classes.min()} to {classes.max()}")
    return points, classes
