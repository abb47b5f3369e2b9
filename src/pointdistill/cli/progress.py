"""The progress bar of commands that work through shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pointdistill.data.build import Progress


@contextmanager
def shape_progress(title: str) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal, with speed and time left; nothing where the output goes to a file."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None, note="")

        def show(progress: Progress) -> None:
            speed = bar.tasks[task].speed
            notes = [f"{speed:,.0f}/s"] if speed else []
            notes += [f"{progress.refused:,} refused"] if progress.refused else []
            bar.update(task, completed=progress.done, total=progress.total, note=", ".join(notes))

        yield show
