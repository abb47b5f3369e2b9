"""From what a user typed to results: an encoder and an archive on disk, measured, written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pointdistill.data.benchmarks.modelnet40 import read_modelnet40
from pointdistill.data.benchmarks.records import Benchmark
from pointdistill.data.benchmarks.scanobjectnn import SPLITS, read_scanobjectnn
from pointdistill.data.files import write_aside
from pointdistill.data.standins import make_modelnet40_stand_in, make_scanobjectnn_stand_in
from pointdistill.data.workspace import last_run, last_stand_in, remember_stand_in
from pointdistill.engine.devices import pick_device
from pointdistill.engine.evaluate import (
    COPIES_ON_CPU,
    PROTOCOLS,
    Evaluation,
    Progress,
    evaluate,
)
from pointdistill.engine.published import comparison_for
from pointdistill.engine.results import Result, results_table, write_results
from pointdistill.engine.run_folder import METRICS
from pointdistill.engine.weights import find_encoder, load_encoder
from pointdistill.errors import CheckpointError, ConfigError

RESULTS, TABLE = "results.json", "results.md"

Say = Callable[[str], None]
"""Told, a line at a time, what was chosen for the user."""


Count = Callable[[int, int], None]
"""Told how many are done and how many there are."""


@dataclass(frozen=True, slots=True)
class BenchmarkKind:
    """How one benchmark is found, read, and stood in for."""

    archive: str
    """File name of the archive, looked for under ``data/``."""

    splits: tuple[str | None, ...]
    """Its official variants, in the order of the results; None where there is one only."""

    read: Callable[[Path, str | None, Count], Benchmark]
    """Read one split of an archive; refuses an absent one by saying where it comes from."""

    make_stand_in: Callable[[Path, Count], None]
    """Write the stand-in's archive."""


def _read_scanobjectnn(path: Path, split: str | None, _count: Count) -> Benchmark:
    assert split is not None
    return read_scanobjectnn(path, split)


BENCHMARKS = {
    "scanobjectnn": BenchmarkKind(
        archive="h5_files.zip",
        splits=tuple(SPLITS),
        read=_read_scanobjectnn,
        make_stand_in=lambda path, count: make_scanobjectnn_stand_in(path, progress=count),
    ),
    "modelnet40": BenchmarkKind(
        archive="ModelNet40.zip",
        splits=(None,),
        read=lambda path, _split, count: read_modelnet40(path, progress=count),
        make_stand_in=lambda path, count: make_modelnet40_stand_in(path, progress=count),
    ),
}
"""By the name that a user types."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRequest:
    """What a user asked to have measured; everything but the benchmark may be left out."""

    benchmark: str
    encoder: Path | None = None
    """A run or an encoder folder; the last run in ``folder`` by default."""

    data: Path | None = None
    """The benchmark's archive or the folder extracted from it; ``data/<archive>`` by default."""

    stand_in: bool = False
    """Measure on the stand-in, made on first use."""

    splits: tuple[str, ...] = ()
    """All of the benchmark's by default."""

    protocols: tuple[str, ...] = PROTOCOLS
    seeds: int = 1
    """How many, from 0 on."""

    augmented_copies: int | None = None
    """For the linear probe: 0 augments anew each epoch, as published. None means 0 on a GPU and
    ``COPIES_ON_CPU`` on a CPU."""

    output: Path | None = None
    """Where results are written; in the run, or under ``evaluation/``, by default."""

    device: str = "auto"
    folder: Path = Path()
    """Where defaults are looked for."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an evaluation left behind."""

    output: Path
    results: tuple[Result, ...]


def evaluate_saved(request: EvaluationRequest, *, say: Say, progress: Progress) -> Outcome:
    """Measure a saved encoder on a benchmark's archive; results are written after every split.

    Args:
        request: what to measure.
        say: told which encoder, data and settings were chosen.
        progress: told how far each part is.

    Raises:
        ConfigError: for a benchmark, split, protocol or device that does not exist.
        DataError: if the archive is absent or damaged; says where it comes from.
        CheckpointError: if there is no encoder.
    """
    if request.stand_in and request.data is not None:
        msg = f"--stand-in has an archive of its own, and --data {request.data} was given; give one"
        raise ConfigError(msg)
    kind = _kind(request.benchmark)
    splits = _splits(request, kind)
    device = pick_device(request.device)
    evaluation = _evaluation(request, device)
    archive = request.data or request.folder / "data" / kind.archive
    if not request.stand_in and not archive.exists():
        # Before anything about the encoder: the reader refuses, and says what is to be fetched.
        kind.read(archive, splits[0], _counting("", progress))
    folder = _encoder_folder(request, say)
    if request.stand_in:
        # After the encoder was found: a stand-in takes minutes to make.
        archive = _stand_in(request, kind, say, progress)
    name, output = f"encoder of {_run_of(folder)}", request.output or _output(request, folder)
    say(f"device: {device}")
    if "linear" in evaluation.protocols:
        say(f"linear probe: {_copies_in_words(evaluation)}")
    results: list[Result] = []
    for split in splits:
        benchmark = kind.read(archive, split, _counting("reading the meshes", progress))
        say(f"data: {_data_in_words(benchmark)}, {archive}")
        results += evaluate(
            load_encoder(folder),
            benchmark,
            evaluation,
            name=name,
            published_model=comparison_for(folder),
            device=device,
            progress=progress,
        )
        _write(output, results)
    return Outcome(output, tuple(results))


