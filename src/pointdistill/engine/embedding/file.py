"""The chunks of an embedding on disk while it is computed, and the one file that they become; `index` reads it.

The file is an .npz, readable with numpy alone, or Parquet. It is written chunk by chunk, so that memory does not
grow with the number of shapes.

Sizes: n shapes, F the length of a vector, m vectors of all shapes (or a chunk's) together, b rows of a block.
"""

from __future__ import annotations

import base64
import importlib
import json
import shutil
import struct
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from pointdistill.data.files.files import hold_lock, read_json, write_aside, write_json
from pointdistill.data.files.schema import from_plain, parse_json, refusing_damage, to_plain
from pointdistill.data.meshes.records import LeftOut
from pointdistill.engine.embedding.compute import ShapeFeatures
from pointdistill.engine.features.statistics import (
    OWN_MEAN_FROM,
    measure,
)
from pointdistill.errors import ConfigError, DataError

SUFFIXES = (".npz", ".parquet")

StoredType: TypeAlias = Literal["float32", "float16"]
"""Type of the features in the file."""

STORED_TYPES: tuple[StoredType, ...] = get_args(StoredType)
_NPY_TYPES: dict[StoredType, str] = {"float32": "<f4", "float16": "<f2"}

ALIGNMENT = 64
"""Arrays that are not compressed begin at a multiple of this, in bytes, so that they can be mapped."""

_PADDING = 0xD935  # an extra field that readers of zips skip, as Android's zipalign uses it

INFO = "info"
"""Name of the JSON text that describes how an embedding was made, a 0-d array in an .npz."""

PARQUET_KEY = b"pointdistill"
"""Key of the same text in the metadata of a Parquet file."""

PARQUET_STATISTICS = b"pointdistill.feature_statistics"
"""Key of the feature statistics there, a safetensors file in base64; an .npz holds them as arrays."""

FORMAT = "pointdistill-embedding"
VERSION = 1

BLOCK_BYTES = 8 * 2**20
"""Largest part of one column in memory at a time, in bytes."""


_REQUEST = "request.json"

DIFFERENCES = {
    "format": "another version of this program",
    "version": "another version of this program",
    "features": "another kind of features",
    "encoder_sha256": "another encoder",
    "seed": "another seed",
    "up": "another up axis",
    "inputs": "other inputs",
    "files": "other files",
    "points": "another number of points",
    "draws": "another number of draws",
    "turns": "another number of turns",
    "dtype": "another type of stored features",
    "chunk": "another version of this program",
}
"""What a difference in each entry of an embedding's record is, in words."""

_JOIN_SECONDS = 300.0
"""How long a process waits for the first of those that a launcher started to begin."""

_LOOK_SECONDS = 0.2


@dataclass(slots=True)
class Chunk:
    """Consecutive shapes of a list: their features as they are computed, and the shapes that could not be used."""

    first: int
    size: int
    shapes: dict[int, tuple[str, int, int, ShapeFeatures]] = field(default_factory=dict)
    """By number: id, source, row within the source, features."""

    failed: dict[int, tuple[str, str]] = field(default_factory=dict)
    """By number: id and reason."""

    assumed_up: int = 0
    """Files whose up axis was assumed."""

    left_out: LeftOut = field(default_factory=LeftOut)
    """What the files of its shapes hold besides."""

    @property
    def complete(self) -> bool:
        """Whether every shape is embedded or refused."""
        return len(self.shapes) + len(self.failed) == self.size

    def columns(self) -> dict[str, NDArray[Any]]:
        """The arrays of the chunk's file, with shapes in the order of the list."""
        shapes = [self.shapes[number] for number in sorted(self.shapes)]
        features = [shape_features for _, _, _, shape_features in shapes]
        failed = [self.failed[number] for number in sorted(self.failed)]
        columns: dict[str, NDArray[Any]] = {
            "ids": np.array([name for name, _, _, _ in shapes], np.str_),
            "sources": np.array([source for _, source, _, _ in shapes], np.int32),
            "rows": np.array([row for _, _, row, _ in shapes], np.int64),
            "failed": np.array(json.dumps(failed)),
            "assumed_up": np.array(self.assumed_up),
            "left_out": np.array(json.dumps(to_plain(self.left_out))),
        }
        if features:
            rows = [np.atleast_2d(f.features) for f in features]
            columns["features"] = np.concatenate(rows)
            columns["counts"] = np.array([len(row) for row in rows], np.int64)
            if features[0].positions is not None:
                columns["positions"] = np.concatenate(
                    [f.positions for f in features if f.positions is not None]
                )
        return columns


