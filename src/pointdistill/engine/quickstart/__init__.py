"""A demonstration of the whole program in minutes: corpus, stand-in, pretraining, evaluation, report.

Everything is written to one folder. A second call continues where the first one stopped, and the same seed gives
the same numbers. On two cores and more a second process makes the stand-in, and measures what does not depend on
the pretraining, while this one pretrains: neither uses much more than a core or needs the other's results.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from pointdistill.data.benchmark_standins import HARDNESS, ScanSizes, make_scanobjectnn_stand_in
from pointdistill.data.benchmarks.records import Benchmark
from pointdistill.data.benchmarks.scanobjectnn import read_scanobjectnn
from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.files.files import hold_output
from pointdistill.data.files.processes import usable_cores, work_beside
from pointdistill.data.files.schema import from_plain, refusing_damage
from pointdistill.data.files.workspace import remember_run
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.config.recipes import recipe
from pointdistill.engine.evaluation.classification import evaluate, evaluate_geometry
from pointdistill.engine.evaluation.results import Result, Spread, write_results
from pointdistill.engine.evaluation.run import COPIES_ON_CPU, Evaluation
from pointdistill.engine.features import Score
from pointdistill.engine.features.inputs import protocol_input
from pointdistill.engine.finetuning.classification import train_classifier
from pointdistill.engine.finetuning.recipes import RECIPES
from pointdistill.engine.pretraining.checkpoints import list_checkpoints, new_state
from pointdistill.engine.pretraining.pretrain import pretrain
from pointdistill.engine.pretraining.run_folder import CHECKPOINTS, read_run_config
from pointdistill.engine.pretraining.trainer import RunOptions
from pointdistill.engine.quickstart.page import (
    GEOMETRY,
    INITIAL,
    PRETRAINED,
    PROTOCOLS,
    SUPERVISED,
    gains,
    write_page,
)
from pointdistill.engine.weights import BUNDLED, bundled_is_here
from pointdistill.engine.weights.encoders import load_encoder
from pointdistill.errors import CheckpointError, ConfigError
from pointdistill.model.encoder import Encoder
from pointdistill.reporter import SILENT, Reporter, TrainingReporter, plural

__all__ = [
    "GEOMETRY",
    "INITIAL",
    "PRETRAINED",
    "PROTOCOLS",
    "SPLIT",
    "SUPERVISED",
    "UNAUGMENTED",
    "QuickstartConfig",
    "QuickstartResult",
    "gains",
    "quickstart",
    "stand_in_path",
]

SPLIT = "OBJ-BG"
UNAUGMENTED = ("knn", "svm", "logistic")
"""Protocols that read each cloud once; what the program's own encoder, which is larger, is measured by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuickstartConfig:
    """Sizes of the demonstration; with the defaults it takes less than five minutes on two cores."""

    shapes: int = 4000
    """Shapes of the builtin corpus."""

    points: int = 2048
    """Points per shape; local views keep at least 5 % of them, which is enough."""

    sizes: ScanSizes = field(default_factory=ScanSizes)
    """Sizes of the stand-in benchmark."""

    supervised_epochs: int = 8
    """Epochs of the supervised training for comparison; the full protocol has 150."""

    steps: int | None = None
    """Optimiser steps; None for the tiny recipe's."""

    seed: int = 0
    """Seed of corpus, weights, views and probes; the stand-in has a fixed seed of its own."""

    device: str = "cpu"

    def pretraining(self) -> PretrainConfig:
        """The tiny recipe at this seed and length."""
        config = recipe("tiny")
        return replace(config, seed=self.seed, steps=self.steps or config.steps)


@dataclass(frozen=True, slots=True)
class QuickstartResult:
    """The results, and where they are stored."""

    folder: Path
    run: Path
    report: Path
    results: list[Result]
    seconds: dict[str, float]
    """Duration of each stage in this call; some stages ran at the same time."""

    total_seconds: float
    """Duration of the call."""

    interrupted: bool = False


def quickstart(
    folder: Path,
    config: QuickstartConfig | None = None,
    *,
    next_steps: tuple[tuple[str, str], ...] = (),
    processes: int | None = None,
    reporter: Reporter = SILENT,
) -> QuickstartResult:
    """Run every stage in ``folder``; results of an earlier call with the same settings are reused.

    Args:
        folder: where everything is written.
        config: sizes.
        next_steps: commands that the page proposes, each with what it does.
        processes: 1 for one stage after another, 2 for stages beside each other; None chooses by the cores. The
            numbers are the same.
        reporter: told of the stages of this process, and of their progress.

    Raises:
        ConfigError: if ``folder`` holds results of other settings.
    """
    with hold_output(folder, setting="folder"):
        several = (usable_cores() if processes is None else processes) > 1
        stages = _Stages(reporter)
        return _all_stages(
            folder, config or QuickstartConfig(), stages, next_steps, several=several
        )


