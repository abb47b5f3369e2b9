"""HDF5 files from elsewhere, read as inert data: nothing that they name is opened, no size is believed.

HDF5 can lead a reader anywhere. Links and virtual datasets name other files, external storage any file at all;
filters load plug-ins and unpack a few bytes to any size; a chunk or an array can be declared larger than memory.
So a dataset is looked at with the calls that read its header alone, and read only if all of it is in the file.
"""

from __future__ import annotations

import functools
import importlib
import io
import math
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.files.schema import refusing_damage
from pointdistill.errors import DataError, PointDistillError

if TYPE_CHECKING:
    import h5py
else:

    class _Library:
        """h5py, loaded when something of it is first used: most commands that import this room read no HDF5."""

        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module("h5py"), name)

    h5py = _Library()

NUMBERS = "fiu"
"""Kinds of the numeric types, as NumPy names them."""

MOST_DATASET_BYTES = 1 << 30
"""Largest packed dataset that is read, once unpacked; the largest real one (in ScanObjectNN) has 0.3 GiB."""

_MOST_CHUNK_BYTES = 64 * 2**20
_LARGEST_RATIO = 1100
"""A dataset may be this many times larger than what is stored of it: deflate reaches 1,032."""

_MOST_CHUNKS = 2**20
_SMALL_BYTES = 2**20
"""Up to this size a dataset may be larger than that: an array of zeros is."""

_GZIP, _SHUFFLE, _FLETCHER32 = 1, 2, 3
_FILTERS = {_GZIP: "gzip", _SHUFFLE: "shuffle", _FLETCHER32: "fletcher32"}
"""Filters whose result has a size that is checked before HDF5 runs them. The others that h5py has built in
(lzf, scale-offset, n-bit, szip) are left out: no known archive uses them."""

_CHECKSUM_BYTES = 4  # of fletcher32

_Part: TypeAlias = Callable[[int, int], bytes]
_NODE = re.compile(rb"TREE\x01(.)", re.DOTALL)
"""The first bytes of a node of an index of chunks, the last of them its level."""

_NODE_BYTES = 8  # before the addresses of its neighbours
_BLOCK_BYTES = 2**24

_KINDS = ("INTEGER", "FLOAT", "STRING")
_CLASSES = {
    "COMPOUND": "compound values",
    "ENUM": "named numbers",
    "OPAQUE": "opaque bytes",
    "REFERENCE": "references",
    "VLEN": "values of varying length",
    "ARRAY": "arrays",
    "BITFIELD": "bit fields",
    "TIME": "times",
}


