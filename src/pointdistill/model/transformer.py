"""Pre-norm transformer whose position embeddings are added before every block.

Sizes: B rows, T tokens, S memory tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

NORM_EPS = 1e-5
"""Eps of every RMSNorm in the model; PyTorch's default differs."""

DROP_SUBSET_FROM = 0.1
"""From this rate on, stochastic depth computes a branch only for the samples that keep it."""


class RMSNorm(nn.RMSNorm):
    """PyTorch's RMSNorm with the model's eps, whose output has the dtype of its input."""

    # Under autocast PyTorch's would return float32; it sums in float32 internally for any dtype. It has no kernel
    # for a CPU, where training uses ``rms_norm`` instead.

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        if x.device.type == "cpu" and x.dtype == self.weight.dtype and torch.is_grad_enabled():
            return rms_norm(x, self.weight, NORM_EPS)
        weight = self.weight.to(x.dtype)
        if not torch.is_autocast_enabled(x.device.type):
            return functional.rms_norm(x, self.normalized_shape, weight, self.eps)
        with torch.autocast(x.device.type, enabled=False):
            return functional.rms_norm(x, self.normalized_shape, weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x`` · ``weight`` / √(mean(x²) + eps) over the last axis, (..., D) to (..., D), differentiable."""
    # For a CPU, where PyTorch composes it from several passes over the whole tensor, each with its own gradient. A
    # GPU has a fused kernel.
    normed: Tensor = _RmsNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return normed


class _RmsNorm(torch.autograd.Function):
    """RMSNorm with gradients written by hand, which need less memory and fewer passes than autograd's."""

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


class Attention(nn.Module):
    """Multi-head attention without biases: self-attention, or cross-attention to a memory of the same width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)

    def forward(self, queries: Tensor, memory: Tensor | None = None) -> Tensor:
        """(B, T, D) from (B, T, D) queries and, for cross-attention, (B, S, D) memory."""
        if memory is None:
            query, key, value = self.query_key_value(queries).chunk(3, dim=-1)
        else:
            width = queries.shape[-1]
            weight = self.query_key_value.weight
            query = functional.linear(queries, weight[:width])
            key, value = functional.linear(memory, weight[width:]).chunk(2, dim=-1)
        mixed = functional.scaled_dot_product_attention(
            self._split(query), self._split(key), self._split(value)
        )
        return self.project(mixed.transpose(1, 2).flatten(2))

    def _split(self, tokens: Tensor) -> Tensor:
        """(B, T, D) to (B, heads, T, D / heads)."""
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Mlp(nn.Module):
    """Two linear layers without biases around an exact GELU."""

    def __init__(self, width: int, *, ratio: int = 4) -> None:
        super().__init__()
        self.expand = nn.Linear(width, ratio * width, bias=False)
        self.contract = nn.Linear(ratio * width, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.contract(functional.gelu(self.expand(tokens)))


class StochasticDepth(nn.Module):
    """Skips a residual branch for a random share of the samples, in training only.

    From a rate of 0.1 on, the branch is computed for round(keep · B) samples only. Below that rate it is computed
    for all, and multiplied by 0 or 1 / keep.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(
        self, tokens: Tensor, branch: nn.Module, generator: torch.Generator | None
    ) -> Tensor:
        """``tokens`` + ``branch(tokens)``, (B, T, D); training requires a ``generator`` unless the rate is 0."""
        if not self.training or self.rate == 0.0:
            return tokens + branch(tokens)
        assert generator is not None, "stochastic depth in training needs a generator"
        keep, rows = 1.0 - self.rate, len(tokens)
        if self.rate < DROP_SUBSET_FROM:
            draw = torch.rand(rows, generator=generator, device=tokens.device)
            scale = (draw < keep).to(tokens.dtype) / keep
            return tokens + branch(tokens) * scale[:, None, None]
        order = torch.randperm(rows, generator=generator, device=tokens.device)
        subset = order[: max(1, round(keep * rows))]
        # Not ``tokens[subset]``, whose gradient sorts the indices on a GPU, since any of them could occur twice.
        update = branch(tokens.index_select(0, subset)) / keep
        return tokens.index_add(0, subset, update.to(tokens.dtype))


class SelfAttentionBranch(nn.Module):
    """Norm, then self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.attention = Attention(width, heads)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.attention(self.norm(tokens))


class MlpBranch(nn.Module):
    """Norm, then MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.mlp = Mlp(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.mlp(self.norm(tokens))


class Block(nn.Module):
    """Self-attention and MLP, each a residual branch with stochastic depth."""

    def __init__(self, width: int, heads: int, *, drop_rate: float) -> None:
        super().__init__()
        self.attention = SelfAttentionBranch(width, heads)
        self.mlp = MlpBranch(width)
        self.depth = StochasticDepth(drop_rate)

    def forward(self, tokens: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        tokens = self.depth(tokens, self.attention, generator)
        return self.depth(tokens, self.mlp, generator)


class Transformer(nn.Module):
    """A stack of blocks with a final norm; position embeddings are added to the tokens before every block."""

    def __init__(self, width: int, heads: int, drop_rates: tuple[float, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, drop_rate=rate) for rate in drop_rates)
        self.norm = RMSNorm(width)

    def hidden_states(
        self, tokens: Tensor, positions: Tensor, generator: torch.Generator | None = None
    ) -> list[Tensor]:
        """Each block's raw output, before the final norm: depth × (B, T, D)."""
        states = []
        for block in self.blocks:
            tokens = block(tokens + positions, generator)
            states.append(tokens)
        return states

    def forward(
        self, tokens: Tensor, positions: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """(B, T, D) normed features from (B, T, D) tokens and (B, T, D) position embeddings."""
        return self.norm(self.hidden_states(tokens, positions, generator)[-1])
