"""Scans of real objects: Google Scanned Objects, OmniObject3D and ScanObjectNN.

Google Scanned Objects (Downs et al., ICRA 2022): a folder of zips, one OBJ model each, z up. Ids: the name of the
zip.

OmniObject3D (Wu et al., CVPR 2023): clouds of 16,384 points, one HDF5 file per category, y up. Ids: the file and
the row in it, ``apple_10/00003``.

ScanObjectNN (Uy et al., ICCV 2019): the unchanged clouds of its three training sets, turned to z up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.benchmarks.records import read_points_and_labels
from pointdistill.data.benchmarks.scanobjectnn import CLASSES, SPLITS
from pointdistill.data.corpus.manifest import SourceFacts
from pointdistill.data.files.archive import MEMBER_LIMIT_BYTES, Archive, open_archive, still_there
from pointdistill.data.files.hdf5 import open_hdf5
from pointdistill.data.files.member import read_member_at
from pointdistill.data.files.workspace import file_checksum
from pointdistill.data.meshes.records import LeftOut
from pointdistill.data.meshes.sample import draw_up_to, read_member
from pointdistill.data.meshes.sampling import to_z_up
from pointdistill.data.sources.base import (
    ArchiveSource,
    Entry,
    SourceCloud,
    SourceInfo,
    SourceRequest,
    archive_facts,
    archive_paths,
    printable,
    source_facts,
)
from pointdistill.data.sources.members import (
    Layout,
    MemberSource,
    Named,
    decode_location,
    joint_checksum,
    open_members,
)
from pointdistill.errors import DataError

_GOOGLE_MESH = "meshes/model.obj"


@dataclass(frozen=True, slots=True)
class GoogleScannedObjectsSource:
    """One zip per shape, so that a damaged zip costs only its own shape."""

    facts: SourceFacts
    folder: Path

    def entries(self) -> Sequence[Entry]:
        """Every zip in the folder; none is opened."""
        return [Entry(id=printable(zip_.stem), where=zip_.name) for zip_ in _zips(self.folder)]

    def read(self, entry: Entry, count: int, *, rng: np.random.Generator) -> SourceCloud:
        """Points of one zip's mesh; see `pointdistill.data.sources.base.Source`."""
        path = self.folder / entry.where
        with still_there(path):
            try:
                with open_archive(path, absent=str(path), tolerate_unsafe=True) as archive:
                    member = archive.find(_GOOGLE_MESH)
                    if member is None:
                        archive.refuse(_GOOGLE_MESH, "it is not in the zip")
                    shape = read_member(archive, member)
            except DataError as error:
                raise DataError(str(error).replace(str(path), path.name)) from error
        points = draw_up_to(shape, count, up="z", rng=rng)
        return SourceCloud(points, left_out=LeftOut.of(shape, entry.id))


def open_google_scanned_objects(
    request: SourceRequest, info: SourceInfo
) -> GoogleScannedObjectsSource:
    """The source for a folder of zips; reads each once for its checksum.

    Raises:
        DataError: if the folder is absent or holds no zip.
    """
    named = archive_paths(request, info)[0]
    # A file that was named instead of found in a folder is not a folder of zips.
    folder = named.parent if request.path != named and not named.is_dir() else named
    zips = _zips(folder) if folder.is_dir() else []
    if not zips:
        msg = f"{folder}: is no folder of <name>.zip; get {info.archive} from {info.origin}"
        raise DataError(msg)
    facts = source_facts(
        info,
        archive=printable(folder.resolve().name),
        checksum=joint_checksum(zips, [file_checksum(zip_) for zip_ in zips]),
        turned="none",
        labels=(),
        settings={},
    )
    return GoogleScannedObjectsSource(facts, folder.resolve())


def _zips(folder: Path) -> list[Path]:
    return sorted(zip_ for zip_ in folder.glob("*.zip") if not zip_.name.startswith("."))


_DATASET = "data"
_MOST_ROWS = MEMBER_LIMIT_BYTES // (16_384 * 3 * 4)


