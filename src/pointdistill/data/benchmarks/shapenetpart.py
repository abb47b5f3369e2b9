"""ShapeNetPart: 16 categories of shapes with a part label for every point (Yi et al., SIGGRAPH Asia 2016).

Layout of ``shapenetcore_partanno_segmentation_benchmark_v0_normal`` (a tar or zip file): ``<synset>/<id>.txt``,
rows x y z nx ny nz part, y up, and ``train_test_split/shuffled_{train,val,test}_file_list.json``. Turned to z
up here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import h5py
import numpy as np
from numpy.typing import NDArray

from pointdistill.data.benchmarks.records import (
    PartBenchmark,
    PartClouds,
    is_stand_in,
    leave_out,
    named_data,
    read_rows,
)
from pointdistill.data.benchmarks.registry import (
    PARTS,
    SMALL,
    BenchmarkInput,
    BenchmarkPaths,
    BenchmarkSpec,
    PublishedFigure,
)
from pointdistill.data.files.archive import Archive, open_archive
from pointdistill.data.files.files import write_aside
from pointdistill.data.files.hdf5 import open_hdf5
from pointdistill.data.files.processes import ordered_map
from pointdistill.data.files.schema import parse_json
from pointdistill.errors import DataError

NAME = "ShapeNetPart"
ARCHIVE_STEM = "shapenetcore_partanno_segmentation_benchmark_v0_normal"
SPLITS = ("train", "val", "test")
OFFICIAL = (14007, 2874)
"""Clouds for training (12,137, plus 1,870 of the validation split) and for testing."""

SYNSETS = {
    "02691156": "airplane",
    "02773838": "bag",
    "02954340": "cap",
    "02958343": "car",
    "03001627": "chair",
    "03261776": "earphone",
    "03467517": "guitar",
    "03624134": "knife",
    "03636649": "lamp",
    "03642806": "laptop",
    "03790512": "motorbike",
    "03797390": "mug",
    "03948459": "pistol",
    "04099429": "rocket",
    "04225987": "skateboard",
    "04379243": "table",
}
"""Folder of each category and its name, in synset order, which is the order of the categories' numbers."""

CATEGORIES = tuple(SYNSETS.values())

_PARTS_EACH = (4, 2, 2, 4, 4, 3, 3, 2, 4, 2, 6, 2, 3, 3, 3, 3)

CATEGORY_PARTS: tuple[tuple[int, ...], ...] = tuple(
    tuple(range(sum(_PARTS_EACH[:number]), sum(_PARTS_EACH[: number + 1])))
    for number in range(len(_PARTS_EACH))
)
"""The 50 part labels by category: consecutive numbers, category after category."""

PART_COUNT = sum(_PARTS_EACH)
"""Part labels in all: 50."""

_COLUMNS = ("x", "y", "z", "nx", "ny", "nz", "part")
_BATCH = 256  # clouds per task, many because every task lists the tar file anew
_CACHE_VERSION = 1  # raised when the same archive would give other values

