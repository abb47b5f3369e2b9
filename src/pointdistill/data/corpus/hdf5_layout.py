"""Where each array of a shard lies in its HDF5 file, and the bytes around them.

HDF5 lays the file out in memory; the arrays are then written to their places with plain file writes. So a full
disk is an ordinary error of ours rather than one inside HDF5, which prints such errors and may crash on them;
memory holds no array; and the bytes do not depend on the order of writing.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Old on purpose: these versions store no times, and any HDF5 library since 1.8 reads them.
_LIBRARY_VERSIONS = ("earliest", "v108")
# Arrays begin on a cache line, so that a memory map of them is aligned for every type.
_ALIGNMENT_BYTES = 64
_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array to reserve space for."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


@dataclass(frozen=True, slots=True)
class FileLayout:
    """Which bytes of the file go where."""

    pages: Mapping[int, bytes]
    """Bytes by their offset; between them lie arrays, or nothing."""

    offsets: Mapping[str, int]
    """Where each array's bytes begin."""

    size: int
    """Bytes of the whole file."""


def lay_out_file(
    arrays: Mapping[str, ArraySpec], *, source: str, label_names: NDArray[np.bytes_]
) -> FileLayout:
    """Lay out a file with contiguous, uncompressed datasets.

    Args:
        arrays: what the file will hold, none of them empty.
        source: stored as an attribute of the file.
        label_names: (k,) UTF-8, stored whole as the dataset ``label_names``.
    """
    import h5py

    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    memory = _SparseFile()
    with h5py.File(
        memory,
        "w",
        libver=_LIBRARY_VERSIONS,
        alignment_threshold=1,
        alignment_interval=_ALIGNMENT_BYTES,
    ) as file:
        file.attrs["source"] = source
        text = utf8_text(label_names.dtype.itemsize)
        file.create_dataset("label_names", data=label_names.astype(text))
        offsets = {}
        for name, spec in arrays.items():
            dataset = file.create_dataset(
                name, spec.shape, spec.dtype, dcpl=creation.copy(), fill_time="never"
            )
            offsets[name] = dataset.id.get_offset()
    ends = [
        offsets[name] + spec.dtype.itemsize * int(np.prod(spec.shape))
        for name, spec in arrays.items()
    ]
    pages = {page * _PAGE_BYTES: bytes(content) for page, content in sorted(memory.pages.items())}
    return FileLayout(pages=pages, offsets=offsets, size=max([memory.size, *ends]))


def utf8_text(count: int) -> np.dtype[np.generic]:
    """The type of UTF-8 text of ``count`` bytes, at least 1; HDF5 takes plain bytes for ASCII."""
    import h5py

    text: np.dtype[np.generic] = h5py.string_dtype("utf-8", max(count, 1))
    return text


class _SparseFile(io.RawIOBase):
    """A file in memory that holds only the pages that were written, with the methods that HDF5 calls."""

    def __init__(self) -> None:
        super().__init__()
        self.pages: dict[int, bytearray] = {}
        self.size = 0
        self._position = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, content: object) -> int:
        source = memoryview(content).cast("B")  # type: ignore[arg-type]
        for page, inside, part in self._parts(len(source)):
            self.pages.setdefault(page, bytearray(_PAGE_BYTES))[inside] = source[part]
        self._position += len(source)
        self.size = max(self.size, self._position)
        return len(source)

    def readinto(self, buffer: object) -> int:
        target = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        for page, inside, part in self._parts(len(target)):
            target[part] = self.pages.get(page, bytes(_PAGE_BYTES))[inside]
        self._position += len(target)
        return len(target)

    def truncate(self, size: int | None = None) -> int:
        self.size = self._position if size is None else size
        return self.size

    def _parts(self, count: int) -> Sequence[tuple[int, slice, slice]]:
        """The pages that the next ``count`` bytes touch: number, range in the page, range in the bytes."""
        parts, done = [], 0
        while done < count:
            page, begin = divmod(self._position + done, _PAGE_BYTES)
            length = min(_PAGE_BYTES - begin, count - done)
            parts.append((page, slice(begin, begin + length), slice(done, done + length)))
            done += length
        return parts
