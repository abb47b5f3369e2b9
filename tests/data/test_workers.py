"""Work in several processes: the order of the tasks, errors, and a process that is killed."""

import json
import os

import pytest

from pointdistill.data.workers import ordered_map, usable_cores
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
