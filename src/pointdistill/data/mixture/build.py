"""One corpus of several sources: each is built on its own, then they are joined; a finished one may grow.

Every source is built in a part of its own. So a mixture resumes like a single source, and a source can be added to
an unfinished or a finished mixture. The bytes are those of a mixture that had all its sources from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pointdistill.data.build.commit import finish_join, finish_retry, finish_staged, part_of
from pointdistill.data.build.limits import ShapeLimits
from pointdistill.data.build.publish import BuildReport, report
from pointdistill.data.build.retry import retry_corpus
from pointdistill.data.build.run import BuildSettings, build_source, room_needed
from pointdistill.data.build.state import (
    BuildFolder,
    remove_build,
    remove_idle_build,
    unfinished_build,
)
from pointdistill.data.corpus.manifest import BUILDING_NAME, MANIFEST_NAME, Manifest, read_manifest
from pointdistill.data.mixture.join import begun_parts, join
from pointdistill.data.mixture.recorded import check_begun, check_recorded
from pointdistill.data.mixture.source_status import MixtureRequest, open_taken
from pointdistill.data.sources.base import Source
from pointdistill.reporter import SILENT, Reporter


def build_mixture(
    request: MixtureRequest,
    output: Path,
    settings: BuildSettings | None = None,
    *,
    reporter: Reporter = SILENT,
) -> BuildReport:
    """Make one corpus of the sources that a folder holds, continue one, or add to a finished one.

    A shape's points are those that a corpus of its source alone has.

    Args:
        request: the folder, and what to take from it.
        output: the corpus folder; new, empty, or with a mixture of the same settings, finished or not.
        settings: how to build; None for the defaults.
        reporter: hears about every shape.

    Raises:
        ConfigError, DataError, CorpusError: as `open_taken` and `build_source`; also if the archive of a source
            that an existing mixture has is gone or has changed.
    """
    settings = settings or BuildSettings()
    sources = open_taken(request)
    finish_retry(output)
    check = partial(
        check_recorded,
        request=request,
        sources=sources,
        points=settings.points,
        seed=settings.seed,
    )
    made = _finished(output)
    if made is not None:
        report(output)  # opens every shard, so that a missing one is named before days of work
        check(made, output)
        if len(made.sources) == len(sources):
            recorded = {source.name for source in made.sources}
            remove_idle_build(
                output,
                # It is about to grow.
                unless=lambda: not recorded.issuperset(begun_parts(BuildFolder(output))),
            )
            return replace(report(output), was_complete=True)
    decisive = {"mixture": True, "seed": settings.seed, "points": settings.points}
    with (
        room_needed(output),
        unfinished_build(output, decisive, grows=made is not None) as folder,
    ):
        finish_staged(output)
        made = _finished(output)
        if made is not None:
            check(made, output)
        resumed = _add(folder, made, request, sources, settings, reporter)
        remove_build(output)
    return replace(report(output), resumed=resumed)


def retry_mixture(
    request: MixtureRequest,
    output: Path,
    *,
    workers: int | None = None,
    limits: ShapeLimits | None = None,
    reporter: Reporter = SILENT,
) -> BuildReport:
    """Read shapes of a finished mixture again whose failure was retryable; see `retry_corpus`."""
    sources = open_taken(request)
    return retry_corpus(sources, output, workers=workers, limits=limits, reporter=reporter)


def _finished(output: Path) -> Manifest | None:
    """The manifest of a finished corpus; None where there is none, or staged files have not been moved yet."""
    finished = (output / MANIFEST_NAME).is_file()
    staged = (output / BUILDING_NAME / MANIFEST_NAME).is_file()
    return read_manifest(output) if finished and not staged else None


def _add(
    folder: BuildFolder,
    made: Manifest | None,
    request: MixtureRequest,
    sources: Sequence[Source],
    settings: BuildSettings,
    reporter: Reporter,
) -> int:
    """Build the sources that the corpus lacks and join them to it; returns how many shapes were there before."""
    recorded = made.sources if made is not None else ()
    resumed = sum(source.kept + source.refused for source in recorded)
    there = {source.name for source in recorded}
    begun = [name for name in begun_parts(folder) if name not in there]
    check_begun(begun, folder.corpus, request, sources)
    new = [source for source in sources if source.facts.name not in there]
    for source in new:
        name = source.facts.name
        part = build_source(source, part_of(folder, name), settings, reporter=reporter)
        resumed += part.kept + part.refused if part.was_complete else part.resumed
    if new:
        join(folder, [source.facts.name for source in sources])
        finish_join(folder)
    return resumed