@dataclass(frozen=True, slots=True)
class InertDataset:
    """A dataset that lies in its file in full, of a plain type; `InertFile.dataset` checks that."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    offset: int | None
    """Position of its first byte in the file; None if it is packed or in chunks."""

    _stored: Any

    @property
    def nbytes(self) -> int:
        """Bytes of all its values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, first: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows ``first`` to ``stop``, all of them by default, as they lie on disk."""
        rows = self._stored[()] if stop is None and not first else self._stored[first:stop]
        return np.asarray(rows)


class InertFile:
    """The datasets and attributes at the top of an open file, by name."""

    def __init__(self, file: Any, size: int, part: _Part) -> None:
        """Use `open_hdf5`; ``size`` is that of the file in bytes, ``part`` reads some of them."""
        self._file = file
        self._size = size
        self._part = part

    def __contains__(self, name: str) -> bool:
        """Whether there is anything of this name."""
        return bool(self._file.id.links.exists(name.encode()))

    def dataset(self, name: str, kinds: str = NUMBERS) -> InertDataset:
        """A dataset, none of whose values is read yet.

        Args:
            name: as it stands at the top of the file.
            kinds: accepted kinds of its type; `NUMBERS`, or ``S`` for text of a fixed length.

        Raises:
            DataError: if it is absent, does not lie in this file in full, or is of another type or too large.
        """
        links = self._file.id.links
        if name not in self:
            _refuse(name, "is missing")
        if links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
            _refuse(name, "is a link that leads elsewhere, and no link is followed")
        stored = h5py.h5o.open(self._file.id, name.encode())
        if not isinstance(stored, h5py.h5d.DatasetID):
            _refuse(name, "is no dataset")
        layout = stored.get_create_plist()
        # The layout comes before the size: asking a virtual dataset for its size may open the files that it names.
        _check_place(name, layout)
        if layout.get_layout() == h5py.h5d.CHUNKED:
            self._check_index(name, len(layout.get_chunk()))
        dtype = _checked_type(name, stored.get_type(), kinds)
        shape = _checked_shape(name, stored.get_space())
        self._check_storage(name, stored, layout, shape, dtype)
        offset = stored.get_offset() if layout.get_layout() == h5py.h5d.CONTIGUOUS else None
        return InertDataset(name, shape, dtype, offset, h5py.Dataset(stored))

    def attribute(self, name: str) -> int | float | str | None:
        """A single number or text of a fixed length that is attached to the file; None if there is anything else.

        Text of any length is kept elsewhere in the file, and a damaged one lets HDF5 look for its end for ever.
        """
        root = h5py.h5o.open(self._file.id, b"/")
        if not h5py.h5a.exists(root, name.encode()):
            return None
        stored = h5py.h5a.open(root, name.encode())
        kind = stored.get_type()
        if stored.get_space().get_simple_extent_type() != h5py.h5s.SCALAR:
            return None
        if _class_of(kind) not in _KINDS or kind.get_size() > _SMALL_BYTES:
            return None
        if _class_of(kind) == "STRING" and kind.is_variable_str():
            return None
        value = self._file.attrs[name]
        plain = value.item() if isinstance(value, np.generic) else value
        return plain.decode("utf-8", "replace") if isinstance(plain, bytes) else plain

    def _check_index(self, name: str, rank: int) -> None:
        """Raise if an index of chunks leads back to itself: HDF5 would follow it until the process ends.

        Where it begins cannot be asked for, so all bytes that HDF5 may take for a node of one are looked at.
        Layout: HDF5 File Format Specification 3.0, "Version 1 B-trees".

        Args:
            name: of the dataset.
            rank: number of dimensions of its chunks.
        """
        created = self._file.id.get_create_plist()
        base, address = created.get_userblock(), created.get_sizes()[0]
        key, first = 8 + 8 * (rank + 1), _NODE_BYTES + 2 * address
        levels = dict[int, int]()
        for start in range(0, self._size, _BLOCK_BYTES):
            block = self._part(start, start + _BLOCK_BYTES + _NODE_BYTES - 1)
            for node in _NODE.finditer(block):
                levels[start + node.start()] = node[1][0]
                if len(levels) > _MOST_CHUNKS:
                    _refuse(name, f"may have an index of more than {_MOST_CHUNKS:,} nodes")
        known = set[int]()
        for place, level in levels.items():
            used = int.from_bytes(
                self._part(place + _NODE_BYTES - 2, place + _NODE_BYTES), "little"
            )
            for number in range(used if level else 0):
                at = place + first + number * (key + address) + key
                below = base + int.from_bytes(self._part(at, at + address), "little")
                if below not in levels:  # where HDF5 stops
                    break
                if levels[below] >= level or below in known:
                    _refuse(name, "has an index that leads back to itself")
                known.add(below)

    def _check_storage(
        self,
        name: str,
        stored: Any,
        layout: Any,
        shape: tuple[int, ...],
        dtype: np.dtype[np.generic],
    ) -> None:
        """Raise unless the file holds all the values, and unpacking them takes no more memory than they do."""
        size = math.prod(shape) * dtype.itemsize
        kept = stored.get_storage_size()
        if kept > self._size:
            _refuse(name, f"claims {kept:,} stored bytes in a file of {self._size:,}")
        if not layout.get_nfilters():
            if kept < size:
                _refuse(name, f"claims {size:,} bytes, of which {kept:,} are stored")
        elif size > min(MOST_DATASET_BYTES, max(_SMALL_BYTES, _LARGEST_RATIO * kept)):
            _refuse(name, f"claims {size:,} bytes, packed into {kept:,}")
        if layout.get_layout() == h5py.h5d.CHUNKED:
            chunk = math.prod(layout.get_chunk()) * dtype.itemsize
            if chunk > max(_MOST_CHUNK_BYTES, size):
                _refuse(name, f"has chunks of {chunk:,} bytes for {size:,} bytes of values")
            _check_chunks(name, stored, layout, shape, chunk)


@contextmanager
def open_hdf5(
    source: Path | bytes,
    place: Path | str,
    *,
    advice: str = "fetch it again",
    error: type[PointDistillError] = DataError,
) -> Iterator[InertFile]:
    """Open a file; whatever goes wrong inside the block becomes one ``error`` that names it.

    Args:
        source: the file, or its content, such as that of a member of an archive.
        place: how messages name it.
        advice: what to do about a damaged one.
        error: the class to raise.
    """
    with refusing_damage(place, advice=advice, error=error):
        if isinstance(source, Path):
            size = source.stat().st_size
            if not source.is_file():
                msg = "is no regular file"
                raise DataError(msg)
            # Shards on file systems without locks are read too.
            opened = h5py.File(source, "r", locking=False)
        else:
            size = len(source)
            opened = h5py.File(io.BytesIO(source), "r")
        with opened as file:
            yield InertFile(file, size, functools.partial(_part_of, source))


def _part_of(source: Path | bytes, start: int, stop: int) -> bytes:
    """Bytes ``start`` to ``stop``, at most as many as there are."""
    if isinstance(source, bytes):
        return source[start:stop]
    with source.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


def _refuse(name: str, what: str) -> NoReturn:
    """Raise an error about a dataset; `open_hdf5` adds the file."""
    msg = f"{name!r} {what}"
    raise DataError(msg)


def _check_place(name: str, layout: Any) -> None:
    """Raise unless a dataset's values lie in the file itself, packed with known filters at most."""
    if layout.get_layout() == h5py.h5d.VIRTUAL:
        _refuse(name, "is a virtual dataset, made of other files")
    if layout.get_external_count():
        _refuse(name, "lies in another file (external storage)")
    filters = [layout.get_filter(number)[0] for number in range(layout.get_nfilters())]
    unknown = [number for number in filters if number not in _FILTERS]
    if unknown:
        accepted = ", ".join(_FILTERS.values())
        _refuse(name, f"is packed with filter {unknown[0]}; accepted: none, {accepted}")
    if len(set(filters)) < len(filters):
        _refuse(name, "is packed twice")
    if {_GZIP, _SHUFFLE} <= set(filters) and filters.index(_GZIP) < filters.index(_SHUFFLE):
        _refuse(name, "is shuffled after it was packed")


