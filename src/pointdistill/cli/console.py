"""Terminal output of the commands: lines, one progress bar, tables. Everything but results goes to stderr."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import typer

from pointdistill.errors import one_line
from pointdistill.reporter import Reporter, TrainingReporter, format_duration, format_speed

if TYPE_CHECKING:
    import rich.table
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from pointdistill.engine.reports.tables import Table
    from pointdistill.engine.runtime.doctor import Report
    from pointdistill.reporter import StepRecord

SECONDS_BETWEEN_LINES = 60.0
"""Time between the lines of progress where the output is not a terminal."""

SECONDS_BEFORE_LINES = 10.0
"""Time that a task takes before its progress is printed where the output is not a terminal."""

LONG_SECONDS = 10.0
"""A command that takes longer says in its last line how long it took."""

JSON_VERSION = 1
"""Of the documents that commands print; docs/json.md has their fields."""

STEPS_BEFORE_COST = 3
"""Steps after which the speed of a run is known well enough to forecast its duration."""

SLOW_RUN_SECONDS = 3600.0
"""A run that is expected to take longer than this gets a line that says so."""

_LEAST_WIDTH = 80
"""Fewest columns that a table is given whose cells are not to be wrapped."""

_WIDE = 110
"""Columns from which a bar of progress has room for all that there is to say."""

_REMARKS = ("next:", "note:", "corpus:", "encoder:", "similarity:")
"""How the lines begin that --quiet leaves out: what comes next, and which defaults were taken."""

_REPAIR = "have `pointdistill sample` repair it"
"""How `data.meshes` advises to leave out what cannot be used, which names no option."""

_SAMPLE = "have `pointdistill sample FILE --repair --output NEW.ply` leave them out"

_state = {"quiet": False}


def set_quiet(value: bool) -> None:
    """Whether to print results, warnings and errors only."""
    _state["quiet"] = value


def echo(line: str = "", *, err: bool = False) -> None:
    """Print one line of a result, or with ``err`` a remark; what could steer a terminal becomes escapes."""
    if not (_state["quiet"] and line.startswith(_REMARKS)):
        typer.echo(one_line(line), err=err)


def say_refused(shape: object, reason: str, *, repair: str = _SAMPLE) -> None:
    """Print on stderr why a shape could not be used.

    Args:
        shape: its path, or its id and the path that it was found in; None if the reason names it.
        reason: one line, without options.
        repair: what leaves out the faces or points that cannot be used, in this command.
    """
    named = "" if shape is None else f"{shape}: "
    echo(f"error: {named}{reason.replace(_REPAIR, repair)}", err=True)


def say_duration(seconds: float) -> None:
    """Print on stderr how long a command took, if it was long."""
    if seconds >= LONG_SECONDS and not _state["quiet"]:
        echo(f"took {format_duration(seconds)}", err=True)


def confirm(question: str) -> bool:
    """Ask a question on stderr; no is the answer to an empty line."""
    return typer.confirm(one_line(question), default=False, err=True)


def echo_lines(text: str) -> None:
    """Print text of several lines: JSON or TOML, in whose strings a line break is an escape already."""
    for line in text.removesuffix("\n").split("\n"):
        echo(line)


def print_json(command: str, record: Mapping[str, Any]) -> None:
    """Print the one JSON document of a command on stdout: its format, and ``record``.

    Args:
        command: its name, from which the format is called.
        record: plain values, records (dataclasses) and paths; numbers that are not finite become null, which JSON
            has no other word for.
    """
    named = {"format": f"pointdistill-{command}", "version": JSON_VERSION}
    plain = _plain(named | dict(record))
    echo_lines(json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | Enum):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    return _plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def name_options(message: str, settings: tuple[str, ...]) -> str:
    """A message followed by the names of the options that set ``settings``."""
    options = ", ".join("--" + name.replace("_", "-") for name in settings)
    return f"{message} ({options})" if options else message


class ConsoleReporter(Reporter):
    """Prints lines and a progress bar for the current task; the bar only if stderr is a terminal."""

    def __init__(self, console: Console, bar: Progress, *, keep_tasks: bool = False) -> None:
        self.console = console
        self._bar = bar
        self._keep_tasks = keep_tasks
        self._task: TaskID | None = None
        self._shown = ""
        self._began = 0.0
        self._last_line: float | None = None

    def say(self, line: str, *settings: str) -> None:
        """Print a line above the bar, without wrapping it and without interpreting markup."""
        if not _state["quiet"]:
            self.show_line(name_options(line, settings))

    def progress(
        self, task: str, done: float, total: float | None = None, *, note: str = "", unit: str = ""
    ) -> None:
        """Move the bar; a new task starts a new bar, in the place of the last one or below it."""
        task, note = one_line(task), one_line(note)
        if task != self._shown:
            self._start(task, total, unit)
        assert self._task is not None
        current = self._bar.tasks[-1]
        if current.total != total or done < current.completed:
            self._bar.reset(self._task, total=total)
        self._bar.update(self._task, completed=done, total=total, note=note, unit=unit)
        if not (self.console.is_terminal or _state["quiet"]):
            self._plain_progress(task, done, total, note, unit)

    def _plain_progress(
        self, task: str, done: float, total: float | None, note: str, unit: str
    ) -> None:
        """Print a line of progress after the first seconds of a task, then once per minute, and at its end."""
        now = time.monotonic()
        since = now - (self._began if self._last_line is None else self._last_line)
        wait = SECONDS_BEFORE_LINES if self._last_line is None else SECONDS_BETWEEN_LINES
        is_end = total is not None and done >= total and self._last_line is not None
        if since < wait and not is_end:
            return
        self._last_line = None if is_end else now
        if is_end:
            self._began = now
        in_bytes = unit == "bytes"
        amounts = [
            f"{amount / 1e6:,.1f}" if in_bytes else f"{amount:,.0f}"
            for amount in (done, total or 0)
        ]
        count = " of ".join(amounts if total else amounts[:1]) + (" MB" if in_bytes else "")
        left = (now - self._began) / done * (total - done) if total and 0 < done < total else 0.0
        rest = [f"about {format_duration(left)} left"] if left >= 1 else []
        self.show_line(", ".join([f"{task}: {count}", *([note] if note else []), *rest]))

    def finish_task(self) -> None:
        """Leave the bar of the current task on the screen, filled."""
        if self._task is not None:
            total = self._bar.tasks[-1].total or 1
            self._bar.update(self._task, total=total, completed=total)
            self._bar.stop_task(self._task)

    def on_signal(self) -> None:
        """Acknowledge the first Ctrl-C of a training, which stops only after its current step."""
        # Written to the file descriptor: a signal may arrive while a buffered stream is in the middle of a write.
        os.write(2, b"\nfinishing this step, then saving; a second signal stops at once\n")

    def _start(self, task: str, total: float | None, unit: str) -> None:
        if self._keep_tasks:
            self.finish_task()
            if not (self.console.is_terminal or _state["quiet"]):
                self.show_line(task)
        elif self._task is not None:
            # Rich keeps a task's old total if the new one is None, so a new task gets a new entry.
            self._bar.remove_task(self._task)
        self._began, self._last_line = time.monotonic(), None
        self._task, self._shown = self._bar.add_task(task, total=total, note="", unit=unit), task

    def show_line(self, line: str, style: str | None = None) -> None:
        """Print a line above the bar."""
        self.console.print(
            one_line(line), style=style, markup=False, highlight=False, soft_wrap=True
        )


class TrainingConsole(ConsoleReporter, TrainingReporter):
    """Shows a training: one moving line on a terminal, or a line per minute if stderr goes to a file."""

    _steps_seen = 0
    _first: tuple[int, float] | None = None

    def step(self, record: StepRecord) -> None:
        """Show the step; after the first few, also forecast the duration of a slow run."""
        terms = " ".join(f"{name} {value:.3f}" for name, value in record.terms.items())
        speed = format_speed(record.shapes_per_second)
        # On a narrow terminal the steps and times would be cut for the terms.
        is_narrow = self.console.is_terminal and self.console.width < _WIDE
        note = f"loss {record.loss:.3f} {'' if is_narrow else f'({terms}) '}{speed} shapes/s"
        if _state["quiet"]:
            return
        if self.console.is_terminal:
            self.progress("training", record.step, record.total, note=note)
        else:
            self._line_a_minute(record, note)
        self._steps_seen += 1
        if self._steps_seen == STEPS_BEFORE_COST:
            self._say_cost(record)

    def on_signal(self) -> None:
        """Acknowledge the signal, on one of several processes only."""
        if not self.console.quiet:
            super().on_signal()

    def _line_a_minute(self, record: StepRecord, note: str) -> None:
        """Print a plain line for the first step, for the last, and once per minute."""
        now = time.monotonic()
        if self._first is None:
            self._first = (record.step, now)
        recent = self._last_line is not None and now - self._last_line < SECONDS_BETWEEN_LINES
        if recent and record.step != record.total:
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
                f"({format_speed(record.shapes_per_second)} shapes/s); `pointdistill plan` says more, --size tiny "
                "takes minutes on a CPU. Ctrl-C saves, --resume continues",
                style="yellow",
            )


@contextmanager
def console_reporter() -> Iterator[ConsoleReporter]:
    """A reporter on stderr, whose bar is removed when the work is done."""
    console = _stderr()
    with _bar(console, transient=True) as bar:
        reporter = ConsoleReporter(console, bar)
        with _warnings_to(_LogLines(reporter)):
            yield reporter


@contextmanager
def stages_reporter() -> Iterator[ConsoleReporter]:
    """A reporter whose finished tasks stay on the screen, each with its bar."""
    console = _stderr()
    with _bar(console, transient=False) as bar:
        reporter = ConsoleReporter(console, bar, keep_tasks=True)
        with _warnings_to(_LogLines(reporter)):
            yield reporter
        reporter.finish_task()


@contextmanager
def training_console(
    console: Console | None = None, *, quiet: bool = False
) -> Iterator[TrainingConsole]:
    """A reporter for a training, which also shows the run's warnings, such as a collapse or a full disk.

    Args:
        console: where to write; by default stderr.
        quiet: print nothing, for all but one of several processes.
    """
    console = console or _stderr(quiet=quiet)
    with _bar(console, transient=False) as bar:
        reporter = TrainingConsole(console, bar)
        with _warnings_to(_LogLines(reporter)):
            yield reporter


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print the program's warnings as lines of their own, wherever no reporter shows them."""
    with _warnings_to(_PlainLines(logging.WARNING)):
        yield


