"""Compares what a mixture already holds with what is asked for: it may grow, but nothing in it may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pointdistill.data.build.state import differences
from pointdistill.data.corpus.manifest import Manifest
from pointdistill.data.mixture.source_status import MixtureRequest, scan_sources
from pointdistill.data.sources.base import Source
from pointdistill.errors import CorpusError

_FILES_ALONE = {"archive_sha256": None, "labels": None}  # labels follow from what is in an archive


def check_recorded(
    made: Manifest,
    output: Path,
    *,
    request: MixtureRequest,
    sources: Sequence[Source],
    points: int,
    seed: int,
) -> None:
    """Raise unless every source of a finished corpus is asked for, unchanged.

    Args:
        made: what the corpus in ``output`` holds.
        request, sources: what is asked for, and opened.
        points, seed: those asked for.

    Raises:
        CorpusError: naming the first source that is gone, or has changed, or the settings that differ.
    """
    there = {"points": made.points, "seed": made.seed}
    different = differences(there, {"points": points, "seed": seed})
    if different:
        raise _other_settings(output, different)
    asked = {source.facts.name: source.facts.stated() for source in sources}
    for record in made.sources:
        if record.name not in asked:
            why, settings = _why_not(record.name, request)
            msg = f"{output}: holds {record.name}, {why}"
            raise CorpusError(msg, settings=settings)
        _check_same(output, record.name, record.stated(), asked[record.name])


def check_begun(
    begun: Sequence[str], output: Path, request: MixtureRequest, sources: Sequence[Source]
) -> None:
    """Raise where a part of an unfinished mixture would be dropped although the sources are not named.

    Raises:
        CorpusError: naming the first.
    """
    asked = {source.facts.name for source in sources}
    lost = next((name for name in begun if name not in asked), None)
    if lost is not None and not request.sources:
        why, settings = _why_not(lost, request)
        msg = f"{output}: has begun {lost}, {why}, or name the sources without it"
        raise CorpusError(msg, settings=tuple(dict.fromkeys((*settings, "sources"))))


def _why_not(name: str, request: MixtureRequest) -> tuple[str, tuple[str, ...]]:
    """Why a source of a mixture is not among those asked for now and what to do, and which settings do it."""
    elsewhere = "or choose another output folder"
    source = name.removesuffix("-stand-in")
    status = next((s for s in scan_sources(request) if s.info.name == source), None)
    if status is None:
        return "which is no source of the mixture; choose another output folder", ("output",)
    if status.missing:
        gone = ", ".join(status.missing)
        return f"and {gone} is no longer in {request.archives}; put it back, {elsewhere}", (
            "output",
        )
    if status.not_taken:
        why = f"which now stays out ({status.not_taken}); name it among the sources, {elsewhere}"
        return why, ("sources", "output")
    return f"and its archive is another one now; put the old one back, {elsewhere}", ("output",)


def _check_same(
    output: Path, name: str, there: Mapping[str, Any], asked: Mapping[str, Any]
) -> None:
    different = differences(there, asked, f"sources.{name}.")
    if not different:
        return
    if differences({**there, **_FILES_ALONE}, {**asked, **_FILES_ALONE}):
        raise _other_settings(output, different)
    msg = (
        f"{output}: the archive of {name} has changed since this corpus was made of it; put the old one "
        f"back, or choose another output folder"
    )
    raise CorpusError(msg, settings=("output",))


def _other_settings(output: Path, different: str) -> CorpusError:
    msg = (
        f"{output}: holds a corpus made with other settings ({different}); choose another output folder, or "
        f"remove this one"
    )
    return CorpusError(msg, settings=("output",))
