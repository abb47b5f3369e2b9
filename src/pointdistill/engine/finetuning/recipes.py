"""Recipes for training classifiers: the published protocols that train an encoder, as a table of settings.

Source: section 7 of docs/method.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from pointdistill.data.benchmarks.registry import benchmark_specs, spec_titled
from pointdistill.engine.runtime.schedules import two_stage, warmup_cosine
from pointdistill.errors import ConfigError
from pointdistill.model.classifier import Pooling
from pointdistill.model.config import Initialization


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierRecipe:
    """Settings for training a classifier; the defaults are those that the published protocols share."""

    name: str

    pooling: Pooling

    random_encoder: bool = False
    """Replace the encoder's weights by new random ones before training."""

    initialization: Initialization = Initialization.AUTHORS
    """How these are drawn."""

    drop_path: float = 0.2
    """Stochastic depth of the encoder's last block, rising linearly from 0 in its first."""

    truncated_head: bool = False
    """Initialise the head like an encoder (truncated normal, standard deviation 0.02), not as PyTorch does."""

    epochs: int = 150
    """Passes over the training clouds, including frozen and warm-up epochs."""

    frozen_epochs: int = 0
    """Epochs at the start that train only the head; the learning rate's warm-up begins after them."""

    frozen_learning_rates: tuple[float, float] = (5e-4, 5e-5)
    """Learning rates at the start and the end of those epochs, with a linear decay between them."""

    warmup_epochs: int = 10
    first_learning_rate: float = 0.0
    peak_learning_rate: float
    final_learning_rate: float = 1e-7
    """Linear from the first to the peak over the warm-up, then cosine to the final one."""

    weight_decay: float = 0.05
    """Weight decay of every trained parameter."""

    batch_size: int = 32
    """Clouds per step; the last partial batch of an epoch is dropped, unless it is the only one."""

    label_smoothing: float = 0.2
    """Share of the target spread evenly over all classes, in [0, 1)."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            msg = f"epochs must be at least 1, got {self.epochs}"
            raise ConfigError(msg)
        if not 0.0 <= self.label_smoothing < 1.0:
            msg = f"label_smoothing must lie in [0, 1), got {self.label_smoothing}"
            raise ConfigError(msg)
        if self.batch_size < 2:
            msg = (
                f"batch_size must be at least 2 (BatchNorm compares clouds), got {self.batch_size}"
            )
            raise ConfigError(msg)
        if not 0 <= self.frozen_epochs + self.warmup_epochs <= self.epochs:
            msg = (
                f"frozen_epochs and warmup_epochs must fit into the {self.epochs} epochs, "
                f"got {self.frozen_epochs} and {self.warmup_epochs}"
            )
            raise ConfigError(msg)
        if self.frozen_epochs and self.first_learning_rate:
            first = self.first_learning_rate
            msg = f"after frozen_epochs the warm-up begins at 0, got first_learning_rate {first}"
            raise ConfigError(msg)

    def frozen_steps(self, total: int) -> int:
        """How many of ``total`` optimiser steps train only the head."""
        return self._share(self.frozen_epochs, total)

    def learning_rate(self, step: int, *, total: int) -> float:
        """Learning rate at optimiser step ``step``, from 0, of ``total``; a shorter run keeps the proportions."""
        warmup = self._share(self.warmup_epochs, total)
        if self.frozen_epochs:
            return two_stage(
                step,
                frozen_first=self.frozen_learning_rates[0],
                frozen_last=self.frozen_learning_rates[1],
                frozen_span=self.frozen_steps(total),
                peak=self.peak_learning_rate,
                final=self.final_learning_rate,
                warmup=warmup,
                total=total,
            )
        return warmup_cosine(
            step,
            first=self.first_learning_rate,
            peak=self.peak_learning_rate,
            final=self.final_learning_rate,
            warmup=warmup,
            total=total,
        )

    def _share(self, epochs: int, total: int) -> int:
        return round(total * epochs / self.epochs)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        ClassifierRecipe(
            name="scratch",
            pooling=Pooling.MEAN_MAX,
            random_encoder=True,
            first_learning_rate=1e-7,
            peak_learning_rate=1e-3,
        ),
        ClassifierRecipe(
            name="finetune-scanobjectnn",
            pooling=Pooling.CLS_MEAN_MAX,
            peak_learning_rate=2e-5,
        ),
        ClassifierRecipe(
            name="finetune-modelnet40",
            pooling=Pooling.CLS_MEAN_MAX,
            truncated_head=True,
            frozen_epochs=50,
            peak_learning_rate=2e-5,
        ),
        ClassifierRecipe(
            name="few-shot",
            pooling=Pooling.MEAN_MAX,
            first_learning_rate=1e-7,
            peak_learning_rate=1e-3,
            final_learning_rate=1e-6,
        ),
    )
}
"""The published protocols that train an encoder with the three-layer head, by name."""


def recipe_for(benchmark: str, protocol: str) -> ClassifierRecipe:
    """The recipe of protocol ``finetune`` or ``scratch`` on a benchmark, which is named as in results.

    Raises:
        ConfigError: if there is none.
    """
    if protocol == "scratch":
        return RECIPES["scratch"]
    spec = spec_titled(benchmark)
    if spec is None or protocol != "finetune" or protocol not in spec.protocols:
        known = ", ".join(s.title for s in benchmark_specs() if "finetune" in s.protocols)
        msg = f"no recipe for {protocol!r} on {benchmark!r}; there is one for {known}"
        raise ConfigError(msg)
    return RECIPES[spec.recipe]
