"""``pointdistill quickstart``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pointdistill.cli.console import print_table, stages_reporter
from pointdistill.reporter import format_duration


def quickstart(
    folder: Annotated[
        Path, typer.Option(help="Folder for everything; the same command continues there.")
    ] = Path("quickstart"),
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same numbers.")
    ] = 0,
    shapes: Annotated[
        int, typer.Option(min=64, help="Number of shapes in the builtin corpus.")
    ] = 4000,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps; by default the tiny recipe's.")
    ] = None,
) -> None:
    """A demonstration in minutes: make shapes, pretrain a tiny encoder, compare it with its initial weights."""
    from pointdistill.engine.evaluation.tables import results_table
    from pointdistill.engine.quickstart import QuickstartConfig, gains, quickstart

    with stages_reporter() as reporter:
        config = QuickstartConfig(seed=seed, shapes=shapes, steps=steps)
        result = quickstart(folder, config, reporter=reporter)
    if result.interrupted:
        typer.echo(
            f"stopped; everything is saved in {folder}, and the same command continues from there"
        )
        raise typer.Exit(130)
    print_table(results_table(result.results))
    added = ", ".join(f"{name} {gain:+.1f}" for name, gain in gains(result.results).items())
    typer.echo(f"accuracy gained over the initial weights by pretraining: {added} points")
    typer.echo(
        f"{format_duration(sum(result.seconds.values()))}; report with pictures: {result.report}"
    )
    typer.echo("next: pointdistill prepare-data   (or: prepare-data folder --input YOUR_MESHES)")
