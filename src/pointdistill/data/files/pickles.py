"""Reads a pickle as data: nothing that it names is imported and nothing in it is called.

A pickle is a program for a stack machine, and two kinds of opcodes reach outside it: those that name a global and
those that call one. Here a global on the caller's allow-list becomes a function or value of the caller's, any
other one becomes a ``Placeholder``, and calling a placeholder merely records its arguments. Opcodes that plain
data does not need are refused, and so are globals that only an attack could use. The standard library's
``pickletools`` knows how many bytes the argument of an opcode takes; it executes nothing.
"""

from __future__ import annotations

import io
import pickletools
import struct
import warnings
from collections.abc import Callable

from pointdistill.data.files.pickle_machine import (
    ACCEPTED,
    Globals,
    Machine,
    PickleLimits,
    Purpose,
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
