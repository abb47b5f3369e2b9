"""Checkpoints: copied to host memory between two steps, written by a thread while training continues.

A kill at any instant leaves an intact checkpoint to resume from, because of the order on disk: metrics are
flushed; the checkpoint is written to a temporary folder, flushed and renamed; older checkpoints are removed only
then; and the teacher's encoder is saved last.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pointdistill.data.files.files import folder_aside, sha256_of, write_json
from pointdistill.data.files.schema import to_plain
from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.pretraining.state import (
    MODEL,
    OPTIMIZER,
    STATE,
    VERSION,
    TrainState,
    is_whole,
    list_checkpoints,
)
from pointdistill.engine.runtime.optimizer import named_moments, whole
from pointdistill.errors import CheckpointError
from pointdistill.model.encoder import Encoder

log = logging.getLogger("pointdistill")


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
        shutil.rmtree(path)
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
        shutil.rmtree(unwanted)
    return path


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
