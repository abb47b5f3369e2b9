"""How a probe with epochs is trained: the linear layer and the three-layer head alike, on frozen features.

Sizes: n training clouds, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pointdistill.engine.devices import threads_for
from pointdistill.engine.evaluation.probe.samples import Samples, Score, score_predictions
from pointdistill.engine.finetuning.epochs import split_batches
from pointdistill.engine.schedules import warmup_cosine
from pointdistill.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadTraining:
    """Settings of a head's training; the defaults are those of the published linear and MLP-3 protocols."""

    epochs: int = 150
    warmup_epochs: int = 10
    """Of a run that is cut short, at most as many as it has epochs."""

    batch_size: int = 32
    """Clouds a step; the last batch of an epoch may be smaller, and takes in a cloud left over."""

    peak_learning_rate: float = 5e-4
    final_learning_rate: float = 1e-7
    weight_decay: float = 0.05
    """On weights and biases alike."""

    label_smoothing: float = 0.2
    """Share of the target spread evenly over all classes, in [0, 1)."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.warmup_epochs < 0:
            msg = (
                "a probe needs epochs and batch_size of at least 1 and warmup_epochs "
                f"of at least 0, got {self.epochs}, {self.batch_size} and {self.warmup_epochs}"
            )
            raise ConfigError(msg)
        if not 0.0 <= self.label_smoothing < 1.0:
            msg = f"label_smoothing must lie in [0, 1), got {self.label_smoothing}"
            raise ConfigError(msg)

    def shortened(self, epochs: int | None) -> HeadTraining:
        """The same schedule in fewer epochs, its warm-up in proportion; as it is for None."""
        if epochs is None:
            return self
        warmup = round(self.warmup_epochs * epochs / self.epochs)
        return replace(self, epochs=epochs, warmup_epochs=warmup)

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


class Head(Protocol):
    """A classifier of feature vectors that is trained by steps."""

    @property
    def generator(self) -> torch.Generator:
        """Its own source of randomness, on the CPU, so that no head depends on which others are trained."""

    def prepare(self, features: Tensor) -> Tensor:
        """(n, F) features as ``step`` takes them, once an epoch."""

    def step(self, inputs: Tensor, targets: Tensor, *, learning_rate: float, decay: float) -> None:
        """One optimiser step on prepared features and (b, C) target probabilities."""

    def logits(self, features: Tensor) -> Tensor:
        """(b, F) features to (b, C) logits."""


def train_heads(
    heads: Sequence[Head],
    train_features: Callable[[int], Tensor],
    train_labels: Tensor,
    test: Samples,
    *,
    classes: int,
    settings: HeadTraining,
    votes: Sequence[Tensor] = (),
) -> list[Score]:
    """Train heads side by side on the same features, and test them after every epoch.

    Args:
        heads: trained together because the features of an epoch may cost a pass of the encoder.
        train_features: (n, F) float32 features of the training clouds as augmented in an epoch,
            counted from 0; asked once an epoch.
        train_labels: (n,) int64, from 0.
        test: features of the clouds as they are.
        classes: of the benchmark, C; the label smoothing spreads over all of them.
        settings: of all heads.
        votes: further features of the same test clouds, resampled; the final logits are averaged over them
            and ``test``, and no best epoch is reported, since every epoch was tested without a vote.

    Returns:
        For each head the score after the last epoch, with the best epoch beside it.
    """
    targets = smooth_targets(train_labels, classes, settings.label_smoothing)
    epochs: list[list[Score]] = [[] for _ in heads]
    for epoch in range(settings.epochs):
        features = train_features(epoch)
        # The features may have come from many threads; a head's matrices are too small to share.
        with threads_for(0, features.device):
            for head, scores in zip(heads, epochs, strict=True):
                train_head(head, features, targets, epoch=epoch, settings=settings)
                predicted = head.logits(test.features).argmax(1)
                scores.append(score_predictions(predicted, test.labels))
    if votes:
        return [_voted(head, [test.features, *votes], test.labels) for head in heads]
    return [last_with_best(scores) for scores in epochs]


def train_head(
    head: Head, features: Tensor, targets: Tensor, *, epoch: int, settings: HeadTraining
) -> None:
    """One pass over (n, F) features and (n, C) targets in a new order."""
    order = torch.randperm(len(targets), generator=head.generator).to(features.device)
    inputs = head.prepare(features)
    batches = split_batches(order, settings.batch_size)
    for index, rows in enumerate(batches):
        step = epoch * len(batches) + index
        rate = settings.learning_rate(step, steps_per_epoch=len(batches))
        head.step(inputs[rows], targets[rows], learning_rate=rate, decay=settings.weight_decay)


def smooth_targets(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """(n, C) probabilities: smoothing / C everywhere, 1 - smoothing more on the label."""
    return (1.0 - smoothing) * one_hot(labels, classes).float() + smoothing / classes


def last_with_best(epochs: Sequence[Score]) -> Score:
    """The last epoch's score, with the first of the best epochs beside it."""
    best = max(range(len(epochs)), key=lambda epoch: (epochs[epoch].accuracy, -epoch))
    last = epochs[-1]
    return replace(last, best_accuracy=epochs[best].accuracy, best_epoch=best + 1)


def mean_logits(votes: Sequence[Tensor]) -> Tensor:
    """The average of equally shaped logits."""
    return torch.stack(list(votes)).mean(dim=0)


def _voted(head: Head, features: Sequence[Tensor], labels: Tensor) -> Score:
    """Of the average logits over several sets of features of the same clouds."""
    return score_predictions(
        mean_logits([head.logits(part) for part in features]).argmax(1), labels
    )
