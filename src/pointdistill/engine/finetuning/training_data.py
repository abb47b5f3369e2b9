"""What a model is fine-tuned on: a benchmark's archive, its stand-in, or a user's own folder, found and read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pointdistill.data.benchmarks import (
    Benchmark,
    PartBenchmark,
    read_modelnet40,
    read_scanobjectnn,
    read_shapenetpart,
)
from pointdistill.data.benchmarks.labelled_folder import read_labelled_folder
from pointdistill.data.benchmarks.scanobjectnn import SPLITS
from pointdistill.data.benchmarks.shapenetpart import ARCHIVE_STEM
from pointdistill.data.sources import source_info
from pointdistill.data.standins import (
    make_modelnet40_stand_in,
    make_scanobjectnn_stand_in,
    make_shapenetpart_stand_in,
)
from pointdistill.data.workspace import last_stand_in, remember_stand_in
from pointdistill.errors import ConfigError

FOLDER = "folder"
HARDEST = "PB-T50-RS"
"""ScanObjectNN's split where none is named: the one that the method's ablations are on."""

HELD_OUT = 0.2
"""Share of every class of a folder kept for testing, where none is said."""

STAND_IN_LICENCE = "CC0-1.0 (made on the spot)"

Say = Callable[[str], None]
"""Told, a line at a time, what was chosen or left out."""

Count = Callable[[str, int, int], None]
"""Told what is being done, how many are done and how many there are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataChoice:
    """What to read, so that it can be read again."""

    benchmark: str
    """A key of ``KINDS``, or ``folder``."""

    path: str
    split: str | None = None
    """ScanObjectNN's."""

    held_out: float = HELD_OUT
    """Share of every class of a folder kept for testing."""

    up: str = "z"
    """Up axis of a folder's files that do not state their own."""

    points: int = 0
    """Points that each file of a folder is sampled at."""

    seed: int = 0
    """Of a folder's points and of its split."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How one benchmark is found, read, and stood in for."""

    archives: tuple[str, ...]
    """File names that the archive may have, looked for under ``data/``; a stand-in has the first."""

    licence: str
    read: Callable[[Path, str | None, Callable[[int, int], None]], Benchmark | PartBenchmark]
    make_stand_in: Callable[[Path, Callable[[int, int], None]], None]


def _read_scanobjectnn(
    path: Path, split: str | None, _count: Callable[[int, int], None]
) -> Benchmark:
    return read_scanobjectnn(path, split or HARDEST)


KINDS = {
    "scanobjectnn": Kind(
        archives=("h5_files.zip",),
        licence=source_info("scanobjectnn").licence,
        read=_read_scanobjectnn,
        make_stand_in=lambda path, count: make_scanobjectnn_stand_in(path, progress=count),
    ),
    "modelnet40": Kind(
        archives=("ModelNet40.zip",),
        licence=source_info("modelnet40").licence,
        read=lambda path, _split, count: read_modelnet40(path, progress=count),
        make_stand_in=lambda path, count: make_modelnet40_stand_in(path, progress=count),
    ),
    "shapenetpart": Kind(
        archives=(f"{ARCHIVE_STEM}.zip", f"{ARCHIVE_STEM}.tar"),
        licence="ShapeNet's terms: non-commercial research and education",
        read=lambda path, _split, count: read_shapenetpart(path, progress=count),
        make_stand_in=lambda path, count: make_shapenetpart_stand_in(path, progress=count),
    ),
}
"""By the name that a user types."""


def check_choice(
    benchmark: str,
    *,
    data: Path | None,
    split: str | None,
    stand_in: bool,
    held_out: float | None,
    up: str | None,
) -> None:
    """Raise unless these options belong together; arguments are those of ``choose_data``.

    Raises:
        ConfigError: for a benchmark or split that does not exist, or options that do not belong to it.
    """
    if benchmark == FOLDER:
        if data is None or split is not None or stand_in:
            msg = "for your own shapes give --data FOLDER, one sub-folder a class, without --split or --stand-in"
            raise ConfigError(msg)
        return
    if benchmark not in KINDS:
        msg = f"unknown benchmark {benchmark!r}; choose one of {', '.join(KINDS)}, or give --data FOLDER alone"
        raise ConfigError(msg)
    if held_out is not None or up is not None:
        msg = f"{benchmark} has its own split and axes; --held-out and --up are for a folder of your own"
        raise ConfigError(msg)
    if split is not None and (benchmark != "scanobjectnn" or split not in SPLITS):
        msg = f"{benchmark} has no split {split!r}; scanobjectnn has {', '.join(SPLITS)}"
        raise ConfigError(msg)
    if stand_in and data is not None:
        msg = f"--stand-in has an archive of its own, and --data {data} was given; give one"
        raise ConfigError(msg)


