"""Raw shapes to padded batches, in an order that is a pure function of (seed, epoch).

Sizes: B shapes, N points of the largest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointdistill.errors import DataError

AHEAD = 2
"""Batches read while the device computes; reading is a copy from the page cache, so few are enough."""


Item = TypeVar("Item")
Made = TypeVar("Made")


def made_ahead(items: Iterator[Item], make: Callable[[Item], Made]) -> Iterator[Made]:
    """``make`` of each item, one ahead in a thread of its own; what it raises is raised in its turn.

    On a CPU the views of the next step are made while this one trains: tensor operations release Python's lock.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:

        def next_made() -> Made:
            return make(next(items))

        waiting = pool.submit(next_made)
        while True:
            try:
                made = waiting.result()
            except StopIteration:
                return
            waiting = pool.submit(next_made)
            yield made


class PointSource(Protocol):
    """What the loader needs of a corpus."""

    def __len__(self) -> int: ...

    def points(self, index: int) -> NDArray[np.float32]:
        """(n, 3) float32 of one shape."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Raw shapes, padded with zeros to the largest."""

    points: Tensor
    """(B, N, 3) float32."""

    counts: Tensor
    """(B,) int64."""

    index: Tensor
    """(B,) int64 number of each shape in the corpus."""

    epoch: int

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; the copy does not block the host."""
        return Batch(
            self.points.to(device, non_blocking=True),
            self.counts.to(device, non_blocking=True),
            self.index.to(device, non_blocking=True),
            self.epoch,
        )


def epoch_order(shapes: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """(shapes,) int64, the order in which an epoch visits them."""
    rng = np.random.default_rng(np.random.SeedSequence((seed, epoch)))
    return rng.permutation(shapes)


def read_batch(corpus: PointSource, index: Sequence[int] | NDArray[np.int64], epoch: int) -> Batch:
    """Read and pad the shapes at ``index``.

    Raises:
        DataError: if a shape has no points or a coordinate that is not finite: it must never reach a weight.
    """
    clouds = [corpus.points(int(number)) for number in index]
    for number, cloud in zip(index, clouds, strict=True):
        # A sum is not finite as soon as one term is not; float64 cannot overflow on float32 terms.
        if not (len(cloud) and np.isfinite(cloud.sum(dtype=np.float64))):
            what = "coordinates that are not finite" if len(cloud) else "no points"
            msg = (
                f"shape {number} of the corpus has {what}; look at it with pointdistill.open_corpus, "
                "or build the corpus anew"
            )
            raise DataError(msg)
    counts = [len(cloud) for cloud in clouds]
    points = np.zeros((len(clouds), max(counts), 3), np.float32)
    for row, cloud in zip(points, clouds, strict=True):
        row[: len(cloud)] = cloud
    return Batch(
        torch.from_numpy(points),
        torch.tensor(counts),
        torch.tensor(np.asarray(index, np.int64)),
        epoch,
    )


def batches(
    corpus: PointSource,
    *,
    batch_size: int,
    seed: int,
    first: int,
    last: int,
    part: int = 0,
    parts: int = 1,
) -> Iterator[Batch]:
    """The batches of steps ``first`` to ``last`` - 1, whatever was read before.

    Args:
        corpus: shapes by number.
        batch_size: shapes a step, over all processes; each epoch's last partial batch is dropped.
        seed: of the order.
        first: step to begin at, so that a resumed run goes on where it stopped.
        last: step to end before.
        part: which of ``parts`` equal shares of every batch this process reads.
        parts: number of processes; divides ``batch_size``.
    """
    per_epoch = len(corpus) // batch_size
    share = batch_size // parts

    def read(step: int) -> Batch:
        epoch, place = divmod(step, per_epoch)
        order = epoch_order(len(corpus), seed=seed, epoch=epoch)
        begin = place * batch_size + part * share
        return read_batch(corpus, order[begin : begin + share], epoch)

    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: list[Future[Batch]] = []
        for step in range(first, last + AHEAD):
            if step < last:
                waiting.append(pool.submit(read, step))
            if step >= first + AHEAD:
                yield waiting.pop(0).result()