Cloud = tuple[NDArray[np.float32], NDArray[np.uint8]]
"""Points (n, 3) and parts (n,)."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """One listed shape."""

    member: str
    id: str  # <synset>/<id>
    split: str

    @property
    def category(self) -> int:
        """Number of its category."""
        return list(SYNSETS).index(self.id.split("/")[0])


@dataclass(frozen=True, slots=True)
class _Task:
    """A batch of shapes to read."""

    path: Path
    shapes: tuple[_Shape, ...]


def read_shapenetpart(
    path: Path,
    *,
    cache: Path | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PartBenchmark:
    """Read ShapeNetPart, or its stand-in, in place; ``train`` is the official train and val together.

    Reading 16,881 text files takes a minute on two cores, so their content is cached on disk (0.6 GB), under a
    name made from the archive's checksum. All of it is in memory afterwards.

    Args:
        path: the tar or zip file of the form with normals, or the folder extracted from it.
        cache: folder of the cache; by default the archive's.
        workers: processes; 1 works in this one, None takes every usable core.
        progress: called with clouds (done, total) while they are read.

    Returns:
        The benchmark with clouds of any number of points, turned to z up: new (x, y, z) = old (z, x, y), a
        rotation; in the order of their ids.

    Raises:
        DataError: if the archive is absent, of another form, or lacks a shape that its lists name, a test shape is
            damaged, or more than 1 % of the training shapes are; fewer are left out and named.
    """
    with open_archive(path, absent=_absent(path)) as archive:
        shapes = _shapes(archive)
        stand_in = is_stand_in(archive)
        checksum = archive.checksum(
            [*(shape.member for shape in shapes), *(_list_member(archive, s) for s in SPLITS)]
        )
    cache_file = (cache or path.parent) / f"shapenetpart-{checksum[:16]}.h5"
    clouds = _read_cache(cache_file, len(shapes))
    if clouds is None:
        clouds, causes = _read_all(path, shapes, workers=workers, progress=progress)
        _leave_out(path, shapes, clouds, causes)
        # Failing to write the cache costs only the time of the next call.
        with contextlib.suppress(OSError):
            _write_cache(cache_file, clouds)
    else:
        _leave_out(path, shapes, clouds, {})
    train = _side(shapes, clouds, ("train", "val"))
    test = _side(shapes, clouds, ("test",))
    counts = (len(train), len(test))
    return PartBenchmark(
        name=NAME,
        categories=CATEGORIES,
        category_parts=CATEGORY_PARTS,
        train=train,
        test=test,
        data_name=named_data(NAME, stand_in=stand_in, counts=counts, official=OFFICIAL),
        form=f"{ARCHIVE_STEM}, trained on train and val",
        checksum=checksum,
        stand_in=stand_in,
    )


def _absent(path: Path) -> str:
    return (
        f"{path}: no such archive. {ARCHIVE_STEM}.zip (or .tar) is at https://shapenet.org for those who "
        f"registered; save it as {path}, or use "
        "the stand-in instead"
    )


def _list_name(split: str) -> str:
    return f"train_test_split/shuffled_{split}_file_list.json"


def _list_member(archive: Archive, split: str) -> str:
    member = archive.find(_list_name(split))
    if member is None:
        msg = (
            f"{archive.path}: has no {_list_name(split)}; other forms of {NAME} are not read, get "
            f"{ARCHIVE_STEM}.zip from https://shapenet.org"
        )
        raise DataError(msg)
    return member


def _shapes(archive: Archive) -> list[_Shape]:
    """Every shape that the archive's lists name, in the order of their ids."""
    members = _members(archive)
    split_of: dict[str, str] = {}
    for split in SPLITS:
        for entry in _listed(archive, split):
            if split_of.setdefault(entry, split) != split:
                both = f"{split_of[entry]} and {split}"
                msg = f"{archive.path}: {entry} is in the lists of {both}; fetch the archive again"
                raise DataError(msg)
    missing = sorted(split_of.keys() - members.keys())
    if missing:
        msg = (
            f"{archive.path}: lacks {len(missing)} of the {len(split_of)} shapes that its lists name, such as "
            f"{missing[0]}.txt; fetch the archive again"
        )
        raise DataError(msg)
    return [_Shape(members[entry], entry, split_of[entry]) for entry in sorted(split_of)]


def _members(archive: Archive) -> dict[str, str]:
    """Members that hold a shape, by ``<synset>/<id>``."""
    found: dict[str, str] = {}
    for member in archive.names:
        path = PurePosixPath(member)
        if path.suffix == ".txt" and len(path.parts) >= 2 and path.parts[-2] in SYNSETS:
            name = f"{path.parts[-2]}/{path.stem}"
            if found.setdefault(name, member) != member:
                msg = f"{archive.path}: holds {name} twice ({found[name]}, {member}); keep one of them"
                raise DataError(msg)
    return found


def _listed(archive: Archive, split: str) -> list[str]:
    """``<synset>/<id>`` of every entry ``shape_data/<synset>/<id>`` of one list."""
    member = _list_member(archive, split)
    try:
        entries = parse_json(archive.read(member))
    except ValueError as error:
        archive.refuse(member, error)
    if not isinstance(entries, list) or (not entries and split != "val"):
        archive.refuse(member, "not a list of shapes")
    found = []
    for entry in entries:
        parts = str(entry).split("/")
        if len(parts) < 2 or parts[-2] not in SYNSETS:
            archive.refuse(member, f"{str(entry)[:80]!r} is not shape_data/<synset>/<id>")
        found.append("/".join(parts[-2:]))
    return found


def _read_all(
    path: Path,
    shapes: Sequence[_Shape],
    *,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Cloud], dict[str, str]]:
    """Every shape's points and parts, in the shapes' order; by id, why one for training has none."""
    tasks = [
        _Task(path, tuple(shapes[start : start + _BATCH]))
        for start in range(0, len(shapes), _BATCH)
    ]
    clouds: list[Cloud] = []
    causes: dict[str, str] = {}
    for some, damaged in ordered_map(_read_some, tasks, workers=workers):
        clouds += some
        causes |= damaged
        if progress:
            progress(len(clouds), len(shapes))
    return clouds, causes


def _read_some(task: _Task) -> tuple[list[Cloud], dict[str, str]]:
    """The clouds of a task; those of damaged training shapes are empty, with causes by id."""
    clouds, causes = [], {}
    with open_archive(task.path, absent=_absent(task.path)) as archive:
        for shape in task.shapes:
            try:
                clouds.append(_read_cloud(archive, shape))
            except DataError as error:
                if shape.split == "test":
                    raise
                causes[shape.id] = str(error)
                clouds.append((np.empty((0, 3), np.float32), np.empty(0, np.uint8)))
    return clouds, causes


