"""Worker processes: results, steps, errors, and deaths that stay with their task."""

from __future__ import annotations

import importlib
import multiprocessing
import os
from pathlib import Path
from types import ModuleType

import pytest

from pointdistill.data.build.pool import Died, Done, open_pool
from pointdistill.errors import DataError

JOBS = """
import os, signal

def job(task, started):
    for step in range(3):
        started(step)
        if task == f"die {step}":
            os.kill(os.getpid(), signal.SIGKILL)
        if task == f"exit {step}":
            os._exit(7)
    if task == "raise":
        raise ValueError("from a worker")
    if task == "odd error":
        raise Odd(1, 2)
    return task.upper(), os.getpid()

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
