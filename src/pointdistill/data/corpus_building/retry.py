"""Reads those shapes of a finished corpus again that failed in a retryable way, as if they had not failed.

Only the shards that these shapes belong to are rebuilt, beside the corpus: an old shard is split into the pieces
of an unfinished build, with gaps where shapes are missing, and the build continues from there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pointdistill.data.corpus.manifest import (
    BUILDING_NAME,
    MANIFEST_NAME,
    REFUSED_NAME,
    Manifest,
    ShardRecord,
    read_manifest,
)
from pointdistill.data.corpus.refused import RefusedShape, read_refused
from pointdistill.data.corpus.shard import RowBlock, read_block, sizes_of, write_shard
from pointdistill.data.corpus_building.build import list_entries, room_needed
from pointdistill.data.corpus_building.commit import (
    BuildReport,
    apply_staged,
    content_of,
    discard_staged,
    finish_staged,
    refused_shape,
    report,
    retry_folder,
    stage_manifest,
    stage_refused,
)
from pointdistill.data.corpus_building.division import Plan, Span, make_plan
from pointdistill.data.corpus_building.limits import ShapeLimits
from pointdistill.data.corpus_building.scheduler import Build
from pointdistill.data.corpus_building.state import (
    BASE_NAME,
    BuildFolder,
    Outcome,
    Refusal,
    differences,
    locked,
    retry_is_begun,
    shard_name,
    unfinished_build,
)
from pointdistill.data.corpus_building.tasks import BuildJob
from pointdistill.data.files.files import sha256_of, write_json
from pointdistill.data.files.processes import usable_cores
from pointdistill.data.sources.base import Entry, Source
from pointdistill.errors import CorpusError
from pointdistill.reporter import SILENT, Reporter


@dataclass(frozen=True, slots=True)
class _Rebuilt:
    """The rebuilt shards of one source."""

    plan: Plan
    shards: Mapping[int, ShardRecord | None]
    refused: tuple[Refusal, ...]
    """All shapes that these shards lack now."""

    ids: frozenset[str]
    """Ids of all shapes that belong to these shards."""


def retry_corpus(
    sources: Sequence[Source],
    output: Path,
    *,
    workers: int | None = None,
    limits: ShapeLimits | None = None,
    reporter: Reporter = SILENT,
) -> BuildReport:
    """Read those shapes of a corpus again that failed in a retryable way, and add the ones that can be used now.

    The corpus is then, to the byte, that of a build in which they had not failed. It stays as it was until all
    of them are read; if this is stopped at any time, the same call continues.

    Args:
        sources: what the corpus was made of; at least those with such shapes.
        output: a finished corpus.
        workers, limits, reporter: see `build_source`.

    Raises:
        CorpusError: if ``output`` is no finished corpus, is damaged, or was made of something else.
        DataError: as `build_source`.
    """
    if not (output / BUILDING_NAME).is_dir():
        read_manifest(output)  # raises if there is no corpus, before a folder is made
    with room_needed(output), locked(output):
        finish_staged(output)  # of an earlier retry, or of a source that was being added
        manifest, before = read_manifest(output), report(output)
        refused = list(read_refused(output / REFUSED_NAME)) if manifest.refused_sha256 else []
        failed = [shape for shape in refused if shape.retryable_failure is not None]
        if not failed:
            discard_staged(output)  # left by a retry that was stopped just before its own clean-up
            return before
        names = sorted({shape.source for shape in failed})
        to_retry = [_source_of(manifest, name, sources, output) for name in names]
        retry = _Retry(output, manifest, refused, workers, limits or ShapeLimits(), reporter)
        _start_folder(output)
        rebuilt = {source.facts.name: retry.rebuild(source) for source in to_retry}
        _stage(output, manifest, refused, rebuilt)
        apply_staged(output)
        discard_staged(output)
        after = report(output)
    return replace(after, retried=len(failed), recovered=after.kept - before.kept)


def _start_folder(output: Path) -> None:
    """Make the folder of the retry, without what a retry of an earlier form of this corpus left in it."""
    if not retry_is_begun(output):
        shutil.rmtree(retry_folder(output), ignore_errors=True)
        write_json(retry_folder(output) / BASE_NAME, sha256_of(output / MANIFEST_NAME))


def _source_of(manifest: Manifest, name: str, sources: Sequence[Source], output: Path) -> Source:
    """The source of that name, if the corpus was made of it as it is now."""
    record = next(source for source in manifest.sources if source.name == name)
    source = next((source for source in sources if source.facts.name == name), None)
    if source is None:
        msg = f"{output}: shapes of {name} are to be read again; give its archive too"
        raise CorpusError(msg)
    different = differences(record.stated(), source.facts.stated())
    if different:
        msg = (
            f"{output}: {name} was different when the corpus was made of it ({different}); give the same "
            f"archive and options, or choose another output folder"
        )
        raise CorpusError(msg, settings=("output",))
    return source


@dataclass(frozen=True, slots=True)
class _Retry:
    """One retry of one corpus."""

    output: Path
    manifest: Manifest
    refused: Sequence[RefusedShape]
    workers: int | None
    limits: ShapeLimits
    reporter: Reporter

    def rebuild(self, source: Source) -> _Rebuilt:
        """Rebuild the shards of one source in which such shapes are missing."""
        name = source.facts.name
        entries = list_entries(source)
        plan = make_plan(len(entries), self.manifest.points)
        refused = {shape.id: shape for shape in self.refused if shape.source == name}
        spans = _spans_to_redo(plan, entries, refused)
        division = {"shapes": len(entries), "shards": plan.shards}
        place = retry_folder(self.output) / name
        with unfinished_build(place, {"division": division}) as folder:
            for shard, span in spans.items():
                if folder.shard_outcome(shard) is None:
                    split_shard_into_pieces(
                        folder,
                        self.output,
                        self.manifest,
                        name,
                        shard=shard,
                        span=span,
                        entries=entries,
                        refused=refused,
                    )
            job = BuildJob(
                source, seed=self.manifest.seed, points=self.manifest.points, folder=folder
            )
            build = Build(
                job, plan, entries, f"reading shapes of {name} again", self.reporter, shards=spans
            )
            build.run(usable_cores() if self.workers is None else self.workers, self.limits)
            outcomes = [folder.shard_outcome(shard) for shard in spans]
            return _Rebuilt(
                plan=plan,
                shards={shard: folder.shard_record(shard) for shard in spans},
                refused=tuple(r for outcome in outcomes if outcome for r in outcome.refused),
                ids=frozenset(
                    entry.id for s in spans.values() for entry in entries[s.start : s.stop]
                ),
            )


def _spans_to_redo(
    plan: Plan, entries: Sequence[Entry], refused: Mapping[str, RefusedShape]
) -> dict[int, Span]:
    """The shards, by number, with shapes to be read again."""
    spans = {}
    for shard in range(plan.shards):
        span = plan.span_of(shard)
        shapes = (refused.get(entry.id) for entry in entries[span.start : span.stop])
        if any(shape is not None and shape.retryable_failure is not None for shape in shapes):
            spans[shard] = span
    return spans


def _stage(
    output: Path,
    manifest: Manifest,
    refused: Sequence[RefusedShape],
    rebuilt: Mapping[str, _Rebuilt],
) -> None:
    """Stage what the corpus will be; see `pointdistill.data.corpus_building.commit`."""
    sources, shards, still_refused = [], [], []
    for record in manifest.sources:
        own = [shard for shard in manifest.shards if shard.source == record.name]
        lacking = [shape for shape in refused if shape.source == record.name]
        if record.name in rebuilt:
            new = rebuilt[record.name]
            own = _shards(record.name, own, new)
            lacking = [shape for shape in lacking if shape.id not in new.ids]
            lacking += [refused_shape(record.name, refusal) for refusal in new.refused]
            lacking.sort(key=lambda shape: shape.id)
        kept = sum(shard.shapes for shard in own)
        sources.append(replace(record, kept=kept, refused=len(lacking)))
        shards += own
        still_refused += lacking
    staged = replace(
        manifest,
        content=content_of(_path_of(output, shard, rebuilt) for shard in shards),
        refused_sha256=sha256_of(stage_refused(output, still_refused)) if still_refused else None,
        sources=tuple(sources),
        shards=tuple(shards),
    )
    stage_manifest(output, staged)


def _shards(name: str, before: Sequence[ShardRecord], rebuilt: _Rebuilt) -> list[ShardRecord]:
    """A source's shards in order, the rebuilt ones in their new form."""
    by_name = {record.file: record for record in before}
    records = (
        rebuilt.shards[shard] if shard in rebuilt.shards else by_name.get(shard_name(name, shard))
        for shard in range(rebuilt.plan.shards)
    )
    return [record for record in records if record is not None]


