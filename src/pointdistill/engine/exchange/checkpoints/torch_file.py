"""A file of ``torch.save``: which tensors it holds, checked against its bytes, and their values on request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from pointdistill.data.pickles import Placeholder, Purpose, read_pickle, shown
from pointdistill.engine.exchange.checkpoints.archive import TorchArchive
from pointdistill.engine.exchange.checkpoints.limits import LIMITS, Limits
from pointdistill.engine.exchange.checkpoints.tensor_records import (
    Storage,
    TensorRecord,
    tensor_globals,
)
from pointdistill.errors import CheckpointError, DataError

STATE_DICT = "state_dict"
_PICKLE = "data.pkl"
_PURPOSE = Purpose(
    contents="weights",
    writer="torch.save",
    advice="if the file is your own, save its state_dict alone and import that",
)


class Checkpoint:
    """What an open file holds. Make one with ``open_checkpoint``."""

    def __init__(self, path: Path, file: BufferedReader, limits: Limits) -> None:
        """Read the pickle, and compare every storage it names with the archive.

        Raises:
            CheckpointError: if the file is refused; one line that begins with its path.
        """
        self.path = path
        self._limits = limits
        with _naming(path):
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
        """A value of nested dictionaries in the file, or None where there is none."""
        found = self.content
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def state_dict(self) -> dict[str, TensorRecord]:
        """The weights' names and records.

        Raises:
            CheckpointError: if there are none, or something among them is no tensor.
        """
        with _naming(self.path):
            found = self.value(STATE_DICT)
            if not isinstance(found, dict) or not found:
                msg = f"holds no table {STATE_DICT!r} of weights; expected a checkpoint of PyTorch Lightning"
                raise CheckpointError(msg)
            if len(found) > self._limits.members:
                msg = f"has {len(found)} weights; accepted are {self._limits.members}"
                raise CheckpointError(msg)
            records: dict[str, TensorRecord] = {}
            for name, record in found.items():
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
            CheckpointError: if a value is missing or damaged, or together they are much more than is held.
        """
        with _naming(self.path):
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
        name = "byteorder"  # Absent before torch 2.1, which wrote the machine's own, in practice little.
        if f"{self._prefix}/{name}" in self._archive.members:
            order = bytes(self._read(name, most=16))
            if order != b"little":
                msg = f"its values have the byte order {shown(order.decode('latin-1'))}; accepted is 'little'"
                raise CheckpointError(msg)

    def _storage(self, identity: object) -> object:
        """What a persistent id stands for: ('storage', type, key, device, number of elements)."""
        match identity:
            case ("storage", torch.dtype() as dtype, str() as key, str(), int() as elements):
                return self._checked(Storage(key, dtype, elements))
            case ("storage", Placeholder() as kind, str(), str(), int()):
                return Placeholder(kind.name, [identity])
        msg = "its pickle has a persistent id that is not a storage of torch.save"
        raise CheckpointError(msg)

    def _checked(self, storage: Storage) -> Storage:
        """The storage, if the archive holds what it states."""
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
    """Open a file of ``torch.save`` (since 1.6: a zip) and read all of it but the tensors' values.

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
def _naming(path: Path) -> Iterator[None]:
    """Put the file's path in front of what is wrong with it."""
    try:
        yield
    except (CheckpointError, DataError, OSError) as error:
        msg = f"{path}: {error}"
        raise CheckpointError(msg) from error


def _find_prefix(archive: TorchArchive) -> str:
    """The archive's own name, the folder that everything lies in."""
    found = [n for n in archive.members if n.count("/") == 1 and n.endswith(f"/{_PICKLE}")]
    if len(found) != 1:
        msg = f"holds {len(found)} pickles {_PICKLE}; expected the one of torch.save"
        raise CheckpointError(msg)
    return found[0].removesuffix(f"/{_PICKLE}")
