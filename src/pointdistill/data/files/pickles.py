"""Reads a pickle as data: nothing that it names is imported and nothing in it is called.

A pickle is a program for a stack machine, and two kinds of opcodes reach outside it: those that name a global and
those that call one. Here a global on the caller's allow-list becomes a function or value of the caller's, any
other one becomes a ``Placeholder``, and calling a placeholder merely records its arguments. Opcodes that plain
data does not need are refused, and so are globals that only an attack could use. The standard library's
``pickletools`` knows how many bytes the argument of an opcode takes; it executes nothing.

NumPy arrays consist of a shape, a type and bytes, which are checked; `ArrayRecord.values` makes the array, and
NumPy's own functions are not called. Three generations of names occur: ``numpy.core`` (1.x), ``numpy._core``
(2.x), and ``_codecs.encode``, with which protocol 2 writes bytes as Latin-1 text.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.files.pickle_machine import (
    ACCEPTED,
    Builder,
    Globals,
    Machine,
    PickleLimits,
    Purpose,
    Stateful,
    shown,
)
from pointdistill.errors import DataError

# By the byte of each opcode: pickletools has such a table, but its type stubs do not.
_STEPS: dict[str, pickletools.OpcodeInfo] = {step.code: step for step in pickletools.opcodes}


def read_pickle(
    data: bytes,
    *,
    known: Globals,
    persistent: Callable[[object], object],
    limits: PickleLimits,
    purpose: Purpose,
) -> object:
    """The value that a pickle describes: plain values, objects built by ``known``, and placeholders.

    Dictionary keys and set members that are not plain values are wrapped in placeholders: comparing keys chosen by
    a hostile file can take forever.

    Args:
        data: the pickle.
        known: the allow-list.
        persistent: returns what replaces a persistent id, which it must check.
        limits: what reading may cost.
        purpose: what the file is for, worded for messages.

    Raises:
        DataError: if the pickle is damaged, costs too much, names a forbidden global, or has opcodes that its
            writer never emits.
    """
    if len(data) > limits.pickle_bytes:
        msg = f"its pickle has {len(data)} bytes; accepted are {limits.pickle_bytes}"
        raise DataError(msg)
    machine = Machine(known, persistent, limits, purpose)
    with warnings.catch_warnings():
        # pickletools only warns of an invalid escape in a name; here that is an error.
        warnings.simplefilter("error", DeprecationWarning)
        _take_steps(machine, data)
    return machine.result()


def _take_steps(machine: Machine, data: bytes) -> None:
    limits = machine.limits
    stream = io.BytesIO(data)
    for _ in range(limits.operations):
        step, argument = _next_step(stream, machine.purpose)
        if step == "STOP":
            break
        if step == "FRAME":  # Says how far to read ahead; the whole pickle is in memory anyway.
            _check_frame(argument, left=len(data) - stream.tell())
        machine.take(step, argument)
    else:
        msg = f"its pickle has more than {limits.operations} steps"
        raise DataError(msg)
    if stream.tell() != len(data):
        msg = f"its pickle goes on for {len(data) - stream.tell()} bytes after its end"
        raise DataError(msg)


def _check_frame(stated: object, *, left: int) -> None:
    if not isinstance(stated, int) or stated > left:
        msg = f"its pickle states a frame of {stated} bytes and has {left}; copy the file again"
        raise DataError(msg)


def _next_step(stream: io.BytesIO, purpose: Purpose) -> tuple[str, object]:
    """Name and argument of the next opcode; the argument of a refused one is not even read."""
    code = stream.read(1)
    step = _STEPS.get(code.decode("latin-1"))
    if step is None:
        msg = f"its pickle is damaged (step {code.hex() or 'missing'}); copy the file again"
        raise DataError(msg)
    if step.name not in ACCEPTED:
        msg = f"its pickle has a step {step.name}, which {purpose.writer} does not write"
        raise DataError(msg)
    if step.arg is None:
        return step.name, None
    try:
        return step.name, step.arg.reader(stream)
    except (ValueError, OverflowError, struct.error, DeprecationWarning) as error:
        msg = f"its pickle is damaged ({shown(str(error))}); copy the file again"
        raise DataError(msg) from error


_NUMBER_TYPE = re.compile(r"f[248]|[iu][1248]|b1")
_BYTE_ORDERS = ("<", ">", "|", "=")
_MOST_AXES = 8
_LATIN = ("latin1", "latin-1")


@dataclass(eq=False, slots=True)
class TypeRecord(Stateful):
    """``numpy.dtype``: integers, floats or booleans, in either byte order."""

    code: str
    order: str = "="

    def set_state(self, state: object) -> None:
        """Set (version, byte order, and fields that only structured types have)."""
        match state:
            case (int(), str() as order, None, None, None, *_) if order in _BYTE_ORDERS:
                self.order = order
            case _:
                msg = "its pickle has an array of a structured type; accepted are plain numbers"
                raise DataError(msg)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The NumPy type."""
        return np.dtype(self.order + self.code)


