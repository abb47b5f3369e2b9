"""What ``pointdistill prepare-data mixture --plan`` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pointdistill.cli.mixture import GIGA, command, shapes_of, split_notes

if TYPE_CHECKING:
    from pointdistill.data.build.limits import ShapeLimits
    from pointdistill.data.mixture import MixturePlan, MixtureRequest, PlanRow
    from pointdistill.engine.reporting.tables import Table

_COLUMNS = ("source", "archive", "shapes", "disk", "core time", "commercial")
_WIDTH = 80
"""Columns of a terminal in which the table has room, and below which its lines are not cut either."""


def show_plan(
    request: MixtureRequest,
    output: Path,
    *,
    points: int,
    seed: int,
    workers: int | None,
    limits: ShapeLimits,
    options: Sequence[str],
) -> None:
    """Print what is there, what is missing, and what the build will cost; make nothing.

    Args:
        request, output, points, seed, workers, limits: those of the build.
        options: those that the command which follows repeats, as they are typed.
    """
    from pointdistill.data.mixture import plan_mixture
    from pointdistill.engine.reporting.tables import Table

    plan = plan_mixture(
        request,
        output,
        points=points,
        seed=seed,
        workers=workers,
        limits=limits,
        tell=lambda name: typer.echo(f"measuring a few shapes of {name}", err=True),
    )
    processes = f"{plan.workers} worker{'s' if plan.workers > 1 else ''}"
    title = f"{shapes_of(plan.shapes)} from {request.archives}, {plan.bytes / GIGA:,.2f} GB, "
    title += f"about {_duration(plan.seconds)} with {processes}"
    rows = tuple(_cells(row) for row in plan.rows)
    _print(Table(title, _COLUMNS, rows, tuple(_notes(plan, request))))
    lacking = any(row.status.missing for row in plan.rows if not row.status.not_taken)
    first = not plan.shapes or (request.sources and lacking)
    typer.echo(f"next: {command(request, options)}" + (" --fetch" if first else ""))


def _print(table: Table) -> None:
    """A table that fits a narrow terminal, its notes unwrapped; Markdown where the output goes to a file."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        typer.echo(table.markdown())
        return
    drawn = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in table.columns:
        numbers = name in {"shapes", "disk", "core time"}
        drawn.add_column(Text(name), justify="right" if numbers else "left", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console.width = max(console.width, _WIDTH)
    typer.echo(table.title)
    console.print(drawn, crop=False)
    typer.echo()
    for note in table.notes:
        typer.echo(note)


def _cells(row: PlanRow) -> tuple[str, ...]:
    info = row.status.info
    measured = row.goes_in and row.seconds is not None
    return (
        info.name,
        _state(row),
        f"{row.shapes:,}" if row.listed else f"{row.shapes:,}*",
        f"{row.bytes / GIGA:,.2f} GB",
        _duration(row.seconds or 0) if measured and not row.done else "-",
        {True: "yes", False: "NO", None: "by shape"}[info.commercial],
    )


def _state(row: PlanRow) -> str:
    status = row.status
    if row.problem:
        return "unusable"
    if row.done:
        return "done"
    if status.not_taken:
        return "left out"
    return "there" if status.there else "missing"


def _notes(plan: MixturePlan, request: MixtureRequest) -> Iterator[str]:
    yield from _source_notes(plan.rows, by_name=bool(request.sources))
    if not all(row.listed for row in plan.rows):
        yield "shapes with a * are the official count: the archive is not there, cannot be used or stays out"
    yield from _sum_notes(plan, request)
    wanted = [row.status for row in plan.rows if not row.status.not_taken]
    yield from split_notes(request, wanted)
    if plan.bytes > plan.free_bytes:
        yield f"the disk has {plan.free_bytes / GIGA:,.2f} GB free, which is not enough"
    if any(row.goes_in and row.status.info.commercial is False for row in plan.rows):
        yield "with a source marked NO, neither the corpus nor what is trained on it is for commercial use"


def _source_notes(rows: Sequence[PlanRow], *, by_name: bool) -> Iterator[str]:
    """What the table's cells have no room for: names, addresses, licences and causes.

    ``by_name``: the sources were named, and where the others come from is of no interest.
    """
    from pointdistill.data.mixture import how_to_get

    left_out: dict[str, list[str]] = {}
    for row in rows:
        status, info = row.status, row.status.info
        get = f"{', '.join(status.missing)}, from {info.origin} ({how_to_get(info)})"
        if row.problem:
            yield f"unusable: {info.name}: {row.problem}"
        elif status.not_taken:
            why = status.not_taken
            if status.missing and not by_name:
                why += f"; missing: {get}; licence: {info.licence}"
            left_out.setdefault(why, []).append(info.name)
        elif status.missing:
            yield f"missing: {info.name}: {get}; licence: {info.licence}"
        elif row.done:
            yield f"done: {info.name}: the corpus has it already; licence: {info.licence}"
        else:
            yield f"there: {info.name}: licence: {info.licence}"
    for why, names in left_out.items():
        yield f"left out: {', '.join(names)}: {why}"


def _sum_notes(plan: MixturePlan, request: MixtureRequest) -> Iterator[str]:
    whole = "these sources have" if request.sources else "the whole mixture has"
    whole += f" {plan.official:,} shapes by the official counts"
    if plan.whole != plan.official:
        whole += f"; {plan.whole:,} with those counted here, once all that is missing is there"
    yield whole
    if plan.listed_tests:
        lists = ", ".join(f"{count:,} of {name}" for name, count in plan.listed_tests.items())
        least = plan.official - sum(plan.listed_tests.values())
        yield f"the lists of test shapes name {lists}; at least {least:,} of the whole remain"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
