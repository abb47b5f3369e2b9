"""What ``pointdistill prepare-data mixture --plan`` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pointdistill.cli.console import console_reporter, name_options, print_table
from pointdistill.cli.mixture import GIGA, command, shapes_of, split_notes
from pointdistill.reporter import format_duration

if TYPE_CHECKING:
    from pointdistill.data.build import BuildSettings
    from pointdistill.data.mixture import MixturePlan, MixtureRequest, PlanRow
    from pointdistill.data.sources import SourceInfo

_COLUMNS = ("source", "archive", "shapes", "disk", "core time", "commercial")
_NUMBERS = ("shapes", "disk", "core time")


def show_plan(
    request: MixtureRequest, output: Path, settings: BuildSettings, options: Sequence[str]
) -> None:
    """Print what is there, what is missing, and what the build will cost; make nothing.

    Args:
        request, output, settings: those of the build.
        options: those that the command which follows repeats, as they are typed.
    """
    from pointdistill.data.mixture import plan_mixture
    from pointdistill.engine.reporting.tables import Table

    with console_reporter() as reporter:
        plan = plan_mixture(request, output, settings, reporter=reporter)
    processes = f"{plan.workers} worker{'s' if plan.workers > 1 else ''}"
    title = f"{shapes_of(plan.shapes)} from {request.archives}, {plan.bytes / GIGA:,.2f} GB, "
    title += f"about {format_duration(plan.seconds)} with {processes}"
    rows = tuple(_cells(row) for row in plan.rows)
    table = Table(title, _COLUMNS, rows, tuple(_notes(plan, request)))
    print_table(table, right=_NUMBERS, whole=True)
    lacking = any(row.status.missing for row in plan.rows if not row.status.not_taken)
    first = not plan.shapes or (request.sources and lacking)
    typer.echo(f"next: {command(request, options)}" + (" --fetch" if first else ""))


def _cells(row: PlanRow) -> tuple[str, ...]:
    info = row.status.info
    measured = row.goes_in and row.seconds is not None
    return (
        info.name,
        _state(row),
        f"{row.shapes:,}" if row.listed else f"{row.shapes:,}*",
        f"{row.bytes / GIGA:,.2f} GB",
        format_duration(row.seconds or 0) if measured and not row.done else "-",
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
    left_out: dict[str, list[str]] = {}
    for row in rows:
        status, info = row.status, row.status.info
        get = f"{', '.join(status.missing)}, from {info.origin} ({_how_to_get(info)})"
        if row.problem:
            yield f"unusable: {info.name}: {row.problem}"
        elif status.not_taken:
            why = name_options(status.not_taken, status.settings)
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


def _how_to_get(info: SourceInfo) -> str:
    """What it takes to get a source, in a few words."""
    from pointdistill.data.mixture import LARGE, fetchable

    if not fetchable(info):
        return info.access
    named = f" --sources {info.name}" if info.name in LARGE else ""
    return f"{info.access}: --fetch{named}"


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
