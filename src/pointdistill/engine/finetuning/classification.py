"""Trains classifiers, encoder and head together, from random or pretrained weights.

Sizes: n clouds, N points per stored cloud, B clouds per batch, P patches, K points per patch. Source: section 7 of
docs/method.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from pointdistill.data.benchmarks.records import LabelledClouds
from pointdistill.engine.features.fitted_probes import Score, score_predictions
from pointdistill.engine.features.inputs import ProtocolInput, cloud_batches, subsample
from pointdistill.engine.finetuning.epochs import (
    STREAM,
    EpochRecord,
    Figures,
    Trained,
    device_of,
    train_epochs,
    weights_generator,
)
from pointdistill.engine.finetuning.recipes import ClassifierRecipe
from pointdistill.engine.finetuning.training_file import TrainingFile
from pointdistill.errors import DataError
from pointdistill.model.classifier import Classifier, ClassifierConfig, initialize_uniform
from pointdistill.model.config import EncoderConfig
from pointdistill.model.encoder import Encoder
from pointdistill.model.initialize import initialize
from pointdistill.model.patches import Patches, patchify, to_unit_sphere
from pointdistill.model.random import KeyedRandom, sample_keys
from pointdistill.model.views import augment_points

EVALUATION_BATCH = 128
"""Clouds per forward pass without gradients; affects speed and memory, and the logits only by rounding."""


@dataclass(frozen=True, slots=True)
class ClassifierResult:
    """A trained classifier and its score."""

    score: Score
    """Score after the last epoch, and that of the best epoch."""

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
    file: TrainingFile | None = None,
    held_out: LabelledClouds | None = None,
) -> ClassifierResult:
    """Train a classifier and test it after every epoch.

    The augmentation of a training cloud depends only on (seed, epoch, index). The test clouds are the same in
    every epoch, and the same as those of the probes with this seed.

    Args:
        encoder: copied; the one passed in is not changed.
        train: labelled clouds, z up.
        test: labelled clouds, z up.
        classes: number of classes; labels are smaller than it.
        recipe: one of ``RECIPES``, or a changed copy.
        inputs: points and patches per cloud, how the points are chosen, and the augmentation in training.
        seed: seed of new weights, the order of clouds, augmentation, dropout and stochastic depth.
        epochs: overrides the recipe's; its schedule is shortened in proportion.
        device: where to train.
        report: called after every epoch.
        file: where to save the training state; if the file exists, training resumes from it.
        held_out: clouds of the training split that are not in ``train``; they select an epoch.

    Raises:
        ConfigError: if ``epochs`` is below 1.
        DataError: if labels and clouds do not match, or there are too few clouds, or too few points in them.
        CheckpointError: if ``file`` exists and does not fit.
        DivergenceError: if the loss of an epoch is not finite.
        KeyboardInterrupt: if ``file.stop`` returns True; the training has been saved in it.
    """
    check_labelled(train, test, classes=classes, inputs=inputs, encoder=encoder.config)
    classifier = build_classifier(encoder, classes, recipe, seed=seed)
    task = ClassifierTask(
        classifier.to(device), train, test, recipe, inputs, seed, held_out=held_out
    )
    trained = train_epochs(task, recipe, seed=seed, epochs=epochs, report=report, file=file)
    if not trained.finished:
        raise KeyboardInterrupt
    return ClassifierResult(classifier_score(trained), classifier)


def classifier_score(trained: Trained) -> Score:
    """The result of at least one epoch of training, as the score record that the probes use too."""
    assert trained.last is not None
    return Score(
        accuracy=trained.last.overall,
        class_accuracy=trained.last.class_mean,
        best_accuracy=trained.best_overall,
        best_epoch=trained.best_epoch,
        selected_accuracy=None if trained.selected is None else trained.selected.overall,
        selected_epoch=None if trained.selected is None else trained.selected.epoch,
    )


class ClassifierTask:
    """A classifier with its training and test clouds; implements ``epochs.Task``."""

    def __init__(
        self,
        classifier: Classifier,
        train: LabelledClouds,
        test: LabelledClouds,
        recipe: ClassifierRecipe,
        inputs: ProtocolInput,
        seed: int,
        *,
        held_out: LabelledClouds | None = None,
    ) -> None:
        """Copy both splits to the classifier's device, and divide the test clouds into patches."""
        # Test patches never change, so farthest point sampling, the costly part, is done once and not every epoch.
        device = device_of(classifier)
        self.model = classifier
        self.count = len(train)
        self._smoothing, self.inputs, self._seed = recipe.label_smoothing, inputs, seed
        self._points = torch.from_numpy(train.points).to(device)
        self._labels = torch.from_numpy(train.labels).to(device)
        patch_points = classifier.encoder.config.patch_points

        def divided(clouds: LabelledClouds) -> tuple[Patches, Tensor]:
            patches = patchify_clouds(clouds, inputs, patch_points, seed=seed, device=device)
            return patches, torch.from_numpy(clouds.labels)

        self._test = divided(test)
        self._held_out = None if held_out is None else divided(held_out)

    def loss(self, index: Tensor, *, epoch: int, noise: torch.Generator) -> Tensor:
        """Cross-entropy with label smoothing, as ``epochs.Task`` describes."""
        patches = training_patches(
            self._points,
            index,
            self.inputs,
            self.model.encoder.config.patch_points,
            seed=self._seed,
            epoch=epoch,
        )
        logits = self.model(patches, noise)
        return cross_entropy(logits, self._labels[index], label_smoothing=self._smoothing)

    def measure(self) -> Figures:
        """Accuracies on the test clouds."""
        score = self._score(self._test)
        return Figures(score.accuracy, score.class_accuracy)

    def confusion(self) -> NDArray[np.int64] | None:
        """(C, C) test clouds by true and predicted class; None for more classes than anyone could read."""
        found = self._score(self._test).confusion
        if found is None:
            return None
        counts = np.array(found, np.int64)
        missing = self.model.config.classes - len(
            counts
        )  # classes of neither a cloud nor a prediction
        return np.pad(counts, (0, missing))

    def measure_held_out(self) -> float | None:
        """Overall accuracy on the held-out clouds."""
        return None if self._held_out is None else self._score(self._held_out).accuracy

    def _score(self, divided: tuple[Patches, Tensor]) -> Score:
        patches, labels = divided
        return score_predictions(predict_classes(self.model, patches), labels)


