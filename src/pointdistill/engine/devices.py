"""Devices, precision and processes, through Accelerate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from pointdistill.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "no", "bf16")


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
    return Accelerator(cpu=not on_gpu, mixed_precision=mixed)


def mean_over_processes(accelerator: Accelerator, value: Tensor) -> Tensor:
    """The average of a tensor over all processes."""
    if accelerator.num_processes == 1:
        return value
    return accelerator.reduce(value, reduction="mean")


def gather_rows(accelerator: Accelerator) -> Callable[[Tensor], tuple[Tensor, int]] | None:
    """A function that joins the rows of all processes, with gradient; None for a single process."""
    if accelerator.num_processes == 1:
        return None

    def gather(value: Tensor) -> tuple[Tensor, int]:
        from torch.distributed.nn.functional import all_gather

        return torch.cat(all_gather(value)), accelerator.process_index * len(value)

    return gather
