"""One HDF5 file of a few thousand ragged shapes: whole or absent, and the same bytes every time.

``docs/corpus-format.md`` describes the file for readers without this program; keep the two in step.

Points are stored as 16-bit steps within a cube. It is centred on the middle of the bounding box of its shape and
just contains it. One step is 1/32767 of half its side, so rounding to the nearest step moves a coordinate by at
most 1.53e-5 of half the side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.corpus.hdf5_layout import ArraySpec, FileLayout, lay_out_file, utf8_text
from pointdistill.data.files.files import write_aside
from pointdistill.data.files.hdf5 import InertFile, open_hdf5
from pointdistill.errors import CorpusError, DataError

UNKNOWN_LABEL = -1
UNKNOWN_PART = 255

LEVELS = 32767
"""Steps from the cube's centre to a side."""

LARGEST_COORDINATE = 1e30
"""Beyond this, a difference of two coordinates may overflow float32; no real unit gives such a shape."""

_TILE_ROWS = 2048
"""Copies of a centre laid side by side, 24 KiB: numpy adds half as many at little more than half the speed, and
longer runs no faster."""

Points: TypeAlias = NDArray[np.float32]
"""(n, 3) float32: x, y, z; z is up."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """One shape as it is stored: xyz = center + scale * points / 32767."""

    points: NDArray[np.int16]
    """(n, 3) int16, each within -32767 to 32767."""

    center: NDArray[np.float32]
    """(3,) float32, the middle of the bounding box."""

    scale: np.float32
    """Half the side of the cube, in the unit of the points; 0 where all points coincide."""


def quantise(points: NDArray[np.floating]) -> Quantised:
    """Round points to the 16-bit steps of their own cube.

    Args:
        points: (n, 3), finite, n at least 1; flat, straight or coinciding points are fine.

    Raises:
        DataError: if the array has another shape, is empty, or holds values that are huge or not finite.
    """
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
        msg = f"expected points of shape (n, 3) with n at least 1, got {points.shape}"
        raise DataError(msg)
    # Axis by axis in contiguous rows: a reduction over the columns of (n, 3) is ten times slower.
    # In float64, because the difference of two float32 coordinates may not be a float32.
    exact = np.ascontiguousarray(points.T, np.float64)
    low, high = exact.min(axis=1), exact.max(axis=1)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        bad = int((~np.isfinite(points)).any(axis=1).sum())
        msg = f"{bad:,} of {len(points):,} points are not finite"
        raise DataError(msg)
    largest = max(-float(low.min()), float(high.max()))
    if largest > LARGEST_COORDINATE:
        msg = f"coordinates reach {largest:.3g}, at most {LARGEST_COORDINATE:.0e} is accepted"
        raise DataError(msg)
    center = ((low + high) / 2).astype(np.float32)
    exact -= center[:, None]
    reach = max(-float(exact.min()), float(exact.max()))
    # Rounded up, so that no point falls outside the cube.
    scale = np.float32(reach)
    if scale < reach:
        scale = np.nextafter(scale, np.float32(np.inf))
    exact *= LEVELS / float(scale) if scale > 0 else 0.0
    steps = np.ascontiguousarray(np.rint(exact, out=exact).T, np.int16)
    return Quantised(points=steps, center=center, scale=scale)


def restore(points: NDArray[np.int16], center: bytes, scale: float) -> Points:
    """Points in their own unit and place, as a new (n, 3) float32 array.

    Args:
        points: (n, 3) int16, in C order.
        center: (3,) float32 as its 12 bytes on disk: for small shapes, making arrays costs most of the time.
        scale: half the side of the cube.
    """
    # One operation at a time over long runs of memory: numpy is several times slower at (n, 3) against (3,), whose
    # inner loops are three long.
    restored = points.astype(np.float32, order="C")
    restored *= np.float32(scale / LEVELS)
    count = len(points)
    rows = min(count, _TILE_ROWS) or 1
    tile = np.frombuffer(center * rows, "<f4")
    flat = restored.reshape(-1)
    if count == rows:
        flat += tile
        return restored
    whole = count - count % rows
    runs = flat[: 3 * whole].reshape(-1, 3 * rows)
    runs += tile
    flat[3 * whole :] += tile[: 3 * (count - whole)]
    return restored


@dataclass(frozen=True, slots=True)
class Row:
    """One shape on its way into a shard; `make_row` checks it. Sizes: n points."""

    id: str
    shape: Quantised
    label: int
    part: NDArray[np.uint8] | None
    """(n,) uint8, the part each point belongs to; None if the source has no parts."""


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Consecutive rows of a shard in memory. Sizes: n shapes, T points in all."""

    points: NDArray[np.int16]  # (T, 3)
    offsets: NDArray[np.int64]  # (n + 1,), from 0 to T
    center: NDArray[np.float32]  # (n, 3)
    scale: NDArray[np.float32]  # (n,)
    id: NDArray[np.bytes_]  # (n,), UTF-8
    label: NDArray[np.int32]  # (n,)
    sha256: NDArray[np.uint8]  # (n, 32)
    part: NDArray[np.uint8] | None  # (T,)

    def __len__(self) -> int:
        """Number of shapes."""
        return len(self.scale)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Totals over all blocks of a shard, which must be known before the first is written."""

    shapes: int
    points: int
    id_bytes: int
    has_part: bool

    def __add__(self, other: Sizes) -> Sizes:
        """The totals of both together."""
        return Sizes(
            shapes=self.shapes + other.shapes,
            points=self.points + other.points,
            id_bytes=max(self.id_bytes, other.id_bytes),
            has_part=self.has_part or other.has_part,
        )


NO_SIZES = Sizes(shapes=0, points=0, id_bytes=1, has_part=False)


def make_row(
    shape_id: str,
    points: NDArray[np.floating],
    *,
    label: int = UNKNOWN_LABEL,
    part: NDArray[np.uint8] | None = None,
) -> Row:
    """Quantise one shape.

    Args:
        shape_id: unique within the source.
        points: (n, 3), finite, z up.
        label: index into the source's label names, or -1.
        part: (n,) or None.

    Raises:
        DataError: if the points are empty or not finite, or the part labels do not fit them.
    """
    shape = quantise(points)
    if part is not None and part.shape != (len(points),):
        msg = f"part labels of shape {part.shape} for {len(points)} points"
        raise DataError(msg)
    return Row(shape_id, shape, label, part)


def encode(rows: Sequence[Row], *, source: str, label_names: Sequence[str]) -> RowBlock:
    """Lay rows end to end and compute the checksum of each."""
    shapes = [row.shape for row in rows]
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(shape.points) for shape in shapes], out=offsets[1:])
    has_part = any(row.part is not None for row in rows)
    parts = [_part_of(row, known=has_part) for row in rows]
    names = [label_names[row.label] if row.label >= 0 else "" for row in rows]
    digests = [
        row_digest(shape, source=source, shape_id=row.id, label=name, part=part)
        for row, shape, name, part in zip(rows, shapes, names, parts, strict=True)
    ]
    return RowBlock(
        points=np.concatenate([shape.points for shape in shapes] or [np.empty((0, 3), np.int16)]),
        offsets=offsets,
        center=np.array([shape.center for shape in shapes], np.float32).reshape(-1, 3),
        scale=np.array([shape.scale for shape in shapes], np.float32),
        id=np.array([row.id.encode() for row in rows], np.bytes_),
        label=np.array([row.label for row in rows], np.int32),
        sha256=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32),
        part=np.concatenate([part for part in parts if part is not None]) if has_part else None,
    )


def row_digest(
    shape: Quantised, *, source: str, shape_id: str, label: str, part: NDArray[np.uint8] | None
) -> bytes:
    """SHA-256 of one shape, of its name, its place and its points; 32 bytes.

    The bytes hashed are source, id and label name in UTF-8, each ended by a zero byte, then center,
    scale and points as they lie on disk (little-endian), then part unless all of it is unknown.
    """
    digest = hashlib.sha256(b"".join(f"{text}\0".encode() for text in (source, shape_id, label)))
    digest.update(np.asarray(shape.center, "<f4").tobytes())
    digest.update(np.asarray(shape.scale, "<f4").tobytes())
    digest.update(np.ascontiguousarray(shape.points, "<i2").data)
    if part is not None and (part != UNKNOWN_PART).any():
        digest.update(np.ascontiguousarray(part).data)
    return digest.digest()


def write_shard(
    path: Path, blocks: Iterable[RowBlock], sizes: Sizes, *, source: str, label_names: Sequence[str]
) -> None:
    """Write blocks one after another to a shard; only one is in memory at a time.

    Args:
        path: final name; the file appears under it whole or not at all.
        blocks: rows in their final order.
        sizes: the sum of the blocks' `sizes_of`, at least one shape.
        source: name of the one source that the rows come from.
        label_names: names of the labels, stored in the file too.
    """
    names = np.array([name.encode() for name in label_names], np.bytes_)
    arrays = _arrays(sizes)
    layout = lay_out_file(arrays, source=source, label_names=names)
    with write_aside(path) as aside, aside.open("wb") as file:
        for offset, page in layout.pages.items():
            _write_at(file, offset, page)
        shapes = points = 0
        for block in blocks:
            _write_block(file, block, arrays, layout, shapes, points)
            shapes += len(block)
            points += len(block.points)
        assert (shapes, points) == (sizes.shapes, sizes.points), "blocks do not add up to sizes"
        end = np.array([points], arrays["offsets"].dtype)
        _write_at(file, layout.offsets["offsets"] + shapes * end.itemsize, end.tobytes())
        file.truncate(layout.size)


def sizes_of(block: RowBlock) -> Sizes:
    """What a block adds to the totals of its shard."""
    return Sizes(
        shapes=len(block),
        points=len(block.points),
        id_bytes=max(block.id.dtype.itemsize, 1),
        has_part=block.part is not None,
    )


def stored_sizes(path: Path) -> Sizes:
    """Sizes of a shard on disk, from its header alone.

    Raises:
        CorpusError: if it is damaged.
    """
    with _open(path) as file:
        return Sizes(
            shapes=file.dataset("scale").shape[0],
            points=file.dataset("points").shape[0],
            id_bytes=file.dataset("id", "S").dtype.itemsize,
            has_part="part" in file,
        )


def read_block(path: Path) -> RowBlock:
    """A whole shard in memory.

    Raises:
        CorpusError: if it is damaged; shapes and types of the arrays are not compared.
    """
    with _open(path) as file:
        return RowBlock(
            points=file.dataset("points").read(),
            offsets=file.dataset("offsets").read(),
            center=file.dataset("center").read(),
            scale=file.dataset("scale").read(),
            id=file.dataset("id", "S").read().astype(np.bytes_),
            label=file.dataset("label").read(),
            sha256=file.dataset("sha256").read(),
            part=file.dataset("part").read() if "part" in file else None,
        )


def _open(path: Path) -> AbstractContextManager[InertFile]:
    return open_hdf5(path, path, advice="prepare the corpus again", error=CorpusError)


def _part_of(row: Row, *, known: bool) -> NDArray[np.uint8] | None:
    """A row's part labels: unknown if only other rows have them, None if no row has."""
    if row.part is None and known:
        return np.full(len(row.shape.points), UNKNOWN_PART, np.uint8)
    return row.part


