"""Two operations with gradients written by hand, which keep less in memory and read it less often than autograd.

Sizes: R rows, D width, T targets, K prototypes. Measured in ``benchmarks/step.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_ON_CPU = 2**18
"""Logits at a time: one MiB of float32, which a core's own cache holds."""

_CHUNK_ON_GPU = 2**24
"""Logits at a time: 64 MiB of float32, enough to keep the device busy."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x`` · ``weight`` / √(mean(x²) + eps) over the last size, (..., D) to (..., D), with gradient.

    For a CPU, where PyTorch composes it from several passes over the whole tensor, each with a gradient of its
    own. A GPU has a kernel for it.
    """
    normed: Tensor = _RmsNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return normed


def indexed_cross_entropy(
    logits: Tensor, target_probs: Tensor, target_index: Tensor, *, temperature: float
) -> Tensor:
    """Mean over rows of the cross-entropy, in nats, of softmax(logits / temperature) against chosen targets.

    The log-probabilities and the rows' copies of their targets, each (R, K), exist only a chunk at a time.

    Args:
        logits: (R, K), before any temperature, of any float type; summed in float32.
        target_probs: (T, K), rows sum to 1; no gradient flows into it.
        target_index: (R,) int64, the target of each row.
        temperature: divides the logits; positive.
    """
    loss: Tensor = _IndexedCrossEntropy.apply(logits, target_probs, target_index, temperature)  # type: ignore[no-untyped-call]
    return loss


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = (length.square_() / x.shape[-1] + eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        product = (x * gradient).flatten(0, -2)
        # With s = scale and g = weight · gradient: d/dx = s · g - x · s³ · <x, g> / D, d/dweight = Σ s · x ·
        # gradient.
        along = (product @ weight).view(scale.shape)  # <x, g> of each row
        grad_x = (gradient * weight).mul_(scale)
        grad_x.addcmul_(x, along * scale.pow(3), value=-1.0 / x.shape[-1])
        return grad_x, scale.flatten() @ product, None


class _IndexedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target_probs: Tensor, target_index: Tensor, temperature: float
    ) -> Tensor:
        normalizers = []
        total = torch.zeros((), device=logits.device)
        for rows, index in _chunks(logits, target_index):
            scaled = rows.float() / temperature
            normalizers.append(scaled.logsumexp(-1))
            agreement = (scaled * target_probs[index]).sum()
            total += normalizers[-1].sum() - agreement
        ctx.save_for_backward(logits, target_probs, target_index, torch.cat(normalizers))
        ctx.temperature = temperature
        return total / len(logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        logits, target_probs, target_index, normalizers = ctx.saved_tensors
        factor = gradient / (ctx.temperature * len(logits))
        grad_logits = torch.empty_like(logits)
        chunks = zip(
            _chunks(logits, target_index),
            _chunks(grad_logits, normalizers),
            strict=True,
        )
        for (rows, index), (into, normalizer) in chunks:
            # d/dlogits = (softmax - target) / (temperature · R); softmax from the normalizers of the forward pass.
            excess = (rows.float() / ctx.temperature).sub_(normalizer[:, None]).exp_()
            into.copy_(excess.sub_(target_probs[index]).mul_(factor))
        return grad_logits, None, None, None


def _chunks(logits: Tensor, beside: Tensor) -> zip[tuple[Tensor, Tensor]]:
    """Rows of (R, K) ``logits`` with the same rows of ``beside``, a chunk at a time."""
    numbers = _CHUNK_ON_CPU if logits.device.type == "cpu" else _CHUNK_ON_GPU
    rows = max(1, numbers // logits.shape[1])
    return zip(logits.split(rows), beside.split(rows), strict=True)
