"""Selects the smallest, the largest or a random few numbers of each row, with the same result on any device.

Ties are resolved in the same way everywhere. On a CPU NumPy is used, which is several times as fast as torch, and
on a GPU the kernels of ``kernels``; while a graph is traced on a CPU, only torch's own operations are. Sizes: any
leading axes, N numbers per row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointdistill.model import kernels
from pointdistill.model.random import random_order

# The largest int32, which is sorted behind every other.
_LAST = 2**31 - 1


def draw_nearest(distance: Tensor, keep: Tensor, seeds: Tensor, count: int) -> Tensor:
    """Indices (..., count) of a random subset of the nearest entries of each row, without replacement.

    If a row has fewer than ``count`` of them, all are returned and then repeated from the first.

    Args:
        distance: (..., N) float32, not negative.
        keep: (...) int64, how many of the nearest to draw from, 1 to N; entries equal to the last of them are
            included.
        seeds: (...) int64 random bits of each row.
        count: size of the subset.
    """
    available = min(count, distance.shape[-1])
    if in_numpy(distance):
        rows = _as_int32(distance).flatten(0, -2).numpy()
        halves = (half.flatten().numpy() for half in _halves(seeds))
        arguments = zip(rows, keep.flatten().tolist(), *halves, strict=True)
        drawn = [_draw_row(row, k, *seed, count=available) for row, k, *seed in arguments]
        chosen = torch.from_numpy(np.stack(drawn)).view(*keep.shape, available)
    else:
        last = kth_smallest(distance, keep)[..., None]
        place = torch.arange(distance.shape[-1], dtype=torch.int32, device=distance.device)
        low, high = _halves(seeds)
        order = random_order(place, low[..., None], high[..., None])
        chosen = smallest_indices(order.masked_fill_(_as_int32(distance) > last, _LAST), available)
    place = torch.arange(count, device=distance.device)
    return chosen.gather(-1, place % keep.clamp(max=available)[..., None])


def kth_smallest(values: Tensor, rank: Tensor) -> Tensor:
    """Each row's value of this rank (...), from 1 to N, as int32: the bits of floats, which have the same order.

    Args:
        values: (..., N) int32 or float32, not negative.
        rank: (...) int64.
    """
    values = _as_int32(values)
    if kernels.usable(values, values.shape[-1]):
        return kernels.kth_smallest(values.flatten(0, -2), rank.flatten()).view(rank.shape)
    return values.sort(-1).values.gather(-1, (rank - 1)[..., None]).squeeze(-1)


def smallest_indices(values: Tensor, count: int) -> Tensor:
    """Ascending indices (..., count) of the smallest values of each row; of equal values the lower index wins.

    Args:
        values: (..., N) int32 or float32, not negative.
        count: at most N.
    """
    if in_numpy(values):
        rows = _as_int32(values).flatten(0, -2).numpy()
        return torch.from_numpy(_smallest_of_rows(rows, count)).view(*values.shape[:-1], count)
    values = _as_int32(values)
    if kernels.usable(values, values.shape[-1]):
        chosen = kernels.smallest_indices(values.flatten(0, -2), count)
        return chosen.view(*values.shape[:-1], count)
    # topk breaks ties arbitrarily. With the index in the lower half of a key, no two keys are equal.
    place = torch.arange(values.shape[-1], device=values.device)
    keys = (values.to(torch.int64) << 32) | place
    first = keys.topk(count, dim=-1, largest=False, sorted=False).values & 0xFFFFFFFF
    return first.sort(-1).values


def largest_index(values: Tensor) -> Tensor:
    """Index (...) of the largest of the values (..., N); of equal values the lower index wins."""
    if in_numpy(values):
        return torch.from_numpy(np.asarray(values.numpy().argmax(-1)))
    return values.argmax(-1)


def in_numpy(values: Tensor) -> bool:
    """Whether NumPy may be used: the values are on a CPU, and neither autograd nor a tracer is recording."""
    return (
        values.device.type == "cpu"
        and not values.requires_grad
        and torch._C._get_tracing_state() is None
        and not torch.compiler.is_compiling()
    )


def _as_int32(values: Tensor) -> Tensor:
    """The bits of non-negative floats as int32, which have the same order and are selected faster."""
    return values.float().view(torch.int32) if values.is_floating_point() else values


def _halves(seeds: Tensor) -> tuple[Tensor, Tensor]:
    return seeds.to(torch.int32), (seeds >> 32).to(torch.int32)


def _draw_row(
    distance: NDArray[np.int32], keep: int, low: np.int32, high: np.int32, *, count: int
) -> NDArray[np.int64]:
    """``draw_nearest`` for one row, with random numbers only for the entries to draw from."""
    inside = np.flatnonzero(distance <= np.partition(distance, keep - 1)[keep - 1])
    if len(inside) > count:
        order: NDArray[np.int32] = random_order(inside.astype(np.int32), low, high)
        return inside[_smallest_of_rows(order[None], count)[0]]
    return np.resize(inside, count)


def _smallest_of_rows(rows: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Ascending indices (R, count) of the smallest values of the rows (R, N)."""
    size = rows.shape[1]
    last = np.partition(rows, count - 1, axis=1)[:, count - 1 : count]
    chosen = np.flatnonzero(rows <= last)
    if len(chosen) == len(rows) * count:
        return chosen.reshape(len(rows), count) % size
    # Some rows have more entries equal to their last chosen one; of these only the first are taken.
    smaller = rows < last
    tied = rows == last
    still_needed = count - smaller.sum(1, keepdims=True)
    chosen = np.flatnonzero(smaller | (tied & (tied.cumsum(1) <= still_needed)))
    return chosen.reshape(len(rows), count) % size