def predict_classes(
    classifier: Classifier, patches: Patches, *, batch_size: int = EVALUATION_BATCH
) -> Tensor:
    """Predicted classes of n clouds, (n,) int64 on the CPU, without gradients or dropout.

    The classifier's training mode is restored afterwards.
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


def patchify_clouds(
    clouds: LabelledClouds,
    inputs: ProtocolInput,
    patch_points: int,
    *,
    seed: int,
    device: torch.device | str = "cpu",
) -> Patches:
    """Patches of all clouds without augmentation, on ``device``: centers (n, P, 3) and offsets (n, P, K, 3).

    Farthest point sampling starts at the point farthest from the mean, as in ``Encoder``.
    """
    batches = []
    for _, batch in cloud_batches(
        clouds.points,
        inputs,
        seed=seed,
        epoch=None,
        batch_size=EVALUATION_BATCH,
        device=torch.device(device),
    ):
        batches.append(patchify_from_outermost(to_unit_sphere(batch), inputs, patch_points))
    centers = torch.cat([patches.centers for patches in batches])
    return Patches(centers, torch.cat([patches.offsets for patches in batches]))


def training_patches(
    points: Tensor,
    index: Tensor,
    inputs: ProtocolInput,
    patch_points: int,
    *,
    seed: int,
    epoch: int,
) -> Patches:
    """Patches of a training batch: clouds are subsampled and augmented, and the first centre is random.

    A cloud's patches depend only on (seed, epoch, index), not on the rest of the batch.

    Args:
        points: (n, N, 3), all training clouds.
        index: (B,) int64, the clouds of the batch.
        inputs: how they are subsampled and augmented.
        patch_points: K.
        seed: seed of the training.
        epoch: counted from 0.
    """
    random = KeyedRandom(sample_keys(seed=seed, epoch=epoch, index=index), STREAM)
    clouds = subsample(points[index], inputs.points, inputs.subsampling, random)
    clouds = augment_points(clouds[:, None], inputs.augment, random)[:, 0]
    start = random.integers("first centre", torch.full_like(index, clouds.shape[1]))
    return patchify_from(to_unit_sphere(clouds), inputs, patch_points, start)


def patchify_from_outermost(clouds: Tensor, inputs: ProtocolInput, patch_points: int) -> Patches:
    """Patches of (B, N, 3) clouds in their unit spheres; the first centre is farthest from the origin."""
    return patchify_from(clouds, inputs, patch_points, clouds.square().sum(-1).argmax(-1))


def patchify_from(
    clouds: Tensor, inputs: ProtocolInput, patch_points: int, start: Tensor
) -> Patches:
    """Patches of (B, N, 3) clouds in their unit spheres; ``start`` (B,) holds the index of each first centre."""
    patches = min(inputs.patches, clouds.shape[1])
    return patchify(clouds, patches=patches, patch_points=patch_points, start=start)


def build_classifier(
    encoder: Encoder, classes: int, recipe: ClassifierRecipe, *, seed: int
) -> Classifier:
    """The recipe's classifier on a copy of the encoder, on the CPU, with new weights drawn from ``seed``."""
    # On the CPU whatever the training device, so that the same seed gives the same weights everywhere.
    generator = weights_generator(seed)
    encoder = copy.deepcopy(encoder).cpu()
    if recipe.random_encoder:
        initialize(encoder, generator=generator, initialization=recipe.initialization)
    config = ClassifierConfig(classes=classes, pooling=recipe.pooling, drop_path=recipe.drop_path)
    classifier = Classifier(encoder, config)
    draw: Callable[..., None] = initialize if recipe.truncated_head else initialize_uniform
    draw(classifier.head, generator=generator)
    return classifier