def _path_of(output: Path, shard: ShardRecord, rebuilt: Mapping[str, _Rebuilt]) -> Path:
    """Where a shard of the staged corpus is now."""
    if shard.source in rebuilt and shard in rebuilt[shard.source].shards.values():
        return retry_folder(output) / shard.source / shard.file
    return output / shard.file


def split_shard_into_pieces(
    folder: BuildFolder,
    corpus: Path,
    manifest: Manifest,
    source: str,
    *,
    shard: int,
    span: Span,
    entries: Sequence[Entry],
    refused: Mapping[str, RefusedShape],
) -> None:
    """Write the pieces that a shard already has, except those that are written already.

    Args:
        folder: the build that will fill the gaps.
        corpus: the finished corpus.
        manifest: that of the corpus.
        source: name of the shard's source.
        shard: number of the shard within the source.
        span: the shapes that belong to it, kept or refused.
        entries: all entries of the source, in order.
        refused: refused shapes of the source, by id; those with a retryable failure are left to the build.

    Raises:
        CorpusError: if the shard is damaged, or holds other shapes than these.
    """
    finished = set(folder.finished_pieces())
    runs = list(_runs(span, entries, refused))
    if finished.issuperset(runs):
        return
    usable = [entry.id for entry in entries[span.start : span.stop] if entry.id not in refused]
    block = _check_and_read(corpus, manifest, shard_name(source, shard), usable)
    labels = next(record.labels for record in manifest.sources if record.name == source)
    row = 0
    for run in runs:
        ids = [entry.id for entry in entries[run.start : run.stop]]
        refusals = tuple(Refusal(name, refused[name].cause) for name in ids if name in refused)
        count = len(ids) - len(refusals)
        if count and run not in finished:
            assert block is not None, "shapes were kept, so the shard has a file"
            rows = _slice(block, row, row + count)
            path = folder.piece(run)
            write_shard(path, [rows], sizes_of(rows), source=source, label_names=labels)
        if run not in finished:
            folder.finish_piece(run, Outcome(kept=count, refused=refusals))
        row += count


