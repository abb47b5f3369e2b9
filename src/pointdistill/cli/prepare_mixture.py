"""``pointdistill prepare-data mixture``: prints the plan, what is downloaded, and what the corpus lacks."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pointdistill.cli.console import (
    console_reporter,
    echo,
    name_options,
    print_json,
    print_table,
)
from pointdistill.reporter import (
    format_duration,
    plural,
)

if TYPE_CHECKING:
    from pointdistill.data.corpus_building import BuildReport, BuildSettings
    from pointdistill.data.corpus_building.mixture_fetch import FetchReport
    from pointdistill.data.corpus_building.mixture_plan import MixturePlan, PlanRow
    from pointdistill.data.corpus_building.source_status import MixtureRequest, SourceStatus
    from pointdistill.data.sources import SourceInfo

GIGA = 1e9
_MOST_FAILED = 5

_COLUMNS = ("source", "archive", "shapes", "disk", "core time", "commercial")
_NUMBERS = ("shapes", "disk", "core time")


def fetch_archives(request: MixtureRequest, options: Sequence[str]) -> None:
    """Say what is about to be downloaded, download it, and say how to get the rest.

    Args:
        request: the folder, and what to take from it.
        options: options, as typed, that the next command has to repeat.
    """
    from pointdistill.data.corpus_building.mixture_fetch import fetch_missing

    with console_reporter() as reporter:
        report = fetch_missing(request, reporter=reporter)
    for file in report.fetched:
        checked = "as its source promised" if file.checked else "its source promises no checksum"
        echo(f"{file.path}: {file.bytes:,} bytes, SHA-256 {file.sha256} ({checked})")
    if report.scanned:
        fetched = f"{report.scanned.fetched:,} zips fetched, {report.scanned.bytes:,} bytes"
        echo(f"{report.scanned.folder}: {fetched}; {report.scanned.there:,} are there")
    for line in _fetch_notes(report, request, options):
        echo(line, err=True)
    for line in report.by_hand:
        echo(f"by hand: {line}", err=True)
    echo(f"next: {command(request, options)} --plan")


def _fetch_notes(
    report: FetchReport, request: MixtureRequest, options: Sequence[str]
) -> Iterator[str]:
    """What was not fetched, and why."""
    from pointdistill.data.sources import source_info

    scanned = report.scanned
    if not report.fetched and not scanned:
        yield "nothing was missing that can be fetched without a login"
    if scanned:
        official = source_info(scanned.folder.name).official or 0
        yield from (f"not fetched: {line}" for line in scanned.failed[:_MOST_FAILED])
        if len(scanned.failed) > _MOST_FAILED:
            yield f"not fetched: {len(scanned.failed) - _MOST_FAILED:,} more of {scanned.folder.name}"
        if scanned.there < official:
            yield f"{scanned.folder.name}: {scanned.there:,} of {official:,} are there"
    for offer in report.too_large:
        alone = replace(request, sources=(offer.name,))
        yield (
            f"large, and fetched only by its name: {offer.describe()}; {command(alone, options)} --fetch"
        )


def prepare_mixture(
    request: MixtureRequest,
    output: Path,
    settings: BuildSettings,
    *,
    retry: bool,
) -> BuildReport:
    """Build the corpus, and say what it lacks."""
    from pointdistill.data.corpus_building.mixture import build_mixture, retry_mixture

    with console_reporter() as reporter:
        report = build_mixture(request, output, settings, reporter=reporter)
        if retry:
            report = retry_mixture(
                request,
                output,
                workers=settings.workers,
                limits=settings.limits,
                reporter=reporter,
            )
    for note in _build_notes(report, request):
        echo(f"note: {note}", err=True)
    return report


def command(request: MixtureRequest, options: Sequence[str]) -> str:
    """The command that builds this mixture, as it is typed."""
    arguments = ["pointdistill", "prepare-data", "mixture", "--archives", str(request.archives)]
    if request.sources:
        arguments += ["--sources", ",".join(request.sources)]
    if request.take_tests:
        arguments += ["--take-tests", ",".join(request.take_tests)]
    if request.exclude_all_tests:
        arguments += ["--exclude-tests", "all"]
    if request.commercial_only:
        arguments.append("--commercial-only")
    return shlex.join([*arguments, *options])


def _build_notes(report: BuildReport, request: MixtureRequest) -> Iterator[str]:
    from pointdistill.data.corpus import open_corpus
    from pointdistill.data.corpus_building.source_status import (
        licence_obstacle,
        official_shapes,
        scan_sources,
    )

    statuses = scan_sources(request)
    for status in statuses if request.commercial_only else ():
        obstacle = licence_obstacle(status.info)
        if status.archives and obstacle:
            yield f"{status.info.name} is left out: {obstacle}"
    yield from split_notes(request, [status for status in statuses if status.taken])
    records = {source.name: source for source in open_corpus(report.path).sources}
    for status in statuses:
        info = status.info
        official = official_shapes(request, info)
        record = records.get(info.name)
        if record is not None and record.kept != official:
            counts = f"{plural(record.kept, 'shape')} kept and {record.refused:,} refused"
            yield f"{info.name}: {counts}; its whole archive gives {official:,}"
        if status.missing and not status.exclusion_reason:
            yield f"{info.name}: missing, with {official:,} shapes"


def split_notes(request: MixtureRequest, statuses: Sequence[SourceStatus]) -> Iterator[str]:
    """Which test splits and test shapes of these sources are in, and which are not."""
    from pointdistill.data.corpus_building.source_status import HELD_OUT, mixture_sources

    names = {status.info.name for status in statuses}
    tests = {info.name: info.official_test for info in mixture_sources() if info.official_test}
    sizes = {
        name: f"{name} (officially {plural(shapes, 'shape')})" for name, shapes in tests.items()
    }
    left_out = [sizes[name] for name in sizes if name in names and name not in request.take_tests]
    taken_in = [sizes[name] for name in request.take_tests if name in names]
    if left_out:
        yield f"test splits left out: {', '.join(left_out)}; --take-tests takes one in"
    if taken_in:
        yield f"test splits taken in: {', '.join(taken_in)}"
    for name in request.take_tests:
        if name not in names:
            yield f"test split of {name} is not taken in: {name} is not among the sources"
    for row in HELD_OUT:
        containing = [name for name in row.sources if name in names]
        if containing:
            shapes = f"test shapes of {row.benchmark} (in {', '.join(containing)})"
            out_or_in = (
                "left out"
                if request.exclude_all_tests
                else "in; --exclude-tests all leaves them out"
            )
            yield f"{shapes} are {out_or_in}"


def show_plan(
    request: MixtureRequest,
    output: Path,
    settings: BuildSettings,
    options: Sequence[str],
    *,
    as_json: bool = False,
) -> None:
    """Print what is there, what is missing, and what the build will cost; make nothing.

    Args:
        request, output, settings: those of the build.
        options: options, as typed, that the next command has to repeat.
        as_json: print a document in place of the table.
    """
    from pointdistill.data.corpus_building.mixture_plan import plan_mixture
    from pointdistill.engine.reports.tables import Table

    with console_reporter() as reporter:
        plan = plan_mixture(request, output, settings, reporter=reporter)
    lacking = any(row.status.missing for row in plan.rows if not row.status.exclusion_reason)
    first = not plan.shapes or (request.sources and lacking)
    if not first:
        request = _without_unusable(plan, request)
    following = command(request, options) + (" --fetch" if first else "")
    if as_json:
        notes = {"notes": list(_notes(plan, request)), "command": following}
        print_json("mixture-plan", _record(plan) | notes)
        return
    processes = f"{plan.workers} worker{'s' if plan.workers > 1 else ''}"
    title = f"{plural(plan.shapes, 'shape')} from {request.archives}, {plan.bytes / GIGA:,.2f} GB, "
    title += f"about {format_duration(plan.seconds)} with {processes}"
    rows = tuple(_cells(row) for row in plan.rows)
    table = Table(title, _COLUMNS, rows, tuple(_notes(plan, request)))
    print_table(table, right=_NUMBERS, whole=True)
    echo(f"next: {following}")


def _record(plan: MixturePlan) -> dict[str, Any]:
    """The plan for JSON: every source with what the table shows of it."""
    sources = [
        {
            "source": row.status.info.name,
            "state": _state(row),
            "shapes": row.shapes,
            "counted": row.listed,
            "bytes": row.bytes,
            "core_seconds": row.seconds,
            "commercial": row.status.info.commercial,
            "licence": row.status.info.licence,
            "missing": list(row.status.missing),
        }
        for row in plan.rows
    ]
    return {
        "sources": sources,
        "shapes": plan.shapes,
        "bytes": plan.bytes,
        "seconds": plan.seconds,
        "workers": plan.workers,
        "free_bytes": plan.free_bytes,
        "official": plan.official,
    }


def _without_unusable(plan: MixturePlan, request: MixtureRequest) -> MixtureRequest:
    """The request that can be built now: a damaged archive ends a build, unless the others are named."""
    if not any(row.problem for row in plan.rows if row.status.taken):
        return request
    return replace(request, sources=tuple(row.status.info.name for row in plan.rows if row.goes_in))


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
    if status.exclusion_reason:
        return "left out"
    return "there" if status.complete else "missing"


def _notes(plan: MixturePlan, request: MixtureRequest) -> Iterator[str]:
    yield from _source_notes(
        plan.rows, by_name=bool(request.sources), commercial_only=request.commercial_only
    )
    if not all(row.listed for row in plan.rows):
        yield "shapes with a * are the official count: the archive is not there, cannot be used or stays out"
    yield from _sum_notes(plan, request)
    unusable = [row.status.info.name for row in plan.rows if row.status.taken and row.problem]
    if unusable and plan.shapes:
        yield (
            f"the next command leaves out {', '.join(unusable)}; once its archive is whole, a build that "
            "takes it in adds it"
        )
    statuses = [row.status for row in plan.rows if not row.status.exclusion_reason]
    yield from split_notes(request, statuses)
    if plan.bytes > plan.free_bytes:
        yield f"the disk has {plan.free_bytes / GIGA:,.2f} GB free, which is not enough"
    if any(row.goes_in and row.status.info.commercial is False for row in plan.rows):
        yield "with a source marked NO, neither the corpus nor what is trained on it is for commercial use"


def _source_notes(
    rows: Sequence[PlanRow], *, by_name: bool, commercial_only: bool
) -> Iterator[str]:
    """What does not fit into the table: names, addresses, licences and causes.

    ``by_name``, ``commercial_only``: the user chose the sources by name or by licence, so where the others come
    from is of no interest.
    """
    left_out: dict[str, list[str]] = {}
    for row in rows:
        status, info = row.status, row.status.info
        missing = f"{', '.join(status.missing)}, from {info.origin} ({_how_to_get(info)})"
        if row.problem:
            yield f"unusable: {info.name}: {row.problem}"
        elif status.exclusion_reason:
            reason = name_options(status.exclusion_reason, status.settings)
            if status.missing and not by_name and not commercial_only:
                reason += f"; missing: {missing}; licence: {info.licence}"
            left_out.setdefault(reason, []).append(info.name)
        elif status.missing:
            yield f"missing: {info.name}: {missing}; licence: {info.licence}"
        elif row.done:
            yield f"done: {info.name}: the corpus has it already; licence: {info.licence}"
        else:
            yield f"there: {info.name}: licence: {info.licence}"
    for reason, names in left_out.items():
        yield f"left out: {', '.join(names)}: {reason}"


def _how_to_get(info: SourceInfo) -> str:
    """What it takes to get a source, in a few words."""
    from pointdistill.data.corpus_building.mixture_fetch import LARGE, fetchable

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
