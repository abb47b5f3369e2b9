"""The loop of an embedding: processes read shapes, threads compute their features, finished chunks go to disk.

A chunk's file is written completely or not at all, so an interrupted embedding continues with the missing chunks.

Sizes: n shapes in a chunk, m vectors of all of them together, F the length of a vector.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.corpus_building.pool import Died, Done, Pool, open_pool
from pointdistill.data.files.files import read_json, write_aside, write_json
from pointdistill.data.files.processes import usable_cores
from pointdistill.data.files.schema import from_plain, parse_json, refusing_damage, to_plain
from pointdistill.data.meshes.records import LeftOut
from pointdistill.data.sources.paths import ReadSettings, ReadShape, ReadTask, ShapeList, read_task
from pointdistill.engine.embedding.compute import (
    CPU_BATCH,
    GPU_BATCH,
    FeatureMaker,
    InferenceThreads,
    ShapeFeatures,
    inference_threads,
)
from pointdistill.errors import DataError
from pointdistill.reporter import SILENT, Reporter

_REQUEST = "request.json"

READ_AT_ONCE = 16
"""Fewest shapes that a reading process is given at a time."""

FEW_FILES = 48
"""Up to this many files are read in this process, because starting others would take longer."""


@dataclass(slots=True)
class Chunk:
    """Consecutive shapes of a list: their features as they are computed, and the shapes that could not be used."""

    first: int
    size: int
    shapes: dict[int, tuple[str, int, int, ShapeFeatures]] = field(default_factory=dict)
    """By number: id, source, row within the source, features."""

    failed: dict[int, tuple[str, str]] = field(default_factory=dict)
    """By number: id and reason."""

    assumed_up: int = 0
    """Files whose up axis was assumed."""

    left_out: LeftOut = field(default_factory=LeftOut)
    """What the files of its shapes hold besides."""

    @property
    def complete(self) -> bool:
        """Whether every shape is embedded or refused."""
        return len(self.shapes) + len(self.failed) == self.size

    def columns(self) -> dict[str, NDArray[Any]]:
        """The arrays of the chunk's file, with shapes in the order of the list."""
        shapes = [self.shapes[number] for number in sorted(self.shapes)]
        features = [shape_features for _, _, _, shape_features in shapes]
        failed = [self.failed[number] for number in sorted(self.failed)]
        columns: dict[str, NDArray[Any]] = {
            "ids": np.array([name for name, _, _, _ in shapes], np.str_),
            "sources": np.array([source for _, source, _, _ in shapes], np.int32),
            "rows": np.array([row for _, _, row, _ in shapes], np.int64),
            "failed": np.array(json.dumps(failed)),
            "assumed_up": np.array(self.assumed_up),
            "left_out": np.array(json.dumps(to_plain(self.left_out))),
        }
        if features:
            rows = [np.atleast_2d(f.features) for f in features]
            columns["features"] = np.concatenate(rows)
            columns["counts"] = np.array([len(row) for row in rows], np.int64)
            if features[0].positions is not None:
                columns["positions"] = np.concatenate(
                    [f.positions for f in features if f.positions is not None]
                )
        return columns


