"""One worker process of `pointdistill.data.build.pool`: how it starts, what it sends, how it ends."""

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

_JOIN_SECONDS = 10  # a dead network disk can delay even a killed process


class Worker(Generic[Task]):
    """A process and what it is doing, seen from the parent."""

    def __init__(self, context: Any, job: _Job, allowed_bytes: int | None) -> None:
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_serve, args=(theirs, job, allowed_bytes), daemon=True
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
        """How a process whose connection is closed ended, in words."""
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
        """Kill the process if it still runs."""
        self.process.kill()
        self.process.join(_JOIN_SECONDS)
        self.connection.close()


def start_context() -> Any:
    """How processes start: never as a fork of this one, because torch's threads do not survive a fork."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        # Imported once in the server, so that replacing a dead worker takes milliseconds.
        context.set_forkserver_preload(["pointdistill.data.build.tasks"])
        return context
    return multiprocessing.get_context("spawn")


def _serve(connection: Connection, job: _Job, allowed_bytes: int | None) -> None:
    """A worker's main loop: receive a task, send its steps and its result, until the parent is gone."""
    # Ctrl-C reaches the whole process group; the parent decides when its workers end.
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
                # At once and without a message, since anything else may need memory.
                os._exit(OUT_OF_MEMORY)
            except Exception as error:
                connection.send(("failed", _portable(error)))
            else:
                connection.send(("done", result))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note, in a form that can be sent to the parent."""
    error.add_note(f"in a worker process:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))  # safe: it is our own object
    except Exception:
        return RuntimeError(traceback.format_exc())
    return error
