"""The whole way on one machine in minutes: corpus, stand-in, pretraining, measurement, report.

Everything lies in one folder and is found again there: a second call goes on where the first stopped, and gives
the same numbers for the same seed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pointdistill
from pointdistill.data.benchmarks import Benchmark, read_scanobjectnn
from pointdistill.data.build import build_corpus
from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.data.standins import HARDNESS, ScanSizes, make_scanobjectnn_stand_in
from pointdistill.data.workspace import remember_run
from pointdistill.engine.config import PretrainConfig, to_plain
from pointdistill.engine.evaluation.bench import evaluate, evaluate_geometry
from pointdistill.engine.evaluation.plan import COPIES_ON_CPU, Evaluation
from pointdistill.engine.evaluation.results import Result, Spread, write_results
from pointdistill.engine.evaluation.results_tables import results_table
from pointdistill.engine.exchange.weights import load_encoder
from pointdistill.engine.finetuning.classifier_recipes import RECIPES
from pointdistill.engine.finetuning.supervised import train_classifier
from pointdistill.engine.inputs import protocol_input
from pointdistill.engine.recipes import recipe
from pointdistill.engine.reporting.gallery import learning_pictures
from pointdistill.engine.reporting.report import Picture, Section, write_report
from pointdistill.engine.training.pretrain import RunOptions, StepRecord, pretrain
from pointdistill.engine.training.run_folder import CHECKPOINTS, read_metrics, read_run_config
from pointdistill.engine.training.state import list_checkpoints, new_state
from pointdistill.engine.training.training_reporter import TrainingReporter
from pointdistill.errors import ConfigError
from pointdistill.model.encoder import Encoder
from pointdistill.reporter import SILENT, Reporter

SPLIT = "OBJ-BG"
PRETRAINED, INITIAL, GEOMETRY = "pretrained", "initial weights", "geometric features"
SUPERVISED = "supervised from scratch"
PROTOCOLS = ("knn", "linear", "svm", "logistic")


@dataclass(frozen=True, kw_only=True, slots=True)
class QuickstartConfig:
    """How large the run is; the defaults stay under five minutes on two cores."""

    shapes: int = 4000
    """Shapes of the builtin corpus."""

    points: int = 2048
    """Points a shape: local views keep 5 % of them at the least, which is a view's worth."""

    sizes: ScanSizes = field(default_factory=ScanSizes)
    """Of the stand-in benchmark."""

    supervised_epochs: int = 8
    """Of the supervised run that is shown beside; its full protocol has 150."""

    steps: int | None = None
    """Optimiser steps; None takes the tiny recipe's."""

    seed: int = 0
    """Of corpus, weights, views and probes. The stand-in has a seed of its own, always the same."""

    device: str = "cpu"

    def pretraining(self) -> PretrainConfig:
        """The tiny recipe at this seed and length."""
        config = recipe("tiny")
        return replace(config, seed=self.seed, steps=self.steps or config.steps)


@dataclass(frozen=True, slots=True)
class QuickstartResult:
    """Where the results are, and what was measured."""

    folder: Path
    run: Path
    report: Path
    results: list[Result]
    seconds: dict[str, float]
    """By stage, in this call."""

    interrupted: bool = False


def quickstart(
    folder: Path, config: QuickstartConfig | None = None, *, reporter: Reporter = SILENT
) -> QuickstartResult:
    """Do it all in ``folder``; what is there already from a call with the same settings is kept.

    Raises:
        ConfigError: if ``folder`` holds results of other settings.
    """
    config = config or QuickstartConfig()
    clock = _Clock(reporter)
    corpus = _corpus(folder, config, clock)
    benchmark = _stand_in(folder, config, clock)
    run = folder / f"run-seed{config.seed}"
    finished = _pretrain(run, corpus, config, clock)
    if not finished:
        return QuickstartResult(folder, run, folder / "report.html", [], clock.seconds, True)
    trained = load_encoder(run)
    results = _measure(trained, config, benchmark, clock)
    write_results(run / "results.json", results)
    clock.begin("report", "writing the report")
    report = folder / "report.html"
    _report(report, config, corpus, benchmark, run, trained, results, clock)
    clock.end()
    return QuickstartResult(folder, run, report, results, clock.seconds)


def gains(results: Sequence[Result]) -> dict[str, float]:
    """Points of accuracy that pretraining added to the run's own initial weights, by protocol."""
    accuracy = {(r.features, r.protocol): r.accuracy.mean for r in results}
    return {name: accuracy[PRETRAINED, name] - accuracy[INITIAL, name] for name in PROTOCOLS}


class _Clock:
    """Reports each stage, and remembers how long it took."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.seconds: dict[str, float] = {}
        self._stage = self._task = ""
        self._start = 0.0

    def begin(self, stage: str, task: str) -> None:
        """End the stage before; ``task`` says what this one does, ``stage`` names it in the report."""
        self.end()
        self._stage, self._task, self._start = stage, task, time.perf_counter()
        self.reporter.progress(task, 0)

    def progress(self, done: int, total: int, *, note: str = "") -> None:
        self.reporter.progress(self._task, done, total, note=note)

    def step(self, record: StepRecord) -> None:
        note = f"loss {record.loss:.3f}, {record.shapes_per_second:.0f} shapes/s"
        self.progress(record.step, record.total, note=note)

    def end(self) -> None:
        if self._stage:
            spent = time.perf_counter() - self._start
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + spent
        self._stage = ""


class _PretrainingReporter(TrainingReporter):
    """Shows each step as progress of the stage at hand."""

    def __init__(self, clock: _Clock) -> None:
        self.clock = clock

    def step(self, record: StepRecord) -> None:
        """Move the stage's bar."""
        self.clock.step(record)


