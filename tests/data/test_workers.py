"""Work in several processes: the order of results, errors, and a process that is killed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pointdistill.data.files.processes import ordered_map, usable_cores, work_beside
from pointdistill.errors import DataError


def test_there_is_at_least_one_core() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    tasks = list(range(-20, 0))
    assert list(ordered_map(abs, tasks, workers=workers)) == list(range(20, 0, -1))


def test_nothing_to_do_is_done_at_once() -> None:
    assert list(ordered_map(abs, [], workers=None)) == []


def test_an_error_of_a_task_reaches_the_caller() -> None:
    with pytest.raises(json.JSONDecodeError):
        list(ordered_map(json.loads, ["1", "{"], workers=2))


def test_a_killed_process_is_one_line() -> None:
    with pytest.raises(DataError, match="one of 2 worker processes was killed; free some memory"):
        list(ordered_map(os._exit, [9, 9], workers=2))


PARENT = """
import os
from pointdistill.data.files.processes import ordered_map


def name_itself(task):
    return os.getpid()


if __name__ == "__main__":
    for number in ordered_map(name_itself, range(8), workers=2):
        print(number, flush=True)
        input()
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)
        parent.kill()
    deadline = time.monotonic() + 20
    while _is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _is_alive(worker)


def _is_alive(process: int) -> bool:
    """Whether it runs; one that ended may wait to be reaped where nothing does that for orphans."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def half_done(task: str, ready: Callable[[], None]) -> str:
    """Say that it is ready, and then do what the task names."""
    ready()
    if task == "end":
        os._exit(3)
    if task == "raise":
        msg = "no such shape"
        raise DataError(msg)
    if task == "hang":
        time.sleep(600)
    return task


def test_work_beside_gives_its_result_or_its_error_and_ends_with_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # where workers find this module
    with work_beside(half_done, "done") as beside, work_beside(half_done, "hang") as hanging:
        beside.await_ready()
        beside.await_ready()
        assert beside.result() == "done"
        hanging.await_ready()
        process = hanging._process
        assert process.is_alive()
    assert not process.is_alive()
    with work_beside(half_done, "raise") as beside, work_beside(half_done, "end") as ending:
        with pytest.raises(DataError, match="no such shape"):
            beside.result()
        ending.await_ready()
        with pytest.raises(DataError, match="a worker process ended with code 3"):
            ending.result()
