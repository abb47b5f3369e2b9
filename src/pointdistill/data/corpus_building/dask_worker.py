"""What runs on each node of a cluster: a dask worker passes its tasks to a task server, a subprocess of its own.

Dask workers are daemon processes, which multiprocessing allows no children, and a shape that crashes its reader
must not take one down. So the task server is a plain subprocess that runs every task in a child process: a crash
costs one shape, as it does on a single machine. The server ends when its dask worker ends, however that happens.

The work (on a source of a corpus, or on an embedding) is published as a file in a folder that all hosts write to:
a host that can read it there shares the folder with the other hosts.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import itertools
import multiprocessing
import os
import pickle
import platform
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO, Protocol, TypeAlias, TypeVar, cast

from pointdistill.data.corpus_building.limits import ShapeLimits
from pointdistill.data.corpus_building.pool import Died, Done, Pool, open_pool
from pointdistill.data.files.processes import interrupts_held, memory_bytes
from pointdistill.errors import DataError
from pointdistill.version import __version__

SEEN_SECONDS = 90.0
"""How long to wait for a file that another host wrote: network file systems cache directories for a minute."""

_JOB_NAME = "cluster-{}.job"
_IDLE_SECONDS = 60.0

Answer: TypeAlias = Done[None, Any] | Died[None] | Exception
"""The result of a task; an exception stops the whole work."""

TaskIn = TypeVar("TaskIn", contravariant=True)
ResultOut = TypeVar("ResultOut", covariant=True)


class ClusterJob(Protocol[TaskIn, ResultOut]):
    """Work for a cluster: a function of a task that can be pickled, whose results are files in a shared folder.

    A task can be repeated, by another host too: what it writes has the same bytes.
    """

    @property
    def shared(self) -> Path:
        """The folder that all hosts write to."""

    def __call__(self, task: TaskIn, started: Callable[[int], None]) -> ResultOut:
        """Run one task; see `pointdistill.data.corpus_building.pool.Job`."""

    def finished(self, task: TaskIn) -> ResultOut | None:
        """The result of a task that some host has finished, as far as this one sees it."""

    def ready(self, task: TaskIn) -> bool:
        """Whether what the task needs of other hosts is seen here."""

    def lasting(self, task: TaskIn) -> bool:
        """Whether what the task writes is needed when all tasks are done."""


@dataclass(frozen=True, slots=True)
class RemoteJob:
    """Where the published work on a source is, and what a host needs to run it; sent with every task."""

    path: Path
    sha256: str
    python: str
    version: str
    """Version of this program."""

    inputs: tuple[tuple[Path, int | None], ...]
    """What the source reads: files with their size in bytes, folders with None."""

    limits: ShapeLimits | None

    def problem(self) -> str | None:
        """Why this host cannot run the job, in one line that names the host; None if it can."""
        here = f"{platform.node()} (process {os.getpid()})"
        for name, expected, found in (
            ("pointdistill", self.version, program_version()),
            ("Python", self.python, python_version()),
        ):
            if found != expected:
                return f"{here} has {name} {found}, this program {expected}; install the same there"
        for path, size in ((self.path.parent, None), (self.path, None), *self.inputs):
            try:
                found_size = path.stat().st_size
            except OSError as error:
                return (
                    f"{here} cannot read {path} ({error.strerror}); output and inputs must lie on a file "
                    f"system that all hosts share, under the same paths"
                )
            if size not in (None, found_size):
                return f"{here} has another file as {path} ({found_size:,} bytes, not {size:,})"
        return None


class _Unpacker(pickle.Unpickler):
    """Reads the driver's own pickle, whose checksum came with the task; paths are stored as text."""

    def persistent_load(self, identity: str) -> Path:
        return Path(identity)


@functools.cache
def _load_job(remote: RemoteJob) -> ClusterJob[Any, Any]:
    """The work itself, read once per process.

    Raises:
        DataError: if this host cannot do it.
    """
    problem = remote.problem()
    if problem:
        raise DataError(problem)
    content = remote.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != remote.sha256:
        msg = f"{remote.path}: changed since the build began; run the same again"
        raise DataError(msg)
    return cast("ClusterJob[Any, Any]", _Unpacker(io.BytesIO(content)).load())