def _corpus(folder: Path, config: QuickstartConfig, clock: _Clock) -> Corpus:
    clock.begin("corpus", f"making {config.shapes:,} shapes of {config.points:,} points")
    # Built directly: the corpus that `prepare-data` made last in this folder stays the one to train on.
    report = build_corpus(
        open_source("builtin", SourceRequest(shapes=config.shapes)),
        folder / f"corpus-seed{config.seed}",
        points=config.points,
        seed=config.seed,
        progress=lambda p: clock.progress(p.done, p.total),
    )
    return open_corpus(report.path)


def stand_in_path(folder: Path, config: QuickstartConfig) -> Path:
    """Where the stand-in of these sizes lies."""
    sizes = config.sizes
    return (
        folder
        / "scanobjectnn-stand-in"
        / f"h5_files-v{HARDNESS.version}-{sizes.train}-{sizes.test}.zip"
    )


def _stand_in(folder: Path, config: QuickstartConfig, clock: _Clock) -> Benchmark:
    path = stand_in_path(folder, config)
    if not path.exists():
        clock.begin("stand-in", "making the ScanObjectNN stand-in (scans of builtin shapes)")
        make_scanobjectnn_stand_in(
            path, splits=[SPLIT], sizes=config.sizes, progress=clock.progress
        )
    return read_scanobjectnn(path, SPLIT)


def _pretrain(run: Path, corpus: Corpus, config: QuickstartConfig, clock: _Clock) -> bool:
    """Train, or resume; return whether the run is complete."""
    pretrain_config = config.pretraining()
    clock.begin(
        "pretraining",
        f"pretraining the tiny encoder for {pretrain_config.steps:,} steps, no labels",
    )
    resume = bool(list_checkpoints(run / CHECKPOINTS))
    if resume and read_run_config(run)["config"] != to_plain(pretrain_config):
        msg = f"{run} holds a run of other settings; choose another folder, or remove that run"
        raise ConfigError(msg)
    remember_run(run)
    result = pretrain(
        pretrain_config,
        corpus=corpus,
        run=run,
        resume=resume,
        options=RunOptions(device=config.device, save_every=400),
        reporter=_PretrainingReporter(clock),
    )
    return not result.interrupted


def _measure(
    trained: Encoder, config: QuickstartConfig, benchmark: Benchmark, clock: _Clock
) -> list[Result]:
    """The same probes on the trained encoder, on its own initial weights, and on geometric features."""
    evaluation = Evaluation(
        protocols=PROTOCOLS, seeds=(config.seed,), augmented_copies=COPIES_ON_CPU
    )
    results = []
    initial = new_state(config.pretraining()).teacher.encoder
    for name, encoder in ((PRETRAINED, trained), (INITIAL, initial)):
        clock.begin(f"measuring {name}", f"measuring: {name}")
        results += evaluate(
            encoder,
            benchmark,
            evaluation,
            name=name,
            device=config.device,
            progress=lambda _task, done, total: clock.progress(done, total),
        )
    clock.begin(f"measuring {GEOMETRY}", f"measuring: {GEOMETRY}")
    inputs = protocol_input(benchmark.name, trained.config)
    results += evaluate_geometry(
        benchmark,
        evaluation,
        inputs=inputs,
        progress=lambda _task, done, total: clock.progress(done, total),
    )
    return [*results, _supervised(results[0], config, benchmark, clock)]


def _supervised(
    like: Result, config: QuickstartConfig, benchmark: Benchmark, clock: _Clock
) -> Result:
    """The same encoder trained from scratch with the labels, for as long as a quickstart can afford."""
    epochs = config.supervised_epochs
    clock.begin(SUPERVISED, f"training with labels, from scratch, {epochs} epochs")
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
        report=lambda record: clock.progress(record.epoch, epochs),
    )
    score = trained.score
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
        notes=(f"{epochs} epochs instead of the protocol's {RECIPES['scratch'].epochs}",),
    )


def _report(
    path: Path,
    config: QuickstartConfig,
    corpus: Corpus,
    benchmark: Benchmark,
    run: Path,
    trained: Encoder,
    results: list[Result],
    clock: _Clock,
) -> None:
    """One page: facts, the table, the curves, and pictures of what was learned from and with what effect."""
    from pointdistill.engine.reporting.pictures import loss_curves

    trained_for = config.pretraining()
    facts = {
        "encoder": f"tiny, {sum(p.numel() for p in trained.parameters()):,} parameters",
        "pretraining": f"{trained_for.steps:,} steps of {trained_for.batch_size} shapes, dual mode, no labels",
        "corpus": f"{len(corpus):,} builtin shapes, content {corpus.manifest.content[:16]}",
        "measured on": f"{benchmark.data_name} ({benchmark.split}): {len(benchmark.train):,} clouds to "
        f"train the probes, {len(benchmark.test):,} to test",
        "seed": str(config.seed),
        "seconds": ", ".join(f"{name} {spent:.0f}" for name, spent in clock.seconds.items()),
        "pointdistill": pointdistill.__version__,
    }
    gallery = learning_pictures(trained, corpus, benchmark, trained_for)
    sections = [
        Section(
            "What was learned, measured",
            "Test accuracy in percent of simple classifiers on frozen features. The initial weights are "
            "this very run's own, before its first step.",
            tables=(results_table(results),),
        ),
        Section(
            "Training",
            pictures=(Picture("Loss terms over the steps", loss_curves(read_metrics(run))),),
        ),
        *gallery,
    ]
    write_report(
        path,
        title="pointdistill quickstart",
        lead="An encoder that was pretrained on this machine without labels, beside the same encoder before "
        "training and beside simple geometric features. The benchmark is a stand-in made of simulated "
        "scans, not ScanObjectNN itself.",
        facts=facts,
        sections=sections,
    )