def _runs(
    span: Span, entries: Sequence[Entry], refused: Mapping[str, RefusedShape]
) -> Iterator[Span]:
    """The longest spans without a shape that is to be read again."""
    start = span.start
    for index in range(span.start, span.stop):
        shape = refused.get(entries[index].id)
        if shape is not None and shape.retryable_failure is not None:
            if index > start:
                yield Span(start, index)
            start = index + 1
    if span.stop > start:
        yield Span(start, span.stop)


def _check_and_read(
    corpus: Path, manifest: Manifest, file: str, ids: Sequence[str]
) -> RowBlock | None:
    """The shard's rows, which must be whole and have these ids; None where it has no file."""
    record = next((record for record in manifest.shards if record.file == file), None)
    path = corpus / file
    stored_ids: list[str] = []
    block = None
    if record is not None:
        if sha256_of(path) != record.sha256:
            msg = f"{path}: damaged; `pointdistill verify {corpus}` says which shapes, prepare it again"
            raise CorpusError(msg)
        block = read_block(path)
        stored_ids = [bytes(name).decode() for name in block.id]
    if stored_ids != list(ids):
        msg = (
            f"{path}: its source lists other shapes now than when the corpus was made; choose another "
            f"output folder"
        )
        raise CorpusError(msg, settings=("output",))
    return block


def _slice(block: RowBlock, start: int, stop: int) -> RowBlock:
    """Rows ``start`` to ``stop`` of a block; no copy of their points."""
    first, last = int(block.offsets[start]), int(block.offsets[stop])
    return RowBlock(
        points=block.points[first:last],
        offsets=block.offsets[start : stop + 1] - first,
        center=block.center[start:stop],
        scale=block.scale[start:stop],
        id=block.id[start:stop],
        label=block.label[start:stop],
        sha256=block.sha256[start:stop],
        part=None if block.part is None else block.part[first:last],
    )
