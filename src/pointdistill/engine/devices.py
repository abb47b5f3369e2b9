"""Devices, precision and processes, through Accelerate."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, distributed

from pointdistill.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "no", "bf16")
NARROW = 128
"""Width up to which an encoder trains faster on one thread than on several."""


def pick_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one.

    Raises:
        ConfigError: for another name, or ``cuda`` without a GPU.
    """
    if name not in DEVICES:
        msg = f"device must be one of {', '.join(DEVICES)}, got {name!r}"
        raise ConfigError(msg)
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        msg = "device 'cuda' was asked for, but torch finds no GPU; see `pointdistill doctor`, or use --device cpu"
        raise ConfigError(msg)
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def build_accelerator(device: str, precision: str) -> Accelerator:
    """Accelerate for this process, in the precision asked for.

    Raises:
        ConfigError: for a device or precision that does not exist or cannot be had.
    """
    if precision not in PRECISIONS:
        msg = f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}"
        raise ConfigError(msg)
    on_gpu = pick_device(device).type == "cuda"
    mixed = ("bf16" if on_gpu else "no") if precision == "auto" else precision
    if mixed == "bf16" and not on_gpu:
        _check_bf16_on_cpu()
    if process_count() == 1:
        # Accelerate remembers the first precision and device of a process; a second run may want others.
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=not on_gpu, mixed_precision=mixed)


def _check_bf16_on_cpu() -> None:
    """Raise unless this CPU can train in bf16, by doing the smallest piece of it.

    Raises:
        ConfigError: if it cannot.
    """
    weight = torch.ones(8, 8, requires_grad=True)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = torch.nn.functional.linear(torch.ones(8, 8), weight).sum()
        loss.backward()
    except RuntimeError as error:
        msg = f"precision 'bf16' cannot be had on this CPU ({error}); use --precision no"
        raise ConfigError(msg) from error


def mean_over_processes(accelerator: Accelerator, value: Tensor) -> Tensor:
    """The average of a tensor over all processes."""
    if accelerator.num_processes == 1:
        return value
    return accelerator.reduce(value.detach().clone(), reduction="mean")


def any_process(accelerator: Accelerator, answer: bool) -> bool:
    """Whether the answer is yes on any process; all get the same, so that none waits for one that stopped."""
    if accelerator.num_processes == 1:
        return answer
    votes = torch.tensor(float(answer), device=accelerator.device)
    return accelerator.reduce(votes, reduction="sum").item() > 0


@contextmanager
def threads_for(width: int, device: torch.device) -> Iterator[None]:
    """One thread for a narrow encoder on a CPU, for as long as the block lasts.

    Its operations are too small to share: with two threads a step of the tiny model gains a tenth on a quiet
    machine and loses half where the threads must wait for each other.
    """
    before = torch.get_num_threads()
    if device.type == "cpu" and width <= NARROW:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_main_process() -> bool:
    """Whether this process is the one of several that talks: known before any of them is set up."""
    return os.environ.get("RANK", "0") == "0"


def process_count() -> int:
    """Processes that a launcher started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def gather_rows(accelerator: Accelerator) -> Callable[[Tensor], tuple[Tensor, int]] | None:
    """A function that joins the rows of all processes, with gradient; None for a single process."""
    if accelerator.num_processes == 1:
        return None

    def gather(value: Tensor) -> tuple[Tensor, int]:
        everyone: Tensor = _GatherRows.apply(value)  # type: ignore[no-untyped-call]
        return everyone, accelerator.process_index * len(value)

    return gather


class _GatherRows(torch.autograd.Function):
    """Rows of all processes joined; each process's rows collect the gradients of every process's loss."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.rows = len(value)
        parts = [torch.empty_like(value) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        first = distributed.get_rank() * ctx.rows
        return gradient[first : first + ctx.rows]
