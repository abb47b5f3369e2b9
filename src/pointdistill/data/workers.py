"""The same work on one core or on several, with results in the order of the tasks."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import TypeVar

from pointdistill.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")

Progress = Callable[[int, int], None]
"""Called with (done, total) after each step of a long piece of work."""


def usable_cores() -> int:
    """Cores that this process may run on, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, workers: int | None
) -> Iterator[Result]:
    """``function`` of every task, in the tasks' order.

    Args:
        function: of a module's top level, and dependent on nothing but its task.
        tasks: what can be pickled.
        workers: processes; 1 works in this one, None takes every usable core.

    Raises:
        DataError: if a process is killed, which is most often for want of memory.
    """
    processes = min(workers or usable_cores(), len(tasks))
    if processes <= 1:
        yield from map(function, tasks)
        return
    # Spawned, not forked: a fork beside the threads of torch or of a progress bar may lock up.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, spawn, initializer=_end_with_parent)
    try:
        with interrupts_held():
            results = pool.map(function, tasks)  # starts the processes
        yield from results
    except BrokenProcessPool as error:
        msg = f"one of {processes} worker processes was killed; free some memory, or use fewer"
        raise DataError(msg) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this worker where its parent is killed: the pool's own workers would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a worker has a pool above it"
    threading.Thread(target=_wait_for_end, args=(parent.sentinel,), daemon=True).start()


def _wait_for_end(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back; processes started meanwhile never get it, since the parent ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Starting this helper of multiprocessing's lets Ctrl-C through again; so it goes first.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
