"""A classification benchmark in memory, measured: every protocol, every seed, one result each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from pointdistill.data.benchmarks.records import Benchmark
from pointdistill.engine.evaluation.describe import Describer, EncoderDescriber, GeometryDescriber
from pointdistill.engine.evaluation.forecast import Forecast, Say
from pointdistill.engine.evaluation.frozen import FrozenRun
from pointdistill.engine.evaluation.plan import FROZEN, HEADS, TRAINED, VOTING, Evaluation
from pointdistill.engine.evaluation.probe import Score
from pointdistill.engine.evaluation.published import published_figure
from pointdistill.engine.evaluation.results import Result, combine
from pointdistill.engine.evaluation.trained import trained_score, training_cost
from pointdistill.engine.evaluation.units import (
    NOT_MEASURED,
    Keeper,
    KeepNothing,
    Unit,
    kept_training,
    measured,
)
from pointdistill.engine.features import BATCH_SIZE
from pointdistill.engine.finetuning.recipes import recipe_for
from pointdistill.engine.finetuning.training_file import TrainingFile
from pointdistill.engine.inputs import ProtocolInput, protocol_input
from pointdistill.errors import ConfigError
from pointdistill.model.encoder import Encoder

SHORTER = "--epochs N shortens it, as a departure from the protocol"

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many parts of it are done, and how many there are."""


