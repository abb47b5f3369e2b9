"""Pre-norm transformer whose position embeddings are added before every block.

Rows of different lengths can be packed: all tokens of all rows, one after another, with a layout that says which
are a row. What is done token by token is then one operation; only attention is computed group by group.

Sizes: B rows, T tokens, S memory tokens, D width, N packed tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

NORM_EPS = 1e-5
"""Eps of every RMSNorm in the model; PyTorch's default differs."""

DROP_SUBSET_FROM = 0.1
"""From this rate on, stochastic depth computes a branch only for the samples that keep it."""


Layout = tuple[tuple[int, int], ...]
"""Rows, and tokens in a row, of each group of packed tokens."""


def pack(groups: Sequence[Tensor]) -> Tensor:
    """(N, C) tokens of groups (B, T, C) that may differ in B and T."""
    return torch.cat([group.flatten(0, 1) for group in groups])


def unpack(packed: Tensor, layout: Layout) -> list[Tensor]:
    """The groups (B, T, C) of packed tokens (N, C), as views."""
    parts = packed.split([rows * tokens for rows, tokens in layout])
    return [part.unflatten(0, shape) for part, shape in zip(parts, layout, strict=True)]


def computed_again(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """``function(value)``, which is computed again in the backward pass instead of being kept for it."""
    if not torch.is_grad_enabled():
        return function(value)
    # No layer draws random numbers. Keeping the generators' states all the same would make the host wait for the
    # device.
    result: Tensor = checkpoint(function, value, use_reentrant=False, preserve_rng_state=False)
    return result


def through(layers: Sequence[nn.Module], value: Tensor, again: bool) -> Tensor:
    """``value`` (N, C) after the layers; if ``again``, what those computed that are not linear is not kept."""
    between: tuple[nn.Module, ...] = ()
    for layer in layers:
        if again and not isinstance(layer, nn.Linear):
            between = (*between, layer)
            continue
        if between:
            value, between = computed_again(_in_order(between), value), ()
        value = layer(value)
    return computed_again(_in_order(between), value) if between else value


def _in_order(layers: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
    """A function that calls one layer after another."""

    def call(value: Tensor) -> Tensor:
        for layer in layers:
            value = layer(value)
        return value

    return call


class RMSNorm(nn.RMSNorm):
    """PyTorch's RMSNorm with the model's eps, whose output has the dtype of its input."""

    # Under autocast PyTorch's would return float32; it sums in float32 internally for any dtype. It has no kernel
    # for a CPU, where training uses ``rms_norm`` instead.

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        if torch.compiler.is_compiling() and torch.is_grad_enabled():
            fused: Tensor = _FusableRmsNorm.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
            return fused
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


class _FusableRmsNorm(torch.autograd.Function):
    """RMSNorm for a compiler: computed in float32, while what is kept of it has the dtype of the input."""

    # PyTorch's own begins its gradient with a copy in float32, which both of its sums read, and which a compiler
    # therefore writes. Here tensors of the two dtypes are multiplied instead.

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = (x.float().square().mean(-1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(x, weight, scale)
        normed = x * scale * weight
        # A cast to the dtype that it has would return the tensor itself, and for that the compiler of PyTorch 2.11
        # makes a gradient of zeros.
        return normed if normed.dtype == x.dtype else normed.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        # No product with the gradient is used twice, or the compiler would write that product, in float32.
        normed = x * scale
        along = (normed * weight * gradient).mean(-1, keepdim=True)
        grad_x = ((gradient * weight - normed * along) * scale).to(x.dtype)
        return grad_x, (gradient * normed).flatten(0, -2).sum(0), None


class Attention(nn.Module):
    """Multi-head attention without biases: self-attention, or cross-attention to a memory of the same width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)

    def forward(
        self, queries: Tensor, memory: Tensor | None = None, *, layout: Layout | None = None
    ) -> Tensor:
        """(B, T, D) from (B, T, D) queries and, for cross-attention, (B, S, D) memory.

        With a ``layout``, self-attention in the rows of packed tokens: (N, D) from (N, D).
        """
        if memory is not None:
            width = queries.shape[-1]
            weight = self.query_key_value.weight
            query = functional.linear(queries, weight[:width])
            key, value = functional.linear(memory, weight[width:]).chunk(2, dim=-1)
            return self.project(self._mixed(query, key, value))
        projected = self.query_key_value(queries)
        if layout is None:
            return self.project(self._mixed(*projected.chunk(3, dim=-1)))
        mixed = [self._mixed(*group.chunk(3, dim=-1)) for group in unpack(projected, layout)]
        return self.project(pack(mixed))

    def _mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The values (B, S, D), weighted for each query (B, T, D) and put side by side: (B, T, D)."""
        mixed = functional.scaled_dot_product_attention(
            self._split(query), self._split(key), self._split(value)
        )
        return mixed.transpose(1, 2).flatten(2)

    def _split(self, tokens: Tensor) -> Tensor:
        """(B, T, D) to (B, heads, T, D / heads)."""
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Mlp(nn.Module):
    """Two linear layers without biases around an exact GELU."""

    recompute = False
    """Whether compiled code computes the GELU again in the backward pass, while it reads what was before it."""

    def __init__(self, width: int, *, ratio: int = 4) -> None:
        super().__init__()
        self.expand = nn.Linear(width, ratio * width, bias=False)
        self.contract = nn.Linear(ratio * width, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        expanded = self.expand(tokens)
        # Plain PyTorch would keep the GELU all the same, as the second layer's input.
        again = self.recompute and torch.compiler.is_compiling()
        return self.contract(computed_again(_gelu, expanded) if again else _gelu(expanded))


def _gelu(values: Tensor) -> Tensor:
    return functional.gelu(values)


class StochasticDepth(nn.Module):
    """Skips a residual branch for a random share of the samples, in training only.

    From a rate of 0.1 on, the branch is computed for round(keep · B) samples only. Below that rate it is computed
    for all, and multiplied by 0 or 1 / keep.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def draw(
        self, rows: int, generator: torch.Generator | None, device: torch.device
    ) -> Tensor | None:
        """For one branch: the samples that keep it, or a factor (B,) of each; None if none is skipped.

        Training requires a ``generator`` unless the rate is 0.
        """
        if not self.training or self.rate == 0.0:
            return None
        assert generator is not None, "stochastic depth in training needs a generator"
        keep = 1.0 - self.rate
        if self.rate < DROP_SUBSET_FROM:
            draw = torch.rand(rows, generator=generator, device=device)
            return (draw < keep).to(torch.float32) / keep
        order = torch.randperm(rows, generator=generator, device=device)
        return order[: max(1, round(keep * rows))]

    def forward(
        self,
        tokens: Tensor,
        branch: nn.Module,
        draws: Sequence[Tensor | None],
        layout: Layout | None = None,
    ) -> Tensor:
        """``tokens`` + ``branch(tokens)``, of the tokens' shape.

        Args:
            tokens: (B, T, D), or packed (N, D).
            branch: called with tokens and their layout.
            draws: what ``draw`` returned for each group of rows.
            layout: the rows of packed tokens; None if they are not packed.
        """
        drawn = [draw for draw in draws if draw is not None]
        if not drawn:
            return tokens + branch(tokens, layout)
        groups = [tokens] if layout is None else unpack(tokens, layout)
        if self.rate < DROP_SUBSET_FROM:
            factors = [
                draw.to(tokens.dtype)[:, None, None].expand(-1, group.shape[1], 1)
                for draw, group in zip(drawn, groups, strict=True)
            ]
            factor = factors[0] if layout is None else pack(factors)
            return tokens + branch(tokens, layout) * factor
        # Not ``group[draw]``, whose gradient sorts the indices on a GPU, since any of them could occur twice.
        kept = [group.index_select(0, draw) for draw, group in zip(drawn, groups, strict=True)]
        if layout is None:
            updates = [branch(kept[0])]
        else:
            kept_layout = tuple((len(part), part.shape[1]) for part in kept)
            updates = unpack(branch(pack(kept), kept_layout), kept_layout)
        keep = 1.0 - self.rate
        added = [
            group.index_add(0, draw, (update / keep).to(tokens.dtype))
            for group, draw, update in zip(groups, drawn, updates, strict=True)
        ]
        return added[0] if layout is None else pack(added)


class SelfAttentionBranch(nn.Module):
    """Norm, then self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.attention = Attention(width, heads)

    def forward(self, tokens: Tensor, layout: Layout | None = None) -> Tensor:
        """(B, T, D) to (B, T, D), or packed (N, D) to (N, D)."""
        return self.attention(self.norm(tokens), layout=layout)


class MlpBranch(nn.Module):
    """Norm, then MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.mlp = Mlp(width)

    def forward(self, tokens: Tensor, layout: Layout | None = None) -> Tensor:  # noqa: ARG002
        """(..., D) to (..., D); the layout does not matter, since every token is computed by itself."""
        return self.mlp(self.norm(tokens))


DepthDraws = tuple[Tensor | None, Tensor | None]
"""What stochastic depth drew for a group of rows in one block: for its attention, and for its MLP."""


class Block(nn.Module):
    """Self-attention and MLP, each a residual branch with stochastic depth."""

    def __init__(self, width: int, heads: int, *, drop_rate: float) -> None:
        super().__init__()
        self.attention = SelfAttentionBranch(width, heads)
        self.mlp = MlpBranch(width)
        self.depth = StochasticDepth(drop_rate)

    def draw_depth(
        self, rows: int, generator: torch.Generator | None, device: torch.device
    ) -> DepthDraws:
        """Stochastic depth of a group of rows in both branches."""
        return self.depth.draw(rows, generator, device), self.depth.draw(rows, generator, device)

    def forward(
        self, tokens: Tensor, draws: Sequence[DepthDraws], layout: Layout | None = None
    ) -> Tensor:
        """(B, T, D) to (B, T, D), or packed (N, D) to (N, D); ``draws`` has an entry for each group of rows."""
        of_attention, of_mlp = zip(*draws, strict=True)
        tokens = self.depth(tokens, self.attention, of_attention, layout)
        return self.depth(tokens, self.mlp, of_mlp, layout)


class Transformer(nn.Module):
    """A stack of blocks with a final norm; position embeddings are added to the tokens before every block."""

    def __init__(self, width: int, heads: int, drop_rates: tuple[float, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, drop_rate=rate) for rate in drop_rates)
        self.norm = RMSNorm(width)

    def draw_depth(self, rows: int, generator: torch.Generator | None) -> list[DepthDraws]:
        """Stochastic depth of a group of rows in every block."""
        device = self.norm.weight.device
        return [block.draw_depth(rows, generator, device) for block in self.blocks]  # type: ignore[operator]

    def hidden_states(
        self, tokens: Tensor, positions: Tensor, generator: torch.Generator | None = None
    ) -> list[Tensor]:
        """Each block's raw output, before the final norm: depth × (B, T, D)."""
        return self._states(tokens, positions, [self.draw_depth(len(tokens), generator)])

    def forward(
        self, tokens: Tensor, positions: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """(B, T, D) normed features from (B, T, D) tokens and (B, T, D) position embeddings."""
        return self.norm(self.hidden_states(tokens, positions, generator)[-1])

    def forward_drawn(
        self,
        groups: Sequence[tuple[Tensor, Tensor]],
        draws: Sequence[Sequence[DepthDraws]],
        *,
        packed: bool,
    ) -> list[Tensor]:
        """``forward`` of several groups, each with what ``draw_depth`` drew for it.

        Packed, all groups go through a block together, which takes fewer and larger operations.
        """
        if not packed:
            return [
                self.norm(self._states(*group, [drawn])[-1])
                for group, drawn in zip(groups, draws, strict=True)
            ]
        tokens, positions = zip(*groups, strict=True)
        layout = tuple((len(group), group.shape[1]) for group in tokens)
        states = self._states(pack(tokens), pack(positions), draws, layout)
        return unpack(self.norm(states[-1]), layout)

    def _states(
        self,
        tokens: Tensor,
        positions: Tensor,
        draws: Sequence[Sequence[DepthDraws]],
        layout: Layout | None = None,
    ) -> list[Tensor]:
        """Each block's raw output; ``draws`` are those of every group."""
        states = []
        for block, of_block in zip(self.blocks, zip(*draws, strict=True), strict=True):
            tokens = block(tokens + positions, of_block, layout)
            states.append(tokens)
        return states
