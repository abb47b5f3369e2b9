"""AdamW over all trained parameters in one group, clipping, and a step that can be called off on the device.

Source: section 6 of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def build_optimizer(
    module: nn.Module, *, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW (betas 0.9, 0.999; eps 1e-8) with weight decay on every parameter, fused."""
    return torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad],
        lr=learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=weight_decay,
        fused=True,
    )


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients to a joint norm of at most ``max_norm``; the norm before, as a scalar tensor."""
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    # Split by FSDP; asking for the class itself would take a second to import.
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def guarded_step(optimizer: torch.optim.AdamW, learning_rate: float, alive: Tensor) -> None:
    """One step, and no gradients after it; where ``alive`` is 0 instead of 1, no weight or moment changes.

    The fused kernel itself looks at ``found_inf`` before it writes, as it does for a gradient scaler; so the
    decision stays on the device.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.found_inf = 1.0 - alive  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
