"""How much memory this process may use, within the limits of a container."""

from __future__ import annotations

import os
from pathlib import Path

GIB = 2**30
FALLBACK_BYTES = 8 * GIB
"""Assumed if the system does not say."""

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def memory_bytes() -> int:
    """Physical memory, or the smallest limit of this process's control groups (1 or 2)."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        physical = FALLBACK_BYTES
    return min([physical, *_limits()])


def _limits() -> list[int]:
    """The limits of this process's groups and of the groups above them, in bytes; unlimited ones left out."""
    limits = []
    for root, name, group in _groups():
        # Inside a container the group's own path is often not mounted, and its limit lies at the root.
        for folder in (group, *group.parents):
            limit = _read_limit(root / folder.relative_to("/") / name)
            if limit is not None:
                limits.append(limit)
    return limits


def _groups() -> list[tuple[Path, str, Path]]:
    """(mount point, name of the limit file, path below the mount) of each memory group of this process."""
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
    """The number of bytes in a limit file; None for ``max`` or if there is no such file."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
