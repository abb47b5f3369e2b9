"""Writes a corpus of rows that are chosen from others, shard by shard, in this process or in several.

Rows are copied as they are stored, and each is compared with its checksum. A block of points is in memory,
whatever the size of the corpora. An interrupted call continues, as a build does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.corpus.manifest import (
    MANIFEST_NAME,
    REFUSED_NAME,
    Manifest,
    ShardRecord,
    SourceRecord,
    read_manifest,
    write_manifest,
)
from pointdistill.data.corpus.reader import open_columns
from pointdistill.data.corpus.refused import RefusedShape, write_refused
from pointdistill.data.corpus.rows import BLOCK_POINTS, arranged, read_rows, with_names
from pointdistill.data.corpus.shard import RowBlock, Sizes, write_shard
from pointdistill.data.corpus_building.build import room_needed
from pointdistill.data.corpus_building.commit import BuildReport, content_of, report
from pointdistill.data.corpus_building.division import make_plan
from pointdistill.data.corpus_building.state import (
    BuildFolder,
    Outcome,
    remove_build,
    remove_idle_build,
    shard_name,
    unfinished_build,
)
from pointdistill.data.files.files import sha256_of
from pointdistill.data.files.processes import ordered_map
from pointdistill.errors import CorpusError
from pointdistill.reporter import Reporter


@dataclass(frozen=True, slots=True)
class Part:
    """A source of a finished corpus, with its shards."""

    folder: Path
    record: SourceRecord
    shards: tuple[ShardRecord, ...]


@dataclass(frozen=True, slots=True)
class ChosenRows:
    """Rows of parts, in the order in which a new source has them. Sizes: n shapes."""

    part: NDArray[np.int32]  # (n,) which of the parts
    shard: NDArray[np.int32]  # (n,) which of its shards
    row: NDArray[np.int32]  # (n,)

    def __len__(self) -> int:
        """Number of shapes."""
        return len(self.row)

    def slice(self, start: int, stop: int) -> ChosenRows:
        """Shapes ``start`` to ``stop``."""
        return ChosenRows(self.part[start:stop], self.shard[start:stop], self.row[start:stop])


@dataclass(frozen=True, slots=True)
class NewSource:
    """A source of a corpus that is to be made."""

    record: SourceRecord
    parts: tuple[Part, ...]
    rows: ChosenRows
    refused: tuple[RefusedShape, ...] = ()


@dataclass(frozen=True, slots=True)
class _ShardTask:
    """Write one shard."""

    folder: BuildFolder
    number: int
    """Among all shards of the new corpus."""

    file: str
    record: SourceRecord
    parts: tuple[Part, ...]
    rows: ChosenRows


def write_corpus(
    head: Manifest,
    sources: Sequence[NewSource],
    output: Path,
    *,
    workers: int | None,
    reporter: Reporter,
) -> BuildReport:
    """Make a corpus of sources, or continue; seed and points are those of ``head``."""
    sources = sorted(sources, key=lambda source: source.record.name)
    records = [source.record for source in sources]
    total = sum(record.kept for record in records)
    if not total:
        msg = f"{output}: would hold no shape; choose others"
        raise CorpusError(msg)
    if (output / MANIFEST_NAME).is_file():
        made = read_manifest(output)
        if (made.seed, made.points, _plain(made.sources)) != (
            head.seed,
            head.points,
            _plain(records),
        ):
            msg = (
                f"{output}: holds another corpus; choose another output folder, or remove this one"
            )
            raise CorpusError(msg, settings=("output",))
        remove_idle_build(output)
        return replace(report(output), was_complete=True)
    decisive = {
        "derived": [record.stated() for record in records],
        "rows": [_checksum(source) for source in sources],
    }
    with room_needed(output), unfinished_build(output, decisive) as folder:
        tasks = _tasks(folder, sources, head.points)
        resumed = _run(folder, tasks, total, workers, reporter)
        lines = [shape for source in sources for shape in source.refused]
        if lines:
            write_refused(output / REFUSED_NAME, lines)
        shards = [folder.shard_record(task.number) for task in tasks]
        kept = tuple(shard for shard in shards if shard is not None)
        manifest = replace(
            head,
            content=content_of(output / shard.file for shard in kept),
            refused_sha256=sha256_of(output / REFUSED_NAME) if lines else None,
            sources=tuple(records),
            shards=kept,
        )
        write_manifest(folder.path / MANIFEST_NAME, manifest)
        (folder.path / MANIFEST_NAME).replace(output / MANIFEST_NAME)
        remove_build(output)
    return replace(report(output), resumed=resumed)


def _plain(records: Iterable[SourceRecord]) -> list[dict[str, Any]]:
    """Records as they are after JSON, in which lists and tuples are the same."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    return [plain(r.stated() | {"kept": r.kept, "refused": r.refused}) for r in records]


