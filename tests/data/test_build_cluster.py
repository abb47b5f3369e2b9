"""Building on a cluster: the same bytes as on one machine, whatever happens to the workers."""

from __future__ import annotations

import importlib
import io
import logging
import os
import pickle
import platform
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pointdistill.data.corpus_building import dask_driver as cluster_module
from pointdistill.data.corpus_building import dask_worker as node_worker
from pointdistill.data.corpus_building import state
from pointdistill.data.corpus_building.dask_worker import RemoteJob, RemoteJobRunner, publish_job
from pointdistill.data.corpus_building.division import Span
from pointdistill.data.corpus_building.limits import ShapeLimits
from pointdistill.data.corpus_building.pool import Died, Done
from pointdistill.data.corpus_building.state import BuildFolder, Outcome
from pointdistill.data.corpus_building.tasks import BuildJob, JoinTask, PieceTask
from pointdistill.data.files import files
from pointdistill.data.files.processes import GIB
from pointdistill.errors import ConfigError, DataError
from tests.data.test_build import build, digest
from tests.data.watching import Watching

distributed = pytest.importorskip("distributed")
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def mark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the path of modules, by which processes of these tests are known."""
    return tmp_path_factory.mktemp("mark")


@pytest.fixture(scope="module")
def odd(mark: Path) -> Iterator[Callable[..., Any]]:
    """The class of the odd source, in a module that workers can import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        patch.syspath_prepend(mark)
        yield importlib.import_module("odd_source").OddSource


@pytest.fixture(scope="module")
def cluster(odd: Callable[..., Any]) -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        host="127.0.0.1",
        silence_logs=logging.CRITICAL,
    ) as cluster:
        yield cluster


def task_servers(mark: Path) -> list[int]:
    """Processes that dask workers of these tests have started, however these ended."""
    import psutil

    processes = psutil.process_iter(["pid", "cmdline"])
    lines = {process.pid: " ".join(process.info["cmdline"] or []) for process in processes}
    return [
        pid for pid, line in lines.items() if "node_worker import" in line and str(mark) in line
    ]


