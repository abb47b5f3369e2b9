"""Numbers on their way to the host: in order, late by as many steps as was said, none lost."""

from __future__ import annotations

import math

import pytest
import torch

from pointdistill.engine.pretraining.monitor import (
    DeviceMetrics,
    MetricsQueue,
    StepOutcome,
    steps_behind,
    why_not_applied,
)
from tests.engine.conftest import micro_config


def metrics(
    step: int, *, applied: float = 1.0, unreadable: float = 0.0, **logged: float
) -> DeviceMetrics:
    rates = micro_config().schedule.at(step, total=10, steps_per_epoch=2)
    given = {"loss": float(step), "gradient_norm": 1.0} | logged
    outcome = StepOutcome(
        applied=torch.tensor(applied),
        stop=torch.tensor(0.25),
        save=torch.tensor(0.5),
        unreadable=torch.tensor(unreadable),
        logit_sum=torch.tensor(0.0),
    )
    tensors = {name: torch.tensor(value) for name, value in given.items()}
    return DeviceMetrics(step, 0, rates, ("loss",), tensors, outcome)


@pytest.mark.parametrize("behind", [0, 1, 3])
def test_metrics_come_in_order_and_late(behind: int) -> None:
    queue = MetricsQueue(behind)
    for step in range(1, 6):
        queue.send(metrics(step))
        assert [one.step for one in queue.arrived()] == ([step - behind] if step > behind else [])
    left = [one.logged["loss"] for one in queue.arrived(everything=True)]
    assert left == list(range(6 - behind, 6))
    assert list(queue.arrived(everything=True)) == []


def test_every_number_comes_under_its_own_name() -> None:
    queue = MetricsQueue(0)
    queue.send(metrics(3, unreadable=0.125, gradient_norm=7.0))
    (arrived,) = queue.arrived()
    assert arrived.outcome == StepOutcome(1.0, 0.25, 0.5, 0.125, 0.0)
    assert arrived.logged == {"loss": 3.0, "gradient_norm": 7.0}


def test_discarded_steps_are_never_read() -> None:
    queue = MetricsQueue(1)
    queue.send(metrics(1))
    queue.discard()
    assert list(queue.arrived(everything=True)) == []


def test_a_cpu_is_read_at_once_and_a_gpu_a_step_late() -> None:
    assert steps_behind(torch.device("cpu")) == 0
    assert steps_behind(torch.device("cuda")) == 1


def test_a_copy_is_sent_not_the_device_s_own_memory() -> None:
    """The next step may overwrite a number before a late queue looks at it."""
    queue = MetricsQueue(1)
    sent = metrics(1)
    queue.send(sent)
    sent.outcome.applied.zero_()
    (arrived,) = queue.arrived(everything=True)
    assert arrived.step_applied


def test_what_was_wrong_is_named() -> None:
    queue = MetricsQueue(0)
    queue.send(metrics(1, loss=math.inf, gradient_norm=math.nan, applied=0.0))
    queue.send(metrics(2, applied=0.0, unreadable=0.5))
    wrong, unread = queue.arrived()
    assert not wrong.step_applied
    assert why_not_applied(wrong) == "loss inf, gradient norm nan"
    assert why_not_applied(unread) == "another process could not read its shapes"
