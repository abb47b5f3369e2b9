"""A pool of worker processes, each of which runs one task at a time and may die without harm to the others.

A reader written in C that crashes, or a system that runs out of memory, kills a worker without an exception that
could be caught. The parent then knows which task, and which step of it, the worker had begun last. It kills a
worker itself when a step exceeds its deadline, because no exception can interrupt a C reader. A worker that ran
out of memory is replaced too, since what memory it has left may be fragmented.
"""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar

from pointdistill.data.corpus_building.limits import ShapeLimits, guard_process
from pointdistill.data.files.packed_tars import UNPACKED_VARIABLE, temporary_folder
from pointdistill.data.files.processes import GIB, end_with_parent, interrupts_held
from pointdistill.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")

Job = Callable[[Task, Callable[[int], None]], Result]
"""A picklable function of a task and a callback. It calls back with the number of each step, from 0, before the
step begins, and with `NO_STEP` when the last step is over and work without a deadline follows."""

NO_STEP = -1

OUT_OF_MEMORY = 86
"""Exit code of a worker whose task raised MemoryError; shells and the C library use none near it."""

Failure: TypeAlias = Literal["crash", "deadline", "memory"]
"""How a task failed: its process ended, it took too long, or it needed too much memory."""

_NO_MEMORY = "more memory than there is"

_PULSE_SECONDS = 1.0
"""How often the waiting parent looks at the clock, to notice that it was suspended."""

_SUSPENDED_SECONDS = 0.25

_JOIN_SECONDS = 10  # even a killed process can take long to end, if a network disk is dead


@dataclass(frozen=True, slots=True)
class Done(Generic[Task, Result]):
    """A task and its result."""

    task: Task
    result: Result


@dataclass(frozen=True, slots=True)
class Died(Generic[Task]):
    """A task whose worker ended before the task was done."""

    task: Task
    step: int | None
    """The last step that had begun; None if none had."""

    how: str
    """How the process ended, in words."""

    failure: Failure = "crash"


class Pool(Protocol[Task, Result]):
    """Runs tasks in workers, which end with its context."""

    def __enter__(self) -> Pool[Task, Result]: ...

    def __exit__(self, *error: object) -> None: ...

    def submit(self, task: Task, *, first: bool = False) -> None:
        """Add a task to the end of the queue, or to its front; allowed while `events` runs."""

    def events(self) -> Iterator[Done[Task, Result] | Died[Task]]:
        """Run the queue until nothing is queued or running. Raises the exception of a task that failed."""


def open_pool(
    job: Job[Task, Result],
    *,
    workers: int,
    on_step: Callable[[Task, int], None],
    limits: ShapeLimits | None = None,
) -> Pool[Task, Result]:
    """A pool of worker processes.

    Args:
        job: what to do with a task.
        workers: number of processes; 0 works in this one, where no deadline can be enforced.
        on_step: called with each step of each task.
        limits: what one step may take; None for no limits.
    """
    if workers == 0:
        return _SerialPool(job, on_step)
    return _ProcessPool(job, workers, on_step, limits)


class _SerialPool(Generic[Task, Result]):
    """Runs the tasks in this process, one after another."""

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
                result = self._job(task, functools.partial(self._step_started, task))
            except MemoryError:
                yield Died(task, self._step, _NO_MEMORY, "memory")
            else:
                yield Done(task, result)

    def _step_started(self, task: Task, step: int) -> None:
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
        self._checked_at = 0.0
        """When deadlines were last checked."""

    def __enter__(self) -> Pool[Task, Result]:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def submit(self, task: Task, *, first: bool = False) -> None:
        _enqueue(self._queue, task, first=first)

    def events(self) -> Iterator[Done[Task, Result] | Died[Task]]:
        self._checked_at = time.monotonic()
        while True:
            self._assign()
            waiting = {w.connection: w for w in self._workers if w.task is not None or not w.ready}
            if not any(worker.task is not None for worker in self._workers) and not self._queue:
                return
            for connection in wait(list(waiting), self._seconds_to_wait()):
                event = self._receive(waiting[connection])
                if event is not None:
                    yield event
            yield from self._overdue()

    def _assign(self) -> None:
        """Start as many workers as there is work for, and give tasks to idle ones."""
        starting = sum(not worker.ready for worker in self._workers)
        while len(self._workers) < self._count and starting < len(self._queue):
            self._workers.append(Worker(self._context, self._job, self._allowed_bytes))
            starting += 1
        for worker in self._workers:
            if self._queue and worker.ready and worker.task is None:
                worker.give(self._queue.popleft())

    def _receive(self, worker: Worker[Task]) -> Done[Task, Result] | Died[Task] | None:
        """Receive one message from a worker, or notice that it ended."""
        try:
            kind, value = worker.connection.recv()
        except (EOFError, OSError):
            return self._remove_dead(worker)
        if kind == "ready":
            worker.ready = True
            return None
        assert worker.task is not None, "only a worker with a task sends messages"
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

    def _remove_dead(self, worker: Worker[Task]) -> Died[Task] | None:
        """Remove a worker that has ended; the next `_assign` starts another."""
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

    def _seconds_to_wait(self) -> float | None:
        """Seconds until a step may be overdue, or the clock has to be read; None if there is no deadline."""
        if self._deadline is None:
            return None
        begun = [worker.since for worker in self._workers if worker.step is not None]
        until = min(begun, default=math.inf) + self._deadline
        return min(_PULSE_SECONDS, max(0.0, until - time.monotonic()))

    def _overdue(self) -> Iterator[Died[Task]]:
        """Kill workers whose step has exceeded the deadline."""
        if self._deadline is None:
            return
        now = time.monotonic()
        self._extend_deadlines(now)
        for worker in list(self._workers):
            late = worker.step is not None and now - worker.since >= self._deadline
            # A worker with a pending message is not stuck; after a suspension all of them have one.
            if late and worker.task is not None and not worker.connection.poll():
                worker.end()
                self._workers.remove(worker)
                how = f"longer than the deadline of {self._deadline:g} s"
                yield Died(worker.task, worker.step, how, "deadline")

    def _extend_deadlines(self, now: float) -> None:
        """Do not count the time in which this process, and most likely its workers too, was suspended.

        It may have been suspended by Ctrl-Z, by a batch system, or because the machine slept.
        """
        suspended = now - self._checked_at - _PULSE_SECONDS
        self._checked_at = now
        if suspended > _SUSPENDED_SECONDS:
            for worker in self._workers:
                worker.since = min(now, worker.since + suspended)


