"""One HDF5 file of a few thousand ragged shapes: whole or absent, and the same bytes every time.

``docs/corpus-format.md`` describes the file for readers without this program; keep the two in step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from pointdistill.data.corpus.codec import Quantised, quantise
from pointdistill.data.corpus.skeleton import ArraySpec, Skeleton, make_skeleton, utf8_text
from pointdistill.data.files import write_aside
from pointdistill.errors import DataError

UNKNOWN_LABEL = -1
UNKNOWN_PART = 255


@dataclass(frozen=True, slots=True)
class Row:
    """One shape on its way into a shard; `make_row` checks it. Sizes: n points."""

    id: str
    shape: Quantised
    label: int
    part: NDArray[np.uint8] | None
    """(n,) uint8, the part each point belongs to; None where the source has no parts."""


@dataclass(frozen=True, slots=True)
class PackedShapes:
    """Consecutive rows of a shard in memory. Sizes: n shapes, T points of all of them."""

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
    """What must be known of all blocks of a shard before the first is written."""

    shapes: int
    points: int
    id_bytes: int
    has_part: bool

    def __add__(self, other: Sizes) -> Sizes:
        """Sizes of the blocks of both."""
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


def encode(rows: Sequence[Row], *, source: str, label_names: Sequence[str]) -> PackedShapes:
    """Lay rows one behind the other and take each one's checksum."""
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
    return PackedShapes(
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
    """SHA-256 of one shape: what it is called, where it is, and its points; 32 bytes.

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
    path: Path,
    blocks: Iterable[PackedShapes],
    sizes: Sizes,
    *,
    source: str,
    label_names: Sequence[str],
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
    skeleton = make_skeleton(arrays, source=source, label_names=names)
    with write_aside(path) as aside, aside.open("wb") as file:
        for offset, page in skeleton.pages.items():
            _write_at(file, offset, page)
        shapes = points = 0
        for block in blocks:
            _write_block(file, block, arrays, skeleton, shapes, points)
            shapes += len(block)
            points += len(block.points)
        assert (shapes, points) == (sizes.shapes, sizes.points), "blocks do not add up to sizes"
        end = np.array([points], arrays["offsets"].dtype)
        _write_at(file, skeleton.offsets["offsets"] + shapes * end.itemsize, end.tobytes())
        file.truncate(skeleton.size)


def sizes_of(block: PackedShapes) -> Sizes:
    """What a block adds to its shard."""
    return Sizes(
        shapes=len(block),
        points=len(block.points),
        id_bytes=max(block.id.dtype.itemsize, 1),
        has_part=block.part is not None,
    )


def stored_sizes(path: Path) -> Sizes:
    """Sizes of a shard on disk, from its header alone."""
    with h5py.File(path, "r") as file:
        return Sizes(
            shapes=len(file["scale"]),
            points=len(file["points"]),
            id_bytes=file["id"].dtype.itemsize,
            has_part="part" in file,
        )


def read_block(path: Path) -> PackedShapes:
    """A whole shard in memory."""
    with h5py.File(path, "r") as file:
        return PackedShapes(
            points=file["points"][()],
            offsets=file["offsets"][()],
            center=file["center"][()],
            scale=file["scale"][()],
            id=file["id"][()].astype(np.bytes_),
            label=file["label"][()],
            sha256=file["sha256"][()],
            part=file["part"][()] if "part" in file else None,
        )


def _part_of(row: Row, *, known: bool) -> NDArray[np.uint8] | None:
    """A row's part labels; unknown ones where only other rows have them, None where none has."""
    if row.part is None and known:
        return np.full(len(row.shape.points), UNKNOWN_PART, np.uint8)
    return row.part


def _arrays(sizes: Sizes) -> dict[str, ArraySpec]:
    """The arrays of a shard, the small ones first, so that they lie together."""
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
    block: PackedShapes,
    arrays: Mapping[str, ArraySpec],
    skeleton: Skeleton,
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
        _write_at(file, skeleton.offsets[name] + row * row_bytes, content.data)


def _write_at(file: BinaryIO, offset: int, content: bytes | memoryview) -> None:
    file.seek(offset)
    file.write(content)