class WorkFolder:
    """The chunks of an embedding, in a hidden folder beside its output until that is written."""

    def __init__(self, output: Path, request: Mapping[str, Any], *, chunks: int) -> None:
        """Create the folder, or continue with an existing one.

        Args:
            output: the file that the chunks will be joined into.
            request: everything that decides the content of the chunks.
            chunks: number of chunks in all.

        Raises:
            DataError: if the folder holds finished chunks of another request.
        """
        self.path = output.with_name(f".{output.name}.work")
        self._chunks = chunks
        try:
            earlier = read_json(self.path / _REQUEST)
        except DataError:
            earlier = None
        if earlier is None or not any(self.path.glob("chunk-*.npz")):
            shutil.rmtree(self.path, ignore_errors=True)
            write_json(self.path / _REQUEST, request)
            return
        if earlier != json.loads(json.dumps(request)):
            earlier = earlier if isinstance(earlier, dict) else {}
            keys = sorted({*earlier, *request})
            different = [key for key in keys if earlier.get(key) != request.get(key)]
            msg = (
                f"{self.path}: an unfinished embedding with other {', '.join(different)}; finish it with the "
                "settings it was started with, remove the folder, or choose another output file"
            )
            raise DataError(msg, settings=("output",))

    def missing(self) -> list[int]:
        """Numbers of the chunks that are not on disk yet."""
        return [number for number in range(self._chunks) if not self._file(number).exists()]

    def save(self, number: int, chunk: Chunk) -> None:
        """Write a complete chunk."""
        with write_aside(self._file(number)) as aside:
            np.savez(aside, allow_pickle=False, **chunk.columns())

    def columns(self, *names: str) -> Iterator[dict[str, NDArray[Any]]]:
        """For each chunk in turn, those of the named columns that it has."""
        for number in range(self._chunks):
            path = self._file(number)
            with (
                refusing_damage(path, advice="remove it, and its shapes are embedded again"),
                np.load(path, allow_pickle=False) as stored,
            ):
                yield {name: stored[name] for name in names if name in stored}

    def remove(self) -> None:
        """Delete the folder; called when the output has been written."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self.path / f"chunk-{number:06d}.npz"

    @staticmethod
    def refusals(stored: NDArray[Any]) -> list[tuple[str, str]]:
        """Id and reason of each refused shape, from the column ``failed``."""
        return [(str(name), str(reason)) for name, reason in parse_json(str(stored), any_text=True)]

    @staticmethod
    def left_out(stored: NDArray[Any] | None) -> LeftOut:
        """What files hold besides shapes, from the column ``left_out``; None in a chunk of an earlier version."""
        if stored is None:
            return LeftOut()
        return from_plain(LeftOut, parse_json(str(stored), any_text=True))


_PendingBatch: TypeAlias = tuple[ReadTask, list[tuple[int, str]], Future[list[ShapeFeatures]]]
"""The task that a batch belongs to, number and id of each of its shapes, and their features to come."""


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
        self._done = self._refused = 0

    def chunk(self, number: int) -> Chunk:
        """A chunk with this number, still without shapes."""
        first = number * self.chunk_size
        return Chunk(first, min(self.chunk_size, len(self.shapes) - first))

    def missing(self) -> int:
        """Number of shapes in chunks that are not on disk yet."""
        return sum(self.chunk(number).size for number in self.work.missing())

    def run(
        self,
        maker: FeatureMaker,
        *,
        batch_size: int | None,
        workers: int | None,
        stopped: Callable[[], bool],
    ) -> None:
        """Compute the missing chunks; after a stop, only shapes that have been read are finished.

        Args:
            maker: computes the features.
            batch_size: clouds per forward pass; None chooses by the device.
            workers: processes that read; 0 reads in this one, None chooses by the number of files.
            stopped: called after every task; True ends the loop.
        """
        on_cpu = maker.device.type == "cpu"
        batch_size = batch_size or (CPU_BATCH if on_cpu else GPU_BATCH)
        missing = self.work.missing()
        self._done = len(self.shapes) - self.missing()
        tasks = self._tasks(missing, max(READ_AT_ONCE, batch_size))
        processes = self._readers(on_cpu) if workers is None else workers
        read = functools.partial(read_task, self.settings)
        pool: Pool[ReadTask, list[ReadShape]] = open_pool(
            read, workers=processes, on_step=_ignore_step
        )
        with pool, inference_threads(maker) as threads:
            # Two tasks per process: one to work on, and the next one to start on without waiting.
            for task in islice(tasks, 2 * processes or 1):
                pool.submit(task)
            for event in pool.events():
                if stopped():
                    break  # shapes that were read already are still computed and saved
                if isinstance(event, Died):
                    pool.submit(_without_fatal_shape(event), first=True)
                    continue
                for task in islice(tasks, 1):
                    pool.submit(task)
                self._compute(event, threads, batch_size)
            while self._pending:
                self._collect()

    def _readers(self, on_cpu: bool) -> int:
        """Number of processes to read with."""
        # Shapes of a corpus do not count: they are read as they are, which takes no time.
        files = sum(s.count for s in self.shapes.sources if s.kind != "corpus")
        if files <= FEW_FILES:
            return 0
        return max(1, usable_cores() // 2 if on_cpu else usable_cores() - 1)

    def _tasks(self, chunks: Sequence[int], size: int) -> Iterator[ReadTask]:
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
        note = f"{self._refused:,} refused" if self._refused else ""
        self._reporter.progress("embedding", self._done, len(self.shapes), note=note)

    def _save_if_complete(self, number: int) -> None:
        if self._unfinished[number].complete:
            self.work.save(number, self._unfinished.pop(number))

    def _id(self, number: int, name: str) -> str:
        """A shape's id; bytes of a file name that are not valid UTF-8 are escaped."""
        shape_id = self.shapes.shape_id(self.shapes[number][0], name)
        return shape_id.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _without_fatal_shape(event: Died[ReadTask]) -> ReadTask:
    """The same task, with the shape at which its process died marked as refused."""
    task = event.task
    task.refused[event.step or 0] = (
        f"the process that read it ended ({event.how}); the file is damaged, or memory was short"
    )
    return task


def _ignore_step(task: ReadTask, step: int) -> None:
    # The pool counts steps itself, to know at which one a process died; nothing else needs them.
    del task, step