def _arrays(sizes: Sizes) -> dict[str, ArraySpec]:
    """The arrays of a shard; the small ones come first, so that they lie together."""
    shapes, points = sizes.shapes, sizes.points
    arrays = {
        "offsets": ArraySpec((shapes + 1,), np.dtype("<i8")),
        "center": ArraySpec((shapes, 3), np.dtype("<f4")),
        "scale": ArraySpec((shapes,), np.dtype("<f4")),
        "label": ArraySpec((shapes,), np.dtype("<i4")),
        "sha256": ArraySpec((shapes, 32), np.dtype("u1")),
        "id": ArraySpec((shapes,), utf8_text(sizes.id_bytes)),
        "points": ArraySpec((points, 3), np.dtype("<i2")),
    }
    if sizes.has_part:
        arrays["part"] = ArraySpec((points,), np.dtype("u1"))
    return arrays


def _write_block(
    file: BinaryIO,
    block: RowBlock,
    arrays: Mapping[str, ArraySpec],
    layout: FileLayout,
    shape: int,
    point: int,
) -> None:
    """Write a block's arrays, its shapes from row ``shape`` on and its points from ``point`` on."""
    part = np.full(len(block.points), UNKNOWN_PART, np.uint8) if block.part is None else block.part
    values: dict[str, NDArray[np.generic]] = {
        "offsets": block.offsets[:-1] + point,
        "center": block.center,
        "scale": block.scale,
        "label": block.label,
        "sha256": block.sha256,
        "id": block.id,
        "points": block.points,
        "part": part,
    }
    for name, spec in arrays.items():
        row = point if name in {"points", "part"} else shape
        row_bytes = spec.dtype.itemsize * int(np.prod(spec.shape[1:]))
        content = np.ascontiguousarray(values[name], np.dtype(spec.dtype.str))
        _write_at(file, layout.offsets[name] + row * row_bytes, content.data)


def _write_at(file: BinaryIO, offset: int, content: bytes | memoryview) -> None:
    file.seek(offset)
    file.write(content)
