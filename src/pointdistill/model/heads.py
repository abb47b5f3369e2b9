"""The two heads on top of the encoder: one maps features to prototype logits, the other predicts hidden patches.

The predictor's queries do not attend to each other, because their positions together would reveal the shape of the
masked region. Letting them is an ablation in the paper (accuracy falls), available as ``query_attention``.

Sizes: Q prototypes, R rows, H hidden patches, S visible tokens (including CLS), D encoder width, W predictor
width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointdistill.model.config import HeadConfig, PredictorConfig
from pointdistill.model.transformer import (
    Attention,
    MlpBranch,
    RMSNorm,
    SelfAttentionBranch,
    through,
)

NORMALIZE_EPS = 1e-6


class Prototypes(nn.Module):
    """A linear layer whose weight is ``magnitude`` · ``direction`` / |``direction``|, row by row.

    Both are learned. PyTorch's weight norm computes the same, but here the two parts are plain parameters.
    """

    def __init__(self, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.magnitude = nn.Parameter(torch.ones(prototypes, 1))
        self.direction = nn.Parameter(torch.randn(prototypes, bottleneck))
        self.bias = nn.Parameter(torch.zeros(prototypes))

    def forward(self, unit: Tensor) -> Tensor:
        """(..., Q) logits of (..., bottleneck) unit vectors."""
        weight = self.direction * (self.magnitude / self.direction.norm(dim=1, keepdim=True))
        return functional.linear(unit, weight, self.bias)


class ProjectionHead(nn.Module):
    """MLP D → hidden → hidden → bottleneck, L2 normalisation, prototypes."""

    recompute = False
    """As in ``Mlp``: whether compiled code computes the GELUs again in the backward pass."""

    def __init__(self, width: int, config: HeadConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.bottleneck),
        )
        self.prototypes = Prototypes(config.bottleneck, config.prototypes)

    def forward(self, features: Tensor) -> Tensor:
        """(..., Q) logits, before any temperature, of (..., D) features."""
        again = self.recompute and torch.compiler.is_compiling()
        reduced = through(list(self.mlp), features, again)
        return self.prototypes(functional.normalize(reduced, dim=-1, eps=NORMALIZE_EPS))


class PredictorBlock(nn.Module):
    """Cross-attention with a norm on the queries only, then MLP; optionally the queries' self-attention first."""

    def __init__(self, width: int, heads: int, *, query_attention: bool) -> None:
        super().__init__()
        self.among_queries = SelfAttentionBranch(width, heads) if query_attention else None
        self.norm = RMSNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = MlpBranch(width)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """(R, H, W) from (R, H, W) queries and (R, S, W) memory."""
        if self.among_queries is not None:
            queries = queries + self.among_queries(queries)
        queries = queries + self.attention(self.norm(queries), memory)
        return queries + self.mlp(queries)


class Predictor(nn.Module):
    """Features of hidden patches from their positions and the student's visible tokens."""

    def __init__(self, encoder_width: int, config: PredictorConfig) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder_width))
        self.narrow = nn.Linear(encoder_width, config.width)
        self.blocks = nn.ModuleList(
            PredictorBlock(config.width, config.heads, query_attention=config.query_attention)
            for _ in range(config.depth)
        )
        self.norm = RMSNorm(config.width)
        self.widen = nn.Linear(config.width, encoder_width)

    def forward(self, positions: Tensor, memory: Tensor) -> Tensor:
        """(R, H, D) predicted features.

        Args:
            positions: (R, H, D) position embeddings of the hidden patches.
            memory: (R, S, D) the student encoder's output for the visible tokens, CLS included.
        """
        memory = self.narrow(memory)
        positions = self.narrow(positions)
        queries = self.narrow(self.mask_token).expand_as(positions)
        for block in self.blocks:
            # Positions are added before every block, as in the encoder.
            queries = block(queries + positions, memory)
        return self.widen(self.norm(queries))
