"""The last step of a retry, or of a mixture: a corpus becomes another one, by renames alone.

What the corpus will be is written to ``.building/retry`` first, its manifest last; this decides. From then on
the old manifest is gone until the new one takes its place: in between, for the time of a few renames, the
folder is an unfinished corpus, never a torn one. Stopped there, the same renames go on. What a mixture will be
is decided in ``.building`` itself; it replaces no shard, so the old manifest holds until the new one comes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from pointdistill.data.build.lock import locked
from pointdistill.data.build.state import RETRY_NAME, BuildFolder
from pointdistill.data.corpus.manifest import (
    BUILDING_NAME,
    MANIFEST_NAME,
    REFUSED_NAME,
    Manifest,
    read_manifest,
    write_manifest,
)
from pointdistill.data.corpus.refused import RefusedShape, write_refused


def retry_folder(corpus: Path) -> Path:
    """Where shapes of a finished corpus are read again; in it a folder of new shards for each source."""
    return corpus / BUILDING_NAME / RETRY_NAME


def stage_refused(corpus: Path, refused: Iterable[RefusedShape]) -> Path:
    """Write the list that the corpus will have."""
    path = retry_folder(corpus) / REFUSED_NAME
    write_refused(path, refused)
    return path


def stage_manifest(corpus: Path, manifest: Manifest) -> None:
    """Write the manifest that the corpus will have; new shards and the list of refused shapes are there."""
    write_manifest(retry_folder(corpus) / MANIFEST_NAME, manifest)


def finish_retry(corpus: Path) -> None:
    """Finish a retry that was stopped in its last step; does nothing where none was.

    Raises:
        CorpusError: if another process is at it.
    """
    if not (retry_folder(corpus) / MANIFEST_NAME).is_file():
        return
    with locked(corpus):
        finish_staged(corpus)


def finish_staged(corpus: Path) -> None:
    """Finish all that is decided of a corpus, if anything is; the caller holds its lock."""
    if (retry_folder(corpus) / MANIFEST_NAME).is_file():
        apply_staged(corpus)
        discard_staged(corpus)
    finish_join(BuildFolder(corpus))


def discard_staged(corpus: Path) -> None:
    """Remove what a finished retry leaves; a source that is being added to the corpus keeps its folder."""
    shutil.rmtree(retry_folder(corpus), ignore_errors=True)


def apply_staged(corpus: Path) -> None:
    """Move all that was decided to its place, the manifest last; the caller holds the corpus's lock."""
    aside = retry_folder(corpus)
    decided = read_manifest(aside)
    (corpus / MANIFEST_NAME).unlink(missing_ok=True)
    for shard in decided.shards:
        lies = aside / shard.source / shard.file
        if lies.is_file():
            lies.replace(corpus / shard.file)
    if decided.refused_sha256 is None:
        (corpus / REFUSED_NAME).unlink(missing_ok=True)
    elif (aside / REFUSED_NAME).is_file():
        (aside / REFUSED_NAME).replace(corpus / REFUSED_NAME)
    (aside / MANIFEST_NAME).replace(corpus / MANIFEST_NAME)


def part_of(folder: BuildFolder, source: str) -> Path:
    """The corpus of one source of a mixture, until it is joined to the whole."""
    return folder.path / "parts" / source


def finish_join(folder: BuildFolder) -> None:
    """Move what a decided mixture is made of to its place; does nothing where none was decided."""
    decided = folder.path / MANIFEST_NAME
    if not decided.is_file():
        return
    for shard in read_manifest(folder.path).shards:
        lies = part_of(folder, shard.source) / shard.file
        if lies.is_file():
            lies.replace(folder.corpus / shard.file)
    refused = folder.path / REFUSED_NAME
    if refused.is_file():
        refused.replace(folder.corpus / REFUSED_NAME)
    decided.replace(folder.corpus / MANIFEST_NAME)
