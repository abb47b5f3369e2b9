"""Embeddings on disk, read in blocks: what `output` wrote, as .npz or Parquet.

Sizes: n shapes, F the length of a vector, b rows of a block.
"""

from __future__ import annotations

import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.engine.embedding.output import INFO, PARQUET_KEY, SUFFIXES, parquet
from pointdistill.errors import DataError

FORMAT = "pointdistill-embedding"
VERSION = 1

BLOCK_BYTES = 32 * 2**20
"""Of one column in memory at a time."""


class Index(ABC):
    """One embedding: how it was made, and its columns block by block."""

    def __init__(self, path: Path, info: Any) -> None:
        if not isinstance(info, dict) or info.get("format") != FORMAT:
            msg = f"{path}: not an embedding; `pointdistill embed` writes one"
            raise DataError(msg)
        if info.get("version") != VERSION:
            msg = f"{path}: format version {info.get('version')!r}, this program reads {VERSION}; update it"
            raise DataError(msg)
        self.path = path
        self.info: dict[str, Any] = info

    @abstractmethod
    def blocks(self, column: str) -> Iterator[NDArray[Any]]:
        """A column (``ids``, ``sources``, ``rows``, ``features``) in blocks of neighbouring rows, in order."""

    def pick(self, column: str, rows: Sequence[int]) -> list[Any]:
        """Values of a column at some rows, in the order asked for."""
        wanted = set(rows)
        found: dict[int, Any] = {}
        first = 0
        for block in self.blocks(column):
            inside = [row for row in wanted if first <= row < first + len(block)]
            found |= {row: block[row - first] for row in inside}
            first += len(block)
        return [found[row] for row in rows]

    def shapes(self) -> int:
        """n."""
        return int(self.info["shapes"])


def open_index(path: Path) -> Index:
    """Open an embedding; costs its description alone.

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


class _NpzIndex(Index):
    def __init__(self, path: Path) -> None:
        try:
            # By hand: numpy leaves a file open that turns out to be no archive.
            with zipfile.ZipFile(path) as archive, archive.open(f"{INFO}.npy") as stream:
                text = np.lib.format.read_array(stream, allow_pickle=False)
            info = json.loads(str(text))
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise _damaged(path, error) from error
        except KeyError:
            info = None
        super().__init__(path, info)

    def blocks(self, column: str) -> Iterator[NDArray[Any]]:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{column}.npy") as stream:
                shape, dtype = _header(stream)
                # Plain slices of a stream: memory is bounded whatever the header claims.
                width = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
                left, most = shape[0], max(1, BLOCK_BYTES // max(1, width))
                while left:
                    content = stream.read(width * min(left, most))
                    rows = len(content) // max(1, width)
                    if rows < min(left, most):
                        msg = f"{column} ends {left - rows:,} rows early"
                        raise ValueError(msg)
                    yield np.frombuffer(content, dtype).reshape(rows, *shape[1:])
                    left -= rows
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise _damaged(self.path, error) from error


def _header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        msg = f"npy version {version}"
        raise ValueError(msg)
    shape, column_first, dtype = np.lib.format.read_array_header_1_0(stream)
    if column_first or dtype.hasobject or not shape or dtype.itemsize > BLOCK_BYTES:
        msg = f"an array of {dtype}, shape {shape}"
        raise ValueError(msg)
    return shape, dtype


class _ParquetIndex(Index):
    def __init__(self, path: Path) -> None:
        arrow, files = parquet()
        try:
            metadata = files.read_metadata(path).metadata or {}
            info = json.loads(metadata.get(PARQUET_KEY, b"null"))
        except (OSError, ValueError, arrow.ArrowException) as error:
            raise _damaged(path, error) from error
        super().__init__(path, info)

    def blocks(self, column: str) -> Iterator[NDArray[Any]]:
        arrow, files = parquet()
        name = column.removesuffix("s") if column != "features" else column
        try:
            with files.ParquetFile(self.path) as file:
                for batch in file.iter_batches(batch_size=8192, columns=[name]):
                    values = batch.column(0)
                    if column == "features":
                        rows = values.flatten().to_numpy()
                        yield rows.reshape(len(values), -1)
                    elif column == "ids":
                        yield np.array(values.to_pylist(), np.str_)
                    else:
                        yield values.to_numpy()
        except (OSError, KeyError, ValueError, arrow.ArrowException) as error:
            raise _damaged(self.path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: not readable as an embedding ({error}); it is damaged or none, embed again"
    )
