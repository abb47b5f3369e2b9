"""The predictor: features of the hidden patches, from their positions and the visible tokens.

Queries do not attend to each other, because their positions together would reveal the shape of the masked region.
Letting them is an ablation in the paper (accuracy falls), available as ``query_attention``.

Sizes: R rows, H hidden patches, S visible tokens (including CLS), D encoder width, W predictor width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pointdistill.model.config import PredictorConfig
from pointdistill.model.transformer import Attention, MlpBranch, RMSNorm, SelfAttentionBranch


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
