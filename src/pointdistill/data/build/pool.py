"""Worker processes that each do one task at a time, and of which one may die without the others.

A reader written in C that crashes, or a kernel that is short of memory, takes a worker down with no
exception to catch. The parent then sees which task, and which step of it, was the last. It ends a worker
itself where a step outlasts its deadline, which no exception could: a reader in C lets none through. A
worker that ran out of memory ends too, for what is left of its memory may be in pieces.
"""

from __future__ import annotations

import functools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar

from pointdistill.data.build.limits import ShapeLimits
from pointdistill.data.build.worker import OUT_OF_MEMORY, Worker, start_context
from pointdistill.data.memory import GIB
from pointdistill.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")

Job = Callable[[Task, Callable[[int], None]], Result]
"""A picklable function of a task and of a callback that is told each step, a number from 0 on, before it
begins, and `NO_STEP` where the last one is over and work goes on that has no deadline."""

NO_STEP = -1

Failure: TypeAlias = Literal["crash", "deadline", "memory"]
"""How a task failed: its process ended, it took too long, or it needed too much memory."""

_NO_MEMORY = "more memory than there is"

_PULSE_SECONDS = 1.0
"""How often a process that waits for its workers looks at the clock, so that it notices when it was held up."""

_HELD_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Done(Generic[Task, Result]):
    """A task and its result."""

    task: Task
    result: Result


@dataclass(frozen=True, slots=True)
class Died(Generic[Task]):
    """A task whose worker ended in the middle of it."""

    task: Task
    step: int | None
    """The step that had begun last; None if none had."""

    how: str
    """How the process ended, in words."""

    failure: Failure = "crash"


class Pool(Protocol[Task, Result]):
    """What runs tasks; use it as a context manager, which ends the workers."""

    def __enter__(self) -> Pool[Task, Result]: ...

    def __exit__(self, *error: object) -> None: ...

    def submit(self, task: Task, *, first: bool = False) -> None:
        """Add a task to the queue's end, or before all others; also while `events` runs."""

    def events(self) -> Iterator[Done[Task, Result] | Died[Task]]:
        """Run the queue; ends when nothing is queued or running. An exception of a task is raised."""


def open_pool(
    job: Job[Task, Result],
    *,
    workers: int,
    on_step: Callable[[Task, int], None],
    limits: ShapeLimits | None = None,
) -> Pool[Task, Result]:
    """A pool of worker processes.

    Args:
        job: what is done with a task.
        workers: number of processes; 0 does the work in this one, which nothing can end at a deadline.
        on_step: told each step of each task.
        limits: of each step; None for none.
    """
    if workers == 0:
        return _SerialPool(job, on_step)
    return _ProcessPool(job, workers, on_step, limits)


class _SerialPool(Generic[Task, Result]):
    """The same work in this process, one task after another."""

    def __init__(self, job: Job[Task, Result], on_step: Callable[[Task, int], None]) -> None:
        self._job = job
        self._on_step = on_step
        self._queue: deque[Task] = deque()
        self._step: int | None = None

    def __enter__(self) -> Pool[Task, Result]:
        return self

    def __exit__(self, *error: object) -> None:
        self._queue.clear()

    def submit(self, task: Task, *, first: bool = False) -> None:
        _enqueue(self._queue, task, first=first)

    def events(self) -> Iterator[Done[Task, Result] | Died[Task]]:
        while self._queue:
            task = self._queue.popleft()
            self._step = None
            try:
                result = self._job(task, functools.partial(self._started, task))
            except MemoryError:
                yield Died(task, self._step, _NO_MEMORY, "memory")
            else:
                yield Done(task, result)

    def _started(self, task: Task, step: int) -> None:
        self._step = step if step != NO_STEP else None
        if self._step is not None:
            self._on_step(task, step)