class WorkFolder:
    """The chunks of an embedding, in a hidden folder beside its output until that is written."""

    def __init__(
        self, output: Path, request: Mapping[str, Any], *, chunks: int, overwrite: bool = False
    ) -> None:
        """Create the folder, or continue with an existing one.

        Args:
            output: the file that the chunks will be joined into.
            request: everything that decides the content of the chunks.
            chunks: number of chunks in all.
            overwrite: whether chunks of another request are replaced.

        Raises:
            DataError: if the folder holds finished chunks of another request.
        """
        self._place(output, chunks)
        earlier = self._request()
        if earlier == json.loads(json.dumps(request)):
            return  # not made anew even if it is empty: other processes may have begun in it
        if overwrite or earlier is None or not any(self.path.glob("chunk-*.npz")):
            shutil.rmtree(self.path, ignore_errors=True)
            write_json(self.path / _REQUEST, request, any_text=True)
        else:
            earlier = earlier if isinstance(earlier, dict) else {}
            keys = sorted({*earlier, *request} - {"width"})  # it follows from the others
            different = [key for key in keys if earlier.get(key) != request.get(key)]
            words = dict.fromkeys(DIFFERENCES.get(key, key) for key in different)
            msg = (
                f"{self.path}: an unfinished embedding, and differs from what was asked for: {', '.join(words)}; "
                "finish it as it was started, have it replaced, or choose another output file"
            )
            raise DataError(msg, settings=("overwrite", "output"))

    @classmethod
    def join(
        cls,
        output: Path,
        request: Mapping[str, Any],
        *,
        chunks: int,
        patience: float | None = None,
        is_written: Callable[[], bool] | None = None,
    ) -> WorkFolder | None:
        """The folder that the first of several processes made for the same request, as soon as it is there.

        Args:
            output: as for a new folder, like ``request`` and ``chunks``.
            request: of the embedding.
            chunks: number of chunks in all.
            patience: seconds to wait for it; None for a few minutes.
            is_written: whether the output is there; None: whether there is any.

        Returns:
            None if the output has been written already.

        Raises:
            DataError: if it does not come.
        """
        work = cls.__new__(cls)
        work._place(output, chunks)
        wanted = json.loads(json.dumps(request))
        patience = _JOIN_SECONDS if patience is None else patience
        until = time.monotonic() + patience
        is_written = is_written or output.exists
        while not is_written():
            if work._request() == wanted:
                return work
            if time.monotonic() > until:
                msg = (
                    f"{output}: the first of the processes has not begun it within {patience:.0f} s; see what it "
                    "says, and start all of them with torchrun or accelerate launch"
                )
                raise DataError(msg)
            time.sleep(_LOOK_SECONDS)
        return None

    def _place(self, output: Path, chunks: int) -> None:
        self.path = output.with_name(f".{output.name}.work")
        self._chunks = chunks

    def _request(self) -> Any:
        """The request of the folder; None if there is none."""
        try:
            return read_json(self.path / _REQUEST, any_text=True)
        except DataError:
            return None

    def missing(self) -> list[int]:
        """Numbers of the chunks that are not on disk yet."""
        return [number for number in range(self._chunks) if not self.has(number)]

    def has(self, number: int) -> bool:
        """Whether a chunk is on disk."""
        return self._file(number).exists()

    def claim(self, number: int) -> ExitStack | None:
        """Keep a missing chunk from other processes until the result is closed, or this process ends.

        Returns:
            None if the chunk is on disk, another process has it, or the folder is gone with the work done.
        """
        lock = self._file(number).with_suffix(".lock")
        busy = DataError(f"{lock}: another process computes this chunk")
        with ExitStack() as claim:
            try:
                claim.enter_context(hold_lock(lock, busy, self._check_there))
            except FileNotFoundError:
                return None
            except DataError as error:
                if error is not busy:
                    raise
                return None
            claim.callback(lock.unlink, missing_ok=True)
            return None if self.has(number) else claim.pop_all()

    def _check_there(self) -> None:
        """Raise FileNotFoundError if the folder is gone."""
        self.path.stat()

    def save(self, number: int, chunk: Chunk) -> None:
        """Write a complete chunk."""
        if not self.path.exists():
            return  # without locks, another process has computed it too, and the output is written
        with write_aside(self._file(number)) as aside:
            np.savez(aside, allow_pickle=False, **chunk.columns())

    def columns(self, *names: str) -> Iterator[dict[str, NDArray[Any]]]:
        """For each chunk in turn, those of the named columns that it has."""
        for number in range(self._chunks):
            path = self._file(number)
            with (
                refusing_damage(path, advice="remove it, and its shapes are embedded again"),
                np.load(path, allow_pickle=False) as stored,
            ):
                yield {name: stored[name] for name in names if name in stored}

    def remove(self) -> None:
        """Delete the folder; called when the output has been written."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self.path / f"chunk-{number:06d}.npz"

    @staticmethod
    def refusals(stored: NDArray[Any]) -> list[tuple[str, str]]:
        """Id and reason of each refused shape, from the column ``failed``."""
        return [(str(name), str(reason)) for name, reason in parse_json(str(stored), any_text=True)]

    @staticmethod
    def left_out(stored: NDArray[Any] | None) -> LeftOut:
        """What files hold besides shapes, from the column ``left_out``; None in a chunk of an earlier version."""
        if stored is None:
            return LeftOut()
        return from_plain(LeftOut, parse_json(str(stored), any_text=True))


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
            several, and its ``dtype`` the type of the features, float32 by default.
        width: F.

    Raises:
        DataError: if a feature is too large for the type.
    """
    ragged = info["features"] in ("patches", "points")
    statistics = {} if ragged else _statistics(work)
    write = _write_parquet if output.suffix.lower() == ".parquet" else _write_npz
    with write_aside(output) as aside:
        write(work, aside, info, statistics, width=width, ragged=ragged)


