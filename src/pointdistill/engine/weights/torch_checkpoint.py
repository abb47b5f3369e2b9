"""Reads checkpoints that other programs wrote with ``torch.save`` as data: nothing in them is executed.

The pickle is interpreted with a short allow-list. Every tensor that it describes is checked to lie inside the
archive's bytes before any of its values is read.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from pointdistill.data.files.pickle_machine import Builder, Globals, Placeholder, Purpose, shown
from pointdistill.data.files.pickles import read_pickle
from pointdistill.engine.weights.torch_zip import LIMITS, Limits, TorchArchive
from pointdistill.errors import CheckpointError, DataError

STATE_DICT = "state_dict"
_PICKLE = "data.pkl"
_PURPOSE = Purpose(
    contents="weights",
    writer="torch.save",
    advice="if the file is your own, save its state_dict alone and import that",
)

_STORAGE_TYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


class Checkpoint:
    """The content of an open file, as ``open_checkpoint`` returns it."""

    def __init__(self, path: Path, file: BufferedReader, limits: Limits) -> None:
        """Read the pickle, and compare every storage that it names with the archive.

        Raises:
            CheckpointError: if the file is refused; one line that begins with its path.
        """
        self.path = path
        self._limits = limits
        with _prefix_errors(path):
            self._archive = TorchArchive(file, limits)
            self._prefix = _find_prefix(self._archive)
            self._check_byte_order()
            self._storages: dict[str, Storage] = {}
            self.content = read_pickle(
                bytes(self._read(_PICKLE, most=limits.pickle_bytes)),
                known=tensor_globals(limits),
                persistent=self._storage,
                limits=limits,
                purpose=_PURPOSE,
            )

    def value(self, *keys: str) -> object:
        """A value in the file's nested dictionaries, or None if there is none."""
        value = self.content
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def state_dict(self) -> dict[str, TensorRecord]:
        """The names and records of the weights.

        Raises:
            CheckpointError: if there are none, or one of them is not a tensor.
        """
        with _prefix_errors(self.path):
            state = self.value(STATE_DICT)
            if not isinstance(state, dict) or not state:
                msg = f"holds no table {STATE_DICT!r} of weights; expected a checkpoint of PyTorch Lightning"
                raise CheckpointError(msg)
            if len(state) > self._limits.members:
                msg = f"has {len(state)} weights; accepted are {self._limits.members}"
                raise CheckpointError(msg)
            records: dict[str, TensorRecord] = {}
            for name, record in state.items():
                if not isinstance(name, str) or not name.isprintable():
                    msg = f"has a weight whose name, {shown(name)}, is no plain text"
                    raise CheckpointError(msg)
                if not isinstance(record, TensorRecord):
                    what = record.name if isinstance(record, Placeholder) else record
                    msg = f"among its weights, {shown(name)} is no tensor but {shown(what)}"
                    raise CheckpointError(msg)
                records[name] = record
            return records

    def tensors(self, records: Mapping[str, TensorRecord]) -> dict[str, Tensor]:
        """The values of some of the weights, on the CPU, in the file's dtype.

        Tensors that share a storage in the file share memory here.

        Raises:
            CheckpointError: if a value is missing or damaged, or they add up to much more than the file holds.
        """
        with _prefix_errors(self.path):
            storages = {record.storage for record in records.values()}
            self._check_total(records.values(), held=sum(s.nbytes for s in storages))
            flat = {storage: self._values(storage) for storage in storages}
            return {
                name: flat[r.storage].as_strided(r.shape, r.stride, r.offset)
                for name, r in records.items()
            }

    def _check_total(self, records: Iterable[TensorRecord], *, held: int) -> None:
        total = sum(r.elements * r.storage.dtype.itemsize for r in records)
        if total > self._limits.held_twice * held:
            msg = f"states tensors of {total} bytes and holds {held}"
            raise CheckpointError(msg)

    def _values(self, storage: Storage) -> Tensor:
        if storage.elements == 0:
            return torch.empty(0, dtype=storage.dtype)
        return torch.frombuffer(self._read(f"data/{storage.key}"), dtype=storage.dtype)

    def _read(self, name: str, *, most: int | None = None) -> bytearray:
        return self._archive.read(f"{self._prefix}/{name}", most=most)

    def _check_byte_order(self) -> None:
        # Absent before torch 2.1, which wrote the machine's own order: little, in practice.
        name = "byteorder"
        if f"{self._prefix}/{name}" in self._archive.members:
            order = bytes(self._read(name, most=16))
            if order != b"little":
                msg = f"its values have the byte order {shown(order.decode('latin-1'))}; accepted is 'little'"
                raise CheckpointError(msg)

    def _storage(self, identity: object) -> object:
        """The storage behind a persistent id: ('storage', type, key, device, number of elements)."""
        match identity:
            case ("storage", torch.dtype() as dtype, str() as key, str(), int() as elements):
                return self._check_storage(Storage(key, dtype, elements))
            case ("storage", Placeholder() as kind, str(), str(), int()):
                return Placeholder(kind.name, [identity])
        msg = "its pickle has a persistent id that is not a storage of torch.save"
        raise CheckpointError(msg)

    def _check_storage(self, storage: Storage) -> Storage:
        """The same storage, if the archive holds exactly the bytes that it states."""
        if not re.fullmatch(r"[0-9]{1,9}", storage.key) or isinstance(storage.elements, bool):
            msg = f"its pickle names a storage {shown(storage.key)}; torch.save numbers them"
            raise CheckpointError(msg)
        member = self._archive.members.get(f"{self._prefix}/data/{storage.key}")
        if member is None or member.file_size != storage.nbytes:
            held = "are missing" if member is None else f"are {member.file_size}"
            msg = (
                f"storage {storage.key} states {storage.elements} values in {storage.nbytes} bytes, which {held}; "
                "copy the file again"
            )
            raise CheckpointError(msg)
        if self._storages.setdefault(storage.key, storage) != storage:
            msg = f"its pickle gives storage {storage.key} two types"
            raise CheckpointError(msg)
        return storage


