"""Trains part segmenters: recipe, initial weights, training and test clouds, loss and mIoU.

Sizes: n clouds, B clouds per batch, N points of a cloud that the network sees. Source: section 7 of
    docs/method.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pointdistill.data.benchmarks.records import PartClouds
from pointdistill.engine.features.inputs import ProtocolInput
from pointdistill.engine.finetuning.classification import (
    check_density,
    patchify_from,
    patchify_from_outermost,
)
from pointdistill.engine.finetuning.epochs import (
    STREAM,
    EpochRecord,
    Figures,
    Trained,
    device_of,
    train_epochs,
    weights_generator,
)
from pointdistill.engine.finetuning.part_clouds import (
    CategoryParts,
    PackedClouds,
    PartIou,
    mean_part_iou,
    predict_parts,
    shape_ious,
)
from pointdistill.engine.finetuning.training_file import TrainingFile
from pointdistill.engine.runtime.schedules import warmup_cosine
from pointdistill.errors import ConfigError
from pointdistill.model.classifier import initialize_uniform, ramp_stochastic_depth
from pointdistill.model.config import EncoderConfig, Initialization
from pointdistill.model.encoder import Encoder
from pointdistill.model.initialize import initialize
from pointdistill.model.patches import to_unit_sphere
from pointdistill.model.random import KeyedRandom, sample_keys
from pointdistill.model.segmenter import Segmenter, SegmenterConfig
from pointdistill.model.views import augment_points

EVALUATION_BATCH = 32
"""Clouds per forward pass without gradients; affects speed and memory, and the logits only by rounding."""

_PUBLISHED = SegmenterConfig()
_PUBLISHED_WIDTH = 384
_PUBLISHED_DEPTH = 12
_TEST_STREAM = "evaluation"


@dataclass(frozen=True, slots=True)
class SegmenterResult:
    """A trained segmenter and its score."""

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
    held_out: PartClouds | None = None,
) -> SegmenterResult:
    """Train a segmenter and test it after every epoch.

    The points and augmentation of a training cloud depend only on (seed, epoch, index). The points of the test
    clouds are the same in every epoch.

    Args:
        encoder: copied; the one passed in is not changed.
        train: clouds with a part at every point, z up.
        test: the same, never trained on.
        category_parts: part labels of every category.
        recipe: the published one, or a changed copy.
        inputs: points and patches per cloud, and the augmentation in training; points are drawn uniformly.
        seed: seed of new weights, the order of clouds, their points, augmentation and dropout.
        epochs: overrides the recipe's; its schedule is shortened in proportion.
        device: where to train.
        report: called after every epoch.
        file: where to save the training state; if the file exists, training resumes from it.
        held_out: clouds of the training split that are not in ``train``; they select an epoch.

    Raises:
        ConfigError: if ``epochs`` is below 1.
        DataError: if there are no clouds, or a part does not belong to its shape's category.
        CheckpointError: if ``file`` exists and does not fit.
        DivergenceError: if the loss of an epoch is not finite.
        KeyboardInterrupt: if ``file.stop`` returns True; the training has been saved in it.
    """
    segmenter = build_segmenter(encoder, category_parts, recipe, seed=seed)
    task = SegmenterTask(
        segmenter.to(device), train, test, category_parts, inputs, seed, held_out=held_out
    )
    trained = train_epochs(task, recipe, seed=seed, epochs=epochs, report=report, file=file)
    if not trained.finished:
        raise KeyboardInterrupt
    score = task.score(trained)
    return SegmenterResult(score, segmenter)


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmenterRecipe:
    """Settings for training a segmenter; the defaults are those published for ShapeNetPart."""

    name: str = "parts"

    random_encoder: bool = False
    """Replace the encoder's weights by new random ones before training."""

    frozen_encoder: bool = False
    """Train everything but the encoder."""

    initialization: Initialization = Initialization.AUTHORS
    """How the random weights are drawn."""

    drop_path: float = 0.2
    """Stochastic depth of the encoder's last block, rising linearly from 0 in its first."""

    epochs: int = 300
    """Passes over the training clouds, including the warm-up's."""

    warmup_epochs: int = 10
    first_learning_rate: float = 1e-7
    peak_learning_rate: float = 2e-4
    final_learning_rate: float = 1e-7
    """Linear from the first to the peak over the warm-up, then cosine to the final one."""

    weight_decay: float = 0.05
    """Weight decay of every trained parameter."""

    batch_size: int = 16
    """Clouds per step; the last partial batch of an epoch is dropped, unless it is the only one."""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_epochs <= self.epochs or self.epochs < 1:
            msg = (
                f"epochs must be at least 1 and include the warm-up, got epochs {self.epochs}, "
                f"warmup_epochs {self.warmup_epochs}"
            )
            raise ConfigError(msg)
        if self.batch_size < 1:
            msg = f"batch_size must be at least 1, got {self.batch_size}"
            raise ConfigError(msg)

    def frozen_steps(self, total: int) -> int:
        """How many of ``total`` optimiser steps leave the encoder unchanged: all or none."""
        return total if self.frozen_encoder else 0

    def learning_rate(self, step: int, *, total: int) -> float:
        """Learning rate at optimiser step ``step``, from 0, of ``total``; a shorter run keeps the proportions."""
        return warmup_cosine(
            step,
            first=self.first_learning_rate,
            peak=self.peak_learning_rate,
            final=self.final_learning_rate,
            warmup=round(total * self.warmup_epochs / self.epochs),
            total=total,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PartScore:
    """Mean intersections over union on the test split, in percent."""

    instance: float
    """Mean over the shapes, after the last epoch."""

    category: float
    """Mean over the categories of the mean over their shapes ("class mIoU"), after the last epoch."""

    by_category: dict[int, float]
    """Mean over the shapes of each category in the test split."""

    best_instance: float
    """Highest instance mIoU of any epoch. It was chosen on the test split, so it is an upper bound, no result."""

    best_epoch: int
    """The first epoch, counted from 1, that reached it."""

    selected_instance: float | None = None
    """Instance mIoU after the epoch that was best on clouds held out of the training split; None if none were."""


class SegmenterTask:
    """A segmenter with its training and test clouds; implements ``epochs.Task``."""

    def __init__(
        self,
        segmenter: Segmenter,
        train: PartClouds,
        test: PartClouds,
        category_parts: CategoryParts,
        inputs: ProtocolInput,
        seed: int,
        *,
        held_out: PartClouds | None = None,
    ) -> None:
        """Copy the clouds to the segmenter's device, and draw the points of the test clouds.

        Raises:
            DataError: if there are no clouds, or a patch needs more points than a cloud has.
        """
        device = device_of(segmenter)
        check_density(inputs.points, segmenter.encoder.config)
        self.model, self.count = segmenter, len(train)
        self._parts, self.inputs, self._seed = category_parts, inputs, seed
        self._train = PackedClouds.pack(train, device, side="training")
        self._test = self._draw(test, "test")
        self._held_out = None if held_out is None else self._draw(held_out, "held-out")

    def _draw(self, clouds: PartClouds, side: str) -> _DrawnClouds:
        """The points of clouds that are not trained on; the same in every epoch."""
        device = device_of(self.model)
        packed = PackedClouds.pack(clouds, device, side=side)
        index = torch.arange(len(clouds), device=device)
        random = KeyedRandom(sample_keys(seed=self._seed, epoch=0, index=index), _TEST_STREAM)
        points, truth = packed.draw(index, self.inputs.points, random)
        return _DrawnClouds(to_unit_sphere(points), truth, packed.categories)

    def loss(self, index: Tensor, *, epoch: int, noise: torch.Generator) -> Tensor:
        """Cross-entropy over all points, as ``epochs.Task`` describes."""
        keys = sample_keys(seed=self._seed, epoch=epoch, index=index)
        random = KeyedRandom(keys, STREAM)
        points, parts = self._train.draw(index, self.inputs.points, random)
        points = augment_points(points[:, None], self.inputs.augment, random)[:, 0]
        points = to_unit_sphere(points)
        start = random.integers("first centre", torch.full_like(index, points.shape[1]))
        patches = patchify_from(points, self.inputs, self.model.encoder.config.patch_points, start)
        logits = self.model(points, patches, self._train.categories[index], noise)
        return cross_entropy(logits.flatten(0, 1), parts.flatten())

    def measure(self) -> Figures:
        """Instance and class mIoU of the test clouds."""
        means = self._means(self._test)
        return Figures(100.0 * means.instance, 100.0 * means.category)

    def measure_held_out(self) -> float | None:
        """Instance mIoU of the held-out clouds."""
        return None if self._held_out is None else 100.0 * self._means(self._held_out).instance

    def score(self, trained: Trained) -> PartScore:
        """The mIoU on the test clouds, overall and by category, with those of the best and the selected epoch."""
        means = self._means(self._test)
        return PartScore(
            instance=100.0 * means.instance,
            category=100.0 * means.category,
            by_category={number: 100.0 * iou for number, iou in means.by_category.items()},
            best_instance=trained.best_overall,
            best_epoch=trained.best_epoch,
            selected_instance=None if trained.selected is None else trained.selected.overall,
        )

    def _means(self, clouds: _DrawnClouds) -> PartIou:
        ious = shape_ious(self._predict(clouds), clouds.truth, clouds.categories, self._parts)
        return mean_part_iou(ious, clouds.categories)

    def _predict(self, clouds: _DrawnClouds) -> Tensor:
        """Predicted parts of clouds, (n, N) int64; restores the model's training mode."""
        was_training = self.model.training
        self.model.eval()
        predicted = []
        try:
            with torch.inference_mode():
                for points, categories in zip(
                    clouds.points.split(EVALUATION_BATCH),
                    clouds.categories.split(EVALUATION_BATCH),
                    strict=True,
                ):
                    logits = segment(self.model, points, points, categories, self.inputs)
                    predicted.append(predict_parts(logits, categories, self._parts))
        finally:
            self.model.train(was_training)
        return torch.cat(predicted)


@dataclass(frozen=True, slots=True)
class _DrawnClouds:
    """Clouds that a segmenter is measured on."""

    points: Tensor  # (n, N, 3), in the unit sphere
    truth: Tensor  # (n, N), the part of each point
    categories: Tensor  # (n,) int64


def segment(
    segmenter: Segmenter,
    points: Tensor,
    context: Tensor,
    categories: Tensor,
    inputs: ProtocolInput,
) -> Tensor:
    """Part logits at every point, (B, N, parts).

    Args:
        segmenter: in evaluation mode.
        points: (B, N, 3), the points to label, in the clouds' unit spheres.
        context: (B, N', 3), the points to make patches of, in the same frame and as dense as in training.
        categories: (B,) int64.
        inputs: number of patches per cloud.
    """
    patches = patchify_from_outermost(context, inputs, segmenter.encoder.config.patch_points)
    return segmenter(points, patches, categories)


def build_segmenter(
    encoder: Encoder, category_parts: CategoryParts, recipe: SegmenterRecipe, *, seed: int
) -> Segmenter:
    """A segmenter on a copy of the encoder, on the CPU, with new weights drawn from ``seed``."""
    generator = weights_generator(seed)
    encoder = copy.deepcopy(encoder).cpu()
    if recipe.random_encoder:
        initialize(encoder, generator=generator, initialization=recipe.initialization)
    # Whatever pretraining used.
    ramp_stochastic_depth(encoder, recipe.drop_path)
    segmenter = Segmenter(encoder, segmenter_config(encoder.config, category_parts))
    for part in (
        segmenter.layer_norm,
        segmenter.category_embedding,
        segmenter.upsample,
        segmenter.head,
    ):
        initialize_uniform(part, generator=generator)
    return segmenter


def segmenter_config(encoder: EncoderConfig, category_parts: CategoryParts) -> SegmenterConfig:
    """The published segmenter for these categories; takes features at 1/3, 2/3 and all of the encoder's depth."""
    # An encoder narrower than the published small one gets proportionally narrower layers: at their published
    # width they would cost ten times as much as a tiny encoder itself.
    scale = min(1.0, encoder.width / _PUBLISHED_WIDTH)
    layers = {
        max(1, round(layer * encoder.depth / _PUBLISHED_DEPTH)) for layer in _PUBLISHED.layers
    }
    inner, outer = (
        tuple(max(1, round(scale * width)) for width in widths)
        for widths in (_PUBLISHED.point_widths, _PUBLISHED.head_widths)
    )
    return SegmenterConfig(
        parts=1 + max(part for parts in category_parts for part in parts),
        categories=len(category_parts),
        layers=tuple(sorted(layers)),
        point_widths=(inner[0], inner[1]),
        head_widths=(outer[0], outer[1]),
    )
