"""Cores and memory that this process may use, and the same work done on several cores."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

from pointdistill.errors import DataError

GIB = 2**30
FALLBACK_BYTES = 8 * GIB
"""Memory that is assumed if the system does not say."""

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")

Task = TypeVar("Task")
Result = TypeVar("Result")


def memory_bytes() -> int:
    """Physical memory, or less where a control group (v1 or v2), such as a container's, allows less."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        physical = FALLBACK_BYTES
    return min([physical, *_limits()])


def _limits() -> list[int]:
    """The limits, in bytes, of this process's groups and of those above them, as far as they have one."""
    limits = []
    for root, name, group in _groups():
        # Inside a container the group's own path is often not mounted, and its limit lies at the root.
        for folder in (group, *group.parents):
            limit = _read_limit(root / folder.relative_to("/") / name)
            if limit is not None:
                limits.append(limit)
    return limits


def _groups() -> list[tuple[Path, str, Path]]:
    """(mount point, name of the limit file, path below the mount) of each memory group of this process."""
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    groups = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            groups.append((CGROUPS, "memory.max", Path(path)))
        elif "memory" in controllers.split(","):
            groups.append((CGROUPS / "memory", "memory.limit_in_bytes", Path(path)))
    return groups


def _read_limit(path: Path) -> int | None:
    """The number of bytes in a limit file; None for ``max`` or if there is no such file."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


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
        workers: number of processes; 1 does the work in this process, None uses every usable core.

    Raises:
        DataError: if a process is killed, most often because memory ran out.
    """
    processes = min(workers or usable_cores(), len(tasks))
    if processes <= 1:
        yield from map(function, tasks)
        return
    # Spawned, not forked: forking beside the threads of torch or of a progress bar can deadlock.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, spawn, initializer=end_with_parent)
    try:
        with interrupts_held():
            results = pool.map(function, tasks)  # starts the processes
        yield from results
    except BrokenProcessPool as error:
        msg = f"one of {processes} worker processes was killed; free some memory, or use fewer"
        raise DataError(msg) from error
    finally:
        pool.shutdown(cancel_futures=True)


class Beside(Generic[Result]):
    """Work that a process of its own does while this one goes on; see `work_beside`."""

    def __init__(self, connection: Connection, process: BaseProcess) -> None:
        self._connection, self._process = connection, process
        self._messages: list[Any] = []

    def await_ready(self) -> None:
        """Wait until the work has said that what this process needs of it is there.

        Raises:
            Exception: the one that ended the work.
            DataError: if its process was killed.
        """
        if not self._messages:
            self._messages.append(self._receive())

    def result(self) -> Result:
        """Wait for the result.

        Raises:
            Exception: as for `await_ready`.
        """
        self.await_ready()
        if len(self._messages) == 1:
            self._messages.append(self._receive())
        result: Result = self._messages[1]
        return result

    def _receive(self) -> Any:
        try:
            error, value = self._connection.recv()
        except EOFError as ended:
            self._process.join()
            msg = f"a worker process ended with code {self._process.exitcode}; free some memory, and go on"
            raise DataError(msg) from ended
        if error is not None:
            raise error
        return value


_BESIDE = 10
"""How much lower the priority of work beside is: what the caller does meanwhile is the longer way to the end."""


@contextlib.contextmanager
def work_beside(
    function: Callable[[Task, Callable[[], None]], Result], task: Task
) -> Iterator[Beside[Result]]:
    """Do some work in a process of its own within the block, at whose end it is killed if it is not done.

    Args:
        function: a module-level function of the task, and of a callable to say that it is ready (see `Beside`).
        task: anything that can be pickled.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_do_beside, args=(theirs, function, task))
    with interrupts_held():
        process.start()
    # Only the process may hold its end, so that its death ends the connection.
    theirs.close()
    try:
        yield Beside(ours, process)
    finally:
        process.kill()
        process.join()
        ours.close()


def _do_beside(
    connection: Connection, function: Callable[[Any, Callable[[], None]], Any], task: Any
) -> None:
    end_with_parent()
    if hasattr(os, "nice"):
        os.nice(_BESIDE)
    try:
        result = function(task, lambda: connection.send((None, None)))
    except Exception as error:
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        connection.send((error, None))
    else:
        connection.send((None, result))


def end_with_parent(places: Sequence[str] = ()) -> None:
    """End this worker if its parent is killed, and remove some folders.

    By itself it would finish its task, or wait for tasks for ever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a worker has a pool above it"
    arguments = (parent.sentinel, places)
    threading.Thread(target=_wait_for_end, args=arguments, daemon=True).start()


def _wait_for_end(sentinel: int, places: Sequence[str]) -> None:
    wait([sentinel])
    for place in places:
        shutil.rmtree(place, ignore_errors=True)
    os._exit(1)


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Block Ctrl-C within the block.

    Processes started in it inherit this and never see Ctrl-C: their parent decides when they end.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Starting the resource tracker unblocks Ctrl-C again, so it must run before the signal is blocked.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
