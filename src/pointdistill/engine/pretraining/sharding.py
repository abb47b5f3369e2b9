"""The student and its teacher over several processes: whole on each (DDP), or a part on each (FSDP)."""

from __future__ import annotations

from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pointdistill.engine.pretraining.state import TrainState
from pointdistill.engine.runtime.optimizer import build_optimizer, named_moments, restore_moments
from pointdistill.errors import ConfigError
from pointdistill.model.predictor import PredictorBlock
from pointdistill.model.transformer import Block


def prepare_student(state: TrainState, accelerator: Accelerator, sharding: str) -> nn.Module:
    """The state's student, ready to be called on every process; with ``fsdp`` the state is split over them.

    The state must be the same on every process, and on its device.

    Raises:
        ConfigError: if a single process is asked to share.
    """
    student, processes = state.student, accelerator.num_processes
    if sharding == "fsdp":
        if processes == 1:
            msg = (
                "sharding 'fsdp' splits a model over processes, and there is one; "
                "start several with torchrun, or leave it out"
            )
            raise ConfigError(msg)
        _split(state, accelerator)
        return student
    if processes == 1:
        return student
    # Gradients live in the buckets that are sent, which saves a copy of them. No step leaves a parameter out, so
    # DDP need not search for unused ones after every forward pass.
    return DistributedDataParallel(
        student,
        device_ids=[accelerator.device] if accelerator.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )


def _split(state: TrainState, accelerator: Accelerator) -> None:
    """Leave each process a part of student, teacher and moments; blocks are put together one at a time."""
    # These imports take a second, which only a run with FSDP should pay.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    moments = named_moments(state.student, state.optimizer)
    for root in (state.student, state.teacher):
        for part in root.modules():
            if isinstance(part, Block | PredictorBlock):
                fully_shard(part, mesh=mesh)
        # The root too gives its parameters back after the forward pass: the teacher's are read between steps.
        fully_shard(root, mesh=mesh, reshard_after_forward=True)
    config = state.config
    # FSDP has replaced the parameters, and the optimiser before held those of before.
    state.optimizer = build_optimizer(
        state.student,
        learning_rate=config.schedule.peak_learning_rate,
        weight_decay=config.weight_decay,
    )
    # AdamW's step counts are scalars: every process keeps them whole.
    split = {
        name: value if value.ndim == 0 else distribute_tensor(value, mesh, [Shard(0)])
        for name, value in moments.items()
    }
    restore_moments(state.student, state.optimizer, split)
