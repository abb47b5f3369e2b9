"""Everything a run needs to go on, in one place; loaded strictly. ``saving`` writes it.

There is no random state in it: all randomness is derived from (seed, epoch, index) or (seed, step, process).
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pointdistill.data.files.files import read_json, sha256_of
from pointdistill.engine.config.config import PretrainConfig, from_plain
from pointdistill.engine.runtime.optimizer import build_optimizer, restore_moments
from pointdistill.engine.weights.encoders import load_exactly, read_tensors
from pointdistill.errors import CheckpointError, ConfigError, DataError
from pointdistill.model.distillation import Student, Teacher
from pointdistill.model.initialize import initialize

log = logging.getLogger("pointdistill")

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
VERSION = 1
_KEYS = {"version", "step", "config", "files", "seconds"}


@dataclass(slots=True)
class TrainState:
    """Student, teacher, optimiser, and the number of steps taken."""

    config: PretrainConfig
    student: Student
    teacher: Teacher
    optimizer: torch.optim.AdamW
    step: int = 0


def new_state(config: PretrainConfig) -> TrainState:
    """Freshly initialised, from the config's seed alone; the teacher begins as a copy of the student."""
    student = Student(config.mode, config.encoder, config.head, config.predictor)
    initialize(student, generator=torch.Generator().manual_seed(config.seed))
    return _with_teacher(config, student)


def _with_teacher(config: PretrainConfig, student: Student) -> TrainState:
    teacher = Teacher(config.mode, config.encoder, config.head)
    teacher.copy_weights(student)
    optimizer = build_optimizer(
        student,
        learning_rate=config.schedule.peak_learning_rate,
        weight_decay=config.weight_decay,
    )
    return TrainState(config, student, teacher, optimizer)


def start_from(state: TrainState, encoder_state: dict[str, Tensor], path: Path) -> None:
    """Begin student and teacher with an encoder's weights; heads and predictor stay fresh."""
    load_exactly(state.student.encoder, encoder_state, path)
    state.teacher.copy_weights(state.student)


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if re.fullmatch(r"step-\d{8,}", p.name)]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def load_latest(folder: Path) -> tuple[TrainState, dict[str, Any]]:
    """The newest checkpoint that is whole, and what was saved beside it.

    Raises:
        CheckpointError: if there is none; says what was wrong with the newest.
    """
    problem = "no checkpoint was written yet"
    for path in reversed(list_checkpoints(folder)):
        try:
            found = load_state(path)
        except (CheckpointError, DataError, ConfigError) as error:
            log.warning("%s; trying the checkpoint before it", error)
            problem = str(error)
        else:
            return found
    msg = f"{folder}: nothing to resume from ({problem}); start a new run"
    raise CheckpointError(msg, settings=("resume",))


def is_whole(path: Path) -> bool:
    """Whether every file of a checkpoint still has the checksum that it was written with."""
    try:
        files = read_json(path / STATE)["files"]
        return all(sha256_of(path / name) == checksum for name, checksum in files.items())
    except (DataError, OSError, KeyError, TypeError, AttributeError):
        return False


def load_state(path: Path) -> tuple[TrainState, dict[str, Any]]:
    """One checkpoint, every file checked against its checksum.

    Raises:
        CheckpointError: if it is damaged or of another version.
    """
    described = read_json(path / STATE)
    if not (isinstance(described, dict) and described.keys() >= _KEYS):
        msg = f"{path / STATE} is damaged"
        raise CheckpointError(msg)
    if described["version"] != VERSION:
        msg = (
            f"{path}: checkpoint version {described.get('version')!r}, this program reads {VERSION}"
        )
        raise CheckpointError(msg)
    for name, checksum in described["files"].items():
        if not (path / name).is_file() or sha256_of(path / name) != checksum:
            msg = f"{path / name} is missing or damaged"
            raise CheckpointError(msg)
    config = from_plain(PretrainConfig, described["config"])
    student = Student(config.mode, config.encoder, config.head, config.predictor)
    state = _with_teacher(config, student)
    tensors = read_tensors(path / MODEL)
    for prefix, module in (("student.", state.student), ("teacher.", state.teacher)):
        part = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
        load_exactly(module, part, path / MODEL)
    restore_moments(state.student, state.optimizer, read_tensors(path / OPTIMIZER))
    state.step = described["step"]
    return state, described


def to_device(state: TrainState, device: torch.device) -> None:
    """Move models and moments; the optimiser keeps its parameters, which move in place."""
    state.student.to(device)
    state.teacher.to(device)
    for moments in state.optimizer.state.values():
        for name, value in moments.items():
            moments[name] = value.to(device)
