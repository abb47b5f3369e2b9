"""What a corpus holds, and whether every byte of it is what was written.

Contents are counted from the manifest and the small datasets of the shards, and points are read for a sample of
the shapes only, so a corpus of a million shapes takes seconds and a few megabytes. Verification reads everything
and compares it with the checksums that were written with it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.corpus.manifest import (
    FILES_NAME,
    MANIFEST_NAME,
    REFUSED_NAME,
    Manifest,
    ShardRecord,
    SourceRecord,
    read_manifest,
)
from pointdistill.data.corpus.reader import ShardColumns, check_shard_size, damaged, open_columns
from pointdistill.data.corpus.refused import RefusedCause, count_causes
from pointdistill.data.corpus.shard import (
    LARGEST_COORDINATE,
    LEVELS,
    Quantised,
    RowBlock,
    read_block,
    row_digest,
)
from pointdistill.data.files.files import sha256_of
from pointdistill.errors import CorpusError

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


def verify_corpus(
    path: Path | str, *, progress: Callable[[int, int], None] | None = None
) -> tuple[str, ...]:
    """Check every shard and every shape; reads the whole corpus once or twice.

    Args:
        path: the corpus folder.
        progress: called with the number of shards checked and their total.

    Returns:
        One line for each problem, naming the shard and, if it can be determined, the shape; empty if there is
        none.

    Raises:
        CorpusError: if ``corpus.json`` itself cannot be read.
    """
    return tuple(find_damage(path, progress=progress))


def find_damage(
    path: Path | str, *, progress: Callable[[int, int], None] | None = None
) -> Iterator[str]:
    """The lines of `verify_corpus` one by one, each as soon as it is known; one shard is in memory at a time."""
    folder = Path(path)
    manifest = read_manifest(folder)
    sources = {source.name: source for source in manifest.sources}
    wrong_counts = list(_count_problems(manifest))
    yield from wrong_counts
    damaged = bool(wrong_counts)
    content = hashlib.sha256()
    for number, shard in enumerate(manifest.shards, start=1):
        for line in _shard_problems(folder / shard.file, shard, sources.get(shard.source), content):
            damaged = True
            yield line
        if progress:
            progress(number, len(manifest.shards))
    if not damaged and content.hexdigest() != manifest.content:
        yield f"{folder}: the rows give content {content.hexdigest()}, not {manifest.content}"
    if manifest.refused_sha256 is not None:
        yield from _refused_problems(folder / REFUSED_NAME, manifest.refused_sha256)
    listing = folder / FILES_NAME
    recorded = {source.archive_sha256 for source in manifest.sources}
    if listing.is_file() and sha256_of(listing) not in recorded:
        yield f"{FILES_NAME}: changed since it was written, so the corpus cannot grow"


def _count_problems(manifest: Manifest) -> Iterator[str]:
    """Sources for which the manifest counts more or fewer shapes than their shards hold."""
    for source in manifest.sources:
        shapes = sum(shard.shapes for shard in manifest.shards if shard.source == source.name)
        if shapes != source.kept:
            yield (
                f"{MANIFEST_NAME}: counts {source.kept:,} shapes of {source.name}, "
                f"its shards hold {shapes:,}"
            )


def _shard_problems(
    path: Path, record: ShardRecord, source: SourceRecord | None, content: hashlib._Hash
) -> Iterator[str]:
    """What is wrong with one shard; its rows' checksums are added to ``content``."""
    if source is None:
        yield f"{path.name}: comes from {record.source!r}, which corpus.json does not list"
        return
    try:
        check_shard_size(path, record)
    except CorpusError as error:
        yield str(error)
        return
    try:
        unchanged = sha256_of(path) == record.sha256
        block = read_block(path)
    except (CorpusError, OSError) as error:
        lost = f"none of its {record.shapes:,} shapes"
        yield f"{path.name}: damaged, {lost} can be read ({error})"
        return
    any_problem = False
    for problem in _row_problems(block, record, source):
        any_problem = True
        yield f"{path.name}: {problem}"
    content.update(block.sha256.tobytes())
    if not unchanged and not any_problem:
        yield f"{path.name}: changed since it was written, but no shape is affected"


def _row_problems(block: RowBlock, record: ShardRecord, source: SourceRecord) -> Iterator[str]:
    """One line for each damaged row of a shard."""
    layout_problem = _layout_problem(block, record)
    if layout_problem is not None:
        yield f"{layout_problem}, so no shape can be read"
        return
    ends_fit = block.offsets[0] == 0 and block.offsets[-1] == len(block.points)
    if not ends_fit or (np.diff(block.offsets) < 1).any():
        yield "offsets are damaged, so no shape can be told from the next"
        return
    for row in range(len(block)):
        start, stop = block.offsets[row], block.offsets[row + 1]
        shape = Quantised(block.points[start:stop], block.center[row], block.scale[row])
        name = bytes(block.id[row]).decode("utf-8", "replace")
        # A damaged or hostile id could clear a terminal or begin a line of its own.
        printable = "".join(letter if letter.isprintable() else "?" for letter in name)
        label = int(block.label[row])
        if not -1 <= label < len(source.labels):
            yield f"shape {row} ({printable}): label {label} of {len(source.labels)}"
            continue
        digest = row_digest(
            shape,
            source=source.name,
            shape_id=name,
            label=source.labels[label] if label >= 0 else "",
            part=None if block.part is None else block.part[start:stop],
        )
        if digest != block.sha256[row].tobytes():
            yield f"shape {row} ({printable}): does not match its checksum"
        else:
            problem = _values_problem(shape)
            if problem is not None:
                yield f"shape {row} ({printable}): {problem}"


def _layout_problem(block: RowBlock, record: ShardRecord) -> str | None:
    """The first dataset whose shape or type does not fit the manifest's counts; None if all fit."""
    shapes, points = record.shapes, record.points
    expected = {
        "points": ((points, 3), "i2"),
        "offsets": ((shapes + 1,), "i8"),
        "center": ((shapes, 3), "f4"),
        "scale": ((shapes,), "f4"),
        "label": ((shapes,), "i4"),
        "id": ((shapes,), None),
        "sha256": ((shapes, 32), "u1"),
        "part": ((points,), "u1"),
    }
    for name, (shape, kind) in expected.items():
        values = getattr(block, name)
        if values is None:
            continue
        if values.shape != shape or (kind is not None and values.dtype != np.dtype(kind)):
            return f"{name} is {values.dtype} {values.shape}, expected {kind or 'text'} {shape}"
    return None


def _values_problem(shape: Quantised) -> str | None:
    """Why a row that matches its checksum still gives no usable points; None if it does."""
    if not (np.isfinite(shape.center).all() and np.isfinite(shape.scale)):
        return "center or scale is not finite"
    if shape.scale < 0:
        return f"scale {shape.scale} is negative, which mirrors it"
    if float(np.abs(shape.center).max()) + float(shape.scale) > 2 * LARGEST_COORDINATE:
        return f"its points lie beyond {LARGEST_COORDINATE:.0e}"
    if int(shape.points.min()) < -LEVELS:
        return f"a point lies outside its cube (below -{LEVELS})"
    return None


def _refused_problems(path: Path, sha256: str) -> Iterator[str]:
    if not path.is_file():
        yield f"{path.name}: missing"
    elif sha256_of(path) != sha256:
        yield f"{path.name}: changed since it was written"