def python_version() -> str:
    """Python's version without the patch number, which does not affect results."""
    return ".".join(platform.python_version_tuple()[:2])


def program_version() -> str:
    """This program's version."""
    return __version__


@dataclass(frozen=True, slots=True)
class RemoteJobRunner:
    """Runs the tasks of a published job, although another host may have run the same task, or be running it now.

    A worker that loses its scheduler for a while counts as dead, yet goes on working. The files that it writes are
    complete and have the same bytes, so it is enough that others cope with their presence.
    """

    remote: RemoteJob

    def __call__(self, task: Any, started: Callable[[int], None]) -> Any:
        """Run one task, see `ClusterJob`.

        Raises:
            DataError: if this host cannot run it, or does not see what other hosts wrote.
        """
        job = _load_job(self.remote)
        if not self.remote.path.exists():
            msg = f"{self.remote.path.parent}: the build was stopped"
            raise DataError(msg)
        until = time.monotonic() + SEEN_SECONDS
        while True:
            result = job.finished(task)
            if result is not None:
                return result
            if job.ready(task):
                try:
                    return job(task, started)
                except FileNotFoundError:
                    # Another host was faster and has removed what the task needs.
                    if job.ready(task):
                        raise
            if time.monotonic() > until:
                msg = (
                    f"{platform.node()} does not see in {job.shared} what other hosts wrote "
                    f"{SEEN_SECONDS:.0f} s ago; look at that mount, and run the same again to go on"
                )
                raise DataError(msg)
            time.sleep(0.5)


def publish_job(job: ClusterJob[Any, Any], limits: ShapeLimits | None) -> RemoteJob:
    """Write the job where workers read it; remove job files that killed builds left behind."""
    folder = job.shared.absolute()
    for leftover in folder.glob(_JOB_NAME.format("*")):
        leftover.unlink()
    content, paths = _packed(job)
    path = folder / _JOB_NAME.format(secrets.token_hex(8))
    path.write_bytes(content)
    inputs = tuple(
        (named, named.stat().st_size if named.is_file() else None)
        for named in sorted(paths)
        if named.exists()
    )
    return RemoteJob(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        python=python_version(),
        version=program_version(),
        inputs=inputs,
        limits=limits,
    )


def _packed(job: ClusterJob[Any, Any]) -> tuple[bytes, set[Path]]:
    """The pickled job with every path made absolute, and those paths."""
    cloudpickle: Any = importlib.import_module("cloudpickle")
    paths: set[Path] = set()

    # cloudpickle, as in dask, includes classes from the user's own script, which workers cannot import.
    class Packer(cloudpickle.Pickler):  # type: ignore[misc]
        def persistent_id(self, value: Any) -> str | None:
            if not isinstance(value, Path):
                return None
            paths.add(value.absolute())
            return str(value.absolute())

    stream = io.BytesIO()
    Packer(stream).dump(job)
    return stream.getvalue(), paths


def build_remotely(remote: RemoteJob, task: bytes) -> Answer:
    """Run one pickled task on this host; never raises, because dask would log and repeat a task that does."""
    return _servers.build(replace(remote, limits=_own_limits(remote.limits)), task)


def _own_limits(limits: ShapeLimits | None) -> ShapeLimits | None:
    """The limits; unless they set the memory, it is one thread's share of the dask worker's memory."""
    if limits is None:
        return None
    from distributed import get_worker

    worker = get_worker()
    whole = memory_bytes()
    own = worker.memory_manager.memory_limit or whole
    equal_threads = max(1, round(whole / own * worker.state.nthreads))
    return replace(limits, memory_bytes=limits.worker_bytes(equal_threads))


def find_problem(remote: RemoteJob) -> str | None:
    """See `RemoteJob.problem`; a module-level function, so that dask can send it to workers."""
    return remote.problem()


def stop_server(remote: RemoteJob) -> None:
    """End this process's task server for a job, even in the middle of a task."""
    _servers.stop(remote)


