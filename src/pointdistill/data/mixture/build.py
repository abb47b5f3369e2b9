"""One corpus of several sources: each is built by itself, then they are joined; a finished one may grow.

Every source is built in its own part, so a mixture resumes, and another source is added to an unfinished or a
finished one, as a single source resumes. The bytes are those of a mixture that had all its sources at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from pointdistill.data.build.commit import finish_join, finish_retry, finish_staged, part_of
from pointdistill.data.build.limits import ShapeLimits
from pointdistill.data.build.publish import BuildReport, report
from pointdistill.data.build.retry import retry_corpus
from pointdistill.data.build.run import DEFAULT_POINTS, Progress, build_corpus, room_needed
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

Tell = Callable[[Progress], None]
Begin = Callable[[str], AbstractContextManager[Tell | None]]
"""Told that a source begins; gives what is told how far that one is."""


def build_mixture(
    request: MixtureRequest,
    output: Path,
    *,
    points: int = DEFAULT_POINTS,
    seed: int = 0,
    workers: int | None = None,
    limits: ShapeLimits | None = None,
    cluster: str | None = None,
    begin: Begin | None = None,
) -> BuildReport:
    """Make one corpus of the sources that a folder holds, go on with one, or add to a finished one.

    A shape's points are those that a corpus of its source alone has.

    Args:
        request: the folder, and what to take from it.
        output: the corpus folder; new, empty, or with a mixture of the same settings, finished or not.
        points, seed, workers, limits, cluster: see `build_corpus`.
        begin: called as each source begins.

    Raises:
        ConfigError, DataError, CorpusError: as `open_taken` and `build_corpus`; also if a source of a mixture
            that is there is gone from the folder of archives, or has changed.
    """
    sources = open_taken(request)
    finish_retry(output)
    check = partial(check_recorded, request=request, sources=sources, points=points, seed=seed)
    made = _finished(output)
    if made is not None:
        report(output)  # opens it: a shard that is missing is named before days of work
        check(made, output)
        if len(made.sources) == len(sources):
            recorded = {source.name for source in made.sources}
            remove_idle_build(
                output,
                # It is about to grow.
                unless=lambda: not recorded.issuperset(begun_parts(BuildFolder(output))),
            )
            return replace(report(output), was_complete=True)
    build = partial(
        build_corpus, points=points, seed=seed, workers=workers, limits=limits, cluster=cluster
    )
    settings = {"mixture": True, "seed": seed, "points": points}
    with (
        room_needed(output),
        unfinished_build(output, settings, grows=made is not None) as folder,
    ):
        finish_staged(output)
        made = _finished(output)
        if made is not None:
            check(made, output)
        resumed = _add(folder, made, request, sources, build, begin)
        remove_build(output)
    return replace(report(output), resumed=resumed)


def retry_mixture(
    request: MixtureRequest,
    output: Path,
    *,
    workers: int | None = None,
    limits: ShapeLimits | None = None,
    progress: Tell | None = None,
) -> BuildReport:
    """Read the shapes that met a backstop again, of all sources of a finished mixture; see `retry_corpus`."""
    sources = open_taken(request)
    return retry_corpus(sources, output, workers=workers, limits=limits, progress=progress)


def _finished(output: Path) -> Manifest | None:
    """The manifest of a finished corpus; None where there is none, or files are still to be moved."""
    finished = (output / MANIFEST_NAME).is_file()
    decided = (output / BUILDING_NAME / MANIFEST_NAME).is_file()
    return read_manifest(output) if finished and not decided else None


def _add(
    folder: BuildFolder,
    made: Manifest | None,
    request: MixtureRequest,
    sources: Sequence[Source],
    build: Callable[..., BuildReport],
    begin: Begin | None,
) -> int:
    """Build the sources that the corpus has not, and join them to it; how many shapes were there before."""
    recorded = made.sources if made is not None else ()
    resumed = sum(source.kept + source.refused for source in recorded)
    there = {source.name for source in recorded}
    begun = [name for name in begun_parts(folder) if name not in there]
    check_begun(begun, folder.corpus, request, sources)
    new = [source for source in sources if source.facts.name not in there]
    for source in new:
        name = source.facts.name
        with begin(name) if begin else nullcontext() as progress:
            part = build(source, part_of(folder, name), progress=progress)
        resumed += part.kept + part.refused if part.was_complete else part.resumed
    if new:
        join(folder, [source.facts.name for source in sources])
        finish_join(folder)
    return resumed
