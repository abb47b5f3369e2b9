"""The complete training state of a run, and its checkpoints: how they are written and loaded.

There is no random state in it: all randomness is derived from (seed, epoch, index) or (seed, step, process).

A checkpoint is copied to host memory between two steps, and written by a thread while training continues. A kill
at any instant leaves an intact checkpoint to resume from, because of the order on disk: metrics are flushed; the
checkpoint is written to a temporary folder, flushed and renamed; older checkpoints are removed only then; and the
teacher's encoder is saved last.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from pointdistill.data.files.files import folder_aside, read_json, sha256_of, write_json
from pointdistill.data.files.schema import from_plain, refusing_damage, short_repr, to_plain
from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.runtime.optimizer import (
    build_optimizer,
    named_moments,
    restore_moments,
    whole,
)
from pointdistill.engine.weights.encoders import (
    check_sizes,
    least_tensors,
    load_exactly,
    read_tensors,
)
from pointdistill.errors import CheckpointError, ConfigError, DataError
from pointdistill.model.distillation import Student, Teacher
from pointdistill.model.encoder import Encoder
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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of the training state after one step, in host memory; complete even if the state is sharded."""

    config: PretrainConfig
    step: int
    seconds: float
    """Time spent on the run so far."""

    model: Mapping[str, Tensor]
    """Student and teacher, under names that begin with ``student.`` and ``teacher.``."""

    moments: Mapping[str, Tensor]
    """AdamW's moments, by moment and parameter name; absent for a parameter that has had no gradient yet."""

    def teacher_encoder(self) -> Encoder:
        """The teacher's encoder, on the CPU."""
        # Built without memory on the meta device, then given the snapshot's tensors themselves: no copy is made.
        with torch.device("meta"):
            encoder = Encoder(self.config.encoder)
        prefix = "teacher.encoder."
        state = {n.removeprefix(prefix): v for n, v in self.model.items() if n.startswith(prefix)}
        encoder.load_state_dict(state, assign=True)
        return encoder.eval()


def take_snapshot(
    state: TrainState, *, seconds: float, keep: bool, moments: bool = True
) -> Snapshot | None:
    """Copy a state to host memory; returns None on a process that does not ``keep`` the copy.

    With FSDP all processes must call this together, as each holds a shard of every tensor. Leaving out the
    optimiser's ``moments`` halves what is copied.
    """
    model: dict[str, Tensor] = {}
    for prefix, module in (("student", state.student), ("teacher", state.teacher)):
        for name, value in module.state_dict().items():
            _copy_into(model, f"{prefix}.{name}", value, keep=keep)
    moment_copies: dict[str, Tensor] = {}
    if moments:
        for name, value in named_moments(state.student, state.optimizer).items():
            _copy_into(moment_copies, name, value, keep=keep)
    device = next(state.student.parameters()).device
    if device.type == "cuda":
        # The copies were only queued. All of them are waited for once, not each by itself; and before the next
        # step changes what they read.
        torch.cuda.synchronize(device)
    return Snapshot(state.config, state.step, seconds, model, moment_copies) if keep else None


def _copy_into(copies: dict[str, Tensor], name: str, value: Tensor, *, keep: bool) -> None:
    # Called on processes that keep nothing too: assembling a sharded tensor is a collective operation.
    value = whole(value.detach())
    if keep:
        # Copying to page-locked memory can be queued, and runs at the full speed of the bus. Allocating it is
        # slow, but PyTorch caches it, so only the first checkpoint pays for that.
        host = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        copies[name] = host.copy_(value, non_blocking=True)


def write_snapshot(snapshot: Snapshot, folder: Path, *, keep: int) -> Path:
    """Write ``folder/step-…``, complete or not at all, and keep ``keep`` up to this one; returns its path.

    Intact checkpoints of later steps stay.

    Raises:
        OSError, SafetensorError: if it cannot be written; the older checkpoints are left as they were.
    """
    path = folder / f"step-{snapshot.step:08d}"
    if path.exists():
        if is_whole(path):
            # Runs are deterministic: the same step of the same run has the same content.
            return path
        _remove(path)
    # ``folder_aside`` calls fsync on every file and on the folder before it renames: without that, a power failure
    # could leave the new name on disk and no content under it. A kill leaves only a temporary folder behind, which
    # the next start of the run removes.
    with folder_aside(path) as aside:
        save_file(dict(snapshot.model), aside / MODEL)
        save_file(dict(snapshot.moments), aside / OPTIMIZER)
        # The checksums tell a resumed run whether the file system damaged a file that was once complete.
        described = {
            "version": VERSION,
            "step": snapshot.step,
            "config": to_plain(snapshot.config),
            "files": {name: sha256_of(aside / name) for name in (MODEL, OPTIMIZER)},
            "seconds": snapshot.seconds,
        }
        write_json(aside / STATE, described)
    saved = list_checkpoints(folder)
    end = saved.index(path) + 1
    # Of later steps only the damaged ones go: the run was not resumed from those.
    damaged = [later for later in saved[end:] if not is_whole(later)]
    for unwanted in (*damaged, *saved[: max(0, end - keep)]):
        _remove(unwanted)
    return path


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint; of a link to one elsewhere only the link."""
    if checkpoint.is_symlink():
        checkpoint.unlink()
    else:
        shutil.rmtree(checkpoint)


class Saver:
    """Writes snapshots in a background thread, one after the other.

    A checkpoint that cannot be written causes a warning, and training continues: the next one may succeed.
    """

    def __init__(self, write: Callable[[Snapshot], object], *, safe: int) -> None:
        """Write snapshots with ``write``; the checkpoint of step ``safe`` is on disk already."""
        self._write = write
        self.safe = safe
        """The last step whose checkpoint is on disk."""

        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[object] | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Start to write a snapshot, after the previous one is finished."""
        # Waiting bounds memory: besides the state itself there is never more than one snapshot at rest.
        self.wait()
        self._writing = self._pool.submit(self._try, snapshot)

    def wait(self) -> None:
        """Wait until the last snapshot is on disk, or its failure was logged.

        Raises:
            Exception: any error other than that of a full or failing disk.
        """
        if self._writing is not None:
            self._writing.result()

    def finish(self, snapshot: Snapshot | None, *, instead: Callable[[], str]) -> None:
        """Write the last snapshot, and return when it is on disk.

        Args:
            snapshot: None on a process that keeps none.
            instead: returns the checkpoint to fall back on, for the error message.

        Raises:
            CheckpointError: if it cannot be written.
        """
        # In the calling thread and not forgiven: no later checkpoint can make up for this one.
        self.wait()
        if snapshot is None:
            return
        try:
            self._write(snapshot)
        except (OSError, SafetensorError) as error:
            msg = (
                f"the state after step {snapshot.step} could not be saved ({_reason(error)}); free some space and "
                f"resume the run. Last good checkpoint: {instead()}"
            )
            raise CheckpointError(msg) from error

    def close(self) -> None:
        """Wait until a snapshot that is being written is complete."""
        self._pool.shutdown()

    def _try(self, snapshot: Snapshot) -> None:
        try:
            self._write(snapshot)
            self.safe = snapshot.step
        except (OSError, SafetensorError) as error:
            log.warning(
                "the checkpoint of step %d could not be written (%s); training continues, older checkpoints are "
                "intact",
                snapshot.step,
                _reason(error),
            )


def _reason(error: Exception) -> str:
    # An OSError's own text repeats the path of the temporary file, which is gone by the time someone reads it.
    return str(getattr(error, "strerror", None) or error)
