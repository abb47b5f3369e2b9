"""Random access to the shapes of a corpus, which reads no more than is needed.

Opening reads ``corpus.json`` and looks at the shards' sizes; ids, labels and points stay on disk until they are
needed. A shard is opened at its first use and stays open, so a read costs the points' own bytes. `open_columns`
reads single datasets of a shard in chunks, for questions that need no points.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.corpus.manifest import Manifest, ShardRecord, SourceRecord, read_manifest
from pointdistill.data.corpus.shard import UNKNOWN_LABEL, Points, restore
from pointdistill.data.files.files import read_some
from pointdistill.data.files.hdf5 import NUMBERS, InertFile, open_hdf5
from pointdistill.data.files.schema import refusing_damage
from pointdistill.errors import CorpusError
from pointdistill.reporter import plural

MOST_OPEN_SHARDS = 1024
"""Most shards open at a time by default; a read from one that is not costs half a millisecond more."""


_RECORD = np.dtype([("start", "<i8"), ("stop", "<i8"), ("scale", "<f4"), ("center", "<f4", 3)])
_UNPACK = struct.Struct("<qqf12s").unpack_from  # the same 32 bytes, as Python's own numbers
_ADVICE = "prepare the corpus again"
_VERIFY = "`pointdistill verify` names every damaged shape"

CHUNK = 65_536
"""Rows read at a time; shards written by this program are smaller, others need not be."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape of a corpus. Sizes: n points."""

    points: Points
    """(n, 3) float32, z up, in the source's own unit and place."""

    id: str
    source: str
    label: int
    """Index into the corpus's ``label_names``; -1 if it is not known."""

    part: NDArray[np.uint8] | None
    """(n,) uint8, the part each point belongs to, 255 where not known; None without parts."""


@dataclass(frozen=True, slots=True)
class StoredPoints:
    """Where the points of a shape lie on disk, and what turns them into coordinates. Sizes: n points."""

    count: int
    """n, at least 1."""

    scale: float
    """Half the side of the shape's cube, finite and not negative."""

    center: bytes
    """(3,) float32 as 12 bytes, finite."""

    file: _ShardFile
    offset: int

    def read(self, levels: NDArray[np.int16]) -> None:
        """Read the points into (n, 3) int16 in C order, in units of ``scale / LEVELS`` from the centre.

        Raises:
            CorpusError: if the file was cut short, or cannot be read any more.
        """
        self.file.read_into(levels.data.cast("B"), self.offset)


