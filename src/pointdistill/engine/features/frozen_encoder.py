"""An encoder arranged for inference on a CPU: the same function, with fewer and smaller passes over memory.

Four things differ, which autograd would not allow or training not gain from. The patch embedding handles a few
patches at a time, so that what lies between two matrix products stays in a core's cache. Norms and GELUs work in
place. A norm's scale is folded into the matrix that follows it. Residuals are added by the matrix product itself.
``benchmarks/embed.py`` measures each.

Sizes: B clouds, P patches, K points a patch, T tokens, D width.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointdistill.model.encoder import Encoder, PatchEmbedding
from pointdistill.model.transformer import NORM_EPS, Block, RMSNorm, Transformer

CACHED_VALUES = 2**19
"""Values of the patch embedding's widest layer at a time: 2 MiB of float32, which a core's own cache holds."""


def frozen_copy(encoder: Encoder) -> Encoder:
    """A copy of ``encoder`` for calls under ``torch.inference_mode()`` on a CPU; features agree to rounding.

    It holds a second set of weights. Its layers are not those of a checkpoint, so it cannot be saved or trained.
    """
    frozen = copy.copy(encoder)
    # copy.copy shares the dictionary of submodules: without one of its own, the original would be changed here.
    frozen._modules = dict(encoder._modules)
    frozen.patch_embedding = FrozenPatchEmbedding(encoder.patch_embedding)  # type: ignore[assignment]
    frozen.transformer = FrozenTransformer(encoder.transformer)  # type: ignore[assignment]
    return frozen.eval()


class FrozenPatchEmbedding(nn.Module):
    """The patch embedding, a few patches at a time."""

    def __init__(self, embedding: PatchEmbedding) -> None:
        super().__init__()
        mix = embedding.stage_two[0]
        assert isinstance(mix, nn.Linear)
        self.stage_one = list(embedding.stage_one)
        self.rest = list(embedding.stage_two)[1:]
        halves = mix.weight.chunk(2, dim=1)
        self.point_weight, self.patch_weight = (half.contiguous() for half in halves)
        self.bias = mix.bias
        layers = (*self.stage_one, mix, *self.rest)
        self.widest = max(x.out_features for x in layers if isinstance(x, nn.Linear))
        last = layers[-1]
        assert isinstance(last, nn.Linear)
        self.width = last.out_features

    def forward(self, offsets: Tensor) -> Tensor:
        """(B, P, D) from (B, P, K, 3)."""
        patches = offsets.flatten(0, -3)
        features = offsets.new_empty(len(patches), self.width)
        at_once = max(1, CACHED_VALUES // (patches.shape[1] * self.widest))
        for first in range(0, len(patches), at_once):
            part = slice(first, first + at_once)
            features[part] = self._embed(patches[part])
        return features.unflatten(0, offsets.shape[:-2])

    def _embed(self, offsets: Tensor) -> Tensor:
        """(R, D) of (R, K, 3) patches."""
        local = _run(self.stage_one, offsets)
        summary = functional.linear(local.amax(-2), self.patch_weight, self.bias)
        mixed = functional.linear(local, self.point_weight).add_(summary.unsqueeze(-2))
        return _run(self.rest, mixed).amax(-2)


class FrozenTransformer(nn.Module):
    """The transformer, its norms folded into the weights after them."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.blocks = [_FrozenBlock(block) for block in transformer.blocks]  # type: ignore[arg-type]
        self.norm = transformer.norm

    def forward(
        self, tokens: Tensor, positions: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """(B, T, D) normed features; ``generator`` is accepted for the interface of `Transformer` and not used."""
        del generator
        tokens = tokens.clone()  # the blocks work in place, and the caller's tensor is the caller's
        for block in self.blocks:
            block.update_(tokens, positions)
        return _unit_(tokens).mul_(self.norm.weight)


class _FrozenBlock:
    """A block's weights as right-hand matrices (inner, outer), ready for ``addmm``."""

    def __init__(self, block: Block) -> None:
        attention, mlp = block.attention, block.mlp
        qkv = attention.attention.query_key_value.weight * attention.norm.weight
        self.query_key_value = qkv.T.contiguous()
        self.project = attention.attention.project.weight.T
        self.expand = (mlp.mlp.expand.weight * mlp.norm.weight).T.contiguous()
        self.contract = mlp.mlp.contract.weight.T
        self.heads = attention.attention.heads

    def update_(self, tokens: Tensor, positions: Tensor) -> None:
        """Turn (B, T, D) contiguous ``tokens`` into the block's output, in place."""
        # A view of the tokens: the two addmm_ below add the residuals where the tokens lie.
        rows = tokens.add_(positions).flatten(0, 1)
        packed = (rows * _inverse_rms(rows)) @ self.query_key_value
        split = packed.view(*tokens.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(split[0], split[1], split[2])
        rows.addmm_(mixed.transpose(1, 2).reshape(rows.shape), self.project)
        hidden = (rows * _inverse_rms(rows)) @ self.expand
        rows.addmm_(torch.ops.aten.gelu_(hidden), self.contract)


def _run(layers: list[nn.Module], rows: Tensor) -> Tensor:
    """Linear layers, norms and GELUs in turn; what a linear layer returned is changed in place."""
    for layer in layers:
        if isinstance(layer, RMSNorm):
            rows = _unit_(rows).mul_(layer.weight)
        elif isinstance(layer, nn.GELU):
            rows = torch.ops.aten.gelu_(rows)
        else:
            rows = layer(rows)
    return rows


def _unit_(rows: Tensor) -> Tensor:
    """Divide each row by its root mean square, in place."""
    return rows.mul_(_inverse_rms(rows))


def _inverse_rms(rows: Tensor) -> Tensor:
    """(..., 1) from (..., D). Through the vector norm, which reads the rows once and writes no square of them."""
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return norm.square_().div_(rows.shape[-1]).add_(NORM_EPS).rsqrt_()
