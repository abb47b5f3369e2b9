"""One corpus of several sources: each is built by itself, then their shards are moved together.

Every source is an unfinished or finished corpus in ``.building/parts/<source>``, so a mixture resumes, and a
source may be added to an unfinished one, as a single source resumes. When all are finished, the manifest of
the whole is written to ``.building/corpus.json``; from then on shards are only renamed, and that manifest last.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

from pointdistill.data.build.publish import BuildReport, content_of, report
from pointdistill.data.build.run import DEFAULT_POINTS, Progress, build_corpus
from pointdistill.data.build.state import BuildFolder, differences, remove_build, unfinished_build
from pointdistill.data.corpus.manifest import (
    MANIFEST_NAME,
    REFUSED_NAME,
    Manifest,
    SourceFacts,
    read_manifest,
    write_manifest,
)
from pointdistill.data.files import sha256_of, write_aside
from pointdistill.data.mixture.survey import MixtureRequest, open_taken
from pointdistill.data.sources.base import Source
from pointdistill.errors import CorpusError

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
    begin: Begin | None = None,
) -> BuildReport:
    """Make one corpus of the sources that a folder holds, or go on with one that was interrupted.

    A shape's points are those that a corpus of its source alone has.

    Args:
        request: the folder, and what to take from it.
        output: the corpus folder; new, empty, or with an unfinished build of the same settings.
        points, seed, workers: see `build_corpus`.
        begin: called as each source begins.

    Raises:
        ConfigError, DataError, CorpusError: as `open_taken` and `build_corpus`.
    """
    sources = open_taken(request)
    if (output / MANIFEST_NAME).is_file():
        return replace(_report(output, sources, points=points, seed=seed), was_complete=True)
    resumed = 0
    with unfinished_build(output, {"mixture": True, "seed": seed, "points": points}) as folder:
        joined = folder.path / MANIFEST_NAME
        if not joined.is_file():
            for source in sources:
                name = source.facts.name
                with begin(name) if begin else nullcontext() as progress:
                    made = build_corpus(
                        source,
                        _part(folder, name),
                        points=points,
                        seed=seed,
                        workers=workers,
                        progress=progress,
                    )
                resumed += made.kept + made.refused if made.was_complete else made.resumed
            _join(folder, [source.facts.name for source in sources])
        _move(folder, joined)
    return replace(_report(output, sources, points=points, seed=seed), resumed=resumed)


def _part(folder: BuildFolder, name: str) -> Path:
    return folder.path / "parts" / name


def _join(folder: BuildFolder, names: Sequence[str]) -> None:
    """Write the refused shapes and the manifest of the whole; every shard is still in its part."""
    parts = {name: read_manifest(_part(folder, name)) for name in names}
    refused = folder.corpus / REFUSED_NAME
    lists = [_part(folder, name) / REFUSED_NAME for name in names]
    lists = [path for path in lists if path.is_file()]
    refused.unlink(missing_ok=True)  # of a join that was interrupted, when the sources were others
    if lists:
        with write_aside(refused) as aside, aside.open("wb") as whole:
            for path in lists:
                with path.open("rb") as file:
                    shutil.copyfileobj(file, whole)
    first = parts[names[0]]
    manifest = Manifest(
        seed=first.seed,
        points=first.points,
        content=content_of(
            _part(folder, name) / shard.file for name in names for shard in parts[name].shards
        ),
        refused_sha256=sha256_of(refused) if lists else None,
        sources=tuple(source for name in names for source in parts[name].sources),
        shards=tuple(shard for name in names for shard in parts[name].shards),
    )
    write_manifest(folder.path / MANIFEST_NAME, manifest)


def _move(folder: BuildFolder, joined: Path) -> None:
    """Move every shard that has not been moved yet, and then the manifest: the folder is a corpus."""
    for shard in read_manifest(joined.parent).shards:
        lies = _part(folder, shard.source) / shard.file
        if lies.is_file():
            lies.replace(folder.corpus / shard.file)
    joined.replace(folder.corpus / MANIFEST_NAME)


def _report(output: Path, sources: Sequence[Source], *, points: int, seed: int) -> BuildReport:
    """Report on the finished corpus in ``output``, and remove what is left of its build.

    Raises:
        CorpusError: if it was made with other settings or of other sources.
    """
    made = read_manifest(output)
    names = SourceFacts.__dataclass_fields__
    there = {
        "seed": made.seed,
        "points": made.points,
        "sources": {s.name: {name: getattr(s, name) for name in names} for s in made.sources},
    }
    asked = {
        "seed": seed,
        "points": points,
        "sources": {source.facts.name: asdict(source.facts) for source in sources},
    }
    different = differences(json.loads(json.dumps(there)), asked)
    if different:
        msg = (
            f"{output}: holds a corpus made with other settings ({different}); choose another folder, or "
            f"remove this one"
        )
        raise CorpusError(msg)
    remove_build(output)
    return report(output)
