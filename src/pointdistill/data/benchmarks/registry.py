"""The list of benchmarks, and where their data lies. To add one, write a module with a ``SPEC`` and add a row.

A benchmark's module is imported only when it is asked for by name, so that the command line can list the names
without delay.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from pointdistill.data.benchmarks.spec import BenchmarkPaths, BenchmarkSpec
from pointdistill.data.files.archive import zip_damage
from pointdistill.data.files.download import fetch
from pointdistill.data.files.packed_tars import tar_names
from pointdistill.data.files.workspace import last_corpus, last_stand_in, remember_stand_in
from pointdistill.errors import ConfigError, DataError
from pointdistill.reporter import SILENT, Reporter

Task = Literal["classification", "folds", "parts", "draws", "retrieval"]
"""``folds``: classification in which every run has its own training and test shapes. ``draws``: the archive names
shapes of a corpus, and a random draw of them is trained on. ``retrieval``: every shape is tested against all
others."""

_HERE = "pointdistill.data.benchmarks"


class BenchmarkRow(NamedTuple):
    """A benchmark in the list."""

    module: str
    """The module that defines its ``SPEC``."""

    task: Task


BENCHMARKS = {
    "scanobjectnn": BenchmarkRow(f"{_HERE}.scanobjectnn", "classification"),
    "modelnet40": BenchmarkRow(f"{_HERE}.modelnet40", "classification"),
    "fewshot": BenchmarkRow(f"{_HERE}.modelnet_fewshot", "folds"),
    "shapenetpart": BenchmarkRow(f"{_HERE}.shapenetpart", "parts"),
    "lvis": BenchmarkRow(f"{_HERE}.lvis", "draws"),
    "psb": BenchmarkRow(f"{_HERE}.psb", "retrieval"),
}
"""By the name that a user types, in the order in which they are run and listed."""


def trainable_benchmarks() -> tuple[str, ...]:
    """Names of the benchmarks that a classifier or segmenter can be fine-tuned on."""
    return tuple(
        name for name, row in BENCHMARKS.items() if row.task in ("classification", "parts")
    )


def benchmark_spec(name: str) -> BenchmarkSpec:
    """A benchmark by the name that a user types.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in BENCHMARKS:
        msg = f"unknown benchmark {name!r}; choose one of {', '.join(BENCHMARKS)}"
        raise ConfigError(msg)
    spec = importlib.import_module(BENCHMARKS[name].module).SPEC
    assert isinstance(spec, BenchmarkSpec)
    return spec


def benchmark_specs() -> Iterator[BenchmarkSpec]:
    """Every benchmark, in the order of the list."""
    return map(benchmark_spec, BENCHMARKS)


def spec_titled(title: str) -> BenchmarkSpec | None:
    """A benchmark by its name in results, such as ``ScanObjectNN``; None if the list has none of that name."""
    return next((spec for spec in benchmark_specs() if spec.title == title), None)


def choose_splits(name: str, wanted: tuple[str, ...]) -> tuple[str | None, ...]:
    """The splits ``wanted`` of a benchmark in the official order; if none is named, its default ones.

    Raises:
        ConfigError: for a benchmark or split that does not exist.
    """
    spec = benchmark_spec(name)
    known = spec.splits
    unknown = [split for split in wanted if split not in known]
    if unknown:
        names = [split for split in known if split is not None]
        accepted = f"choose from {', '.join(names)}" if names else "it has one only; leave it out"
        msg = f"{name} has no split {unknown[0]!r}; {accepted}"
        raise ConfigError(msg, settings=("split",))
    chosen = wanted or spec.default_splits
    return tuple(split for split in known if not chosen or split in chosen)


def check_data_choice(*, stand_in: bool, data: Path | None, corpus: Path | None = None) -> None:
    """Raise if both a stand-in and the user's own data were requested.

    Raises:
        ConfigError: naming both.
    """
    given = data or corpus
    if stand_in and given is not None:
        msg = f"a stand-in has data of its own, and {given} was given too; choose one of them"
        raise ConfigError(msg, settings=("stand_in", "data" if data is not None else "corpus"))


