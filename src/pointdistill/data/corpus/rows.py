"""Rows of a corpus: chosen by id, label or source, or a random few, and copied as they are stored.

Ids stay on disk. Of what is copied nothing is restored or rounded again, and damage is found. One shard is open at
a time, and of its points only one block is in memory, so the size of a corpus does not matter.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.corpus.manifest import ShardRecord, SourceRecord
from pointdistill.data.corpus.reader import Corpus, ShardColumns, damaged, open_columns
from pointdistill.data.corpus.shard import UNKNOWN_PART, Quantised, RowBlock, row_digest
from pointdistill.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeFilter:
    """Conditions on the shapes to choose; an empty field accepts any."""

    ids: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def accepts(self, source: SourceRecord) -> bool:
        """Whether a source can hold such shapes."""
        named = not self.sources or source.name in self.sources
        return named and (not self.labels or bool(set(self.labels) & set(source.labels)))


def choose_shapes(
    corpus: Corpus, query: ShapeFilter, *, count: int, seed: int
) -> NDArray[np.int64]:
    """Numbers of shapes that satisfy a query.

    Args:
        corpus: whose ids and labels are read a chunk at a time.
        query: a shape must have one of its ids, one of its labels and one of its sources, unless it names none.
        count: most shapes to return, drawn by ``seed``; ignored if ids are given.
        seed: same seed, same shapes.

    Returns:
        (k,) int64, ascending.

    Raises:
        ConfigError: if a source or label is not in the corpus.
        DataError: if an id is missing, or no shape satisfies the query.
    """
    _check_names(corpus, query)
    matches = _matching(corpus, query)
    if len(matches) == 0:
        msg = (
            f"{corpus.path}: no shape has that source and label; `pointdistill inspect` counts both"
        )
        raise DataError(msg)
    if query.ids or len(matches) <= count:
        return matches
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    return np.sort(rng.choice(matches, count, replace=False))


def _matching(corpus: Corpus, query: ShapeFilter) -> NDArray[np.int64]:
    """Numbers of all shapes that satisfy the query, ascending; checks that every id was found."""
    sources = {source.name: source for source in corpus.sources}
    missing = {name.encode() for name in query.ids}
    numbers: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    base = 0
    for shard in corpus.manifest.shards:
        if query.accepts(sources[shard.source]):
            numbers.append(base + _rows(corpus, shard, sources[shard.source], query, missing))
        base += shard.shapes
    if missing:
        first = min(missing).decode()
        msg = (
            f"{corpus.path}: no shape {first!r} with the given source and label "
            f"({len(missing):,} of {len(set(query.ids)):,} ids not found); "
            f"ids look like {corpus[0].id!r}"
        )
        raise DataError(msg)
    return np.concatenate(numbers)


def _rows(
    corpus: Corpus,
    shard: ShardRecord,
    source: SourceRecord,
    query: ShapeFilter,
    missing: set[bytes],
) -> NDArray[np.int64]:
    """Rows of a shard that satisfy the query; removes the ids it finds from ``missing``."""
    if not (query.ids or query.labels):
        return np.arange(shard.shapes)
    labels = [k for k, name in enumerate(source.labels) if name in query.labels]
    ids = np.array([name.encode() for name in query.ids], np.bytes_)
    rows: list[NDArray[np.int64]] = []
    with open_columns(corpus.path, shard) as columns:
        for first, stop in columns.chunks():
            fits = np.ones(stop - first, np.bool_)
            if query.labels:
                fits &= np.isin(columns.read("label", first, stop), labels)
            if query.ids:
                names = columns.read("id", first, stop).astype(np.bytes_)
                fits &= np.isin(names, ids)
                missing -= set(names[fits].tolist())
            rows.append(first + np.flatnonzero(fits))
    return np.concatenate(rows)


def _check_names(corpus: Corpus, query: ShapeFilter) -> None:
    """Raise unless the corpus has every source and label of the query."""
    sources = [source.name for source in corpus.sources]
    for kind, names, known in (
        ("source", query.sources, sources),
        ("label", query.labels, corpus.label_names),
    ):
        for name in names:
            if name not in known:
                msg = f"{corpus.path}: no {kind} {name!r}; {_suggestion(name, known)}"
                raise ConfigError(msg, settings=(kind,))


def _suggestion(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    if not known:
        return "it has none; leave that condition out"
    few = ", ".join(repr(other) for other in sorted(known)[:5])
    return f"it has {few}{' and more' if len(known) > 5 else ''}"


BLOCK_POINTS = 2**21
"""Most points of a block, 12 MiB as they are stored, unless a single shape has more."""


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """All that a shard holds of its shapes besides their points. Sizes: n shapes."""

    offsets: NDArray[np.int64]  # (n + 1,)
    center: NDArray[np.float32]  # (n, 3)
    scale: NDArray[np.float32]  # (n,)
    label: NDArray[np.int32]  # (n,)
    sha256: NDArray[np.uint8]  # (n, 32)
    id: NDArray[np.bytes_]  # (n,)


def read_ids(folder: Path, shard: ShardRecord) -> NDArray[np.bytes_]:
    """The ids of a shard, (n,) UTF-8.

    Raises:
        CorpusError: if they cannot be read, or are not ascending, so that two could be the same.
    """
    with open_columns(folder, shard) as columns:
        ids = columns.read("id", 0, shard.shapes).astype(np.bytes_)
    if (ids[1:] <= ids[:-1]).any():
        raise damaged(folder / shard.file, "its ids are not in order")
    return ids


def read_labels(folder: Path, shard: ShardRecord, source: SourceRecord) -> NDArray[np.int32]:
    """The labels of a shard, (n,) int32: indices into the source's labels, or -1.

    Raises:
        CorpusError: if they cannot be read, or one is out of range.
    """
    with open_columns(folder, shard) as columns:
        return _checked_labels(columns, source)


def read_rows(
    folder: Path,
    shard: ShardRecord,
    source: SourceRecord,
    rows: NDArray[np.integer],
    *,
    most_points: int = BLOCK_POINTS,
) -> Iterator[RowBlock]:
    """Chosen rows of a shard, a block at a time; every shape is compared with its checksum.

    Args:
        folder: the corpus.
        shard: one of its shards.
        source: the record of the shard's source.
        rows: (k,) row numbers, ascending.
        most_points: points of a block, unless a single shape has more.

    Raises:
        CorpusError: if the shard is damaged; names the shape where one can be named.
    """
    with open_columns(folder, shard) as columns:
        index = _read_index(columns, source)
        counts = np.diff(index.offsets)[rows]
        parts = "part" in columns.file
        for first, stop in _blocks(counts, most_points):
            chosen = rows[first:stop]
            block = RowBlock(
                points=_gather(columns, "points", index, chosen),
                offsets=np.concatenate([[0], np.cumsum(counts[first:stop])]).astype(np.int64),
                center=index.center[chosen],
                scale=index.scale[chosen],
                id=_narrow(index.id[chosen]),
                label=index.label[chosen],
                sha256=index.sha256[chosen],
                part=_gather(columns, "part", index, chosen) if parts else None,
            )
            _check_rows(columns, block, source)
            yield block


def with_names(block: RowBlock, old: SourceRecord, *, name: str, labels: Sequence[str]) -> RowBlock:
    """A block as rows of a source with another name or other labels; the old labels must be among the new.

    Args:
        block: rows of ``old``.
        old: the source that they come from.
        name: that of the new source. Checksums depend on it, but not on how labels are numbered.
        labels: those of the new source.
    """
    number = {label: k for k, label in enumerate(labels)}
    if tuple(labels) != tuple(old.labels):
        new = np.array([*(number.get(label, -1) for label in old.labels), -1], np.int32)
        block = replace(block, label=new[block.label])
    if name == old.name:
        return block
    digests = [
        digest_of(block, row, source=name, labels=labels, label=int(block.label[row]))
        for row in range(len(block))
    ]
    return replace(block, sha256=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32))


def digest_of(
    block: RowBlock, row: int, *, source: str, labels: Sequence[str], label: int
) -> bytes:
    """The checksum of a row of a block, computed from what it holds."""
    start, stop = block.offsets[row], block.offsets[row + 1]
    return row_digest(
        Quantised(block.points[start:stop], block.center[row], block.scale[row]),
        source=source,
        shape_id=bytes(block.id[row]).decode(),
        label=labels[label] if label >= 0 else "",
        part=None if block.part is None else block.part[start:stop],
    )


def arranged(blocks: Sequence[RowBlock], order: NDArray[np.integer]) -> RowBlock:
    """All rows of some blocks in another order.

    Args:
        blocks: K rows in all, at least one.
        order: (K,) for each row of the result, its number among the rows of the blocks end to end.
    """
    offsets = np.concatenate([[0], np.cumsum([len(block.points) for block in blocks])])
    starts = np.concatenate([b.offsets[:-1] + o for b, o in zip(blocks, offsets, strict=False)])
    stops = np.concatenate([b.offsets[1:] + o for b, o in zip(blocks, offsets, strict=False)])
    points = np.concatenate([block.points for block in blocks])
    part = None
    if any(block.part is not None for block in blocks):
        unknown = (np.full(len(block.points), UNKNOWN_PART, np.uint8) for block in blocks)
        part = np.concatenate(
            [u if b.part is None else b.part for b, u in zip(blocks, unknown, strict=True)]
        )
    runs = [slice(a, b) for a, b in zip(starts[order], stops[order], strict=True)]
    return RowBlock(
        points=np.concatenate([points[run] for run in runs]),
        offsets=np.concatenate([[0], np.cumsum((stops - starts)[order])]).astype(np.int64),
        center=np.concatenate([block.center for block in blocks])[order],
        scale=np.concatenate([block.scale for block in blocks])[order],
        id=_narrow(np.concatenate([block.id for block in blocks])[order]),
        label=np.concatenate([block.label for block in blocks])[order],
        sha256=np.concatenate([block.sha256 for block in blocks])[order],
        part=None if part is None else np.concatenate([part[run] for run in runs]),
    )


def _narrow(ids: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
    """Ids in a type as wide as the longest, as a build stores them, whatever they were copied from."""
    return ids.astype(f"S{max(1, int(np.char.str_len(ids).max(initial=1)))}")


def _blocks(counts: NDArray[np.integer], most: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of shapes with at most ``most`` points each, or with one shape."""
    ends = np.concatenate([[0], np.cumsum(counts)])
    first = 0
    while first < len(counts):
        stop = int(np.searchsorted(ends, ends[first] + most, side="right")) - 1
        stop = max(stop, first + 1)
        yield first, stop
        first = stop


