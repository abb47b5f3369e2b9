"""Numbers on their way to the host: in order, late by as many steps as was said, none lost."""

from __future__ import annotations

import math

import pytest
import torch

from pointdistill.engine.training.readings import (
    Readings,
    StepNumbers,
    describe_unsound,
    steps_behind,
)
from tests.engine.conftest import micro_config


def numbers(step: int, **values: float) -> StepNumbers:
    rates = micro_config().schedule.at(step, total=10, steps_per_epoch=2)
    given = {"loss": float(step), "gradient_norm": 1.0, "centers": 0.0, "taken": 1.0} | values
    tensors = {name: torch.tensor(value) for name, value in given.items()}
    return StepNumbers(step, 0, rates, ("loss",), tensors)


@pytest.mark.parametrize("behind", [0, 1, 3])
def test_readings_come_in_order_and_late(behind: int) -> None:
    readings = Readings(behind)
    for step in range(1, 6):
        readings.send(numbers(step))
        assert [one.step for one in readings.arrived()] == (
            [step - behind] if step > behind else []
        )
    left = [one.values["loss"] for one in readings.arrived(everything=True)]
    assert left == list(range(6 - behind, 6))
    assert list(readings.arrived(everything=True)) == []


def test_forgotten_steps_are_never_read() -> None:
    readings = Readings(1)
    readings.send(numbers(1))
    readings.forget()
    assert list(readings.arrived(everything=True)) == []


def test_a_cpu_is_read_at_once_and_a_gpu_a_step_late() -> None:
    assert steps_behind(torch.device("cpu")) == 0
    assert steps_behind(torch.device("cuda")) == 1


def test_a_copy_is_sent_not_the_device_s_own_memory() -> None:
    """The next step overwrites ``alive`` before a late reading is looked at."""
    readings = Readings(1)
    sent = numbers(1)
    readings.send(sent)
    sent.values["taken"].zero_()
    (reading,) = readings.arrived(everything=True)
    assert reading.sound


def test_what_was_wrong_is_named() -> None:
    readings = Readings(0)
    readings.send(numbers(1, loss=math.inf, gradient_norm=math.nan, taken=0.0))
    (reading,) = readings.arrived()
    assert not reading.sound
    assert describe_unsound(reading) == "loss inf, gradient norm nan"
