"""Which shapes of a corpus to look at: by id, label or source, a few of them by seed; ids stay on disk."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.corpus.columns import open_columns
from pointdistill.data.corpus.manifest import ShardRecord, SourceRecord
from pointdistill.data.corpus.reader import Corpus
from pointdistill.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeFilter:
    """What shapes must be to be chosen; an empty field asks for nothing."""

    ids: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def takes(self, source: SourceRecord) -> bool:
        """Whether a source may have such shapes."""
        named = not self.sources or source.name in self.sources
        return named and (not self.labels or bool(set(self.labels) & set(source.labels)))


def choose_shapes(
    corpus: Corpus, wanted: ShapeFilter, *, count: int, seed: int
) -> NDArray[np.int64]:
    """Numbers of shapes that are as wanted.

    Args:
        corpus: whose ids and labels are read a chunk at a time.
        wanted: one of the ids, one of the labels and one of the sources, where given.
        count: at most so many of them, drawn by ``seed``; all of them where ids are given.
        seed: same seed, same shapes.

    Returns:
        (k,) int64, ascending.

    Raises:
        ConfigError: if a source or label is not in the corpus.
        DataError: if an id is not there, or no shape is as wanted.
    """
    _check_names(corpus, wanted)
    found = _matching(corpus, wanted)
    if len(found) == 0:
        msg = f"{corpus.path}: no shape is of that source and label; `pointdistill inspect` counts both"
        raise DataError(msg)
    if wanted.ids or len(found) <= count:
        return found
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    return np.sort(rng.choice(found, count, replace=False))


def _matching(corpus: Corpus, wanted: ShapeFilter) -> NDArray[np.int64]:
    """Numbers of all shapes that are as wanted, ascending; checks that every id was found."""
    sources = {source.name: source for source in corpus.sources}
    missing = {name.encode() for name in wanted.ids}
    found: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    base = 0
    for shard in corpus.manifest.shards:
        if wanted.takes(sources[shard.source]):
            found.append(base + _rows(corpus, shard, sources[shard.source], wanted, missing))
        base += shard.shapes
    if missing:
        first = min(missing).decode()
        msg = (
            f"{corpus.path}: no shape {first!r} of the source and label asked for "
            f"({len(missing):,} of {len(set(wanted.ids)):,} ids not found); "
            f"ids look like {corpus[0].id!r}"
        )
        raise DataError(msg)
    return np.concatenate(found)


def _rows(
    corpus: Corpus,
    shard: ShardRecord,
    source: SourceRecord,
    wanted: ShapeFilter,
    missing: set[bytes],
) -> NDArray[np.int64]:
    """Rows of a shard that are as wanted; takes the ids it finds from ``missing``."""
    if not (wanted.ids or wanted.labels):
        return np.arange(shard.shapes)
    labels = [k for k, name in enumerate(source.labels) if name in wanted.labels]
    ids = np.array([name.encode() for name in wanted.ids], np.bytes_)
    found: list[NDArray[np.int64]] = []
    with open_columns(corpus.path, shard) as columns:
        for first, stop in columns.chunks():
            fits = np.ones(stop - first, np.bool_)
            if wanted.labels:
                fits &= np.isin(columns.read("label", first, stop), labels)
            if wanted.ids:
                names = columns.read("id", first, stop).astype(np.bytes_)
                fits &= np.isin(names, ids)
                missing -= set(names[fits].tolist())
            found.append(first + np.flatnonzero(fits))
    return np.concatenate(found)


def _check_names(corpus: Corpus, wanted: ShapeFilter) -> None:
    """Raise unless every source and label that is asked for is one of the corpus's."""
    sources = [source.name for source in corpus.sources]
    for kind, asked, known in (
        ("source", wanted.sources, sources),
        ("label", wanted.labels, corpus.label_names),
    ):
        for name in asked:
            if name not in known:
                msg = f"{corpus.path}: no {kind} {name!r}; {_instead(name, known)}"
                raise ConfigError(msg)


def _instead(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    if not known:
        return "it has none; leave the option out"
    few = ", ".join(repr(other) for other in sorted(known)[:5])
    return f"it has {few}{' and more' if len(known) > 5 else ''}"
