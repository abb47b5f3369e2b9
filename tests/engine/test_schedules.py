"""Every schedule, at every step, against an independent implementation's values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pointdistill.engine.runtime.schedules import ScheduleConfig, linear, two_stage, warmup_cosine
from pointdistill.errors import ConfigError


def test_all_golden_schedules(golden_dir: Path) -> None:
    golden = json.loads((golden_dir / "schedules.json").read_text())
    per_epoch = golden["steps_per_epoch"]
    total = golden["epochs"] * per_epoch
    rates = [
        ScheduleConfig().at(step, total=total, steps_per_epoch=per_epoch)
        for step in range(total + 1)
    ]
    ours = {
        "pretrain_lr": [r.learning_rate for r in rates],
        "ema_decay": [r.teacher_momentum for r in rates],
        "cls_teacher_temp": [r.temperatures.cls_teacher for r in rates],
        "patch_teacher_temp": [r.temperatures.patch_teacher for r in rates],
        "finetune_lr": [
            warmup_cosine(s, first=0.0, peak=2e-5, final=1e-7, warmup=10 * per_epoch, total=total)
            for s in range(total + 1)
        ],
        "two_stage_lr_first_stage_5_epochs": [
            two_stage(
                s,
                frozen_first=5e-4,
                frozen_last=5e-5,
                frozen_span=5 * per_epoch,
                peak=2e-5,
                final=1e-7,
                warmup=10 * per_epoch,
                total=total,
            )
            for s in range(total + 1)
        ],
    }
    assert ours.keys() == golden["values_at_step_0_to_300"].keys()
    for name, values in golden["values_at_step_0_to_300"].items():
        assert ours[name] == pytest.approx(values, rel=1e-9, abs=1e-15), name


@pytest.mark.parametrize(("step", "value"), [(0, 1.0), (5, 2.0), (10, 3.0), (99, 3.0)])
def test_linear_ramps_then_stays(step: int, value: float) -> None:
    assert linear(step, start=1.0, end=3.0, span=10) == value


def test_warmup_cosine_is_halfway_at_the_middle() -> None:
    """Warm-up over 10 of 30 steps; at step 20 the cosine from 1.0 to 0.0 stands at one half."""
    at = [warmup_cosine(s, first=0.0, peak=1.0, final=0.0, warmup=10, total=30) for s in range(31)]
    assert (at[0], at[5], at[10]) == (0.0, 0.5, 1.0)
    assert at[20] == pytest.approx(0.5)
    assert at[30] == pytest.approx(0.0)


def test_a_warmup_longer_than_the_run_ends_with_the_run() -> None:
    rates = ScheduleConfig(warmup_epochs=10).at(4, total=4, steps_per_epoch=1)
    assert rates.learning_rate == pytest.approx(1e-6)


@pytest.mark.parametrize(("name", "value"), [("student_temperature", 0.0), ("first_momentum", 1.5)])
def test_impossible_values_are_named(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"schedule.{name} must"):
        ScheduleConfig(**{name: value})