class _TaskServer:
    """A subprocess that runs each task in a child of its own, as the dask worker sees it.

    The subprocess ends when its input is closed.
    """

    def __init__(self, remote: RemoteJob) -> None:
        self.last_used = time.monotonic()
        self._send = threading.Lock()
        self._waiting: dict[int, Future[Answer]] = {}
        self._numbers = itertools.count()
        # Like multiprocessing, so that the subprocess finds the same modules as this process.
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()"
        with interrupts_held():
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._send_message(remote)
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def submit(self, task: bytes) -> Future[Answer]:
        """Send a task; the future gets an answer even if the subprocess dies."""
        answer: Future[Answer] = Future()
        number = next(self._numbers)
        self._waiting[number] = answer
        self._send_message((number, task))
        return answer

    def close(self) -> None:
        """Close its input; the subprocess then kills its children and ends."""
        with self._send, contextlib.suppress(OSError):
            self._input.close()

    def _send_message(self, message: object) -> None:
        # If the subprocess is gone, `_listen` sees the end of its output and answers for it.
        with self._send, contextlib.suppress(OSError, ValueError):
            pickle.dump(message, self._input)
            self._input.flush()

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                number, answer = pickle.load(self._output)
                self.last_used = time.monotonic()
                self._waiting.pop(number).set_result(answer)
        _servers.forget(self)
        self.close()
        code = self._process.wait()
        self._output.close()
        how = f"the build's process on {platform.node()} ended with code {code}"
        for answer in self._waiting.values():
            answer.set_result(Died(None, None, how))


class _TaskServers:
    """The task servers of this process, by the path of their job; one that is idle for a minute is closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_path: dict[Path, _TaskServer] = {}

    def build(self, remote: RemoteJob, task: bytes) -> Answer:
        with self._lock:
            server = self._by_path.get(remote.path)
            if server is None:
                server = self._by_path[remote.path] = _TaskServer(remote)
                self._retire_later(server)
            answer = server.submit(task)
        return answer.result()

    def stop(self, remote: RemoteJob) -> None:
        with self._lock:
            server = self._by_path.pop(remote.path, None)
        if server is not None:
            server.close()

    def forget(self, server: _TaskServer) -> None:
        with self._lock:
            self._drop(server)

    def _drop(self, server: _TaskServer) -> None:
        self._by_path = {
            path: other for path, other in self._by_path.items() if other is not server
        }

    def _retire_later(self, server: _TaskServer) -> None:
        timer = threading.Timer(_IDLE_SECONDS, self._retire, [server])
        timer.daemon = True
        timer.start()

    def _retire(self, server: _TaskServer) -> None:
        with self._lock:
            if server.busy or time.monotonic() - server.last_used < _IDLE_SECONDS:
                self._retire_later(server)
                return
            self._drop(server)
        server.close()


_servers = _TaskServers()


def main() -> None:
    """The task server's main loop: run every task in an idle or a new child, until the dask worker is gone."""
    messages, answers = _own_pipes()
    pools = _OneTaskPools(pickle.load(messages), answers)
    with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
        while True:
            number, task = pickle.load(messages)
            threading.Thread(target=pools.build, args=(number, task), daemon=True).start()
    # A child that hangs would outlive this process.
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(0)


class _OneTaskPools:
    """Process pools of one worker each; every pool runs one task at a time."""

    def __init__(self, remote: RemoteJob, answers: BinaryIO) -> None:
        self._remote = remote
        self._answers = answers
        self._answering = threading.Lock()
        self._idle: SimpleQueue[Pool[Any, Any]] = SimpleQueue()

    def build(self, number: int, task: bytes) -> None:
        """Run one task and send its answer."""
        try:
            pool = self._idle.get_nowait()
        except Empty:
            job, limits = RemoteJobRunner(self._remote), self._remote.limits
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
        with self._answering, contextlib.suppress(OSError):  # the dask worker is gone
            pickle.dump((number, answer), self._answers)
            self._answers.flush()


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The pipes from and to the dask worker; stdout then goes to stderr, in case a reader prints."""
    messages, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return messages, answers
