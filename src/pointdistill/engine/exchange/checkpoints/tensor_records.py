"""Tensors as a file of ``torch.save`` describes them, each checked to lie inside the values that it holds."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch

from pointdistill.data.pickles import Builder, Globals, Placeholder, shown
from pointdistill.engine.exchange.checkpoints.limits import Limits
from pointdistill.errors import CheckpointError

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


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of values in the archive, of exactly the size that the pickle states."""

    key: str
    dtype: torch.dtype
    elements: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor that the file describes: a view of a storage, inside of it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of values; at most the storage's."""
        return math.prod(self.shape)


def _ordered_dict(arguments: tuple[object, ...]) -> object:
    """``collections.OrderedDict``; pickle makes it empty and fills it afterwards."""
    return Placeholder("collections.OrderedDict", [arguments]) if arguments else OrderedDict()


def _parameter(arguments: tuple[object, ...]) -> object:
    """``torch.nn.Parameter``: its tensor."""
    if arguments and isinstance(arguments[0], TensorRecord | Placeholder):
        return arguments[0]
    msg = "its pickle makes a parameter of something that is no tensor"
    raise CheckpointError(msg)


def _tensor(arguments: tuple[object, ...], limits: Limits) -> object:
    """A view of a storage: (storage, offset, shape, strides, needs gradient, hooks and, optionally, marks)."""
    match arguments:
        case (Storage() as storage, offset, tuple() as shape, tuple() as stride, _, _):
            return _record(storage, offset, shape, stride, limits)
        case (Storage() as storage, offset, tuple() as shape, tuple() as stride, _, _, None):
            return _record(storage, offset, shape, stride, limits)
        case (Storage() | Placeholder(), _, _, _, _, _, *_):
            # Of an unknown type, or marked as negated or conjugated, which its bytes do not show.
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
    """The tensor, if it lies inside its storage and has no more values than that."""
    counts = None
    if len(shape) == len(stride) <= limits.dimensions:
        counts = _counts((offset, *shape, *stride))
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
    # The stride of an axis of length one says nothing, and may be anything.
    steps = tuple(s if n > 1 else 1 for n, s in zip(sizes, steps, strict=True))
    return TensorRecord(storage, start, sizes, steps)


def _counts(values: tuple[object, ...]) -> tuple[int, ...] | None:
    """The values, if all are whole and not negative."""
    found = tuple(v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0)
    return found if len(found) == len(values) else None


def tensor_globals(limits: Limits) -> Globals:
    """The allow-list: all that tensors in a file of ``torch.save`` name."""
    return {
        ("collections", "OrderedDict"): Builder(_ordered_dict),
        ("torch._utils", "_rebuild_parameter"): Builder(_parameter),
        ("torch._utils", "_rebuild_tensor_v2"): Builder(lambda a: _tensor(a, limits)),
        ("torch.storage", "UntypedStorage"): torch.uint8,
        **{("torch", name): dtype for name, dtype in _STORAGE_TYPES.items()},
    }
