"""Resource limits of a build: how long and how much memory one shape may take before it is given up.

They do not decide for good what a corpus holds: that is up to the limits of the file formats, which are the same
on every machine. A shape that exceeds a resource limit is recorded as a retryable failure and can be read again.
"""

from __future__ import annotations

import contextlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path

from pointdistill.data.files.processes import GIB, memory_bytes
from pointdistill.errors import ConfigError

DEADLINE_SECONDS = 300.0
LEAST_MEMORY_BYTES = GIB // 4
"""Half of this goes to the libraries that a worker loads when it reads its first shape."""

_MEMORY_SHARE = 0.75  # of the machine's, for all workers together
_FIRST_VICTIM = "500"  # of -1000 to 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeLimits:
    """What one shape may take; enforced in worker processes only, not where ``workers`` is 0."""

    deadline_seconds: float = DEADLINE_SECONDS
    """Wall-clock time from the start of reading it."""

    memory_bytes: int | None = None
    """What a worker may allocate after its start; None is three quarters of the memory that the process may use,
    divided by the number of workers. Enforced on Linux only."""

    def __post_init__(self) -> None:
        """Raise ConfigError where a limit leaves no room for any shape."""
        if not (math.isfinite(self.deadline_seconds) and self.deadline_seconds > 0):
            msg = f"the deadline of a shape must be a positive number of seconds, got {self.deadline_seconds}"
            raise ConfigError(msg, settings=("deadline",))
        if self.memory_bytes is not None and self.memory_bytes < LEAST_MEMORY_BYTES:
            msg = (
                f"the memory of a worker must be at least {LEAST_MEMORY_BYTES / GIB} GiB, "
                f"got {self.memory_bytes / GIB:.3g}"
            )
            raise ConfigError(msg, settings=("memory",))

    def worker_bytes(self, workers: int) -> int:
        """What each of ``workers`` processes may allocate."""
        if self.memory_bytes is not None:
            return self.memory_bytes
        return max(LEAST_MEMORY_BYTES, int(_MEMORY_SHARE * memory_bytes()) // max(workers, 1))


def guard_process(allowed_bytes: int | None) -> None:
    """Limit the damage that the end of this worker process can do.

    Args:
        allowed_bytes: what it may allocate from now on; then allocations fail with MemoryError. None: no limit.
    """
    if sys.platform == "win32":
        return
    import resource

    # A thousand shapes that crash a reader must not fill the disk with core dumps.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):
        # If the kernel runs out of memory after all, it kills a worker before the parent.
        Path("/proc/self/oom_score_adj").write_text(_FIRST_VICTIM)
    if allowed_bytes is not None:
        # Data, not address space: mapped files and reserved stacks take up addresses without taking memory.
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = min(sys.maxsize, _held_pages() * resource.getpagesize() + allowed_bytes)
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _held_pages() -> int:
    """Pages of data and stack that this process has asked for."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    except OSError:
        return 0
