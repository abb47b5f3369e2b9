"""``prepare-data`` as one call: name a source, get a corpus that the next command finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pointdistill.data.build.limits import ShapeLimits
from pointdistill.data.build.publish import BuildReport
from pointdistill.data.build.retry import retry_corpus
from pointdistill.data.build.run import DEFAULT_POINTS, Progress, build_corpus
from pointdistill.data.corpus.manifest import SourceFacts
from pointdistill.data.sources import SourceRequest, open_source, source_info
from pointdistill.data.workspace import remember_corpus

DATA_FOLDER = Path("data")
"""Folder in which corpora are made unless another is named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A corpus, and what its maker should know of it."""

    report: BuildReport
    facts: SourceFacts
    notes: tuple[str, ...]
    """What was assumed or left out, one line each."""


def prepare_corpus(
    source: str,
    request: SourceRequest,
    *,
    output: Path | None = None,
    points: int = DEFAULT_POINTS,
    seed: int = 0,
    workers: int | None = None,
    limits: ShapeLimits | None = None,
    cluster: str | None = None,
    retry: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Prepared:
    """Open a source, build its corpus, and note it as the last one made in the current folder.

    Args:
        source: a name from `pointdistill.data.sources.SOURCES`.
        request: the archive or folder, and the source's options.
        output: the corpus folder; None: ``data/`` and the source's name, or the folder's own.
        points, seed, workers, limits, cluster, progress: see `build_corpus`.
        retry: read shapes that met a backstop again once the corpus is there, see `retry_corpus`.

    Raises:
        ConfigError, DataError: as `open_source` and `build_corpus`.
    """
    opened = open_source(source, request)
    facts = opened.facts
    report = build_corpus(
        opened,
        output or DATA_FOLDER / _default_name(facts),
        points=points,
        seed=seed,
        workers=workers,
        limits=limits,
        cluster=cluster,
        progress=progress,
    )
    if retry and report.retryable:
        report = retry_corpus(
            [opened], report.path, workers=workers, limits=limits, progress=progress
        )
    remember_corpus(report.path)
    return Prepared(report=report, facts=facts, notes=_notes(source, request, facts, report))


def _default_name(facts: SourceFacts) -> str:
    """The source's name; for a user's folder, which is one of many, the folder's."""
    return facts.archive if facts.name == "folder" and facts.archive else facts.name


def _notes(
    source: str, request: SourceRequest, facts: SourceFacts, report: BuildReport
) -> tuple[str, ...]:
    notes = []
    info = source_info(source)
    official = info.official
    if official is not None and request.include_test:
        official += info.official_test
    if official not in (None, report.kept) and not facts.stand_in:
        notes.append(
            f"{report.kept:,} shapes kept and {report.refused:,} refused; the whole of {source} gives "
            f"{official:,}"
        )
    if facts.stand_in:
        notes.append(f"{facts.archive} is a stand-in, so the corpus is recorded as {facts.name}")
    options = info.options
    if "include_test" in options and not request.include_test:
        notes.append("test split left out; --include-test takes it in")
    if "up" in options and request.up is None:
        notes.append("files that state no up axis were taken as z up; --up says otherwise")
    return tuple(notes)
