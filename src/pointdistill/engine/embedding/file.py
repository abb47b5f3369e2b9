"""Writes an embedding's chunks as one file; `index` reads it.

The file is an .npz, readable with numpy alone, or Parquet. It is written chunk by chunk, so that memory does not
grow with the number of shapes.

Sizes: n shapes, F the length of a vector, m vectors of all shapes together, b rows of a block.
"""

from __future__ import annotations

import base64
import importlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from pointdistill.data.files.files import write_aside
from pointdistill.engine.embedding.loop import WorkFolder
from pointdistill.engine.features.statistics import (
    WHITENED_FROM,
    measure,
)
from pointdistill.errors import ConfigError

SUFFIXES = (".npz", ".parquet")

INFO = "info"
"""Name of the JSON text that describes how an embedding was made, a 0-d array in an .npz."""

PARQUET_KEY = b"pointdistill"
"""Key of the same text in the metadata of a Parquet file."""

PARQUET_STATISTICS = b"pointdistill.feature_statistics"
"""Key of the feature statistics there, a safetensors file in base64; an .npz holds them as arrays."""

FORMAT = "pointdistill-embedding"
VERSION = 1

BLOCK_BYTES = 32 * 2**20
"""Largest part of one column in memory at a time, in bytes."""


def check_output(output: Path) -> None:
    """Check that the file can be written in the format of its suffix.

    Raises:
        ConfigError: for another ending, a folder in its place, or Parquet without pyarrow.
    """
    if output.suffix.lower() not in SUFFIXES:
        msg = f"the output must end in {' or '.join(SUFFIXES)}, got {str(output)!r}"
        raise ConfigError(msg, settings=("output",))
    if output.is_dir():
        msg = f"{output} is a folder; name a file that ends in {' or '.join(SUFFIXES)}"
        raise ConfigError(msg, settings=("output",))
    if output.suffix.lower() == ".parquet":
        parquet()


def parquet() -> tuple[Any, Any]:
    """The modules ``pyarrow`` and ``pyarrow.parquet``.

    Raises:
        ConfigError: if they are not installed.
    """
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        msg = (
            "Parquet needs pyarrow; pip install 'pointdistill[parquet]', or end the output in .npz"
        )
        raise ConfigError(msg) from error


def write_output(work: WorkFolder, output: Path, info: Mapping[str, Any], *, width: int) -> None:
    """Write all chunks as one file; a failure leaves no file behind.

    Args:
        work: a folder with all its chunks.
        output: a path with one of ``SUFFIXES``.
        info: how the embedding was made; its ``features`` decides whether there is one vector per shape or
            several.
        width: F.
    """
    ragged = info["features"] in ("patches", "points")
    statistics = {} if ragged else _statistics(work)
    write = _write_parquet if output.suffix.lower() == ".parquet" else _write_npz
    with write_aside(output) as aside:
        write(work, aside, info, statistics, width=width, ragged=ragged)


def _statistics(work: WorkFolder) -> dict[str, NDArray[Any]]:
    """The arrays of the statistics of all chunks' features; none if there are too few shapes."""
    shapes = sum(len(chunk["ids"]) for chunk in work.columns("ids"))
    if shapes < WHITENED_FROM:
        return {}
    blocks = (chunk["features"] for chunk in work.columns("features") if "features" in chunk)
    statistics = measure(blocks, shapes)
    return {} if statistics is None else statistics.arrays()


