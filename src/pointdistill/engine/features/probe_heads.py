"""Probes that are trained epoch by epoch on frozen features: one linear layer, and the classifiers' MLP-3 head.

Sizes: n training clouds, F features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from pointdistill.engine.features.fitted_probes import Samples, Score, score_predictions
from pointdistill.engine.runtime.devices import threads_for
from pointdistill.engine.runtime.optimizer import build_optimizer
from pointdistill.engine.runtime.schedules import warmup_cosine
from pointdistill.errors import ConfigError
from pointdistill.model.classifier import NormedMlp, initialize_uniform

HIDDEN, DROPOUT = (256, 256), (0.5, 0.5)
"""Widths of the hidden layers, and the dropout after each. Source: section 7 of docs/method.md."""

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadTraining:
    """Settings of a head's training; the defaults are those of the published linear and MLP-3 protocols."""

    epochs: int = 150
    warmup_epochs: int = 10
    """Never more than ``epochs``."""

    batch_size: int = 32
    """Clouds per step; the last partial batch of an epoch is dropped, unless it is the only one."""

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
        """The same schedule in fewer epochs, with the warm-up in proportion; unchanged for None."""
        if epochs is None:
            return self
        warmup = round(self.warmup_epochs * epochs / self.epochs)
        return replace(self, epochs=epochs, warmup_epochs=warmup)

    def learning_rate(self, step: int, *, steps_per_epoch: int) -> float:
        """Linear from 0 to the peak, then cosine to the final rate; steps are counted from 0."""
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
        """Its own source of randomness, on the CPU, so that no head depends on the others beside it."""

    def prepare(self, features: Tensor) -> Tensor:
        """(n, F) features in the form that ``step`` takes; called once per epoch."""

    def step(self, inputs: Tensor, targets: Tensor, *, learning_rate: float, decay: float) -> None:
        """One optimiser step on prepared features and (b, C) target probabilities."""

    def logits(self, features: Tensor) -> Tensor:
        """(b, F) features to (b, C) logits."""


class LinearHead:
    """A softmax classifier with its own AdamW, without autograd.

    The gradient of a softmax cross-entropy is features^T (probabilities - targets) / batch. Written
    out, a step costs 0.06 ms on one core, where autograd and ``torch.optim.AdamW`` take 0.3 ms, which would be
    most of a probe's time at this size. A test checks that both arrive at the same weights.

    Sizes: F features, C classes, b clouds a batch.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> None:
        """Draw weights and bias from U(-1, 1) / sqrt(F), as ``torch.nn.Linear`` does."""
        self.generator = generator
        draw = torch.rand(features + 1, classes, generator=generator)
        # The bias is the last row, and ``prepare`` adds a column of ones, so that one update serves both.
        self.weight = ((2.0 * draw - 1.0) / math.sqrt(features)).to(device)  # (F + 1, C)
        self._mean = torch.zeros_like(self.weight)
        self._square = torch.zeros_like(self.weight)
        self._steps = 0

    def prepare(self, features: Tensor) -> Tensor:
        """(n, F + 1): the features and a column of ones."""
        return torch.cat([features, features.new_ones(len(features), 1)], dim=1)

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


class MlpHead:
    """Two hidden layers with BatchNorm, GELU and dropout, no biases; AdamW.

    Sizes: F features, C classes, b clouds a batch.
    """

    def __init__(self, features: int, classes: int, *, generator: torch.Generator) -> None:
        """Draw the weights as PyTorch's linear layers do, from ``generator``."""
        self.generator = generator
        self.network = NormedMlp(features, HIDDEN, dropout=DROPOUT, outputs=classes)
        initialize_uniform(self.network, generator=generator)
        self._optimizer = build_optimizer(self.network, learning_rate=0.0, weight_decay=0.0)

    def prepare(self, features: Tensor) -> Tensor:
        """The features as they are."""
        return features

    def logits(self, features: Tensor) -> Tensor:
        """(b, F) features to (b, C) logits, by the running statistics and without dropout."""
        with torch.inference_mode():
            return self.network.eval()(features)

    def step(self, inputs: Tensor, targets: Tensor, *, learning_rate: float, decay: float) -> None:
        """One AdamW step on (b, F) features and (b, C) target probabilities."""
        for group in self._optimizer.param_groups:
            group["lr"], group["weight_decay"] = learning_rate, decay
        self._optimizer.zero_grad(set_to_none=True)
        cross_entropy(self.network.train()(inputs, self.generator), targets).backward()
        self._optimizer.step()


