"""Runs the tasks of a build, or of an embedding, on the workers of a dask.distributed cluster.

The scheduler only ever holds a few tasks per thread, of a few kilobytes each; the shapes themselves go through the
file system that all hosts share. `pointdistill.data.corpus_building.dask_worker` is the other end.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import pickle
import secrets
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any, Generic, cast

from pointdistill.data.corpus_building.dask_worker import (
    SEEN_SECONDS,
    Answer,
    ClusterJob,
    build_remotely,
    find_problem,
    publish_job,
    stop_server,
)
from pointdistill.data.corpus_building.limits import ShapeLimits
from pointdistill.data.corpus_building.pool import Died, Done, Pool, Result, Task
from pointdistill.errors import ConfigError, DataError

log = logging.getLogger("pointdistill")

_CONNECT_SECONDS = 6.0
_COUNT_SECONDS = 1.0
"""How often the workers are counted while tasks run."""

_TASKS_PER_THREAD = 2
_DISCONNECT_SECONDS = 5.0


def open_cluster(
    job: ClusterJob[Task, Result], address: str, limits: ShapeLimits | None
) -> Pool[Task, Result]:
    """A pool that uses the workers of a dask cluster, as they come and go.

    Args:
        job: the work; its folder and the files that it names must exist on all hosts.
        address: of the scheduler, such as ``tcp://host:8786``.
        limits: of each shape; without a memory limit, one thread's share of its dask worker's memory. None for no
            limits at all.

    Raises:
        ConfigError: if dask.distributed is not installed, or no scheduler answers.
    """
    try:
        # Its functions are only partly typed.
        distributed: Any = importlib.import_module("distributed")
    except ModuleNotFoundError as error:
        msg = "a cluster needs dask.distributed; pip install 'pointdistill[cluster]'"
        raise ConfigError(msg) from error
    _ask_scheduler(distributed, address)
    return _ClusterPool(distributed, job, address, limits)


class _ClusterPool(Generic[Task, Result]):
    """See `Pool`; reports finished pieces, not the steps within one."""

    def __init__(
        self,
        distributed: Any,
        job: ClusterJob[Task, Result],
        address: str,
        limits: ShapeLimits | None,
    ) -> None:
        self._distributed = distributed
        self._job = job
        self._address = address
        self._limits = limits
        self._queue: deque[Task] = deque()
        self._running: dict[str, tuple[Task, Any]] = {}
        """Tasks and their futures, by key."""

        self._ended: SimpleQueue[Any] = SimpleQueue()
        self._lasting: list[Task] = []
        self._known: frozenset[str] = frozenset()
        self._most_running = 0
        self._counted_at = 0.0
        self._waiting = False
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> Pool[Task, Result]:
        with contextlib.ExitStack() as resources:
            # dask logs every worker that comes or goes, which the user already knows.
            resources.enter_context(_quiet("distributed"))
            self._remote = publish_job(self._job, self._limits)
            resources.callback(self._remote.path.unlink, missing_ok=True)
            self._client = self._distributed.Client(
                self._address, timeout=_CONNECT_SECONDS, set_as_default=False
            )
            resources.callback(self._disconnect)
            self._resources = resources.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.close()

    def submit(self, task: Task, *, first: bool = False) -> None:
        if first:
            self._queue.appendleft(task)
        else:
            self._queue.append(task)

    def events(self) -> Iterator[Done[Task, Result] | Died[Task]]:
        while self._queue or self._running:
            self._count_workers()
            self._fill()
            try:
                future = self._ended.get(timeout=_COUNT_SECONDS)
            except Empty:
                continue
            task, _ = self._running.pop(future.key)
            yield self._event(task, future)
        self._wait_for_files()

    def _count_workers(self) -> None:
        """Count the workers and check the new ones."""
        if time.monotonic() - self._counted_at < _COUNT_SECONDS:
            return
        try:
            threads: dict[str, int] = self._client.nthreads()
            self._check_workers(sorted(threads.keys() - self._known))
        except OSError as error:
            raise self._lost() from error
        self._known = frozenset(threads)
        self._most_running = _TASKS_PER_THREAD * sum(threads.values())
        self._counted_at = time.monotonic()
        if not threads and not self._waiting:
            log.warning("%s has no workers; waiting for some to come", self._address)
        self._waiting = not threads

    def _check_workers(self, workers: list[str]) -> None:
        """Raise DataError if one of the workers cannot run this job."""
        if not workers:
            return
        problems = self._client.run(find_problem, self._remote, workers=workers, on_error="return")
        for worker, problem in problems.items():
            if problem is None or isinstance(problem, OSError):
                continue  # it can run the job, or has left already
            msg = f"worker {worker} of the cluster: {problem}"
            if isinstance(problem, Exception):
                msg += f"; install pointdistill {self._remote.version} there"
            raise DataError(msg)

    def _fill(self) -> None:
        """Give the scheduler tasks, up to a few per thread."""
        while self._queue and len(self._running) < self._most_running:
            task = self._queue.popleft()
            # As bytes, because dask would search every entry for tasks.
            future = self._client.submit(
                build_remotely,
                self._remote,
                pickle.dumps(task),
                key=f"{self._remote.path.stem}-{secrets.token_hex(8)}",
                pure=False,
            )
            self._running[future.key] = task, future
            future.add_done_callback(self._ended.put)

    def _event(self, task: Task, future: Any) -> Done[Task, Result] | Died[Task]:
        """The outcome of a task.

        Raises:
            DataError: if workers cannot run it, or the scheduler is gone.
            Exception: the one that stopped the task.
        """
        try:
            answer: Answer = future.result()
        except self._distributed.KilledWorker as error:
            # dask tried it on several workers, and a shape cannot end one: it can only crash a child.
            return Died(task, None, f"worker {error.last_worker.address} of the cluster was lost")
        except (CancelledError, OSError) as error:
            raise self._lost() from error
        except Exception as error:
            with contextlib.suppress(OSError):
                self._check_workers(sorted(self._client.nthreads()))
            msg = f"{self._address}: a worker cannot do this work ({type(error).__name__}: {error})"
            raise DataError(msg) from error
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Done) and self._job.lasting(task):
            self._lasting.append(task)
        return cast("Any", replace(cast("Any", answer), task=task))

    def _lost(self) -> DataError:
        msg = f"{self._address}: the scheduler is gone or was started anew; run the same again to go on"
        return DataError(msg)

    def _wait_for_files(self) -> None:
        """Wait until the files that other hosts wrote are visible here."""
        until = time.monotonic() + SEEN_SECONDS
        for task in self._lasting:
            while self._job.finished(task) is None:
                if time.monotonic() > until:
                    msg = (
                        f"{self._job.shared}: workers of {self._address} say that all is finished, "
                        f"and not all is seen here; look at that mount, and run the same again to go on"
                    )
                    raise DataError(msg)
                time.sleep(0.5)

    def _disconnect(self) -> None:
        """Cancel what is not done, so that nothing is written after this build has stopped."""
        with contextlib.suppress(Exception):  # a cluster that is gone has nothing to cancel
            if self._client.status == "running":
                self._client.cancel([future for _, future in self._running.values()], force=True)
                self._client.run(
                    stop_server,
                    self._remote,
                    on_error="ignore",
                    callback_timeout=_DISCONNECT_SECONDS,
                )
        with contextlib.suppress(Exception):
            self._client.close(timeout=_DISCONNECT_SECONDS)


def _ask_scheduler(distributed: Any, address: str) -> None:
    """Raise ConfigError unless a scheduler answers at the address, within seconds."""

    async def ask() -> str:
        secured = distributed.Security().get_connection_args("client")
        async with distributed.rpc(address, connection_args=secured) as peer:
            return str((await peer.identity())["type"])

    try:
        # In its own thread, because a notebook already runs an event loop.
        with ThreadPoolExecutor(1) as thread, _quiet("distributed"):
            kind = thread.submit(asyncio.run, asyncio.wait_for(ask(), _CONNECT_SECONDS)).result()
    except Exception as error:
        what = "no scheduler answers" if isinstance(error, TimeoutError) else f"{error}"
        msg = (
            f"{address}: {what}; a cluster is named by its scheduler's address, such as "
            f"tcp://host:8786, as `dask scheduler` prints it"
        )
        raise ConfigError(msg) from error
    if kind != "Scheduler":
        msg = f"{address}: is a {kind.lower()} of a cluster; name its scheduler"
        raise ConfigError(msg)


@contextlib.contextmanager
def _quiet(package: str) -> Iterator[None]:
    """Silence a package's log messages."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith(package)]
    loggers = [logging.getLogger(name) for name in (package, *names)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
