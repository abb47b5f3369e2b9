"""The complete training state of a run, and how it is loaded from a checkpoint; ``checkpoints`` writes it.

There is no random state in it: all randomness is derived from (seed, epoch, index) or (seed, step, process).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pointdistill.data.files.files import read_json, sha256_of
from pointdistill.data.files.schema import from_plain, refusing_damage, short_repr
from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.runtime.optimizer import build_optimizer, restore_moments
from pointdistill.engine.weights.encoders import (
    check_sizes,
    least_tensors,
    load_exactly,
    read_tensors,
)
from pointdistill.errors import CheckpointError, ConfigError, DataError
from pointdistill.model.distillation import Student, Teacher
from pointdistill.model.initialize import initialize

log = logging.getLogger("pointdistill")

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
VERSION = 1


@dataclass(slots=True)
class TrainState:
    """Student, teacher, optimiser, and the number of steps taken."""

    config: PretrainConfig
    student: Student
    teacher: Teacher
    optimizer: torch.optim.AdamW
    step: int = 0


def new_state(config: PretrainConfig) -> TrainState:
    """A freshly initialised state, a function of the config alone; the teacher begins as a copy of the student."""
    # Initialised on the CPU whatever the run's device, so that every device begins with the same bits.
    student = Student(config.mode, config.encoder, config.head, config.predictor)
    initialize(
        student,
        generator=torch.Generator().manual_seed(config.seed),
        initialization=config.initialization,
    )
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
    """Load an encoder's weights into student and teacher; heads and predictor keep their initial weights.

    Raises:
        CheckpointError: listing every weight of ``path`` that does not fit.
    """
    load_exactly(state.student.encoder, encoder_state, path)
    state.teacher.copy_weights(state.student)


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    if not folder.is_dir():
        return []
    # The pattern leaves out folders that are still being written: their names begin with a dot.
    checkpoints = [p for p in folder.iterdir() if re.fullmatch(r"step-\d{8,}", p.name)]
    # By number: a run of more than 10⁸ steps has longer names, which sort wrongly as text.
    return sorted(checkpoints, key=lambda p: int(p.name.removeprefix("step-")))


def load_latest(folder: Path) -> tuple[TrainState, SavedState]:
    """The newest intact checkpoint's state, and the content of its ``state.json``.

    Raises:
        CheckpointError: if there is none; says what was wrong with the oldest one tried.
    """
    problem = "no checkpoint was written yet"
    for path in reversed(list_checkpoints(folder)):
        try:
            return load_state(path)
        except (CheckpointError, DataError, ConfigError) as error:
            log.warning("%s; trying the checkpoint before it", error)
            problem = str(error)
    msg = f"{folder}: nothing to resume from ({problem}); start a new run"
    raise CheckpointError(msg, settings=("resume",))


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedState:
    """The content of a checkpoint's ``state.json``."""

    version: int
    step: int
    config: PretrainConfig
    files: Mapping[str, str]
    """SHA-256 of the other files, by name."""

    seconds: float
    """Time spent on the run until then."""


def is_whole(path: Path) -> bool:
    """Whether every file of a checkpoint still has the checksum it was written with."""
    try:
        _read_checked(path)
    except (CheckpointError, OSError):
        return False
    return True


def _read_checked(path: Path) -> SavedState:
    """A checkpoint's ``state.json``, if the files beside it are those that it describes.

    Raises:
        CheckpointError: if it is damaged or of another version.
    """
    with refusing_damage(path / STATE, advice="it was not written whole", error=CheckpointError):
        described = read_json(path / STATE)
        version = described.get("version") if isinstance(described, dict) else None
        if version != VERSION:
            msg = f"{path}: checkpoint version {short_repr(version)}, this program reads {VERSION}"
            raise CheckpointError(msg)
        saved = from_plain(SavedState, described, partial=True)
        if saved.files.keys() != {MODEL, OPTIMIZER} or saved.step < 0 or saved.seconds < 0:
            msg = f"{path / STATE}: damaged, it describes other files, or a negative step"
            raise CheckpointError(msg)
    # Checksums first: a damaged file could still parse, and would resume the run from wrong weights.
    for name, checksum in saved.files.items():
        if not (path / name).is_file() or sha256_of(path / name) != checksum:
            msg = f"{path / name} is missing or damaged"
            raise CheckpointError(msg)
    return saved


def load_state(path: Path) -> tuple[TrainState, SavedState]:
    """The state stored in one checkpoint, and the content of its ``state.json``; checksums are verified.

    Raises:
        CheckpointError: if it is damaged or of another version.
    """
    saved = _read_checked(path)
    config = saved.config

    def outline() -> dict[str, nn.Module]:
        student = Student(config.mode, config.encoder, config.head, config.predictor)
        teacher = Teacher(config.mode, config.encoder, config.head)
        return {"student.": student, "teacher.": teacher}

    predictor = 0 if config.predictor is None else config.predictor.depth
    check_sizes(path / MODEL, outline, least=least_tensors(config.encoder) + predictor)
    student = Student(config.mode, config.encoder, config.head, config.predictor)
    state = _with_teacher(config, student)
    tensors = read_tensors(path / MODEL)
    for prefix, module in (("student.", state.student), ("teacher.", state.teacher)):
        part = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
        load_exactly(module, part, path / MODEL)
    with refusing_damage(path / OPTIMIZER, error=CheckpointError):
        restore_moments(state.student, state.optimizer, read_tensors(path / OPTIMIZER))
    state.step = saved.step
    return state, saved


def to_device(state: TrainState, device: torch.device) -> None:
    """Move student, teacher and moments to a device."""
    # ``Module.to`` moves parameters in place, so the optimiser still refers to them. Its moments do not follow.
    state.student.to(device)
    state.teacher.to(device)
    for moments in state.optimizer.state.values():
        for name, value in moments.items():
            moments[name] = value.to(device)
