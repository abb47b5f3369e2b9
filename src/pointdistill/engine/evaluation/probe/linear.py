"""The published linear probe: one linear layer, trained by AdamW on frozen features."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pointdistill.engine.evaluation.probe.samples import Samples, Score
from pointdistill.engine.evaluation.probe.training import HeadTraining, train_heads

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


class LinearHead:
    """A softmax classifier with its own AdamW, without a graph.

    The gradient of a softmax cross-entropy is features^T (probabilities - targets) / batch. Writing
    it out costs 0.06 ms a step on one core where autograd and ``torch.optim.AdamW`` take 0.3, which
    is most of a probe's time at this size; the test suite holds the two to the same weights.

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
        # The bias is the last row, met by a column of ones, so that one update serves both.
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
