"""The projection head, which maps features to prototype logits. Sizes: D width, Q prototypes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointdistill.model.config import HeadConfig

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
        return self.prototypes(functional.normalize(self.mlp(features), dim=-1, eps=NORMALIZE_EPS))
