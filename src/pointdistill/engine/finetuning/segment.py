"""Training of part segmenters. Source: section 7 of docs/method.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pointdistill.data.benchmarks.records import PartClouds
from pointdistill.engine.finetuning.epochs import EpochRecord, train_epochs
from pointdistill.engine.finetuning.part_iou import CategoryParts
from pointdistill.engine.finetuning.segmenter_task import (
    PartScore,
    SegmenterRecipe,
    SegmenterTask,
    build_segmenter,
)
from pointdistill.engine.finetuning.training_file import TrainingFile
from pointdistill.engine.inputs import ProtocolInput
from pointdistill.model.encoder import Encoder
from pointdistill.model.segmenter import Segmenter


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
    file: TrainingFile | None = None,
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
        file: where to keep what is needed to go on; it is gone on with if it exists.

    Raises:
        ConfigError: if ``epochs`` is below 1.
        DataError: if there are no clouds, or a part is not one of its category's.
        CheckpointError: if ``file`` exists and does not fit.
        DivergenceError: if the loss of an epoch is not finite.
        KeyboardInterrupt: if ``file`` says to stop; everything is in it then.
    """
    segmenter = build_segmenter(encoder, category_parts, recipe, seed=seed)
    task = SegmenterTask(segmenter.to(device), train, test, category_parts, inputs, seed)
    trained = train_epochs(task, recipe, seed=seed, epochs=epochs, report=report, file=file)
    if not trained.finished:
        raise KeyboardInterrupt
    score = task.score(best=trained.best_overall, best_epoch=trained.best_epoch)
    return SegmenterResult(score, segmenter)
