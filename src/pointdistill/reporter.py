"""Reporters: how long-running work reports lines, progress, steps and signals to its caller."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


class Reporter:
    """Receives reports of a long call; this base class ignores them all.

    Pass a subclass to show, record or forward them. All methods are called from the thread that does the work.
    """

    told_of_saving = False
    """Whether it was told, by a `Forecast`, that finished work is kept when it is stopped."""

    def say(self, line: str, *settings: str) -> None:
        """Report a line that a user should read.

        Args:
            line: the text, complete without ``settings``.
            settings: names of the parameters that the line is about, so that a command line can add its options
                for them.
        """

    def progress(
        self, task: str, done: float, total: float | None = None, *, note: str = "", unit: str = ""
    ) -> None:
        """Report the progress of a task.

        Args:
            task: what is being done; a different text starts a new task.
            done: parts finished.
            total: parts in all; None if that is not known.
            note: additional text, such as the loss.
            unit: unit of ``done`` and ``total`` if it does not follow from ``task``: ``bytes``.
        """

    def on_signal(self) -> None:
        """Called inside the handler of the first Ctrl-C or SIGTERM, before the work reaches a point to stop."""


SILENT = Reporter()
"""A reporter that ignores everything."""


def format_duration(seconds: float) -> str:
    """A duration to two digits: ``3 s``, ``25 min``, ``3.4 h``, ``12 days``."""
    for unit, size in (("days", 86_400.0), ("h", 3_600.0)):
        if seconds >= 2 * size:
            count = seconds / size
            return f"{count:.1f} {unit}" if count < 9.95 else f"{count:.0f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def plural(count: int, thing: str, things: str | None = None) -> str:
    """A number and what it counts: ``1 file``, ``2,000 shapes``, ``2 categories`` if ``things`` is given."""
    return f"{count:,} {thing if count == 1 else things or thing + 's'}"


def format_bytes(count: float) -> str:
    """A size in the largest unit of which there is one: ``512 bytes``, ``7.4 kB``, ``230 MB``, ``1.2 GB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            amount = count / size
            return f"{amount:,.0f} {unit}" if amount >= 99.95 else f"{amount:.1f} {unit}"
    return plural(int(count), "byte")


def format_speed(per_second: float) -> str:
    """Things a second, to two digits below ten, so that slow work does not read as none: ``0.25``, ``1,204``."""
    return f"{per_second:,.0f}" if per_second >= 9.95 else f"{per_second:.2g}"


MEASURED_SECONDS = 2.0
"""Shortest measured time to base a forecast on."""

WORTH_SAYING_SECONDS = 60.0
"""Remaining time below which no forecast is reported."""

SHORTER = ("fewer epochs shorten it, as a deviation from the protocol", ("epochs",))
"""Hint for trainings, and the setting that it is about."""


_SAVED = "finished work is saved, and after Ctrl-C the same command continues from there"


class Forecast:
    """Reports once, after the first part of some work was timed, how long the rest will take.

    Of several forecasts for one reporter, the first also says that the work can be stopped.
    """

    hint = ""
    """How to make the work shorter."""

    settings: tuple[str, ...] = ()
    """Parameters that the hint is about."""

    def __init__(
        self, reporter: Reporter, what: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start the clock.

        Args:
            reporter: receives the line.
            what: name of the work.
            clock: returns seconds; replaced in tests.
        """
        self._reporter, self._what, self._clock = reporter, what, clock
        self._began = clock()
        self._before: float | None = None
        self._said = False

    def __call__(self, done: float, total: float, *, latest: float | None = None) -> None:
        """Note that ``done`` of ``total`` parts of equal cost are finished.

        In the first call, ``latest`` of them are new, by default all: after a resume the others were finished by
        an earlier process, whose time is not known.
        """
        if self._before is None:
            self._before = 0.0 if latest is None else done - latest
        spent, new = self._clock() - self._began, done - self._before
        if self._said or new <= 0 or spent < MEASURED_SECONDS:
            return
        self._said = True
        rest = spent / new * (total - done)
        if rest >= WORTH_SAYING_SECONDS:
            saved = "" if self._reporter.told_of_saving else f"; {_SAVED}"
            self._reporter.told_of_saving = True
            hint = f"; {self.hint}" if self.hint else ""
            self._reporter.say(
                f"{self._what}: about {format_duration(rest)} to go, by the first "
                f"{format_duration(spent)}{saved}{hint}",
                *self.settings,
            )


@dataclass(frozen=True, slots=True)
class StepRecord:
    """The record of one optimiser step."""

    step: int
    """Number of the step, from 1."""

    total: int
    epoch: int
    batch_size: int
    loss: float
    terms: dict[str, float]
    gradient_norm: float
    learning_rate: float
    shapes_per_second: float
    probe: dict[str, float] = field(default_factory=dict)
    """``probe_accuracy`` and related values, in the record of a step after which the probe ran."""


class TrainingReporter(Reporter):
    """Also receives the record of each training step; by default it is reported as progress."""

    def step(self, record: StepRecord) -> None:
        """Report a step; on a GPU it is called one step late."""
        note = f"loss {record.loss:.3f}, {format_speed(record.shapes_per_second)} shapes/s"
        self.progress("training", record.step, record.total, note=note)


SILENT_TRAINING = TrainingReporter()
"""A training reporter that ignores everything."""
