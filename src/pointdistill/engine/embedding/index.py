"""Reads an embedding file: how it was made, and its columns block by block.

The file may come from elsewhere, so its description is checked, and every column is compared with it before a
value is used. Memory does not grow with the number of shapes.

Sizes: n shapes, F the length of a vector, m vectors of all shapes together, b rows of a block.
"""

from __future__ import annotations

import base64
import functools
import math
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from pointdistill.data.files.files import read_exactly
from pointdistill.data.files.schema import (
    MOST_RECORD_BYTES,
    check_text,
    from_plain,
    parse_json,
    read_at_most,
    refusing_damage,
    short_repr,
)
from pointdistill.data.meshes.records import Axis
from pointdistill.data.sources.paths import PathKind
from pointdistill.engine.embedding.compute import PER_SHAPE, Draws, FeatureKind
from pointdistill.engine.embedding.file import (
    BLOCK_BYTES,
    FORMAT,
    INFO,
    PARQUET_KEY,
    PARQUET_STATISTICS,
    SUFFIXES,
    VERSION,
    StoredType,
    parquet,
)
from pointdistill.engine.features.statistics import (
    ARRAYS,
    FeatureStatistics,
    statistics_from,
)
from pointdistill.errors import ConfigError, DataError
from pointdistill.model.config import MOST_POINTS

_ADVICE = "it is not readable as an embedding, embed again"
# Of a zip's member; ends with the lengths of its name and extra field.
_LOCAL_HEADER = struct.Struct("<26xHH")


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedInput:
    """A file, folder, archive or corpus that was embedded."""

    kind: PathKind
    path: str
    given: str
    """As it was named."""

    def __post_init__(self) -> None:
        if "\0" in self.path:
            msg = "inputs.path holds a zero byte"
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingInfo:
    """The part of an embedding's description that is read again."""

    features: FeatureKind
    width: int
    encoder: str
    encoder_sha256: str
    points: int
    draws: int
    """Draws at each angle."""

    seed: int
    up: Axis
    inputs: tuple[EmbeddedInput, ...]
    shapes: int
    assumed_up: int
    failed: tuple[tuple[str, str], ...]
    turns: int = 1
    """Angles; embeddings of earlier versions turned nothing."""

    dtype: StoredType = "float32"
    """Of the features."""

    def __post_init__(self) -> None:
        for name in ("width", "points", "draws", "turns", "shapes"):
            if not 1 <= getattr(self, name) < 2**40:
                msg = f"{name} must be at least 1, got {getattr(self, name)}"
                raise ConfigError(msg)
        draws = self.draws * self.turns
        if self.points * draws > 8 * MOST_POINTS:
            msg = f"{draws} draws of {self.points} points are more than {8 * MOST_POINTS:,}"
            raise ConfigError(msg)
        if self.seed < 0:
            msg = f"seed must not be negative, got {self.seed}"
            raise ConfigError(msg)

    @property
    def chosen_draws(self) -> Draws:
        """Which draws of each shape were used."""
        return Draws(self.points, self.draws, self.turns)


@dataclass(frozen=True, slots=True)
class Column:
    """What a column of an embedding file must be."""

    kind: str
    """Kind of its type, as NumPy names it."""

    per_shape: bool = True
    """Whether it has a row for each shape; otherwise one for each vector."""

    width: Callable[[EmbeddingInfo], tuple[int, ...]] = lambda _: ()
    """The shape of a row."""

    extra: int = 0
    """Rows that it has beyond those."""


COLUMNS = {
    "ids": Column("U"),
    "sources": Column("i"),
    "rows": Column("i"),
    "features": Column("f", per_shape=False, width=lambda info: (info.width,)),
    "offsets": Column("i", extra=1),
    "positions": Column("f", per_shape=False, width=lambda _: (3,)),
}
"""Every column that an embedding may have; a file with another one is read without it."""