@contextmanager
def _warnings_to(handler: logging.Handler) -> Iterator[None]:
    """Give the program's warnings to ``handler`` alone."""
    log = logging.getLogger("pointdistill")
    before, log.handlers = log.handlers, [handler]
    try:
        yield
    finally:
        log.handlers = before


class _PlainLines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Print one record, as an error is printed."""
        print_error(record.getMessage())


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
        """How much is done, and the total: bytes as sizes, everything else as numbers."""

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
        BarColumn(bar_width=20 if console.width >= _WIDE else 10),
        Amount(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    return Progress(
        *columns,
        console=console,
        transient=transient,
        disable=_state["quiet"] or not console.is_terminal,
    )


def draw(drawn: Any, width: int) -> str:
    """What rich shows of a drawing of the program's own words on this terminal; lines of text are not wrapped."""
    from rich.console import Console

    console = Console(width=width)
    with console.capture() as captured:
        console.print(drawn, highlight=False, soft_wrap=isinstance(drawn, str))
    return captured.get()


def print_error(message: str) -> None:
    """Print one line on stderr, without wrapping it."""
    print(one_line(" ".join(message.split())), file=sys.stderr)  # noqa: T201


def print_report(report: Report) -> None:
    """Print the state of a machine: what there is, then problems and remarks."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console()
    table = RichTable(show_header=False, box=None, pad_edge=False)
    for fact in report.facts:
        table.add_row(*(Text(one_line(cell)) for cell in fact))
    console.print(table)
    lines = [(f"problem: {problem}", "bold red") for problem in report.problems]
    lines += [(f"note: {remark}", "yellow") for remark in report.remarks]
    if not report.problems:
        lines.append(("nothing here would stop a run", "green"))
    for line, style in lines:
        console.print(one_line(line), style=style, markup=False, highlight=False, soft_wrap=True)


def print_table(table: Table, *, right: Collection[str] = (), whole: bool = False) -> None:
    """Print a table with its notes: in columns on a terminal; elsewhere a line a row, its cells between tabs.

    On a terminal too narrow for it, cells of several words are wrapped. No cell is ever cut: if there is no room
    even so, each row is printed as lines of its own.

    Args:
        table: what to print.
        right: columns to align right, in addition to those of percentages.
        whole: do not wrap cells either.
    """
    from rich.console import Console

    console = Console()
    echo(table.title)
    if console.is_terminal:
        _draw(table, right, console, whole=whole)
    else:
        for row in (table.columns, *table.rows):
            typer.echo("\t".join(map(one_line, row)))
    notes = table.note_lines(console.width) if console.is_terminal else None
    for line in notes or [f"- {note}" for note in table.notes]:
        echo(line)
    if table.notes or not console.is_terminal:
        echo()


def _draw(table: Table, right: Collection[str], console: Console, *, whole: bool) -> None:
    """Print the rows in columns, or each as lines of its own."""
    drawn = _rich_table(table, right)
    if whole:
        console.width = max(console.width, _LEAST_WIDTH)
    widths = table.column_widths(console.width, wrapped=not whole)
    if widths is None:
        for row in table.rows:
            echo()
            echo(row[0])
            for name, cell in zip(table.columns[1:], row[1:], strict=True):
                if cell not in ("", "-"):
                    echo(f"  {name}: {cell}")
    else:
        for column, width in zip(drawn.columns, widths, strict=True):
            column.width, column.overflow = width, "fold"
        console.print(drawn, crop=False)
    echo()


def _rich_table(table: Table, right: Collection[str]) -> rich.table.Table:
    """A table with ruled lines, whose text is not interpreted as markup."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for name in table.columns:
        to_right = name in right or name.endswith("%")
        drawn.add_column(Text(one_line(name)), justify="right" if to_right else "left")
    for row in table.rows:
        drawn.add_row(*(Text(one_line(cell)) for cell in row))
    return drawn
