"""The published MLP-3 probe: the classifiers' three-layer head, on frozen features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pointdistill.engine.optimizer import build_optimizer
from pointdistill.model.classifier import NormedMlp, initialize_uniform

HIDDEN, DROPOUT = (256, 256), (0.5, 0.5)
"""Widths of the hidden layers, and the dropout after each. Source: section 7 of docs/method.md."""


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
