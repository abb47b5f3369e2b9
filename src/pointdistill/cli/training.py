"""Carries out ``pretrain``: says what will happen, shows it, and what came of it."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer

from pointdistill.cli.console import TrainingConsole, training_console
from pointdistill.engine.devices import is_main_process
from pointdistill.engine.machine import out_of_memory
from pointdistill.engine.settings import RunOverrides
from pointdistill.engine.training.launch import (
    PreparedRun,
    announce,
    execute,
    prepare_resumed_run,
    prepare_run,
)
from pointdistill.engine.training.pretrain import RunResult
from pointdistill.engine.training.run_options import RunOptions
from pointdistill.errors import ConfigError


def run_pretraining(
    overrides: RunOverrides,
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
        prepared = prepare_resumed_run(overrides, data=data, run=run)
    else:
        prepared = prepare_run(
            overrides, data=data, run=run, init_from=init_from, device=options.device
        )
    with training_console(quiet=not is_main_process()) as reporter:
        for line in announce(prepared):
            reporter.say(line)
        result = _train(prepared, options, reporter)
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


def _train(prepared: PreparedRun, options: RunOptions, reporter: TrainingConsole) -> RunResult:
    """Carry out the run.

    Raises:
        ConfigError: if a step did not fit into memory.
    """
    try:
        return execute(prepared, options, reporter)
    except Exception as error:
        if not out_of_memory(error):
            raise
        batch = prepared.config.batch_size
        msg = (
            f"a step of {batch} shapes does not fit into the memory of this device; give a smaller --batch-size "
            f"(such as {max(1, batch // 2)}), or ask `pointdistill plan` what fits"
        )
        raise ConfigError(msg) from error
