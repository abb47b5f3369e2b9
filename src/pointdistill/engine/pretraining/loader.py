"""Loads raw shapes into padded batches, in an order that is a pure function of (seed, epoch).

There are no worker processes: the shards of a corpus stay open, so reading a batch is a copy from the page cache,
and one thread keeps up. Points of a corpus on disk are handed over as they are stored, int16 on each shape's own
cube, and become float32 on the device: half the bytes to copy there, and nothing to compute here.

Sizes: B shapes in a batch, N points of the largest of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointdistill.data.corpus.shard import LEVELS
from pointdistill.errors import DataError

AHEAD = 2
"""Batches to read in advance while the device computes."""

_SURELY_FINITE = 1e38
"""A centre and a scale that together are below this make coordinates that float32 can hold."""

STAND_IN_POINTS = 256
"""Points of each placeholder cloud in a batch that could not be read."""

Item = TypeVar("Item")
Made = TypeVar("Made")


def made_ahead(items: Iterator[Item], make: Callable[[Item], Made]) -> Iterator[Made]:
    """Apply ``make`` to each item, one ahead in a thread; an exception is raised when its item's turn comes."""
    # A thread is enough to make the next step's views while this step trains, because tensor operations release
    # Python's global lock. ``next`` runs in the thread too, so that ``items`` is only ever advanced from there.
    with ThreadPoolExecutor(max_workers=1) as pool:

        def next_made() -> Made:
            return make(next(items))

        waiting = pool.submit(next_made)
        while True:
            try:
                made = waiting.result()
            except StopIteration:
                # A generator must not let StopIteration escape (PEP 479), so the end is passed on as a return.
                return
            waiting = pool.submit(next_made)
            yield made


class PointSource(Protocol):
    """The part of a corpus that the loader uses."""

    def __len__(self) -> int: ...

    def points(self, index: int) -> NDArray[np.float32]:
        """(n, 3) float32 of one shape."""
        ...


class Stored(Protocol):
    """The points of a shape as they are stored; see `pointdistill.data.corpus.reader.StoredPoints`."""

    @property
    def count(self) -> int:
        """Number of points, at least 1."""

    @property
    def scale(self) -> float:
        """Half the side of the shape's cube."""

    @property
    def center(self) -> bytes:
        """(3,) float32 as 12 bytes."""

    def read(self, levels: NDArray[np.int16], /) -> None:
        """Read them into (count, 3) int16."""
        ...


@runtime_checkable
class StoredSource(PointSource, Protocol):
    """A corpus whose points can be read as they are stored."""

    def stored(self, index: int) -> Stored:
        """The points of one shape, int16 with a scale and a centre."""
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
    """Why the shapes could not be read; the points are then placeholders, and the step will not be applied."""

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        # ``non_blocking`` takes effect only for pinned memory; elsewhere the copy is synchronous, and still
        # correct.
        return replace(
            self,
            points=self.points.to(device, non_blocking=True),
            counts=self.counts.to(device, non_blocking=True),
            index=self.index.to(device, non_blocking=True),
        )


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """Shapes as they are stored, padded with zeros to the largest; `to` turns them into a `Batch`."""

    levels: Tensor
    """(B, N, 3) int16."""

    steps: Tensor
    """(B,) float32, what one level is worth in the shape's own unit."""

    centers: Tensor
    """(B, 3) float32."""

    counts: Tensor
    """(B,) int64."""

    index: Tensor
    """(B,) int64 number of each shape in the corpus."""

    epoch: int

    padded: bool
    """Whether a shape has fewer than N points."""

    def to(self, device: torch.device) -> Batch:
        """Copy the batch to a device and restore its points there, with the bits of ``Corpus.points``."""
        levels, steps, centers, counts, index = (
            part.to(device, non_blocking=True)
            for part in (self.levels, self.steps, self.centers, self.counts, self.index)
        )
        points = (
            _on_cpu(levels, steps, centers)
            if device.type == "cpu"
            else _restored(levels, steps, centers)
        )
        if self.padded:
            places = torch.arange(points.shape[1], device=device)
            points.masked_fill_((places >= counts[:, None])[..., None], 0.0)
        return Batch(points, counts, index, self.epoch)


AnyBatch: TypeAlias = Batch | StoredBatch


def _restored(levels: Tensor, steps: Tensor, centers: Tensor) -> Tensor:
    """(B, N, 3) float32 of int16 levels."""
    # Two operations, each of which rounds, as on the CPU: a fused one would give other bits.
    points = levels.to(torch.float32)
    points *= steps[:, None, None]
    points += centers[:, None, :]
    return points


def _on_cpu(levels: Tensor, steps: Tensor, centers: Tensor) -> Tensor:
    """The same on a CPU, whose loops over (N, 3) against (3,) would be three long."""
    points = levels.flatten(1).to(torch.float32)
    points *= steps[:, None]
    points = points.unflatten(1, (-1, 3))
    for axis in range(3):
        points[..., axis] += centers[:, axis, None]
    return points