def _checksum(source: NewSource) -> str:
    """Which rows of which shards a source is made of, as one checksum."""
    whole = hashlib.sha256()
    for part in source.parts:
        whole.update("".join(f"{shard.sha256}\n" for shard in part.shards).encode())
    for column in (source.rows.part, source.rows.shard, source.rows.row):
        whole.update(column.astype("<i4").tobytes())
    return whole.hexdigest()


def _tasks(folder: BuildFolder, sources: Sequence[NewSource], points: int) -> list[_ShardTask]:
    """A task for each shard, divided as a build divides as many shapes."""
    tasks: list[_ShardTask] = []
    for source in sources:
        plan = make_plan(len(source.rows), points)
        for k in range(plan.shards if len(source.rows) else 0):
            span = plan.span_of(k)
            file = shard_name(source.record.name, k)
            rows = source.rows.slice(span.start, span.stop)
            tasks.append(_ShardTask(folder, len(tasks), file, source.record, source.parts, rows))
    return tasks


def _run(
    folder: BuildFolder,
    tasks: Sequence[_ShardTask],
    total: int,
    workers: int | None,
    reporter: Reporter,
) -> int:
    """Write the shards that are missing; returns how many shapes were there already."""
    missing = [task for task in tasks if folder.shard_outcome(task.number) is None]
    done = resumed = total - sum(len(task.rows) for task in missing)
    reporter.progress("copying shapes", done, total, unit="shapes")
    for task, _ in zip(missing, ordered_map(_write_one, missing, workers=workers), strict=True):
        done += len(task.rows)
        reporter.progress("copying shapes", done, total, unit="shapes")
    return resumed


def _write_one(task: _ShardTask) -> None:
    """Write one shard and move it into the corpus."""
    name, labels = task.record.name, task.record.labels
    sizes, ends = _measure(task)
    aside = task.folder.shard(task.number)
    write_shard(aside, _row_blocks(task, ends), sizes, source=name, label_names=labels)
    record = ShardRecord(
        file=task.file,
        source=name,
        shapes=sizes.shapes,
        points=sizes.points,
        bytes=aside.stat().st_size,
        sha256=sha256_of(aside),
    )
    aside.replace(task.folder.corpus / record.file)
    task.folder.finish_shard(task.number, Outcome(kept=record.shapes, refused=()), record)


def _groups(rows: ChosenRows) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """Part, shard, and the places of its rows in ``rows``, by ascending row, of each shard that is needed."""
    ranking = np.lexsort((rows.row, rows.shard, rows.part))
    keys = np.stack([rows.part[ranking], rows.shard[ranking]])
    breaks = np.flatnonzero((keys[:, 1:] != keys[:, :-1]).any(axis=0)) + 1
    for places in np.split(ranking, breaks):
        yield int(rows.part[places[0]]), int(rows.shard[places[0]]), places


def _measure(task: _ShardTask) -> tuple[Sizes, NDArray[np.int64]]:
    """The sizes of a shard, and (n + 1,) where the points of each of its shapes end, from 0."""
    counts = np.zeros(len(task.rows), np.int64)
    id_bytes, has_part = 1, False
    for p, s, places in _groups(task.rows):
        part = task.parts[p]
        with open_columns(part.folder, part.shards[s]) as columns:
            rows = task.rows.row[places]
            counts[places] = np.diff(columns.read("offsets", 0, part.shards[s].shapes + 1))[rows]
            ids = columns.read("id", 0, part.shards[s].shapes).astype(np.bytes_)[rows]
            id_bytes = max(id_bytes, int(np.char.str_len(ids).max()))
            has_part = has_part or "part" in columns.file
    ends = np.concatenate([[0], np.cumsum(counts)])
    return Sizes(len(counts), int(ends[-1]), id_bytes, has_part), ends


def _row_blocks(task: _ShardTask, ends: NDArray[np.int64]) -> Iterator[RowBlock]:
    """The rows of a shard in order, a block at a time."""
    first = 0
    while first < len(task.rows):
        stop = int(np.searchsorted(ends, ends[first] + BLOCK_POINTS, side="right")) - 1
        stop = max(stop, first + 1)
        rows = task.rows.slice(first, stop)
        blocks, places = [], []
        for p, s, here in _groups(rows):
            part = task.parts[p]
            for block in read_rows(part.folder, part.shards[s], part.record, rows.row[here]):
                blocks.append(
                    with_names(block, part.record, name=task.record.name, labels=task.record.labels)
                )
            places.append(here)
        yield arranged(blocks, np.argsort(np.concatenate(places)))
        first = stop
