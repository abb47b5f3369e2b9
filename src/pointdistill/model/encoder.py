"""The encoder: patch embedding, position embedding, CLS token, transformer.

Sizes: B clouds, N points, P patches, K points per patch, D width. Source: AsymDSD (arXiv 2506.21724).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointdistill.errors import DataError
from pointdistill.model.config import EncoderConfig
from pointdistill.model.patches import (
    Patches,
    farthest_points,
    gather_points,
    patchify,
    to_unit_sphere,
)
from pointdistill.model.transformer import (
    DepthDraws,
    RMSNorm,
    Transformer,
    computed_again,
    through,
)

POSITION_HIDDEN = 128
"""Width of the position embedding's hidden layer, the same in every size."""


@dataclass(frozen=True, slots=True)
class EncoderOutput:
    """Features of B clouds."""

    cls: Tensor | None
    """(B, D), features of the CLS token; None for an encoder without one."""

    patches: Tensor
    """(B, P, D), one feature vector per patch."""

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
        """The tokens at ``index`` (B, T)."""
        return Tokens(gather_points(self.features, index), gather_points(self.positions, index))


class PatchEmbedding(nn.Module):
    """A mini PointNet: layers at each point, maximum over the patch, layers at each point again, maximum.

    The second stage reads each point's features concatenated with their maximum over the patch.
    """

    recompute = False
    """Keep less for the backward pass, which then computes it again.

    Plain PyTorch keeps the offsets only. Compiled code keeps the results of the linear layers, and computes what
    is between them again while it reads these: about as little memory at its peak, and no matrix product twice.
    """

    def __init__(
        self, width: int, *, stage_one: Sequence[int], stage_two: Sequence[int], bias: bool
    ) -> None:
        super().__init__()
        self.stage_one = _mlp([3, *stage_one], bias=bias)
        self.stage_two = _mlp([2 * stage_one[-1], *stage_two, width], bias=bias)

    def forward(self, offsets: Tensor) -> Tensor:
        """(B, P, D) from (B, P, K, 3)."""
        if torch.compiler.is_compiling() and torch.is_grad_enabled():
            return self._embed(offsets, again=self.recompute)
        return computed_again(self._embed, offsets) if self.recompute else self._embed(offsets)

    def _embed(self, offsets: Tensor, *, again: bool = False) -> Tensor:
        """The embedding; ``again`` if what lies between linear layers is not kept for the backward pass."""
        shape = offsets.shape[:-1]
        local = through(list(self.stage_one), offsets.flatten(0, -2), again).unflatten(0, shape)
        summary = patch_maximum(local)
        # A linear layer over [x, max] is the sum of one over x and one over max. The latter is computed once per
        # patch instead of once per point, and the (B, P, K, 2 · hidden) concatenation is never made.
        mix = self.stage_two[0]
        assert isinstance(mix, nn.Linear)
        point_weight, patch_weight = mix.weight.chunk(2, dim=1)
        mixed = nn.functional.linear(local, point_weight)
        mixed = mixed + nn.functional.linear(summary, patch_weight, mix.bias).unsqueeze(-2)
        layers = list(self.stage_two)[1:]
        return patch_maximum(through(layers, mixed.flatten(0, -2), again).unflatten(0, shape))


def patch_maximum(values: Tensor) -> Tensor:
    """Maximum (B, P, C) of the points' values (B, P, K, C) of each patch."""
    if torch.compiler.is_compiling() and torch.is_grad_enabled():
        largest: Tensor = _FusableMaximum.apply(values)  # type: ignore[no-untyped-call]
        return largest
    return values.amax(-2)


