"""The loop of an embedding: processes read shapes, threads compute their features, finished chunks go to disk.

A chunk's file is written completely or not at all, so an interrupted embedding continues with the missing chunks.
Several processes or hosts can work on the same chunks: those that a launcher started claim one after another by
its lock, which ends with the process; the workers of a dask cluster are given them. What a chunk holds does not
depend on who computes it, so all ways give the same file.

Sizes: n shapes in a chunk, m vectors of all of them together, F the length of a vector.
"""

from __future__ import annotations

import functools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from pointdistill.data.corpus_building.pool import NO_STEP, Died, Done, Pool, open_pool
from pointdistill.data.files.processes import usable_cores
from pointdistill.data.sources.paths import (
    ReadSettings,
    ReadShape,
    ReadTask,
    ShapeList,
    read_task,
    shown_id,
)
from pointdistill.engine.embedding.compute import (
    CPU_BATCH,
    GPU_BATCH,
    FeatureKind,
    FeatureMaker,
    InferenceThreads,
    ShapeFeatures,
    inference_threads,
)
from pointdistill.engine.embedding.file import Chunk, WorkFolder
from pointdistill.engine.runtime.devices import pick_device
from pointdistill.engine.weights.encoders import load_encoder
from pointdistill.errors import DataError
from pointdistill.reporter import SILENT, Reporter

ENCODER = "encoder"
"""Folder in the work folder that holds the encoder for the workers of a cluster."""

_LOOK_SECONDS = 0.2
_COUNT_SECONDS = 5.0
"""How often the chunks that other processes have finished are counted."""

# The first death may not be the shape's fault: another program may have taken the memory.
_DEATHS_OF_A_SHAPE = 2
_DEATHS_BETWEEN_SHAPES = 3

READ_AT_ONCE = 16
"""Fewest shapes that a reading process is given at a time."""

FEW_FILES = 48
"""Up to this many files are read in this process, because starting others would take longer."""


_PendingBatch: TypeAlias = tuple[ReadTask, list[tuple[int, str]], Future[list[ShapeFeatures]]]
"""The task that a batch belongs to, number and id of each of its shapes, and their features to come."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Which of the processes that work on the same chunks this one is."""

    rank: int
    processes: int
    local_processes: int = 1
    """Processes on this machine."""

    def order(self, chunks: Sequence[int]) -> list[int]:
        """The chunks in the order in which this process looks for one that is free: its own part first."""
        parts = [chunks[part :: self.processes] for part in range(self.processes)]
        return [number for part in parts[self.rank :] + parts[: self.rank] for number in part]


