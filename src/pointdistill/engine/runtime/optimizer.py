"""AdamW, gradient clipping, the teacher's moving average, and the optimiser's moments by name.

These functions work on plain and on sharded parameters alike. FSDP's parameters and norms are ``DTensor``s, which
are recognised by their methods: importing that class takes a second, and only FSDP needs it.
Source: section 6 of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from pointdistill.errors import CheckpointError

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def build_optimizer(
    module: nn.Module, *, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW (betas 0.9, 0.999; eps 1e-8) with weight decay on every parameter, fused."""
    # One group, since the method decays norms and biases too. Fused, because ``guarded_step`` needs its kernel.
    return torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad],
        lr=learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=weight_decay,
        fused=True,
    )


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients to a joint norm of at most ``max_norm``; returns the norm before, a scalar tensor."""
    return whole(nn.utils.clip_grad_norm_(parameters, max_norm))


def guarded_step(
    optimizer: torch.optim.AdamW, learning_rate: float | Tensor, applied: Tensor
) -> None:
    """Take one step if ``applied``, a scalar on the device, is 1; if 0, no weight or moment changes.

    Clears the gradients in either case. Can be recorded as a CUDA graph if the learning rate is a scalar on the
    device; what is recorded reads it there.
    """
    # The fused kernel checks ``found_inf`` before it writes, as it does for a gradient scaler. So the decision
    # stays on the device, and the host never waits for it.
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        group["capturable"] = isinstance(learning_rate, Tensor)
    # PyTorch would warn of the steps that are taken before one is recorded.
    optimizer._warned_capturable_if_run_uncaptured = True
    optimizer.found_inf = 1.0 - applied  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def move_towards(ours: list[Tensor], theirs: list[Tensor], share: Tensor) -> None:
    """ours ← ours + share · (theirs − ours), with a scalar ``share`` on the device."""
    # A single lerp would need its weight as a Python number, but this one is known to the device only.
    difference = torch._foreach_sub(theirs, ours)
    torch._foreach_mul_(difference, share)
    torch._foreach_add_(ours, difference)


@torch.no_grad()
def update_average(
    average: nn.Module,
    module: nn.Module,
    share: Tensor,
    *,
    move: Callable[[list[Tensor], list[Tensor], Tensor], None] = move_towards,
) -> None:
    """average ← average + share · (module − average), over the parameters that ``average`` has.

    Args:
        average: the moving average, such as a teacher.
        module: the module it follows, such as a student; has at least the parameters of ``average``.
        share: scalar on the device: 1 − momentum, or 0 to leave ``average`` unchanged to the bit.
        move: ``move_towards`` or compiled code of it, which reads and writes everything once.
    """
    ours, theirs = local_parameters(average), local_parameters(module)
    move(list(ours.values()), [theirs[name] for name in ours], share)


def local_parameters(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of a module by name; of sharded ones the shard of this process."""
    return {
        name: parameter.to_local() if hasattr(parameter, "to_local") else parameter
        for name, parameter in module.named_parameters()
    }


def whole(value: Tensor) -> Tensor:
    """The complete tensor of one that may be sharded; if it is, all processes must call this."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def named_moments(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state of every parameter of ``module``, as ``exp_avg.NAME``, ``exp_avg_sq.NAME``, ``step.NAME``.

    A parameter that has had no gradient yet has no state.
    """
    return {
        f"{moment}.{name}": value
        for name, parameter in module.named_parameters()
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def restore_moments(
    module: nn.Module, optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]
) -> None:
    """Restore the state that ``named_moments`` returned, on the device of each parameter.

    Raises:
        CheckpointError: if a parameter has some of its moments, or moments of another shape.
    """
    for name, parameter in module.named_parameters():
        state = {
            moment: moments[f"{moment}.{name}"].to(parameter.device)
            for moment in _MOMENTS
            if f"{moment}.{name}" in moments
        }
        if state:
            shapes = {moment: () if moment == "step" else parameter.shape for moment in _MOMENTS}
            if {moment: tuple(value.shape) for moment, value in state.items()} != shapes:
                msg = f"the optimiser's state of {name} does not fit it; start again, or go back a checkpoint"
                raise CheckpointError(msg)
            optimizer.state[parameter] = state
