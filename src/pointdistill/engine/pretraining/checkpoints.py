"""Checkpoints: copied to the host's memory between two steps, written by a thread while training goes on.

A kill at any instant leaves something whole to resume from, because of the order on disk: metrics are flushed,
the checkpoint is written aside and renamed, the teacher's encoder follows, then older checkpoints are removed.
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
from pointdistill.engine.config.config import PretrainConfig, to_plain
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
    """A state as it was after one step, in the host's memory and whole, however it is split over processes."""

    config: PretrainConfig
    step: int
    seconds: float
    """Spent on the run until then."""

    model: Mapping[str, Tensor]
    """Student and teacher, by ``student.`` and ``teacher.`` names."""

    moments: Mapping[str, Tensor]
    """AdamW's, by moment and parameter name; a parameter without a gradient so far has none."""

    def teacher_encoder(self) -> Encoder:
        """The teacher's encoder, on the CPU."""
        with torch.device("meta"):
            encoder = Encoder(self.config.encoder)
        prefix = "teacher.encoder."
        state = {n.removeprefix(prefix): v for n, v in self.model.items() if n.startswith(prefix)}
        encoder.load_state_dict(state, assign=True)
        return encoder.eval()


def take_snapshot(
    state: TrainState, *, seconds: float, keep: bool, moments: bool = True
) -> Snapshot | None:
    """Copy a state to the host; None on a process that does not ``keep`` it.

    With FSDP all processes must call this together, as each holds a part of every tensor. Leaving out the
    optimiser's ``moments`` halves what is copied.
    """
    found: dict[str, Tensor] = {}
    for prefix, module in (("student", state.student), ("teacher", state.teacher)):
        for name, value in module.state_dict().items():
            _copy_into(found, f"{prefix}.{name}", value, keep=keep)
    kept: dict[str, Tensor] = {}
    if moments:
        for name, value in named_moments(state.student, state.optimizer).items():
            _copy_into(kept, name, value, keep=keep)
    device = next(state.student.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the copies were only queued
    return Snapshot(state.config, state.step, seconds, found, kept) if keep else None


def _copy_into(found: dict[str, Tensor], name: str, value: Tensor, *, keep: bool) -> None:
    """Queue a copy to page-locked memory from a GPU (PyTorch keeps it for the next time), or copy at once."""
    value = whole(
        value.detach()
    )  # also where it is not kept: all processes take part in putting it together
    if keep:
        host = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        found[name] = host.copy_(value, non_blocking=True)


def write_snapshot(snapshot: Snapshot, folder: Path, *, keep: int) -> Path:
    """Write ``folder/step-…``, complete or absent, and remove all but ``keep`` of the older; the one written.

    Checkpoints of later steps are removed too: they were damaged, or the run would have been resumed from them.

    Raises:
        OSError, SafetensorError: if it cannot be written; nothing is left of it, and the older ones stay.
    """
    path = folder / f"step-{snapshot.step:08d}"
    if path.exists():
        if is_whole(path):
            return path  # the same step of the same run: the same bytes
        shutil.rmtree(path)
    with folder_aside(path) as aside:
        save_file(dict(snapshot.model), aside / MODEL)
        save_file(dict(snapshot.moments), aside / OPTIMIZER)
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
    for unwanted in (*saved[end:], *saved[: max(0, end - keep)]):
        shutil.rmtree(unwanted)
    return path


class Saver:
    """Writes snapshots one after the other in a thread of its own.

    A checkpoint that cannot be written is warned of, and training goes on: the next may succeed.
    """

    def __init__(self, write: Callable[[Snapshot], object], *, safe: int) -> None:
        """``write`` puts one snapshot on the disk; step ``safe`` is there already."""
        self._write = write
        self.safe = safe
        """The last step that is on the disk."""

        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[object] | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Begin to write; waits for the snapshot before, so that only one more is ever held."""
        self.wait()
        self._writing = self._pool.submit(self._try, snapshot)

    def wait(self) -> None:
        """Until the last snapshot is on the disk, or was warned of.

        Raises:
            Exception: what is not a full or failing disk.
        """
        if self._writing is not None:
            self._writing.result()

    def finish(self, snapshot: Snapshot | None, *, instead: Callable[[], str]) -> None:
        """Write the last snapshot, and return when it is there.

        Args:
            snapshot: None on a process that keeps none.
            instead: what to fall back on, asked for only when this one fails.

        Raises:
            CheckpointError: if it cannot be written.
        """
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
        """Let a snapshot that is being written become whole."""
        self._pool.shutdown()

    def _try(self, snapshot: Snapshot) -> None:
        try:
            self._write(snapshot)
            self.safe = snapshot.step
        except (OSError, SafetensorError) as error:
            log.warning(
                "the checkpoint of step %d could not be written (%s); training goes on, older checkpoints are "
                "intact",
                snapshot.step,
                _reason(error),
            )


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
