"""What this process may hold and holds of the machine's memory, within a container's limits."""

from __future__ import annotations

from pathlib import Path

import torch

from pointdistill.data import memory

GIB = memory.GIB
STATUS = Path("/proc/self/status")


def memory_gib() -> float:
    """GiB that this process may hold: physical memory, or a container's limit."""
    return memory.memory_bytes() / GIB


def resident_gib() -> float | None:
    """GiB of memory that this process holds now; None where the system does not say."""
    return _from_status("VmRSS")


def peak_resident_gib() -> float | None:
    """The most GiB of memory that this process ever held; None where the system does not say."""
    return _from_status("VmHWM")


def _from_status(name: str) -> float | None:
    """A figure of Linux's own account of this process. (``getrusage`` would count what its parent held.)"""
    try:
        lines = STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(values[0]) * 1024 / GIB if values else None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory, a GPU's or the machine's, was not enough."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
