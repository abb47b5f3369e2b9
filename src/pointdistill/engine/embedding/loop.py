"""The loop of an embedding: tasks to reading processes, batches to computing threads, finished chunks to disk.

A chunk's file is written whole or not at all, so a stopped embedding goes on with the chunks that are missing.

Sizes: n shapes of a chunk, m vectors of all of them together, F the length of a vector.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.build.pool import Died, Done, Pool, open_pool
from pointdistill.data.files import read_json, write_aside, write_json
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
from pointdistill.errors import DataError

_REQUEST = "request.json"


@dataclass(slots=True)
class Chunk:
    """Neighbouring shapes of a list, as they are finished; those refused are named with their cause."""

    first: int
    size: int
    shapes: dict[int, tuple[str, int, int, ShapeFeatures]] = field(default_factory=dict)
    """By number: id, source, row within the source, features."""

    failed: dict[int, tuple[str, str]] = field(default_factory=dict)
    """By number: id and cause."""

    assumed_up: int = 0
    """Files whose up axis was assumed."""

    @property
    def complete(self) -> bool:
        """Whether every shape is there or refused."""
        return len(self.shapes) + len(self.failed) == self.size

    def columns(self) -> dict[str, NDArray[Any]]:
        """What is stored, in the order of the list."""
        kept = [self.shapes[number] for number in sorted(self.shapes)]
        found = [features for _, _, _, features in kept]
        failed = [self.failed[number] for number in sorted(self.failed)]
        columns: dict[str, NDArray[Any]] = {
            "ids": np.array([name for name, _, _, _ in kept], np.str_),
            "sources": np.array([source for _, source, _, _ in kept], np.int32),
            "rows": np.array([row for _, _, row, _ in kept], np.int64),
            "failed": np.array(json.dumps(failed)),
            "assumed_up": np.array(self.assumed_up),
        }
        if found:
            rows = [np.atleast_2d(features.features) for features in found]
            columns["features"] = np.concatenate(rows)
            columns["counts"] = np.array([len(row) for row in rows], np.int64)
            if found[0].positions is not None:
                columns["positions"] = np.concatenate(
                    [f.positions for f in found if f.positions is not None]
                )
        return columns


class WorkFolder:
    """Chunks of one embedding beside its output."""

    def __init__(self, output: Path, request: Mapping[str, Any], *, chunks: int) -> None:
        """Make the folder, or go on with the one that is there.

        Args:
            output: the file that the chunks will become.
            request: everything that decides what they hold.
            chunks: how many there will be.

        Raises:
            DataError: if the folder holds finished chunks of another request.
        """
        self.path = output.with_name(f".{output.name}.work")
        self._chunks = chunks
        try:
            found = read_json(self.path / _REQUEST)
        except DataError:
            found = None
        if found is None or not any(self.path.glob("chunk-*.npz")):
            shutil.rmtree(self.path, ignore_errors=True)
            write_json(self.path / _REQUEST, request)
            return
        if found != json.loads(json.dumps(request)):
            keys = sorted({*found, *request} if isinstance(found, dict) else request)
            other = [key for key in keys if found.get(key) != request.get(key)]
            msg = (
                f"{self.path}: an unfinished embedding with other {', '.join(other)}; finish it as it was "
                "begun, remove the folder, or choose another --output"
            )
            raise DataError(msg)

    def missing(self) -> list[int]:
        """Numbers of the chunks still to be made."""
        return [number for number in range(self._chunks) if not self._file(number).exists()]

    def save(self, number: int, chunk: Chunk) -> None:
        """Write a complete chunk."""
        with write_aside(self._file(number)) as aside:
            np.savez(aside, allow_pickle=False, **chunk.columns())

    def columns(self, *names: str) -> Iterator[dict[str, NDArray[Any]]]:
        """The named columns of every chunk, one chunk in memory at a time; absent ones are left out."""
        for number in range(self._chunks):
            with np.load(self._file(number), allow_pickle=False) as stored:
                yield {name: stored[name] for name in names if name in stored}

    def remove(self) -> None:
        """Delete the folder, its output being written."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self.path / f"chunk-{number:06d}.npz"

    @staticmethod
    def refusals(stored: NDArray[Any]) -> list[tuple[str, str]]:
        """Id and cause of each refused shape, from the column ``failed``."""
        return [(name, reason) for name, reason in json.loads(str(stored))]


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
