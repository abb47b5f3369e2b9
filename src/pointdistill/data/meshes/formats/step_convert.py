"""A program of its own: STEP on standard input, GLB on standard output, messages on standard error.

`pointdistill.data.meshes.formats.step` starts it by its path. The geometry kernel is written in C++ and prints its
messages on standard output; in a process of its own, neither a crash nor a message reaches the program that
reads a thousand files. It imports nothing from this package.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

DEVIATION = 0.002
"""Largest distance between a triangle and the curved face it replaces, as a share of its edge lengths."""

ANGLE_RADIANS = 0.2
"""Largest angle between the normals of neighbouring triangles of a curved face."""

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's <sys/prctl.h>


def main(seconds: int, memory_bytes: int, file_bytes: int) -> None:
    """Convert, within limits that hold even if the caller is gone."""
    limit_process(seconds, memory_bytes, file_bytes)
    target = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # cascadio would import trimesh for an extension that is not used here: 0.8 of its 1.1 seconds.
    sys.modules["trimesh"] = None  # type: ignore[assignment]
    import cascadio

    # One thread, so that the triangles come in the same order each time.
    content = cascadio.load(
        sys.stdin.buffer.read(),
        file_type="step",
        tol_linear=DEVIATION,
        tol_relative=True,
        tol_angular=ANGLE_RADIANS,
        use_parallel=False,
    )
    with target:
        target.write(content)


def limit_process(seconds: int, memory_bytes: int, file_bytes: int) -> None:
    """Limit wall time, memory and output, and die with the caller, where the system supports it."""
    if sys.platform == "win32":
        return
    import resource

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    signal.alarm(seconds)
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
    ):
        soft, hard = resource.getrlimit(kind)
        allowed = most if soft == resource.RLIM_INFINITY else min(most, soft)
        # Some systems lack a limit of this kind, and raise.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (allowed, hard))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
