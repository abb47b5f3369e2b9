"""A user's own folder of meshes and point clouds, as a source and as labelled shapes.

The first level of sub-folders gives the labels. As labelled shapes the folder has one sub-folder a class, whole or
split into training and test.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.benchmarks.records import Benchmark, LabelledClouds, LabelledShapes
from pointdistill.data.benchmarks.registry import (
    CROSS_VALIDATED,
    RETRIEVAL,
    BenchmarkInput,
    BenchmarkPaths,
    BenchmarkSpec,
)
from pointdistill.data.corpus.manifest import SourceFacts
from pointdistill.data.corpus.shard import UNKNOWN_LABEL
from pointdistill.data.files.archive import still_there, walk
from pointdistill.data.files.files import sha256_of
from pointdistill.data.files.processes import ordered_map
from pointdistill.data.meshes.formats.points import is_prose
from pointdistill.data.meshes.read import FORMATS, UNREAD_SUFFIXES, no_shape_in, not_shapes
from pointdistill.data.meshes.records import Axis, LeftOut
from pointdistill.data.meshes.sample import draw_up_to, read_named
from pointdistill.data.meshes.sampling import check_axis
from pointdistill.data.sources import Source, open_source, source_shape_rng
from pointdistill.data.sources.base import (
    Entry,
    SourceCloud,
    SourceInfo,
    SourceRequest,
    printable,
    required_path,
)
from pointdistill.errors import ConfigError, DataError

ASSUMED_UP: Axis = "z"

# Part of the checksum besides the shapes: a glTF keeps its vertices in such a file.
_COMPANIONS = frozenset({".bin"})


@dataclass(frozen=True)
class FolderSource:
    """Every mesh and cloud below a folder; a shape's id is its path relative to the folder."""

    facts: SourceFacts
    path: Path
    up: Axis
    """Up axis of files that do not state their own."""

    listing: str = field(default="", repr=False)
    """What ``sha256sum`` prints of its files, sorted by name."""

    prose: frozenset[str] = frozenset()
    """Text files without points, which are no shapes."""

    remarks: tuple[str, ...] = ()
    """What of the folder is no shape, or of a format that is not read, in lines."""

    def __getstate__(self) -> dict[str, Any]:
        """Without the list, which a worker does not need and which may be long."""
        return self.__dict__ | {"listing": ""}

    def entries(self) -> Sequence[Entry]:
        """Every file of a known format."""
        number = {label: k for k, label in enumerate(self.facts.labels)}
        return [
            Entry(
                id=printable(name),
                label=number[label] if (label := _label(name)) else UNKNOWN_LABEL,
                where="" if _is_broken_link(self.path / name) else name,
            )
            for name in _files(self.path, FORMATS)
            if name not in self.prose
        ]

    def read(self, entry: Entry, count: int, *, rng: np.random.Generator) -> SourceCloud:
        """Points of one file; see `pointdistill.data.sources.base.Source`."""
        if not entry.where:
            msg = f"{entry.id}: is a broken link; put the file there that it stands for"
            raise DataError(msg)
        path = self.path / entry.where
        with still_there(path):
            shape = read_named(path, entry.id)
        points = draw_up_to(shape, count, up=shape.declared_up or self.up, rng=rng)
        return SourceCloud(points, left_out=LeftOut.of(shape, entry.id))


def open_folder(request: SourceRequest, info: SourceInfo) -> FolderSource:
    """The source for a folder; reads every file once for its checksum. Text files without points are left out.

    Raises:
        ConfigError: if ``up`` is no axis.
        DataError: if there is no such folder, or nothing in it has a known format.
    """
    path = required_path(request, info)
    if not path.is_dir():
        msg = f"{path}: is a file; give the folder that holds it"
        raise DataError(msg)
    up = check_axis(request.up or ASSUMED_UP)
    everything = list(_files(path, {*FORMATS, *UNREAD_SUFFIXES}))
    prose = [name for name in everything if is_prose(path / name)]
    names = [name for name in everything if Path(name).suffix.lower() in FORMATS]
    names = [name for name in names if name not in set(prose)]
    if not names:
        raise DataError(no_shape_in(path, everything))
    listing = _listing(path)
    facts = SourceFacts(
        name=info.name,
        licence=info.licence,
        origin=info.origin,
        turned=f"from the up axis that a file states, else from {up}",
        labels=tuple(sorted({label for name in names if (label := _label(name))})),
        archive=printable(path.resolve().name),
        archive_sha256=hashlib.sha256(listing.encode()).hexdigest(),
        settings={"up": up},
    )
    remarks = tuple(not_shapes([printable(name) for name in prose], everything))
    return FolderSource(facts, path.resolve(), up, listing, frozenset(prose), remarks)