@dataclass(frozen=True, slots=True)
class _DatasetLocation:
    """Where the bytes of a dataset lie in its file."""

    offset: int
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    def read(self, file: _ShardFile, first: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows ``first`` to ``stop``, all by default."""
        rows = (self.shape[0] if stop is None else stop) - first
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        content = file.read(rows * row_bytes, self.offset + first * row_bytes)
        return np.frombuffer(content, self.dtype).reshape(rows, *self.shape[1:])


_PREADV: Callable[[int, list[memoryview], int], int] | None = getattr(os, "preadv", None)


class _ShardFile:
    """A shard that stays open for reads at given places, by several threads or after a fork.

    It is not mapped: a page of a map that the file no longer has, because it was cut short meanwhile, ends the
    process with a signal, and a read costs about as much.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        self._descriptor = self._file.fileno()

    def read(self, size: int, offset: int) -> bytes:
        """``size`` bytes from ``offset`` on.

        Raises:
            CorpusError: if the file ends before, or cannot be read any more.
        """
        # The common case in one call: small shapes are read in a few microseconds.
        try:
            content = read_some(self._descriptor, size, offset)
            while len(content) < size:  # a single call gives at most 2 GiB
                more = read_some(self._descriptor, size - len(content), offset + len(content))
                if not more:
                    msg = f"{self.path}: was cut short while it was in use; {_ADVICE}"
                    raise CorpusError(msg)
                content += more
        except OSError as error:
            msg = f"{self.path}: cannot be read any more ({error.strerror}); {_ADVICE}"
            raise CorpusError(msg) from error
        return content

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer from ``offset`` on, without a copy in between.

        Raises:
            CorpusError: as for `read`.
        """
        done = 0
        if _PREADV is not None:
            with contextlib.suppress(OSError):  # `read` tells it
                done = _PREADV(self._descriptor, [buffer], offset)
        if done < len(buffer):
            buffer[done:] = self.read(len(buffer) - done, offset + done)

    def __del__(self) -> None:
        # Left to the collector of garbage: another thread may be reading from a shard that was let go.
        if hasattr(self, "_file"):
            self._file.close()


@dataclass(frozen=True, slots=True)
class _OpenShard:
    """An open shard, and where its datasets lie."""

    file: _ShardFile
    locations: Mapping[str, _DatasetLocation]

    index: bytes
    """A `_RECORD` for each shape, 32 bytes: all that a read needs besides the points, side by side."""

    def restored(self, row: int) -> Points:
        """Points of one shape, (n, 3) float32."""
        start, stop, scale, center = _UNPACK(self.index, row * _RECORD.itemsize)
        content = self.file.read(6 * (stop - start), self.locations["points"].offset + 6 * start)
        return restore(np.frombuffer(content, "<i2").reshape(-1, 3), center, scale)

    def stored(self, row: int) -> StoredPoints:
        """Where the points of one shape lie."""
        start, stop, scale, center = _UNPACK(self.index, row * _RECORD.itemsize)
        offset = self.locations["points"].offset + 6 * start
        return StoredPoints(stop - start, scale, center, self.file, offset)

    def column(self, name: str, row: int | None = None) -> NDArray[Any]:
        """The values of one shape, or of all."""
        first, stop = (0, None) if row is None else (row, row + 1)
        return self.locations[name].read(self.file, first, stop)

    def part(self, row: int) -> NDArray[np.uint8] | None:
        """The parts of one shape's points; None without parts."""
        if "part" not in self.locations:
            return None
        start, stop, _, _ = _UNPACK(self.index, row * _RECORD.itemsize)
        return self.locations["part"].read(self.file, start, stop).copy()


class Corpus:
    """Shapes by number, 0 to ``len(corpus) - 1``, in (source, id) order.

    Reading is safe from several threads and after a fork; a pickled corpus opens its folder anew.
    """

    def __init__(
        self, path: Path, manifest: Manifest, *, most_shards: int = MOST_OPEN_SHARDS
    ) -> None:
        """Use `open_corpus`, which checks the folder first."""
        self.path = path
        self.manifest = manifest
        self._count = manifest.shapes
        self._ends = list(itertools.accumulate(shard.shapes for shard in manifest.shards))
        self._label_names, self._label_of = _merge_labels(manifest.sources)
        self._locations: dict[int, dict[str, _DatasetLocation]] = {}
        self._shards: dict[int, _OpenShard] = {}
        self._most_open = min(most_shards, _shards_allowed())

    def __len__(self) -> int:
        """Number of shapes."""
        return self._count

    def __getitem__(self, index: int) -> Shape:
        """Shape ``index``; negative numbers count from the end."""
        number, row = self._locate(index)
        shard = self._open(number)
        source = self.manifest.shards[number].source
        return Shape(
            points=shard.restored(row),
            id=self._names(number, shard.column("id", row))[0],
            source=source,
            label=int(self._labels(number, shard.column("label", row))[0]),
            part=shard.part(row),
        )

    def points(self, index: int) -> Points:
        """Points of shape ``index`` alone, (n, 3) float32; cheaper than the whole `Shape`."""
        number, row = self._locate(index)
        return self._open(number).restored(row)

    def stored(self, index: int) -> StoredPoints:
        """Where the points of shape ``index`` lie: to be read as they are stored, and restored elsewhere."""
        number, row = self._locate(index)
        return self._open(number).stored(row)

    def labels(self) -> NDArray[np.int64]:
        """Label of every shape, (len(corpus),) int64: index into ``label_names``, -1 if unknown."""
        labels = [np.empty(0, np.int64)]
        for number in range(len(self.manifest.shards)):
            labels.append(self._labels(number, self._open(number).column("label")))
        return np.concatenate(labels)

    def ids(self) -> list[str]:
        """Id of every shape, unique within its source."""
        shards = range(len(self.manifest.shards))
        return [
            name
            for number in shards
            for name in self._names(number, self._open(number).column("id"))
        ]

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels of all sources; sources that share a name share the label."""
        return self._label_names

    @property
    def content(self) -> str:
        """Checksum of the shapes themselves: equal for equal data, however it was built."""
        return self.manifest.content

    @property
    def sources(self) -> tuple[SourceRecord, ...]:
        """What is recorded of each source: licence, checksum, counts, settings."""
        return self.manifest.sources

    def describe(self) -> str:
        """What the corpus holds and where it came from, in a few lines for people."""
        manifest = self.manifest
        lines = [
            f"{self.path}: {plural(len(self), 'shape')} of up to {manifest.points:,} points, z up"
        ]
        for source in manifest.sources:
            refused = f", {source.refused:,} refused" if source.refused else ""
            labels = f", {len(source.labels)} labels" if source.labels else ""
            lines.append(
                f"  {source.name}: {plural(source.kept, 'shape')}{labels}{refused}; {source.licence}"
            )
        lines.append(f"  seed {manifest.seed}, content {manifest.content[:16]}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Corpus({str(self.path)!r}, {plural(len(self), 'shape')})"

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return functools.partial(open_corpus, most_shards=self._most_open), (self.path,)

    def _labels(self, number: int, stored: NDArray[np.int32]) -> NDArray[np.int64]:
        """Labels of a shard as indices into ``label_names``."""
        record = self.manifest.shards[number]
        known = self._label_of[record.source]
        if len(stored) and not -1 <= int(stored.min()) <= int(stored.max()) < len(known) - 1:
            what = f"a label is none of the {len(known) - 1} of {record.source}"
            raise damaged(self.path / record.file, what)
        return known[stored]

    def _names(self, number: int, stored: NDArray[np.bytes_]) -> list[str]:
        """Ids of a shard as text."""
        try:
            return [bytes(name).decode() for name in stored]
        except UnicodeDecodeError as error:
            path = self.path / self.manifest.shards[number].file
            raise damaged(path, "an id is no UTF-8 text") from error

    def _locate(self, index: int) -> tuple[int, int]:
        """Shard number and row of a shape."""
        place = index + self._count if index < 0 else index
        if not 0 <= place < self._count:
            msg = f"shape {index} of a corpus of {self._count:,}; the first is 0"
            raise IndexError(msg)
        number = bisect.bisect_right(self._ends, place)
        return number, place - (self._ends[number - 1] if number else 0)

    def _open(self, number: int) -> _OpenShard:
        """An open shard. No lock: two threads may open the same shard, which is harmless."""
        shard = self._shards.get(number)
        if shard is None:
            record = self.manifest.shards[number]
            path = self.path / record.file
            if number not in self._locations:
                self._locations[number] = _locate_datasets(path, record)
            shard = _open_shard(path, self._locations[number])
            if len(self._shards) >= self._most_open:
                # Drop the oldest; the default, because another thread may have dropped it in the meantime.
                self._shards.pop(next(iter(self._shards), number), None)
            self._shards[number] = shard
        return shard


def open_corpus(path: Path | str, *, most_shards: int = MOST_OPEN_SHARDS) -> Corpus:
    """Open a corpus folder; reads its ``corpus.json`` and checks the size of each shard.

    Args:
        path: the folder.
        most_shards: how many are open at a time at most, fewer if the system allows fewer. A reader
            that goes through the shapes in order needs only one, and then holds the pages of one shard.

    Raises:
        CorpusError: if the folder is not a finished corpus, has another format version, or a shard is missing or
            no longer has the size it was written with.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    sources = {source.name for source in manifest.sources}
    for shard in manifest.shards:
        if shard.source not in sources:
            what = f"it comes from {shard.source[:80]!r}, which corpus.json does not list"
            raise damaged(folder / shard.file, what)
        check_shard_size(folder / shard.file, shard)
    return Corpus(folder, manifest, most_shards=most_shards)


def check_shard_size(path: Path, record: ShardRecord) -> None:
    """Raise unless a shard exists with the size it was written with.

    Raises:
        CorpusError: naming the shard and both sizes.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        msg = f"{path}: missing, with {plural(record.shapes, 'shape')}; prepare the corpus again"
        raise CorpusError(msg) from error
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise CorpusError(msg) from error
    if size != record.bytes:
        cause = "cut short" if size < record.bytes else "changed"
        msg = f"{path}: {cause}, {size:,} bytes of {record.bytes:,}; prepare the corpus again"
        raise CorpusError(msg)


def _shards_allowed() -> int:
    """Each open shard takes a file descriptor; half of those that a process may have are left for other uses."""
    try:
        import resource  # not on Windows
    except ImportError:
        return MOST_OPEN_SHARDS
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_OPEN_SHARDS if allowed == resource.RLIM_INFINITY else max(1, allowed // 2)


def _merge_labels(
    sources: tuple[SourceRecord, ...],
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]]]:
    """The label names of all sources, and for each source its own labels as indices into them.

    The arrays end in -1, so that the unknown label -1 maps to itself.
    """
    number = {name: k for k, name in enumerate(dict.fromkeys(n for s in sources for n in s.labels))}
    own = {
        source.name: np.array([*(number[n] for n in source.labels), UNKNOWN_LABEL], np.int64)
        for source in sources
    }
    return tuple(number), own


def _locate_datasets(path: Path, record: ShardRecord) -> dict[str, _DatasetLocation]:
    """Where each dataset lies; checks that the file is the shard that its record describes."""
    names = ("points", "offsets", "center", "scale", "label", "id", "part")
    with open_hdf5(path, path, advice=_ADVICE, error=CorpusError) as file:
        datasets = [file.dataset(name, "iufS") for name in names if name in file]
        locations = {
            item.name: _DatasetLocation(item.offset, item.dtype, item.shape)
            for item in datasets
            if item.offset is not None
        }
    shapes, points = record.shapes, record.points
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "points": ("<i2", (points, 3)),
        "offsets": ("<i8", (shapes + 1,)),
        "center": ("<f4", (shapes, 3)),
        "scale": ("<f4", (shapes,)),
        "label": ("<i4", (shapes,)),
        "id": ("S", (shapes,)),
    } | ({"part": ("u1", (points,))} if "part" in locations else {})
    for name, (kind, shape) in expected.items():
        location = locations.get(name)
        fits = (
            location
            and location.shape == shape
            and (location.dtype.kind == "S" if kind == "S" else location.dtype == np.dtype(kind))
        )
        if not fits:
            actual = f"{location.dtype} {location.shape}" if location else "nothing"
            msg = f"{path}: {name} is {actual}, expected {kind} {shape}; prepare the corpus again"
            raise CorpusError(msg)
    return {name: locations[name] for name in expected}


def _open_shard(path: Path, locations: dict[str, _DatasetLocation]) -> _OpenShard:
    """Open a file, and read what reads of its points need; checks that it gives usable points.

    Raises:
        CorpusError: if it cannot be read, or its offsets, centres or scales are damaged.
    """
    with refusing_damage(path, advice=_ADVICE, error=CorpusError):
        file = _ShardFile(path)
        offsets, scale, center = (
            locations[name].read(file) for name in ("offsets", "scale", "center")
        )
    index = np.empty(len(scale), _RECORD)
    index["start"], index["stop"] = offsets[:-1], offsets[1:]
    index["scale"], index["center"] = scale, center
    whole = offsets[0] == 0 and offsets[-1] == locations["points"].shape[0]
    if not whole or (offsets[1:] <= offsets[:-1]).any():
        raise damaged(path, "its offsets do not fit its points")
    if not (np.isfinite(scale) & (scale >= 0)).all() or not np.isfinite(center).all():
        raise damaged(path, "a scale or a centre is not finite")
    return _OpenShard(file, locations, index.tobytes())


@dataclass(frozen=True, slots=True)
class ShardColumns:
    """The datasets of one open shard, by name and rows."""

    path: Path
    record: ShardRecord
    file: InertFile

    def read(self, name: str, first: int, stop: int) -> NDArray[Any]:
        """Rows ``first`` to ``stop`` of a dataset, as it lies on disk.

        Raises:
            CorpusError: if the dataset is missing, shorter than that, or cannot be read.
        """
        with refusing_damage(self.path, advice=_VERIFY, error=CorpusError):
            dataset = self.file.dataset(name, "S" if name == "id" else NUMBERS)
            values = dataset.read(first, stop)
        if len(values) != stop - first:
            raise damaged(self.path, f"{name} ends at row {first + len(values):,}, before {stop:,}")
        return values

    def chunks(self) -> Iterator[tuple[int, int]]:
        """The first row, and the row after the last, of each chunk of shapes in turn."""
        for first in range(0, self.record.shapes, CHUNK):
            yield first, min(first + CHUNK, self.record.shapes)


@contextmanager
def open_columns(folder: Path, record: ShardRecord) -> Iterator[ShardColumns]:
    """Open a shard to read single datasets.

    Raises:
        CorpusError: if the shard is missing, no longer has the size it was written with, or is not HDF5.
    """
    path = folder / record.file
    check_shard_size(path, record)
    with open_hdf5(path, path, advice=_VERIFY, error=CorpusError) as file:
        yield ShardColumns(path, record, file)


def damaged(path: Path, what: str) -> CorpusError:
    """The error for a shard or list that is not as it was written."""
    return CorpusError(f"{path}: damaged, {what}; {_VERIFY}")
