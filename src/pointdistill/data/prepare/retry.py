"""Reads shapes of a finished corpus again whose failure was retryable, as if they had not failed.

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
from pointdistill.data.files.files import sha256_of, write_json
from pointdistill.data.files.processes import usable_cores
from pointdistill.data.prepare.build import list_entries, room_needed
from pointdistill.data.prepare.commit import (
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
from pointdistill.data.prepare.division import Plan, Span, make_plan
from pointdistill.data.prepare.limits import ShapeLimits
from pointdistill.data.prepare.scheduler import Build
from pointdistill.data.prepare.state import (
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
from pointdistill.data.prepare.tasks import BuildJob
from pointdistill.data.sources.base import Entry, Source
from pointdistill.errors import CorpusError
from pointdistill.reporter import SILENT, Reporter

# Splits a finished shard into the pieces of a build, with gaps where shapes are to be read again.


def split_shard_into_pieces(
    folder: BuildFolder,
    corpus: Path,
    made: Manifest,
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
        made: its manifest.
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
    kept = [entry.id for entry in entries[span.start : span.stop] if entry.id not in refused]
    block = _read(corpus, made, shard_name(source, shard), kept)
    labels = next(record.labels for record in made.sources if record.name == source)
    row = 0
    for run in runs:
        ids = [entry.id for entry in entries[run.start : run.stop]]
        found = tuple(Refusal(name, refused[name].cause) for name in ids if name in refused)
        count = len(ids) - len(found)
        if count and run not in finished:
            assert block is not None, "a shard without shapes has no kept ones"
            rows = _rows(block, row, row + count)
            path = folder.piece(run)
            write_shard(path, [rows], sizes_of(rows), source=source, label_names=labels)
        if run not in finished:
            folder.finish_piece(run, Outcome(kept=count, refused=found))
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


def _read(corpus: Path, made: Manifest, file: str, ids: Sequence[str]) -> RowBlock | None:
    """The shard's rows, which must be whole and have these ids; None where it has no file."""
    record = next((record for record in made.shards if record.file == file), None)
    path = corpus / file
    found: list[str] = []
    block = None
    if record is not None:
        if sha256_of(path) != record.sha256:
            msg = f"{path}: damaged; `pointdistill verify {corpus}` says which shapes, prepare it again"
            raise CorpusError(msg)
        block = read_block(path)
        found = [bytes(name).decode() for name in block.id]
    if found != list(ids):
        msg = (
            f"{path}: its source lists other shapes now than when the corpus was made; choose another "
            f"output folder"
        )
        raise CorpusError(msg, settings=("output",))
    return block


def _rows(block: RowBlock, start: int, stop: int) -> RowBlock:
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


@dataclass(frozen=True, slots=True)
class _Redone:
    """The rebuilt shards of one source."""

    plan: Plan
    shards: Mapping[int, ShardRecord | None]
    refused: tuple[Refusal, ...]
    """All shapes that these shards lack now."""

    redone: frozenset[str]
    """Ids of all shapes that belong to these shards."""


