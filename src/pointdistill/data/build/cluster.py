"""Tasks of a build on the workers of a dask.distributed cluster, wherever these run.

The scheduler is given a few tasks for each thread, never the whole build, and each as a few kilobytes; the
shapes travel over the file system that all hosts share. `pointdistill.data.build.foreman` is the other end.
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
from typing import Any, cast

from pointdistill.data.build.foreman import Answer, build_remotely, dismiss, examine
from pointdistill.data.build.limits import ShapeLimits
from pointdistill.data.build.order import SEEN_SECONDS, place_order
from pointdistill.data.build.pool import Died, Done, Pool
from pointdistill.data.build.state import Outcome
from pointdistill.data.build.tasks import BuildJob, BuildTask, JoinTask
from pointdistill.errors import ConfigError, DataError

log = logging.getLogger("pointdistill")

_CONNECT_SECONDS = 6.0
_LOOK_SECONDS = 1.0
"""How often workers are counted, while tasks run."""

_TASKS_A_THREAD = 2
_PARTING_SECONDS = 5.0


def open_cluster(job: BuildJob, address: str, limits: ShapeLimits) -> Pool[BuildTask, Outcome]:
    """A pool whose workers are those of a dask cluster, as they come and go.

    Args:
        job: the work; the folder and the files that it names must be there on all hosts.
        address: of the scheduler, such as ``tcp://host:8786``.
        limits: of each shape; memory that is not named is a thread's share of its dask worker's.

    Raises:
        ConfigError: if dask.distributed is not installed, or no scheduler answers.
    """
    try:
        # Not all of its functions have types.
        distributed: Any = importlib.import_module("distributed")
    except ModuleNotFoundError as error:
        msg = "a cluster needs dask.distributed; pip install 'pointdistill[cluster]'"
        raise ConfigError(msg) from error
    _ask_scheduler(distributed, address)
    return _ClusterPool(distributed, job, address, limits)


class _ClusterPool:
    """See `Pool`; steps of a piece are not told, only that it is done."""

    def __init__(self, distributed: Any, job: BuildJob, address: str, limits: ShapeLimits) -> None:
        self._distributed = distributed
        self._job = job
        self._address = address
        self._limits = limits
        self._queue: deque[BuildTask] = deque()
        self._running: dict[str, tuple[BuildTask, Any]] = {}
        """Tasks and their futures, by key."""

        self._ended: SimpleQueue[Any] = SimpleQueue()
        self._joined: list[int] = []
        self._known: frozenset[str] = frozenset()
        self._room = 0
        self._looked = 0.0
        self._waiting = False
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Pool[BuildTask, Outcome]:
        with contextlib.ExitStack() as held:
            # What dask says of workers that come and go is no news to who started them.
            held.enter_context(_quiet("distributed"))
            self._order = place_order(self._job, self._limits)
            held.callback(self._order.path.unlink, missing_ok=True)
            self._client = self._distributed.Client(
                self._address, timeout=_CONNECT_SECONDS, set_as_default=False
            )
            held.callback(self._part)
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def submit(self, task: BuildTask, *, first: bool = False) -> None:
        if first:
            self._queue.appendleft(task)
        else:
            self._queue.append(task)

    def events(self) -> Iterator[Done[BuildTask, Outcome] | Died[BuildTask]]:
        while self._queue or self._running:
            self._look()
            self._fill()
            try:
                future = self._ended.get(timeout=_LOOK_SECONDS)
            except Empty:
                continue
            task, _ = self._running.pop(future.key)
            yield self._event(task, future)
        self._see_shards()

    def _look(self) -> None:
        """Count the workers, and examine those that are new."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        try:
            threads: dict[str, int] = self._client.nthreads()
            self._examine(sorted(threads.keys() - self._known))
        except OSError as error:
            raise self._lost() from error
        self._known = frozenset(threads)
        self._room = _TASKS_A_THREAD * sum(threads.values())
        self._looked = time.monotonic()
        if not threads and not self._waiting:
            log.warning("%s has no workers; waiting for some to come", self._address)
        self._waiting = not threads

    def _examine(self, workers: list[str]) -> None:
        """Raise DataError if one of the workers cannot do this work."""
        if not workers:
            return
        found = self._client.run(examine, self._order, workers=workers, on_error="return")
        for worker, problem in found.items():
            if problem is None or isinstance(problem, OSError):
                continue  # it can do the work, or has gone already
            msg = f"worker {worker} of the cluster: {problem}"
            if isinstance(problem, Exception):
                msg += f"; install pointdistill {self._order.version} there"
            raise DataError(msg)

    def _fill(self) -> None:
        """Hand tasks to the scheduler, a few for each thread that there is."""
        while self._queue and len(self._running) < self._room:
            task = self._queue.popleft()
            # As bytes: dask would look into every entry for tasks.
            future = self._client.submit(
                build_remotely,
                self._order,
                pickle.dumps(task),
                key=f"{self._order.path.stem}-{secrets.token_hex(8)}",
                pure=False,
            )
            self._running[future.key] = task, future
            future.add_done_callback(self._ended.put)

    def _event(self, task: BuildTask, future: Any) -> Done[BuildTask, Outcome] | Died[BuildTask]:
        """What became of a task.

        Raises:
            DataError: if workers cannot run it, or the scheduler is gone.
            Exception: one that stopped the task.
        """
        try:
            answer: Answer = future.result()
        except self._distributed.KilledWorker as error:
            # dask tried it on several; that it was the shapes' doing is all but impossible.
            return Died(task, None, f"worker {error.last_worker.address} of the cluster was lost")
        except (CancelledError, OSError) as error:
            raise self._lost() from error
        except Exception as error:
            with contextlib.suppress(OSError):
                self._examine(sorted(self._client.nthreads()))
            msg = (
                f"{self._address}: a worker cannot run this build ({type(error).__name__}: {error})"
            )
            raise DataError(msg) from error
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Done) and isinstance(task, JoinTask):
            self._joined.append(task.shard)
        return cast("Any", replace(cast("Any", answer), task=task))

    def _lost(self) -> DataError:
        msg = f"{self._address}: the scheduler is gone or was started anew; run the same again to go on"
        return DataError(msg)

    def _see_shards(self) -> None:
        """Wait until the shards that other hosts wrote are seen here."""
        until = time.monotonic() + SEEN_SECONDS
        for shard in self._joined:
            while self._job.folder.shard_outcome(shard) is None:
                if time.monotonic() > until:
                    msg = (
                        f"{self._job.folder.shard(shard)}: workers of {self._address} say that it is finished, "
                        f"and it is not seen here; look at that mount, and run the same again to go on"
                    )
                    raise DataError(msg)
                time.sleep(0.5)

    def _part(self) -> None:
        """Take back what is not done, so that nothing is written once this build has stopped."""
        with contextlib.suppress(Exception):  # a cluster that is gone has nothing to take back
            if self._client.status == "running":
                self._client.cancel([future for _, future in self._running.values()], force=True)
                self._client.run(
                    dismiss, self._order, on_error="ignore", callback_timeout=_PARTING_SECONDS
                )
        with contextlib.suppress(Exception):
            self._client.close(timeout=_PARTING_SECONDS)


def _ask_scheduler(distributed: Any, address: str) -> None:
    """Raise ConfigError unless a scheduler answers at the address, within seconds."""

    async def ask() -> str:
        secured = distributed.Security().get_connection_args("client")
        async with distributed.rpc(address, connection_args=secured) as peer:
            return str((await peer.identity())["type"])

    try:
        # In a thread of its own, since a notebook's runs a loop already.
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
    """Hold a package's log messages back."""
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
