"""The loop of an embedding: tasks to reading processes, batches to computing threads, chunks to the disk."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.build.pool import Died, Done, Pool, open_pool
from pointdistill.data.shape_lists import (
    ReadSettings,
    ReadShape,
    ReadTask,
    ShapeList,
    read_task,
)
from pointdistill.data.workers import usable_cores
from pointdistill.engine.embedding.compute import (
    CPU_BATCH,
    GPU_BATCH,
    Computing,
    FeatureMaker,
    ShapeFeatures,
    computing,
)
from pointdistill.engine.embedding.work import Chunk, WorkFolder

READ_AT_ONCE = 16
"""Shapes of one task of a reading process."""

FEW_FILES = 48
"""Up to as many files are read in this process: starting others takes longer."""

Tell: TypeAlias = Callable[[int, int, int], None]
"""Called with shapes done, in all, and refused."""


_Waiting: TypeAlias = tuple[ReadTask, list[tuple[int, str]], Future[list[ShapeFeatures]]]
"""The task that a batch belongs to, number and id of each of its shapes, and what they will become."""


class EmbeddingLoop:
    """The loop: tasks to readers, batches to threads, chunks to the disk."""

    def __init__(
        self,
        shapes: ShapeList,
        settings: ReadSettings,
        work: WorkFolder,
        size: int,
        tell: Tell | None,
    ) -> None:
        self.shapes = shapes
        self.settings = settings
        self.work = work
        self.size = size
        self._tell = tell
        self._open: dict[int, Chunk] = {}
        self._waiting: deque[_Waiting] = deque()
        self._done = self._refused = 0

    def chunk(self, number: int) -> Chunk:
        """An empty chunk of the right place and size."""
        first = number * self.size
        return Chunk(first, min(self.size, len(self.shapes) - first))

    def missing(self) -> int:
        """Shapes of chunks that are not on the disk yet."""
        return sum(self.chunk(number).size for number in self.work.missing())

    def go(
        self,
        maker: FeatureMaker,
        *,
        batch_size: int | None,
        workers: int | None,
        stopped: Callable[[], bool],
    ) -> None:
        """Make what is missing, or as much of it as there is time for."""
        on_cpu = maker.device.type == "cpu"
        most = batch_size or (CPU_BATCH if on_cpu else GPU_BATCH)
        missing = self.work.missing()
        self._done = len(self.shapes) - self.missing()
        tasks = self._tasks(missing, max(READ_AT_ONCE, most))
        processes = self._readers(on_cpu) if workers is None else workers
        job = functools.partial(read_task, self.settings)
        pool: Pool[ReadTask, list[ReadShape]] = open_pool(job, workers=processes, on_step=_nothing)
        with pool, computing(maker) as threads:
            for task in islice(tasks, 2 * processes or 1):
                pool.submit(task)
            for event in pool.events():
                if stopped():
                    break  # what was read is still finished
                if isinstance(event, Died):
                    pool.submit(_without_the_killer(event), first=True)
                    continue
                for task in islice(tasks, 1):
                    pool.submit(task)
                self._take(event, threads, most)
            while self._waiting:
                self._collect()

    def _readers(self, on_cpu: bool) -> int:
        """Processes for the files of the list; corpora are read here, from mapped memory."""
        files = sum(s.count for s in self.shapes.sources if s.kind != "corpus")
        if files <= FEW_FILES:
            return 0
        return max(1, usable_cores() // 2 if on_cpu else usable_cores() - 1)

    def _tasks(self, chunks: Sequence[int], most: int) -> Iterator[ReadTask]:
        for number in chunks:
            chunk = self.chunk(number)
            for first in range(chunk.first, chunk.first + chunk.size, most):
                last = min(first + most, chunk.first + chunk.size)
                yield ReadTask(number, first, [self.shapes[k][1] for k in range(first, last)])

    def _take(self, event: Done[ReadTask, list[ReadShape]], threads: Computing, most: int) -> None:
        """Hand what a task read to the threads, equally large clouds together."""
        task = event.task
        chunk = self._open.setdefault(task.chunk, self.chunk(task.chunk))
        alike: dict[int, list[tuple[int, str, NDArray[np.float32]]]] = {}
        for number, shape in enumerate(event.result, start=task.first):
            name = self._id(number, shape.name)
            if shape.points is None:
                chunk.failed[number] = (name, shape.reason)
                self._refused += 1
                self._done += 1
            else:
                chunk.assumed_up += shape.assumed_up
                alike.setdefault(len(shape.points), []).append((number, name, shape.points))
        for group in alike.values():
            for first in range(0, len(group), most):
                batch = group[first : first + most]
                future = threads.submit([points for _, _, points in batch])
                self._waiting.append((task, [(number, name) for number, name, _ in batch], future))
        self._save_if_complete(task.chunk)
        while len(self._waiting) > 2 * threads.threads:
            self._collect()

    def _collect(self) -> None:
        """Wait for the oldest batch."""
        task, names, future = self._waiting.popleft()
        chunk = self._open[task.chunk]
        for (number, name), features in zip(names, future.result(), strict=True):
            source, place = self.shapes[number]
            chunk.shapes[number] = (name, source, place.row, features)
        self._done += len(names)
        self._save_if_complete(task.chunk)
        if self._tell is not None:
            self._tell(self._done, len(self.shapes), self._refused)

    def _save_if_complete(self, number: int) -> None:
        if self._open[number].complete:
            self.work.save(number, self._open.pop(number))

    def _id(self, number: int, name: str) -> str:
        """A shape's id; bytes of a file name that are no text are spelled out."""
        found = self.shapes.shape_id(self.shapes[number][0], name)
        return found.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _without_the_killer(event: Died[ReadTask]) -> ReadTask:
    """The task again, without the shape at which its process ended."""
    task = event.task
    task.refused[event.step or 0] = (
        f"the process that read it ended ({event.how}); the file is damaged, or memory was short"
    )
    return task


def _nothing(task: ReadTask, step: int) -> None:
    """Steps are told for the pool's own sake."""
    del task, step