def _files(path: Path, endings: Collection[str]) -> Iterator[str]:
    """POSIX paths of the files below ``path`` and its linked folders with one of ``endings``; no hidden ones."""
    for folder, subfolders, files in walk(path):
        subfolders[:] = [s for s in subfolders if not s.startswith(".") and s != "__MACOSX"]
        for file in files:
            if not file.startswith(".") and Path(file).suffix.lower() in endings:
                yield Path(folder, file).relative_to(path).as_posix()


def _is_broken_link(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _label(name: str) -> str | None:
    """The first sub-folder of a file's path; None for a file that is not in a sub-folder."""
    parts = PurePosixPath(name).parts
    return printable(parts[0]) if len(parts) > 1 else None


def _listing(path: Path) -> str:
    """The list that ``sha256sum`` would print, sorted by name."""
    # Only regular files: pipes and devices have no end. They are refused later, like broken links.
    files = (name for name in _files(path, {*FORMATS, *_COMPANIONS}) if (path / name).is_file())
    names = sorted((printable(name), name) for name in files)
    return "".join(f"{sha256_of(path / name)}  {printed}\n" for printed, name in names)


NAME = "folder"
_BATCH = 8  # files a task


@dataclass(frozen=True, slots=True)
class LabelledFolder:
    """What was read of a folder."""

    benchmark: Benchmark
    refused: tuple[str, ...]
    """One line for each file that could not be used, and was left out."""

    unlabelled: int
    """Files that lie in no sub-folder, and were left out."""

    left_out: LeftOut = field(default_factory=LeftOut)
    """What the files hold besides their shapes."""

    remarks: tuple[str, ...] = ()
    """What of the folder is no shape, or of a format that is not read, in lines."""


@dataclass(frozen=True, slots=True)
class _Task:
    """A few files to read."""

    source: Source
    entries: tuple[Entry, ...]
    points: int
    seed: int


def read_labelled_folder(
    path: Path,
    *,
    points: int,
    seed: int,
    held_out: float = 0.2,
    up: str | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LabelledFolder:
    """Read every mesh and cloud below ``path``; its first level of sub-folders are the classes.

    A file's points and its side depend on the seed and its path in the folder alone.

    Args:
        path: the folder.
        points: points per shape. A mesh is sampled; a larger cloud is subsampled, a smaller one repeated.
        seed: of the points and of the split.
        held_out: share of every class kept for testing, in (0, 1); at least one shape, and not all.
        up: up axis of files that do not state their own; z unless given.
        workers: number of processes; 1 does the work in this process, None uses every usable core.
        progress: called with files (done, total) while they are read.

    Raises:
        ConfigError: if an argument is not accepted.
        DataError: if there is no such folder, or fewer than two classes of two usable files each in it.
    """
    if not 0.0 < held_out < 1.0:
        msg = f"the share held out for testing must lie between 0 and 1, got {held_out}"
        raise ConfigError(msg)
    source = _open(path, up)
    entries = sorted(source.entries(), key=lambda entry: entry.id)
    labelled = [entry for entry in entries if entry.label >= 0]
    usable, clouds, refused, left_out = _read(source, labelled, points, seed, workers, progress)
    classes = _classes(path, source, usable)
    test = _held_out(usable, seed, held_out)
    labels = np.array([entry.label for entry in usable], dtype=np.int64)
    benchmark = Benchmark(
        name=NAME,
        split=None,
        classes=classes,
        train=LabelledClouds(clouds[~test], labels[~test]),
        test=LabelledClouds(clouds[test], labels[test]),
        data_name=f"your own folder {source.facts.archive}",
        form=f"mesh and point files, {points:,} points each, {held_out:.0%} held out by seed {seed}",
        checksum=source.facts.archive_sha256 or "",
        stand_in=False,
    )
    unlabelled = len(entries) - len(labelled)
    return LabelledFolder(benchmark, tuple(refused), unlabelled, left_out, source.remarks)


def files_trained_on(
    path: Path,
    *,
    seed: int,
    held_out: float,
    checksum: str,
    shapes: int,
    unusable: Collection[str] = (),
) -> frozenset[str] | None:
    """The files of a labelled folder that `read_labelled_folder` gives for training; reads each file's bytes once.

    Args:
        path: the folder.
        seed: of the split.
        held_out: share of every class kept for testing.
        checksum: of the data of that training.
        shapes: training and test shapes of it together.
        unusable: real paths of files that cannot be used, which were no part of it.

    Returns:
        Their real paths; None if the folder is another one, or has changed since.
    """
    source = _open(path, None)
    places = {entry.id: os.path.realpath(path / entry.where) for entry in source.entries()}
    usable = [
        entry
        for entry in sorted(source.entries(), key=lambda entry: entry.id)
        if entry.label >= 0 and places[entry.id] not in unusable
    ]
    if source.facts.archive_sha256 != checksum or len(usable) != shapes:
        return None
    test = _held_out(usable, seed, held_out)
    return frozenset(
        places[entry.id] for entry, is_test in zip(usable, test, strict=True) if not is_test
    )


def list_labelled_folder(path: Path, *, up: str | None = None) -> LabelledShapes:
    """List every mesh and cloud below ``path`` by name; the first level of sub-folders are the classes.

    No shape is read, but each file once for the checksum. Files outside the sub-folders are left out and counted.

    Args:
        path: the folder.
        up: up axis of files that do not state their own; z unless given.

    Raises:
        ConfigError: if ``up`` is no axis.
        DataError: if there is no such folder, or fewer than two sub-folders with files in it.
    """
    source = _open(path, up)
    entries = sorted(source.entries(), key=lambda entry: entry.id)
    labelled = [entry for entry in entries if entry.label >= 0]
    left_out = len(entries) - len(labelled)
    remark = f"files that lie in no sub-folder have no class and are left out: {left_out:,}"
    return LabelledShapes(
        name=NAME,
        split=None,
        classes=_class_names(path, source),
        path=path.resolve(),
        # A broken link has no place; its id is its path, and it is refused when it is read.
        members=tuple(entry.where or entry.id for entry in labelled),
        labels=np.array([entry.label for entry in labelled], dtype=np.int64),
        up=check_axis(up or "z"),
        data_name=f"your own folder {source.facts.archive}",
        form=f"mesh and point files, {up or 'z'} up unless they say otherwise",
        checksum=source.facts.archive_sha256 or "",
        stand_in=False,
        remarks=(*source.remarks, *((remark,) if left_out else ())),
    )


def _open(path: Path, up: str | None) -> FolderSource:
    source = open_source(NAME, SourceRequest(path=path, up=up))
    assert isinstance(source, FolderSource)
    return source


def repeated(points: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """(count, 3): a cloud with fewer points than ``count`` gives all of them, then the same again."""
    return points[np.arange(count) % len(points)]


def _read(
    source: Source,
    entries: Sequence[Entry],
    points: int,
    seed: int,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Entry], NDArray[np.float32], list[str], LeftOut]:
    """The entries that could be read, their clouds (n, points, 3), a line for each other; what was left out."""
    tasks = [
        _Task(source, tuple(entries[first : first + _BATCH]), points, seed)
        for first in range(0, len(entries), _BATCH)
    ]
    usable, clouds, refused, left_out = [], [], [], LeftOut()
    for task, outcomes in zip(
        tasks, ordered_map(_read_some, tasks, workers=_processes(workers, tasks)), strict=True
    ):
        for entry, outcome in zip(task.entries, outcomes, strict=True):
            if isinstance(outcome, str):
                refused.append(f"{entry.id}: {outcome}")
            else:
                usable.append(entry)
                clouds.append(outcome.points)
                left_out += outcome.left_out
        if progress:
            progress(len(usable) + len(refused), len(entries))
    empty = np.empty((0, points, 3), dtype=np.float32)
    return usable, np.stack(clouds) if clouds else empty, refused, left_out


def _processes(workers: int | None, tasks: Sequence[_Task]) -> int | None:
    """One process where starting others would take longer than reading the few files."""
    return 1 if workers is None and len(tasks) <= 2 else workers


def _read_some(task: _Task) -> list[SourceCloud | str]:
    """Points of each file of a task, or why it cannot be used."""
    outcomes: list[SourceCloud | str] = []
    for entry in task.entries:
        rng = source_shape_rng(seed=task.seed, source=task.source.facts.name, shape_id=entry.id)
        try:
            cloud = task.source.read(entry, task.points, rng=rng)
            points = repeated(cloud.points.astype(np.float32), task.points)
            outcomes.append(replace(cloud, points=points))
        except DataError as error:
            outcomes.append(str(error).removeprefix(f"{entry.id}: "))
    return outcomes


def _classes(path: Path, source: Source, usable: Sequence[Entry]) -> tuple[str, ...]:
    """The class names.

    Raises:
        DataError: unless there are two or more, each with two files to be told apart by.
    """
    names = _class_names(path, source)
    counts = np.bincount([entry.label for entry in usable], minlength=len(names))
    if counts.min() < 2:
        fewest = int(counts.argmin())
        msg = (
            f"{path}: a class needs at least 2 usable files, one to train and one to test, {names[fewest]!r} has "
            f"{counts[fewest]}; add some, or take the sub-folder out"
        )
        raise DataError(msg)
    return names


def _held_out(entries: Sequence[Entry], seed: int, share: float) -> NDArray[np.bool_]:
    """(n,) which shapes are for testing: in each class, those whose id and seed have the lowest hashes."""
    draws = [hashlib.sha256(f"{seed}\0{entry.id}".encode()).digest() for entry in entries]
    test = np.zeros(len(entries), dtype=bool)
    for label in {entry.label for entry in entries}:
        members = [k for k, entry in enumerate(entries) if entry.label == label]
        count = min(max(1, round(share * len(members))), len(members) - 1)
        test[sorted(members, key=lambda k: draws[k])[:count]] = True
    return test


def _class_names(path: Path, source: Source) -> tuple[str, ...]:
    """The names of the sub-folders with shapes.

    Raises:
        DataError: unless there are two or more.
    """
    names = source.facts.labels
    if len(names) < 2:
        msg = (
            f"{path}: telling classes apart needs at least 2 sub-folders with shapes, one a class, got "
            f"{len(names)}; put the files of each class into a sub-folder of its name"
        )
        raise DataError(msg)
    return names


def _read_listed(
    paths: BenchmarkPaths,
    split: str | None,  # noqa: ARG001
    *,
    fold: int = 0,  # noqa: ARG001
    progress: Callable[[int, int], None] | None = None,  # noqa: ARG001
) -> LabelledShapes:
    return list_labelled_folder(paths.archive, up=paths.up)


OWN_FOLDER = BenchmarkSpec(
    title=NAME,
    archives=(),
    licence="your own",
    read=_read_listed,
    stand_in_maker="",
    # An encoder gets as many points and patches as in its pretraining.
    input=BenchmarkInput(
        points=1024, patches=64, subsampling="uniform", rotate_z=False, scale=(1.0, 1.0)
    ),
    protocols=(*CROSS_VALIDATED, RETRIEVAL),
    default_protocols=(*CROSS_VALIDATED, RETRIEVAL),
    voting=False,
)
"""How a user's own folder is measured; no row of the list of benchmarks, since it is none."""