def on_device(source: Iterator[AnyBatch], device: torch.device) -> Iterator[Batch]:
    """Each batch, copied to the device and restored; to a GPU one batch ahead, while the step before computes."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in source)
        return
    # On the default stream a copy would queue up behind the kernels of the step before. On a stream of its own the
    # GPU's copy engine works beside them.
    copy_stream = torch.cuda.Stream(device)

    def send(batch: AnyBatch) -> tuple[Batch, torch.cuda.Event]:
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
    """Make the current stream wait for the copy, and return the batch."""
    stream = torch.cuda.current_stream(batch.points.device)
    # The GPU waits, not the host.
    stream.wait_event(copied)
    for tensor in (batch.points, batch.counts, batch.index):
        # The allocator knows only the stream that a tensor was made on. Without this it could hand the memory to
        # the next copy while kernels of this stream still read it.
        tensor.record_stream(stream)
    return batch


def epoch_order(shapes: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which an epoch visits the shapes, (shapes,) int64."""
    # A generator of its own for every epoch, not one that runs on: a resumed run needs no random state, only the
    # step it has reached.
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
        DataError: if a shape has no points, or a coordinate that is not finite.
    """
    clouds = [corpus.points(int(number)) for number in index]
    for number, cloud in zip(index, clouds, strict=True):
        # One NaN would reach every weight through the optimiser. A sum is not finite as soon as one term is not,
        # and costs less than testing each coordinate; in float64 the sum of float32 numbers cannot overflow by
        # itself.
        if not (len(cloud) and np.isfinite(cloud.sum(dtype=np.float64))):
            what = "coordinates that are not finite" if len(cloud) else "no points"
            msg = (
                f"shape {number} of the corpus has {what}; look at it with pointdistill.open_corpus, "
                "or rebuild the corpus"
            )
            raise DataError(msg)
    return _padded(clouds, np.asarray(index, np.int64), epoch, pin=pin)


def _padded(
    clouds: Sequence[NDArray[np.float32]], index: NDArray[np.int64], epoch: int, *, pin: bool
) -> Batch:
    # With ``pin`` the clouds are written into page-locked memory right away. The GPU reads that by itself (DMA),
    # so the copy to it does not block the host; pinning afterwards would copy every batch once more.
    counts = torch.tensor([len(cloud) for cloud in clouds])
    points = torch.empty(len(clouds), int(counts.max()), 3, pin_memory=pin)
    for row, cloud in zip(points.numpy(), clouds, strict=True):
        row[: len(cloud)] = cloud
        row[len(cloud) :] = 0.0
    number = torch.tensor(index)
    if pin:
        counts, number = counts.pin_memory(), number.pin_memory()
    return Batch(points, counts, number, epoch)


def _read_stored(
    corpus: StoredSource, index: NDArray[np.int64], epoch: int, *, pin: bool
) -> AnyBatch:
    """Read and pad the shapes at ``index`` as they are stored.

    Raises:
        DataError: if a shape has a coordinate that is not finite.
    """
    shapes = [corpus.stored(int(number)) for number in index]
    centers = np.frombuffer(b"".join(shape.center for shape in shapes), "<f4").reshape(-1, 3)
    scales = np.array([shape.scale for shape in shapes])
    if not np.abs(centers).max() + scales.max() < _SURELY_FINITE:
        return read_batch(corpus, index, epoch, pin=pin)  # which looks at every coordinate
    counts = torch.tensor([shape.count for shape in shapes])
    most = int(counts.max())
    levels = torch.empty(len(shapes), most, 3, dtype=torch.int16, pin_memory=pin)
    for row, shape in zip(levels.numpy(), shapes, strict=True):
        shape.read(row[: shape.count])
        row[shape.count :] = 0
    small = (
        torch.from_numpy((scales / LEVELS).astype(np.float32)),
        torch.from_numpy(centers.copy()),
        counts,
        torch.tensor(index),
    )
    steps, middles, counts, number = (part.pin_memory() if pin else part for part in small)
    return StoredBatch(levels, steps, middles, counts, number, epoch, int(counts.min()) < most)


def _stand_in(index: NDArray[np.int64], epoch: int, read_error: Exception, *, pin: bool) -> Batch:
    """A batch of placeholder clouds that carries the error which reading its shapes raised."""
    # Processes wait for each other in every step, so one that simply raised would leave the others hanging in a
    # collective. With points that can be computed with, it reaches the step's message, from which all processes
    # learn that the step must not be applied.
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
) -> Iterator[AnyBatch]:
    """The batches of steps ``first`` to ``last`` - 1, read in advance by a thread.

    What a step's batch holds depends on its number alone, not on which batches were read before it. A batch that
    cannot be read is yielded when its turn comes, with the error as its ``read_error``.

    Args:
        corpus: shapes by number; of one on disk the points come as they are stored.
        batch_size: shapes per step, over all processes; each epoch's last partial batch is dropped.
        seed: seed of the order of shapes.
        first: first step; where a resumed run continues.
        last: step to end before.
        part: which of ``parts`` equal shares of every batch this process reads.
        parts: number of processes; divides ``batch_size``.
        pin: read into page-locked memory, for a GPU.
    """
    # Without the last partial batch of an epoch every step has the same number of shapes, which the processes can
    # divide equally.
    per_epoch = len(corpus) // batch_size
    share = batch_size // parts

    # Shuffling a million shapes takes 20 ms: worth doing once per epoch, not once per step. Steps come in order,
    # so one entry is enough.
    @lru_cache(maxsize=1)
    def order(epoch: int) -> NDArray[np.int64]:
        return epoch_order(len(corpus), seed=seed, epoch=epoch)

    def read(step: int) -> AnyBatch:
        epoch, place = divmod(step, per_epoch)
        begin = place * batch_size + part * share
        index = order(epoch)[begin : begin + share]
        try:
            if isinstance(corpus, StoredSource):
                return _read_stored(corpus, index, epoch, pin=pin)
            return read_batch(corpus, index, epoch, pin=pin)
        except Exception as error:
            # Any error at all: whatever it is, the other processes must hear of it through the step's message.
            return _stand_in(index, epoch, error, pin=pin)

    # One thread, so that batches come in order and the disk sees one reader; two batches ahead, so that one slow
    # read does not stall the device.
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: list[Future[AnyBatch]] = []
        for step in range(first, last + AHEAD):
            if step < last:
                waiting.append(pool.submit(read, step))
            if step >= first + AHEAD:
                yield waiting.pop(0).result()