@dataclass(frozen=True, eq=False, slots=True)
class LatinText:
    """Bytes that protocol 2 writes as text; encoded only when used, since text can be recalled often."""

    text: str

    def __len__(self) -> int:
        """Number of bytes."""
        return len(self.text)


@dataclass(eq=False, slots=True)
class ArrayRecord(Stateful):
    """An array that a pickle describes, or a scalar, which has no axes; its bytes match its shape and type."""

    type: TypeRecord | None = None
    shape: tuple[int, ...] = ()
    data: bytes | bytearray | LatinText = b""
    order: str = "C"

    def set_state(self, state: object) -> None:
        """Set (version, shape, type, whether the order is Fortran's, bytes)."""
        match state:
            case (int(), tuple() as shape, TypeRecord() as kind, bool() as columns_first, data):
                self.fill(kind, shape, data, "F" if columns_first else "C")
            case _:
                msg = "its pickle has an array that is not a shape, a type of numbers, and bytes"
                raise DataError(msg)

    def fill(self, kind: TypeRecord, shape: tuple[object, ...], data: object, order: str) -> None:
        """Set type, shape and bytes from the file, after comparing their sizes.

        Raises:
            DataError: if the bytes are too many or too few or not bytes at all, or the shape is not made of
            counts.
        """
        sizes = tuple(n for n in shape if isinstance(n, int) and n >= 0)
        if len(sizes) != len(shape) or len(shape) > _MOST_AXES:
            msg = f"its pickle has an array whose shape is not up to {_MOST_AXES} counts"
            raise DataError(msg)
        if not isinstance(data, bytes | bytearray | LatinText):
            msg = f"its pickle has an array of objects ({shown(data)}); accepted are plain numbers"
            raise DataError(msg)
        stated = math.prod(sizes) * kind.dtype.itemsize
        if len(data) != stated:
            msg = f"its pickle states an array of {stated} bytes and holds {len(data)}; copy the file again"
            raise DataError(msg)
        self.type, self.shape, self.data, self.order = kind, sizes, data, order

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return len(self.data)

    def values(self) -> NDArray[np.generic]:
        """The array, read-only, of ``shape``.

        Raises:
            DataError: if the pickle named an array without filling it, or filled it with text that is not Latin-1.
        """
        if self.type is None:
            msg = "its pickle declares an array without data; copy the file again"
            raise DataError(msg)
        try:
            data = (
                self.data.text.encode("latin-1") if isinstance(self.data, LatinText) else self.data
            )
        except UnicodeEncodeError as error:
            msg = "its pickle has an array of text that stands for no bytes; copy the file again"
            raise DataError(msg) from error
        flat = np.frombuffer(data, self.type.dtype)
        return flat.reshape(self.shape, order="F" if self.order == "F" else "C")


def _type(arguments: tuple[object, ...]) -> object:
    """``numpy.dtype(code, align, copy)``."""
    code = arguments[0] if arguments else None
    if not isinstance(code, str) or not _NUMBER_TYPE.fullmatch(code):
        msg = f"its pickle has an array of type {shown(code)}; accepted are plain numbers"
        raise DataError(msg)
    return TypeRecord(code)


def _reconstruct(arguments: tuple[object, ...]) -> object:
    """``_reconstruct(ndarray, (0,), b"b")``: an empty array, filled by the state that follows."""
    if not arguments or arguments[0] is not _NDARRAY:
        msg = "its pickle has an array of a class that is not numpy.ndarray"
        raise DataError(msg)
    return ArrayRecord()


def _from_buffer(arguments: tuple[object, ...]) -> object:
    """``_frombuffer(bytes, type, shape, order)``, with which protocol 5 writes contiguous arrays."""
    match arguments:
        case (data, TypeRecord() as kind, tuple() as shape, "C" | "F" as order):
            record = ArrayRecord()
            record.fill(kind, shape, data, order)
            return record
    msg = "its pickle has an array that is not bytes, a type of numbers, and a shape"
    raise DataError(msg)


def _scalar(arguments: tuple[object, ...]) -> object:
    """``scalar(type, bytes)``."""
    match arguments:
        case (TypeRecord() as kind, data):
            record = ArrayRecord()
            record.fill(kind, (), data, "C")
            return record
    msg = "its pickle has a number that is not a type of numbers and bytes"
    raise DataError(msg)


def _encode(arguments: tuple[object, ...]) -> object:
    """``_codecs.encode(text, "latin1")``."""
    match arguments:
        case (str() as text, str() as codec) if codec in _LATIN:
            return LatinText(text)
    msg = "its pickle has bytes that are not written as Latin-1 text; copy the file again"
    raise DataError(msg)


_NDARRAY = object()

ARRAY_GLOBALS: Globals = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): Builder(_type),
    ("_codecs", "encode"): Builder(_encode),
    **{
        (f"numpy.{core}.{module}", name): Builder(build)
        for core in ("core", "_core")
        for module, name, build in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}
"""The allow-list: every global that arrays and scalars of plain numbers name."""
