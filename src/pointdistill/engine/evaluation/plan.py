"""What is to be measured: protocols, seeds, and everything in which a run can depart from a protocol."""

from __future__ import annotations

from dataclasses import dataclass, field

from pointdistill.data.benchmarks.records import Benchmark
from pointdistill.engine.evaluation.probe import HeadTraining
from pointdistill.errors import ConfigError

FROZEN = ("knn", "svm", "linear", "mlp", "logistic")
"""On frozen features. The first three are published; ``logistic`` is ours, blind to the features' scale."""

TRAINED = ("finetune", "scratch")
"""That train an encoder with the labels."""

PROTOCOLS = FROZEN + TRAINED
"""Of classification, in the order in which they are run: the cheap ones first."""

HEADS = ("linear", "mlp")
"""Heads trained on frozen features of augmented clouds."""

VOTING = HEADS + TRAINED
"""Protocols that have logits to average."""

COPIES_ON_CPU = 4
"""Augmented copies for the heads on a CPU, where 150 passes of an encoder take too long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What to measure, whosever features they are."""

    protocols: tuple[str, ...] = FROZEN
    """Some of ``PROTOCOLS``, in the order of the results."""

    seeds: tuple[int, ...] = (0,)
    """Of the subsets of points, the augmentation and the weights that are drawn; one run each."""

    augmented_copies: int | None = None
    """How many augmented sets of training features the heads go through in turn; None for
    a new set each epoch, as published, which costs 150 passes of the encoder."""

    epochs: int | None = None
    """Instead of the protocols', for those that have epochs: a departure that every result names."""

    votes: int = 1
    """Versions of each test cloud whose logits are averaged; 1 is no voting."""

    head: HeadTraining = field(default_factory=HeadTraining)
    """Settings of the linear layer and of the MLP before ``epochs`` shortens them."""

    repeated_over: str = "seeds"
    """What the seeds are to a reader: ``seeds``, or ``folds``."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.protocols if name not in PROTOCOLS]
        if unknown or not self.protocols:
            wrong = repr(unknown[0]) if unknown else "none"
            msg = f"protocols must be some of {', '.join(PROTOCOLS)}, got {wrong}"
            raise ConfigError(msg)
        if not self.seeds:
            msg = "an evaluation needs at least one seed, got none"
            raise ConfigError(msg)
        if self.augmented_copies is not None and self.augmented_copies < 1:
            msg = (
                f"augmented_copies must be at least 1, got {self.augmented_copies}; "
                "leave it out to augment anew each epoch"
            )
            raise ConfigError(msg)
        if self.epochs is not None and self.epochs < 1:
            msg = f"epochs must be at least 1, got {self.epochs}; leave it out for the protocol's"
            raise ConfigError(msg)
        silent = [name for name in self.protocols if name not in VOTING]
        if self.votes < 1 or (self.votes > 1 and silent):
            who = f"; {silent[0]} has no logits to average" if self.votes > 1 else ""
            msg = f"votes must be at least 1, and more only for {', '.join(VOTING)}, got {self.votes}{who}"
            raise ConfigError(msg)

    @property
    def head_training(self) -> HeadTraining:
        """Settings of the heads, shortened where ``epochs`` says so."""
        return self.head.shortened(self.epochs)

    def copies_of(self, protocol: str) -> int | None:
        """Augmented sets that a protocol repeats; None where every epoch has a set of its own, or none is made."""
        copies = self.augmented_copies
        if protocol not in HEADS or copies is None or copies >= self.head_training.epochs:
            return None
        return copies

    def clouds_to_describe(self, benchmark: Benchmark, protocols: tuple[str, ...]) -> int:
        """Clouds that frozen ``protocols`` describe for one seed, which is nearly all of their cost."""
        if not set(protocols) & set(FROZEN):
            return 0
        train, test = len(benchmark.train), len(benchmark.test)
        if not set(protocols) & set(HEADS):
            return train + test
        epochs = self.head_training.epochs
        sets = min(self.augmented_copies or epochs, epochs)
        return train * (1 + sets) + test * self.votes
