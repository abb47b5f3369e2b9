"""Joins finished corpora to one: their manifests are merged and their shards renamed, nothing is copied.

The corpus of each source is a part, ``.building/parts/<source>``; sources that the whole already has stay as they
are. The manifest of the new whole is staged beside the parts. From then on files are only renamed, with the list
of refused shapes and the manifest last: see `pointdistill.data.build.commit`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from pointdistill.data.build.commit import part_of
from pointdistill.data.build.publish import content_of
from pointdistill.data.build.state import BuildFolder
from pointdistill.data.corpus.manifest import (
    MANIFEST_NAME,
    REFUSED_NAME,
    Manifest,
    read_manifest,
    write_manifest,
)
from pointdistill.data.files import sha256_of, write_aside


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
    corpora = {name: folder.corpus if name in recorded else part_of(folder, name) for name in names}
    made = {name: read_manifest(path) for name, path in corpora.items()}
    shards = [s for name in names for s in made[name].shards if s.source == name]
    refused = _write_refused(folder.path / REFUSED_NAME, corpora)
    manifest = Manifest(
        seed=made[names[0]].seed,
        points=made[names[0]].points,
        content=content_of(corpora[shard.source] / shard.file for shard in shards),
        refused_sha256=refused,
        sources=tuple(s for name in names for s in made[name].sources if s.name == name),
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
        for line in file:
            if json.loads(line)["source"] == source:
                yield line
