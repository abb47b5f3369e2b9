"""The last step of a retry or of a mixture: a corpus is replaced by another one, by renames alone.

The new corpus is first staged in ``.building/retry``, with its manifest last: from then on the change will happen.
Applying it removes the old manifest, renames the new files into place, and puts the new manifest there at the end.
In between, for the time of a few renames, the folder is an unfinished corpus, never a mix of two; if it is stopped
there, the same renames continue later. A mixture is staged in ``.building`` itself. It replaces no shard, so the
old manifest stays valid until the new one arrives.
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
    """Where shapes of a finished corpus are read again, with a folder of new shards for each source."""
    return corpus / BUILDING_NAME / RETRY_NAME


def stage_refused(corpus: Path, refused: Iterable[RefusedShape]) -> Path:
    """Write the list of refused shapes that the corpus will have."""
    path = retry_folder(corpus) / REFUSED_NAME
    write_refused(path, refused)
    return path


def stage_manifest(corpus: Path, manifest: Manifest) -> None:
    """Write the manifest that the corpus will have, after its new shards and list of refused shapes."""
    write_manifest(retry_folder(corpus) / MANIFEST_NAME, manifest)


def finish_retry(corpus: Path) -> None:
    """Finish a retry that was stopped in its last step, if there is one.

    Raises:
        CorpusError: if another process is doing so.
    """
    if not (retry_folder(corpus) / MANIFEST_NAME).is_file():
        return
    with locked(corpus):
        finish_staged(corpus)


def finish_staged(corpus: Path) -> None:
    """Finish whatever is staged for a corpus; the caller holds its lock."""
    if (retry_folder(corpus) / MANIFEST_NAME).is_file():
        apply_staged(corpus)
        discard_staged(corpus)
    finish_join(BuildFolder(corpus))


def discard_staged(corpus: Path) -> None:
    """Remove the folder of a retry; a source that is being added to the corpus keeps its own."""
    shutil.rmtree(retry_folder(corpus), ignore_errors=True)


def apply_staged(corpus: Path) -> None:
    """Move everything that was staged into place, the manifest last; the caller holds the corpus's lock."""
    aside = retry_folder(corpus)
    staged = read_manifest(aside)
    (corpus / MANIFEST_NAME).unlink(missing_ok=True)
    for shard in staged.shards:
        made = aside / shard.source / shard.file
        if made.is_file():
            made.replace(corpus / shard.file)
    if staged.refused_sha256 is None:
        (corpus / REFUSED_NAME).unlink(missing_ok=True)
    elif (aside / REFUSED_NAME).is_file():
        (aside / REFUSED_NAME).replace(corpus / REFUSED_NAME)
    (aside / MANIFEST_NAME).replace(corpus / MANIFEST_NAME)


def part_of(folder: BuildFolder, source: str) -> Path:
    """The corpus of one source of a mixture, until it is joined with the others."""
    return folder.path / "parts" / source


def finish_join(folder: BuildFolder) -> None:
    """Move the shards of a staged mixture into place, if one is staged."""
    staged = folder.path / MANIFEST_NAME
    if not staged.is_file():
        return
    for shard in read_manifest(folder.path).shards:
        made = part_of(folder, shard.source) / shard.file
        if made.is_file():
            made.replace(folder.corpus / shard.file)
    refused = folder.path / REFUSED_NAME
    if refused.is_file():
        refused.replace(folder.corpus / REFUSED_NAME)
    staged.replace(folder.corpus / MANIFEST_NAME)
