"""Worker processes that each do one task at a time, and of which one may die without the others.

A reader written in C that crashes, or a kernel that is short of memory, takes a worker down with no
exception to catch. The parent then sees which task, and which step of it, was the last.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Protocol, TypeVar

from pointdistill.data.workers import interrupts_held
from pointdistill.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")

Job = Callable[[Task, Callable[[int], None]], Result]
"""A picklable function of a task and of a callback that is told each step before it begins."""


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


class Pool(Protocol[Task, Result]):
    """What runs tasks; use it as a context manager, which ends the workers."""

    def __enter__(self) -> Pool[Task, Result]: ...

    def __exit__(self, *error: object) -> None: ...

    def submit(self, task: Task, *, first: bool = False) -> None:
        """Add a task to the queue's end, or before all others; also while `events` runs."""

    def events(self) -> Iterator[Done[Task, Result] | Died[Task]]:
        """Run the queue; ends when nothing is queued or running. An exception of a task is raised."""


def open_pool(
    job: Job[Task, Result], *, workers: int, on_step: Callable[[Task, int], None]
) -> Pool[Task, Result]:
    """A pool of ``workers`` processes, or of none: 0 does the work in this process."""
    if workers == 0:
        return _SerialPool(job, on_step)
    return _ProcessPool(job, workers, on_step)


class _SerialPool(Generic[Task, Result]):
    """The same work in this process, one task after another."""

    def __init__(self, job: Job[Task, Result], on_step: Callable[[Task, int], None]) -> None:
        self._job = job
        self._on_step = on_step
        self._queue: deque[Task] = deque()

    def __enter__(self) -> Pool[Task, Result]:
        return self

    def __exit__(self, *error: object) -> None:
        self._queue.clear()

    def submit(self, task: Task, *, first: bool = False) -> None:
        _enqueue(self._queue, task, first=first)

    def events(self) -> Iterator[Done[Task, Result] | Died[Task]]:
        while self._queue:
            task = self._queue.popleft()
            yield Done(task, self._job(task, functools.partial(self._on_step, task)))


class _Worker(Generic[Task]):
    """One process and what it is doing."""

    def __init__(self, context: Any, job: Job[Task, Any]) -> None:
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, job), daemon=True)
        with interrupts_held():
            self.process.start()
        # Only the worker may hold its end, so that its death ends the connection.
        theirs.close()
        self.ready = False
        self.task: Task | None = None
        self.step: int | None = None

    def give(self, task: Task) -> None:
        self.task, self.step = task, None
        # A worker that died while idle is noticed when its messages are read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(task)

    def how_it_ended(self) -> str:
        self.process.join()
        code = self.process.exitcode or 0
        if code >= 0:
            return f"exit code {code}"
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class _ProcessPool(Generic[Task, Result]):
    def __init__(
        self, job: Job[Task, Result], workers: int, on_step: Callable[[Task, int], None]
    ) -> None:
        self._job = job
        self._count = workers
        self._on_step = on_step
        self._context = _context()
        self._queue: deque[Task] = deque()
        self._workers: list[_Worker[Task]] = []

    def __enter__(self) -> Pool[Task, Result]:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def submit(self, task: Task, *, first: bool = False) -> None:
        _enqueue(self._queue, task, first=first)

    def events(self) -> Iterator[Done[Task, Result] | Died[Task]]:
        while True:
            self._assign()
            waiting = {w.connection: w for w in self._workers if w.task is not None or not w.ready}
            if not any(worker.task is not None for worker in self._workers) and not self._queue:
                return
            for connection in wait(list(waiting)):
                event = self._receive(waiting[connection])
                if event is not None:
                    yield event

    def _assign(self) -> None:
        """Start workers while there is work for them, and hand tasks to the idle ones."""
        starting = sum(not worker.ready for worker in self._workers)
        while len(self._workers) < self._count and starting < len(self._queue):
            self._workers.append(_Worker(self._context, self._job))
            starting += 1
        for worker in self._workers:
            if self._queue and worker.ready and worker.task is None:
                worker.give(self._queue.popleft())

    def _receive(self, worker: _Worker[Task]) -> Done[Task, Result] | Died[Task] | None:
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
            worker.step = value
            self._on_step(worker.task, value)
            return None
        if kind == "failed":
            raise value
        done: Done[Task, Result] = Done(worker.task, value)
        worker.task = None
        return done

    def _bury(self, worker: _Worker[Task]) -> Died[Task] | None:
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
        return None if worker.task is None else Died(worker.task, worker.step, how)


def _enqueue(queue: deque[Task], task: Task, *, first: bool) -> None:
    if first:
        queue.appendleft(task)
    else:
        queue.append(task)


def _context() -> Any:
    """How processes start: never by a fork of this one, whose threads (torch's) a fork would break."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        # Imported once in the server, so that replacing a dead worker takes milliseconds.
        context.set_forkserver_preload(["pointdistill.data.build.tasks"])
        return context
    return multiprocessing.get_context("spawn")


def _serve(connection: Connection, job: Job[Any, Any]) -> None:
    """A worker's life: take a task, tell its steps, send its result, until the parent is gone."""
    # Ctrl-C reaches the whole group; the parent decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        connection.send(("ready", os.getpid()))
        while True:
            task = connection.recv()
            try:
                result = job(task, lambda step: connection.send(("step", step)))
            except (BrokenPipeError, ConnectionResetError):
                return
            except Exception as error:
                connection.send(("failed", _portable(error)))
            else:
                connection.send(("done", result))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note, in a form that reaches the parent."""
    error.add_note(f"in a worker process:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))  # our own object, there and back
    except Exception:
        return RuntimeError(traceback.format_exc())
    return error