class Index(ABC):
    """An embedding file: how it was made, and its columns block by block."""

    def __init__(self, path: Path, info: Any) -> None:
        if not isinstance(info, dict) or info.get("format") != FORMAT:
            msg = f"{path}: not an embedding; `pointdistill embed` writes one"
            raise DataError(msg)
        if info.get("version") != VERSION:
            found = short_repr(info.get("version"))
            msg = f"{path}: format version {found}, this program reads {VERSION}; update it"
            raise DataError(msg)
        self.path = path
        self.info: dict[str, Any] = info

    @functools.cached_property
    def facts(self) -> EmbeddingInfo:
        """The description, checked.

        Raises:
            DataError: if it is not what was written.
        """
        with refusing_damage(self.path, advice=_ADVICE):
            return from_plain(EmbeddingInfo, self.info, partial=True)

    def expected(self, column: str, rows: int) -> tuple[int, ...]:
        """The shape of a column, of which a file says that it has ``rows`` rows.

        Raises:
            DataError: if there cannot be so many.
        """
        known = COLUMNS[column]
        one_each = known.per_shape or self.facts.features in PER_SHAPE
        if one_each and rows != self.facts.shapes + known.extra:
            msg = f"{column} has {rows:,} rows for {self.facts.shapes:,} shapes"
            raise DataError(msg)
        return rows, *known.width(self.facts)

    @abstractmethod
    def blocks(self, column: str) -> Iterator[NDArray[Any]]:
        """A column (``ids``, ``sources``, ``rows``, ``features``), block by block, in the order of the rows."""

    @abstractmethod
    def statistics_arrays(self, width: int) -> Mapping[str, NDArray[Any]]:
        """The arrays of the stored statistics, at most (width, width); none if there are none."""

    def statistics(self, width: int) -> FeatureStatistics | None:
        """Statistics of features of length ``width``, if they are stored: embeddings of few shapes have none.

        Raises:
            DataError: if they are damaged, or of features of another length.
        """
        arrays = self.statistics_arrays(width)
        return statistics_from(arrays, width=width, path=self.path) if arrays else None

    def pick(self, column: str, rows: Sequence[int]) -> list[Any]:
        """The values of a column at ``rows``, in that order."""
        values: dict[int, Any] = {}
        first = 0
        for block in self.blocks(column):
            inside = [row for row in set(rows) if first <= row < first + len(block)]
            with refusing_damage(self.path, advice=_ADVICE):
                values |= {row: _checked(block[row - first]) for row in inside}
            first += len(block)
        return [values[row] for row in rows]

    def shapes(self) -> int:
        """Number of shapes."""
        return self.facts.shapes


class MemoryIndex(Index):
    """An embedding in memory, whose shapes may have no file: their source is -1."""

    def __init__(self, info: dict[str, Any], columns: Mapping[str, NDArray[Any]]) -> None:
        super().__init__(Path("the given embedding"), info)
        self._columns = columns

    def blocks(self, column: str) -> Iterator[NDArray[Any]]:
        """A column as one block."""
        yield self._columns[column]

    def statistics_arrays(self, width: int) -> Mapping[str, NDArray[Any]]:
        """None."""
        del width  # none are stored; they are measured where they are needed
        return {}


def _checked(value: Any) -> Any:
    """A value; text is checked, since it will be printed, and may be part of a path."""
    return check_text(value) if isinstance(value, str) else value


def open_index(path: Path) -> Index:
    """Open an embedding; only its description is read.

    Raises:
        DataError: if there is none at ``path``, or it is damaged or of a newer version.
        ConfigError: for Parquet without pyarrow.
    """
    if not path.is_file():
        msg = f"{path}: no such file; expected an embedding that `pointdistill embed` wrote"
        raise DataError(msg)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        msg = f"{path}: not an embedding; expected a file that ends in {' or '.join(SUFFIXES)}"
        raise DataError(msg)
    return _ParquetIndex(path) if suffix == ".parquet" else _NpzIndex(path)


def is_embedding(path: Path) -> bool:
    """Whether a file is an embedding that can be read; a cloud may have the same ending."""
    if path.suffix.lower() not in SUFFIXES:
        return False
    try:
        open_index(path)
    except (DataError, ConfigError):
        return False
    return True


