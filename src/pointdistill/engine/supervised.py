"""Training of classifiers: encoder and head together, from random weights or from pretrained ones.

Sizes: n clouds, N points a stored cloud, B clouds a batch, P patches, K points a patch. Source: section 7 of
docs/method.md.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pointdistill.data.benchmarks.records import LabelledClouds
from pointdistill.engine.classifier_recipes import ClassifierRecipe
from pointdistill.engine.inputs import ProtocolInput, cloud_batches, subsample
from pointdistill.engine.optimizer import build_optimizer
from pointdistill.engine.probe.samples import Score, score_predictions
from pointdistill.errors import ConfigError, DataError, DivergenceError
from pointdistill.model.classifier import (
    Classifier,
    ClassifierConfig,
    initialize_uniform,
)
from pointdistill.model.encoder import Encoder
from pointdistill.model.initialize import initialize
from pointdistill.model.patches import Patches, patchify, to_unit_sphere
from pointdistill.model.random import KeyedRandom, sample_keys
from pointdistill.model.views import augment_points

EVALUATION_BATCH = 128
"""Clouds a forward pass without gradients; changes the speed and the memory, the logits by rounding alone."""

_STREAM = "supervised"


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One epoch of training, for a progress report."""

    epoch: int
    """Counted from 1."""

    epochs: int
    loss: float
    """Mean over the training clouds, in nats."""

    accuracy: float
    """Of the test clouds after this epoch, in percent."""

    learning_rate: float
    """Of the epoch's last step."""

    clouds_per_second: float
    """Training clouds a second, testing not counted."""


@dataclass(frozen=True, slots=True)
class ClassifierResult:
    """A trained classifier and how well it did."""

    score: Score
    """After the last epoch, with the best epoch beside it."""

    classifier: Classifier
    """As the last epoch left it, in evaluation mode."""


def train_classifier(
    encoder: Encoder,
    train: LabelledClouds,
    test: LabelledClouds,
    *,
    classes: int,
    recipe: ClassifierRecipe,
    inputs: ProtocolInput,
    seed: int,
    epochs: int | None = None,
    device: torch.device | str = "cpu",
    report: Callable[[EpochRecord], None] | None = None,
) -> ClassifierResult:
    """Train a classifier and test it after every epoch.

    What a training cloud looks like depends on (seed, epoch, index) alone. The test clouds are the same in every
    epoch: those that the probes of the same seed see.

    Args:
        encoder: copied; the one passed in is not changed.
        train: labelled clouds, z up.
        test: labelled clouds, z up.
        classes: of the benchmark; labels lie below it.
        recipe: one of ``RECIPES``, or a changed copy.
        inputs: points and patches a cloud, how the points are chosen, and the augmentation in training.
        seed: of the weights that are drawn, of the order, the views, dropout and stochastic depth.
        epochs: instead of the recipe's; its schedule is shortened in proportion.
        device: where to train.
        report: told after every epoch.

    Raises:
        ConfigError: if ``epochs`` is below 1.
        DataError: if labels and clouds do not fit, or clouds are fewer or smaller than training needs.
        DivergenceError: if the loss of an epoch is not finite.
    """
    if epochs is not None and epochs < 1:
        msg = f"epochs must be at least 1, got {epochs}"
        raise ConfigError(msg)
    _check_clouds(train, "training", fewest=2, classes=classes)
    _check_clouds(test, "test", fewest=1, classes=classes)
    _check_density(min(train.points.shape[1], test.points.shape[1], inputs.points), encoder)
    classifier = _build(encoder, classes, recipe, seed=seed)
    trainer = _Trainer(classifier, train, recipe, inputs, seed, epochs or recipe.epochs, device)
    held_out = cut_clouds(test, inputs, encoder.config.patch_points, seed=seed, device=device)
    return _train(trainer, held_out, torch.from_numpy(test.labels), report)