def _checked_type(name: str, stored: Any, kinds: str) -> np.dtype[np.generic]:
    kind = _class_of(stored)
    named = _CLASSES.get(kind)
    if kind not in _KINDS or (kind == "STRING" and stored.is_variable_str()):
        _refuse(name, f"holds {named or 'values of varying length'}, not {_described(kinds)}")
    if not 0 < stored.get_size() <= _SMALL_BYTES:
        _refuse(name, f"has values of {stored.get_size():,} bytes")
    dtype: np.dtype[np.generic] = np.dtype(stored.dtype)
    # Text of a fixed length may carry its encoding as metadata, which makes it a type of its own.
    if dtype.kind not in kinds or dtype.hasobject:
        _refuse(name, f"holds values of type {dtype}, not {_described(kinds)}")
    return dtype


def _class_of(stored: Any) -> str:
    """HDF5's name for the class of a type, of those above; empty for others."""
    kind = stored.get_class()
    return next((one for one in (*_KINDS, *_CLASSES) if getattr(h5py.h5t, one) == kind), "")


def _described(kinds: str) -> str:
    return "text of a fixed length" if kinds == "S" else "numbers" if len(kinds) > 1 else "floats"


def _checked_shape(name: str, space: Any) -> tuple[int, ...]:
    if space.get_simple_extent_type() == h5py.h5s.NULL:
        _refuse(name, "is empty, without any shape")
    return tuple(int(length) for length in space.shape)


def _check_chunks(name: str, stored: Any, layout: Any, shape: tuple[int, ...], chunk: int) -> None:
    """Raise unless every stored chunk unpacks to exactly its values.

    HDF5 goes on unpacking a chunk while there is more of it, and reads what lies behind one that has less.
    """
    lengths = zip(shape, layout.get_chunk(), strict=True)
    expected = math.prod(-(-length // step) for length, step in lengths)
    if not stored.get_num_chunks() <= expected <= _MOST_CHUNKS:
        _refuse(name, f"has {stored.get_num_chunks():,} chunks of {expected:,}")
    chunks: list[Any] = []
    stored.chunk_iter(chunks.append)
    filters = [layout.get_filter(number)[0] for number in range(layout.get_nfilters())]
    # What gzip adds to bytes that cannot be packed, and a checksum.
    most = chunk + chunk // 16 + 1024
    for packed in chunks:
        if packed.size > most:
            _refuse(name, f"has a chunk of {packed.size:,} stored bytes for {chunk:,}")
        # A chunk may leave out any of the filters.
        used = [f for number, f in enumerate(filters) if not packed.filter_mask >> number & 1]
        size = packed.size
        if _GZIP in used:
            content = stored.read_direct_chunk(packed.chunk_offset)[1]
            size = len(zlib.decompressobj().decompress(content, chunk + _CHECKSUM_BYTES + 1))
        # A checksum is taken after packing, or before: then it is packed with the values.
        with_values = _GZIP not in used[: used.index(_FLETCHER32)] if _FLETCHER32 in used else False
        full = chunk + with_values * _CHECKSUM_BYTES
        if size > full:
            _refuse(name, f"has a chunk that unpacks to more than its {chunk:,} bytes")
        if size < full:
            _refuse(name, f"has a chunk that unpacks to {size:,} of its {chunk:,} bytes")