def choose_data(
    benchmark: str,
    *,
    data: Path | None,
    split: str | None,
    stand_in: bool,
    held_out: float | None,
    up: str | None,
    seed: int,
    folder: Path,
    say: Say,
    count: Count,
) -> DataChoice:
    """The data that was asked for; a stand-in is made if it is not there.

    Args:
        benchmark: a key of ``KINDS``, or ``folder``.
        data: the archive, or a user's own folder.
        split: ScanObjectNN's.
        stand_in: take the benchmark's stand-in instead of an archive.
        held_out: share of a folder's classes kept for testing.
        up: up axis of a folder's files.
        seed: of a folder's points and split.
        folder: where defaults are looked for.
        say: told what was chosen.
        count: told how far the making of a stand-in is.

    Raises:
        ConfigError: as ``check_choice``.
    """
    check_choice(benchmark, data=data, split=split, stand_in=stand_in, held_out=held_out, up=up)
    if benchmark == FOLDER:
        assert data is not None
        return DataChoice(
            benchmark=FOLDER,
            path=str(data.resolve()),
            held_out=HELD_OUT if held_out is None else held_out,
            up=up or "z",
            seed=seed,
        )
    if benchmark == "scanobjectnn":
        split = split or HARDEST
    path = data or _archive(benchmark, folder / "data")
    if stand_in:
        path = _stand_in(benchmark, folder, say, count)
    return DataChoice(benchmark=benchmark, path=str(path.resolve()), split=split)


def read_data(choice: DataChoice, *, say: Say, count: Count) -> Benchmark | PartBenchmark:
    """Read it; files of a folder that cannot be used are named and left out.

    Raises:
        DataError: if it is absent or damaged; says where an archive comes from.
    """
    path = Path(choice.path)
    if choice.benchmark != FOLDER:
        return KINDS[choice.benchmark].read(
            path, choice.split, lambda done, total: count("reading the shapes", done, total)
        )
    found = read_labelled_folder(
        path,
        points=choice.points,
        seed=choice.seed,
        held_out=choice.held_out,
        up=choice.up,
        progress=lambda done, total: count("reading your files", done, total),
    )
    for line in found.refused:
        say(f"left out: {line}")
    if found.unlabelled:
        say(f"left out: files in no sub-folder, so of no class: {found.unlabelled:,}")
    return found.benchmark


def licence_of(choice: DataChoice, *, stand_in: bool) -> str:
    """What the licence of the training data allows, in a few words."""
    if stand_in:
        return STAND_IN_LICENCE
    if choice.benchmark == FOLDER:
        return source_info(FOLDER).licence
    return KINDS[choice.benchmark].licence


def _archive(benchmark: str, folder: Path) -> Path:
    """The benchmark's archive in a folder, or where it would go."""
    candidates = [folder / name for name in KINDS[benchmark].archives]
    return next((path for path in candidates if path.exists()), candidates[0])


def _stand_in(benchmark: str, folder: Path, say: Say, count: Count) -> Path:
    """The stand-in's archive, made if it is not there."""
    known = last_stand_in(benchmark, folder=folder)
    if known is not None:
        return known
    archive = folder / "data" / "stand-in" / KINDS[benchmark].archives[0]
    if not archive.exists():
        say(f"making the stand-in for {benchmark}, once: {archive}")
        KINDS[benchmark].make_stand_in(
            archive, lambda done, total: count("making the stand-in", done, total)
        )
    remember_stand_in(benchmark, archive, folder=folder)
    return archive
