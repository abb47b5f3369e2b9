"""Reads a pickle as data: nothing that it names is imported and nothing in it is called.

A pickle is a program for a stack machine, and two kinds of its steps reach outside: those that name a global and
those that call one. Here a global on the caller's allow-list becomes the caller's own function or value, every
other one becomes a ``Placeholder``, and calling a placeholder only records the arguments. Steps that plain data
does not need are refused, and so are globals that are of use only to an attack. The standard library's
``pickletools`` parses the steps; it executes none.
"""

from __future__ import annotations

import io
import pickletools
import struct
import warnings
from collections.abc import Callable

from pointdistill.data.pickles.limits import PickleLimits, Purpose, shown
from pointdistill.data.pickles.machine import ACCEPTED, Machine
from pointdistill.data.pickles.names import Globals
from pointdistill.errors import DataError

# By the byte that each step begins with; annotated here because typeshed lacks this table.
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

    Dictionary keys and set members that are not plain values are wrapped in placeholders, because comparing keys
    from a hostile file can take for ever.

    Args:
        data: the pickle.
        known: the allow-list.
        persistent: gives the replacement of a persistent id, which it must check.
        limits: what it may cost.
        purpose: what the file is for, in words for messages.

    Raises:
        DataError: if the pickle is damaged, costs too much, names a forbidden global, or has steps that its writer
            does not write.
    """
    if len(data) > limits.pickle_bytes:
        msg = f"its pickle has {len(data)} bytes; accepted are {limits.pickle_bytes}"
        raise DataError(msg)
    machine = Machine(known, persistent, limits, purpose)
    with warnings.catch_warnings():
        # Where a name has an invalid escape, pickletools warns; here that is an error.
        warnings.simplefilter("error", DeprecationWarning)
        _take_steps(machine, data)
    return machine.result()


def _take_steps(machine: Machine, data: bytes) -> None:
    """Execute all steps of the pickle."""
    limits = machine.limits
    stream = io.BytesIO(data)
    for _ in range(limits.operations):
        step, argument = _next_step(stream, machine.purpose)
        if step == "STOP":
            break
        if step == "FRAME":  # It says how far to read ahead, but all of the pickle is in memory.
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
    """Name and argument of the next step; a forbidden step is refused before its argument is read."""
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
