"""The last step of a build: the manifest, which makes a corpus of a folder of shards."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py

from pointdistill.data.build.plan import Plan
from pointdistill.data.build.state import (
    BuildFolder,
    Refusal,
    differences,
    remove_build,
    remove_idle_build,
    same_but_for_files,
)
from pointdistill.data.build.tasks import BuildJob
from pointdistill.data.corpus.manifest import (
    MANIFEST_NAME,
    REFUSED_NAME,
    Manifest,
    SourceFacts,
    SourceRecord,
    read_manifest,
    write_manifest,
)
from pointdistill.data.corpus.reader import open_corpus
from pointdistill.data.corpus.refused import (
    RefusedCause,
    RefusedShape,
    count_causes,
    write_refused,
)
from pointdistill.data.files import sha256_of
from pointdistill.errors import CorpusError, DataError


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
    """Shapes that an earlier, interrupted build had finished."""

    retried: int = 0
    """Shapes that were read again because their failure was retryable."""

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
    found = [folder.shard_record(shard) for shard in range(plan.shards)]
    shards = tuple(record for record in found if record is not None)
    if not shards:
        raise _nothing_kept(folder, facts, refused)
    if refused:
        write_refused(folder.corpus / REFUSED_NAME, (refused_shape(facts.name, r) for r in refused))
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
        f"none of the {len(refused):,} shapes of {facts.name} can be used; first {first}"
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
        with h5py.File(shard, "r") as file:
            content.update(file["sha256"][()].tobytes())
    return content.hexdigest()


def report_complete(output: Path, settings: Mapping[str, Any]) -> BuildReport:
    """The report of a corpus that is there already.

    Raises:
        CorpusError: if it was made with other settings, or a shard is missing or cut short.
    """
    manifest = read_manifest(output)
    there = {
        "seed": manifest.seed,
        "points": manifest.points,
        "source": manifest.sources[0].stated(),
    }
    different = differences(there, settings)
    if different or len(manifest.sources) != 1:
        msg = (
            f"{output}: holds a corpus made with other settings ({different or 'several sources'}); "
            f"choose another output folder, or remove this one"
        )
        if len(manifest.sources) == 1 and same_but_for_files(there, settings):
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