def _read_index(columns: ShardColumns, source: SourceRecord) -> ShardIndex:
    """The small arrays of a shard, checked.

    Raises:
        CorpusError: if their shapes, types or values are not those of a shard.
    """
    count = columns.record.shapes
    index = ShardIndex(
        offsets=columns.read("offsets", 0, count + 1),
        center=columns.read("center", 0, count),
        scale=columns.read("scale", 0, count),
        label=_checked_labels(columns, source),
        sha256=columns.read("sha256", 0, count),
        id=columns.read("id", 0, count).astype(np.bytes_),
    )
    expected = {"offsets": ("<i8", ()), "center": ("<f4", (3,)), "scale": ("<f4", ())}
    for name, (kind, shape) in (expected | {"sha256": ("u1", (32,))}).items():
        array = getattr(index, name)
        if array.dtype != np.dtype(kind) or array.shape[1:] != shape:
            raise damaged(columns.path, f"{name} is {array.dtype} {array.shape}")
    offsets = index.offsets
    if offsets[0] != 0 or offsets[-1] != columns.record.points or (np.diff(offsets) < 1).any():
        raise damaged(columns.path, "its offsets do not fit its points")
    return index


def _checked_labels(columns: ShardColumns, source: SourceRecord) -> NDArray[np.int32]:
    label = columns.read("label", 0, columns.record.shapes)
    if label.dtype != np.dtype("<i4") or label.ndim != 1:
        raise damaged(columns.path, f"label is {label.dtype} {label.shape}")
    if label.min() < -1 or label.max() >= len(source.labels):
        raise damaged(columns.path, f"a label is none of the {len(source.labels)} known")
    return label


