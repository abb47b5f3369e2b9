"""What the commands show: lines, one progress bar, tables. Everything but results goes to stderr."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from pointdistill.reporter import Reporter, TrainingReporter, format_duration

if TYPE_CHECKING:
    import rich.table
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from pointdistill.engine.reports.tables import Table
    from pointdistill.reporter import StepRecord

_LEAST_WIDTH = 80
"""Columns in which a table that is printed whole has room."""

SECONDS_BETWEEN_LINES = 60.0
"""Of a training whose output is no terminal."""

STEPS_BEFORE_COST = 3
"""After which the speed of a run is known well enough to say what it will cost."""

SLOW_RUN_SECONDS = 3600.0
"""Above which the expected duration of a run is worth a line of its own."""


_LEAST_WIDTH = 80
"""Columns in which a table that is printed whole has room."""


def name_options(message: str, settings: tuple[str, ...]) -> str:
    """A message with the options that set ``settings`` behind it."""
    options = ", ".join("--" + name.replace("_", "-") for name in settings)
    return f"{message} ({options})" if options else message


class ConsoleReporter(Reporter):
    """Lines, and a bar that follows the task at hand; the bar only where stderr is a terminal."""

    def __init__(self, console: Console, bar: Progress, *, keep_tasks: bool = False) -> None:
        self.console = console
        self._bar = bar
        self._keep_tasks = keep_tasks
        self._task: TaskID | None = None
        self._shown = ""

    def say(self, line: str, *settings: str) -> None:
        """A line above the bar, whatever the width, with nothing in it taken for markup."""
        self.show_line(name_options(line, settings))

    def progress(
        self, task: str, done: float, total: float | None = None, *, note: str = "", unit: str = ""
    ) -> None:
        """Move the bar; another task starts another one, in the place of the last or below it."""
        if task != self._shown:
            self._start(task, total, unit)
        assert self._task is not None
        current = self._bar.tasks[-1]
        if current.total != total or done < current.completed:
            self._bar.reset(self._task, total=total)
        self._bar.update(self._task, completed=done, total=total, note=note, unit=unit)

    def finish_task(self) -> None:
        """Leave the bar of the task at hand full, as it stands."""
        if self._task is not None:
            total = self._bar.tasks[-1].total or 1
            self._bar.update(self._task, total=total, completed=total)
            self._bar.stop_task(self._task)

    def on_signal(self) -> None:
        """Answer the first Ctrl-C of a training, which ends only after the step that it is in."""
        # Straight to the file: within a signal's handler a buffered stream may be in the middle of a write.
        os.write(2, b"\nfinishing this step, then saving; a second signal stops at once\n")

    def _start(self, task: str, total: float | None, unit: str) -> None:
        if self._keep_tasks:
            self.finish_task()
            if not self.console.is_terminal:
                self.show_line(task)
        elif self._task is not None:
            # Rich keeps a task's old total where the new one is not known, so a new task gets a new entry.
            self._bar.remove_task(self._task)
        self._task, self._shown = self._bar.add_task(task, total=total, note="", unit=unit), task

    def show_line(self, line: str, style: str | None = None) -> None:
        """Print a line above the bar."""
        self.console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


class TrainingConsole(ConsoleReporter, TrainingReporter):
    """A training: one moving line on a terminal, a line a minute where stderr goes to a file."""

    _steps_seen = 0
    _first: tuple[int, float] | None = None
    _last_line = 0.0

    def step(self, record: StepRecord) -> None:
        """Show the step; once, after the first few, also what a slow run will cost."""
        terms = " ".join(f"{name} {value:.3f}" for name, value in record.terms.items())
        note = f"loss {record.loss:.3f} ({terms}) {record.shapes_per_second:.0f} shapes/s"
        if self.console.is_terminal:
            self.progress("training", record.step, record.total, note=note)
        else:
            self._line_a_minute(record, note)
        self._steps_seen += 1
        if self._steps_seen == STEPS_BEFORE_COST:
            self._say_cost(record)

    def on_signal(self) -> None:
        """As for any long work, but said by one of several processes only."""
        if not self.console.quiet:
            super().on_signal()

    def _line_a_minute(self, record: StepRecord, note: str) -> None:
        """A plain line for the first step, for the last, and once a minute."""
        now = time.monotonic()
        is_first = self._first is None
        if self._first is None:
            self._first = (record.step, now)
        recent = now - self._last_line < SECONDS_BETWEEN_LINES
        if recent and not is_first and record.step != record.total:
            return
        self._last_line = now
        steps, seconds = record.step - self._first[0], now - self._first[1]
        left = seconds / steps * (record.total - record.step) if steps else 0.0
        rest = f", {format_duration(left)} left" if left else ""
        self.show_line(f"step {record.step} of {record.total}: {note}{rest}")

    def _say_cost(self, record: StepRecord) -> None:
        seconds = (record.total - record.step) * record.batch_size / record.shapes_per_second
        if seconds > SLOW_RUN_SECONDS:
            self.show_line(
                f"cost: about {format_duration(seconds)} for this run on this device "
                f"({record.shapes_per_second:.1f} shapes/s); `pointdistill plan` says more, --size tiny takes "
                "minutes on a CPU. Ctrl-C saves, --resume goes on",
                style="yellow",
            )


@contextmanager
def console_reporter() -> Iterator[ConsoleReporter]:
    """A reporter on stderr; its bar is gone when the work is done."""
    console = _stderr()
    with _bar(console, transient=True) as bar:
        yield ConsoleReporter(console, bar)


@contextmanager
def stages_reporter() -> Iterator[ConsoleReporter]:
    """A reporter whose finished tasks stay on the screen, each with its bar."""
    console = _stderr()
    with _bar(console, transient=False) as bar:
        reporter = ConsoleReporter(console, bar, keep_tasks=True)
        yield reporter
        reporter.finish_task()


@contextmanager
def training_console(
    console: Console | None = None, *, quiet: bool = False
) -> Iterator[TrainingConsole]:
    """A reporter for a training, which also shows what the run logs: a collapse, a full disk.

    Args:
        console: where to write; stderr by default.
        quiet: say nothing, as all but one of several processes must.
    """
    console = console or _stderr(quiet=quiet)
    log = logging.getLogger("pointdistill")
    with _bar(console, transient=False) as bar:
        reporter = TrainingConsole(console, bar)
        handler = _LogLines(reporter)
        log.addHandler(handler)
        try:
            yield reporter
        finally:
            log.removeHandler(handler)


class _LogLines(logging.Handler):
    def __init__(self, reporter: ConsoleReporter) -> None:
        super().__init__(logging.WARNING)
        self.reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record as a line above the bar."""
        self.reporter.show_line(record.getMessage(), style="yellow")


