"""What the workers of a cluster run: each hands its tasks to a process of its own, the foreman.

A dask worker is a daemon process, which may have no children of multiprocessing's, and no shape may take
it down. The foreman is a plain subprocess, and does every task in a child: a reader that crashes there
costs one shape, as on one machine. It ends with its dask worker, however that ends.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import platform
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO, TypeAlias, cast

from pointdistill.data.build.limits import ShapeLimits
from pointdistill.data.build.order import Order, OrderedJob
from pointdistill.data.build.pool import Died, Done, Pool, open_pool
from pointdistill.data.build.state import Outcome
from pointdistill.data.build.tasks import BuildTask
from pointdistill.data.memory import memory_bytes
from pointdistill.data.workers import interrupts_held

_IDLE_SECONDS = 60.0

Answer: TypeAlias = Done[None, Outcome] | Died[None] | Exception
"""What became of a task; an error is one that stops the build."""


def build_remotely(order: Order, task: bytes) -> Answer:
    """Do one pickled task on this host; never raises, so that dask neither logs nor repeats it."""
    return _foremen.build(replace(order, limits=_own_limits(order.limits)), task)


def _own_limits(limits: ShapeLimits) -> ShapeLimits:
    """The limits with the memory that is a thread's share of its dask worker's, unless they name one."""
    from distributed import get_worker

    worker = get_worker()
    whole = memory_bytes()
    own = worker.memory_manager.memory_limit or whole
    such_threads = max(1, round(whole / own * worker.state.nthreads))
    return replace(limits, memory_bytes=limits.worker_bytes(such_threads))


def examine(order: Order) -> str | None:
    """See `Order.problem`; a function of its own to be sent to workers."""
    return order.problem()


def dismiss(order: Order) -> None:
    """End this process's foreman of an order, also in the middle of a task."""
    _foremen.dismiss(order)


class _Foreman:
    """A subprocess that does tasks, each in a child of its own; it ends when its input does."""

    def __init__(self, order: Order) -> None:
        self.last_used = time.monotonic()
        self._send = threading.Lock()
        self._waiting: dict[int, Future[Answer]] = {}
        self._numbers = itertools.count()
        # As multiprocessing does: a child finds the modules that this process finds.
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()"
        with interrupts_held():
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._tell(order)
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def busy(self) -> bool:
        """Whether it has a task."""
        return bool(self._waiting)

    def begin(self, task: bytes) -> Future[Answer]:
        """Hand over a task; its answer comes also if the subprocess ends."""
        answer: Future[Answer] = Future()
        number = next(self._numbers)
        self._waiting[number] = answer
        self._tell((number, task))
        return answer

    def hang_up(self) -> None:
        """End its input, at which it kills its children and ends."""
        with self._send, contextlib.suppress(OSError):
            self._input.close()

    def _tell(self, message: object) -> None:
        # If it has ended, the end of its output says so.
        with self._send, contextlib.suppress(OSError, ValueError):
            pickle.dump(message, self._input)
            self._input.flush()

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                number, answer = pickle.load(self._output)
                self.last_used = time.monotonic()
                self._waiting.pop(number).set_result(answer)
        _foremen.forget(self)
        self.hang_up()
        code = self._process.wait()
        self._output.close()
        how = f"the build's process on {platform.node()} ended with code {code}"
        for answer in self._waiting.values():
            answer.set_result(Died(None, None, how))


class _Foremen:
    """The foremen of this process by their orders; one that nobody needs for a minute ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[Path, _Foreman] = {}

    def build(self, order: Order, task: bytes) -> Answer:
        with self._lock:
            foreman = self._of.get(order.path)
            if foreman is None:
                foreman = self._of[order.path] = _Foreman(order)
                self._retire_later(foreman)
            answer = foreman.begin(task)
        return answer.result()

    def dismiss(self, order: Order) -> None:
        with self._lock:
            foreman = self._of.pop(order.path, None)
        if foreman is not None:
            foreman.hang_up()

    def forget(self, foreman: _Foreman) -> None:
        with self._lock:
            self._drop(foreman)

    def _drop(self, foreman: _Foreman) -> None:
        self._of = {path: other for path, other in self._of.items() if other is not foreman}

    def _retire_later(self, foreman: _Foreman) -> None:
        timer = threading.Timer(_IDLE_SECONDS, self._retire, [foreman])
        timer.daemon = True
        timer.start()

    def _retire(self, foreman: _Foreman) -> None:
        with self._lock:
            if foreman.busy or time.monotonic() - foreman.last_used < _IDLE_SECONDS:
                self._retire_later(foreman)
                return
            self._drop(foreman)
        foreman.hang_up()


_foremen = _Foremen()


def main() -> None:
    """A foreman's life: hand every task to an idle child or a new one, until the dask worker is gone."""
    messages, answers = _own_pipes()
    lanes = _Lanes(pickle.load(messages), answers)
    with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
        while True:
            number, task = pickle.load(messages)
            threading.Thread(target=lanes.build, args=(number, task), daemon=True).start()
    # A child may hang, and would outlive this process.
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(0)


class _Lanes:
    """Pools of one worker each, of which every one does a task at a time."""

    def __init__(self, order: Order, answers: BinaryIO) -> None:
        self._order = order
        self._answers = answers
        self._speak = threading.Lock()
        self._idle: SimpleQueue[Pool[BuildTask, Outcome]] = SimpleQueue()

    def build(self, number: int, task: bytes) -> None:
        """Do one task and send its answer."""
        try:
            pool = self._idle.get_nowait()
        except Empty:
            job, limits = OrderedJob(self._order), self._order.limits
            pool = open_pool(job, workers=1, on_step=lambda *_: None, limits=limits)
        try:
            pool.submit(pickle.loads(task))
            (event,) = pool.events()
            answer: Any = replace(cast("Any", event), task=None)
        except Exception as error:
            answer = error
            pool.__exit__()
        else:
            self._idle.put(pool)
        with self._speak, contextlib.suppress(OSError):  # the dask worker is gone
            pickle.dump((number, answer), self._answers)
            self._answers.flush()


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The pipes from and to the dask worker; a reader that prints does so on stderr."""
    messages, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return messages, answers
