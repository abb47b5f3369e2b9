"""The state from which supervised training is resumed: one safetensors file, complete or absent.

It holds the model, AdamW's moments and the sum of the losses since the epoch began. Its metadata holds the number
of steps, the scores so far, and a fingerprint of the settings, so that it is not resumed with others. It holds no
random state, as ``epochs`` explains.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from pointdistill.data.files.schema import parse_json, refusing_damage
from pointdistill.engine.runtime.optimizer import named_moments, restore_moments
from pointdistill.engine.weights.encoders import load_exactly, write_tensors
from pointdistill.errors import CheckpointError

SAVE_SECONDS = 120.0
"""The most training time that a kill can cost; a small model's file takes a second to write."""

MODEL, _OPTIMIZER, _LOSS = "model.", "optimizer.", "loss_sum"
_NUMBERS, _SETTINGS = "progress", "settings"
_WHOLE = ("step", "best_epoch")


@dataclass(slots=True)
class Progress:
    """How far a training has come, and its scores so far."""

    loss_sum: Tensor
    """Scalar on the model's device: sum of the losses of the current epoch's clouds."""

    step: int = 0
    """Optimiser steps taken."""

    overall: float = -1.0
    class_mean: float = -1.0
    """Figures after the last completed epoch, in percent; -1 before the first."""

    best_overall: float = -1.0
    best_epoch: int = 0

    held_out_best: float = -1.0
    """Highest overall figure on clouds held out of the training split; -1 if there are none, or no epoch yet."""

    selected_overall: float = -1.0
    selected_epoch: int = 0
    """Overall figure on the test clouds after the epoch that reached it, and that epoch."""


@dataclass(slots=True)
class TrainingFile:
    """Where and when the state of a training is saved."""

    path: Path

    stop: Callable[[], bool] = lambda: False
    """Called after every step; when it returns True, the training is saved and ends."""

    _last: float = field(default_factory=time.monotonic)

    def is_due(self) -> bool:
        """Whether ``SAVE_SECONDS`` have passed since the last save."""
        return time.monotonic() - self._last >= SAVE_SECONDS

    def written(self) -> None:
        """Note that the training has just been saved."""
        self._last = time.monotonic()


def write_start(path: Path, model: nn.Module) -> None:
    """Write the training file of a model before its first step."""
    # Without a fingerprint: at step 0 nothing was computed with any settings yet, so any are accepted.
    _write(path, Progress(loss_sum=torch.zeros(())), model, {}, {})


def write_progress(
    path: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    settings: str,
) -> None:
    """Replace the training file atomically; ``settings`` is a text that is different for different settings."""
    _write(path, progress, model, named_moments(model, optimizer), {_SETTINGS: settings})


def _write(
    path: Path,
    progress: Progress,
    model: nn.Module,
    moments: Mapping[str, Tensor],
    facts: Mapping[str, str],
) -> None:
    tensors = {MODEL + name: value for name, value in model.state_dict().items()}
    tensors |= {_OPTIMIZER + name: value for name, value in moments.items()}
    tensors[_LOSS] = progress.loss_sum
    numbers = {
        item.name: getattr(progress, item.name) for item in fields(Progress) if item.name != _LOSS
    }
    stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    # Not written by safetensors, whose error on a full disk is none of the system's.
    write_tensors(path, stored, {_NUMBERS: json.dumps(numbers), **facts})


def read_progress(
    path: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    settings: str,
) -> None:
    """Restore ``progress``, ``model`` and ``optimizer`` from a training file.

    Raises:
        CheckpointError: if the file is damaged, of another model, or steps were taken with other settings.
    """
    tensors, numbers, stored = _read(path)
    if numbers["step"] and stored != settings:
        msg = (
            f"{path}: started with another recipe, input, seed or number of epochs, or by another version of "
            "this program; remove it to start over"
        )
        raise CheckpointError(msg)
    weights, moments = (
        {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
        for prefix in (MODEL, _OPTIMIZER)
    )
    load_exactly(model, weights, path)
    with refusing_damage(path, advice="remove it to start over", error=CheckpointError):
        restore_moments(model, optimizer, moments)
    progress.loss_sum.copy_(tensors[_LOSS].reshape(()))
    for name, value in numbers.items():
        setattr(progress, name, value)


def _read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, float], str | None]:
    """All tensors of a training file, its numbers by the names of ``Progress``'s fields, and its settings."""
    expected = {item.name for item in fields(Progress)} - {_LOSS}
    with refusing_damage(path, advice="remove it to start over", error=CheckpointError):
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            numbers = parse_json(facts.get(_NUMBERS, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        whole = isinstance(numbers, dict) and numbers.keys() == expected
        whole = whole and all(
            isinstance(value, int if name in _WHOLE else int | float)
            and not isinstance(value, bool)
            for name, value in numbers.items()
        )
    if not whole or numbers["step"] < 0 or tensors.get(_LOSS, torch.ones(2)).numel() != 1:
        msg = f"{path}: not a training file of this program; remove it to start over"
        raise CheckpointError(msg)
    return tensors, numbers, facts.get(_SETTINGS)
