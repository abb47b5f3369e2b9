"""Work in several processes: the order of results, errors, and a process that is killed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pointdistill.data.files.processes import ordered_map, usable_cores
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
