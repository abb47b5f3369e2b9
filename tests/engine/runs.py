"""What tests ask of a run: its weights, its losses, whether two are the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pointdistill.engine.pretraining.checkpoints import TrainState, load_latest
from pointdistill.engine.pretraining.run_folder import read_metrics
from pointdistill.engine.pretraining.trainer import RunOptions


def options(**changes: Any) -> RunOptions:
    """On the CPU, every step logged."""
    return RunOptions(**({"device": "cpu", "log_every": 1} | changes))


def tensors(state: TrainState) -> dict[str, torch.Tensor]:
    """Everything in a state that a step changes: student, teacher, centres, moments. Copies."""
    found = {f"student.{n}": v for n, v in state.student.state_dict().items()}
    found |= {f"teacher.{n}": v for n, v in state.teacher.state_dict().items()}
    for name, parameter in state.student.named_parameters():
        for moment, value in state.optimizer.state.get(parameter, {}).items():
            found[f"{moment}.{name}"] = value
    return {name: value.detach().clone() for name, value in found.items()}


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The same of a run's newest checkpoint."""
    return tensors(load_latest(run / "checkpoints")[0])


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def assert_same_bits(first: Path, second: Path) -> None:
    assert_equal(weights(first), weights(second))


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run)]


def untimed(run: Path) -> list[dict[str, Any]]:
    """The rows of a run without what the clock says."""
    clock = {"seconds", "shapes_per_second", "probe_seconds"}
    return [{n: v for n, v in row.items() if n not in clock} for row in read_metrics(run)]
