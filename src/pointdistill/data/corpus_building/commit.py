"""The last step of a build: the manifest that makes a corpus of a folder of shards, and the report about it.

A retry or a mixture replaces a finished corpus by another one, by renames alone. The new corpus is first staged in
``.building/retry``, with its manifest last: from then on the change will happen. Applying it removes the old
manifest, renames the new files into place, and puts the new manifest there at the end. In between, for the time of
a few renames, the folder is an unfinished corpus, never a mix of two; if it is stopped there, the same renames
continue later. A mixture is staged in ``.building`` itself. It replaces no shard, so the old manifest stays valid
until the new one is in place.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pointdistill.data.corpus.manifest import (
    BUILDING_NAME,
    FILES_NAME,
    MANIFEST_NAME,
    REFUSED_NAME,
    Manifest,
    SourceFacts,
    SourceRecord,
    read_manifest,
    write_manifest,
)
from pointdistill.data.corpus.reader import open_corpus
from pointdistill.data.corpus.refused import RefusedCause, RefusedShape, count_causes, write_refused
from pointdistill.data.corpus_building.division import Plan
from pointdistill.data.corpus_building.state import (
    RETRY_NAME,
    BuildFolder,
    Refusal,
    differences,
    locked,
    remove_build,
    remove_idle_build,
    same_but_for_files,
)
from pointdistill.data.corpus_building.tasks import BuildJob
from pointdistill.data.files.files import sha256_of, write_aside
from pointdistill.data.files.hdf5 import open_hdf5
from pointdistill.data.sources.base import ListedFiles
from pointdistill.errors import CorpusError, DataError
from pointdistill.reporter import plural


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildReport:
    """The result of a build."""

    path: Path
    """The corpus folder."""

    kept: int
    refused: int
    causes: tuple[RefusedCause, ...]
    """Why shapes were refused; ``refused.jsonl`` lists them all."""

    was_complete: bool
    """Whether the corpus was there already, made with the same settings."""

    resumed: int
    """Shapes that an earlier, interrupted build had finished already."""

    retried: int = 0
    """Shapes that were read again, because their failure was retryable."""

    recovered: int = 0
    """How many of these are in the corpus now."""

    @property
    def retryable(self) -> dict[str, int]:
        """Refused shapes that can be read again, counted by their failure; see `retry_corpus`."""
        counts: Counter[str] = Counter()
        for cause in self.causes:
            if cause.retryable_failure is not None:
                counts[cause.retryable_failure] += cause.shapes
        return dict(sorted(counts.items()))


def publish(job: BuildJob, plan: Plan) -> None:
    """Write the list of refused shapes and then the manifest, which makes the folder a corpus."""
    folder, facts = job.folder, job.source.facts
    outcomes = [folder.shard_outcome(shard) for shard in range(plan.shards)]
    refused = [r for outcome in outcomes if outcome is not None for r in outcome.refused]
    records = [folder.shard_record(shard) for shard in range(plan.shards)]
    shards = tuple(record for record in records if record is not None)
    if not shards:
        raise _nothing_kept(folder, facts, refused)
    if refused:
        write_refused(folder.corpus / REFUSED_NAME, (refused_shape(facts.name, r) for r in refused))
    if isinstance(job.source, ListedFiles):
        write_listing(folder.corpus / FILES_NAME, job.source.listing)
    record = SourceRecord(
        **facts.stated(),
        kept=sum(shard.shapes for shard in shards),
        refused=len(refused),
    )
    manifest = Manifest(
        seed=job.seed,
        points=job.points,
        content=content_of(folder.corpus / shard.file for shard in shards),
        refused_sha256=sha256_of(folder.corpus / REFUSED_NAME) if refused else None,
        sources=(record,),
        shards=shards,
    )
    aside = folder.path / MANIFEST_NAME
    write_manifest(aside, manifest)
    aside.replace(folder.corpus / MANIFEST_NAME)


def _nothing_kept(folder: BuildFolder, facts: SourceFacts, refused: Sequence[Refusal]) -> DataError:
    """The error for a source without a usable shape; removes its build, which cannot be resumed."""
    remove_build(folder.corpus)
    first = f"{refused[0].id}: {refused[0].cause}"
    return DataError(
        f"none of the {plural(len(refused), 'shape')} of {facts.name} can be used; first {first}"
    )


def refused_shape(source: str, refusal: Refusal) -> RefusedShape:
    """A refusal as a line of the corpus's list."""
    return RefusedShape(
        source=source,
        id=refusal.id,
        cause=refusal.cause,
        retryable_failure=refusal.retryable_failure,
    )


