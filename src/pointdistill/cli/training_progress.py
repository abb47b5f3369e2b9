"""How a training run is seen: one moving line on a terminal, a line a minute where the output goes to a file."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pointdistill.engine.training.pretrain import StepRecord

MEASURED_STEPS = 3
SLOW_HOURS = 1.0
PLAIN_SECONDS = 60.0
"""Between two lines where the output is no terminal."""

Show = Callable[[StepRecord], None]


@contextmanager
def training_progress(console: Console) -> Iterator[Show]:
    """What to call with ``pretrain``'s reports."""
    if not console.is_terminal:
        yield _Both(_Lines(console), _Cost(console))
        return
    columns = (
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        yield _Both(_Bar(progress), _Cost(console))


def say(console: Console, line: str, style: str | None = None) -> None:
    """One line, whatever the width, with nothing in it taken for markup."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def remarks_to(console: Console) -> Iterator[None]:
    """Show what the run remarks on its way (a collapse, a full disk) above the progress line."""
    log, handler = logging.getLogger("pointdistill"), _ToConsole(console)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def span(seconds: float) -> str:
    """A time for people: ``40 seconds``, ``25 minutes``, ``3.2 hours``, ``12 days``."""
    for unit, length, digits in (("days", 86400.0, 0), ("hours", 3600.0, 1), ("minutes", 60.0, 0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{digits}f} {unit}"
    return f"{seconds:.0f} seconds"


class _ToConsole(logging.Handler):
    """A line for each record."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        say(self.console, record.getMessage(), style="yellow")


class _Both:
    """Tells two listeners."""

    def __init__(self, first: Show, second: Show) -> None:
        self.first = first
        self.second = second

    def __call__(self, record: StepRecord) -> None:
        self.first(record)
        self.second(record)


class _Bar:
    """A progress bar with the loss and its terms."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task = progress.add_task("", total=None)

    def __call__(self, record: StepRecord) -> None:
        self.progress.update(
            self.task, completed=record.step, total=record.total, description=_describe(record)
        )


class _Lines:
    """Plain lines: the first step, the last, and one a minute."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began: tuple[int, float] | None = None
        self.said = 0.0

    def __call__(self, record: StepRecord) -> None:
        now = time.monotonic()
        first = self.began is None
        if self.began is None:
            self.began = (record.step, now)
        if not (first or record.step == record.total or now - self.said >= PLAIN_SECONDS):
            return
        self.said = now
        taken = record.step - self.began[0]
        left = (now - self.began[1]) / taken * (record.total - record.step) if taken else 0.0
        rest = f", {span(left)} left" if left else ""
        say(self.console, f"step {record.step} of {record.total}: {_describe(record)}{rest}")


class _Cost:
    """Says once, after a few steps, what a slow run will cost."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seen = 0

    def __call__(self, record: StepRecord) -> None:
        self.seen += 1
        if self.seen != MEASURED_STEPS:
            return
        seconds = (record.total - record.step) * record.batch_size / record.shapes_per_second
        if seconds > 3600 * SLOW_HOURS:
            say(
                self.console,
                f"cost: about {span(seconds)} for this run on this device ({record.shapes_per_second:.1f} "
                "shapes/s); `pointdistill plan` says more, --size tiny takes minutes on a CPU. "
                "Ctrl-C saves, --resume goes on",
                style="yellow",
            )


def _describe(record: StepRecord) -> str:
    terms = " ".join(f"{name} {value:.3f}" for name, value in record.terms.items())
    return f"loss {record.loss:.3f} ({terms}) {record.shapes_per_second:.0f} shapes/s"
