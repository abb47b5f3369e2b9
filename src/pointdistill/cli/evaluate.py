"""``pointdistill evaluate``: a frozen encoder on a labelled benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pointdistill.engine.evaluate_saved import Outcome


class BenchmarkName(StrEnum):
    """What can be measured on; repeated here so that ``--help`` does not load torch."""

    SCANOBJECTNN = "scanobjectnn"
    MODELNET40 = "modelnet40"


class ProtocolName(StrEnum):
    """How features are measured; repeated here for the same reason."""

    KNN = "knn"
    SVM = "svm"
    LINEAR = "linear"
    LOGISTIC = "logistic"


def evaluate(
    benchmark: Annotated[BenchmarkName, typer.Argument(help="What to measure on.")],
    encoder: Annotated[
        Path | None,
        typer.Option(help="Run or encoder folder; by default the last run made in this folder."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="The archive; by default data/h5_files.zip or data/ModelNet40.zip."),
    ] = None,
    stand_in: Annotated[
        bool,
        typer.Option(
            "--stand-in", help="Measure on a stand-in of the benchmark's layout, made on first use."
        ),
    ] = False,
    split: Annotated[
        list[str] | None,
        typer.Option(
            help="ScanObjectNN: OBJ-BG, OBJ-ONLY or PB-T50-RS; again for more. Default: all."
        ),
    ] = None,
    protocol: Annotated[
        list[ProtocolName] | None,
        typer.Option(help="How to measure; again for more. Default: all."),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs with seeds 0, 1, ...; mean and deviation are shown.")
    ] = 1,
    augmented_copies: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Augmented training sets that the linear probe goes through in turn; 0 makes a "
            "new one each epoch, as published. Default: 0 on a GPU, 4 on a CPU.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for results.json and results.md; by default inside the run."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Measure a frozen encoder on a benchmark, the published figures beside ours."""
    from pointdistill.engine.evaluate import PROTOCOLS
    from pointdistill.engine.evaluate_saved import EvaluationRequest, evaluate_saved

    request = EvaluationRequest(
        benchmark=benchmark.value,
        encoder=encoder,
        data=data,
        stand_in=stand_in,
        splits=tuple(split or ()),
        protocols=tuple(name.value for name in protocol) if protocol else PROTOCOLS,
        seeds=seeds,
        augmented_copies=augmented_copies,
        output=output,
        device=device,
    )
    with _progress() as (say, show):
        outcome = evaluate_saved(request, say=say, progress=show)
    _print(outcome)
    typer.echo(f"next: {_next(benchmark, encoder, stand_in)}")


def _next(measured: BenchmarkName, encoder: Path | None, stand_in: bool) -> str:
    """The command that comes next, with the options that it shares with this one."""
    named = f" --encoder {encoder}" if encoder is not None else ""
    if measured is BenchmarkName.MODELNET40:
        return f"pointdistill export my-encoder{named}"
    return f"pointdistill evaluate modelnet40{named}{' --stand-in' if stand_in else ''}"


def _print(outcome: Outcome) -> None:
    from pointdistill.cli.tables import print_table
    from pointdistill.engine.results import results_table

    print_table(results_table(outcome.results))
    typer.echo(f"results: {outcome.output}/results.json, {outcome.output}/results.md")


@contextmanager
def _progress() -> Iterator[tuple[Callable[[str], None], Callable[[str, int, int], None]]]:
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
