"""What a benchmark is once it has been read, and the pieces that its readers share."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.files.archive import Archive
from pointdistill.data.files.hdf5 import open_hdf5
from pointdistill.data.files.schema import parse_json
from pointdistill.data.meshes.formats.content import parse_rows
from pointdistill.data.meshes.records import Axis
from pointdistill.errors import DataError, one_line

log = logging.getLogger("pointdistill")

MOST_DAMAGED = 0.01
"""Largest share of a training set that is left out because it is damaged; one shape always may be."""

_MOST_NAMED = 5

STAND_IN_MARKER = "STAND-IN.json"
"""Member of an archive that is a stand-in, with what it was made from."""

_COMMA_TO_SPACE = bytes.maketrans(b",", b" ")


@dataclass(frozen=True, slots=True)
class LabelledClouds:
    """One side (train or test) of a benchmark.

    Sizes: n clouds of N points.
    """

    points: NDArray[np.float32]
    """(n, N, 3) float32, finite, z up, in the archive's own unit and place: not yet normalised."""

    labels: NDArray[np.int64]
    """(n,) int64, indices into the benchmark's ``classes``."""

    ids: tuple[str, ...] | None = None
    """n names, the same as in a corpus made from this data; None if the data has none."""

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
    """True for data that only imitates the real archive's layout; results on it are not comparable."""


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
    """True for data that only imitates the real archive's layout; results on it are not comparable."""

    split: None = None
    """There is one only."""


@dataclass(frozen=True, slots=True)
class LabelledShapes:
    """Labelled mesh and cloud files without sides for training and testing: each is tested against the others.

    Only their names are held; a file is read when its points are needed. Sizes: n shapes.
    """

    name: str
    """The published benchmark, or ``folder`` for a user's own files."""

    split: str | None
    """Which official variant; None where there is one only."""

    classes: tuple[str, ...]
    """Class names; a label is an index into them."""

    path: Path
    """The archive or the folder."""

    members: tuple[str, ...]
    """n POSIX names inside ``path``. Of equally similar shapes, those named earlier are ranked first."""

    labels: NDArray[np.int64]
    """(n,) int64, indices into ``classes``."""

    up: Axis
    """Up axis of files that do not state their own."""

    data_name: str
    """What the data really is, for every result."""

    form: str
    """Which distributed form was read."""

    checksum: str
    """Hexadecimal SHA-256 of the archive, or of a folder's files."""

    stand_in: bool
    """True for data that only imitates the real archive's layout; results on it are not comparable."""

    remarks: tuple[str, ...] = ()
    """What a user should hear of the data: shapes that are missing or were left out."""

    def __len__(self) -> int:
        """Number of shapes."""
        return len(self.members)

    @property
    def kind(self) -> Literal["folder", "archive"]:
        """What ``path`` is."""
        return "folder" if self.path.is_dir() else "archive"


def named_data(
    name: str, *, stand_in: bool, counts: tuple[int, int], official: tuple[int, int]
) -> str:
    """The name under which results on this data are reported.

    Args:
        name: the benchmark, with its split where it has several.
        stand_in: whether the archive says that it is a stand-in.
        counts: clouds found for training and testing.
        official: clouds that the published benchmark has. Any other counts become part of the name, since a
            result on part of a benchmark is not comparable with a published one.
    """
    if stand_in:
        return f"{name} stand-in"
    if counts == official:
        return name
    return f"{name} ({counts[0]} + {counts[1]} clouds, officially {official[0]} + {official[1]})"


def is_stand_in(archive: Archive) -> bool:
    """Whether an archive contains the marker of stand-ins (see `pointdistill.data.benchmark_standins`).

    Raises:
        DataError: if the marker is not valid JSON.
    """
    marker = archive.find(STAND_IN_MARKER)
    if marker is None:
        return False
    try:
        parse_json(archive.read(marker))
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


