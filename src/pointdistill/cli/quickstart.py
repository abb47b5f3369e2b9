"""``pointdistill quickstart``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from pointdistill.engine.training.pretrain import StepRecord


def quickstart(
    folder: Annotated[
        Path, typer.Option(help="Everything is written here and found again.")
    ] = Path("quickstart"),
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Same seed, same numbers.")] = 0,
    shapes: Annotated[int, typer.Option(min=64, help="Shapes of the builtin corpus.")] = 4000,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps; by default the tiny recipe's.")
    ] = None,
) -> None:
    """See it work in minutes: make shapes, pretrain a tiny encoder, measure it beside its initial weights."""
    from rich.console import Console

    from pointdistill.cli.console import print_table
    from pointdistill.engine.evaluation.tables import results_table
    from pointdistill.engine.quickstart import Hooks, QuickstartConfig, gains, quickstart

    console = Console(stderr=True)
    with _Stages(console) as stages:
        result = quickstart(
            folder,
            QuickstartConfig(seed=seed, shapes=shapes, steps=steps),
            Hooks(stage=stages.begin, count=stages.count, step=stages.step),
        )
    if result.interrupted:
        typer.echo(f"stopped; everything is saved in {folder}, the same command goes on from there")
        raise typer.Exit(130)
    print_table(results_table(result.results))
    added = ", ".join(f"{name} {gain:+.1f}" for name, gain in gains(result.results).items())
    typer.echo(f"pretraining changed the accuracy of its own initial weights by: {added} points")
    typer.echo(f"{sum(result.seconds.values()):.0f} seconds; report with pictures: {result.report}")
    typer.echo("next: pointdistill prepare-data   (or: prepare-data folder --input YOUR_MESHES)")


class _Stages:
    """One progress line a stage, left standing with its time when the next begins."""

    def __init__(self, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> _Stages:
        self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._finish()
        self._progress.stop()

    def begin(self, _name: str, text: str) -> None:
        """A new stage: the line before is complete."""
        self._finish()
        self._task = self._progress.add_task(text, total=None, note="")

    def count(self, done: int, total: int) -> None:
        """Done and total within the stage."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total)

    def step(self, record: StepRecord) -> None:
        """A training step."""
        if self._task is not None:
            note = f"loss {record.loss:.3f}, {record.shapes_per_second:.0f} shapes/s"
            self._progress.update(self._task, completed=record.step, total=record.total, note=note)

    def _finish(self) -> None:
        if self._task is not None:
            task = self._progress.tasks[self._task]
            total = task.total if task.total is not None else 1
            self._progress.update(self._task, total=total, completed=total)
            self._progress.stop_task(self._task)
