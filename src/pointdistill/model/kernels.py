"""Farthest points and exact selection as Triton kernels, for tensors on a GPU.

``patches`` and ``selection`` hold the same functions in plain tensor code, which is the reference and what runs
where there is no Triton. The kernels choose what the reference chooses on a CPU, ties included. They are operators
of PyTorch's library, so a compiler sees one call with a known result.

Sizes: B clouds, R rows, N points or values, P chosen points.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    from triton import language as tl
except ImportError:  # it comes with PyTorch's builds for a GPU only
    triton = None

MOST_VALUES = 2**15
"""Longest row: a program holds its whole row in registers."""

_LAST = 2**31 - 1


log = logging.getLogger("pointdistill")


def usable(values: Tensor, row: int) -> bool:
    """Whether the kernels can be used for rows of this length, on the device of these values."""
    if triton is None or values.device.type != "cuda" or row > MOST_VALUES:
        return False
    # Whatever is compiled for a GPU is built by Triton, too.
    return torch.compiler.is_compiling() or can_be_built(values.device)


@cache
def can_be_built(device: torch.device) -> bool:
    """Whether Triton works, found by launching a kernel; if it does not, one line says so."""
    # It needs a C compiler and Python's headers, which images for running programs leave out, and a GPU that is
    # not too old.
    try:
        ones = torch.ones(1, 1, dtype=torch.int32, device=device)
        launch_kth_smallest(ones, torch.ones(1, dtype=torch.int64, device=device))
    except Exception as error:  # Triton has no common class for this
        reason = str(error).partition("\n")[0] or type(error).__name__
        log.warning("views and patches are made without Triton, which takes longer: %s", reason)
        return False
    return True


def _jit(function: Any) -> Any:
    return function if triton is None else triton.jit(function)


@_jit
def _farthest(points, start, chosen, size, COUNT: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """One program chooses all points of one cloud, whose coordinates it holds."""
    cloud = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    inside = place < size
    base = points + cloud * size * 3
    x = tl.load(base + 3 * place, mask=inside, other=0.0)
    y = tl.load(base + 3 * place + 1, mask=inside, other=0.0)
    z = tl.load(base + 3 * place + 2, mask=inside, other=0.0)
    nearest = tl.where(inside, float("inf"), -1.0)
    current = tl.load(start + cloud).to(tl.int32)
    for step in range(COUNT):
        tl.store(chosen + cloud * COUNT + step, current.to(tl.int64))
        dx = x - tl.load(base + 3 * current)
        dy = y - tl.load(base + 3 * current + 1)
        dz = z - tl.load(base + 3 * current + 2)
        nearest = tl.minimum(nearest, dx * dx + dy * dy + dz * dz)
        farthest = tl.max(nearest, 0)
        # Of equally far points the lowest index.
        current = tl.min(tl.where(nearest == farthest, place, BLOCK), 0)


@_jit
def _kth(row, rank):  # type: ignore[no-untyped-def]
    """The value of this rank (from 1) in a row of non-negative int32."""
    # Bit by bit from the top: the largest number that fewer than ``rank`` values lie below.
    kth = tl.zeros((), tl.int32)
    for bit in range(31):
        trial = kth | (1 << (30 - bit))
        below = tl.sum((row < trial).to(tl.int32), 0)
        kth = tl.where(below < rank, trial, kth)
    return kth


@_jit
def _kth_of_rows(values, ranks, found, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    held = tl.load(values + row * size + place, mask=place < size, other=2147483647)
    tl.store(found + row, _kth(held, tl.load(ranks + row).to(tl.int32)))


@_jit
def _smallest_of_rows(values, chosen, size, COUNT: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    inside = place < size
    held = tl.load(values + row * size + place, mask=inside, other=2147483647)
    last = _kth(held, COUNT)
    smaller = held < last
    tied = (held == last) & inside
    # Of the values equal to the last chosen one only the first are taken.
    still_needed = COUNT - tl.sum(smaller.to(tl.int32), 0)
    taken = smaller | (tied & (tl.cumsum(tied.to(tl.int32), 0) <= still_needed))
    rank = tl.cumsum(taken.to(tl.int32), 0) - 1
    tl.store(chosen + row * COUNT + rank, place.to(tl.int64), mask=taken)


def _launch(kernel: Any, programs: int, size: int, *arguments: object, **constants: int) -> None:
    """Run a kernel once for each row of ``size`` values."""
    block = triton.next_power_of_2(size)
    # Without fused multiply-add, whose single rounding would decide ties differently from a CPU.
    kernel[(programs,)](
        *arguments,
        size,
        **constants,
        BLOCK=block,
        num_warps=max(1, min(16, block // 256)),
        enable_fp_fusion=False,
    )


def launch_farthest_points(points: Tensor, count: int, start: Tensor) -> Tensor:
    """``patches.farthest_points``: (B, P) int64 indices into (B, N, 3) float32, from ``start`` (B,) int64."""
    chosen = start.new_empty(len(points), count)
    _launch(
        _farthest,
        len(points),
        points.shape[1],
        points.contiguous(),
        start.contiguous(),
        chosen,
        COUNT=count,
    )
    return chosen


def launch_kth_smallest(values: Tensor, rank: Tensor) -> Tensor:
    """``selection.kth_smallest``: (R,) int32 of (R, N) non-negative int32, of rank (R,) int64 from 1."""
    found = values.new_empty(len(values))
    _launch(
        _kth_of_rows, len(values), values.shape[1], values.contiguous(), rank.contiguous(), found
    )
    return found


def launch_smallest_indices(values: Tensor, count: int) -> Tensor:
    """``selection.smallest_indices``: (R, count) int64 of (R, N) non-negative int32."""
    chosen = values.new_empty(len(values), count, dtype=torch.int64)
    _launch(
        _smallest_of_rows, len(values), values.shape[1], values.contiguous(), chosen, COUNT=count
    )
    return chosen


farthest_points = torch.library.custom_op(
    "pointdistill::farthest_points", launch_farthest_points, mutates_args=(), device_types="cuda"
)
kth_smallest = torch.library.custom_op(
    "pointdistill::kth_smallest", launch_kth_smallest, mutates_args=(), device_types="cuda"
)
smallest_indices = torch.library.custom_op(
    "pointdistill::smallest_indices", launch_smallest_indices, mutates_args=(), device_types="cuda"
)


@farthest_points.register_fake
def _(points: Tensor, count: int, start: Tensor) -> Tensor:
    return start.new_empty(len(points), count)


@kth_smallest.register_fake
def _(values: Tensor, rank: Tensor) -> Tensor:  # noqa: ARG001
    return values.new_empty(len(values))


@smallest_indices.register_fake
def _(values: Tensor, count: int) -> Tensor:
    return values.new_empty(len(values), count, dtype=torch.int64)