def _enqueue(queue: deque[Task], task: Task, *, first: bool) -> None:
    if first:
        queue.appendleft(task)
    else:
        queue.append(task)


class Worker(Generic[Task]):
    """A worker process as its parent sees it, and what it is doing."""

    def __init__(self, context: Any, job: Job[Any, Any], allowed_bytes: int | None) -> None:
        self.connection, theirs = context.Pipe()
        # The worker's own place for temporary files, so that what it leaves when it is killed can be removed. If
        # none can be made, the worker's first task says so.
        self._place = contextlib.ExitStack()
        folder: str | None = None
        with contextlib.suppress(OSError):
            folder = str(self._place.enter_context(temporary_folder()))
        self.process: BaseProcess = context.Process(
            target=_serve,
            # The server of forks may have started before anything was unpacked, so it has another environment.
            args=(theirs, job, allowed_bytes, folder, os.environ.get(UNPACKED_VARIABLE)),
            daemon=True,
        )
        with interrupts_held():
            self.process.start()
        # Only the worker may hold its end of the pipe, so that its death closes the connection.
        theirs.close()
        self.ready = False
        self.task: Task | None = None
        self.step: int | None = None
        self.since = 0.0
        """When the step began."""

    def give(self, task: Task) -> None:
        """Send a task to a worker that is ready and idle."""
        self.task, self.step = task, None
        # If the worker died while idle, that is noticed when its messages are read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(task)

    def begin(self, step: int | None) -> None:
        """Note the step that the worker has begun; None for no step."""
        self.step, self.since = step, time.monotonic()

    def how_it_ended(self) -> str:
        """How the process ended, in words, once its connection is closed."""
        self.process.join(_JOIN_SECONDS)
        self.end()
        code = self.process.exitcode or 0
        if code >= 0:
            return f"exit code {code}"
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"

    def end(self) -> None:
        """Kill the process if it still runs, and remove its temporary files."""
        self.process.kill()
        self.process.join(_JOIN_SECONDS)
        self.connection.close()
        self._place.close()


def start_context() -> Any:
    """How processes start: never as a fork of this one, because torch's threads do not survive a fork."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        # Imported once in the server, so that replacing a dead worker takes milliseconds.
        context.set_forkserver_preload(["pointdistill.data.corpus_building.tasks"])
        return context
    return multiprocessing.get_context("spawn")


def _serve(
    connection: Connection,
    job: Job[Any, Any],
    allowed_bytes: int | None,
    folder: str | None,
    unpacked: str | None,
) -> None:
    """A worker's main loop: receive a task, send its steps and its result, until the parent is gone."""
    # Ctrl-C reaches the whole process group; the parent decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    places = [place for place in (folder, unpacked) if place is not None]
    end_with_parent(places)
    guard_process(allowed_bytes)
    tempfile.tempdir = folder
    if unpacked is not None:
        os.environ[UNPACKED_VARIABLE] = unpacked
    try:
        connection.send(("ready", os.getpid()))
        while True:
            task = connection.recv()
            try:
                result = job(task, lambda step: connection.send(("step", step)))
            except (BrokenPipeError, ConnectionResetError):
                return
            except MemoryError:
                # At once and without a message, since anything else may need memory.
                os._exit(OUT_OF_MEMORY)
            except Exception as error:
                connection.send(("failed", _portable(error)))
            else:
                connection.send(("done", result))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    finally:
        # The parent is gone: otherwise it would have killed this process.
        for left in places:
            shutil.rmtree(left, ignore_errors=True)


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note, in a form that can be sent to the parent."""
    error.add_note(f"in a worker process:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))  # safe: it is our own object
    except Exception:
        return RuntimeError(traceback.format_exc())
    return error
