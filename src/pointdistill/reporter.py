"""What long work tells whoever started it: lines, how far it is, and that a signal arrived."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


class Reporter:
    """Receives what a long call tells; this one ignores it all.

    Pass a subclass to show, record or forward what arrives. Every method may be called from the thread that does
    the work, never from another one.
    """

    def say(self, line: str, *settings: str) -> None:
        """One line a user should read.

        Args:
            line: complete without ``settings``.
            settings: names of the parameters that change what the line says, so that a command line can name its
                options for them.
        """

    def progress(
        self, task: str, done: float, total: float | None = None, *, note: str = "", unit: str = ""
    ) -> None:
        """How far a task is.

        Args:
            task: what is being done; another text begins another task.
            done: parts finished.
            total: parts in all; None where that is not known.
            note: anything beside it, such as a loss.
            unit: what a part is, where it is not simply one of the things named in ``task``: ``bytes``.
        """

    def on_signal(self) -> None:
        """Called inside the handler of the first Ctrl-C or SIGTERM, before the work reaches a place to stop."""


SILENT = Reporter()
"""For callers that want to hear nothing."""


def format_duration(seconds: float) -> str:
    """A duration to two digits: ``3 s``, ``25 min``, ``3.4 h``, ``12 days``."""
    for unit, size in (("days", 86_400.0), ("h", 3_600.0)):
        if seconds >= 2 * size:
            count = seconds / size
            return f"{count:.1f} {unit}" if count < 9.95 else f"{count:.0f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


# A forecast of how long work will take, given once, after its first part was timed.

MEASURED_SECONDS = 2.0
"""Least measured time to forecast from."""

WORTH_SAYING_SECONDS = 60.0
"""Remaining time below which nothing is said."""

SHORTER = ("fewer epochs shorten it, as a deviation from the protocol", ("epochs",))
"""Hint for trainings, and the setting that it is about."""


class Forecast:
    """Watches how far work is and says, once, how long the rest of it will take."""

    hint = ""
    """How to make it shorter."""

    settings: tuple[str, ...] = ()
    """Parameters that the hint is about."""

    def __init__(
        self, reporter: Reporter, what: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin to time.

        Args:
            reporter: told the one line.
            what: what takes the time.
            clock: seconds; another one for tests.
        """
        self._reporter, self._what, self._clock = reporter, what, clock
        self._began = clock()
        self._before: float | None = None
        self._said = False

    def __call__(self, done: float, total: float, *, latest: float | None = None) -> None:
        """``done`` of ``total`` parts of equal cost are done.

        ``latest`` of them are new in the first call, by default all: after a resume, those done before took their
        time in an earlier process.
        """
        if self._before is None:
            self._before = 0.0 if latest is None else done - latest
        spent, new = self._clock() - self._began, done - self._before
        if self._said or new <= 0 or spent < MEASURED_SECONDS:
            return
        self._said = True
        rest = spent / new * (total - done)
        if rest >= WORTH_SAYING_SECONDS:
            hint = f"; {self.hint}" if self.hint else ""
            self._reporter.say(
                f"{self._what}: about {format_duration(rest)} to go, by the first {format_duration(spent)}; "
                f"what is finished is kept, Ctrl-C and the same command go on from there{hint}",
                *self.settings,
            )


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimiser step, as it is reported to whoever started the run."""

    step: int
    """Steps taken, from 1."""

    total: int
    epoch: int
    batch_size: int
    loss: float
    terms: dict[str, float]
    gradient_norm: float
    learning_rate: float
    shapes_per_second: float
    probe: dict[str, float] = field(default_factory=dict)
    """``probe_accuracy`` and what belongs to it, after the steps that were probed."""


class TrainingReporter(Reporter):
    """Receives the record of each step; where that is not overridden, it becomes plain progress."""

    def step(self, record: StepRecord) -> None:
        """Called after a step whose record is ready."""
        note = f"loss {record.loss:.3f}, {record.shapes_per_second:.0f} shapes/s"
        self.progress("training", record.step, record.total, note=note)


SILENT_TRAINING = TrainingReporter()
"""For callers that want to hear nothing of a training."""