def retry_corpus(
    sources: Sequence[Source],
    output: Path,
    *,
    workers: int | None = None,
    limits: ShapeLimits | None = None,
    reporter: Reporter = SILENT,
) -> BuildReport:
    """Read the shapes of a corpus whose failure was retryable again, and add those that can be used now.

    The corpus is then, to the byte, what a build gives in which they had not failed. It stays as it was until all
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
        read_manifest(output)  # raises before anything is made where there is no corpus
    with room_needed(output), locked(output):
        finish_staged(output)  # also where a source was about to be added
        made, before = read_manifest(output), report(output)
        refused = list(read_refused(output / REFUSED_NAME)) if made.refused_sha256 else []
        failed = [shape for shape in refused if shape.retryable_failure is not None]
        if not failed:
            discard_staged(output)  # left by a retry that was stopped just before its own clean-up
            return before
        names = sorted({shape.source for shape in failed})
        chosen = [_source_of(made, name, sources, output) for name in names]
        run = _Run(output, made, refused, workers, limits or ShapeLimits(), reporter)
        _begin(output)
        redone = {source.facts.name: run.redo(source) for source in chosen}
        _stage(output, made, refused, redone)
        apply_staged(output)
        discard_staged(output)
        after = report(output)
    return replace(after, retried=len(failed), recovered=after.kept - before.kept)


def _begin(output: Path) -> None:
    """Make the folder for the work, and remove what a retry of an earlier form of this corpus left in it."""
    if not retry_is_begun(output):
        shutil.rmtree(retry_folder(output), ignore_errors=True)
        write_json(retry_folder(output) / BASE_NAME, sha256_of(output / MANIFEST_NAME))


def _source_of(made: Manifest, name: str, sources: Sequence[Source], output: Path) -> Source:
    """The source of that name, if the corpus was made of it as it is now."""
    record = next(source for source in made.sources if source.name == name)
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
class _Run:
    """One retry of one corpus."""

    output: Path
    made: Manifest
    refused: Sequence[RefusedShape]
    workers: int | None
    limits: ShapeLimits
    reporter: Reporter

    def redo(self, source: Source) -> _Redone:
        """Rebuild the shards of one source in which such shapes are missing."""
        name = source.facts.name
        entries = list_entries(source)
        plan = make_plan(len(entries), self.made.points)
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
                        self.made,
                        name,
                        shard=shard,
                        span=span,
                        entries=entries,
                        refused=refused,
                    )
            job = BuildJob(source, seed=self.made.seed, points=self.made.points, folder=folder)
            build = Build(
                job, plan, entries, f"reading shapes of {name} again", self.reporter, shards=spans
            )
            build.run(usable_cores() if self.workers is None else self.workers, self.limits)
            outcomes = [folder.shard_outcome(shard) for shard in spans]
            return _Redone(
                plan=plan,
                shards={shard: folder.shard_record(shard) for shard in spans},
                refused=tuple(r for outcome in outcomes if outcome for r in outcome.refused),
                redone=frozenset(
                    entry.id for s in spans.values() for entry in entries[s.start : s.stop]
                ),
            )


def _spans_to_redo(
    plan: Plan, entries: Sequence[Entry], refused: Mapping[str, RefusedShape]
) -> dict[int, Span]:
    """The shards, by number, with shapes to be read again."""
    found = {}
    for shard in range(plan.shards):
        span = plan.span_of(shard)
        shapes = (refused.get(entry.id) for entry in entries[span.start : span.stop])
        if any(shape is not None and shape.retryable_failure is not None for shape in shapes):
            found[shard] = span
    return found


def _stage(
    output: Path, made: Manifest, refused: Sequence[RefusedShape], redone: Mapping[str, _Redone]
) -> None:
    """Stage what the corpus will be; see `pointdistill.data.prepare.commit`."""
    sources, shards, lines = [], [], []
    for record in made.sources:
        own = [shard for shard in made.shards if shard.source == record.name]
        lacking = [shape for shape in refused if shape.source == record.name]
        if record.name in redone:
            again = redone[record.name]
            own = _shards(record.name, own, again)
            lacking = [shape for shape in lacking if shape.id not in again.redone]
            lacking += [refused_shape(record.name, refusal) for refusal in again.refused]
            lacking.sort(key=lambda shape: shape.id)
        kept = sum(shard.shapes for shard in own)
        sources.append(replace(record, kept=kept, refused=len(lacking)))
        shards += own
        lines += lacking
    staged = replace(
        made,
        content=content_of(_location(output, shard, redone) for shard in shards),
        refused_sha256=sha256_of(stage_refused(output, lines)) if lines else None,
        sources=tuple(sources),
        shards=tuple(shards),
    )
    stage_manifest(output, staged)


def _shards(name: str, before: Sequence[ShardRecord], again: _Redone) -> list[ShardRecord]:
    """A source's shards in order, the rebuilt ones in their new form."""
    by_name = {record.file: record for record in before}
    found = (
        again.shards[shard] if shard in again.shards else by_name.get(shard_name(name, shard))
        for shard in range(again.plan.shards)
    )
    return [record for record in found if record is not None]


def _location(output: Path, shard: ShardRecord, redone: Mapping[str, _Redone]) -> Path:
    """Where a shard of the staged corpus is now."""
    if shard.source in redone and shard in redone[shard.source].shards.values():
        return retry_folder(output) / shard.source / shard.file
    return output / shard.file
