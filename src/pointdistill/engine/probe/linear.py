"""The published linear probe: one linear layer, trained by AdamW on frozen features."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pointdistill.engine.probe.samples import Samples, Score, score_predictions
from pointdistill.engine.schedules import warmup_cosine
from pointdistill.errors import ConfigError

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearProbe:
    """Settings of the linear probe; the defaults are the published ones."""

    epochs: int = 150
    warmup_epochs: int = 10
    batch_size: int = 32
    """Clouds a step; the last batch of an epoch may be smaller."""

    peak_learning_rate: float = 5e-4
    final_learning_rate: float = 1e-7
    weight_decay: float = 0.05
    """On weights and biases alike."""

    label_smoothing: float = 0.2
    """Share of the target spread evenly over all classes, in [0, 1)."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.warmup_epochs < 0:
            msg = (
                "the linear probe needs epochs and batch_size of at least 1 and warmup_epochs "
                f"of at least 0, got {self.epochs}, {self.batch_size} and {self.warmup_epochs}"
            )
            raise ConfigError(msg)
        if not 0.0 <= self.label_smoothing < 1.0:
            msg = f"label_smoothing must lie in [0, 1), got {self.label_smoothing}"
            raise ConfigError(msg)

    def learning_rate(self, step: int, *, steps_per_epoch: int) -> float:
        """Linear from 0 to the peak, then cosine to the final rate; ``step`` counted from 0."""
        total = self.epochs * steps_per_epoch
        return warmup_cosine(
            step,
            first=0.0,
            peak=self.peak_learning_rate,
            final=self.final_learning_rate,
            warmup=min(self.warmup_epochs * steps_per_epoch, total),
            total=total,
        )


class LinearHead:
    """A softmax classifier with its own AdamW, without a graph.

    The gradient of a softmax cross-entropy is features^T (probabilities - targets) / batch. Writing
    it out costs 0.06 ms a step on one core where autograd and ``torch.optim.AdamW`` take 0.3, which
    is most of a probe's time at this size; the test suite holds the two to the same weights.

    Sizes: F features, C classes, b clouds a batch.
    """

    def __init__(self, features: int, classes: int, *, generator: torch.Generator) -> None:
        """Draw weights and bias from U(-1, 1) / sqrt(F), as ``torch.nn.Linear`` does."""
        draw = torch.rand(features + 1, classes, generator=generator)
        # The bias is the last row, met by a column of ones, so that one update serves both.
        self.weight = (2.0 * draw - 1.0) / math.sqrt(features)  # (F + 1, C)
        self._mean = torch.zeros_like(self.weight)
        self._square = torch.zeros_like(self.weight)
        self._steps = 0

    def logits(self, features: Tensor) -> Tensor:
        """(b, F) features to (b, C) logits."""
        return torch.addmm(self.weight[-1], features, self.weight[:-1])

    def step(self, inputs: Tensor, targets: Tensor, *, learning_rate: float, decay: float) -> None:
        """One AdamW step on a batch.

        Args:
            inputs: (b, F + 1), the last column all ones.
            targets: (b, C) probabilities, rows sum to 1.
            learning_rate: of this step.
            decay: decoupled weight decay, multiplied by the learning rate.
        """
        self._steps += 1
        probs = (inputs @ self.weight).softmax(dim=1)
        gradient = inputs.T @ probs.sub_(targets).div_(len(inputs))
        self._mean.lerp_(gradient, 1.0 - _BETA_1)
        self._square.mul_(_BETA_2).addcmul_(gradient, gradient, value=1.0 - _BETA_2)
        root = (self._square / (1.0 - _BETA_2**self._steps)).sqrt_().add_(_EPSILON)
        self.weight.mul_(1.0 - learning_rate * decay)
        self.weight.addcdiv_(self._mean, root, value=-learning_rate / (1.0 - _BETA_1**self._steps))


def linear_probe(
    train_features: Callable[[int], Tensor],
    train_labels: Tensor,
    test: Samples,
    *,
    seed: int,
    classes: int,
    settings: LinearProbe | None = None,
) -> Score:
    """Train a linear layer and test it after every epoch.

    Sizes: n training clouds, F features.

    Args:
        train_features: (n, F) float32 features of the training clouds as augmented in an epoch,
            counted from 0.
        train_labels: (n,) int64, from 0.
        test: features of the clouds as they are.
        seed: of the initial weights and of the order of the batches.
        classes: of the benchmark, C; the label smoothing spreads over all of them.
        settings: the published ones by default.

    Returns:
        The score after the last epoch, with the best epoch beside it.
    """
    settings = settings or LinearProbe()
    generator = torch.Generator().manual_seed(seed)
    head = LinearHead(test.features.shape[1], classes, generator=generator)
    targets = _smooth_targets(train_labels, classes, settings.label_smoothing)
    score, best, best_epoch = None, -1.0, 0
    for epoch in range(settings.epochs):
        order = torch.randperm(len(targets), generator=generator)
        _train_epoch(head, train_features(epoch)[order], targets[order], epoch, settings)
        score = score_predictions(head.logits(test.features).argmax(dim=1), test.labels)
        if score.accuracy > best:
            best, best_epoch = score.accuracy, epoch + 1
    assert score is not None
    return replace(score, best_accuracy=best, best_epoch=best_epoch)


def _train_epoch(
    head: LinearHead, features: Tensor, targets: Tensor, epoch: int, settings: LinearProbe
) -> None:
    """One pass over (n, F) features and (n, C) targets, both in this epoch's order."""
    inputs = torch.cat([features, features.new_ones(len(features), 1)], dim=1)
    batches = zip(
        torch.split(inputs, settings.batch_size),
        torch.split(targets, settings.batch_size),
        strict=True,
    )
    steps_per_epoch = math.ceil(len(features) / settings.batch_size)
    for index, (batch, wanted) in enumerate(batches):
        rate = settings.learning_rate(
            epoch * steps_per_epoch + index, steps_per_epoch=steps_per_epoch
        )
        head.step(batch, wanted, learning_rate=rate, decay=settings.weight_decay)


def _smooth_targets(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """(n, C) probabilities: smoothing / C everywhere, 1 - smoothing more on the label."""
    return (1.0 - smoothing) * one_hot(labels, classes).float() + smoothing / classes
