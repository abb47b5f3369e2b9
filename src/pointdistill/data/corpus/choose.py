"""Choosing shapes of a corpus by id, label or source, or a random few; ids stay on disk."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.corpus.manifest import ShardRecord, SourceRecord
from pointdistill.data.corpus.reader import Corpus, open_columns
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
