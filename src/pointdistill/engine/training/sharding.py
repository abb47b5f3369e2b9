"""The student and its teacher over several processes: whole on each (DDP), or a part on each (FSDP)."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pointdistill.engine.optimizer import build_optimizer
from pointdistill.engine.training.state import TrainState
from pointdistill.errors import ConfigError
from pointdistill.model.distillation import Student, Views
from pointdistill.model.predictor import PredictorBlock
from pointdistill.model.transformer import Block

if TYPE_CHECKING:
    # A second to import, and of use with FSDP alone: the functions below that split a model import it.
    from torch.distributed.device_mesh import DeviceMesh


class StudentOutputs(nn.Module):
    """The student as DDP and FSDP must see it: what comes out are tensors in a dictionary, not a record."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, views: Views, generator: torch.Generator | None) -> dict[str, Tensor]:
        """The fields of ``Predictions`` that are not None."""
        predictions = self.student(views, generator)
        named = {item.name: getattr(predictions, item.name) for item in fields(predictions)}
        return {name: value for name, value in named.items() if value is not None}


def prepare_student(state: TrainState, accelerator: Accelerator, sharding: str) -> nn.Module:
    """The state's student, ready to be called on every process; with ``fsdp`` the state is split over them.

    The state must be the same on every process, and on its device.

    Raises:
        ConfigError: if a single process is asked to share.
    """
    outputs = StudentOutputs(state.student)
    device = accelerator.device
    if sharding == "fsdp":
        if accelerator.num_processes == 1:
            msg = (
                "sharding 'fsdp' splits a model over processes, and there is one; "
                "start several with torchrun, or leave it out"
            )
            raise ConfigError(msg)
        from torch.distributed.device_mesh import init_device_mesh

        _split(state, outputs, init_device_mesh(device.type, (accelerator.num_processes,)))
        return outputs
    if accelerator.num_processes == 1:
        return outputs
    # Gradients live in the buckets that are sent, which saves a copy of them. No step leaves a parameter out, so
    # none is searched for, and a static graph would spare nothing.
    return DistributedDataParallel(
        outputs,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )


def _split(state: TrainState, outputs: StudentOutputs, mesh: DeviceMesh) -> None:
    """Leave each process a part of student, teacher and moments; blocks are put together one at a time."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    moments = {
        name: state.optimizer.state.get(parameter, {})
        for name, parameter in state.student.named_parameters()
    }
    for root in (outputs, state.teacher):
        for part in root.modules():
            if isinstance(part, Block | PredictorBlock):
                fully_shard(part, mesh=mesh)
        # The root too gives its parameters back after the forward pass: the teacher's are read between steps.
        fully_shard(root, mesh=mesh, reshard_after_forward=True)
    config = state.config
    state.optimizer = build_optimizer(
        state.student,
        learning_rate=config.schedule.peak_learning_rate,
        weight_decay=config.weight_decay,
    )
    for name, parameter in state.student.named_parameters():
        if moments[name]:
            state.optimizer.state[parameter] = {
                moment: value if value.ndim == 0 else distribute_tensor(value, mesh, [Shard(0)])
                for moment, value in moments[name].items()
            }


# Only FSDP's tensors have `to_local` and `full_tensor`; asking for their class would import it.


def local_shards(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of a module by name, each the part that this process holds."""
    return {
        name: parameter.to_local() if hasattr(parameter, "to_local") else parameter
        for name, parameter in module.named_parameters()
    }


def whole(value: Tensor) -> Tensor:
    """A tensor that may be split over processes, put together; then all of them must call this."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value
