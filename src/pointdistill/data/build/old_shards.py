"""Splits a finished shard into the pieces of a build, with gaps where shapes are to be read again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pointdistill.data.build.spans import Span
from pointdistill.data.build.state import BuildFolder, Outcome, Refusal, shard_name
from pointdistill.data.corpus.manifest import Manifest
from pointdistill.data.corpus.refused import RefusedShape
from pointdistill.data.corpus.shard import RowBlock, read_block, sizes_of, write_shard
from pointdistill.data.files import sha256_of
from pointdistill.data.sources.base import Entry
from pointdistill.errors import CorpusError


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
