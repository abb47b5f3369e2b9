"""What this process may use of the machine: memory and cores, within a container's limits."""

from __future__ import annotations

import os
from pathlib import Path

import torch

GIB = 2**30
FALLBACK_GIB = 8.0
"""Where the system does not say."""

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
STATUS = Path("/proc/self/status")


def memory_gib() -> float:
    """GiB that this process may hold: physical memory, or the smallest limit of its control groups (1 or 2)."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    except (AttributeError, ValueError, OSError):
        physical = FALLBACK_GIB
    return min([physical, *(limit / GIB for limit in _limits())])


def _limits() -> list[int]:
    """Bytes that each group of this process, and each above it, allows; unlimited ones left out."""
    found = []
    for root, name, group in _groups():
        # Inside a container the group's own path often is not mounted, and its limit lies at the root.
        for folder in (group, *group.parents):
            limit = _read_limit(root / folder.relative_to("/") / name)
            if limit is not None:
                found.append(limit)
    return found


def _groups() -> list[tuple[Path, str, Path]]:
    """(mount, file with the limit, path below the mount) of this process's memory groups."""
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    groups = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            groups.append((CGROUPS, "memory.max", Path(path)))
        elif "memory" in controllers.split(","):
            groups.append((CGROUPS / "memory", "memory.limit_in_bytes", Path(path)))
    return groups


def _read_limit(path: Path) -> int | None:
    """The number of bytes in a limit's file; None for ``max`` or where there is no file."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


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
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 / GIB if found else None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory, a GPU's or the machine's, was not enough."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
