"""How a step is executed: on one process or several (DDP, FSDP), compiled or as plain PyTorch."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pointdistill.engine.pretraining.checkpoints import TrainState
from pointdistill.engine.runtime.devices import out_of_memory
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


log = logging.getLogger("pointdistill")

COMPILE = ("auto", "on", "off")

Result = TypeVar("Result")

_WHOLE: dict[str, Any] = {"fullgraph": True, "dynamic": False}
"""One graph for a whole part, made for the sizes of a run alone, which do not change."""


def step_compiler(
    setting: str, accelerator: Accelerator, *, sharding: str = "none"
) -> StepCompiler:
    """The compiler of a run; one that compiles nothing if the setting says so or there is no working compiler.

    Args:
        setting: ``auto`` (on a GPU, and for a single process only), ``on`` or ``off``.
        accelerator: the device, and whether there are other processes.
        sharding: FSDP gathers and frees weights block by block, which no whole graph can contain.
    """
    device, alone = accelerator.device, accelerator.num_processes == 1
    # What fails in the first step can be computed again without a compiler, unless other processes wait in the
    # middle of it. So several processes compile only if they are told to.
    wanted = setting == "on" or (setting == "auto" and device.type == "cuda" and alone)
    reason = None
    if wanted:
        reason = "sharding is 'fsdp'" if sharding == "fsdp" else compile_failure(device)
    if reason is not None:
        _say_not_compiled(reason)
    return StepCompiler(active=wanted and reason is None, retries=alone)


def compile_failure(device: torch.device) -> str | None:
    """Why nothing can be compiled for this device, found by compiling a sum; None if it can."""
    try:
        compiled = torch.compile(_is_compiled, fullgraph=True)(torch.zeros(8, device=device))
    except Exception as error:
        # PyTorch has no common class for this: Triton, a C compiler or a header may be missing, or a cache folder
        # not writable. Running out of memory is not among them, with eight numbers.
        return first_line(error)
    return None if bool(compiled) else "torch.compile is switched off"


def _is_compiled(numbers: Tensor) -> Tensor:
    """Whether this runs as compiled code; a kernel has to be built to know."""
    return (numbers + float(torch.compiler.is_compiling())).all()


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    lines = str(error).splitlines() or [type(error).__name__]
    # PyTorch names the compiler in the first line, and in the second what it said.
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def _say_not_compiled(reason: str) -> None:
    log.warning("the step is not compiled, which takes longer: %s", reason)


class StepCompiler:
    """Compiles the parts of a training step, and does without if the first step shows that they do not work."""

    def __init__(self, *, active: bool = False, retries: bool = True) -> None:
        """Prepare to compile.

        Args:
            active: whether to compile at all.
            retries: whether ``first_time`` may compute a second time. Processes that wait for each other may not.
        """
        self.active = active
        self._retries = retries
        self._failed = False

    def module(self, module: nn.Module) -> None:
        """Compile calls of a module, in place: what wraps it, such as DDP, then calls compiled code."""
        if self.active:
            module.compile(**_WHOLE)

    def function(self, function: Callable[..., Result]) -> Callable[..., Result]:
        """The function, compiled."""
        return torch.compile(function, **_WHOLE) if self.active else function

    def number(self, value: float, device: torch.device) -> float | Tensor:
        """A number that changes from step to step, as an argument of compiled code."""
        # A compiler takes a Python number for a constant, and would compile every step anew. ``torch.full`` fills
        # on the device; ``torch.tensor`` would copy from the host, and wait.
        return torch.full((), value, device=device) if self.active else value

    def first_time(self, compute: Callable[[], Result], undo: Callable[[], None]) -> Result:
        """The result of ``compute``; if it fails, ``undo``, and the result as plain PyTorch computes it.

        A compiler can fail on a whole step although it compiled a sum. Nothing is lost: a step changes weights
        only after all that is compiled has run.
        """
        try:
            return compute()
        except Exception as error:
            if not (self.active and self._retries) or out_of_memory(error):
                raise
            self.active, self._failed = False, True
            undo()
            with self.running():
                result = compute()
            # Only now: what fails without a compiler too is not the compiler's fault.
            _say_not_compiled(first_line(error))
            return result

    def running(self) -> contextlib.AbstractContextManager[object]:
        """Within the block compiled parts run as plain PyTorch if they were found not to work."""
        if self._failed:
            return torch.compiler.set_stance("force_eager")
        return contextlib.nullcontext()
