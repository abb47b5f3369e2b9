"""Worker processes: results, steps, errors, and deaths that affect only their own task."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pointdistill.data.corpus_building import pool as pool_module
from pointdistill.data.corpus_building import pool as worker_module
from pointdistill.data.corpus_building.limits import ShapeLimits
from pointdistill.data.corpus_building.pool import Died, Done, open_pool
from pointdistill.data.files.processes import GIB
from pointdistill.errors import DataError

JOBS = """
import os, signal, time

def job(task, started):
    for step in range(3):
        started(step)
        if task == f"die {step}":
            os.kill(os.getpid(), signal.SIGKILL)
        if task == f"exit {step}":
            os._exit(7)
        if task == f"hang {step}":
            time.sleep(1000)
    if task == "nap":
        time.sleep(0.3)
    if task == "rest":
        started(-1)
        time.sleep(1.2)
    if task == "hoard":
        return bytes(2**30)
    if task == "guards":
        import resource
        dumps = resource.getrlimit(resource.RLIMIT_CORE)[0]
        return dumps, int(open("/proc/self/oom_score_adj").read())
    if task == "raise":
        raise ValueError("from a worker")
    if task == "odd error":
        raise Odd(1, 2)
    return task.upper(), os.getpid()

def unpacking_job(task, started):
    import pathlib, tempfile
    pathlib.Path(tempfile.mkdtemp(), "unpacked").write_text("a member")
    return job(task, started)

class Odd(Exception):
    def __init__(self, one, two):
        super().__init__("cannot be rebuilt from this")
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Jobs in a module that worker processes can import."""
    name = f"jobs_{os.getpid()}_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(JOBS)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module(name)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_task_is_done_and_tells_its_steps(jobs: ModuleType, workers: int) -> None:
    steps: list[tuple[str, int]] = []
    tasks = [f"task {k}" for k in range(7)]
    with open_pool(jobs.job, workers=workers, on_step=lambda *step: steps.append(step)) as pool:
        for task in tasks:
            pool.submit(task)
        done = [event for event in pool.events() if isinstance(event, Done)]
    assert sorted((event.task, event.result[0]) for event in done) == [
        (t, t.upper()) for t in tasks
    ]
    assert sorted(steps) == [(task, step) for task in tasks for step in range(3)]
    own = {event.result[1] for event in done} == {os.getpid()}
    assert own == (workers == 0)


def test_a_task_may_be_added_while_others_run_and_go_first(jobs: ModuleType) -> None:
    with open_pool(jobs.job, workers=0, on_step=lambda *_: None) as pool:
        pool.submit("a")
        pool.submit("b")
        order = []
        for event in pool.events():
            order.append(event.task)
            if event.task == "a":
                pool.submit("first", first=True)
                pool.submit("last")
    assert order == ["a", "first", "b", "last"]


@pytest.mark.parametrize(
    ("task", "how"),
    [("die 0", "killed by SIGKILL"), ("die 2", "killed by SIGKILL"), ("exit 1", "exit code 7")],
)
def test_a_death_is_told_with_its_step_and_costs_nothing_else(
    jobs: ModuleType, task: str, how: str
) -> None:
    with open_pool(jobs.job, workers=2, on_step=lambda *_: None) as pool:
        for name in ("a", task, "b", "c"):
            pool.submit(name)
        events = list(pool.events())
    assert [event for event in events if isinstance(event, Died)] == [
        Died(task, int(task[-1]), how)
    ]
    assert sorted(event.task for event in events if isinstance(event, Done)) == ["a", "b", "c"]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_reaches_the_caller_and_the_workers_end(jobs: ModuleType, workers: int) -> None:
    with open_pool(jobs.job, workers=workers, on_step=lambda *_: None) as pool:
        pool.submit("raise")
        with pytest.raises(ValueError, match="from a worker"):
            list(pool.events())
    assert multiprocessing.active_children() == []


def test_an_error_that_cannot_travel_arrives_as_text(jobs: ModuleType) -> None:
    with open_pool(jobs.job, workers=1, on_step=lambda *_: None) as pool:
        pool.submit("odd error")
        with pytest.raises(RuntimeError, match="cannot be rebuilt from this"):
            list(pool.events())


def test_workers_that_cannot_start_say_why() -> None:
    """As in a script without a guard: the child ends before it has said that it is ready."""

    class Unstartable:
        def __call__(self, task: str, started: object) -> str:
            raise AssertionError("never called")

        def __reduce__(self) -> tuple[object, tuple[int]]:
            return os._exit, (1,)

    with open_pool(Unstartable(), workers=1, on_step=lambda *_: None) as pool:
        pool.submit("a")
        with pytest.raises(DataError, match=r"do not start \(exit code 1\).*workers=0"):
            list(pool.events())


def test_what_is_no_step_has_no_deadline(jobs: ModuleType) -> None:
    """A worker that rests after its steps for longer than one may take is left alone; one that hangs is not."""
    limits = ShapeLimits(deadline_seconds=0.5)
    with open_pool(jobs.job, workers=2, on_step=lambda *_: None, limits=limits) as pool:
        pool.submit("rest")
        pool.submit("hang 1")
        events = {event.task: event for event in pool.events()}
    assert isinstance(events["rest"], Done)
    assert events["hang 1"] == Died(
        "hang 1", 1, "longer than the deadline of 0.5 s", failure="deadline"
    )


def test_a_parent_that_was_held_up_takes_no_worker_for_stuck(jobs: ModuleType) -> None:
    """As after a pause of this process: what workers said meanwhile is heard before any is ended."""
    limits = ShapeLimits(deadline_seconds=0.3)

    def slow(task: str, step: int) -> None:
        time.sleep(0.4)

    with open_pool(jobs.job, workers=1, on_step=slow, limits=limits) as pool:
        pool.submit("a")
        assert [type(event) for event in pool.events()] == [Done]


def test_time_in_which_the_whole_program_was_stopped_is_no_shapes(
    jobs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by Ctrl-Z, or on a machine that sleeps: parent and worker both stand still while the clock goes on."""
    steps: list[int] = []
    ahead: list[float] = []

    def stopped(connections: list[Any], timeout: float) -> list[Any]:
        if len(steps) == 3 and not ahead:
            ahead.append(1000)
            return []
        return plainly(connections, timeout)

    plainly, clock = (
        wait,
        SimpleNamespace(monotonic=lambda: time.monotonic() + sum(ahead)),
    )
    monkeypatch.setattr(pool_module, "wait", stopped)
    monkeypatch.setattr(pool_module, "time", clock)
    monkeypatch.setattr(worker_module, "time", clock)
    limits = ShapeLimits(deadline_seconds=100)
    with open_pool(
        jobs.job, workers=1, on_step=lambda _, step: steps.append(step), limits=limits
    ) as pool:
        pool.submit("nap")
        assert [type(event) for event in pool.events()] == [Done]
    assert ahead


