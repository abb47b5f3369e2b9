"""What ``pointdistill prepare-data mixture`` prints."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pointdistill.data.build import BuildReport
    from pointdistill.data.build.limits import ShapeLimits
    from pointdistill.data.mixture import (
        FetchReport,
        MixturePlan,
        MixtureRequest,
        Offer,
        PlanRow,
    )

GIGA = 1e9
_MOST_FAILED = 5


def show_plan(
    request: MixtureRequest,
    output: Path,
    *,
    points: int,
    seed: int,
    workers: int | None,
    limits: ShapeLimits,
) -> None:
    """Print what is there, what is missing, and what the build will cost; make nothing."""
    from pointdistill.cli.tables import print_table
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
    title = f"{plan.shapes:,} shapes from {request.archives}, {plan.bytes / GIGA:,.2f} GB, "
    title += f"about {_duration(plan.seconds)} with {plan.workers} workers"
    columns = ("source", "archive", "shapes", "disk", "core time", "commercial use", "licence")
    rows = tuple(_cells(row) for row in plan.rows)
    print_table(Table(title, columns, rows, tuple(_plan_notes(plan, request))))
    typer.echo(f"next: {_command(request)}" + ("" if plan.shapes else " --fetch"))


def fetch_archives(request: MixtureRequest) -> None:
    """Say what is about to be downloaded, download it, and say how to get the rest."""
    from pointdistill.data.mixture import fetch_missing

    def announce(offers: Sequence[Offer]) -> None:
        free = shutil.disk_usage(request.archives).free
        what = "; ".join(_offered(offer) for offer in offers)
        where = f"into {request.archives}, whose disk has {free / GIGA:,.1f} GB free"
        typer.echo(f"about to download {where}: {what}", err=True)

    report = fetch_missing(request, begin=_download_progress, announce=announce)
    for file in report.fetched:
        checked = "as its source promised" if file.checked else "its source promises no checksum"
        typer.echo(f"{file.path}: {file.bytes:,} bytes, SHA-256 {file.sha256} ({checked})")
    if report.scanned:
        came = f"{report.scanned.fetched:,} zips came, {report.scanned.bytes:,} bytes"
        typer.echo(f"{report.scanned.folder}: {came}; {report.scanned.there:,} are there")
    for line in _fetch_notes(report, request):
        typer.echo(line, err=True)
    for line in report.by_hand:
        typer.echo(f"by hand: {line}", err=True)
    typer.echo(f"next: {_command(request)} --plan")


def _offered(offer: Offer) -> str:
    files = f"{offer.files:,} file{'s' if offer.files > 1 else ''}"
    size = "of unknown size" if offer.bytes is None else f"about {offer.bytes / GIGA:,.1f} GB"
    return f"{offer.name}, {files}, {size}"


def _fetch_notes(report: FetchReport, request: MixtureRequest) -> Iterator[str]:
    """What did not come, and why."""
    from pointdistill.data.sources import source_info

    scanned = report.scanned
    if not report.fetched and not scanned:
        yield "nothing was missing that is fetched without a login"
    if scanned:
        official = source_info(scanned.folder.name).official or 0
        yield from (f"did not come: {line}" for line in scanned.failed[:_MOST_FAILED])
        if len(scanned.failed) > _MOST_FAILED:
            yield f"did not come: {len(scanned.failed) - _MOST_FAILED:,} more of {scanned.folder.name}"
        if scanned.there < official:
            yield f"{scanned.folder.name}: {scanned.there:,} of {official:,} are there"
    for offer in report.too_large:
        words = f"--archives {shlex.quote(str(request.archives))} --sources {offer.name} --fetch"
        command = f"pointdistill prepare-data mixture {words}"
        yield f"large, and fetched only by its name: {_offered(offer)}; {command}"


def make_mixture(
    request: MixtureRequest,
    output: Path,
    *,
    points: int,
    seed: int,
    workers: int | None,
    limits: ShapeLimits,
    cluster: str | None,
    retry: bool,
) -> BuildReport:
    """Build the corpus, and say what it lacks."""
    from pointdistill.cli.progress import shape_progress
    from pointdistill.data.mixture import build_mixture, retry_mixture

    report = build_mixture(
        request,
        output,
        points=points,
        seed=seed,
        workers=workers,
        limits=limits,
        cluster=cluster,
        begin=lambda name: shape_progress(f"preparing {name}"),
    )
    if retry:
        with shape_progress("reading again") as progress:
            report = retry_mixture(
                request, output, workers=workers, limits=limits, progress=progress
            )
    for note in _build_notes(report, request):
        typer.echo(f"note: {note}", err=True)
    return report


def _command(request: MixtureRequest) -> str:
    """What builds this mixture, as it is typed."""
    words = ["pointdistill", "prepare-data", "mixture", "--archives", str(request.archives)]
    if request.sources:
        words += ["--sources", ",".join(request.sources)]
    if request.take_tests:
        words += ["--take-tests", ",".join(request.take_tests)]
    if request.exclude_all_tests:
        words += ["--exclude-tests", "all"]
    return shlex.join(words)


def _cells(row: PlanRow) -> tuple[str, ...]:
    info = row.standing.info
    commercial = {True: "yes", False: "NO", None: "differs by shape"}[info.commercial]
    goes_in = row.standing.taken
    return (
        info.name,
        _archive(row),
        f"{row.shapes:,}" if row.listed else f"{row.shapes:,} officially",
        f"{row.bytes / GIGA:,.2f} GB",
        _duration(row.seconds) if goes_in and row.seconds is not None else "not measured",
        commercial,
        info.licence,
    )


def _archive(row: PlanRow) -> str:
    from pointdistill.data.mixture import how_to_get

    standing = row.standing
    if row.problem:
        return f"cannot be used: {row.problem}"
    if standing.taken:
        return "there"
    if standing.there:
        return f"there, left out: {standing.not_taken}"
    missing = f"missing: {', '.join(standing.missing)}"
    missing += f", from {standing.info.origin} ({how_to_get(standing.info)})"
    return f"{missing}; {standing.not_taken}" if standing.not_taken else missing


def _plan_notes(plan: MixturePlan, request: MixtureRequest) -> Iterator[str]:
    whole = f"the whole mixture has {plan.official:,} shapes by the official counts"
    if plan.whole != plan.official:
        whole += f"; {plan.whole:,} with those counted here, once all that is missing is there"
    yield whole
    yield from _test_notes(request)
    if plan.listed_tests:
        lists = ", ".join(f"{count:,} of {name}" for name, count in plan.listed_tests.items())
        least = plan.official - sum(plan.listed_tests.values())
        yield f"the lists of test shapes name {lists}; at least {least:,} of the whole remain"
    if plan.bytes > plan.free_bytes:
        yield f"the disk has {plan.free_bytes / GIGA:,.2f} GB free, which is not enough"
    if any(row.goes_in and row.standing.info.commercial is False for row in plan.rows):
        yield "with a source marked NO, neither the corpus nor what is trained on it is for commercial use"


def _build_notes(report: BuildReport, request: MixtureRequest) -> Iterator[str]:
    from pointdistill.data.corpus import open_corpus
    from pointdistill.data.mixture import official_shapes, survey

    yield from _test_notes(request)
    made = {source.name: source for source in open_corpus(report.path).sources}
    for standing in survey(request):
        info = standing.info
        official = official_shapes(request, info)
        record = made.get(info.name)
        if record is not None and record.kept != official:
            kept = f"{record.kept:,} shapes kept and {record.refused:,} refused"
            yield f"{info.name}: {kept}; its whole archive gives {official:,}"
        if standing.missing and not standing.not_taken:
            yield f"{info.name}: missing, with {official:,} shapes"


def _test_notes(request: MixtureRequest) -> Iterator[str]:
    from pointdistill.data.mixture import HELD_OUT, mixture_sources

    tests = {info.name: info.official_test for info in mixture_sources() if info.official_test}
    sizes = {name: f"{name} ({shapes:,} shapes)" for name, shapes in tests.items()}
    out = [size for name, size in sizes.items() if name not in request.take_tests]
    if out:
        yield f"test splits left out: {', '.join(out)}; --take-tests takes one in"
    if request.take_tests:
        yield f"test splits taken in: {', '.join(sizes[name] for name in request.take_tests)}"
    for row in HELD_OUT:
        shapes = f"test shapes of {row.benchmark} (in {', '.join(row.sources)})"
        if request.exclude_all_tests:
            yield f"{shapes} are left out"
        else:
            yield f"{shapes} are in; --exclude-tests all leaves them out"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


@contextmanager
def _download_progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, of no known length where the server states none; nothing in a file."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)
