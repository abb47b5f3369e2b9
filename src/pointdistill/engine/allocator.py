"""Memory allocation of this process: with glibc, freed memory is kept for the next step."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of mallopt(3)
_NEVER = 2**31 - 1
_PAD_BYTES = 2**26


def keep_freed_memory() -> bool:
    """Reuse freed memory instead of returning it to the system; False where the C library cannot.

    A training step on a CPU makes and frees the same large tensors each time. By default the C library returns
    each of them, and the system zeroes the pages again, a good part of a step (``benchmarks/step.py``). With
    this the process holds its peak until it ends. Calling it again does nothing more.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _PAD_BYTES))
    return all(library.mallopt(option, value) == 1 for option, value in settings)
