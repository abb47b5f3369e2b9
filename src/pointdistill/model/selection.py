"""Selecting from rows of numbers: on a CPU by NumPy, whose vectorised selection is several times torch's.

Sizes: any leading sizes, N numbers a row. The same choice on any device, ties included. While a graph is being
traced only torch's own operations are used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointdistill.model.random import order_of

_LAST = 2**31 - 1  # of an int32 order


def draw_nearest(distance: Tensor, keep: Tensor, seeds: Tensor, count: int) -> Tensor:
    """(..., count) int64 indices: a random subset of each row's nearest, drawn without replacement.

    A row that keeps fewer than ``count`` gives all of them, and then repeats from the first.

    Args:
        distance: (..., N) float32, none negative.
        keep: (...) int64, how many nearest to draw from, 1 to N; what ties with the last of them is kept as well.
        seeds: (...) int64 random bits of each row.
        count: of the subset.
    """
    available = min(count, distance.shape[-1])
    if in_numpy(distance):
        rows = _as_int32(distance).flatten(0, -2).numpy()
        halves = (half.flatten().numpy() for half in _halves(seeds))
        parts = zip(rows, keep.flatten().tolist(), *halves, strict=True)
        drawn = [_draw_row(row, kept, *half, count=available) for row, kept, *half in parts]
        chosen = torch.from_numpy(np.stack(drawn)).view(*keep.shape, available)
    else:
        last = distance.sort(-1).values.gather(-1, (keep - 1)[..., None])
        place = torch.arange(distance.shape[-1], dtype=torch.int32, device=distance.device)
        low, high = _halves(seeds)
        order = order_of(place, low[..., None], high[..., None])
        chosen = smallest_indices(order.masked_fill_(distance > last, _LAST), available)
    place = torch.arange(count, device=distance.device)
    return chosen.gather(-1, place % keep.clamp(max=available)[..., None])


def smallest_indices(values: Tensor, count: int) -> Tensor:
    """(..., count) int64 indices, rising, of the smallest of each row; ties go to the lower index.

    Args:
        values: (..., N) int32 or float32, none negative.
        count: at most N.
    """
    if in_numpy(values):
        rows = _as_int32(values).flatten(0, -2).numpy()
        return torch.from_numpy(_smallest_of_rows(rows, count)).view(*values.shape[:-1], count)
    values = _as_int32(values)
    place = torch.arange(values.shape[-1], device=values.device)
    keys = (values.to(torch.int64) << 32) | place
    first = keys.topk(count, dim=-1, largest=False, sorted=False).values & 0xFFFFFFFF
    return first.sort(-1).values


def largest_index(values: Tensor) -> Tensor:
    """(...) int64 index of the largest of (..., N) values; ties go to the lower index."""
    if in_numpy(values):
        return torch.from_numpy(np.asarray(values.numpy().argmax(-1)))
    return values.argmax(-1)


def in_numpy(values: Tensor) -> bool:
    """Whether the values are plain numbers in the CPU's memory, and nobody records what is done to them."""
    return (
        values.device.type == "cpu"
        and not values.requires_grad
        and torch._C._get_tracing_state() is None
        and not torch.compiler.is_compiling()
    )


def _as_int32(values: Tensor) -> Tensor:
    """Numbers of the same order: the bits of a float that is not negative rise with it, and select faster."""
    return values.float().view(torch.int32) if values.is_floating_point() else values


def _halves(seeds: Tensor) -> tuple[Tensor, Tensor]:
    """The lower and the upper 32 bits."""
    return seeds.to(torch.int32), (seeds >> 32).to(torch.int32)


def _draw_row(
    distance: NDArray[np.int32], keep: int, low: np.int32, high: np.int32, *, count: int
) -> NDArray[np.int64]:
    """``draw_nearest`` of one row; only the points inside are put in an order."""
    inside = np.flatnonzero(distance <= np.partition(distance, keep - 1)[keep - 1])
    if len(inside) > count:
        order: NDArray[np.int32] = order_of(inside.astype(np.int32), low, high)
        return inside[_smallest_of_rows(order[None], count)[0]]
    return np.resize(inside, count)


def _smallest_of_rows(rows: NDArray[Any], count: int) -> NDArray[np.int64]:
    """(R, count) rising indices of the smallest of (R, N) rows."""
    size = rows.shape[1]
    last = np.partition(rows, count - 1, axis=1)[:, count - 1 : count]
    found = np.flatnonzero(rows <= last)
    if len(found) == len(rows) * count:
        return found.reshape(len(rows), count) % size
    # Some tie with the last one wanted: those of a row that come late in it are left out.
    spare = (rows < last).sum(1, keepdims=True)
    tied = rows == last
    wanted = (rows < last) | (tied & (tied.cumsum(1) <= count - spare))
    return np.flatnonzero(wanted).reshape(len(rows), count) % size