class _Deaths:
    """Which shapes ended the process that read them, and how often."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[int, ...]] = Counter()

    def reason(self, event: Died[Any], *, task: int, shape: int | None) -> str | None:
        """Why a shape is refused after another death; None if it is tried once more.

        Args:
            event: the death.
            task: number of the task.
            shape: number of the shape that was being read; None if none was.

        Raises:
            DataError: if processes keep ending while no shape is read.
        """
        key = (task,) if shape is None else (task, shape)
        self._counts[key] += 1
        if shape is None:
            if self._counts[key] == _DEATHS_BETWEEN_SHAPES:
                msg = f"processes keep ending while no shape is read ({event.how}); run the same again to go on"
                raise DataError(msg)
            return None
        if self._counts[key] < _DEATHS_OF_A_SHAPE:
            return None
        return f"the process that read it ended ({event.how}); the file is damaged, or memory was short"


class EmbeddingLoop:
    """Reads, computes and saves the shapes of a list, chunk by chunk."""

    def __init__(
        self,
        shapes: ShapeList,
        settings: ReadSettings,
        work: WorkFolder,
        chunk_size: int,
        reporter: Reporter = SILENT,
    ) -> None:
        self.shapes = shapes
        self.settings = settings
        self.work = work
        self.chunk_size = chunk_size
        self._reporter = reporter
        self._unfinished: dict[int, Chunk] = {}
        self._pending: deque[_PendingBatch] = deque()
        self._claims: dict[int, ExitStack] = {}
        self._deaths = _Deaths()
        self._done = self._refused = 0
        self._counted_at = 0.0

    @property
    def refused(self) -> int:
        """Shapes that could not be used, of those that were read here."""
        return self._refused

    def chunk(self, number: int) -> Chunk:
        """A chunk with this number, still without shapes."""
        first = number * self.chunk_size
        return Chunk(first, min(self.chunk_size, len(self.shapes) - first))

    def missing(self) -> int:
        """Number of shapes in chunks that are not on disk yet."""
        return self._shapes_of(self.work.missing())

    def _shapes_of(self, chunks: Sequence[int]) -> int:
        return sum(self.chunk(number).size for number in chunks)

    def run(
        self,
        maker: FeatureMaker,
        *,
        batch_size: int | None,
        workers: int | None,
        stopped: Callable[[], bool],
        share: Share | None = None,
    ) -> None:
        """Compute the missing chunks; after a stop, only shapes that have been read are finished.

        With a ``share`` other processes compute them too. The first then ends when all are there, and takes those
        of processes that have ended; the others end when there is none left to claim.

        Args:
            maker: computes the features.
            batch_size: clouds per forward pass; None chooses by the device.
            workers: processes that read; 0 reads in this one, None chooses by the number of files.
            stopped: called after every task; True ends the loop.
            share: which of several processes this is; None if it is alone.
        """
        on_cpu = maker.device.type == "cpu"
        batch_size = batch_size or (CPU_BATCH if on_cpu else GPU_BATCH)
        processes = self._readers(on_cpu, share) if workers is None else workers
        read = functools.partial(read_task, self.settings)
        pool: Pool[ReadTask, list[ReadShape]] = open_pool(
            read, workers=processes, on_step=_ignore_step
        )
        with pool, inference_threads(maker) as threads, ExitStack() as claims:
            claims.callback(self._release)
            while True:
                missing = self.work.missing()
                self._done = len(self.shapes) - self._shapes_of(missing)
                chunks = missing if share is None else self._claimed(share.order(missing))
                tasks = self._tasks(chunks, max(READ_AT_ONCE, batch_size))
                # Two tasks per process: one to work on, and the next one to start on without waiting.
                for task in islice(tasks, 2 * processes or 1):
                    pool.submit(task)
                self._work(pool, tasks, threads, batch_size, stopped)
                if share is None or share.rank > 0 or stopped() or not self.work.missing():
                    return
                time.sleep(_LOOK_SECONDS)  # others have what is missing, or have just ended

    def _work(
        self,
        pool: Pool[ReadTask, list[ReadShape]],
        tasks: Iterator[ReadTask],
        threads: InferenceThreads,
        batch_size: int,
        stopped: Callable[[], bool],
    ) -> None:
        """Read and compute until there are no more tasks."""
        for event in pool.events():
            if stopped():
                break  # shapes that were read already are still computed and saved
            if isinstance(event, Died):
                pool.submit(self._after_death(event), first=True)
                continue
            for task in islice(tasks, 1):
                pool.submit(task)
            self._compute(event, threads, batch_size)
        while self._pending:
            self._collect()

    def run_one(
        self,
        task: ChunkTask,
        maker: FeatureMaker,
        started: Callable[[int], None],
        *,
        batch_size: int | None,
    ) -> None:
        """Compute one chunk in this process, and save it.

        Args:
            task: the chunk.
            maker: computes the features.
            started: called with the number of each shape before it is read.
            batch_size: clouds per forward pass; None chooses by the device.
        """
        batch_size = batch_size or (CPU_BATCH if maker.device.type == "cpu" else GPU_BATCH)
        tasks = list(self._tasks([task.number], max(READ_AT_ONCE, batch_size)))
        with inference_threads(maker) as threads:
            for part in tasks:
                last = part.first + len(part.locations)
                part.refused = {
                    n - part.first: why for n, why in task.refused.items() if part.first <= n < last
                }
                read = read_task(self.settings, part, functools.partial(_from, part.first, started))
                started(NO_STEP)
                self._compute(Done(part, read), threads, batch_size)
            while self._pending:
                self._collect()

    def run_on_cluster(self, pool: Pool[ChunkTask, int]) -> None:
        """Have the missing chunks computed by a cluster's workers.

        Raises:
            DataError: if workers cannot do it, or the scheduler is gone.
        """
        missing = self.work.missing()
        self._done = len(self.shapes) - self._shapes_of(missing)
        with pool:
            for number in missing:
                pool.submit(ChunkTask(number))
            for event in pool.events():
                task = event.task
                if isinstance(event, Died):
                    reason = self._deaths.reason(event, task=task.number, shape=event.step)
                    if reason is not None and event.step is not None:
                        task.refused[event.step] = reason
                    pool.submit(task, first=True)
                    continue
                self._done += self.chunk(task.number).size
                self._refused += event.result
                self._report()

    def _claimed(self, chunks: Iterable[int]) -> Iterator[int]:
        """Those of the chunks that this process can claim; each is claimed when its turn comes."""
        for number in chunks:
            claim = self.work.claim(number)
            if claim is not None:
                self._claims[number] = claim
                yield number

    def _release(self) -> None:
        """Leave unfinished chunks to other processes."""
        for claim in self._claims.values():
            claim.close()
        self._claims.clear()

    def _readers(self, on_cpu: bool, share: Share | None) -> int:
        """Number of processes to read with."""
        # Shapes of a corpus do not count: they are read as they are, which takes no time.
        files = sum(s.count for s in self.shapes.sources if s.kind != "corpus")
        if files <= FEW_FILES:
            return 0
        cores = usable_cores() // 2 if on_cpu else usable_cores() - 1
        return max(1, cores // (share.local_processes if share else 1))

    def _tasks(self, chunks: Iterable[int], size: int) -> Iterator[ReadTask]:
        for number in chunks:
            chunk = self.chunk(number)
            for first in range(chunk.first, chunk.first + chunk.size, size):
                last = min(first + size, chunk.first + chunk.size)
                yield ReadTask(number, first, [self.shapes[k][1] for k in range(first, last)])

    def _compute(
        self,
        event: Done[ReadTask, list[ReadShape]],
        threads: InferenceThreads,
        batch_size: int,
    ) -> None:
        """Give the shapes that a task has read to the threads, in batches of clouds of the same size."""
        task = event.task
        chunk = self._unfinished.setdefault(task.chunk, self.chunk(task.chunk))
        by_size: dict[int, list[tuple[int, str, NDArray[np.float32]]]] = {}
        for number, shape in enumerate(event.result, start=task.first):
            name = self._id(number, shape.name)
            if shape.points is None:
                chunk.failed[number] = (name, shape.reason)
                self._refused += 1
                self._done += 1
            else:
                chunk.assumed_up += shape.assumed_up
                chunk.left_out += replace(shape.left_out, first=(name,) * len(shape.left_out.first))
                by_size.setdefault(len(shape.points), []).append((number, name, shape.points))
        for group in by_size.values():
            for first in range(0, len(group), batch_size):
                batch = group[first : first + batch_size]
                future = threads.submit([points for _, _, points in batch])
                self._pending.append((task, [(number, name) for number, name, _ in batch], future))
        self._save_if_complete(task.chunk)
        # Bounds memory, and still leaves every thread a batch to continue with.
        while len(self._pending) > 2 * threads.threads:
            self._collect()

    def _collect(self) -> None:
        """Wait for the oldest batch, and add its features to its chunk."""
        task, names, future = self._pending.popleft()
        chunk = self._unfinished[task.chunk]
        for (number, name), features in zip(names, future.result(), strict=True):
            source, location = self.shapes[number]
            chunk.shapes[number] = (name, source, location.row, features)
        self._done += len(names)
        self._save_if_complete(task.chunk)
        self._report()

    def _report(self) -> None:
        note = f"{self._refused:,} refused" if self._refused else ""
        self._reporter.progress("embedding", self._done, len(self.shapes), note=note)

    def _save_if_complete(self, number: int) -> None:
        if not self._unfinished[number].complete:
            return
        self.work.save(number, self._unfinished.pop(number))
        claim = self._claims.pop(number, None)
        if claim is not None:
            claim.close()
            if time.monotonic() - self._counted_at > _COUNT_SECONDS:
                self._counted_at = time.monotonic()
                begun = sum(len(c.shapes) + len(c.failed) for c in self._unfinished.values())
                self._done = len(self.shapes) - self.missing() + begun

    def _after_death(self, event: Died[ReadTask]) -> ReadTask:
        """The task again, where need be with the shape at which its process died marked as refused."""
        task = event.task
        shape = None if event.step is None else task.first + event.step
        reason = self._deaths.reason(event, task=task.first, shape=shape)
        if reason is not None and event.step is not None:
            task.refused[event.step] = reason
        return task

    def _id(self, number: int, name: str) -> str:
        """A shape's id; bytes of a file name that are not valid UTF-8 are escaped."""
        return shown_id(self.shapes.shape_id(self.shapes[number][0], name))


