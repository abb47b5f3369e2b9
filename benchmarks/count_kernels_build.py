"""Inductor's Triton kernels, built for the GPU of ``count_kernels.py``, which is not there.

Triton needs no GPU to build, only to launch. Each kernel is built in every version, that is with all sizes of its
blocks, between which Inductor would choose on a GPU by timing them. Not built are the smaller blocks that it tries
there besides, for sums along rows whose versions all need many registers.
"""

from __future__ import annotations

import ast
import contextlib
import io
import multiprocessing
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from count_kernels_gpu import HOPPER

CAPABILITY = 10 * HOPPER.major + HOPPER.minor


@dataclass(frozen=True, slots=True)
class Built:
    """What became of one kernel."""

    versions: int = 0

    shared: int = 0
    """Bytes of shared memory, in the version that takes most."""

    spilled: int | None = None
    """Bytes of a thread's registers that are kept in memory, in the version with most; None if not told."""

    failure: str = ""
    """Why it could not be built, in one line."""


class NoDriver:
    """What Triton asks the driver of a GPU for before it builds a kernel."""

    def get_current_target(self) -> object:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", CAPABILITY, HOPPER.warp_size)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


def prepare() -> None:
    """Let this process build kernels without a GPU."""
    from torch._inductor.runtime import triton_helpers, triton_heuristics
    from triton.runtime.driver import driver

    driver.set_active(NoDriver())
    triton_helpers.set_driver_to_gpu = lambda: None  # would look for a GPU's own driver
    triton_heuristics.log.disabled = True  # would print the whole kernel; the cause is in the table


def kernels_in(code: str) -> Iterator[tuple[str, str]]:
    """Name and source of every Triton kernel in Inductor's code."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="triton"),
                args=[ast.Constant(value=str(name)), ast.Constant(value=str(source)), *_],
            ):
                yield name, source


def build(name: str, source: str) -> Built:
    """Build one kernel, in a process that is prepared for that."""
    from torch._inductor.codecache import PyCodeCache

    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            kernel = getattr(PyCodeCache.load(source), name)
            kernel.precompile(warm_cache_only=True)
    except Exception as error:
        # Triton, LLVM and the assembler have no common class for what they refuse.
        return Built(failure=cause(error))
    binaries = [result.kernel for result in kernel.compile_results]
    shared = [getattr(binary, "metadata", binary).shared for binary in binaries]
    spilled = [int(found) for found in re.findall(r"(\d+) bytes spill stores", printed.getvalue())]
    failure, most = "", HOPPER.shared_memory_per_block_optin
    if min(shared) > most:  # otherwise the versions that do not fit are left out
        failure = f"every version takes more than {most} bytes of shared memory"
    return Built(len(binaries), max(shared), max(spilled, default=None), failure)


def cause(error: Exception) -> str:
    """What an error says in its last line, and the line of the kernel that it points at, if it does."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    pointed = [before for before, line in pairwise(lines) if set(line) == {"^"}]
    text = f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"
    return f"{text}, in: {pointed[-1]}" if pointed else text


def build_parts(title: str, parts: Mapping[str, Sequence[str]]) -> int:
    """Build the kernels in the code of each part, print what became of them, and return how many failed.

    Kernels that differ in nothing but their names are built once.
    """
    import torch
    import triton

    print(f"{title}, torch {torch.__version__}, Triton {triton.__version__}, sm_{CAPABILITY}")
    print(f"{'part':24} {'kernels':>8} {'versions':>8} {'failed':>8} {'shared':>8} {'spilled':>8}")
    with tempfile.TemporaryDirectory() as folder:
        # Nothing that an earlier run built is used: the assembler tells of spilled registers only when it runs.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        os.environ["TRITON_CACHE_DIR"] = str(Path(folder, "triton"))
        os.environ["TRITON_DUMP_PTXAS_LOG"] = "1"
        context = multiprocessing.get_context("spawn")
        workers = len(os.sched_getaffinity(0))
        with ProcessPoolExecutor(workers, mp_context=context, initializer=prepare) as pool:
            started: dict[str, Future[Built]] = {}
            names: dict[str, dict[str, str]] = {}
            for part, codes in parts.items():
                names[part] = {}
                for name, source in (kernel for code in codes for kernel in kernels_in(code)):
                    key = source.replace(name, "")
                    names[part][key] = name
                    if key not in started:
                        started[key] = pool.submit(build, name, source)
            for part, named in names.items():
                print(row(part, [started[key].result() for key in named]), flush=True)
                for key, name in named.items():
                    if failure := started[key].result().failure:
                        print(f"  {name}: {failure}", flush=True)
    built = [future.result() for future in started.values()]
    print(row("all, each once", built))
    print("shared, spilled: bytes in the kernel and version with most")
    return sum(bool(one.failure) for one in built)


def row(title: str, built: Iterable[Built]) -> str:
    """One line of the table."""
    built = list(built)
    told = [one.spilled for one in built if one.spilled is not None]
    figures = (
        len(built),
        sum(one.versions for one in built),
        sum(bool(one.failure) for one in built),
        max((one.shared for one in built), default=0),
        max(told, default="not told"),
    )
    return f"{title:24} " + " ".join(f"{figure:>8}" for figure in figures)
