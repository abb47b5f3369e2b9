"""Shared by sources that are an archive: opening it once in each process, and its facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pointdistill.data.archive import Archive, open_archive, still_there
from pointdistill.data.benchmarks.records import STAND_IN_MARKER
from pointdistill.data.corpus.manifest import SourceFacts
from pointdistill.data.sources.base import SourceInfo, printable


class ArchiveSource:
    """A source that is one zip file, or the folder extracted from it, read in place."""

    def __init__(self, path: Path, facts: SourceFacts) -> None:
        self.facts = facts
        self._path = path
        self._open: tuple[Archive, ExitStack] | None = None

    @property
    def archive(self) -> Archive:
        """The archive, opened when it is first used in this process.

        Raises:
            DataError: if it is damaged.
            OSError: ESTALE, if it is gone.
        """
        if self._open is None:
            held = ExitStack()
            with still_there(self._path):
                archive = held.enter_context(open_archive(self._path, absent=str(self._path)))
            self._open = archive, held
        return self._open[0]

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file, whose position two processes would share."""
        return self.__dict__ | {"_open": None}


def archive_facts(
    archive: Archive,
    info: SourceInfo,
    *,
    names: Sequence[str],
    turned: str,
    labels: tuple[str, ...],
    settings: Mapping[str, Any],
) -> SourceFacts:
    """The facts of a source that is one archive.

    Args:
        archive: the open archive.
        info: the source's row.
        names: members that hold shapes; for a folder, the checksum covers only these.
        turned: how the axes become z up.
        labels: label names.
        settings: whatever decides which shapes there are.
    """
    return source_facts(
        info,
        archive=printable(archive.path.name),
        checksum=archive.checksum(names),
        stand_in=archive.find(STAND_IN_MARKER) is not None,
        turned=turned,
        labels=labels,
        settings=settings,
    )


def source_facts(
    info: SourceInfo,
    *,
    archive: str,
    checksum: str,
    turned: str,
    labels: tuple[str, ...],
    settings: Mapping[str, Any],
    stand_in: bool = False,
) -> SourceFacts:
    """The facts of a source, from its row and its archive; a stand-in's name says that it is one."""
    return SourceFacts(
        name=f"{info.name}-stand-in" if stand_in else info.name,
        licence="CC0-1.0 (made on the spot)" if stand_in else info.licence,
        origin="this program" if stand_in else info.origin,
        turned=turned,
        labels=labels,
        stand_in=stand_in,
        archive=archive,
        archive_sha256=checksum,
        settings=settings,
    )