def leave_out(source: Path, damaged: Mapping[str, str], *, of: int) -> None:
    """Name the training shapes that are left out of a benchmark because they are damaged.

    A test shape is never left out: the score would be that of another benchmark.

    Args:
        source: the archive.
        damaged: by name, what is wrong with each; empty where that is not known.
        of: training shapes in all.

    Raises:
        DataError: if they are more than one, and more than 1 % of all.
    """
    if not damaged:
        return
    most = max(1, int(MOST_DAMAGED * of))
    first, cause = next(iter(damaged.items()))
    why = f" ({cause.removeprefix(f'{source}: ')})" if cause else ""
    if len(damaged) > most or len(damaged) == of:
        msg = (
            f"{source}: {len(damaged):,} of {of:,} training shapes are damaged, such as {first}{why}; at most "
            f"{most:,} {'are' if most > 1 else 'is'} left out, so fetch the archive again"
        )
        raise DataError(msg)
    others = list(damaged)[1:_MOST_NAMED]
    more = len(damaged) - 1 - len(others)
    named = ", ".join([f"{first}{why}", *others]) + (f" and {more:,} more" if more else "")
    log.warning(
        "%s",
        one_line(
            f"{source}: left out {len(damaged):,} of {of:,} training shapes as damaged: {named}"
        ),
    )


def read_labelled_hdf5(
    archive: Archive, member: str, *, name: str, classes: tuple[str, ...], training: bool = False
) -> LabelledClouds:
    """One member with y up, turned to z up: new (x, y, z) = old (z, x, y), a rotation.

    The member's bytes and its points are in memory together: 0.7 GiB for ScanObjectNN's PB-T50-RS.

    Args:
        archive: the archive that holds the member.
        member: its name.
        name: the benchmark, for messages.
        classes: what the labels are indices into.
        training: whether clouds that are not finite may be left out, see `leave_out`.

    Raises:
        DataError: if the member is damaged, or its clouds or labels are not what they should be.
    """
    stored, labels = read_points_and_labels(archive, member)
    # What float32 cannot hold becomes infinite, and is then refused with its number.
    with np.errstate(over="ignore", invalid="ignore"):
        points = stored.astype(np.float32, copy=False)
        whole = labels.astype(np.int64)
    source = f"{archive.path}: {member}"
    if training and points.ndim == 3 and len(labels) == len(points):
        finite = np.isfinite(points).all(axis=(1, 2))
        damaged = {f"cloud {row} of {member}": "" for row in np.flatnonzero(~finite)}
        leave_out(archive.path, damaged, of=len(points))
        points, labels, whole = points[finite], labels[finite], whole[finite]
    check_clouds(points, source)
    if len(labels) != len(points):
        msg = f"{source}: {len(points)} clouds but {len(labels)} labels; fetch the archive again"
        raise DataError(msg)
    if (whole != labels).any() or whole.min() < 0 or whole.max() >= len(classes):
        msg = (
            f"{source}: labels from {labels.min()} to {labels.max()}; "
            f"{name}'s are whole numbers from 0 to {len(classes) - 1}"
        )
        raise DataError(msg)
    return LabelledClouds(points=np.ascontiguousarray(points[..., [2, 0, 1]]), labels=whole)


def read_points_and_labels(
    archive: Archive, member: str
) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """The datasets ``data``, of any shape, and ``label``, laid flat, of an HDF5 member of ``archive``.

    Raises:
        DataError: if the member is damaged, or one of them is no numbers that lie in the member itself.
    """
    place = f"{archive.path}: {member}"
    with open_hdf5(archive.read(member), place, advice="fetch the archive again") as file:
        return file.dataset("data").read(), file.dataset("label").read().reshape(-1)


def read_rows(archive: Archive, member: str, columns: tuple[str, ...]) -> NDArray[np.float64]:
    """The table in a text member, (rows, columns) float64; white space or commas between numbers.

    Args:
        archive: the archive that holds the member.
        member: its name.
        columns: names of the columns, for messages; every row must have one number for each.

    Raises:
        DataError: if there are no rows, a row has another length, or an entry is not a finite number.
    """
    text = archive.read(member).translate(_COMMA_TO_SPACE)
    lines = [line for line in map(bytes.strip, text.splitlines()) if line]
    if not lines:
        archive.refuse(member, f"it has no rows of {' '.join(columns)}")
    try:
        values, counts = parse_rows(lines, np.float64)
    except DataError as error:
        archive.refuse(member, error)
    if (counts != len(columns)).any():
        row = int(np.argmax(counts != len(columns)))
        archive.refuse(member, f"row {row + 1} has {counts[row]} numbers, not {' '.join(columns)}")
    if not np.isfinite(values).all():
        archive.refuse(member, "it has numbers that are not finite")
    table: NDArray[np.float64] = values.reshape(-1, len(columns))
    return table
