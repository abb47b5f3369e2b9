"""``prepare-data`` as one call: from the name of a source to a corpus that the next command finds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pointdistill.data.corpus.manifest import SourceFacts
from pointdistill.data.corpus_building.build import BuildSettings, build_source
from pointdistill.data.corpus_building.commit import BuildReport
from pointdistill.data.corpus_building.grow import grow_corpus
from pointdistill.data.corpus_building.retry import retry_corpus
from pointdistill.data.files.workspace import remember_corpus
from pointdistill.data.sources import SourceRequest, open_source, source_info
from pointdistill.data.sources.base import ListedFiles
from pointdistill.reporter import SILENT, Reporter, plural

DATA_FOLDER = Path("data")
"""Folder in which corpora are made unless another is named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A corpus and the source that it was made of."""

    report: BuildReport
    facts: SourceFacts


def prepare_corpus(
    source: str,
    request: SourceRequest,
    *,
    output: Path | None = None,
    settings: BuildSettings | None = None,
    retry: bool = False,
    drop_removed: bool = False,
    reporter: Reporter = SILENT,
) -> Prepared:
    """Open a source, build its corpus or bring it up to date, and remember it as the last one made here.

    Args:
        source: a name from `pointdistill.data.sources.SOURCES`.
        request: the archive or folder, and the source's options.
        output: the corpus folder; None: ``data/`` and the source's name, or the folder's own.
        settings: how to build; None for the defaults.
        retry: once the corpus is complete, read shapes with a retryable failure again, see `retry_corpus`.
        drop_removed: shapes whose files are gone from a folder leave its finished corpus, see `grow_corpus`.
        reporter: hears about every shape, and at the end what was assumed or left out.

    Raises:
        ConfigError, DataError: as `open_source` and `build_source`.
    """
    settings = settings or BuildSettings()
    opened = open_source(source, request)
    for line in opened.remarks if isinstance(opened, ListedFiles) else ():
        reporter.say(line)
    facts = opened.facts
    corpus = output or DATA_FOLDER / _default_name(facts)
    report = grow_corpus(
        opened, corpus, settings, drop_removed=drop_removed, reporter=reporter
    ) or build_source(opened, corpus, settings, reporter=reporter)
    if retry and report.retryable:
        report = retry_corpus(
            [opened],
            report.path,
            workers=settings.workers,
            limits=settings.limits,
            reporter=reporter,
        )
    remember_corpus(report.path)
    _say_notes(source, request, facts, report, reporter)
    return Prepared(report=report, facts=facts)


def _default_name(facts: SourceFacts) -> str:
    """The source's name; for a user's folder, which is one of many, the folder's."""
    return facts.archive if facts.name == "folder" and facts.archive else facts.name


def _say_notes(
    source: str,
    request: SourceRequest,
    facts: SourceFacts,
    report: BuildReport,
    reporter: Reporter,
) -> None:
    """Say what was assumed or left out, one line each."""
    info = source_info(source)
    official = info.official
    if official is not None and request.include_test:
        official += info.official_test
    if official not in (None, report.kept) and not facts.stand_in:
        counts = f"{plural(report.kept, 'shape')} kept and {report.refused:,} refused"
        reporter.say(f"note: {counts}; the whole of {source} gives {official:,}")
    if facts.stand_in:
        reporter.say(
            f"note: {facts.archive} is a stand-in, so the corpus is recorded as {facts.name}"
        )
    if "include_test" in info.options and not request.include_test:
        reporter.say("note: the test split was left out, but can be included", "include_test")
    if "up" in info.options and request.up is None:
        reporter.say("note: files that state no up axis were taken as z up", "up")
