"""The unit of an evaluation: one protocol for one seed on one split, kept as soon as it is done."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from pointdistill.engine.evaluation.probe import Score
from pointdistill.engine.evaluation.probe.samples import Confusion
from pointdistill.engine.evaluation.results import Figure, Result, Spread, setting_of
from pointdistill.engine.finetuning.training_file import TrainingFile
from pointdistill.engine.interrupt import interruptible


@dataclass(frozen=True, slots=True)
class Unit:
    """What one protocol came to for one seed."""

    result: Result
    """Of this seed alone."""

    classes: tuple[str, ...] = ()
    """Names of the classes in the confusions."""

    confusion: Confusion | None = None
    """Test clouds by true and predicted class; None where there are too many classes to read."""


class Keeper(Protocol):
    """Where units are kept."""

    def find(self, asked: Result) -> Unit | None:
        """The unit that was asked for by its ``unmeasured`` result, if it is done."""

    def keep(self, asked: Result, unit: Unit) -> None:
        """Keep a unit that has just been measured; of its training nothing stays."""

    def training_of(self, asked: Result) -> Path | None:
        """Where the training of a unit is kept while it lasts; None where nothing is."""


class KeepNothing:
    """For evaluations that end in memory."""

    def find(self, asked: Result) -> Unit | None:  # noqa: ARG002
        """Nothing is done yet."""
        return None

    def keep(self, asked: Result, unit: Unit) -> None:
        """Forget it."""

    def training_of(self, asked: Result) -> Path | None:  # noqa: ARG002
        """Nowhere."""
        return None


@contextmanager
def kept_training(
    keeper: Keeper, asked: Result, on_signal: Callable[[], None] | None = None
) -> Iterator[TrainingFile | None]:
    """The file of a unit's training, for a block that trains, measures and keeps it; None where nothing is kept.

    Ctrl-C, SIGTERM and a closed terminal end a training between two steps, everything saved, and what follows it
    when the unit is kept. ``on_signal`` is called at the first, so that a user is answered at once; a second one
    interrupts.

    Raises:
        KeyboardInterrupt: if one came.
    """
    path = keeper.training_of(asked)
    if path is None:
        yield None
        return
    with interruptible(on_signal) as stop:
        yield TrainingFile(path, stop)
    if stop():
        raise KeyboardInterrupt


NOT_MEASURED = Spread(math.nan, None)


def unit_key(asked: Result) -> str:
    """Twelve hexadecimal digits for one seed of one setting."""
    text = repr((setting_of(asked), asked.seeds))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def measured(asked: Result, score: Score, classes: tuple[str, ...]) -> Unit:
    """The unit of a score, from the result that asked for it."""
    best = score.best_accuracy
    result = replace(
        asked,
        accuracy=Spread.of([score.accuracy]),
        class_accuracy=Spread.of([score.class_accuracy]),
        best_epoch_accuracy=None if best is None else Spread.of([best]),
        further=tuple(Figure(name, Spread.of([value])) for name, value in score.further),
        notes=(score.note,) if score.note else (),
        each=(score.accuracy,),
    )
    return Unit(result, classes, _padded(score.confusion, len(classes)))


def _padded(confusion: Confusion | None, classes: int) -> Confusion | None:
    """With rows and columns of zeros for the last classes, where none of them occurs."""
    if confusion is None:
        return None
    more = classes - len(confusion)
    return (*[(*row, *[0] * more) for row in confusion], *[(0,) * classes] * more)