class _FusableMaximum(torch.autograd.Function):
    """Maximum over the points, for a compiler: its gradient needs the index of the largest point alone.

    PyTorch's shares the gradient among all points of that value. It reads the values twice more for it, and keeps
    a mask of their size. Equal points of a patch are computed alike, so to the weights it is the same which of
    them has the gradient. Of points that only bf16's rounding made equal, one has it instead of each a part.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        largest, index = values.max(-2)
        ctx.points = values.shape[-2]
        ctx.save_for_backward(index.to(torch.int16))
        return largest

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (index,) = ctx.saved_tensors
        point = torch.arange(ctx.points, device=index.device, dtype=index.dtype)
        chosen = point[:, None] == index.unsqueeze(-2)
        return torch.where(chosen, gradient.unsqueeze(-2), 0.0)


def _mlp(widths: Sequence[int], *, bias: bool) -> nn.Sequential:
    """Linear layers, with RMSNorm and GELU after each but the last."""
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(widths):
        if layers:
            layers += [RMSNorm(inner), nn.GELU()]
        layers.append(nn.Linear(inner, outer, bias=bias))
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    """Computes features of clouds. A call on raw points does everything; pretraining calls the parts."""

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
        """Features and positions with the CLS token in front, whose position embedding is zero."""
        features, positions = tokens.features, tokens.positions
        if self.cls_token is None:
            return features, positions
        rows = len(features)
        cls = self.cls_token.to(features.dtype).expand(rows, -1, -1)
        no_position = positions.new_zeros(rows, 1, positions.shape[-1])
        return torch.cat([cls, features], 1), torch.cat([no_position, positions], 1)

    def encode_tokens(
        self, tokens: Tokens, generator: torch.Generator | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """CLS features (B, D), or None, and patch features (B, P, D), after the final norm.

        Args:
            tokens: embedded patches, all of a view or only the visible ones.
            generator: source of stochastic depth; required in training unless its rate is 0.
        """
        return self._split_cls(self.transformer(*self.with_cls(tokens), generator))

    def encode_passes(
        self,
        passes: Sequence[Tokens],
        draws: Sequence[Sequence[DepthDraws]],
        *,
        packed: bool,
    ) -> list[tuple[Tensor | None, Tensor]]:
        """``encode`` of several passes, whose stochastic depth is already drawn; packed or one after another."""
        groups = [self.with_cls(tokens) for tokens in passes]
        encoded = self.transformer.forward_drawn(groups, draws, packed=packed)
        return [self._split_cls(features) for features in encoded]

    def _split_cls(self, features: Tensor) -> tuple[Tensor | None, Tensor]:
        """CLS features, or None, and patch features of a transformer's output."""
        if self.cls_token is None:
            return None, features
        return features[:, 0], features[:, 1:]

    def forward(
        self, points: Tensor, *, patches: int | None = None, start: Tensor | None = None
    ) -> EncoderOutput:
        """Features of raw clouds, which are first normalised to the unit sphere and divided into patches.

        The result is deterministic, and does not depend on the other clouds in the batch. Without ``start``,
        farthest point sampling starts at the point farthest from the centroid, so the order of a cloud's points
        does not matter.

        Args:
            points: (B, N, 3) float, in any unit and position, z up; N at least ``config.patch_points``. A cloud
                with more than twice ``config.points`` is first reduced to ``config.points`` farthest points, since
                the patches of a much denser cloud would be smaller than any in pretraining.
            patches: patches per cloud; by default in proportion to N, as in pretraining (N / 16 in the paper).
            start: (B,) int64, the index of the point at which farthest point sampling starts.

        Raises:
            DataError: if the shape is not (B, N, 3), N is too small, or a coordinate is not finite.
        """
        _check_points(points, self.config)
        points = to_unit_sphere(points.to(self.transformer.norm.weight.dtype))
        if points.shape[1] > 2 * self.config.points:
            first = _outermost(points) if start is None else start
            index = farthest_points(points, self.config.points, start=first)
            points = to_unit_sphere(gather_points(points, index))
            # The reduced cloud begins with the point that the sampling started at.
            start = None if start is None else torch.zeros_like(start)
        size = points.shape[1]
        count = patches or max(1, round(size * self.config.patches / self.config.points))
        cloud_patches = patchify(
            points,
            patches=min(count, size),
            patch_points=self.config.patch_points,
            start=_outermost(points) if start is None else start,
        )
        cls, features = self.encode_tokens(self.embed(cloud_patches))
        return EncoderOutput(cls, features, cloud_patches.centers)


def _outermost(points: Tensor) -> Tensor:
    """Index (B,) of the point farthest from the origin in each centred cloud (B, N, 3)."""
    return points.square().sum(-1).argmax(-1)


def _check_points(points: Tensor, config: EncoderConfig) -> None:
    """Check that ``points`` is a finite (B, N, 3) tensor with enough points for a patch."""
    if points.ndim != 3 or points.shape[-1] != 3:
        msg = f"expected points of shape (B, N, 3), got {tuple(points.shape)}; add a batch axis with points[None]"
        raise DataError(msg)
    if points.shape[1] < config.patch_points:
        msg = (
            f"expected at least {config.patch_points} points per cloud (one patch), got {points.shape[1]}; "
            "sample the surface more densely"
        )
        raise DataError(msg)
    if not torch.isfinite(points).all():
        msg = "points hold NaN or infinite coordinates; remove them before encoding"
        raise DataError(msg)