def _train(
    trainer: _Trainer,
    test: Patches,
    labels: Tensor,
    report: Callable[[EpochRecord], None] | None,
) -> ClassifierResult:
    """All epochs, each followed by a test."""
    score, best, best_epoch = None, -1.0, 0
    for epoch in range(trainer.epochs):
        began = time.perf_counter()
        loss = trainer.train_epoch(epoch)
        seconds = time.perf_counter() - began
        score = score_predictions(predict(trainer.classifier, test), labels)
        if score.accuracy > best:
            best, best_epoch = score.accuracy, epoch + 1
        if report is not None:
            record = EpochRecord(
                epoch=epoch + 1,
                epochs=trainer.epochs,
                loss=loss,
                accuracy=score.accuracy,
                learning_rate=trainer.optimizer.param_groups[0]["lr"],
                clouds_per_second=len(trainer.labels) / seconds,
            )
            report(record)
    assert score is not None
    score = replace(score, best_accuracy=best, best_epoch=best_epoch)
    return ClassifierResult(score, trainer.classifier.eval())


def predict(
    classifier: Classifier, patches: Patches, *, batch_size: int = EVALUATION_BATCH
) -> Tensor:
    """(n,) int64 predicted classes, on the CPU, of n clouds' patches; no gradient, no dropout.

    The classifier is left in the mode it was in.
    """
    was_training = classifier.training
    classifier.eval()
    try:
        with torch.inference_mode():
            batches = zip(
                patches.centers.split(batch_size), patches.offsets.split(batch_size), strict=True
            )
            return torch.cat([classifier(Patches(*batch)).argmax(1) for batch in batches]).cpu()
    finally:
        classifier.train(was_training)


def cut_clouds(
    clouds: LabelledClouds,
    inputs: ProtocolInput,
    patch_points: int,
    *,
    seed: int,
    device: torch.device | str = "cpu",
) -> Patches:
    """Patches of all clouds, not augmented, on ``device``: (n, P, 3) and (n, P, K, 3).

    Farthest point sampling begins at the point farthest from the mean, as in ``Encoder``.
    """
    cut = []
    for _, batch in cloud_batches(
        clouds.points,
        inputs,
        seed=seed,
        epoch=None,
        batch_size=EVALUATION_BATCH,
        device=torch.device(device),
    ):
        normalised = to_unit_sphere(batch)
        start = normalised.square().sum(-1).argmax(-1)
        cut.append(_cut(normalised, inputs, patch_points, start))
    return Patches(torch.cat([c.centers for c in cut]), torch.cat([c.offsets for c in cut]))


class _Trainer:
    """What changes from step to step, and one epoch of steps."""

    def __init__(
        self,
        classifier: Classifier,
        train: LabelledClouds,
        recipe: ClassifierRecipe,
        inputs: ProtocolInput,
        seed: int,
        epochs: int,
        device: torch.device | str,
    ) -> None:
        self.classifier = classifier.to(device)
        self.recipe, self.inputs, self.seed, self.epochs = recipe, inputs, seed, epochs
        self.points = torch.from_numpy(train.points).to(device)
        self.labels = torch.from_numpy(train.labels).to(device)
        self.optimizer = build_optimizer(
            classifier, learning_rate=0.0, weight_decay=recipe.weight_decay
        )
        self.noise = _generator(seed, "noise", device)
        self.step = 0

    def train_epoch(self, epoch: int) -> float:
        """One pass over the training clouds; their mean loss.

        Raises:
            DivergenceError: if it is not finite.
        """
        everything = torch.arange(len(self.labels), device=self.labels.device)
        order = sample_keys(seed=self.seed, epoch=epoch, index=everything).argsort()
        batches = split_batches(order, self.recipe.batch_size)
        # Summed where it is computed: reading every step's loss would make a GPU wait for it.
        summed = torch.zeros((), device=order.device)
        for index in batches:
            summed += len(index) * self._step(index, epoch, self.epochs * len(batches))
        mean = summed.item() / len(order)
        if not math.isfinite(mean):
            msg = (
                f"epoch {epoch + 1} of {self.epochs}: the loss is {mean}; lower the recipe's "
                f"peak_learning_rate ({self.recipe.peak_learning_rate}), or look for broken clouds"
            )
            raise DivergenceError(msg)
        return mean

    def _step(self, index: Tensor, epoch: int, total: int) -> Tensor:
        """One optimiser step on the clouds at (B,) ``index``; their mean loss, detached."""
        trains_encoder = self.step >= self.recipe.frozen_steps(total)
        self.classifier.train().encoder.train(trains_encoder)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(self.step, total=total)
        patches = training_patches(
            self.points,
            index,
            self.inputs,
            self.classifier.encoder.config.patch_points,
            seed=self.seed,
            epoch=epoch,
        )
        with torch.set_grad_enabled(trains_encoder):
            features = self.classifier.features(patches, self.noise)
        logits = self.classifier.head(features, self.noise)
        loss = cross_entropy(
            logits, self.labels[index], label_smoothing=self.recipe.label_smoothing
        )
        # A parameter without a gradient is skipped by the optimiser, so a frozen encoder does not decay either.
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return loss.detach()


