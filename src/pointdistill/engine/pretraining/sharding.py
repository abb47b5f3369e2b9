"""Distributes student and teacher over several processes: replicated (DDP) or sharded (FSDP)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pointdistill.engine.pretraining.state import TrainState
from pointdistill.engine.runtime.optimizer import build_optimizer, named_moments, restore_moments
from pointdistill.errors import ConfigError
from pointdistill.model.heads import PredictorBlock
from pointdistill.model.transformer import Block


def prepare_student(state: TrainState, accelerator: Accelerator, sharding: str) -> nn.Module:
    """The state's student, ready to be called on every process; with ``fsdp`` the state itself is sharded.

    The state must be identical on all processes, and already on its device.

    Raises:
        ConfigError: for ``fsdp`` on a single process.
    """
    student, processes = state.student, accelerator.num_processes
    student.encoder.patch_embedding.recompute = state.config.checkpoint_patch_embedding.applies_on(
        accelerator.device.type
    )
    student.packs_passes = accelerator.device.type == "cuda"
    if sharding == "fsdp":
        if processes == 1:
            msg = (
                "sharding 'fsdp' splits a model over several processes, but there is only one; "
                "start several with torchrun, or leave it out"
            )
            raise ConfigError(msg)
        _shard(state, accelerator)
        return student
    if processes == 1:
        return student
    # With ``gradient_as_bucket_view`` gradients live in the buckets that DDP sends, which saves one copy of them.
    # Every step uses every parameter of the student, so DDP is not told to search for unused ones, a traversal of
    # the graph after each forward pass. The teacher has no gradients: each process updates its own copy from the
    # same averaged student, and the copies stay equal.
    return DistributedDataParallel(
        student,
        device_ids=[accelerator.device] if accelerator.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )


def _shard(state: TrainState, accelerator: Accelerator) -> None:
    """Leave each process its shard of student, teacher and moments."""
    # These imports take a second, which only a run with FSDP should pay.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    # Taken before sharding, while they can still be looked up by the parameters they belong to.
    moments = named_moments(state.student, state.optimizer)
    for root in (state.student, state.teacher):
        # A transformer block at a time: only one block's whole parameters are in memory at any moment.
        for part in root.modules():
            if isinstance(part, Block | PredictorBlock):
                fully_shard(part, mesh=mesh)
        # By default FSDP keeps the root's own parameters whole after the forward pass, for the backward pass to
        # use. The teacher has no backward pass, and its moving average reads and writes shards between steps.
        fully_shard(root, mesh=mesh, reshard_after_forward=True)
    config = state.config
    # FSDP has replaced the parameters by sharded ones, and the old optimiser still refers to those from before.
    state.optimizer = build_optimizer(
        state.student,
        learning_rate=config.schedule.peak_learning_rate,
        weight_decay=config.weight_decay,
    )
    # Moments are sharded along the first axis, as FSDP shards the parameters. AdamW's step counts are scalars, of
    # which every process keeps its own.
    sharded = {
        name: value if value.ndim == 0 else distribute_tensor(value, mesh, [Shard(0)])
        for name, value in moments.items()
    }
    restore_moments(state.student, state.optimizer, sharded)


def mean_over_processes(accelerator: Accelerator, values: Sequence[Tensor]) -> list[Tensor]:
    """The average of every tensor over all processes, in float32 and of the same shape, by a single all-reduce."""
    if accelerator.num_processes == 1:
        return list(values)
    flat = torch.cat([value.detach().float().reshape(-1) for value in values])
    distributed.all_reduce(flat)
    flat /= accelerator.num_processes
    parts = flat.split([value.numel() for value in values])
    return [part.view(value.shape) for value, part in zip(values, parts, strict=True)]


def gather_rows(accelerator: Accelerator, value: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes, differentiably, and the index of this process's first row among them."""
    all_rows: Tensor = _GatherRows.apply(value)  # type: ignore[no-untyped-call]
    return all_rows, accelerator.process_index * len(value)


class _GatherRows(torch.autograd.Function):
    """All-gather whose backward pass sums the gradients that every process's loss has for this process's rows."""

    # ``distributed.all_gather`` has no gradient. Without one, KoLeo would move a shape away from a neighbour on
    # another process, but the neighbour would feel nothing of it.

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.rows = len(value)
        parts = [torch.empty_like(value) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        first = distributed.get_rank() * ctx.rows
        return gradient[first : first + ctx.rows]