def _all_stages(
    folder: Path,
    config: QuickstartConfig,
    stages: _Stages,
    next_steps: tuple[tuple[str, str], ...],
    *,
    several: bool,
) -> QuickstartResult:
    begun = time.perf_counter()
    part = _Independent(folder, config)
    run = folder / f"run-seed{config.seed}"
    with work_beside(_independent, part) if several else nullcontext() as beside:
        corpus = _corpus(folder, config, stages)
        if beside is None:
            _stand_in(folder, config, stages)
        finished = _pretrain(run, corpus, config, stages)
        report = folder / "report.html"
        if not finished:
            spent = time.perf_counter() - begun
            return QuickstartResult(folder, run, report, [], stages.seconds, spent, True)
        if beside is not None:
            stages.begin("stand-in", "waiting for the stand-in")
            beside.await_ready()
        benchmark = read_scanobjectnn(stand_in_path(folder, config), SPLIT)
        trained = load_encoder(run)
        pretrained = _measure_encoder(PRETRAINED, trained, config, benchmark, stages)
        if beside is None:
            rest = _measure_rest(config, benchmark, stages)
        else:
            stages.begin("waiting", "measuring what it is compared with")
            rest, seconds = beside.result()
            stages.end()
            stages.seconds.update(seconds)
    results = [
        *pretrained,
        *rest.frozen,
        _supervised_result(pretrained[0], rest.supervised, config),
    ]
    write_results(run / "results.json", results)
    stages.begin("report", "writing the report")
    write_page(
        report,
        config.pretraining(),
        corpus,
        benchmark,
        run,
        trained,
        results,
        seconds=stages.seconds,
        device=config.device,
        next_steps=next_steps,
    )
    stages.end()
    spent = time.perf_counter() - begun
    return QuickstartResult(folder, run, report, results, stages.seconds, spent)


@dataclass(frozen=True, slots=True)
class _Independent:
    """What does not depend on the pretraining."""

    folder: Path
    config: QuickstartConfig


@dataclass(frozen=True, slots=True)
class _Rest:
    """The outcome of what does not depend on the pretraining."""

    frozen: list[Result]
    """Of the initial weights, the program's own encoder, and geometry."""

    supervised: Score


def _independent(part: _Independent, ready: Callable[[], None]) -> tuple[_Rest, dict[str, float]]:
    """In a process of its own: make the stand-in, say so, and measure on it; returns also the stages' seconds."""
    stages = _Stages(SILENT)
    benchmark = _stand_in(part.folder, part.config, stages)
    ready()
    rest = _measure_rest(part.config, benchmark, stages)
    return rest, stages.seconds


class _Stages(TrainingReporter):
    """Reports the progress of a task as that of its stage, and times the stages."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.seconds: dict[str, float] = {}
        self._stage = self._title = ""
        self._start = 0.0

    def begin(self, stage: str, title: str) -> None:
        """End the previous stage and start another, named ``stage`` in the report and ``title`` on the screen."""
        self.end()
        self._stage, self._title, self._start = stage, title, time.perf_counter()
        self.reporter.progress(title, 0)

    def end(self) -> None:
        if self._stage:
            seconds = time.perf_counter() - self._start
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + seconds
        self._stage = ""

    def progress(
        self,
        task: str,  # noqa: ARG002
        done: float,
        total: float | None = None,
        *,
        note: str = "",
        unit: str = "",
    ) -> None:
        """Report progress under the stage's title, whatever the task is called."""
        self.reporter.progress(self._title, done, total, note=note, unit=unit)


def _corpus(folder: Path, config: QuickstartConfig, stages: _Stages) -> Corpus:
    stages.begin("corpus", f"making {plural(config.shapes, 'shape')} of {config.points:,} points")
    # Built directly, so that it does not replace the last corpus made here as the default of other commands.
    report = build_corpus(
        open_source("builtin", SourceRequest(shapes=config.shapes)),
        folder / f"corpus-seed{config.seed}",
        points=config.points,
        seed=config.seed,
        reporter=stages,
    )
    return open_corpus(report.path)


def stand_in_path(folder: Path, config: QuickstartConfig) -> Path:
    """Path of the stand-in of these sizes."""
    sizes = config.sizes
    return (
        folder
        / "scanobjectnn-stand-in"
        / f"h5_files-v{HARDNESS.version}-{sizes.train}-{sizes.test}.zip"
    )