def _write_npz(
    work: WorkFolder,
    path: Path,
    info: Mapping[str, Any],
    statistics: Mapping[str, NDArray[Any]],
    *,
    width: int,
    ragged: bool,
) -> None:
    shapes = vectors = 0
    longest = 1
    for chunk in work.columns("ids", "counts"):
        shapes += len(chunk["ids"])
        vectors += int(chunk["counts"].sum()) if "counts" in chunk else 0
        longest = max(longest, chunk["ids"].dtype.itemsize // 4)
    with zipfile.ZipFile(path, "w") as archive:

        def member(name: str, dtype: str, shape: tuple[int, ...], column: str) -> None:
            blocks = (chunk[column] for chunk in work.columns(column) if column in chunk)
            _write_member(archive, name, dtype, shape, blocks)

        _write_member(archive, INFO, *_text(json.dumps(info)))
        member("ids", f"<U{longest}", (shapes,), "ids")
        member("sources", "<i4", (shapes,), "sources")
        member("rows", "<i8", (shapes,), "rows")
        member("features", "<f4", (vectors, width), "features")
        for name, value in statistics.items():
            _write_member(archive, name, value.dtype.str, value.shape, iter([value]))
        if ragged:
            _write_member(archive, "offsets", "<i8", (shapes + 1,), _offsets(work))
            member("positions", "<f4", (vectors, 3), "positions")


def _text(text: str) -> tuple[str, tuple[()], Iterator[NDArray[Any]]]:
    value = np.array(text)
    return value.dtype.str, (), iter([value])


def _offsets(work: WorkFolder) -> Iterator[NDArray[np.int64]]:
    """The first vector of each shape, and one past the last vector of all."""
    total = 0
    yield np.zeros(1, np.int64)
    for chunk in work.columns("counts"):
        if "counts" in chunk:
            yield total + np.cumsum(chunk["counts"])
            total += int(chunk["counts"].sum())


def _write_member(
    archive: zipfile.ZipFile,
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    blocks: Iterator[NDArray[Any]],
) -> None:
    member = zipfile.ZipInfo(f"{name}.npy")
    # Features hardly compress. Names do: NumPy stores them at a fixed length with four bytes per character.
    member.compress_type = zipfile.ZIP_DEFLATED if "U" in dtype else zipfile.ZIP_STORED
    with archive.open(member, "w", force_zip64=True) as stream:
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for block in blocks:
            stream.write(block.astype(dtype, copy=False).tobytes())


def _write_parquet(
    work: WorkFolder,
    path: Path,
    info: Mapping[str, Any],
    statistics: Mapping[str, NDArray[Any]],
    *,
    width: int,
    ragged: bool,
) -> None:
    arrow, files = parquet()
    vector = arrow.list_(arrow.float32(), width)
    fields = [("id", arrow.string()), ("source", arrow.int32()), ("row", arrow.int64())]
    if ragged:
        place = arrow.list_(arrow.float32(), 3)
        fields += [("features", arrow.list_(vector)), ("positions", arrow.list_(place))]
    else:
        fields.append(("features", vector))
    metadata = {PARQUET_KEY: json.dumps(info).encode()}
    if statistics:
        metadata[PARQUET_STATISTICS] = base64.b64encode(safetensors.numpy.save(dict(statistics)))
    schema = arrow.schema(fields, metadata=metadata)
    columns = ("ids", "sources", "rows", "counts", "features", "positions")
    with files.ParquetWriter(path, schema) as writer:
        for chunk in work.columns(*columns):
            if "features" in chunk:
                arrays = [*_plain_columns(arrow, chunk), *_vectors(arrow, chunk, ragged=ragged)]
                writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))


def _plain_columns(arrow: Any, chunk: Mapping[str, NDArray[Any]]) -> list[Any]:
    names = ("ids", "sources", "rows")
    return [arrow.array(chunk[name].tolist() if name == "ids" else chunk[name]) for name in names]


def _vectors(arrow: Any, chunk: Mapping[str, NDArray[Any]], *, ragged: bool) -> list[Any]:
    """The columns of vectors: one list per shape, or a list of lists if a shape has several vectors."""
    fixed: Callable[..., Any] = arrow.FixedSizeListArray.from_arrays
    arrays = []
    for name in ("features", "positions") if ragged else ("features",):
        values = fixed(arrow.array(chunk[name].ravel()), chunk[name].shape[1])
        if ragged:
            ends = np.concatenate([[0], np.cumsum(chunk["counts"])]).astype(np.int32)
            values = arrow.ListArray.from_arrays(arrow.array(ends), values)
        arrays.append(values)
    return arrays