def find_archive(name: str, *, data: Path | None, folder: Path) -> Path:
    """A benchmark's archive, or where it should be: in ``data`` or, by default, in ``data/`` of ``folder``."""
    names = [name for archive in benchmark_spec(name).archives for name in tar_names(archive)]
    candidates = [(data or folder / "data") / name for name in names]
    return next((path for path in candidates if path.exists()), candidates[0])


def find_benchmark(
    name: str,
    *,
    data: Path | None = None,
    corpus: Path | None = None,
    within: bool = False,
    folder: Path = Path(),
) -> BenchmarkPaths:
    """The archive of a benchmark, and the corpus that it needs.

    Args:
        name: a key of ``BENCHMARKS``.
        data: the archive, or with ``within`` the folder that holds it; ``data/`` of ``folder`` by default.
        corpus: for a benchmark that needs one; by default the last one made in ``folder``.
        within: whether ``data`` is a folder of archives.
        folder: where defaults are looked for.

    Raises:
        DataError: if something is absent; says where to get it and where to put it.
    """
    spec = benchmark_spec(name)
    named = data is not None and not within
    archive = data if data and named else find_archive(name, data=data, folder=folder)
    paths = BenchmarkPaths(
        archive, corpus or last_corpus(folder=folder) if spec.needs_corpus else None
    )
    if spec.needs_corpus and paths.corpus is None:
        msg = (
            f"{name} names shapes of a corpus, and none was made in this folder; prepare one of Objaverse, "
            "name another, or run on the stand-in instead"
        )
        raise DataError(msg, settings=("corpus", "stand_in"))
    if not archive.exists():
        try:
            spec.read(paths, spec.splits[0])  # raises: every reader says where to get its archive
            reason = f"{archive}: no such archive"
        except DataError as error:
            reason = str(error)
        raise DataError(reason, settings=("stand_in",))
    return paths


def fetch_benchmark(
    name: str, *, data: Path | None = None, folder: Path = Path(), reporter: Reporter = SILENT
) -> Path:
    """Download a benchmark's archive from its authors' site, unless it is there; an interrupted call is resumed.

    Args:
        name: a benchmark whose archive needs no login.
        data: the folder that the archive goes to; ``data/`` of ``folder`` by default.
        folder: where the default is.
        reporter: hears the terms of use before the first byte, progress, and the checksum of what came.

    Raises:
        ConfigError: for a benchmark whose archive cannot be downloaded.
        DataError: if the download fails, or what came is no whole zip.
    """
    spec = benchmark_spec(name)
    if not spec.address:
        msg = f"the archive of {name} cannot be downloaded by a program; `evaluate {name}` says where to get it"
        raise ConfigError(msg)
    path = (data or folder / "data") / spec.archives[0]
    if path.exists():
        reporter.say(f"{path} is there already")
        return path
    reporter.say(f"about to download {spec.title} from {spec.address}; {spec.terms}")
    show_bytes = partial(reporter.progress, path.name, unit="bytes")
    file = fetch(spec.address, path, check=zip_damage, progress=show_bytes)
    checked = (
        "as promised" if file.checked else "its site promises no checksum; every member is whole"
    )
    reporter.say(f"{path}: {file.bytes:,} bytes, SHA-256 {file.sha256} ({checked})")
    return path


def find_stand_in(name: str, *, folder: Path, reporter: Reporter = SILENT) -> BenchmarkPaths:
    """The stand-in of a benchmark in ``folder``, made if it is not there."""
    spec = benchmark_spec(name)
    archive = last_stand_in(name, folder=folder)
    if archive is None:
        archive = folder / "data" / "stand-in" / (spec.stand_in or spec.archives[0])
        if not archive.exists():
            reporter.say(f"making the stand-in for {name}, once, of up to 0.9 GB: {archive}")
            spec.make_stand_in(archive, partial(reporter.progress, "making the stand-in"))
        remember_stand_in(name, archive, folder=folder)
    if not spec.needs_corpus:
        return BenchmarkPaths(archive)
    return BenchmarkPaths(archive / spec.archives[0], archive / spec.stand_in_corpus)