@contextmanager
def open_checkpoint(path: Path, *, limits: Limits = LIMITS) -> Iterator[Checkpoint]:
    """Open a file of ``torch.save`` (a zip since torch 1.6), and read everything except the tensors' values.

    Raises:
        CheckpointError: if it is missing or refused; one line that begins with the path.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror}); expected a checkpoint file"
        raise CheckpointError(msg) from error
    with file:
        yield Checkpoint(path, file, limits)


@contextmanager
def _prefix_errors(path: Path) -> Iterator[None]:
    """Prefix errors with the path of the file."""
    try:
        yield
    except (CheckpointError, DataError, OSError) as error:
        msg = f"{path}: {error}"
        raise CheckpointError(msg) from error


def _find_prefix(archive: TorchArchive) -> str:
    """The name of the folder that contains all of the archive's members."""
    pickles = [n for n in archive.members if n.count("/") == 1 and n.endswith(f"/{_PICKLE}")]
    if len(pickles) != 1:
        msg = f"holds {len(pickles)} pickles {_PICKLE}; expected the one of torch.save"
        raise CheckpointError(msg)
    return pickles[0].removesuffix(f"/{_PICKLE}")


@dataclass(frozen=True, slots=True)
class Storage:
    """A flat array of values in the archive, exactly as large as the pickle states."""

    key: str
    dtype: torch.dtype
    elements: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor that the file describes: a view that lies inside a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of values, at most as many as the storage has."""
        return math.prod(self.shape)


def _ordered_dict(arguments: tuple[object, ...]) -> object:
    """``collections.OrderedDict``; a pickle makes it empty and fills it later."""
    return Placeholder("collections.OrderedDict", [arguments]) if arguments else OrderedDict()


def _parameter(arguments: tuple[object, ...]) -> object:
    """``torch.nn.Parameter``: its tensor."""
    if arguments and isinstance(arguments[0], TensorRecord | Placeholder):
        return arguments[0]
    msg = "its pickle makes a parameter of something that is no tensor"
    raise CheckpointError(msg)


def _tensor(arguments: tuple[object, ...], limits: Limits) -> object:
    """A view of a storage: (storage, offset, shape, strides, needs gradient, hooks and, optionally, metadata)."""
    match arguments:
        case (Storage() as storage, offset, tuple() as shape, tuple() as stride, _, _):
            return _record(storage, offset, shape, stride, limits)
        case (Storage() as storage, offset, tuple() as shape, tuple() as stride, _, _, None):
            return _record(storage, offset, shape, stride, limits)
        case (Storage() | Placeholder(), _, _, _, _, _, *_):
            # Of an unknown type, or with metadata: negated or conjugated, which the bytes do not show.
            return Placeholder("torch._utils._rebuild_tensor_v2", [arguments])
    msg = "its pickle makes a tensor of something that is no storage"
    raise CheckpointError(msg)


def _record(
    storage: Storage,
    offset: object,
    shape: tuple[object, ...],
    stride: tuple[object, ...],
    limits: Limits,
) -> TensorRecord:
    """The tensor, if it lies inside its storage and does not have more values."""
    counts = None
    if len(shape) == len(stride) <= limits.dimensions:
        counts = _whole_numbers((offset, *shape, *stride))
    if counts is None:
        msg = (
            f"a tensor in storage {storage.key} has a shape, stride or offset that is no count, or more than "
            f"{limits.dimensions} axes"
        )
        raise CheckpointError(msg)
    start, sizes, steps = counts[0], counts[1 : 1 + len(shape)], counts[1 + len(shape) :]
    elements = math.prod(sizes)
    last = start + sum((n - 1) * s for n, s in zip(sizes, steps, strict=True))
    if elements > storage.elements or (elements and last >= storage.elements):
        msg = (
            f"a tensor states {shown(str(sizes))} values from {start} on in storage {storage.key}, "
            f"which holds {storage.elements}"
        )
        raise CheckpointError(msg)
    # The stride of an axis of length one has no meaning and may be any number, so it must not reach as_strided.
    steps = tuple(s if n > 1 else 1 for n, s in zip(sizes, steps, strict=True))
    return TensorRecord(storage, start, sizes, steps)


def _whole_numbers(values: tuple[object, ...]) -> tuple[int, ...] | None:
    """The values, if all are non-negative integers."""
    numbers = tuple(v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0)
    return numbers if len(numbers) == len(values) else None


def tensor_globals(limits: Limits) -> Globals:
    """The allow-list: every global that the pickle of tensors in a file of ``torch.save`` may name."""
    return {
        ("collections", "OrderedDict"): Builder(_ordered_dict),
        ("torch._utils", "_rebuild_parameter"): Builder(_parameter),
        ("torch._utils", "_rebuild_tensor_v2"): Builder(lambda a: _tensor(a, limits)),
        ("torch.storage", "UntypedStorage"): torch.uint8,
        **{("torch", name): dtype for name, dtype in _STORAGE_TYPES.items()},
    }
