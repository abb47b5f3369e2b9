"""A decoder that reconstructs the points of hidden patches from the features of visible ones.

Sizes: R rows (a view under a mask), S visible patches, H hidden patches, K points per patch, D encoder width,
W decoder width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pointdistill.errors import ConfigError
from pointdistill.model.heads import PredictorBlock
from pointdistill.model.patches import Patches, gather_points
from pointdistill.model.transformer import RMSNorm

PLACE_HIDDEN = 64
"""Width of the hidden layer that embeds a patch's centre."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """Sizes of a decoder, small enough that what it reconstructs must come from the features."""

    width: int
    """W."""

    heads: int
    """Attention heads; divides ``width``."""

    depth: int = 2
    """Blocks of cross-attention and MLP."""

    def __post_init__(self) -> None:
        if self.depth < 1 or self.heads < 1 or self.width < 1 or self.width % self.heads:
            msg = f"decoder needs at least one block and heads that divide its width, got {self}"
            raise ConfigError(msg)


class PatchDecoder(nn.Module):
    """A query for each hidden patch, made from its position, attends to the features of the visible patches.

    Queries do not attend to each other, because their positions together would reveal the shape without any
    features.
    """

    def __init__(self, encoder_width: int, patch_points: int, config: DecoderConfig) -> None:
        super().__init__()
        self.patch_points = patch_points
        self.narrow = nn.Linear(encoder_width, config.width)
        self.place = nn.Sequential(
            nn.Linear(3, PLACE_HIDDEN), nn.GELU(), nn.Linear(PLACE_HIDDEN, config.width)
        )
        self.blocks = nn.ModuleList(
            PredictorBlock(config.width, config.heads, query_attention=False)
            for _ in range(config.depth)
        )
        self.norm = RMSNorm(config.width)
        self.draw = nn.Linear(config.width, 3 * patch_points)

    def forward(
        self,
        cls: Tensor | None,
        features: Tensor,
        visible_centers: Tensor,
        hidden_centers: Tensor,
    ) -> Tensor:
        """(R, H, K, 3) points of the hidden patches, relative to their centres.

        Args:
            cls: (R, D) of the CLS token, or None.
            features: (R, S, D) of the visible patches.
            visible_centers: (R, S, 3) in the view's unit sphere.
            hidden_centers: (R, H, 3).
        """
        memory = self.narrow(features) + self.place(visible_centers)
        if cls is not None:
            memory = torch.cat([self.narrow(cls)[:, None], memory], dim=1)
        queries = self.place(hidden_centers)
        for block in self.blocks:
            queries = block(queries, memory)
        return self.draw(self.norm(queries)).unflatten(-1, (self.patch_points, 3))


def chamfer_distance(predicted: Tensor, target: Tensor) -> Tensor:
    """Symmetric squared Chamfer distance (...) between points (..., K, 3) and (..., L, 3).

    It is the mean squared distance from a predicted point to the nearest target point, plus that from a target
    point to the nearest predicted point, in the square of the points' unit.
    """
    squared = (predicted.unsqueeze(-2) - target.unsqueeze(-3)).square().sum(-1)  # (..., K, L)
    return squared.amin(-1).mean(-1) + squared.amin(-2).mean(-1)


def copied_patches(patches: Patches, visible_index: Tensor, hidden_index: Tensor) -> Tensor:
    """Predictions (R, H, K, 3) without learning: each hidden patch is a copy of the visible patch nearest to it.

    Args:
        patches: all P patches of each of R views.
        visible_index: (R, S).
        hidden_index: (R, H).
    """
    visible = gather_points(patches.centers, visible_index)
    hidden = gather_points(patches.centers, hidden_index)
    nearest = torch.cdist(hidden, visible).argmin(-1)  # (R, H), indices into the visible patches
    source = visible_index.gather(1, nearest)
    rows = torch.arange(len(source), device=source.device)[:, None]
    return patches.offsets[rows, source]
