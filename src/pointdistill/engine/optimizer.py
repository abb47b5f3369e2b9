"""AdamW over all trained parameters in one group, and clipping. Source: section 6 of docs/method.md."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def build_optimizer(
    module: nn.Module, *, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW (betas 0.9, 0.999; eps 1e-8) with weight decay on every parameter, fused where possible."""
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
    return nn.utils.clip_grad_norm_(parameters, max_norm)
