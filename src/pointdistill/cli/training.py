"""Carries out ``pretrain``: says what will happen, shows it, and what came of it."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer
from rich.console import Console

from pointdistill.cli.task_progress import say_saving
from pointdistill.cli.training_progress import remarks_to, say, training_progress
from pointdistill.engine.devices import is_main_process
from pointdistill.engine.machine import out_of_memory
from pointdistill.engine.settings import Asked
from pointdistill.engine.training.launch import (
    Launch,
    announce,
    carry_out,
    new_launch,
    resumed_launch,
)
from pointdistill.engine.training.pretrain import RunResult
from pointdistill.engine.training.run_options import RunOptions
from pointdistill.errors import ConfigError


def run_pretraining(
    asked: Asked,
    *,
    data: Path | None,
    run: Path | None,
    resume: bool,
    init_from: Path | None,
    options: RunOptions,
) -> None:
    """Start or resume, show progress, say what comes next; exit code 130 when interrupted."""
    if resume:
        if init_from is not None:
            msg = "--init-from begins a run and --resume goes on with one; give one of them"
            raise ConfigError(msg)
        launch = resumed_launch(asked, data=data, run=run)
    else:
        launch = new_launch(asked, data=data, run=run, init_from=init_from, device=options.device)
    console = Console(stderr=True, quiet=not is_main_process())
    for line in announce(launch):
        say(console, line)
    result = _train(launch, options, console)
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
        "next: pointdistill embed YOUR_FILES   (or: pointdistill evaluate scanobjectnn --stand-in)"
    )


def _train(launch: Launch, options: RunOptions, console: Console) -> RunResult:
    """The run under a progress line.

    Raises:
        ConfigError: if a step did not fit into memory.
    """

    def on_signal() -> None:
        if is_main_process():
            say_saving()

    try:
        with training_progress(console) as show, remarks_to(console):
            return carry_out(launch, options, show, on_signal=on_signal)
    except Exception as error:
        if not out_of_memory(error):
            raise
        batch = launch.config.batch_size
        msg = (
            f"a step of {batch} shapes does not fit into the memory of this device; give a smaller --batch-size "
            f"(such as {max(1, batch // 2)}), or ask `pointdistill plan` what fits"
        )
        raise ConfigError(msg) from error
