"""Classification of whole clouds and of their points: one result for every protocol and seed, or fold of few-shot.

Part segmentation (ShapeNetPart) is one training per seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pointdistill.data.benchmarks.modelnet_fewshot import SPLITS
from pointdistill.data.benchmarks.records import (
    Benchmark,
    LabelledClouds,
    PartBenchmark,
    PartClouds,
)
from pointdistill.data.benchmarks.registry import FROZEN, PARTIAL, PARTS, TRAINED
from pointdistill.engine.evaluation.protocols import (
    FrozenRun,
    held_out_part,
    trained_score,
    training_cost,
)
from pointdistill.engine.evaluation.results import WHOLE_METRICS, Result, combine
from pointdistill.engine.evaluation.run import HEADS, Evaluation, EvaluationRun, side_sizes
from pointdistill.engine.features import HeadTraining, Score
from pointdistill.engine.features.extract import BATCH_SIZE
from pointdistill.engine.features.feature_extractors import (
    EncoderFeatures,
    FeatureExtractor,
    GeometricFeatures,
)
from pointdistill.engine.features.inputs import ProtocolInput, protocol_input
from pointdistill.engine.finetuning.epochs import EpochRecord
from pointdistill.engine.finetuning.recipes import recipe_for
from pointdistill.engine.finetuning.segmentation import SegmenterRecipe, train_segmenter
from pointdistill.engine.finetuning.training_file import TrainingFile
from pointdistill.errors import ConfigError
from pointdistill.model.encoder import Encoder
from pointdistill.reporter import SHORTER, SILENT, Forecast, Reporter


def evaluate(
    encoder: Encoder,
    benchmark: Benchmark,
    evaluation: Evaluation,
    *,
    name: str,
    published_model: str | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = BATCH_SIZE,
    reporter: Reporter = SILENT,
) -> list[Result]:
    """Measure an encoder on a benchmark.

    Args:
        encoder: the teacher's; its weights are not changed.
        benchmark: labelled clouds, z up, with their official split.
        evaluation: protocols, seeds and settings.
        name: what to call these features in the results.
        published_model: whose published figures to set beside ours, by its name in
            ``pointdistill.data.benchmarks.registry``.
        device: where encoders run and are trained; heads on frozen features are trained on the CPU.
        batch_size: clouds per forward pass of a frozen encoder.
        reporter: told after every batch of clouds, and after every epoch of training.

    Returns:
        One result per protocol.

    Raises:
        ConfigError: for a benchmark without a published protocol.
        DataError: if features are not finite, or there are too few clouds.
        DivergenceError: if the loss of a training is not finite.
    """
    extractor = EncoderFeatures(
        name=name,
        encoder=encoder,
        inputs=protocol_input(benchmark.name, encoder.config),
        device=device,
        batch_size=batch_size,
    )
    return measure(
        extractor, benchmark, evaluation, published_model=published_model, reporter=reporter
    )


def evaluate_geometry(
    benchmark: Benchmark,
    evaluation: Evaluation,
    *,
    inputs: ProtocolInput,
    reporter: Reporter = SILENT,
) -> list[Result]:
    """Measure hand-made geometric features under the same probes, on the same points.

    Arguments and results are those of ``evaluate``; ``inputs`` are the encoder's (``protocol_input``),
    so that both see clouds of one density.
    """
    return measure(GeometricFeatures(inputs=inputs), benchmark, evaluation, reporter=reporter)


def measure(
    extractor: FeatureExtractor,
    benchmark: Benchmark,
    evaluation: Evaluation,
    *,
    published_model: str | None = None,
    reporter: Reporter = SILENT,
) -> list[Result]:
    """Run every protocol for every seed on any features of clouds; one result per protocol."""
    settings = {item.name: getattr(evaluation, item.name) for item in fields(Evaluation)}
    run = EvaluationRun(
        extractor=extractor, published_model=published_model, reporter=reporter, **settings
    )
    by_protocol = {result.protocol: result for result in combine(measure_seeds(run, benchmark))}
    return [by_protocol[protocol] for protocol in evaluation.protocols]


def evaluate_classification(run: EvaluationRun) -> list[Result]:
    """One result for every split, protocol and seed of a run on a benchmark on disk."""
    found: list[Result] = []
    for split in run.splits:
        benchmark = run.read(split)
        assert isinstance(benchmark, Benchmark)
        run.announce(benchmark)
        results = measure_seeds(run, benchmark)
        if run.store is not None:
            run.store.draw(results)
        found += results
    return found


def measure_seeds(run: EvaluationRun, benchmark: Benchmark) -> list[Result]:
    """One result for every protocol and seed; those that are stored already are not measured again.

    The protocols on frozen features come first, for all seeds, then those that train an encoder. The reporter is
    told how long the rest will take.
    """
    templates = {
        (protocol, seed): run.template(
            benchmark,
            protocol,
            seed,
            sizes=side_sizes(benchmark),
            protocol_epochs=protocol_epochs(protocol, benchmark.name, run),
            metrics=WHOLE_METRICS if protocol in PARTIAL else ("OA", "mAcc"),
        )
        for seed in run.seeds
        for protocol in run.protocols
    }
    results = {pair: run.find(template) for pair, template in templates.items()}
    missing = [pair for pair, result in results.items() if result is None]

    def record(pair: tuple[str, int], score: Score) -> None:
        results[pair] = run.record(templates[pair], score, benchmark.classes)

    frozen = [pair for pair in missing if pair[0] in (*FROZEN, *PARTIAL)]
    for protocol, seed, score in _frozen_scores(run, benchmark, frozen):
        record((protocol, seed), score)
    trained = [pair for pair in missing if pair[0] in TRAINED]
    for index, pair in enumerate(trained):
        with run.training_file(templates[pair]) as file:
            record(pair, _train(run, benchmark, *pair, later=trained[index + 1 :], file=file))
    return [result for result in results.values() if result is not None]


def _name(benchmark: Benchmark) -> str:
    """Benchmark and split, for progress and forecasts."""
    return ", ".join(filter(None, [benchmark.name, benchmark.split]))


def _frozen_scores(
    run: EvaluationRun, benchmark: Benchmark, missing: Sequence[tuple[str, int]]
) -> Iterator[tuple[str, int, Score]]:
    """The protocols on frozen features: protocol, seed and score, each as soon as it is known."""
    protocols = {seed: tuple(p for p, s in missing if s == seed) for _, seed in missing}
    total = sum(run.clouds_to_extract(benchmark, names) for names in protocols.values())
    forecast = Forecast(run.reporter, f"{_name(benchmark)}, features")
    if any(protocol in HEADS for protocol, _ in missing):
        forecast.hint = "1 augmented copy shortens it"
        forecast.settings = ("augmented_copies",)
    done = 0
    task = ""

    def count(clouds: int) -> None:
        nonlocal done
        done += clouds
        run.reporter.progress(task, done, total)
        forecast(done, total)

    for seed, names in protocols.items():
        task = f"{_name(benchmark)}, seed {seed}: features"
        frozen = FrozenRun(run.extractor, benchmark, run, seed=seed, count=count)
        for protocol, score in frozen.scores(names):
            yield protocol, seed, score


def _train(
    run: EvaluationRun,
    benchmark: Benchmark,
    protocol: str,
    seed: int,
    *,
    later: Sequence[tuple[str, int]],
    file: TrainingFile | None,
) -> Score:
    """One training run; its forecast covers the ``later`` ones too."""
    extractor, name = run.extractor, benchmark.name
    if not isinstance(extractor, EncoderFeatures):
        msg = f"{protocol!r} trains an encoder, and {extractor.name} have none; choose from {', '.join(FROZEN)}"
        raise ConfigError(msg)
    after = sum(training_cost(p, name, epochs=run.epochs) for p, _ in later)
    whole = training_cost(protocol, name, epochs=run.epochs)
    epochs = run.epochs or recipe_for(name, protocol).epochs
    task = f"{_name(benchmark)}, {run.repeated_over[:-1]} {seed}: {protocol}"
    forecast = Forecast(run.reporter, task)
    if run.epochs is None:
        forecast.hint, forecast.settings = SHORTER

    def report(done: int) -> None:
        before, rest = (
            training_cost(protocol, name, epochs=run.epochs, done=epoch)
            for epoch in (done - 1, done)
        )
        forecast(whole - rest, whole * (1 + run.later_runs) + after, latest=before - rest)
        run.reporter.progress(task, done, epochs)

    run.reporter.progress(task, 0, epochs)
    return trained_score(
        extractor.encoder,
        benchmark,
        protocol,
        inputs=extractor.inputs,
        seed=seed,
        epochs=run.epochs,
        votes=run.votes,
        device=extractor.device,
        report=report,
        file=file,
        hold_out=run.hold_out_of(protocol),
    )


def protocol_epochs(protocol: str, benchmark: str, evaluation: Evaluation) -> int | None:
    """Number of epochs of a protocol; None for one that has no epochs."""
    if protocol in HEADS:
        return (evaluation.head or HeadTraining()).epochs
    return recipe_for(benchmark, protocol).epochs if protocol in TRAINED else None


# Few-shot: every setting has ten folds, each with training and test shapes of its own. Source: section 7 of
# docs/method.md.


def evaluate_folds(run: EvaluationRun) -> list[Result]:
    """One result for every fold of every setting of a run.

    A fold's number is also the seed of everything random in it. All folds of a setting are read before the first
    is measured, so that a leak in any of them is reported before work begins; the largest published setting takes
    0.4 GiB.
    """
    found: list[Result] = []
    for index, split in enumerate(run.splits):
        folds = [_read_fold(run, split, fold) for fold in run.seeds]
        run.announce(folds[0], tested=_all_tests(folds))
        found += _measure_folds(run, folds, run.splits[index + 1 :])
    return found


def _measure_folds(
    run: EvaluationRun, folds: Sequence[Benchmark], later_splits: Sequence[str | None]
) -> list[Result]:
    """The folds of one setting; forecasts cover ``later_splits`` too."""
    found: list[Result] = []
    for index, (fold, benchmark) in enumerate(zip(run.seeds, folds, strict=True)):
        size = _fold_cost(benchmark.split, benchmark)
        others = len(folds) * sum(_fold_cost(split, benchmark) for split in later_splits)
        later = len(folds) - index - 1 + others / size
        found += measure_seeds(replace(run, seeds=(fold,), later_runs=later), benchmark)
    return found


def _read_fold(run: EvaluationRun, split: str | None, fold: int) -> Benchmark:
    """One fold; its ``form`` names what all folds of a setting share, so that they become one result."""
    benchmark = run.read(split, fold=fold)
    assert isinstance(benchmark, Benchmark)
    folder = benchmark.form.rsplit("/", 1)[0]
    return replace(benchmark, form=f"{folder}/*.pkl")


def _all_tests(folds: Sequence[Benchmark]) -> Benchmark:
    """The test clouds of all folds together. Their labels must not be used: every fold has its own classes."""
    least = min(fold.test.points.shape[1] for fold in folds)
    points = np.concatenate([fold.test.points[:, :least] for fold in folds])
    labels = np.concatenate([fold.test.labels for fold in folds])
    return replace(folds[0], test=LabelledClouds(points, labels))


def _fold_cost(split: str | None, like: Benchmark) -> float:
    """Cost of an epoch of a fold, in test clouds: a training cloud costs as much as three of them, and there are
    as many test clouds per class as in the fold ``like``.
    """
    way, shot = SPLITS[split or ""]
    return way * (3 * shot + len(like.test) / len(like.classes))


def evaluate_parts(run: EvaluationRun) -> list[Result]:
    """One result for every seed of a run."""
    (split,) = run.splits
    benchmark = run.read(split)
    assert isinstance(benchmark, PartBenchmark)
    run.announce(benchmark)
    found = []
    for index, seed in enumerate(run.seeds):
        template = run.template(
            benchmark,
            PARTS,
            seed,
            sizes=side_sizes(benchmark),
            protocol_epochs=SegmenterRecipe().epochs,
            metrics=("instance mIoU", "class mIoU"),
        )
        result = run.find(template)
        if result is None:
            with run.training_file(template) as file:
                later = len(run.seeds) - index - 1
                result = run.record(
                    template, _train_segmenter(run, benchmark, seed, later=later, file=file)
                )
        found.append(result)
    return found


def _train_segmenter(
    run: EvaluationRun,
    benchmark: PartBenchmark,
    seed: int,
    *,
    later: int,
    file: TrainingFile | None,
) -> Score:
    """One training; its forecast covers the ``later`` ones too."""
    extractor = run.extractor
    assert isinstance(extractor, EncoderFeatures)
    task = f"{benchmark.name}, seed {seed}: parts"
    forecast = Forecast(run.reporter, task)
    if run.epochs is None:
        forecast.hint, forecast.settings = SHORTER

    def report(record: EpochRecord) -> None:
        forecast(record.epoch, record.epochs * (1 + later), latest=1)
        run.reporter.progress(task, record.epoch, record.epochs)

    train, held_out = benchmark.train, None
    share = run.hold_out_of(PARTS)
    if share is not None:
        chosen = held_out_part(train.categories, share, seed=seed)
        train, held_out = _chosen_clouds(train, ~chosen), _chosen_clouds(train, chosen)
    score = train_segmenter(
        extractor.encoder,
        train,
        benchmark.test,
        category_parts=benchmark.category_parts,
        recipe=SegmenterRecipe(),
        inputs=extractor.inputs,
        seed=seed,
        epochs=run.epochs,
        device=extractor.device,
        report=report,
        file=file,
        held_out=held_out,
    ).score
    return Score(
        accuracy=score.instance,
        class_accuracy=score.category,
        best_accuracy=score.best_instance,
        selected_accuracy=score.selected_instance,
    )


def _chosen_clouds(clouds: PartClouds, chosen: NDArray[np.bool_]) -> PartClouds:
    """Some of the clouds, by an (n,) mask."""
    rows = np.flatnonzero(chosen)
    return PartClouds(
        points=tuple(clouds.points[row] for row in rows),
        parts=tuple(clouds.parts[row] for row in rows),
        categories=clouds.categories[rows],
        ids=tuple(clouds.ids[row] for row in rows),
    )
