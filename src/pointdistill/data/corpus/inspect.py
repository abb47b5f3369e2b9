"""What a corpus holds, counted from its manifest and the small datasets of its shards.

Points are read for a sample of the shapes only, so a corpus of a million shapes takes seconds and a few megabytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.corpus.manifest import REFUSED_NAME, Manifest, SourceRecord, read_manifest
from pointdistill.data.corpus.reader import ShardColumns, damaged, open_columns
from pointdistill.data.corpus.refused import RefusedCause, count_causes
from pointdistill.data.corpus.shard import LEVELS

SAMPLED = 256
"""Shapes of a source whose width, depth and height are measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PointCounts:
    """How many points the shapes of a source have."""

    total: int
    least: int
    median: int
    """For an even number of shapes, the lower of the two in the middle."""

    most: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Extents:
    """How large the shapes of a source are, in its own unit."""

    least: float
    """Longest side of the bounding box of the smallest shape; of all shapes."""

    most: float
    """Longest side of the bounding box of the largest shape; of all shapes."""

    median: tuple[float, float, float]
    """Median width, depth and height (x, y, z); of the sampled shapes."""

    sampled: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSummary:
    """One source of a corpus."""

    record: SourceRecord
    labels: Mapping[str, int]
    """Shapes by the name of their label, in the source's order; labels without a shape have 0."""

    unlabelled: int
    points: PointCounts | None
    """None, like `extents`, if no shape was kept."""

    extents: Extents | None


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusSummary:
    """A whole corpus."""

    path: Path
    manifest: Manifest
    sources: tuple[SourceSummary, ...]
    """In the manifest's order."""

    causes: tuple[RefusedCause, ...]
    """Why shapes were refused, the most frequent cause of each source first."""


def inspect_corpus(
    path: Path | str, *, progress: Callable[[int, int], None] | None = None
) -> CorpusSummary:
    """Count what a corpus holds.

    Args:
        path: the corpus folder.
        progress: called with the number of shards read and their total.

    Raises:
        CorpusError: if the folder is not a finished corpus, or what is read of it is damaged.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    tallies = {
        source.name: _Tally(source, _count_shapes(manifest, source)) for source in manifest.sources
    }
    for number, shard in enumerate(manifest.shards, start=1):
        if shard.source not in tallies:
            msg = f"comes from {shard.source!r}, which corpus.json does not list"
            raise damaged(folder / shard.file, msg)
        with open_columns(folder, shard) as columns:
            for first, stop in columns.chunks():
                tallies[shard.source].add(columns, first, stop)
        if progress:
            progress(number, len(manifest.shards))
    refused = folder / REFUSED_NAME if manifest.refused_sha256 is not None else None
    return CorpusSummary(
        path=folder,
        manifest=manifest,
        sources=tuple(tally.summary() for tally in tallies.values()),
        causes=() if refused is None else count_causes(refused),
    )


def _count_shapes(manifest: Manifest, source: SourceRecord) -> int:
    return sum(shard.shapes for shard in manifest.shards if shard.source == source.name)


class _Tally:
    """Running counts of one source; its size grows only with the labels and distinct numbers of points."""

    def __init__(self, source: SourceRecord, shapes: int) -> None:
        self.seen = 0
        self._source = source
        # Evenly spread in the order of ids, so that every label is represented.
        spread = np.linspace(0, max(shapes - 1, 0), min(SAMPLED, shapes)).round()
        self._sampled = np.unique(spread.astype(np.int64))
        self._sides: list[NDArray[np.float64]] = []
        self._labels = np.zeros(len(source.labels) + 1, np.int64)
        self._points: Counter[int] = Counter()
        self._least, self._most = np.inf, 0.0

    def add(self, columns: ShardColumns, first: int, stop: int) -> None:
        """Count rows ``first`` to ``stop`` of a shard."""
        self._count_labels(columns, first, stop)
        offsets = columns.read("offsets", first, stop + 1)
        counts = np.diff(offsets)
        if (counts < 1).any() or offsets[0] < 0 or offsets[-1] > columns.record.points:
            raise damaged(columns.path, "its offsets do not fit its points")
        self._points.update(dict(zip(*_plain(np.unique(counts, return_counts=True)), strict=True)))
        scale = columns.read("scale", first, stop)
        if not (np.isfinite(scale) & (scale >= 0)).all():
            raise damaged(columns.path, "a scale is not a finite length")
        self._least = min(self._least, 2.0 * float(scale.min()))
        self._most = max(self._most, 2.0 * float(scale.max()))
        low, high = np.searchsorted(self._sampled, (self.seen, self.seen + stop - first))
        for place in self._sampled[low:high] - self.seen:
            points = columns.read("points", int(offsets[place]), int(offsets[place + 1]))
            sides = points.max(axis=0).astype(np.float64) - points.min(axis=0)
            self._sides.append(sides * float(scale[place]) / LEVELS)
        self.seen += stop - first

    def summary(self) -> SourceSummary:
        """The counts so far."""
        return SourceSummary(
            record=self._source,
            labels=dict(zip(self._source.labels, self._labels.tolist(), strict=False)),
            unlabelled=int(self._labels[-1]),
            points=_point_counts(self._points) if self.seen else None,
            extents=self._extents() if self.seen else None,
        )

    def _extents(self) -> Extents:
        x, y, z = np.median(self._sides, axis=0).tolist()
        return Extents(
            least=self._least, most=self._most, median=(x, y, z), sampled=len(self._sides)
        )

    def _count_labels(self, columns: ShardColumns, first: int, stop: int) -> None:
        label = columns.read("label", first, stop)
        if label.min() < -1 or label.max() >= len(self._source.labels):
            raise damaged(columns.path, f"a label is none of the {len(self._source.labels)} known")
        # -1, unknown, is counted in the last bin.
        known = np.where(label < 0, len(self._source.labels), label)
        self._labels += np.bincount(known, minlength=len(self._labels))


def _plain(arrays: tuple[NDArray[Any], NDArray[Any]]) -> tuple[list[int], list[int]]:
    return arrays[0].tolist(), arrays[1].tolist()


def _point_counts(shapes: Counter[int]) -> PointCounts:
    """Statistics from the number of shapes with each number of points."""
    sizes = sorted(shapes)
    below = np.cumsum([shapes[size] for size in sizes])
    middle = int(np.searchsorted(below, (below[-1] + 1) // 2))
    return PointCounts(
        total=sum(size * count for size, count in shapes.items()),
        least=sizes[0],
        median=sizes[middle],
        most=sizes[-1],
    )
