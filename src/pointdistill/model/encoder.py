"""The encoder: patch embedding, position embedding, CLS token, transformer.

Sizes: B clouds, N points, P patches, K points a patch, D width. Source: AsymDSD (arXiv 2506.21724).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pointdistill.errors import ConfigError, DataError
from pointdistill.model.patches import (
    Patches,
    farthest_points,
    gather_points,
    patchify,
    to_unit_sphere,
)
from pointdistill.model.transformer import RMSNorm, Transformer

POSITION_HIDDEN = 128
"""Width of the position embedding's hidden layer, the same in every size."""

LARGEST = 16_384
"""Limit to any width or depth, so that a damaged configuration cannot ask for all memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """Sizes of an encoder, and of the views it is pretrained on. The defaults are the small model's."""

    width: int = 384
    """D, the width of tokens and features."""

    depth: int = 12
    """Transformer blocks."""

    heads: int = 6
    """Attention heads; divides ``width``."""

    stage_one: tuple[int, ...] = (128, 256)
    """Widths of the patch embedding's linear layers before its first maximum."""

    stage_two: tuple[int, ...] = (512,)
    """Widths of its hidden layers after that maximum; a last layer leads to ``width``."""

    embedding_bias: bool = False
    """Whether the linear layers of the patch embedding have biases (they do in base and large)."""

    cls_token: bool = True
    """Whether there is a CLS token; in MPM mode there is none."""

    drop_path: float = 0.0
    """Rate of stochastic depth of every block in pretraining."""

    points: int = 1024
    """Points of a global view."""

    patches: int = 64
    """Patches of a global view."""

    patch_points: int = 32
    """K, points a patch."""

    def __post_init__(self) -> None:
        sizes = (self.width, self.depth, self.heads, *self.stage_one, *self.stage_two)
        if not (self.stage_one and all(0 < size <= LARGEST for size in sizes)):
            msg = f"encoder sizes must lie in 1 to {LARGEST:,}, with a stage_one; got {self}"
            raise ConfigError(msg)
        if self.width % self.heads:
            msg = f"encoder.heads must divide encoder.width, got {self.heads} heads, width {self.width}"
            raise ConfigError(msg)
        if not 0.0 <= self.drop_path < 1.0:
            msg = f"encoder.drop_path must lie in [0, 1), got {self.drop_path!r}"
            raise ConfigError(msg)
        if not (1 <= self.patches <= self.points and 1 <= self.patch_points <= self.points):
            msg = (
                f"encoder.patches and encoder.patch_points must lie in 1 to points ({self.points}), "
                f"got {self.patches} and {self.patch_points}"
            )
            raise ConfigError(msg)


@dataclass(frozen=True, slots=True)
class EncoderOutput:
    """Features of B clouds."""

    cls: Tensor | None
    """(B, D) of the CLS token; None for an encoder without one."""

    patches: Tensor
    """(B, P, D), one feature vector a patch."""

    centers: Tensor
    """(B, P, 3) patch centres in the cloud's unit sphere."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Embedded patches, before the transformer."""

    features: Tensor
    """(B, P, D)."""

    positions: Tensor
    """(B, P, D), the embedding of each patch's centre."""

    def select(self, index: Tensor) -> Tokens:
        """The tokens at (B, T) ``index``."""
        return Tokens(gather_points(self.features, index), gather_points(self.positions, index))


class PatchEmbedding(nn.Module):
    """A mini PointNet: layers at each point, maximum over the patch, layers at each point again, maximum.

    The second stage reads [x, max]. Its first linear layer is the sum of one over x and one over max: the latter
    is computed once a patch instead of once a point, and the (B, P, K, 2 · hidden) concatenation is never made.
    """

    def __init__(
        self, width: int, *, stage_one: Sequence[int], stage_two: Sequence[int], bias: bool
    ) -> None:
        super().__init__()
        self.stage_one = _mlp([3, *stage_one], bias=bias)
        self.stage_two = _mlp([2 * stage_one[-1], *stage_two, width], bias=bias)

    def forward(self, offsets: Tensor) -> Tensor:
        """(B, P, D) from (B, P, K, 3)."""
        local = self.stage_one(offsets)
        summary = local.amax(-2)
        mix = self.stage_two[0]
        assert isinstance(mix, nn.Linear)
        point_weight, patch_weight = mix.weight.chunk(2, dim=1)
        mixed = nn.functional.linear(local, point_weight)
        mixed = mixed + nn.functional.linear(summary, patch_weight, mix.bias).unsqueeze(-2)
        for layer in list(self.stage_two)[1:]:
            mixed = layer(mixed)
        return mixed.amax(-2)


