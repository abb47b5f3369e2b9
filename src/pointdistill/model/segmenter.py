"""The part segmenter: an encoder, features interpolated from patch centres to points, and a point-wise head.

Sizes: B clouds, N points per cloud, P patches, D the encoder's width, L encoder layers used. Source:
docs/method.md, section 7.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointdistill.errors import ConfigError
from pointdistill.model.classifier import NormedMlp
from pointdistill.model.encoder import Encoder
from pointdistill.model.patches import Patches, gather_points

NEIGHBOURS = 3
"""Number of patch centres that a point's features are interpolated from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmenterConfig:
    """The settings of a segmenter besides its encoder's; by default for ShapeNetPart with the small model."""

    parts: int = 50
    """Number of part labels of all categories together."""

    categories: int = 16

    layers: tuple[int, ...] = (4, 8, 12)
    """Encoder blocks whose raw outputs are used, counted from 1."""

    point_widths: tuple[int, int] = (384, 384)
    """Widths of the layers over a point's coordinates and interpolated features."""

    category_width: int = 64
    """Width of the learned embedding of the shape's category."""

    head_widths: tuple[int, int] = (512, 256)

    dropout: float = 0.5
    """Dropout rate after the head's first layer."""

    def __post_init__(self) -> None:
        if not self.layers or min(self.layers) < 1:
            msg = f"segmenter.layers must be some blocks counted from 1, got {self.layers}"
            raise ConfigError(msg)
        if not 0.0 <= self.dropout < 1.0:
            msg = f"segmenter.dropout must lie in [0, 1), got {self.dropout!r}"
            raise ConfigError(msg)


class Segmenter(nn.Module):
    """Computes part logits at every point, from points, their patches and the shape's category."""

    def __init__(self, encoder: Encoder, config: SegmenterConfig) -> None:
        """Build on ``encoder``, which becomes part of the segmenter and is not copied.

        Raises:
            ConfigError: if the encoder has fewer blocks than ``config.layers`` asks for.
        """
        super().__init__()
        if max(config.layers) > encoder.config.depth:
            msg = f"segmenter.layers {config.layers} go beyond the encoder's {encoder.config.depth} blocks"
            raise ConfigError(msg)
        width = encoder.config.width
        layered = len(config.layers) * width
        self.config = config
        self.encoder = encoder
        self.layer_norm = nn.LayerNorm(width)
        self.category_embedding = nn.Embedding(config.categories, config.category_width)
        self.upsample = NormedMlp(3 + layered, config.point_widths, dropout=(0.0, 0.0))
        cls_width = width if encoder.config.cls_token else 0
        self.head = NormedMlp(
            config.point_widths[-1] + config.category_width + cls_width + 2 * layered,
            config.head_widths,
            dropout=(config.dropout, 0.0),
            outputs=config.parts,
            bias=True,
        )

    def forward(
        self,
        points: Tensor,
        patches: Patches,
        category: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(B, N, parts) logits.

        Args:
            points: (B, N, 3) in their unit spheres.
            patches: patches of these points.
            category: (B,) int64, the category of each shape.
            generator: source of stochastic depth and dropout; required in training unless all rates are 0.
        """
        cls, layers = self._encode(patches, generator)
        at_points = self._at_points(points, patches.centers, layers)
        summary = [self.category_embedding(category), layers.mean(1), layers.amax(1)]
        if cls is not None:
            summary.insert(1, cls)
        # A linear layer over [point, shape] is the sum of one over the point and one over the shape. The latter
        # has nine tenths of the inputs, and is computed once per shape instead of once per point.
        weight = self.head.first_linear.weight
        point_weight, shape_weight = weight.split(
            [at_points.shape[-1], weight.shape[1] - at_points.shape[-1]], 1
        )
        hidden = functional.linear(at_points, point_weight)
        hidden = hidden + functional.linear(torch.cat(summary, dim=1), shape_weight)[:, None]
        return self.head.after_first_linear(hidden, generator)

    def _encode(
        self, patches: Patches, generator: torch.Generator | None
    ) -> tuple[Tensor | None, Tensor]:
        """CLS features (B, D) after the final norm, or None, and the L layers' patch features (B, P, L · D)."""
        tokens = self.encoder.embed(patches)
        transformer = self.encoder.transformer
        states = transformer.hidden_states(*self.encoder.with_cls(tokens), generator)
        count = tokens.features.shape[1]
        layers = [self.layer_norm(states[layer - 1][:, -count:]) for layer in self.config.layers]
        cls = transformer.norm(states[-1][:, 0]) if self.encoder.config.cls_token else None
        return cls, torch.cat(layers, dim=-1)

    def _at_points(self, points: Tensor, centers: Tensor, layers: Tensor) -> Tensor:
        """Point features (B, N, width) from points (B, N, 3), centres (B, P, 3) and layers (B, P, L · D)."""
        # Interpolation and the first linear layer commute. So that layer is computed at the P centres and not at
        # the N points, and its output is interpolated, which is narrower than its input.
        xyz_weight, layers_weight = self.upsample.first_linear.weight.split(
            [3, layers.shape[-1]], dim=1
        )
        interpolated = interpolate(functional.linear(layers, layers_weight), centers, points)
        return self.upsample.after_first_linear(
            functional.linear(points, xyz_weight) + interpolated
        )


def interpolate(features: Tensor, centers: Tensor, points: Tensor) -> Tensor:
    """Features (B, N, F) at each point: those of the nearest centres, weighted by inverse squared distance.

    Args:
        features: (B, P, F), one vector per centre.
        centers: (B, P, 3).
        points: (B, N, 3); a point at a centre gets almost only that centre's features.
    """
    distance = torch.cdist(points, centers, compute_mode="donot_use_mm_for_euclid_dist")
    near = distance.topk(min(NEIGHBOURS, centers.shape[1]), dim=-1, largest=False, sorted=False)
    # Without eps a point that is a centre would be divided by 0.
    closeness = 1.0 / (near.values.square() + torch.finfo(features.dtype).eps)
    weights = closeness / closeness.sum(-1, keepdim=True)
    return (gather_points(features, near.indices) * weights[..., None]).sum(-2)