class _ProcessPool(Generic[Task, Result]):
    def __init__(
        self,
        job: Job[Task, Result],
        workers: int,
        on_step: Callable[[Task, int], None],
        limits: ShapeLimits | None,
    ) -> None:
        self._job = job
        self._count = workers
        self._on_step = on_step
        self._deadline = limits.deadline_seconds if limits else None
        self._allowed_bytes = limits.worker_bytes(workers) if limits else None
        self._context = start_context()
        self._queue: deque[Task] = deque()
        self._workers: list[Worker[Task]] = []
        self._looked = 0.0
        """When deadlines were last looked at."""

    def __enter__(self) -> Pool[Task, Result]:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def submit(self, task: Task, *, first: bool = False) -> None:
        _enqueue(self._queue, task, first=first)

    def events(self) -> Iterator[Done[Task, Result] | Died[Task]]:
        self._looked = time.monotonic()
        while True:
            self._assign()
            waiting = {w.connection: w for w in self._workers if w.task is not None or not w.ready}
            if not any(worker.task is not None for worker in self._workers) and not self._queue:
                return
            for connection in wait(list(waiting), self._patience()):
                event = self._receive(waiting[connection])
                if event is not None:
                    yield event
            yield from self._overdue()

    def _assign(self) -> None:
        """Start workers while there is work for them, and hand tasks to the idle ones."""
        starting = sum(not worker.ready for worker in self._workers)
        while len(self._workers) < self._count and starting < len(self._queue):
            self._workers.append(Worker(self._context, self._job, self._allowed_bytes))
            starting += 1
        for worker in self._workers:
            if self._queue and worker.ready and worker.task is None:
                worker.give(self._queue.popleft())

    def _receive(self, worker: Worker[Task]) -> Done[Task, Result] | Died[Task] | None:
        """Take one message of a worker, or notice its end."""
        try:
            kind, value = worker.connection.recv()
        except (EOFError, OSError):
            return self._bury(worker)
        if kind == "ready":
            worker.ready = True
            return None
        assert worker.task is not None, "only a worker with a task speaks"
        if kind == "step":
            worker.begin(None if value == NO_STEP else value)
            if worker.step is not None:
                self._on_step(worker.task, value)
            return None
        if kind == "failed":
            raise value
        done: Done[Task, Result] = Done(worker.task, value)
        worker.task = worker.step = None
        return done

    def _bury(self, worker: Worker[Task]) -> Died[Task] | None:
        """Remove a worker that ended; the next `_assign` starts another."""
        how = worker.how_it_ended()
        worker.connection.close()
        self._workers.remove(worker)
        if not worker.ready:
            msg = (
                f"worker processes do not start ({how}); in a script, call this under "
                f'`if __name__ == "__main__":`, or use workers=0'
            )
            raise DataError(msg)
        if worker.task is None:
            return None
        if worker.process.exitcode == OUT_OF_MEMORY:
            return Died(worker.task, worker.step, self._too_much_memory(), "memory")
        return Died(worker.task, worker.step, how)

    def _too_much_memory(self) -> str:
        if self._allowed_bytes is None:
            return _NO_MEMORY
        return f"more memory than the limit of {self._allowed_bytes / GIB:.3g} GiB"

    def _patience(self) -> float | None:
        """Seconds until the next step may be overdue, or the next look at the clock; None where none can be."""
        if self._deadline is None:
            return None
        begun = [worker.since for worker in self._workers if worker.step is not None]
        until = min(begun, default=math.inf) + self._deadline
        return min(_PULSE_SECONDS, max(0.0, until - time.monotonic()))

    def _overdue(self) -> Iterator[Died[Task]]:
        """End the workers whose step takes too long."""
        if self._deadline is None:
            return
        now = time.monotonic()
        self._forgive(now)
        for worker in list(self._workers):
            late = worker.step is not None and now - worker.since >= self._deadline
            # One that has something to say is not stuck; where this process was held up, all have.
            if late and worker.task is not None and not worker.connection.poll():
                worker.end()
                self._workers.remove(worker)
                how = f"longer than the deadline of {self._deadline:g} s"
                yield Died(worker.task, worker.step, how, "deadline")

    def _forgive(self, now: float) -> None:
        """Take the time in which this process was held up, and most likely its workers too, from all steps.

        As by Ctrl-Z, by a batch system that suspends a job, or by a machine that sleeps.
        """
        held = now - self._looked - _PULSE_SECONDS
        self._looked = now
        if held > _HELD_SECONDS:
            for worker in self._workers:
                worker.since = min(now, worker.since + held)


def _enqueue(queue: deque[Task], task: Task, *, first: bool) -> None:
    if first:
        queue.appendleft(task)
    else:
        queue.append(task)
