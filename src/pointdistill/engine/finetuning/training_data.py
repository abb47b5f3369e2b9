"""What a model is fine-tuned on: a benchmark's archive, its stand-in, or a user's own folder, found and read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pointdistill.data.benchmarks.labelled_folder import read_labelled_folder
from pointdistill.data.benchmarks.records import Benchmark, PartBenchmark
from pointdistill.data.benchmarks.registry import (
    benchmark_spec,
    check_data_choice,
    choose_splits,
    find_archive,
    find_stand_in,
    trainable_benchmarks,
)
from pointdistill.data.benchmarks.spec import BenchmarkPaths
from pointdistill.data.sources import source_info
from pointdistill.errors import ConfigError
from pointdistill.reporter import SILENT, Reporter

FOLDER = "folder"
HELD_OUT = 0.2
"""Share of every class of a folder kept for testing, by default."""

STAND_IN_LICENCE = "CC0-1.0 (made on the spot)"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataChoice:
    """What to read, so that it can be read again."""

    benchmark: str
    """A benchmark that can be trained on, or ``folder``."""

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
            msg = (
                "your own shapes are a folder of data, with one sub-folder a class; they have neither official "
                "splits nor a stand-in"
            )
            raise ConfigError(msg, settings=("data", "split", "stand_in"))
        return
    if benchmark not in trainable_benchmarks():
        known = ", ".join(trainable_benchmarks())
        msg = f"no model is trained on {benchmark!r}; choose one of {known}, or a data folder of your own"
        raise ConfigError(msg, settings=("data",))
    if held_out is not None or up is not None:
        msg = f"{benchmark} has its own split and axes; a share held out and an up axis are for your own folder"
        raise ConfigError(msg, settings=("held_out", "up"))
    choose_splits(benchmark, (split,) if split is not None else ())
    check_data_choice(stand_in=stand_in, data=data)


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
    reporter: Reporter = SILENT,
) -> DataChoice:
    """The data that a model is trained on; a stand-in is made if it is not there.

    Args:
        benchmark: one that can be trained on, or ``folder``.
        data: the archive, or a user's own folder.
        split: ScanObjectNN's.
        stand_in: take the benchmark's stand-in instead of an archive.
        held_out: share of a folder's classes kept for testing.
        up: up axis of a folder's files.
        seed: of a folder's points and split.
        folder: where defaults are looked for.
        reporter: told how far the making of a stand-in is.

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
    if stand_in:
        path = find_stand_in(benchmark, folder=folder, reporter=reporter).archive
    else:
        path = data or find_archive(benchmark, data=None, folder=folder)
    split = split or benchmark_spec(benchmark).training_split
    return DataChoice(benchmark=benchmark, path=str(path.resolve()), split=split)


def read_data(choice: DataChoice, *, reporter: Reporter = SILENT) -> Benchmark | PartBenchmark:
    """Read it; files of a folder that cannot be used are named and left out.

    Raises:
        DataError: if it is absent or damaged; says where an archive comes from.
    """
    path = Path(choice.path)
    if choice.benchmark != FOLDER:
        found = benchmark_spec(choice.benchmark).read(
            BenchmarkPaths(path),
            choice.split,
            progress=partial(reporter.progress, "reading the shapes"),
        )
        assert isinstance(found, Benchmark | PartBenchmark)
        return found
    labelled = read_labelled_folder(
        path,
        points=choice.points,
        seed=choice.seed,
        held_out=choice.held_out,
        up=choice.up,
        progress=partial(reporter.progress, "reading your files"),
    )
    for line in labelled.refused:
        reporter.say(f"left out: {line}")
    if labelled.unlabelled:
        reporter.say(f"left out: files in no sub-folder, so of no class: {labelled.unlabelled:,}")
    return labelled.benchmark


def licence_of(choice: DataChoice, *, stand_in: bool) -> str:
    """What the licence of the training data allows, in a few words."""
    if stand_in:
        return STAND_IN_LICENCE
    if choice.benchmark == FOLDER:
        return source_info(FOLDER).licence
    return benchmark_spec(choice.benchmark).licence
