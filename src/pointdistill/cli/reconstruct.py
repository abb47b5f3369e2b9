"""``pointdistill reconstruct``."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pointdistill.engine.reconstruction.reconstruct_comparison import Show


def reconstruct(
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Run or encoder folder, or owner/name on the Hub; by default the last run made in this folder.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Corpus folder; by default the last one made in this folder."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of each decoder. Default: 1000.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs with seeds 0, 1, ...; mean and deviation are shown.")
    ] = 1,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for results.json and the picture; by default inside the run."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Fill masked patches from frozen features, beside random features; draw it. Ctrl-C keeps what is done."""
    from pointdistill.cli.tables import print_table
    from pointdistill.engine.reconstruction.reconstruct import ReconstructRequest
    from pointdistill.engine.reconstruction.reconstruct import reconstruct as run
    from pointdistill.engine.reconstruction.reconstruct_comparison import PICTURE, RESULTS

    request = ReconstructRequest(
        encoder=encoder, data=data, steps=steps, seeds=seeds, output=output, device=device
    )
    with _progress() as (say, show):
        result = run(request, say=say, show=show)
    if result.outcomes:
        print_table(result.table())
    if result.interrupted:
        typer.echo(f"stopped; what is finished is in {result.output}, the same command goes on")
        raise typer.Exit(130)
    typer.echo(f"results: {result.output / RESULTS}; picture: {result.output / PICTURE}")
    named = "" if encoder is None else f" --encoder {shlex.quote(encoder)}"
    typer.echo(f"next: pointdistill export my-encoder{named}")


@contextmanager
def _progress() -> Iterator[tuple[Callable[[str], None], Show]]:
    """Lines on stderr, and on a terminal a bar for each decoder with its distance."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:

        def say(line: str) -> None:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

        def show(what: str, done: int, total: int, loss: float) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total, note="")
            bar.update(tasks[what], completed=done, note=f"distance {loss:.4f}")

        yield say, show
