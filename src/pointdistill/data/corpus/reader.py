"""Random access to the shapes of a corpus, which reads no more than is needed.

Opening reads ``corpus.json`` and looks at the shards' sizes; ids, labels and points stay on disk until they are
needed. A shard is memory-mapped at its first use, so a read costs the points' own bytes. `open_columns` reads
single datasets of a shard in chunks, for questions that need no points.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
from numpy.typing import NDArray

from pointdistill.data.corpus.manifest import Manifest, ShardRecord, SourceRecord, read_manifest
from pointdistill.data.corpus.shard import UNKNOWN_LABEL, Points, restore
from pointdistill.errors import CorpusError

MOST_OPEN_SHARDS = 1024
"""Most shards mapped at a time by default; a read from one that is not mapped costs 0.2 ms more."""


_RECORD = np.dtype([("start", "<i8"), ("stop", "<i8"), ("scale", "<f4"), ("center", "<f4", 3)])
_UNPACK = struct.Struct("<qqf12s").unpack_from  # the same 32 bytes, as Python's own numbers
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
class _DatasetLocation:
    """Where the bytes of a dataset lie in its file."""

    offset: int
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    def view(self, file: mmap.mmap) -> NDArray[np.generic]:
        count = int(np.prod(self.shape))
        return np.frombuffer(file, self.dtype, count, self.offset).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class _MappedShard:
    """Views of a shard's datasets; the file stays mapped as long as one of them exists."""

    points: NDArray[np.int16]
    offsets: NDArray[np.int64]
    id: NDArray[np.bytes_]
    label: NDArray[np.int32]
    part: NDArray[np.uint8] | None

    index: bytes
    """A `_RECORD` for each shape, 32 bytes: all that a read needs besides the points, side by side. On disk these
    values are in three places, which would make a random read of 64 points a tenth slower."""

    def restored(self, row: int) -> Points:
        """Points of one shape, (n, 3) float32."""
        start, stop, scale, center = _UNPACK(self.index, row * _RECORD.itemsize)
        return restore(self.points[start:stop], center, scale)


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
        self._mapped: dict[int, _MappedShard] = {}
        self._most_open = min(most_shards, _shards_allowed())

    def __len__(self) -> int:
        """Number of shapes."""
        return self._count

    def __getitem__(self, index: int) -> Shape:
        """Shape ``index``; negative numbers count from the end."""
        number, row = self._locate(index)
        shard = self._open(number)
        source = self.manifest.shards[number].source
        start, stop = shard.offsets[row], shard.offsets[row + 1]
        return Shape(
            points=shard.restored(row),
            id=bytes(shard.id[row]).decode(),
            source=source,
            label=int(self._label_of[source][shard.label[row]]),
            part=None if shard.part is None else shard.part[start:stop].copy(),
        )

    def points(self, index: int) -> Points:
        """Points of shape ``index`` alone, (n, 3) float32; cheaper than the whole `Shape`."""
        number, row = self._locate(index)
        return self._open(number).restored(row)

    def labels(self) -> NDArray[np.int64]:
        """Label of every shape, (len(corpus),) int64: index into ``label_names``, -1 if unknown."""
        labels = [np.empty(0, np.int64)]
        for number, record in enumerate(self.manifest.shards):
            labels.append(self._label_of[record.source][self._open(number).label])
        return np.concatenate(labels)

    def ids(self) -> list[str]:
        """Id of every shape, unique within its source."""
        shards = range(len(self.manifest.shards))
        return [bytes(name).decode() for number in shards for name in self._open(number).id]

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
        lines = [f"{self.path}: {len(self):,} shapes of up to {manifest.points:,} points, z up"]
        for source in manifest.sources:
            refused = f", {source.refused:,} refused" if source.refused else ""
            labels = f", {len(source.labels)} labels" if source.labels else ""
            lines.append(
                f"  {source.name}: {source.kept:,} shapes{labels}{refused}; {source.licence}"
            )
        lines.append(f"  seed {manifest.seed}, content {manifest.content[:16]}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Corpus({str(self.path)!r}, {len(self):,} shapes)"

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return functools.partial(open_corpus, most_shards=self._most_open), (self.path,)

    def _locate(self, index: int) -> tuple[int, int]:
        """Shard number and row of a shape."""
        place = index + self._count if index < 0 else index
        if not 0 <= place < self._count:
            msg = f"shape {index} of a corpus of {self._count:,}; the first is 0"
            raise IndexError(msg)
        number = bisect.bisect_right(self._ends, place)
        return number, place - (self._ends[number - 1] if number else 0)

    def _open(self, number: int) -> _MappedShard:
        """Views of a shard. No lock: two threads may map the same shard, which is harmless."""
        mapped = self._mapped.get(number)
        if mapped is None:
            record = self.manifest.shards[number]
            path = self.path / record.file
            if number not in self._locations:
                self._locations[number] = _locate_datasets(path, record)
            mapped = _map_shard(path, self._locations[number])
            if len(self._mapped) >= self._most_open:
                # Drop the oldest; the default, because another thread may have dropped it in the meantime.
                self._mapped.pop(next(iter(self._mapped), number), None)
            self._mapped[number] = mapped
        return mapped


def open_corpus(path: Path | str, *, most_shards: int = MOST_OPEN_SHARDS) -> Corpus:
    """Open a corpus folder; reads its ``corpus.json`` and checks the size of each shard.

    Args:
        path: the folder.
        most_shards: how many are mapped at a time at most, fewer if the system allows fewer open files. A reader
            that goes through the shapes in order needs only one, and then holds the pages of one shard.

    Raises:
        CorpusError: if the folder is not a finished corpus, has another format version, or a shard is missing or
            no longer has the size it was written with.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    for shard in manifest.shards:
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
        msg = f"{path}: missing, with {record.shapes:,} shapes; prepare the corpus again"
        raise CorpusError(msg) from error
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise CorpusError(msg) from error
    if size != record.bytes:
        cause = "cut short" if size < record.bytes else "changed"
        msg = f"{path}: {cause}, {size:,} bytes of {record.bytes:,}; prepare the corpus again"
        raise CorpusError(msg)


def _shards_allowed() -> int:
    """Each mapped shard takes a file descriptor; half of those that a process may have are left for other uses."""
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
    try:
        with h5py.File(path, "r", locking=False) as file:
            locations = {
                name: _DatasetLocation(item.id.get_offset(), item.dtype, item.shape)
                for name, item in file.items()
                if isinstance(item, h5py.Dataset) and item.id.get_offset() is not None
            }
    except (OSError, RuntimeError) as error:
        msg = f"{path}: damaged ({error}); prepare the corpus again"
        raise CorpusError(msg) from error
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
            and (kind == "S" or location.dtype == np.dtype(kind))
        )
        if not fits:
            actual = f"{location.dtype} {location.shape}" if location else "nothing"
            msg = f"{path}: {name} is {actual}, expected {kind} {shape}; prepare the corpus again"
            raise CorpusError(msg)
    return {name: locations[name] for name in expected}


def _map_shard(path: Path, locations: dict[str, _DatasetLocation]) -> _MappedShard:
    """Map a file and view its datasets; our file is closed again, since the map keeps a descriptor of its own."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        views = {name: location.view(mapped) for name, location in locations.items()}
    except (OSError, ValueError) as error:
        msg = f"{path}: cannot be read ({error}); prepare the corpus again"
        raise CorpusError(msg) from error
    index = np.empty(len(views["scale"]), _RECORD)
    index["start"], index["stop"] = views["offsets"][:-1], views["offsets"][1:]
    index["scale"], index["center"] = views.pop("scale"), views.pop("center")
    columns = {"part": None, "index": index.tobytes()} | views
    return _MappedShard(**cast("dict[str, Any]", columns))


@dataclass(frozen=True, slots=True)
class ShardColumns:
    """The datasets of one open shard, by name and rows."""

    path: Path
    record: ShardRecord
    file: Any
    """An open ``h5py.File``."""

    def read(self, name: str, first: int, stop: int) -> NDArray[Any]:
        """Rows ``first`` to ``stop`` of a dataset, as it lies on disk.

        Raises:
            CorpusError: if the dataset is missing, shorter than that, or cannot be read.
        """
        try:
            values = np.asarray(self.file[name][first:stop])
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise damaged(self.path, f"{name} cannot be read: {error}") from error
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
    try:
        file = h5py.File(path, "r", locking=False)
    except (OSError, RuntimeError) as error:
        raise damaged(path, str(error)) from error
    with file:
        yield ShardColumns(path, record, file)


def damaged(path: Path, what: str) -> CorpusError:
    """The error for a shard or list that is not as it was written."""
    return CorpusError(f"{path}: damaged, {what}; `pointdistill verify` names every damaged shape")