@pytest.mark.parametrize("seconds", [3e6, 1e12])
def test_a_deadline_may_be_longer_than_the_system_waits(jobs: ModuleType, seconds: float) -> None:
    limits = ShapeLimits(deadline_seconds=seconds)
    with open_pool(jobs.job, workers=1, on_step=lambda *_: None, limits=limits) as pool:
        pool.submit("a")
        assert [type(event) for event in pool.events()] == [Done]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")
def test_a_memory_limit_may_be_larger_than_any_memory(jobs: ModuleType) -> None:
    limits = ShapeLimits(memory_bytes=2**70)
    with open_pool(jobs.job, workers=1, on_step=lambda *_: None, limits=limits) as pool:
        pool.submit("a")
        assert [type(event) for event in pool.events()] == [Done]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")
def test_a_task_that_wants_too_much_memory_ends_its_worker_and_the_next_one_is_whole(
    jobs: ModuleType,
) -> None:
    limits = ShapeLimits(memory_bytes=GIB // 4)
    with open_pool(jobs.job, workers=1, on_step=lambda *_: None, limits=limits) as pool:
        for task in ("a", "hoard", "b"):
            pool.submit(task)
        events = {event.task: event for event in pool.events()}
    assert events["hoard"] == Died(
        "hoard", 2, "more memory than the limit of 0.25 GiB", failure="memory"
    )
    assert events["a"].result[1] != events["b"].result[1], "another process did b"  # type: ignore[union-attr]


@pytest.mark.skipif(sys.platform != "linux", reason="as the kernel tells it")
def test_workers_leave_no_memory_dumps_and_go_before_the_parent(jobs: ModuleType) -> None:
    with open_pool(jobs.job, workers=1, on_step=lambda *_: None) as pool:
        pool.submit("guards")
        (event,) = pool.events()
    assert isinstance(event, Done)
    assert event.result == (0, 500)


@pytest.mark.parametrize("how", ["hang 1", "die 1", "exit 1", "fine"])
def test_a_worker_leaves_no_temporary_files(
    jobs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Not even one that is killed at its deadline, dies, or exits without cleaning up."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    limits = ShapeLimits(deadline_seconds=1.5)
    with open_pool(jobs.unpacking_job, workers=1, on_step=lambda *_: None, limits=limits) as pool:
        pool.submit(how)
        (event,) = pool.events()
        assert isinstance(event, Done if how == "fine" else Died)
        left = [path.name for path in place.rglob("unpacked")]
        assert len(left) == (how == "fine")
    assert list(place.iterdir()) == []