def wait_for(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + 20
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


def test_a_cluster_gives_the_bytes_of_this_machine(
    tmp_path: Path,
    odd: Callable[..., Any],
    cluster: Any,
    mark: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A killer is retryable, other shapes are refused, and paths may be relative."""
    source = odd(100, {3: "refuse", 30: "die", 31: "die", 77: "many"})
    build(source, tmp_path / "here", workers=1)
    monkeypatch.chdir(tmp_path)  # the workers stay where they are
    report = build(source, Path("there"), cluster=cluster.scheduler_address)
    assert (report.kept, report.refused) == (97, 3)
    assert digest(tmp_path / "there") == digest(tmp_path / "here")
    assert wait_for(lambda: not task_servers(mark)), "nothing of the build is left on the workers"


def test_a_worker_that_is_killed_costs_nothing(
    tmp_path: Path, odd: Callable[..., Any], cluster: Any, mark: Path
) -> None:
    source = odd(100, dict.fromkeys(range(0, 100, 2), "slow"))
    victims: list[int] = []

    def kill_one(done: int, _: object) -> None:
        if done >= 16 and not victims:
            victims.append(next(iter(cluster.workers.values())).pid)
            os.kill(victims[0], signal.SIGKILL)

    build(
        source, tmp_path / "there", cluster=cluster.scheduler_address, reporter=Watching(kill_one)
    )
    assert victims
    build(source, tmp_path / "here")
    assert digest(tmp_path / "there") == digest(tmp_path / "here")
    assert wait_for(lambda: not task_servers(mark)), "a task server ends with its dask worker"


def test_after_ctrl_c_the_build_goes_on_with_or_without_the_cluster(
    tmp_path: Path, odd: Callable[..., Any], cluster: Any, mark: Path
) -> None:
    source, folder = odd(100, {9: "refuse", 60: "hang"}), tmp_path / "there"

    def stop(done: int, _: object) -> None:
        if done >= 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(source, folder, cluster=cluster.scheduler_address, reporter=Watching(stop))
    assert wait_for(lambda: not task_servers(mark)), "not even one whose shape hangs"
    assert not list(folder.glob(".building/cluster-*"))
    assert build(odd(100, {9: "refuse"}), folder).resumed >= 40
    build(odd(100, {9: "refuse"}), tmp_path / "here")
    assert digest(folder) == digest(tmp_path / "here")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("tcp://127.0.0.1:1", "tcp://127.0.0.1:1: no scheduler answers; a cluster is named by"),
        ("here", "here: missing port number"),
    ],
)
def test_an_address_without_a_scheduler_is_one_line(
    tmp_path: Path,
    odd: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    message: str,
) -> None:
    monkeypatch.setattr(cluster_module, "_CONNECT_SECONDS", 0.3)
    with pytest.raises(ConfigError, match=message):
        build(odd(20), tmp_path / "corpus", cluster=address)


def test_a_worker_is_not_a_scheduler(tmp_path: Path, odd: Callable[..., Any], cluster: Any) -> None:
    address = next(iter(cluster.scheduler_info["workers"]))
    with pytest.raises(ConfigError, match="is a worker of a cluster; name its scheduler"):
        build(odd(20), tmp_path / "corpus", cluster=address)


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, odd: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"pip install 'pointdistill\[cluster\]'"):
        build(odd(20), tmp_path / "corpus", cluster="tcp://127.0.0.1:1")


@pytest.fixture
def remote(tmp_path: Path, odd: Callable[..., Any]) -> RemoteJob:
    """A published job on ten shapes of a source that reads one file."""
    folder = BuildFolder(tmp_path / "corpus")
    folder.path.mkdir(parents=True)
    (tmp_path / "archive.zip").write_bytes(b"1234")
    source = odd(10, scratch=tmp_path / "archive.zip")
    job = BuildJob(source, seed=0, points=64, folder=folder)
    return publish_job(job, ShapeLimits())


def test_a_published_job_that_is_whole_is_no_problem(remote: RemoteJob, tmp_path: Path) -> None:
    assert remote.problem() is None
    assert (tmp_path / "archive.zip", 4) in remote.inputs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda remote: replace(remote, version="9.9"), r"has pointdistill .*, this program 9\.9"),
        (lambda remote: replace(remote, python="2.7"), r"has Python .*, this program 2\.7"),
        (lambda remote: remote.path.unlink() or remote, r"cannot read .*\.job .*share"),
        (
            lambda remote: replace(remote, inputs=((Path("/no/such.zip"), 1),)),
            r"cannot read /no/such\.zip \(No such file or directory\); output and inputs must lie",
        ),
        (
            lambda remote: replace(remote, inputs=((remote.inputs[0][0], 5),)),
            r"another file as .*archive\.zip \(4 bytes, not 5\)",
        ),
    ],
)
def test_a_host_that_cannot_do_the_work_says_why(
    remote: RemoteJob, change: Callable[[RemoteJob], RemoteJob], message: str
) -> None:
    """Without these, a worker would refuse all shapes, or write where nobody looks."""
    problem = change(remote).problem()
    assert problem is not None
    assert re.search(message, problem), problem
    assert platform.node() in problem


def test_a_host_that_cannot_do_the_work_stops_the_build(
    tmp_path: Path, odd: Callable[..., Any], cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pointdistill.data.corpus_building.dask_worker.program_version", lambda: "9.9"
    )
    with pytest.raises(DataError, match=r"worker tcp://.* of the cluster: .*this program 9\.9"):
        build(odd(20), tmp_path / "corpus", cluster=cluster.scheduler_address)


def test_a_published_task_is_done_once(remote: RemoteJob, odd: Callable[..., Any]) -> None:
    """A worker that was taken for dead may have done it, and have taken its pieces away."""
    entries = sorted(odd(10).entries(), key=lambda entry: entry.id)
    spans = [Span(0, 5), Span(5, 10)]
    tasks = [PieceTask(0, span, entries[span.start : span.stop]) for span in spans]
    read: list[int] = []
    job = RemoteJobRunner(remote)
    first = [job(task, read.append) for task in tasks]
    assert read
    read.clear()
    assert [job(task, read.append) for task in tasks] == first
    assert read == []
    joined = job(JoinTask(0, spans), read.append)
    assert joined.kept == 10
    assert job(JoinTask(0, spans), read.append) == joined
    remote.path.unlink()
    with pytest.raises(DataError, match="the build was stopped"):
        job(tasks[0], read.append)


@pytest.mark.parametrize("moment", ["before the join", "while a mark is read"])
def test_a_join_that_another_host_does_meanwhile_is_done(
    remote: RemoteJob, odd: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The other one has written the shard, and taken the pieces away, between two looks of this one."""
    entries = sorted(odd(10).entries(), key=lambda entry: entry.id)
    spans = [Span(0, 5), Span(5, 10)]
    here = RemoteJobRunner(remote)
    for span in spans:
        here(PieceTask(0, span, entries[span.start : span.stop]), lambda _: None)
    folder = BuildFolder(remote.path.parent.parent)
    there = BuildJob(odd(10), seed=0, points=64, folder=folder)
    join, read = BuildJob._join, files.read_record
    others: list[Outcome] = []

    def late_join(job: BuildJob, task: JoinTask) -> Outcome:
        if not others:
            others.append(join(there, task))
        return join(job, task)

    def late_read(path: Path, *kind: Any, **settings: Any) -> Any:
        if path.name.startswith("piece") and not others:
            others.append(Outcome(0, ()))
            others[0] = join(there, JoinTask(0, spans))
        return read(path, *kind, **settings)

    if moment == "before the join":
        monkeypatch.setattr(BuildJob, "_join", late_join)
    else:
        monkeypatch.setattr(state, "read_record", late_read)
    assert here(JoinTask(0, spans), lambda _: None) == others[0]
    assert others[0].kept == 10


@dataclass(frozen=True)
class Raised:
    error: Exception


class FakeDask:
    """A cluster without processes: ``fates`` are what becomes of tasks; a `Raised` is dask's own error."""

    class KilledWorker(Exception):  # noqa: N818 - dask's name
        last_worker = type("State", (), {"address": "tcp://lost:1"})

    def __init__(self, fates: list[Any], threads: list[int]) -> None:
        self.fates, self.threads = fates, threads
        self.status = "running"
        self.most = 0
        self.open: list[Any] = []

    def Client(self, *_: object, **__: object) -> FakeDask:  # noqa: N802 - dask's name
        return self

    def nthreads(self) -> dict[str, int]:
        count = self.threads.pop(0) if len(self.threads) > 1 else self.threads[0]
        return {"tcp://worker:1": count} if count else {}

    def run(self, *_: object, **__: object) -> dict[str, None]:
        return {}

    def submit(self, *_: object, key: str, **__: object) -> Any:
        future = FakeFuture(key, self)
        self.open.append(future)
        self.most = max(self.most, len(self.open))
        return future

    def cancel(self, futures: list[Any], *, force: bool) -> None:
        self.open.clear()

    def close(self, timeout: float) -> None:
        self.status = "closed"


class FakeFuture:
    def __init__(self, key: str, dask: FakeDask) -> None:
        self.key, self.dask = key, dask

    def add_done_callback(self, call: Callable[[Any], None]) -> None:
        threading.Timer(0.02, call, [self]).start()

    def result(self) -> Any:
        self.dask.open.remove(self)
        fate = self.dask.fates.pop(0)
        if isinstance(fate, Raised):
            raise fate.error
        return fate


@pytest.fixture
def events(
    tmp_path: Path, odd: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[[FakeDask], list[Any]]:
    """All events of a pool on a fake cluster, one task for each of its fates."""
    monkeypatch.setattr(cluster_module, "_COUNT_SECONDS", 0.01)

    def run(dask: FakeDask) -> list[Any]:
        folder = BuildFolder(tmp_path / "corpus")
        folder.path.mkdir(parents=True)
        job = BuildJob(odd(10), seed=0, points=64, folder=folder)
        pool = cluster_module._ClusterPool(dask, job, "tcp://host:8786", ShapeLimits())
        with pool:
            for number in range(len(dask.fates)):
                pool.submit(PieceTask(0, Span(number, number + 1), []))
            return list(pool.events())

    return run


def test_few_tasks_are_under_way_at_a_time(events: Callable[[FakeDask], list[Any]]) -> None:
    dask = FakeDask([Done(None, None)] * 50, threads=[2])
    assert len(events(dask)) == 50
    assert dask.most == 4


def test_a_cluster_without_workers_is_waited_for(
    events: Callable[[FakeDask], list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    dask = FakeDask([Done(None, None)] * 2, threads=[0, 0, 0, 1])
    assert len(events(dask)) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "tcp://host:8786 has no workers; waiting for some to come"
    ]


def test_a_task_whose_workers_die_is_told_as_a_death(
    events: Callable[[FakeDask], list[Any]],
) -> None:
    """dask has tried it on several; the build tries again, and gives up in the end."""
    (event,) = events(FakeDask([Raised(FakeDask.KilledWorker())], threads=[1]))
    assert isinstance(event, Died)
    assert event.how == "worker tcp://lost:1 of the cluster was lost"
    assert event.step is None


def test_a_scheduler_that_is_lost_is_one_line(events: Callable[[FakeDask], list[Any]]) -> None:
    dask = FakeDask([Raised(CancelledError())], threads=[1])
    with pytest.raises(DataError, match="the scheduler is gone or was started anew; run the same"):
        events(dask)
    assert dask.status == "closed"


def test_an_error_of_a_task_reaches_the_build(events: Callable[[FakeDask], list[Any]]) -> None:
    full = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left") as raised:
        events(FakeDask([full], threads=[1]))
    assert raised.value.errno == 28


def test_a_shape_that_hangs_on_a_worker_meets_its_deadline(
    remote: RemoteJob, odd: Callable[..., Any]
) -> None:
    source = odd(1, {0: "hang"})
    folder = BuildFolder(remote.path.parent.parent)
    job = BuildJob(source, seed=0, points=64, folder=folder)
    late = publish_job(job, ShapeLimits(deadline_seconds=0.2))
    answers = io.BytesIO()
    task = PieceTask(0, Span(0, 1), source.entries())
    node_worker._OneTaskPools(late, answers).build(7, pickle.dumps(task))
    number, answer = pickle.loads(answers.getvalue())
    assert number == 7
    assert (answer.task, answer.step, answer.failure) == (None, 0, "deadline")


def test_a_shapes_memory_is_its_threads_share_of_the_dask_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker with half the memory and four threads: an eighth of what one process would have."""
    monkeypatch.setattr(node_worker, "memory_bytes", lambda: 64 * GIB)
    monkeypatch.setattr("pointdistill.data.corpus_building.limits.memory_bytes", lambda: 64 * GIB)
    worker = SimpleNamespace(
        memory_manager=SimpleNamespace(memory_limit=32 * GIB), state=SimpleNamespace(nthreads=4)
    )
    monkeypatch.setattr(distributed, "get_worker", lambda: worker)
    assert node_worker._own_limits(ShapeLimits()).memory_bytes == 6 * GIB
    named = ShapeLimits(memory_bytes=2 * GIB)
    assert node_worker._own_limits(named) == named