class _NpzIndex(Index):
    def __init__(self, path: Path) -> None:
        with refusing_damage(path, advice=_ADVICE), zipfile.ZipFile(path) as archive:
            # Not np.load, which leaves the file open if it turns out not to be an archive.
            present = f"{INFO}.npy" in archive.namelist()
            info = _read_info(archive) if present else None
            super().__init__(path, info)
            for name in COLUMNS:
                if f"{name}.npy" in archive.namelist():
                    with archive.open(f"{name}.npy") as stream:
                        self._header(archive, name, stream)

    def blocks(self, column: str) -> Iterator[NDArray[Any]]:
        with (
            refusing_damage(self.path, advice=_ADVICE),
            zipfile.ZipFile(self.path) as archive,
            archive.open(f"{column}.npy") as stream,
        ):
            shape, dtype = self._header(archive, column, stream)
            row_bytes = dtype.itemsize * math.prod(shape[1:])
            most = max(1, BLOCK_BYTES // row_bytes)
            stored = self._stored(archive, column, stream.tell())
            read = stream.read if stored is None else stored.read
            for first in range(0, shape[0], most):
                rows = min(most, shape[0] - first)
                content = read(row_bytes * rows)
                if len(content) < row_bytes * rows:
                    missing = shape[0] - first - len(content) // row_bytes
                    msg = f"{column} ends {missing:,} rows early"
                    raise DataError(msg)
                if stored is not None and first + rows == shape[0]:
                    stored.check()
                if dtype.kind == "U":
                    content.decode("utf-32-le")  # NumPy takes any number for a character
                yield np.frombuffer(content, dtype).reshape(rows, *shape[1:])

    def pick(self, column: str, rows: Sequence[int]) -> list[Any]:
        with (
            refusing_damage(self.path, advice=_ADVICE),
            zipfile.ZipFile(self.path) as archive,
            archive.open(f"{column}.npy") as stream,
        ):
            shape, dtype = self._header(archive, column, stream)
            stored = self._stored(archive, column, stream.tell())
            if stored is None:
                return super().pick(column, rows)
            row_bytes = dtype.itemsize * math.prod(shape[1:])
            contents = [stored.at(row * row_bytes, row_bytes) for row in rows]
            values = (np.frombuffer(one, dtype).reshape(1, *shape[1:])[0] for one in contents)
            return [_checked(value) for value in values]

    def _stored(self, archive: zipfile.ZipFile, column: str, begins: int) -> _StoredMember | None:
        """A column as bytes of the file, ``begins`` bytes into its member; None if it is compressed."""
        member = archive.getinfo(f"{column}.npy")
        if member.compress_type != zipfile.ZIP_STORED or archive.fp is None:
            return None
        return _StoredMember(archive.fp.fileno(), member, begins)

    def _header(
        self, archive: zipfile.ZipFile, column: str, stream: IO[bytes]
    ) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and type of a column, which must be those of its kind, and fill its member.

        Raises:
            DataError: if they do not.
        """
        shape, dtype = _npy_header(stream)
        fits = bool(shape) and dtype.kind == COLUMNS[column].kind and dtype.isnative
        if not fits or shape != self.expected(column, shape[0]):
            msg = f"{column} is an array of {dtype}, shape {shape}"
            raise DataError(msg)
        size = dtype.itemsize * math.prod(shape)
        stored = archive.getinfo(f"{column}.npy").file_size - stream.tell()
        if size != stored or not 0 < dtype.itemsize <= BLOCK_BYTES:
            msg = f"{column} claims {size:,} bytes of {stored:,}"
            raise DataError(msg)
        return shape, dtype

    def statistics_arrays(self, width: int) -> Mapping[str, NDArray[Any]]:
        with refusing_damage(self.path, advice=_ADVICE), zipfile.ZipFile(self.path) as archive:
            stored = archive.namelist()
            return {n: _small_array(archive, n, width) for n in ARRAYS if f"{n}.npy" in stored}


class _StoredMember:
    """The array of a member that is not compressed, read where it lies; what is read in turn can be checked."""

    def __init__(self, descriptor: int, member: zipfile.ZipInfo, begins: int) -> None:
        self._descriptor = descriptor
        header = read_exactly(descriptor, _LOCAL_HEADER.size, member.header_offset)
        *_, name, extra = _LOCAL_HEADER.unpack(header)
        start = member.header_offset + _LOCAL_HEADER.size + name + extra
        self._begins = self._next = start + begins
        self._checksum = zlib.crc32(read_exactly(descriptor, begins, start))
        self._expected = member.CRC

    def at(self, offset: int, size: int) -> bytes:
        """Bytes of the array from ``offset`` on."""
        content = read_exactly(self._descriptor, size, self._begins + offset)
        if len(content) < size:
            msg = "the file was cut short"
            raise DataError(msg)
        return content

    def read(self, size: int) -> bytes:
        """The next bytes of the array; fewer if the file ends."""
        content = read_exactly(self._descriptor, size, self._next)
        self._next += len(content)
        self._checksum = zlib.crc32(content, self._checksum)
        return content

    def check(self) -> None:
        """Raise DataError if the bytes that were read are not those that were written."""
        if self._checksum != self._expected:
            msg = "its checksum is another"
            raise DataError(msg)


def _small_array(archive: zipfile.ZipFile, name: str, most: int) -> NDArray[Any]:
    """A whole array of numbers, at most (most, most).

    Raises:
        DataError: if it is anything else.
    """
    with archive.open(f"{name}.npy") as stream:
        shape, dtype = _npy_header(stream)
        is_small = len(shape) <= 2 and max(shape, default=0) <= most
        if not is_small or dtype.kind not in "fi" or not dtype.isnative:
            msg = f"{name} is an array of {dtype}, shape {shape}"
            raise DataError(msg)
        content = read_at_most(stream, dtype.itemsize * math.prod(shape))
    return np.frombuffer(content, dtype).reshape(shape)


def _read_info(archive: zipfile.ZipFile) -> Any:
    """The description, whose header must not claim more than is there."""
    with archive.open(f"{INFO}.npy") as stream:
        shape, dtype = _npy_header(stream)
        content = read_at_most(stream, 4 * MOST_RECORD_BYTES)
    if shape != () or dtype.kind != "U" or dtype.itemsize != len(content):
        msg = f"{INFO} is an array of {dtype}, shape {shape}, of {len(content):,} bytes"
        raise DataError(msg)
    return parse_json(str(np.frombuffer(content, dtype)[0]), any_text=True)


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        msg = f"npy version {version}"
        raise DataError(msg)
    shape, column_first, dtype = np.lib.format.read_array_header_1_0(stream)
    if column_first or dtype.hasobject or any(length < 0 for length in shape):
        msg = f"an array of {dtype}, shape {shape}"
        raise DataError(msg)
    return shape, dtype


class _ParquetIndex(Index):
    def __init__(self, path: Path) -> None:
        arrow, files = parquet()
        with refusing_damage(path, advice=_ADVICE), files.ParquetFile(path) as file:
            metadata = file.metadata.metadata or {}
            text = metadata.get(PARQUET_KEY)
            super().__init__(path, None if text is None else parse_json(text, any_text=True))
            if file.metadata.num_rows != self.facts.shapes:
                msg = f"{file.metadata.num_rows:,} rows for {self.facts.shapes:,} shapes"
                raise DataError(msg)
            types = {field.name: field.type for field in file.schema_arrow}
            vector = arrow.list_(getattr(arrow, self.facts.dtype)(), self.facts.width)
            several = self.facts.features not in PER_SHAPE
            expected = {
                "id": arrow.string(),
                "source": arrow.int32(),
                "row": arrow.int64(),
                "features": arrow.list_(vector) if several else vector,
            }
            for name, kind in expected.items():
                if not types.get(name, arrow.null()).equals(kind):
                    msg = f"{name} is {types.get(name)}, expected {kind}"
                    raise DataError(msg)
        self._stored_statistics: bytes | None = metadata.get(PARQUET_STATISTICS)

    def statistics_arrays(self, width: int) -> Mapping[str, NDArray[Any]]:
        del width  # the metadata was read whole when the file was opened
        if self._stored_statistics is None:
            return {}
        with refusing_damage(self.path, advice=_ADVICE):
            content = base64.b64decode(self._stored_statistics, validate=True)
            arrays: dict[str, NDArray[Any]] = safetensors.numpy.load(content)
            return arrays

    def blocks(self, column: str) -> Iterator[NDArray[Any]]:
        _, files = parquet()
        name = column.removesuffix("s") if column != "features" else column
        batch_rows = max(1, min(8192, BLOCK_BYTES // (4 * self.facts.width)))
        with refusing_damage(self.path, advice=_ADVICE), files.ParquetFile(self.path) as file:
            for batch in file.iter_batches(batch_size=batch_rows, columns=[name]):
                values = batch.column(0)
                if values.null_count:
                    msg = f"{name} has rows without a value"
                    raise DataError(msg)
                if column == "features":
                    yield values.flatten().to_numpy().reshape(len(values), -1)
                elif column == "ids":
                    yield np.array(values.to_pylist(), np.str_)
                else:
                    yield values.to_numpy()