def train_heads(
    heads: Sequence[Head],
    train_features: Callable[[int], Tensor],
    train_labels: Tensor,
    test: Samples,
    *,
    classes: int,
    settings: HeadTraining,
    votes: Sequence[Tensor] = (),
    held_out: Samples | None = None,
) -> list[Score]:
    """Train heads side by side on the same features, and test them after every epoch.

    Args:
        heads: trained together, because the features of an epoch may cost a pass of the encoder.
        train_features: (n, F) float32 features of the training clouds as augmented in an epoch,
            counted from 0; called once per epoch.
        train_labels: (n,) int64, from 0.
        test: features of the test clouds without augmentation.
        classes: C, all of the benchmark's; the label smoothing spreads over all of them.
        settings: shared by all heads.
        votes: further features of the same test clouds, resampled; the final logits are averaged over them
            and ``test``. No best epoch is reported then, since the test after each epoch has no votes.
        held_out: features of training clouds that are not trained on, without augmentation; they select an epoch.

    Returns:
        For each head, the score after the last epoch, with the best and the selected epoch beside it.
    """
    targets = smooth_targets(train_labels, classes, settings.label_smoothing)
    epochs: list[list[Score]] = [[] for _ in heads]
    held_out_accuracies: list[list[float]] = [[] for _ in heads]
    for epoch in range(settings.epochs):
        features = train_features(epoch)
        # The features may have been computed with many threads; a head's matrices are too small for that.
        with threads_for(0, features.device):
            for head, scores, accuracies in zip(heads, epochs, held_out_accuracies, strict=True):
                train_head(head, features, targets, epoch=epoch, settings=settings)
                scores.append(_tested(head, test))
                if held_out is not None:
                    accuracies.append(_tested(head, held_out).accuracy)
    if votes:
        return [_voted(head, [test.features, *votes], test.labels) for head in heads]
    return [
        last_epoch_score(scores, held_out=accuracies)
        for scores, accuracies in zip(epochs, held_out_accuracies, strict=True)
    ]


def _tested(head: Head, samples: Samples) -> Score:
    return score_predictions(head.logits(samples.features).argmax(1), samples.labels)


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
    """(n, C) probabilities: smoothing / C for every class, plus 1 - smoothing for the label."""
    return (1.0 - smoothing) * one_hot(labels, classes).float() + smoothing / classes


def last_epoch_score(epochs: Sequence[Score], *, held_out: Sequence[float] = ()) -> Score:
    """The last epoch's score, with the first of the best epochs beside it, and the one that was selected.

    ``held_out`` is the accuracy on held-out clouds after each epoch; the last of the best ones is selected. Empty
    for none.
    """
    best = max(range(len(epochs)), key=lambda epoch: (epochs[epoch].accuracy, -epoch))
    score = replace(epochs[-1], best_accuracy=epochs[best].accuracy, best_epoch=best + 1)
    if not held_out:
        return score
    selected = max(range(len(epochs)), key=lambda epoch: (held_out[epoch], epoch))
    return replace(score, selected_accuracy=epochs[selected].accuracy, selected_epoch=selected + 1)


def mean_logits(votes: Sequence[Tensor]) -> Tensor:
    """The average (n, C) of several logits (n, C)."""
    return torch.stack(list(votes)).mean(dim=0)


def _voted(head: Head, features: Sequence[Tensor], labels: Tensor) -> Score:
    """Score of the logits averaged over several sets of features of the same clouds."""
    return score_predictions(
        mean_logits([head.logits(part) for part in features]).argmax(1), labels
    )


def linear_probe(
    train_features: Callable[[int], Tensor],
    train_labels: Tensor,
    test: Samples,
    *,
    seed: int,
    classes: int,
    settings: HeadTraining | None = None,
) -> Score:
    """Train a linear layer and test it after every epoch: ``train_heads`` for this head alone.

    ``seed`` draws the initial weights and the order of the batches; the settings are the published ones by
    default.
    """
    generator = torch.Generator().manual_seed(seed)
    head = LinearHead(test.features.shape[1], classes, generator=generator)
    settings = settings or HeadTraining()
    (score,) = train_heads(
        [head], train_features, train_labels, test, classes=classes, settings=settings
    )
    return score


def split_batches(order: Tensor, size: int) -> list[Tensor]:
    """Consecutive runs of ``size`` entries, without those left over; fewer than ``size`` entries are one batch."""
    return list(order[: max(1, len(order) // size) * size].split(size))
