"""Which encoder a command took, in one line that says so where its training was stopped before the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pointdistill.engine.exchange.record import training_record
from pointdistill.engine.exchange.weights import read_facts
from pointdistill.errors import CheckpointError


def encoder_line(stored: Path, remark: str = "") -> str:
    """``encoder: runs/a/encoder``, then the remark, then of an unfinished run ``unfinished: step 65 of 400``.

    Args:
        stored: as ``locate_encoder`` gave it; what is wrong with its files is left to whoever loads it.
        remark: why it was taken.
    """
    try:
        steps = unfinished_steps(training_record(stored, read_facts(stored)))
    except CheckpointError:
        steps = None
    state = "" if steps is None else f", unfinished: step {steps[0]:,} of {steps[1]:,}"
    return f"encoder: {stored}{remark}{state}"


def unfinished_steps(training: Any) -> tuple[int, int] | None:
    """Steps taken and steps of the whole run; None where it came to its end, or either is not recorded.

    Args:
        training: as ``training_record`` gave it.
    """
    if not isinstance(training, Mapping):
        return None
    taken, total = training.get("step"), training.get("total_steps")
    if isinstance(taken, int) and isinstance(total, int) and taken < total:
        return taken, total
    return None
