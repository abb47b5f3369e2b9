"""Runs the same work on one or several cores, with results in the order of the tasks."""

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
        function: a module-level function that depends on nothing but its task.
        tasks: anything that can be pickled.
        workers: processes; 1 works in this one, None uses every usable core.

    Raises:
        DataError: if a process is killed, most often because memory ran out.
    """
    processes = min(workers or usable_cores(), len(tasks))
    if processes <= 1:
        yield from map(function, tasks)
        return
    # Spawned, not forked: forking beside the threads of torch or of a progress bar can deadlock.
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
    """End this worker if its parent is killed: by itself it would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a worker has a pool above it"
    threading.Thread(target=_wait_for_end, args=(parent.sentinel,), daemon=True).start()


def _wait_for_end(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Block Ctrl-C; processes that are started meanwhile never receive it, because the parent ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Starting this helper of multiprocessing unblocks Ctrl-C again, so it is started first.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
