"""Commands about the program itself: ``pointdistill quickstart``, ``doctor`` and ``--version``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pointdistill.cli.console import (
    echo,
    print_json,
    print_report,
    print_table,
    stages_reporter,
)
from pointdistill.cli.options import JsonOption
from pointdistill.reporter import format_duration
from pointdistill.version import __version__

if TYPE_CHECKING:
    from pointdistill.engine.quickstart import QuickstartResult


def doctor(as_json: JsonOption = False) -> None:
    """Print versions, devices, what is installed, and what would stop a run."""
    from pointdistill.engine.runtime.doctor import examine

    report = examine()
    if as_json:
        lists = {"problems": report.problems, "remarks": report.remarks}
        print_json("doctor", {"facts": dict(report.facts)} | lists)
    else:
        print_report(report)
    if report.problems:
        raise typer.Exit(1)


def _print_version(value: bool) -> None:
    if value:
        echo(f"pointdistill {__version__}")
        raise typer.Exit


def show_version(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Self-supervised representations of 3-D shapes, from meshes and point clouds, with no labels."""


_NEXT = (
    (
        "pointdistill embed my-meshes --up y --encoder procedural-mini",
        "Features of every mesh and cloud in a folder of yours, with the encoder that comes with the program.",
    ),
    ("pointdistill search chair.obj", "The shapes nearest to a file, as a list and a picture."),
    (
        "pointdistill prepare-data folder --input my-meshes --up y && pointdistill pretrain --size tiny",
        "Train an encoder of your own on them.",
    ),
    ("pointdistill report", "This page for a run of your own, or for several side by side."),
)
"""What the quickstart's page proposes: commands, and what they do."""


def _stopped(folder: Path) -> str:
    return f"stopped; everything is saved in {folder}, and the same command continues from there"


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
    as_json: JsonOption = False,
) -> None:
    """A demonstration in minutes: make shapes, pretrain a tiny encoder, compare it with its initial weights."""
    from pointdistill.engine.evaluation.tables import results_table
    from pointdistill.engine.quickstart import QuickstartConfig, gains, quickstart

    with stages_reporter() as reporter:
        config = QuickstartConfig(seed=seed, shapes=shapes, steps=steps)
        try:
            result = quickstart(folder, config, next_steps=_NEXT, reporter=reporter)
        except KeyboardInterrupt:
            reporter.say(_stopped(folder))
            raise
    if as_json:
        print_json("quickstart", _record(result))
    if result.interrupted:
        echo(_stopped(folder), err=as_json)
        raise typer.Exit(130)
    if as_json:
        return
    print_table(results_table(result.results))
    added = ", ".join(f"{name} {gain:+.1f}" for name, gain in gains(result.results).items())
    echo(f"accuracy gained over the initial weights by pretraining: {added} points")
    echo(f"{format_duration(result.total_seconds)}; report with pictures: {result.report}")
    echo("next: pointdistill prepare-data   (or: prepare-data folder --input YOUR_MESHES)")


def _record(result: QuickstartResult) -> dict[str, Any]:
    from pointdistill.engine.quickstart import gains

    return {
        "folder": result.folder,
        "run": result.run,
        "report": None if result.interrupted else result.report,
        "finished": not result.interrupted,
        "results": result.results,
        "gains": gains(result.results) if result.results else {},
        "seconds": result.seconds,
        "total_seconds": result.total_seconds,
    }