def check_labelled(
    train: LabelledClouds,
    test: LabelledClouds,
    *,
    classes: int,
    inputs: ProtocolInput,
    encoder: EncoderConfig,
) -> None:
    """Check that a classifier can be trained and tested on these clouds.

    Raises:
        DataError: if labels and clouds do not match, there are too few clouds or too few points in them, or a
            point is not finite.
    """
    _check_clouds(train, "training", fewest=2, classes=classes)
    _check_clouds(test, "test", fewest=1, classes=classes)
    check_density(min(train.points.shape[1], test.points.shape[1], inputs.points), encoder)


def _check_clouds(clouds: LabelledClouds, side: str, *, fewest: int, classes: int) -> None:
    shape, labels = clouds.points.shape, clouds.labels
    if len(shape) != 3 or shape[2] != 3 or labels.shape != shape[:1]:
        msg = f"expected {side} clouds (n, N, 3) with labels (n,), got {shape} and {labels.shape}"
        raise DataError(msg)
    if shape[0] < fewest:
        msg = f"training a classifier needs at least {fewest} {side} clouds, got {shape[0]}"
        raise DataError(msg)
    broken = int((~np.isfinite(clouds.points)).any(axis=(1, 2)).sum())
    if broken:
        msg = f"{broken} of {shape[0]} {side} clouds have points that are not finite; remove these clouds"
        raise DataError(msg)
    if labels.min() < 0 or labels.max() >= classes:
        msg = f"{side} labels must lie in 0 to {classes - 1}, got {labels.min()} to {labels.max()}"
        raise DataError(msg)


def check_density(points: int, encoder: EncoderConfig) -> None:
    """Check that clouds of ``points`` points have enough of them for a patch.

    Raises:
        DataError: if they do not.
    """
    least = encoder.patch_points
    if points < least:
        msg = f"a patch of this encoder needs {least} points, the clouds have {points}; use denser clouds"
        raise DataError(msg)