def _leave_out(
    path: Path, shapes: Sequence[_Shape], clouds: Sequence[Cloud], causes: Mapping[str, str]
) -> None:
    """Name the training shapes whose clouds are empty because they are damaged.

    Raises:
        DataError: if they are too many, see `leave_out`, or a test shape is empty.
    """
    empty = [shape for shape, (points, _) in zip(shapes, clouds, strict=True) if not len(points)]
    for shape in empty:
        if shape.split == "test":
            msg = f"{path}: {shape.id} has no points in the cache; remove the cache beside the archive"
            raise DataError(msg)
    training = sum(shape.split != "test" for shape in shapes)
    leave_out(path, {shape.id: causes.get(shape.id, "") for shape in empty}, of=training)


def _read_cloud(archive: Archive, shape: _Shape) -> Cloud:
    """One text file, turned to z up."""
    table = read_rows(archive, shape.member, _COLUMNS)
    with np.errstate(over="ignore"):
        points = table[:, [2, 0, 1]].astype(np.float32)
    if not np.isfinite(points).all():
        archive.refuse(shape.member, "it has points beyond what float32 holds")
    own = CATEGORY_PARTS[shape.category]
    if not np.isin(table[:, -1], own).all():
        foreign = table[~np.isin(table[:, -1], own), -1][0]
        name = CATEGORIES[shape.category]
        archive.refuse(shape.member, f"part {foreign:g} is none of {name}'s, {own[0]} to {own[-1]}")
    return points, table[:, -1].astype(np.uint8)


def _side(shapes: Sequence[_Shape], clouds: Sequence[Cloud], splits: Sequence[str]) -> PartClouds:
    chosen = [i for i, s in enumerate(shapes) if s.split in splits and len(clouds[i][0])]
    return PartClouds(
        points=tuple(clouds[i][0] for i in chosen),
        parts=tuple(clouds[i][1] for i in chosen),
        categories=np.array([shapes[i].category for i in chosen], dtype=np.int64),
        ids=tuple(shapes[i].id for i in chosen),
    )


def _write_cache(path: Path, clouds: Sequence[Cloud]) -> None:
    with write_aside(path) as aside, h5py.File(aside, "w", locking=False) as file:
        file.attrs["version"] = _CACHE_VERSION
        counts = np.array([len(parts) for _, parts in clouds], dtype=np.int64)
        file["counts"] = counts
        points = file.create_dataset("points", (int(counts.sum()), 3), np.float32)
        parts = file.create_dataset("parts", (int(counts.sum()),), np.uint8)
        for (cloud, part), end in zip(clouds, np.cumsum(counts), strict=True):
            points[end - len(part) : end] = cloud
            parts[end - len(part) : end] = part


def _read_cache(path: Path, shapes: int) -> list[Cloud] | None:
    """What an earlier call cached; None if there is nothing, or it does not fit."""
    try:
        with open_hdf5(path, path) as file:
            if file.attribute("version") != _CACHE_VERSION:
                return None
            counts = file.dataset("counts", "i").read()
            points, parts = file.dataset("points", "f").read(), file.dataset("parts", "u").read()
    except DataError:
        return None
    total = int(counts.sum())
    if (
        counts.shape != (shapes,)
        or counts.min(initial=0) < 0
        or points.shape != (total, 3)
        or parts.shape != (total,)
    ):
        return None
    ends = np.cumsum(counts)[:-1]
    return list(zip(np.split(points, ends), np.split(parts, ends), strict=True))


def _read(
    paths: BenchmarkPaths,
    split: str | None,  # noqa: ARG001
    *,
    fold: int = 0,  # noqa: ARG001
    progress: Callable[[int, int], None] | None = None,
) -> PartBenchmark:
    return read_shapenetpart(paths.archive, progress=progress)


SPEC = BenchmarkSpec(
    title=NAME,
    archives=(f"{ARCHIVE_STEM}.zip", f"{ARCHIVE_STEM}.tar"),
    licence="ShapeNet's terms: non-commercial research and education",
    read=_read,
    stand_in_maker="pointdistill.data.benchmark_standins.shapenetpart:make_shapenetpart_stand_in",
    input=BenchmarkInput(
        points=2048, patches=128, subsampling="uniform", rotate_z=False, scale=(0.8, 1.25)
    ),
    protocols=(PARTS,),
    default_protocols=(PARTS,),
    voting=False,
    published={(None, PARTS, SMALL): PublishedFigure(SMALL, 86.0, None, (84.4,))},
)
