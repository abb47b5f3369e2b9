"""One corpus of several sources: each is built on its own, then they are joined; a finished one may grow.

Every source is built in a part of its own, ``.building/parts/<source>``. So a mixture resumes like a single
source, and a source can be added to an unfinished or a finished mixture; nothing that is in it already may change.
The bytes are those of a mixture that had all its sources from the start.

To join the parts, their manifests are merged and the new manifest is staged beside them. From then on files are
only renamed, none is copied, with the list of refused shapes and the manifest last; see
`pointdistill.data.corpus_building.commit`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pointdistill.data.corpus.manifest import (
    BUILDING_NAME,
    MANIFEST_NAME,
    REFUSED_NAME,
    Manifest,
    read_manifest,
    write_manifest,
)
from pointdistill.data.corpus.refused import parse_refused
from pointdistill.data.corpus_building.build import BuildSettings, build_source, room_needed
from pointdistill.data.corpus_building.commit import (
    BuildReport,
    content_of,
    finish_join,
    finish_retry,
    finish_staged,
    part_folder,
    report,
)
from pointdistill.data.corpus_building.limits import ShapeLimits
from pointdistill.data.corpus_building.retry import retry_corpus
from pointdistill.data.corpus_building.source_status import MixtureRequest, open_taken, scan_sources
from pointdistill.data.corpus_building.state import (
    BuildFolder,
    differences,
    remove_build,
    remove_idle_build,
    unfinished_build,
)
from pointdistill.data.files.files import sha256_of, write_aside
from pointdistill.data.sources.base import Source
from pointdistill.errors import CorpusError
from pointdistill.reporter import SILENT, Reporter

_FILES_ALONE = {"archive_sha256": None, "labels": None}  # labels follow from what is in an archive


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
    manifest = _finished(output)
    if manifest is not None:
        report(output)  # opens every shard, so that a missing one is named before days of work
        check(manifest, output)
        if len(manifest.sources) == len(sources):
            recorded = {source.name for source in manifest.sources}
            remove_idle_build(
                output,
                # It is about to grow.
                unless=lambda: not recorded.issuperset(begun_parts(BuildFolder(output))),
            )
            return replace(report(output), was_complete=True)
    decisive = {"mixture": True, "seed": settings.seed, "points": settings.points}
    with (
        room_needed(output),
        unfinished_build(output, decisive, grows=manifest is not None) as folder,
    ):
        finish_staged(output)
        manifest = _finished(output)
        if manifest is not None:
            check(manifest, output)
        resumed = _add(folder, manifest, request, sources, settings, reporter)
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
    manifest: Manifest | None,
    request: MixtureRequest,
    sources: Sequence[Source],
    settings: BuildSettings,
    reporter: Reporter,
) -> int:
    """Build the sources that the corpus lacks and join them to it; returns how many shapes were there before."""
    recorded = manifest.sources if manifest is not None else ()
    resumed = sum(source.kept + source.refused for source in recorded)
    present = {source.name for source in recorded}
    begun = [name for name in begun_parts(folder) if name not in present]
    check_begun(begun, folder.corpus, request, sources)
    new = [source for source in sources if source.facts.name not in present]
    for source in new:
        name = source.facts.name
        part = build_source(source, part_folder(folder, name), settings, reporter=reporter)
        resumed += part.kept + part.refused if part.was_complete else part.resumed
    if new:
        join(folder, [source.facts.name for source in sources])
        finish_join(folder)
    return resumed


def begun_parts(folder: BuildFolder) -> tuple[str, ...]:
    """Names of the sources that have an unfinished or finished part."""
    parts = folder.path / "parts"
    if not parts.is_dir():
        return ()
    return tuple(sorted(part.name for part in parts.iterdir() if any(part.iterdir())))


def join(folder: BuildFolder, names: Sequence[str]) -> None:
    """Stage the whole: each source comes from its part, or from the corpus if that has it already.

    Args:
        folder: the mixture's build.
        names: sources, sorted.
    """
    whole = read_manifest(folder.corpus) if (folder.corpus / MANIFEST_NAME).is_file() else None
    recorded = {source.name for source in whole.sources} if whole else set()
    corpora = {
        name: folder.corpus if name in recorded else part_folder(folder, name) for name in names
    }
    manifests = {name: read_manifest(path) for name, path in corpora.items()}
    shards = [s for name in names for s in manifests[name].shards if s.source == name]
    refused = _write_refused(folder.path / REFUSED_NAME, corpora)
    manifest = Manifest(
        seed=manifests[names[0]].seed,
        points=manifests[names[0]].points,
        content=content_of(corpora[shard.source] / shard.file for shard in shards),
        refused_sha256=refused,
        sources=tuple(s for name in names for s in manifests[name].sources if s.name == name),
        shards=tuple(shards),
    )
    write_manifest(folder.path / MANIFEST_NAME, manifest)


def _write_refused(path: Path, corpora: dict[str, Path]) -> str | None:
    """Write the refused shapes of all sources in order; returns the list's checksum, or None for no shapes."""
    path.unlink(missing_ok=True)  # left by a join of other sources that was stopped
    lines = (line for name, corpus in corpora.items() for line in _refused_of(corpus, name))
    first = next(lines, None)
    if first is None:
        return None
    with write_aside(path) as aside, aside.open("wb") as file:
        file.write(first)
        file.writelines(lines)
    return sha256_of(path)


