"""What ``pointdistill prepare-data mixture`` prints as it downloads and builds."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pointdistill.data.build import BuildReport, BuildSettings
    from pointdistill.data.mixture import FetchReport, MixtureRequest, SourceStatus

GIGA = 1e9
_MOST_FAILED = 5


def fetch_archives(request: MixtureRequest, options: Sequence[str]) -> None:
    """Say what is about to be downloaded, download it, and say how to get the rest.

    Args:
        request: the folder, and what to take from it.
        options: those that the command which follows repeats, as they are typed.
    """
    from pointdistill.cli.console import console_reporter
    from pointdistill.data.mixture import fetch_missing

    with console_reporter() as reporter:
        report = fetch_missing(request, reporter=reporter)
    for file in report.fetched:
        checked = "as its source promised" if file.checked else "its source promises no checksum"
        typer.echo(f"{file.path}: {file.bytes:,} bytes, SHA-256 {file.sha256} ({checked})")
    if report.scanned:
        came = f"{report.scanned.fetched:,} zips came, {report.scanned.bytes:,} bytes"
        typer.echo(f"{report.scanned.folder}: {came}; {report.scanned.there:,} are there")
    for line in _fetch_notes(report, request, options):
        typer.echo(line, err=True)
    for line in report.by_hand:
        typer.echo(f"by hand: {line}", err=True)
    typer.echo(f"next: {command(request, options)} --plan")


def _fetch_notes(
    report: FetchReport, request: MixtureRequest, options: Sequence[str]
) -> Iterator[str]:
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
        alone = replace(request, sources=(offer.name,))
        yield (
            f"large, and fetched only by its name: {offer.describe()}; {command(alone, options)} --fetch"
        )


def make_mixture(
    request: MixtureRequest,
    output: Path,
    settings: BuildSettings,
    *,
    retry: bool,
) -> BuildReport:
    """Build the corpus, and say what it lacks."""
    from pointdistill.cli.console import console_reporter
    from pointdistill.data.mixture import build_mixture, retry_mixture

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
        typer.echo(f"note: {note}", err=True)
    return report


def command(request: MixtureRequest, options: Sequence[str]) -> str:
    """The command that builds this mixture, as it is typed."""
    words = ["pointdistill", "prepare-data", "mixture", "--archives", str(request.archives)]
    if request.sources:
        words += ["--sources", ",".join(request.sources)]
    if request.take_tests:
        words += ["--take-tests", ",".join(request.take_tests)]
    if request.exclude_all_tests:
        words += ["--exclude-tests", "all"]
    return shlex.join([*words, *options])


def _build_notes(report: BuildReport, request: MixtureRequest) -> Iterator[str]:
    from pointdistill.data.corpus import open_corpus
    from pointdistill.data.mixture import official_shapes, scan_sources

    statuses = scan_sources(request)
    yield from split_notes(request, [status for status in statuses if status.taken])
    made = {source.name: source for source in open_corpus(report.path).sources}
    for status in statuses:
        info = status.info
        official = official_shapes(request, info)
        record = made.get(info.name)
        if record is not None and record.kept != official:
            kept = f"{shapes_of(record.kept)} kept and {record.refused:,} refused"
            yield f"{info.name}: {kept}; its whole archive gives {official:,}"
        if status.missing and not status.not_taken:
            yield f"{info.name}: missing, with {official:,} shapes"


def shapes_of(count: int) -> str:
    """A number of shapes in words: ``1 shape``, ``2,000 shapes``."""
    return f"{count:,} shape" if count == 1 else f"{count:,} shapes"


def split_notes(request: MixtureRequest, statuses: Sequence[SourceStatus]) -> Iterator[str]:
    """Which test splits and test shapes of these sources are in, and which are not."""
    from pointdistill.data.mixture import HELD_OUT, mixture_sources

    names = {status.info.name for status in statuses}
    tests = {info.name: info.official_test for info in mixture_sources() if info.official_test}
    sizes = {name: f"{name} (officially {shapes:,} shapes)" for name, shapes in tests.items()}
    out = [sizes[name] for name in sizes if name in names and name not in request.take_tests]
    taken = [sizes[name] for name in request.take_tests if name in names]
    if out:
        yield f"test splits left out: {', '.join(out)}; --take-tests takes one in"
    if taken:
        yield f"test splits taken in: {', '.join(taken)}"
    for name in request.take_tests:
        if name not in names:
            yield f"test split of {name} is not taken in: {name} is not among the sources"
    for row in HELD_OUT:
        held = [name for name in row.sources if name in names]
        if held:
            shapes = f"test shapes of {row.benchmark} (in {', '.join(held)})"
            out_or_in = (
                "left out"
                if request.exclude_all_tests
                else "in; --exclude-tests all leaves them out"
            )
            yield f"{shapes} are {out_or_in}"