def _gather(
    columns: ShardColumns, name: str, index: ShardIndex, rows: NDArray[np.integer]
) -> NDArray[Any]:
    """The points of chosen rows, or their parts, end to end; neighbours are read together."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    starts, stops = np.concatenate([[0], breaks]), np.concatenate([breaks, [len(rows)]])
    runs = [
        columns.read(name, int(index.offsets[rows[a]]), int(index.offsets[rows[b - 1] + 1]))
        for a, b in zip(starts, stops, strict=True)
    ]
    kind, shape = (np.dtype("<i2"), (3,)) if name == "points" else (np.dtype("u1"), ())
    if runs[0].dtype != kind or runs[0].shape[1:] != shape:
        raise damaged(columns.path, f"{name} is {runs[0].dtype} {runs[0].shape}")
    return runs[0] if len(runs) == 1 else np.concatenate(runs)


def _check_rows(columns: ShardColumns, block: RowBlock, source: SourceRecord) -> None:
    """Raise unless every shape matches its checksum: a copy must not hide damage under a new one."""
    for row in range(len(block)):
        try:
            found = digest_of(
                block, row, source=source.name, labels=source.labels, label=int(block.label[row])
            )
        except UnicodeDecodeError as error:
            raise damaged(columns.path, "an id is no UTF-8 text") from error
        if found != block.sha256[row].tobytes():
            name = bytes(block.id[row]).decode("utf-8", "replace")
            printable = "".join(letter if letter.isprintable() else "?" for letter in name)
            raise damaged(columns.path, f"shape {printable[:200]} does not match its checksum")