def _from(first: int, started: Callable[[int], None], step: int) -> None:
    """Say that the shape at this position of a task is begun, by its number."""
    started(first + step)


def _ignore_step(task: ReadTask, step: int) -> None:
    # The pool counts steps itself, to know at which one a process died; nothing else needs them.
    del task, step


@dataclass(frozen=True, slots=True)
class ChunkTask:
    """A chunk for a worker of a cluster."""

    number: int
    refused: dict[int, str] = field(default_factory=dict)
    """By number of the shape: why it is not to be tried again."""


@dataclass(frozen=True, slots=True)
class EmbedJob:
    """The work on an embedding, as it is sent to the workers of a cluster; see `ClusterJob`."""

    shapes: ShapeList
    settings: ReadSettings
    work: WorkFolder
    """Holds the encoder too, in `ENCODER`."""

    chunk_size: int
    kind: FeatureKind
    points: int
    turns: int
    device: str
    batch_size: int | None
    inputs: tuple[Path, ...]
    """What the shapes are read from, which every host must see."""

    def __call__(self, task: ChunkTask, started: Callable[[int], None]) -> int:
        """Compute and save one chunk; returns how many shapes of it were refused."""
        # One core: a dask worker has as many threads, and so as many of these processes, as it may use cores.
        torch.set_num_threads(1)
        maker = _maker(self.shared / ENCODER, self.kind, self.points, self.turns, self.device)
        loop = EmbeddingLoop(self.shapes, self.settings, self.work, self.chunk_size)
        loop.run_one(task, maker, started, batch_size=self.batch_size)
        return loop.refused

    @property
    def shared(self) -> Path:
        """The work folder, in which all hosts write."""
        return self.work.path

    def finished(self, task: ChunkTask) -> int | None:
        """0 if the chunk is on disk already."""
        return 0 if self.work.has(task.number) else None

    def ready(self, task: ChunkTask) -> bool:
        """A chunk waits for nothing."""
        del task
        return True

    def lasting(self, task: ChunkTask) -> bool:
        """Every chunk must be seen before they are joined."""
        del task
        return True


@functools.lru_cache(maxsize=1)
def _maker(folder: Path, kind: FeatureKind, points: int, turns: int, device: str) -> FeatureMaker:
    """The encoder of a cluster's work, loaded once in a process."""
    return FeatureMaker(load_encoder(folder), kind, pick_device(device), points=points, turns=turns)