def _stderr(*, quiet: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=True, quiet=quiet)


def _bar(console: Console, *, transient: bool) -> Progress:
    """The one progress bar of the program."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Amount(ProgressColumn):
        """Parts done and in all: bytes as sizes, everything else as numbers."""

        _numbers = MofNCompleteColumn()

        def render(self, task: Task) -> Text:
            if task.fields["unit"] != "bytes":
                speed = f", {task.speed:,.0f}/s" if task.fields["unit"] and task.speed else ""
                return self._numbers.render(task).append(speed)
            total = f"/{task.total / 1e6:,.1f}" if task.total else ""
            speed = f", {task.speed / 1e6:,.1f} MB/s" if task.speed else ""
            return Text(f"{task.completed / 1e6:,.1f}{total} MB{speed}")

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        Amount(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    return Progress(*columns, console=console, transient=transient, disable=not console.is_terminal)


def print_error(message: str) -> None:
    """One line on stderr, whatever the width."""
    print(" ".join(message.split()), file=sys.stderr)  # noqa: T201


def print_table(table: Table, *, right: Collection[str] = (), whole: bool = False) -> None:
    """A table with its notes: ruled lines on a terminal, Markdown where the output goes to a file.

    Args:
        table: what to print.
        right: columns that are aligned right, beside those of percentages.
        whole: cut or wrap nothing, even where the terminal is narrower than 80 columns.
    """
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        typer.echo(table.markdown())
        return
    if whole:
        _print_whole(table, right, console)
        return
    console.print(_rich_table(table, right))
    for note in table.notes:
        console.print(note, markup=False, highlight=False, style="dim")


def _print_whole(table: Table, right: Collection[str], console: Console) -> None:
    drawn = _rich_table(table, right)
    drawn.title, drawn.show_edge, drawn.pad_edge = None, False, False
    for column in drawn.columns:
        column.no_wrap = True
    console.width = max(console.width, _LEAST_WIDTH)
    typer.echo(table.title)
    console.print(drawn, crop=False)
    typer.echo()
    for note in table.notes:
        typer.echo(note)


def _rich_table(table: Table, right: Collection[str]) -> rich.table.Table:
    """A table with ruled lines, its text as it is."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(title=Text(table.title), title_justify="left", box=SIMPLE_HEAD)
    for name in table.columns:
        to_right = name in right or name.endswith("%")
        drawn.add_column(Text(name), justify="right" if to_right else "left")
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn


# Lines and a bar for work of several parts.


def say_saving() -> None:
    """Answer the first Ctrl-C of a training, which ends only after the step that it is in."""
    # Straight to the file: within a signal's handler a buffered stream may be in the middle of a write.
    os.write(2, b"\nfinishing this step, then saving; a second signal stops at once\n")


@contextmanager
def task_progress() -> Iterator[tuple[Callable[[str], None], Callable[[str, int, int], None]]]:
    """Lines and a bar on stderr; the bar on a terminal only, and gone when the work is done."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)

        def say(line: str) -> None:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

        def show(what: str, done: int, total: int) -> None:
            if bar.tasks[task].total != total or done < bar.tasks[task].completed:
                bar.reset(task, total=total)
            bar.update(task, description=what, completed=done, total=total)

        yield say, show
