"""What a training run shows while it goes: one line of progress, and what came of it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pointdistill.engine.devices import is_main_process
from pointdistill.engine.launch import announce, carry_out, new_launch, resumed_launch
from pointdistill.engine.pretrain import RunOptions, StepRecord
from pointdistill.errors import ConfigError

MEASURED_STEPS = 3
SLOW_HOURS = 1.0


def run_pretraining(
    *,
    size: str | None,
    mode: str | None,
    data: Path | None,
    run: Path | None,
    resume: bool,
    init_from: Path | None,
    changes: Mapping[str, int | None],
    save_every: int,
    device: str,
    precision: str,
) -> None:
    """Start or resume, show progress, say what comes next; exit code 130 when interrupted."""
    if resume:
        if init_from is not None:
            msg = "--init-from begins a run and --resume goes on with one; give one of them"
            raise ConfigError(msg)
        asked = {"size": size, "mode": mode, **changes}
        launch = resumed_launch(data=data, run=run, changes=asked)
    else:
        launch = new_launch(
            size or "small",
            mode or "dual",
            data=data,
            run=run,
            init_from=init_from,
            changes=changes,
            device=device,
        )
    console = Console(stderr=True, quiet=not is_main_process())
    for line in announce(launch):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    with training_progress(console) as show:
        options = RunOptions(device=device, precision=precision, save_every=save_every)
        result = carry_out(launch, options, show)
    if not is_main_process():
        raise typer.Exit(130 if result.interrupted else 0)
    if result.interrupted:
        typer.echo(
            f"stopped after step {result.step} of {result.total}; everything is saved in {result.run}"
        )
        typer.echo(f"next: pointdistill pretrain --resume --run {shlex.quote(str(result.run))}")
        raise typer.Exit(130)
    typer.echo(f"{result.total} steps done; the teacher's encoder is in {result.run}/encoder")
    typer.echo(
        "next: pointdistill evaluate scanobjectnn   (add --stand-in if you do not have the archive)"
    )


class _Show:
    """Turns step records into a progress line; after a few steps says what the rest will cost."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self.progress = progress
        self.console = console
        self.task = progress.add_task("", total=None)
        self.speeds: list[float] = []

    def __call__(self, record: StepRecord) -> None:
        terms = " ".join(f"{name} {value:.3f}" for name, value in record.terms.items())
        self.progress.update(
            self.task,
            total=record.total,
            completed=record.step,
            description=f"loss {record.loss:.3f} ({terms}) {record.shapes_per_second:.0f} shapes/s",
        )
        self.speeds.append(record.shapes_per_second)
        if len(self.speeds) == MEASURED_STEPS:
            self._say_cost(record)

    def _say_cost(self, record: StepRecord) -> None:
        speed = self.speeds[-1]
        batch = record.batch_size
        hours = (record.total - record.step) * batch / speed / 3600
        if hours > SLOW_HOURS:
            span = f"{hours / 24:.0f} days" if hours > 48 else f"{hours:.1f} hours"
            self.console.print(
                f"cost: about {span} for this run on this device ({speed:.1f} shapes/s); "
                "--size tiny takes minutes on a CPU. Ctrl-C saves, --resume goes on",
                style="yellow",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


@contextmanager
def training_progress(console: Console) -> Iterator[_Show]:
    """A progress line for ``pretrain``'s reports."""
    columns = (
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        yield _Show(progress, console)
