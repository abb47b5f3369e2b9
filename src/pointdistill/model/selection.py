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


def kth_smallest(values: Tensor, k: Tensor) -> Tensor:
    """(...) the k-th smallest, from 1, of each row of (..., N) values; k (...) int64."""
    if in_numpy(values):
        rows, places = values.flatten(0, -2).numpy(), (k - 1).flatten().tolist()
        found = [np.partition(row, place)[place] for row, place in zip(rows, places, strict=True)]
        return torch.from_numpy(np.stack(found)).view(k.shape)
    return values.sort(-1).values.gather(-1, (k - 1)[..., None]).squeeze(-1)


def smallest_indices(values: Tensor, count: int) -> Tensor:
    """(..., count) int64 indices, rising, of the smallest of each row; ties go to the lower index.

    Args:
        values: (..., N) int32 or float32, none negative.
        count: at most N.
    """
    if in_numpy(values):
        rows = values.flatten(0, -2).numpy()
        return torch.from_numpy(_smallest_of_rows(rows, count)).view(*values.shape[:-1], count)
    if values.is_floating_point():
        values = values.float().view(torch.int32)  # in the same order, as none is negative
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