def content_of(shards: Iterable[Path]) -> str:
    """SHA-256 over the checksums of all rows of the shards, which are in (source, id) order."""
    content = hashlib.sha256()
    for shard in shards:
        with open_hdf5(shard, shard, advice="prepare the corpus again", error=CorpusError) as file:
            content.update(file.dataset("sha256", "u").read().tobytes())
    return content.hexdigest()


def report_complete(output: Path, settings: Mapping[str, Any]) -> BuildReport:
    """The report of a corpus that exists already.

    Raises:
        CorpusError: if it was made with other settings, or a shard is missing or cut short.
    """
    manifest = read_manifest(output)
    recorded = {
        "seed": manifest.seed,
        "points": manifest.points,
        "source": manifest.sources[0].stated(),
    }
    different = differences(recorded, settings)
    if different or len(manifest.sources) != 1:
        msg = (
            f"{output}: holds a corpus made with other settings ({different or 'several sources'}); "
            f"choose another output folder, or remove this one"
        )
        if len(manifest.sources) == 1 and same_but_for_files(recorded, settings):
            msg = (
                f"{output}: the source's files have changed since this corpus was made; choose another output "
                "folder, or remove this one"
            )
        raise CorpusError(msg, settings=("output",))
    remove_idle_build(output)
    return replace(report(output), was_complete=True)


def report(output: Path) -> BuildReport:
    """The report of a finished corpus; opening it checks that all its shards are there."""
    manifest = open_corpus(output).manifest
    some_refused = manifest.refused_sha256 is not None
    return BuildReport(
        path=output,
        kept=manifest.shapes,
        refused=sum(source.refused for source in manifest.sources),
        causes=count_causes(output / REFUSED_NAME) if some_refused else (),
        was_complete=False,
        resumed=0,
    )


def retry_folder(corpus: Path) -> Path:
    """Where shapes of a finished corpus are read again, with a folder of new shards for each source."""
    return corpus / BUILDING_NAME / RETRY_NAME


def stage_refused(corpus: Path, refused: Iterable[RefusedShape]) -> Path:
    """Write the list of refused shapes that the corpus will have."""
    path = retry_folder(corpus) / REFUSED_NAME
    write_refused(path, refused)
    return path


def stage_listing(corpus: Path, listing: str) -> None:
    """Write the list of files that the corpus will have been made of."""
    write_listing(retry_folder(corpus) / FILES_NAME, listing)


def write_listing(path: Path, listing: str) -> None:
    """Write a list of files and their checksums, whole or not at all."""
    with write_aside(path) as aside:
        aside.write_bytes(listing.encode())


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
    """Put whatever is staged for a corpus into place; the caller holds its lock."""
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
        staged_shard = aside / shard.source / shard.file
        if staged_shard.is_file():
            staged_shard.replace(corpus / shard.file)
    if staged.refused_sha256 is None:
        (corpus / REFUSED_NAME).unlink(missing_ok=True)
    elif (aside / REFUSED_NAME).is_file():
        (aside / REFUSED_NAME).replace(corpus / REFUSED_NAME)
    if (aside / FILES_NAME).is_file():
        (aside / FILES_NAME).replace(corpus / FILES_NAME)
    _remove_old_shards(corpus, staged)
    (aside / MANIFEST_NAME).replace(corpus / MANIFEST_NAME)


def _remove_old_shards(corpus: Path, staged: Manifest) -> None:
    """Remove shards that the sources had and have no longer, because they hold fewer shapes now."""
    files = {shard.file for shard in staged.shards}
    names = "|".join(re.escape(source.name) for source in staged.sources)
    old = re.compile(rf"(?:{names})-\d{{5,}}\.h5")
    for path in corpus.glob("*.h5"):
        if old.fullmatch(path.name) and path.name not in files:
            path.unlink()


def part_folder(folder: BuildFolder, source: str) -> Path:
    """The corpus of one source of a mixture, until it is joined with the others."""
    return folder.path / "parts" / source


def finish_join(folder: BuildFolder) -> None:
    """Move the shards of a staged mixture into place, if one is staged."""
    staged = folder.path / MANIFEST_NAME
    if not staged.is_file():
        return
    for shard in read_manifest(folder.path).shards:
        staged_shard = part_folder(folder, shard.source) / shard.file
        if staged_shard.is_file():
            staged_shard.replace(folder.corpus / shard.file)
    refused = folder.path / REFUSED_NAME
    if refused.is_file():
        refused.replace(folder.corpus / REFUSED_NAME)
    staged.replace(folder.corpus / MANIFEST_NAME)