def _stand_in(folder: Path, config: QuickstartConfig, stages: _Stages) -> Benchmark:
    path = stand_in_path(folder, config)
    if not path.exists():
        stages.begin("stand-in", "making the ScanObjectNN stand-in")
        make_scanobjectnn_stand_in(
            path, splits=[SPLIT], sizes=config.sizes, progress=partial(stages.progress, "")
        )
    return read_scanobjectnn(path, SPLIT)


def _config_of(run: Path) -> PretrainConfig:
    stored = read_run_config(run)["config"]
    with refusing_damage(run / "config.json", error=CheckpointError):
        return from_plain(PretrainConfig, stored, where="config")


def _pretrain(run: Path, corpus: Corpus, config: QuickstartConfig, stages: _Stages) -> bool:
    """Train, or resume; return whether the run is complete."""
    pretrain_config = config.pretraining()
    stages.begin("pretraining", "pretraining, no labels")
    resume = bool(list_checkpoints(run / CHECKPOINTS))
    # Compared as records: a run from before a setting existed has that setting's default.
    if resume and _config_of(run) != pretrain_config:
        msg = f"{run} holds a run of other settings; choose another folder, or remove that run"
        raise ConfigError(msg)
    remember_run(run)
    result = pretrain(
        pretrain_config,
        corpus=corpus,
        run=run,
        resume=resume,
        options=RunOptions(device=config.device, save_every=400),
        reporter=stages,
    )
    return not result.interrupted


def _evaluation(config: QuickstartConfig) -> Evaluation:
    return Evaluation(protocols=PROTOCOLS, seeds=(config.seed,), augmented_copies=COPIES_ON_CPU)


def _measure_encoder(
    name: str, encoder: Encoder, config: QuickstartConfig, benchmark: Benchmark, stages: _Stages
) -> list[Result]:
    stages.begin(f"measuring {name}", f"measuring: {name}")
    evaluation = _evaluation(config)
    return evaluate(
        encoder, benchmark, evaluation, name=name, device=config.device, reporter=stages
    )


def _measure_rest(config: QuickstartConfig, benchmark: Benchmark, stages: _Stages) -> _Rest:
    """Evaluate the initial weights, the program's own encoder and geometry, and train with labels."""
    initial = new_state(config.pretraining()).teacher.encoder
    results = _measure_encoder(INITIAL, initial, config, benchmark, stages)
    if bundled_is_here():
        name = f"{BUNDLED}, trained for hours"
        stages.begin(f"measuring {BUNDLED}", f"measuring: {name}")
        results += evaluate(
            load_encoder(BUNDLED),
            benchmark,
            replace(_evaluation(config), protocols=UNAUGMENTED),
            name=name,
            device=config.device,
            reporter=stages,
        )
    stages.begin(f"measuring {GEOMETRY}", f"measuring: {GEOMETRY}")
    inputs = protocol_input(benchmark.name, initial.config)
    results += evaluate_geometry(benchmark, _evaluation(config), inputs=inputs, reporter=stages)
    score = _supervised(config, benchmark, stages)
    stages.end()
    return _Rest(results, score)


def _supervised(config: QuickstartConfig, benchmark: Benchmark, stages: _Stages) -> Score:
    """The same encoder trained from scratch with the labels, for a few epochs."""
    epochs = config.supervised_epochs
    stages.begin(SUPERVISED, f"training with labels, from scratch, {plural(epochs, 'epoch')}")
    encoder = new_state(config.pretraining()).student.encoder
    trained = train_classifier(
        encoder,
        benchmark.train,
        benchmark.test,
        classes=len(benchmark.classes),
        recipe=RECIPES["scratch"],
        inputs=protocol_input(benchmark.name, encoder.config),
        seed=config.seed,
        epochs=epochs,
        device=config.device,
        report=lambda record: stages.progress("", record.epoch, epochs),
    )
    return trained.score


def _supervised_result(like: Result, score: Score, config: QuickstartConfig) -> Result:
    """The result of training with labels, on the same benchmark as another one."""
    return replace(
        like,
        features=SUPERVISED,
        protocol="scratch",
        augmentation="training clouds augmented anew each epoch",
        copies=None,
        accuracy=Spread.of([score.accuracy]),
        class_accuracy=Spread.of([score.class_accuracy]),
        best_epoch_accuracy=None
        if score.best_accuracy is None
        else Spread.of([score.best_accuracy]),
        published=None,
        notes=(
            f"{plural(config.supervised_epochs, 'epoch')} instead of the protocol's "
            f"{RECIPES['scratch'].epochs}",
        ),
    )
