"""Where an evaluation's data lies, or where it would come from; stand-ins are made here, on first use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pointdistill.data.workspace import last_corpus, last_stand_in, remember_stand_in
from pointdistill.engine.evaluation.forecast import Count, Say
from pointdistill.engine.evaluation.kinds import BENCHMARKS
from pointdistill.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Place:
    """What lies where."""

    archive: Path
    corpus: Path | None = None
    """For LVIS."""


def find_place(
    name: str, *, data: Path | None, corpus: Path | None, within: bool, folder: Path
) -> Place:
    """The archive of a benchmark, and the corpus that it needs.

    Args:
        name: one of ``BENCHMARKS``.
        data: the archive, or with ``within`` the folder that holds it; ``data/`` of ``folder`` by default.
        corpus: for LVIS; the last one made in ``folder`` by default.
        within: whether ``data`` is a folder of archives.
        folder: where defaults are looked for.

    Raises:
        DataError: if something is absent: where it comes from, and where it goes.
    """
    kind = BENCHMARKS[name]
    if data is not None and not within:
        archive = data
    else:
        candidates = [(data or folder / "data") / archive for archive in kind.archives]
        archive = next((path for path in candidates if path.exists()), candidates[0])
    place = Place(archive, corpus or last_corpus(folder=folder) if kind.needs_corpus else None)
    if kind.needs_corpus and place.corpus is None:
        msg = (
            f"{name} names shapes of a corpus, and none was made in this folder; prepare one of Objaverse, "
            "name it with --corpus, or pass --stand-in to run on the stand-in instead"
        )
        raise DataError(msg)
    if not archive.exists():
        kind.refuse_absent(place.archive, place.corpus)
        msg = f"{archive}: no such archive"
        raise DataError(msg)
    return place


def stand_in_place(name: str, *, folder: Path, say: Say, count: Count) -> Place:
    """The stand-in of a benchmark, made if it is not there."""
    kind = BENCHMARKS[name]
    archive = last_stand_in(name, folder=folder)
    if archive is None:
        archive = folder / "data" / "stand-in" / kind.stand_in
        if not archive.exists():
            say(f"making the stand-in for {name}, once, of up to 0.9 GB: {archive}")
            kind.make_stand_in(archive, count)
        remember_stand_in(name, archive, folder=folder)
    if not kind.needs_corpus:
        return Place(archive)
    return Place(archive / kind.archives[0], archive / kind.stand_in_corpus)


def check_data_options(*, stand_in: bool, data: Path | None, corpus: Path | None) -> None:
    """Raise where a stand-in and data of the user's own were asked for at once.

    Raises:
        ConfigError: naming both.
    """
    given = data or corpus
    if stand_in and given is not None:
        option = "--data" if data is not None else "--corpus"
        msg = f"--stand-in has data of its own, and {option} {given} was given; give one"
        raise ConfigError(msg)