def evaluate(
    encoder: Encoder,
    benchmark: Benchmark,
    evaluation: Evaluation,
    *,
    name: str,
    published_model: str | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> list[Result]:
    """Measure an encoder on a benchmark.

    Args:
        encoder: the teacher's; its weights are not changed.
        benchmark: labelled clouds, z up, with their official split.
        evaluation: protocols, seeds and settings.
        name: what to call these features in the results.
        published_model: whose published figures to set beside ours, by its name in
            ``pointdistill.engine.evaluation.published``.
        device: where encoders run and are trained; heads on frozen features train on the CPU.
        batch_size: clouds a forward pass of a frozen encoder.
        progress: told after every batch of clouds, and after every epoch of training.

    Returns:
        One result a protocol.

    Raises:
        ConfigError: for a benchmark without a published protocol.
        DataError: if features are not finite, or clouds too few.
        DivergenceError: if a training's loss is not finite.
    """
    describer = EncoderDescriber(
        name=name,
        encoder=encoder,
        inputs=protocol_input(benchmark.name, encoder.config),
        device=device,
        batch_size=batch_size,
    )
    bench = Bench(describer, benchmark, evaluation, published_model=published_model)
    return _combined(bench, progress)


def evaluate_geometry(
    benchmark: Benchmark,
    evaluation: Evaluation,
    *,
    inputs: ProtocolInput,
    progress: Progress | None = None,
) -> list[Result]:
    """Measure hand-made geometric features under the same probes, on the same points.

    Arguments and results are those of ``evaluate``; ``inputs`` are the encoder's (``protocol_input``),
    so that both see clouds of one density.
    """
    return measure(GeometryDescriber(inputs=inputs), benchmark, evaluation, progress=progress)


def measure(
    describer: Describer,
    benchmark: Benchmark,
    evaluation: Evaluation,
    *,
    progress: Progress | None = None,
) -> list[Result]:
    """Run every protocol for every seed on anything that describes clouds; one result a protocol."""
    return _combined(Bench(describer, benchmark, evaluation), progress)


def _combined(bench: Bench, progress: Progress | None) -> list[Result]:
    units = measure_units(bench, KeepNothing(), progress=progress or (lambda *_: None))
    by_protocol = {result.protocol: result for result in combine([u.result for u in units])}
    return [by_protocol[protocol] for protocol in bench.evaluation.protocols]


@dataclass(frozen=True, slots=True)
class Bench:
    """Features, a benchmark, and what to do with them."""

    describer: Describer
    benchmark: Benchmark
    evaluation: Evaluation
    published_model: str | None = None
    fingerprint: str = ""
    """Of the encoder's weights; empty where nothing is kept."""

    later_runs: float = 0.0
    """Runs of the same cost that the caller has in store after this benchmark, for the forecast."""

    @property
    def named(self) -> str:
        """Benchmark and split, for progress and forecasts."""
        return ", ".join(filter(None, [self.benchmark.name, self.benchmark.split]))

    def asked(self, protocol: str, seed: int) -> Result:
        """The result of one protocol and seed with everything in it but the figures."""
        benchmark, describer, evaluation = self.benchmark, self.describer, self.evaluation
        points = min(describer.inputs.points, benchmark.train.points.shape[1])
        epochs = protocol_epochs(protocol, benchmark.name, evaluation)
        copies = evaluation.copies_of(protocol)
        asked = Result(
            features=describer.name,
            benchmark=benchmark.name,
            split=benchmark.split,
            data_name=benchmark.data_name,
            form=benchmark.form,
            checksum=benchmark.checksum,
            stand_in=benchmark.stand_in,
            train_clouds=len(benchmark.train),
            test_clouds=len(benchmark.test),
            protocol=protocol,
            points=points,
            patches=min(describer.inputs.patches, points) if describer.has_patches else None,
            subsampling=describer.inputs.subsampling,
            augmentation=augmentation_in_words(protocol, copies),
            seeds=(seed,),
            accuracy=NOT_MEASURED,
            class_accuracy=NOT_MEASURED,
            best_epoch_accuracy=None,
            published=None,
            repeated_over=evaluation.repeated_over,
            fingerprint=self.fingerprint,
            epochs=None if epochs is None else evaluation.epochs or epochs,
            protocol_epochs=epochs,
            votes=evaluation.votes if protocol in VOTING else 1,
            copies=copies,
        )
        return asked.beside(
            published_figure(
                self.published_model,
                benchmark=benchmark.name,
                split=benchmark.split,
                protocol=protocol,
            )
        )


def measure_units(
    bench: Bench,
    keeper: Keeper,
    *,
    progress: Progress,
    say: Say = lambda _line: None,
    on_signal: Callable[[], None] | None = None,
) -> list[Unit]:
    """All units of a benchmark: those that are kept are taken from there, the others measured and kept.

    Frozen protocols of all seeds come first, then the trained ones; what is dear is said by a forecast. For
    ``on_signal`` see ``kept_training``.
    """
    pairs = [(p, s) for s in bench.evaluation.seeds for p in bench.evaluation.protocols]
    units = {pair: keeper.find(bench.asked(*pair)) for pair in pairs}
    missing = [pair for pair, unit in units.items() if unit is None]

    def keep(protocol: str, seed: int, score: Score) -> None:
        asked = bench.asked(protocol, seed)
        units[protocol, seed] = unit = measured(asked, score, bench.benchmark.classes)
        keeper.keep(asked, unit)

    frozen = [m for m in missing if m[0] in FROZEN]
    for protocol, seed, score in _frozen_scores(bench, frozen, progress, say):
        keep(protocol, seed, score)
    trained = [m for m in missing if m[0] in TRAINED]
    for place, (protocol, seed) in enumerate(trained):
        with kept_training(keeper, bench.asked(protocol, seed), on_signal) as file:
            later = trained[place + 1 :]
            keep(protocol, seed, _train(bench, protocol, seed, later, file, progress, say))
    return [unit for unit in units.values() if unit is not None]


def _frozen_scores(
    bench: Bench, missing: Sequence[tuple[str, int]], progress: Progress, say: Say
) -> Iterator[tuple[str, int, Score]]:
    """Protocol, seed and score of those on frozen features, each as soon as it is there."""
    protocols = {seed: tuple(p for p, s in missing if s == seed) for _, seed in missing}
    clouds = [bench.evaluation.clouds_to_describe(bench.benchmark, p) for p in protocols.values()]
    heads = any(protocol in HEADS for protocol, _ in missing)
    hint = "--augmented-copies 1 shortens it" if heads else ""
    forecast = Forecast(say, f"{bench.named}, features", hint=hint)
    counter = _Counter(sum(clouds), progress, forecast)
    for seed, names in protocols.items():
        counter.task = f"{bench.named}, seed {seed}: features"
        run = FrozenRun(
            bench.describer, bench.benchmark, bench.evaluation, seed=seed, count=counter
        )
        for protocol, score in run.scores(names):
            yield protocol, seed, score


def _train(
    bench: Bench,
    protocol: str,
    seed: int,
    later: Sequence[tuple[str, int]],
    file: TrainingFile | None,
    progress: Progress,
    say: Say,
) -> Score:
    """One training run; its forecast covers the ``later`` ones too."""
    describer, evaluation, name = bench.describer, bench.evaluation, bench.benchmark.name
    if not isinstance(describer, EncoderDescriber):
        msg = f"{protocol!r} trains an encoder, and {describer.name} have none; choose from {', '.join(FROZEN)}"
        raise ConfigError(msg)
    after = sum(training_cost(p, name, epochs=evaluation.epochs) for p, _ in later)
    whole = training_cost(protocol, name, epochs=evaluation.epochs)
    epochs = evaluation.epochs or recipe_for(name, protocol).epochs
    task = f"{bench.named}, {evaluation.repeated_over[:-1]} {seed}: {protocol}"
    forecast = Forecast(say, task, hint=SHORTER if evaluation.epochs is None else "")

    def report(done: int) -> None:
        before, rest = (
            training_cost(protocol, name, epochs=evaluation.epochs, done=epoch)
            for epoch in (done - 1, done)
        )
        forecast(whole - rest, whole * (1 + bench.later_runs) + after, latest=before - rest)
        progress(task, done, epochs)

    progress(task, 0, epochs)
    return trained_score(
        describer.encoder,
        bench.benchmark,
        protocol,
        inputs=describer.inputs,
        seed=seed,
        epochs=evaluation.epochs,
        votes=evaluation.votes,
        device=describer.device,
        report=report,
        file=file,
    )


class _Counter:
    """Adds up described clouds and passes the sum on."""

    def __init__(self, total: int, progress: Progress, forecast: Forecast) -> None:
        self.task = ""
        self._done, self._total, self._progress, self._forecast = 0, total, progress, forecast

    def __call__(self, clouds: int) -> None:
        self._done += clouds
        self._progress(self.task, self._done, self._total)
        self._forecast(self._done, self._total)


def protocol_epochs(protocol: str, benchmark: str, evaluation: Evaluation) -> int | None:
    """Epochs that a protocol has; None for one without."""
    if protocol in HEADS:
        return evaluation.head.epochs
    return recipe_for(benchmark, protocol).epochs if protocol in TRAINED else None


def augmentation_in_words(protocol: str, copies: int | None) -> str:
    """How often the training clouds were augmented."""
    if protocol not in VOTING:
        return "training clouds not augmented"
    if copies is None:
        return "training clouds augmented anew each epoch"
    if copies == 1:
        return "one augmented copy of the training clouds"
    return f"{copies} augmented copies of the training clouds, in turn"