def _kind(benchmark: str) -> BenchmarkKind:
    if benchmark not in BENCHMARKS:
        msg = f"unknown benchmark {benchmark!r}; choose one of {', '.join(BENCHMARKS)}"
        raise ConfigError(msg)
    return BENCHMARKS[benchmark]


def _splits(request: EvaluationRequest, kind: BenchmarkKind) -> tuple[str | None, ...]:
    """The splits asked for, in the official order."""
    unknown = [split for split in request.splits if split not in kind.splits]
    if unknown:
        known = [split for split in kind.splits if split is not None]
        accepted = f"choose from {', '.join(known)}" if known else "it has one only; leave it out"
        msg = f"{request.benchmark} has no split {unknown[0]!r}; {accepted}"
        raise ConfigError(msg)
    return tuple(split for split in kind.splits if not request.splits or split in request.splits)


def _evaluation(request: EvaluationRequest, device: torch.device) -> Evaluation:
    copies = request.augmented_copies
    if copies is None:
        copies = COPIES_ON_CPU if device.type == "cpu" else 0
    if request.seeds < 1:
        msg = f"--seeds must be at least 1, got {request.seeds}"
        raise ConfigError(msg)
    return Evaluation(
        protocols=request.protocols,
        seeds=tuple(range(request.seeds)),
        augmented_copies=copies or None,
    )


def _encoder_folder(request: EvaluationRequest, say: Say) -> Path:
    """The encoder asked for, or that of the last run.

    Raises:
        CheckpointError: if there is neither.
    """
    if request.encoder is not None:
        folder = find_encoder(request.encoder)
        say(f"encoder: {folder}")
        return folder
    run = last_run(folder=request.folder)
    if run is None:
        msg = (
            "no run was made in this folder yet; run `pointdistill pretrain`, "
            "or name an encoder with --encoder"
        )
        raise CheckpointError(msg)
    folder = find_encoder(run)
    say(f"encoder: {folder}, the teacher of the last run in this folder")
    return folder


def _stand_in(
    request: EvaluationRequest, kind: BenchmarkKind, say: Say, progress: Progress
) -> Path:
    """The stand-in's archive, made if it is not there."""
    known = last_stand_in(request.benchmark, folder=request.folder)
    if known is not None:
        return known
    archive = request.folder / "data" / "stand-in" / kind.archive
    if not archive.exists():
        say(f"making the stand-in for {request.benchmark}, once: {archive}")
        kind.make_stand_in(archive, _counting("making the stand-in", progress))
    remember_stand_in(request.benchmark, archive, folder=request.folder)
    return archive


def _counting(task: str, progress: Progress) -> Count:
    """A counter of one task for functions that do not know which it is."""
    return lambda done, total: progress(task, done, total)


def _run_of(encoder: Path) -> Path:
    """The run whose encoder this is, or the folder itself."""
    return encoder.parent if (encoder.parent / METRICS).is_file() else encoder


def _output(request: EvaluationRequest, encoder: Path) -> Path:
    """In the run where the encoder is a run's; under ``evaluation/`` of the working folder else."""
    run = _run_of(encoder)
    base = request.folder if run == encoder else run
    name = f"{request.benchmark}-stand-in" if request.stand_in else request.benchmark
    return base / "evaluation" / name


def _write(output: Path, results: Sequence[Result]) -> None:
    """Results as JSON and as a table to read."""
    write_results(output / RESULTS, results)
    with write_aside(output / TABLE) as aside:
        aside.write_text(results_table(results).markdown(), encoding="utf-8")


def _data_in_words(benchmark: Benchmark) -> str:
    split = f", {benchmark.split}" if benchmark.split else ""
    counts = f"{len(benchmark.train):,} training and {len(benchmark.test):,} test clouds"
    return f"{benchmark.data_name}{split}, {counts}"


def _copies_in_words(evaluation: Evaluation) -> str:
    copies = evaluation.augmented_copies
    if copies is None:
        return "training clouds augmented anew each epoch, as published"
    return (
        f"{copies} augmented sets of training clouds in turn; --augmented-copies 0 makes a new one "
        "each epoch, as published"
    )