def training_patches(
    points: Tensor,
    index: Tensor,
    inputs: ProtocolInput,
    patch_points: int,
    *,
    seed: int,
    epoch: int,
) -> Patches:
    """Clouds as an epoch sees them: subsampled, augmented, cut from a random first centre.

    Each depends on (seed, epoch, index) alone, whatever else is in the batch.

    Args:
        points: (n, N, 3), all training clouds.
        index: (B,) int64, those wanted.
        inputs: how they are subsampled and augmented.
        patch_points: K.
        seed: of the run.
        epoch: from 0.
    """
    random = KeyedRandom(sample_keys(seed=seed, epoch=epoch, index=index), _STREAM)
    clouds = subsample(points[index], inputs.points, inputs.subsampling, random)
    clouds = augment_points(clouds[:, None], inputs.augment, random)[:, 0]
    start = random.integers("first centre", torch.full_like(index, clouds.shape[1]))
    return _cut(to_unit_sphere(clouds), inputs, patch_points, start)


def split_batches(order: Tensor, size: int) -> list[Tensor]:
    """Consecutive runs of ``size`` entries; the last may be shorter, and a single one left over joins it."""
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _cut(clouds: Tensor, inputs: ProtocolInput, patch_points: int, start: Tensor) -> Patches:
    """Patches of (B, N, 3) clouds in their unit spheres, from (B,) first centres."""
    patches = min(inputs.patches, clouds.shape[1])
    return patchify(clouds, patches=patches, patch_points=patch_points, start=start)


def _build(encoder: Encoder, classes: int, recipe: ClassifierRecipe, *, seed: int) -> Classifier:
    """The recipe's classifier on a copy of the encoder, every weight of it to be trained."""
    generator = _generator(seed, "weights")
    encoder = copy.deepcopy(encoder).cpu()
    if recipe.random_encoder:
        initialize(encoder, generator=generator)
    config = ClassifierConfig(classes=classes, pooling=recipe.pooling, drop_path=recipe.drop_path)
    classifier = Classifier(encoder, config)
    draw: Callable[..., None] = initialize if recipe.truncated_head else initialize_uniform
    draw(classifier.head, generator=generator)
    return classifier.requires_grad_(requires_grad=True)


def _generator(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for each purpose."""
    key = sample_keys(seed=seed, epoch=0, index=torch.zeros(1, dtype=torch.int64))
    generator = torch.Generator(device)
    generator.manual_seed(int(KeyedRandom(key, _STREAM).bits(purpose)))
    return generator


def _check_clouds(clouds: LabelledClouds, side: str, *, fewest: int, classes: int) -> None:
    """Raise unless there are enough clouds, each with a label below ``classes``."""
    shape, labels = clouds.points.shape, clouds.labels
    if len(shape) != 3 or shape[2] != 3 or labels.shape != shape[:1]:
        msg = f"expected {side} clouds (n, N, 3) with labels (n,), got {shape} and {labels.shape}"
        raise DataError(msg)
    if shape[0] < fewest:
        msg = f"training a classifier needs at least {fewest} {side} clouds, got {shape[0]}"
        raise DataError(msg)
    if labels.min() < 0 or labels.max() >= classes:
        msg = f"{side} labels must lie in 0 to {classes - 1}, got {labels.min()} to {labels.max()}"
        raise DataError(msg)


def _check_density(points: int, encoder: Encoder) -> None:
    """Raise unless clouds of ``points`` points fill a patch."""
    least = encoder.config.patch_points
    if points < least:
        msg = f"a patch of this encoder needs {least} points, the clouds give {points}; give it denser ones"
        raise DataError(msg)