class OmniObject3DSource(MemberSource):
    """Rows of HDF5 members; a worker holds one member, 20 MB for the largest."""

    _held: tuple[str, NDArray[np.floating]] | None = None

    def entries(self) -> Sequence[Entry]:
        """As many rows per member as its name says; no member is opened."""
        entries: list[Entry] = []
        for member in super().entries():
            if not member.where:
                entries.append(member)
                continue
            # A name that claims no rows or millions is refused when the first row is read.
            rows = min(max(int(member.id.rpartition("_")[2]), 1), _MOST_ROWS)
            entries += [replace(member, id=f"{member.id}/{row:05d}") for row in range(rows)]
        return entries

    def read(self, entry: Entry, count: int, *, rng: np.random.Generator) -> SourceCloud:
        """One row's points; see `pointdistill.data.sources.base.Source`."""
        if not entry.where:
            return super().read(entry, count, rng=rng)
        if self._held is None or self._held[0] != entry.where:
            self._held = None  # first, so that two are never in memory
            root, location = decode_location(entry.where)
            self._held = (
                entry.where,
                _category_clouds(read_member_at(self._roots[root], location), location.name),
            )
        clouds = self._held[1]
        row = int(entry.id.rpartition("/")[2])
        return SourceCloud(to_z_up(clouds[row].astype(np.float64), self._up))

    def __getstate__(self) -> dict[str, Any]:
        """Without the member that this process holds."""
        return super().__getstate__() | {"_held": None}


def open_omniobject3d(request: SourceRequest, info: SourceInfo) -> MemberSource:
    """The source for a zip of the 16,384-point files.

    Raises:
        DataError: if the archive is absent or damaged, or holds no such file.
    """
    layout = Layout(name=_omniobject3d_name, up="y", pattern="<category>_<n>.hdf5")
    return open_members(request, info, layout, kind=OmniObject3DSource)


def _omniobject3d_name(member: str) -> Named | None:
    path = PurePosixPath(member)
    category, _, number = path.stem.rpartition("_")
    if path.suffix.lower() not in {".hdf5", ".h5"} or not category or not number.isdigit():
        return None
    return Named(path.stem, category)


def _category_clouds(content: bytes, name: str) -> NDArray[np.floating]:
    """(n, N, 3) points of a member, y up.

    Raises:
        DataError: if it is damaged, has another layout, or does not hold as many clouds as its name says.
    """
    stated = int(PurePosixPath(name).stem.rpartition("_")[2])
    with open_hdf5(content, name, advice="fetch the archive again") as file:
        dataset = file.dataset(_DATASET, "f")
        shape = dataset.shape
        if shape[:1] != (stated,) or len(shape) != 3 or shape[2] != 3:
            msg = f"{name}: expected {_DATASET!r} of shape ({stated}, 16384, 3), got {shape}; fetch it again"
            raise DataError(msg)
        return dataset.read()


class ScanObjectNNSource(ArchiveSource):
    """Clouds of 2,048 points, by split, side and row: ``OBJ-BG/train/00000``.

    A worker holds one HDF5 member at a time: 0.3 GiB for the largest.
    """

    def __init__(self, path: Path, facts: SourceFacts, members: dict[str, str]) -> None:
        """Use `open_scanobjectnn`; ``members`` maps ``OBJ-BG/train`` and so on to the archive's names."""
        super().__init__(path, facts)
        self._members = members
        self._held: tuple[str, NDArray[np.generic]] | None = None

    def entries(self) -> Sequence[Entry]:
        """All rows of all members; reads each member completely, which also checks it."""
        entries: list[Entry] = []
        for name, member in self._members.items():
            _, labels = _read_clouds(self.archive, member)
            entries += [
                Entry(id=f"{name}/{row:05d}", label=int(label), where=member)
                for row, label in enumerate(labels)
            ]
        return entries

    def read(self, entry: Entry, count: int, *, rng: np.random.Generator) -> SourceCloud:  # noqa: ARG002
        """One row's points; see `pointdistill.data.sources.base.Source`."""
        if self._held is None or self._held[0] != entry.where:
            self._held = None  # first, so that two are never in memory
            self._held = entry.where, _read_clouds(self.archive, entry.where)[0]
        row = int(entry.id.rsplit("/", 1)[1])
        return SourceCloud(to_z_up(self._held[1][row].astype(np.float64), "y"))

    def __getstate__(self) -> dict[str, Any]:
        """Without the member that this process holds."""
        return super().__getstate__() | {"_held": None}


def open_scanobjectnn(request: SourceRequest, info: SourceInfo) -> ScanObjectNNSource:
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


def _read_clouds(archive: Archive, member: str) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
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
