"""Training of part segmenters, measured as ShapeNetPart is. Source: section 7 of docs/method.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from pointdistill.data.benchmarks.part_records import PartBenchmark, PartClouds
from pointdistill.engine.evaluation.published import published_figure
from pointdistill.engine.evaluation.results import Result, Spread, combine
from pointdistill.engine.finetuning.epochs import EpochRecord, train_epochs
from pointdistill.engine.finetuning.part_iou import CategoryParts
from pointdistill.engine.finetuning.segmenter_task import (
    PartScore,
    SegmenterRecipe,
    SegmenterTask,
    build_segmenter,
)
from pointdistill.engine.inputs import ProtocolInput, protocol_input
from pointdistill.model.encoder import Encoder
from pointdistill.model.segmenter import Segmenter

PROTOCOL = "parts"
"""What results and published figures call it."""


@dataclass(frozen=True, slots=True)
class SegmenterResult:
    """A trained segmenter and how well it did."""

    score: PartScore
    segmenter: Segmenter
    """As the last epoch left it, in evaluation mode."""


def train_segmenter(
    encoder: Encoder,
    train: PartClouds,
    test: PartClouds,
    *,
    category_parts: CategoryParts,
    recipe: SegmenterRecipe,
    inputs: ProtocolInput,
    seed: int,
    epochs: int | None = None,
    device: torch.device | str = "cpu",
    report: Callable[[EpochRecord], None] | None = None,
) -> SegmenterResult:
    """Train a segmenter and test it after every epoch.

    What a training cloud looks like depends on (seed, epoch, index) alone. The points of the test clouds are
    the same in every epoch.

    Args:
        encoder: copied; the one passed in is not changed.
        train: clouds with a part at every point, z up.
        test: the same, never trained on.
        category_parts: part labels of every category.
        recipe: the published one, or a changed copy.
        inputs: points and patches a cloud, and the augmentation in training; points are drawn uniformly.
        seed: of the weights that are drawn, of the order, the points, augmentation and dropout.
        epochs: instead of the recipe's; its schedule is shortened in proportion.
        device: where to train.
        report: told after every epoch.

    Raises:
        ConfigError: if ``epochs`` is below 1.
        DataError: if there are no clouds, or a part is not one of its category's.
        DivergenceError: if the loss of an epoch is not finite.
    """
    segmenter = build_segmenter(encoder, category_parts, recipe, seed=seed)
    task = SegmenterTask(segmenter.to(device), train, test, category_parts, inputs, seed)
    trained = train_epochs(task, recipe, seed=seed, epochs=epochs, report=report)
    score = task.score(best=trained.best_overall, best_epoch=trained.best_epoch)
    return SegmenterResult(score, segmenter)


def measure_parts(
    encoder: Encoder,
    benchmark: PartBenchmark,
    *,
    name: str,
    seeds: tuple[int, ...],
    epochs: int | None = None,
    published_model: str | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Result]:
    """Train a segmenter for each seed under the published protocol; one result over the seeds.

    Args:
        encoder: where training begins; not changed.
        benchmark: clouds with parts, with their official split.
        name: what to call the encoder in the result.
        seeds: one run each.
        epochs: instead of the protocol's; the result says so.
        published_model: whose published figures to set beside ours.
        device: where to train.
        progress: told the seed, and the epochs done and to do of all seeds together.

    Raises:
        ConfigError: if ``epochs`` is below 1.
        DataError: if the clouds cannot be trained on.
        DivergenceError: if the loss of an epoch is not finite.
    """
    recipe, inputs = SegmenterRecipe(), protocol_input(benchmark.name, encoder.config)
    length = epochs or recipe.epochs
    results = []
    for place, seed in enumerate(seeds):

        def report(record: EpochRecord, place: int = place, seed: int = seed) -> None:
            if progress is not None:
                progress(f"seed {seed}: parts", place * length + record.epoch, len(seeds) * length)

        trained = train_segmenter(
            encoder,
            benchmark.train,
            benchmark.test,
            category_parts=benchmark.category_parts,
            recipe=recipe,
            inputs=inputs,
            seed=seed,
            epochs=epochs,
            device=device,
            report=report,
        )
        result = _result(benchmark, trained.score, inputs, recipe, name, seed, length)
        published = published_figure(
            published_model, benchmark=benchmark.name, split=None, protocol=PROTOCOL
        )
        results.append(replace(result, published=published))
    return combine(results)


def _result(
    benchmark: PartBenchmark,
    score: PartScore,
    inputs: ProtocolInput,
    recipe: SegmenterRecipe,
    name: str,
    seed: int,
    epochs: int,
) -> Result:
    """One seed's score, with what was measured."""
    return Result(
        features=name,
        benchmark=benchmark.name,
        split=None,
        data_name=benchmark.data_name,
        form=benchmark.form,
        checksum=benchmark.checksum,
        stand_in=benchmark.stand_in,
        train_clouds=len(benchmark.train),
        test_clouds=len(benchmark.test),
        protocol=PROTOCOL,
        points=inputs.points,
        patches=inputs.patches,
        subsampling=inputs.subsampling,
        augmentation="training clouds augmented anew each epoch",
        seeds=(seed,),
        accuracy=Spread.of([score.instance]),
        class_accuracy=Spread.of([score.category]),
        best_epoch_accuracy=Spread.of([score.best_instance]),
        published=None,
        metrics=("instance mIoU", "class mIoU"),
        each=(score.instance,),
        epochs=epochs,
        protocol_epochs=recipe.epochs,
    )