def _mlp(widths: Sequence[int], *, bias: bool) -> nn.Sequential:
    """Linear layers; every one but the last is followed by RMSNorm and GELU."""
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(widths):
        if layers:
            layers += [RMSNorm(inner), nn.GELU()]
        layers.append(nn.Linear(inner, outer, bias=bias))
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    """From clouds to features. A call on raw points does everything; pretraining calls the parts."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = PatchEmbedding(
            config.width,
            stage_one=config.stage_one,
            stage_two=config.stage_two,
            bias=config.embedding_bias,
        )
        self.position_embedding = nn.Sequential(
            nn.Linear(3, POSITION_HIDDEN), nn.GELU(), nn.Linear(POSITION_HIDDEN, config.width)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width)) if config.cls_token else None
        self.transformer = Transformer(
            config.width, config.heads, (config.drop_path,) * config.depth
        )

    def embed(self, patches: Patches) -> Tokens:
        """Tokens of B rows of patches: (B, P, D) features and positions."""
        return Tokens(
            self.patch_embedding(patches.offsets), self.position_embedding(patches.centers)
        )

    def with_cls(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Features and positions with the CLS token first, whose position embedding is zero."""
        features, positions = tokens.features, tokens.positions
        if self.cls_token is None:
            return features, positions
        rows = len(features)
        cls = self.cls_token.to(features.dtype).expand(rows, -1, -1)
        no_position = positions.new_zeros(rows, 1, positions.shape[-1])
        return torch.cat([cls, features], 1), torch.cat([no_position, positions], 1)

    def encode(
        self, tokens: Tokens, generator: torch.Generator | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """CLS features (B, D), or None, and patch features (B, P, D), after the final norm.

        Args:
            tokens: embedded patches, all of a view or only the visible ones.
            generator: source of stochastic depth; needed in training where its rate is not 0.
        """
        features = self.transformer(*self.with_cls(tokens), generator)
        if self.cls_token is None:
            return None, features
        return features[:, 0], features[:, 1:]

    def forward(self, points: Tensor, *, patches: int | None = None) -> EncoderOutput:
        """Features of raw clouds, which are normalised to the unit sphere and cut into patches first.

        Deterministic, and independent of the other clouds in the batch. Farthest point sampling begins at the
        point farthest from the centroid, so the order of a cloud's points does not matter.

        Args:
            points: (B, N, 3) float, any unit and position, z up; N at least ``config.patch_points``. A cloud
                of more than twice ``config.points`` is first reduced to ``config.points`` farthest points,
                since the patches of a much denser cloud would be smaller than any in pretraining.
            patches: patches a cloud; by default in proportion to N, as in pretraining (N / 16 in the paper).

        Raises:
            DataError: if the shape is not (B, N, 3), N is too small, or a coordinate is not finite.
        """
        _check_points(points, self.config)
        points = to_unit_sphere(points.to(self.transformer.norm.weight.dtype))
        if points.shape[1] > 2 * self.config.points:
            index = farthest_points(points, self.config.points, start=_outermost(points))
            points = to_unit_sphere(gather_points(points, index))
        size = points.shape[1]
        count = patches or max(1, round(size * self.config.patches / self.config.points))
        cloud_patches = patchify(
            points,
            patches=min(count, size),
            patch_points=self.config.patch_points,
            start=_outermost(points),
        )
        cls, features = self.encode(self.embed(cloud_patches))
        return EncoderOutput(cls, features, cloud_patches.centers)


def _outermost(points: Tensor) -> Tensor:
    """(B,) index of the point farthest from the origin in each of (B, N, 3) centred clouds."""
    return points.square().sum(-1).argmax(-1)


def _check_points(points: Tensor, config: EncoderConfig) -> None:
    """Raise unless ``points`` is a finite (B, N, 3) tensor with enough points for a patch."""
    if points.ndim != 3 or points.shape[-1] != 3:
        msg = f"expected points of shape (B, N, 3), got {tuple(points.shape)}; add a batch axis with points[None]"
        raise DataError(msg)
    if points.shape[1] < config.patch_points:
        msg = (
            f"expected at least {config.patch_points} points a cloud (one patch), got {points.shape[1]}; "
            "sample the surface more densely"
        )
        raise DataError(msg)
    if not torch.isfinite(points).all():
        msg = "points hold NaN or infinite coordinates; remove them before encoding"
        raise DataError(msg)