def _statistics(work: WorkFolder) -> dict[str, NDArray[Any]]:
    """The arrays of the statistics of all chunks' features; none if there are too few shapes."""
    shapes = sum(len(chunk["ids"]) for chunk in work.columns("ids"))
    if shapes < OWN_MEAN_FROM:
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
            blocks = (
                stored_as(dtype, chunk[column]) for chunk in work.columns(column) if column in chunk
            )
            _write_member(archive, name, dtype, shape, blocks)

        _write_member(archive, INFO, *_text(json.dumps(info)))
        member("ids", f"<U{longest}", (shapes,), "ids")
        member("sources", "<i4", (shapes,), "sources")
        member("rows", "<i8", (shapes,), "rows")
        member("features", _NPY_TYPES[_stored_type(info)], (vectors, width), "features")
        for name, value in statistics.items():
            _write_member(archive, name, value.dtype.str, value.shape, iter([value]))
        if ragged:
            _write_member(archive, "offsets", "<i8", (shapes + 1,), _offsets(work))
            member("positions", "<f4", (vectors, 3), "positions")


def _stored_type(info: Mapping[str, Any]) -> StoredType:
    dtype: StoredType = info.get("dtype", "float32")
    return dtype


def stored_as(dtype: str, values: NDArray[Any]) -> NDArray[Any]:
    """Values in the type that they are stored in.

    Raises:
        DataError: if one is too large for it.
    """
    with np.errstate(over="ignore"):
        stored = values.astype(dtype, copy=False)
    if (
        stored.dtype.kind == "f"
        and stored.itemsize == 2
        and (np.isinf(stored) & np.isfinite(values)).any()
    ):
        msg = f"a feature of {np.abs(values).max():.4g} is too large for float16, at most 65504; store float32"
        raise DataError(msg, settings=("dtype",))
    return stored


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
    # An array begins a multiple of 64 bytes after its member does. What lies before: the local header of 30 bytes,
    # the name, the sizes in 64 bits (20 bytes), this field.
    begins = (archive.fp.tell() if archive.fp else 0) + 30 + len(member.filename) + 20 + 4
    member.extra = struct.pack("<HH", _PADDING, -begins % ALIGNMENT) + bytes(-begins % ALIGNMENT)
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
    dtype = _stored_type(info)
    vector = arrow.list_(getattr(arrow, dtype)(), width)
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
                chunk["features"] = stored_as(dtype, chunk["features"])
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
