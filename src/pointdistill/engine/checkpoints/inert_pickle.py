"""A pickle read as data. Nothing that it names is imported and nothing in it is called.

A pickle is a program for a stack machine, and two kinds of its steps reach outside: those that name a global and
those that call one. Here a global of the caller's allow-list becomes the caller's own function or value, every
other one a ``Placeholder``, and calling a placeholder writes down its arguments. Steps that ``torch.save`` does
not write are refused, so are globals that only an attack has a use for. The standard library's ``pickletools``
knows how many bytes a step's argument takes; it interprets none.
"""

from __future__ import annotations

import io
import pickletools
import struct
from collections.abc import Callable

from pointdistill.engine.checkpoints.limits import Limits, shown
from pointdistill.engine.checkpoints.machine import ACCEPTED, Machine
from pointdistill.engine.checkpoints.names import Globals
from pointdistill.errors import CheckpointError

# By the byte that each step begins with; the module's annotations leave this table out.
_STEPS: dict[str, pickletools.OpcodeInfo] = {step.code: step for step in pickletools.opcodes}


def read_pickle(
    data: bytes,
    *,
    known: Globals,
    persistent: Callable[[object], object],
    limits: Limits,
) -> object:
    """The value that a pickle describes: plain values, what ``known`` builds, and placeholders.

    Dictionary keys and set members that are not plain values are wrapped in placeholders: comparing keys that
    a file chose can take forever.

    Args:
        data: the pickle.
        known: the allow-list.
        persistent: what to put in place of a persistent id, which it must check.
        limits: what it may cost.

    Raises:
        CheckpointError: if the pickle is damaged, costs too much, names what it must not, or has steps that
            ``torch.save`` does not write.
    """
    if len(data) > limits.pickle_bytes:
        msg = f"its pickle has {len(data)} bytes; accepted are {limits.pickle_bytes}"
        raise CheckpointError(msg)
    machine = Machine(known, persistent, limits)
    stream = io.BytesIO(data)
    for _ in range(limits.operations):
        step, argument = _next_step(stream)
        if step == "STOP":
            break
        if step == "FRAME":  # It says how far to read ahead; all of the pickle is in memory.
            _check_frame(argument, left=len(data) - stream.tell())
        machine.take(step, argument)
    else:
        msg = f"its pickle has more than {limits.operations} steps"
        raise CheckpointError(msg)
    if stream.tell() != len(data):
        msg = f"its pickle goes on for {len(data) - stream.tell()} bytes after its end"
        raise CheckpointError(msg)
    return machine.result()


def _check_frame(stated: object, *, left: int) -> None:
    if not isinstance(stated, int) or stated > left:
        msg = f"its pickle states a frame of {stated} bytes and has {left}; copy the file again"
        raise CheckpointError(msg)


def _next_step(stream: io.BytesIO) -> tuple[str, object]:
    """Name and argument of the next step; a step that is not accepted is refused before its argument is read."""
    code = stream.read(1)
    step = _STEPS.get(code.decode("latin-1"))
    if step is None:
        msg = f"its pickle is damaged (step {code.hex() or 'missing'}); copy the file again"
        raise CheckpointError(msg)
    if step.name not in ACCEPTED:
        msg = f"its pickle has a step {step.name}, which torch.save does not write"
        raise CheckpointError(msg)
    if step.arg is None:
        return step.name, None
    try:
        return step.name, step.arg.reader(stream)
    except (ValueError, OverflowError, struct.error) as error:
        msg = f"its pickle is damaged ({shown(str(error))}); copy the file again"
        raise CheckpointError(msg) from error
