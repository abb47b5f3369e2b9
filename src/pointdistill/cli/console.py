"""What the commands show: lines, one progress bar, tables. Everything but results goes to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from pointdistill.reporter import Reporter

if TYPE_CHECKING:
    import rich.table
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from pointdistill.engine.reporting.tables import Table


_LEAST_WIDTH = 80
"""Columns in which a table that is printed whole has room."""


def name_options(message: str, settings: tuple[str, ...]) -> str:
    """A message with the options that set ``settings`` behind it."""
    options = ", ".join("--" + name.replace("_", "-") for name in settings)
    return f"{message} ({options})" if options else message


class ConsoleReporter(Reporter):
    """Lines, and one bar that follows the task at hand; the bar only where stderr is a terminal."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self.console = console
        self._bar = bar
        self._task: TaskID | None = None
        self._shown = ""

    def say(self, line: str, *settings: str) -> None:
        """A line above the bar, whatever the width, with nothing in it taken for markup."""
        self.console.print(
            name_options(line, settings), markup=False, highlight=False, soft_wrap=True
        )

    def progress(
        self, task: str, done: float, total: float | None = None, *, note: str = "", unit: str = ""
    ) -> None:
        """Move the bar; a new task starts another one."""
        # Rich keeps a task's old total where the new one is not known, so a new task gets a new entry.
        if self._task is None or task != self._shown:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task, self._shown = (
                self._bar.add_task(task, total=total, note="", unit=unit),
                task,
            )
        (current,) = self._bar.tasks
        if current.total != total or done < current.completed:
            self._bar.reset(self._task, total=total)
        self._bar.update(self._task, completed=done, total=total, note=note, unit=unit)

    def on_signal(self) -> None:
        """Answer the first Ctrl-C of a training, which ends only after the step that it is in."""
        # Straight to the file: within a signal's handler a buffered stream may be in the middle of a write.
        os.write(2, b"\nfinishing this step, then saving; a second signal stops at once\n")


@contextmanager
def console_reporter() -> Iterator[ConsoleReporter]:
    """A reporter on stderr; its bar is gone when the work is done."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
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

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        Amount(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        yield ConsoleReporter(console, bar)


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
