"""Lines and a bar for work of several parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
