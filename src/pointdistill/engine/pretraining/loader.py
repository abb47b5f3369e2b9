"""Raw shapes to padded batches, in an order that is a pure function of (seed, epoch).

Sizes: B shapes, N points of the largest of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointdistill.errors import DataError

AHEAD = 2
"""Batches read while the device computes; reading is a copy from the page cache, so few are enough."""

STAND_IN_POINTS = 256
"""Points of each cloud that stands in for one that could not be read."""

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

    read_error: Exception | None = None
    """Why the shapes could not be read; the points are then stand-ins, and the step will be called off."""

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; from pinned memory the copy does not block the host."""
        return replace(
            self,
            points=self.points.to(device, non_blocking=True),
            counts=self.counts.to(device, non_blocking=True),
            index=self.index.to(device, non_blocking=True),
        )


def on_device(source: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Each batch on the device. To a GPU it is copied on a stream of its own while the step before computes."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in source)
        return
    copy_stream = torch.cuda.Stream(device)

    def send(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(copy_stream):
            return batch.to(device), copy_stream.record_event()

    sent: deque[tuple[Batch, torch.cuda.Event]] = deque()
    for batch in source:
        sent.append(send(batch))
        if len(sent) > 1:
            yield _arrived(*sent.popleft())
    while sent:
        yield _arrived(*sent.popleft())


def _arrived(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """The batch, for work queued from now on: it waits for the copy, and the memory is kept until it is done."""
    stream = torch.cuda.current_stream(batch.points.device)
    stream.wait_event(copied)
    for tensor in (batch.points, batch.counts, batch.index):
        tensor.record_stream(stream)
    return batch


def epoch_order(shapes: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """(shapes,) int64, the order in which an epoch visits them."""
    rng = np.random.default_rng(np.random.SeedSequence((seed, epoch)))
    return rng.permutation(shapes)


def read_batch(
    corpus: PointSource,
    index: Sequence[int] | NDArray[np.int64],
    epoch: int,
    *,
    pin: bool = False,
) -> Batch:
    """Read and pad the shapes at ``index``; ``pin`` puts them into page-locked memory.

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
    return _padded(clouds, np.asarray(index, np.int64), epoch, pin=pin)


def _padded(
    clouds: Sequence[NDArray[np.float32]], index: NDArray[np.int64], epoch: int, *, pin: bool
) -> Batch:
    """The clouds in one tensor, in page-locked memory where asked: a GPU reads from there by itself."""
    counts = torch.tensor([len(cloud) for cloud in clouds])
    points = torch.empty(len(clouds), int(counts.max()), 3, pin_memory=pin)
    for row, cloud in zip(points.numpy(), clouds, strict=True):
        row[: len(cloud)] = cloud
        row[len(cloud) :] = 0.0
    number = torch.tensor(index)
    if pin:
        counts, number = counts.pin_memory(), number.pin_memory()
    return Batch(points, counts, number, epoch)


def _stand_in(index: NDArray[np.int64], epoch: int, read_error: Exception, *, pin: bool) -> Batch:
    """A batch that carries why it could not be read, with points that can be trained on.

    Processes wait for each other in every step: one that left without a word would hang the others. With stand-ins
    it comes as far as the message in which all learn that the step is called off.
    """
    cloud = np.random.default_rng(0).random((STAND_IN_POINTS, 3), np.float32)
    return replace(_padded([cloud] * len(index), index, epoch, pin=pin), read_error=read_error)


def batches(
    corpus: PointSource,
    *,
    batch_size: int,
    seed: int,
    first: int,
    last: int,
    part: int = 0,
    parts: int = 1,
    pin: bool = False,
) -> Iterator[Batch]:
    """The batches of steps ``first`` to ``last`` - 1, whatever was read before, read ahead in a thread.

    A batch that cannot be read comes in its turn, with the reason as its ``read_error``: of several processes, the
    one that meets it must not leave the others waiting.

    Args:
        corpus: shapes by number.
        batch_size: shapes a step, over all processes; each epoch's last partial batch is dropped.
        seed: of the order.
        first: step to begin at, so that a resumed run goes on where it stopped.
        last: step to end before.
        part: which of ``parts`` equal shares of every batch this process reads.
        parts: number of processes; divides ``batch_size``.
        pin: read into page-locked memory, for a GPU.
    """
    per_epoch = len(corpus) // batch_size
    share = batch_size // parts

    @lru_cache(maxsize=1)  # a million shapes take 20 ms to shuffle: once an epoch, not once a step
    def order(epoch: int) -> NDArray[np.int64]:
        return epoch_order(len(corpus), seed=seed, epoch=epoch)

    def read(step: int) -> Batch:
        epoch, place = divmod(step, per_epoch)
        begin = place * batch_size + part * share
        index = order(epoch)[begin : begin + share]
        try:
            return read_batch(corpus, index, epoch, pin=pin)
        except Exception as error:
            return _stand_in(index, epoch, error, pin=pin)

    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: list[Future[Batch]] = []
        for step in range(first, last + AHEAD):
            if step < last:
                waiting.append(pool.submit(read, step))
            if step >= first + AHEAD:
                yield waiting.pop(0).result()