def _refused_of(corpus: Path, source: str) -> Iterator[bytes]:
    """The lines of one source in a corpus's list of refused shapes."""
    path = corpus / REFUSED_NAME
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if parse_refused(line, path, number).source == source:
                yield line


def check_recorded(
    manifest: Manifest,
    output: Path,
    *,
    request: MixtureRequest,
    sources: Sequence[Source],
    points: int,
    seed: int,
) -> None:
    """Raise unless every source of a finished corpus is requested again and unchanged.

    Args:
        manifest: what the corpus in ``output`` holds.
        request, sources: what is requested, and opened.
        points, seed: the settings of this call.

    Raises:
        CorpusError: naming the first source that is gone, or has changed, or the settings that differ.
    """
    recorded = {"points": manifest.points, "seed": manifest.seed}
    different = differences(recorded, {"points": points, "seed": seed})
    if different:
        raise _other_settings(output, different)
    requested = {source.facts.name: source.facts.stated() for source in sources}
    for record in manifest.sources:
        if record.name not in requested:
            cause, settings = _why_absent(record.name, request)
            msg = f"{output}: holds {record.name}, {cause}"
            raise CorpusError(msg, settings=settings)
        _check_same(output, record.name, record.stated(), requested[record.name])


def check_begun(
    begun: Sequence[str], output: Path, request: MixtureRequest, sources: Sequence[Source]
) -> None:
    """Raise if a part of an unfinished mixture would be dropped although no sources are named.

    Raises:
        CorpusError: naming the first.
    """
    requested = {source.facts.name for source in sources}
    dropped = next((name for name in begun if name not in requested), None)
    if dropped is not None and not request.sources:
        cause, settings = _why_absent(dropped, request)
        msg = f"{output}: has begun {dropped}, {cause}, or name the sources without it"
        raise CorpusError(msg, settings=tuple(dict.fromkeys((*settings, "sources"))))


def _why_absent(name: str, request: MixtureRequest) -> tuple[str, tuple[str, ...]]:
    """Why a source of the mixture is not among those requested now, what to do, and the settings that do it."""
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
    if status.exclusion_reason:
        cause = f"which now stays out ({status.exclusion_reason}); name it among the sources, {elsewhere}"
        return cause, ("sources", "output")
    return f"and its archive is another one now; put the old one back, {elsewhere}", ("output",)


def _check_same(
    output: Path, name: str, recorded: Mapping[str, Any], requested: Mapping[str, Any]
) -> None:
    different = differences(recorded, requested, f"sources.{name}.")
    if not different:
        return
    if differences({**recorded, **_FILES_ALONE}, {**requested, **_FILES_ALONE}):
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
