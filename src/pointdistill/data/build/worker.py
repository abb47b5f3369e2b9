"""One worker process: how it starts, what it says, how it ends; `pointdistill.data.build.pool` uses it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeAlias, TypeVar

from pointdistill.data.build.limits import guard_process
from pointdistill.data.workers import interrupts_held

Task = TypeVar("Task")

OUT_OF_MEMORY = 86
"""Exit code of a worker whose task raised MemoryError; shells and the C library use none near it."""

_Job: TypeAlias = Callable[[Any, Callable[[int], None]], Any]

_PATIENCE_SECONDS = 10  # a dead network disk may hold even a killed process


class Worker(Generic[Task]):
    """One process and what it is doing; the parent's side."""

    def __init__(self, context: Any, job: _Job, allowed_bytes: int | None) -> None:
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_serve, args=(theirs, job, allowed_bytes), daemon=True
        )
        with interrupts_held():
            self.process.start()
        # Only the worker may hold its end, so that its death ends the connection.
        theirs.close()
        self.ready = False
        self.task: Task | None = None
        self.step: int | None = None
        self.since = 0.0
        """When the step began."""

    def give(self, task: Task) -> None:
        """Hand over a task; only to one that is ready and has none."""
        self.task, self.step = task, None
        # A worker that died while idle is noticed when its messages are read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(task)

    def begin(self, step: int | None) -> None:
        """Note the step that the worker is at now; None is no step."""
        self.step, self.since = step, time.monotonic()

    def how_it_ended(self) -> str:
        """In words, of a process that speaks no more."""
        self.process.join(_PATIENCE_SECONDS)
        self.end()
        code = self.process.exitcode or 0
        if code >= 0:
            return f"exit code {code}"
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"

    def end(self) -> None:
        """End the process, if it has not ended."""
        self.process.kill()
        self.process.join(_PATIENCE_SECONDS)
        self.connection.close()


def start_context() -> Any:
    """How processes start: never by a fork of this one, whose threads (torch's) a fork would break."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        # Imported once in the server, so that replacing a dead worker takes milliseconds.
        context.set_forkserver_preload(["pointdistill.data.build.tasks"])
        return context
    return multiprocessing.get_context("spawn")


def _serve(connection: Connection, job: _Job, allowed_bytes: int | None) -> None:
    """A worker's life: take a task, tell its steps, send its result, until the parent is gone."""
    # Ctrl-C reaches the whole group; the parent decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    guard_process(allowed_bytes)
    try:
        connection.send(("ready", os.getpid()))
        while True:
            task = connection.recv()
            try:
                result = job(task, lambda step: connection.send(("step", step)))
            except (BrokenPipeError, ConnectionResetError):
                return
            except MemoryError:
                # At once, and without a word: whatever comes first now may need memory.
                os._exit(OUT_OF_MEMORY)
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
