"""Configuration of the network and its views, as frozen records that are checked when they are created.

They are separate from the modules that use them, which import torch: recipes are listed, settings checked and
configurations read without waiting for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from pointdistill.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


class Mode(StrEnum):
    """Which of the two objectives are trained."""

    DUAL = "dual"
    CLS = "cls"
    MPM = "mpm"

    @property
    def has_cls(self) -> bool:
        """Whether there is a CLS token, its head and its loss."""
        return self is not Mode.MPM

    @property
    def has_patches(self) -> bool:
        """Whether patches are masked and predicted."""
        return self is not Mode.CLS


class Initialization(StrEnum):
    """How the initial weights of the network are drawn; the two differ in attention and the prototypes' bias."""

    AUTHORS = "authors"
    """As the authors' code does: query, key and value weights Xavier uniform, prototypes' bias 0."""

    TRUNCATED_NORMAL = "truncated-normal"
    """All linear weights truncated normal, prototypes' bias uniform as in PyTorch's linear layer."""


@dataclass(frozen=True, slots=True)
class Temperatures:
    """Temperatures of the softmax over prototypes; the teacher's are scheduled.

    Compiled code takes them as scalar tensors.
    """

    cls_teacher: float | Tensor
    patch_teacher: float | Tensor
    student: float | Tensor = 0.1


KOLEO_WEIGHT = 0.01
"""Weight of KoLeo in the paper's total loss, beside 1 for every other term."""

LARGEST = 16_384
"""Largest width or depth, so that a damaged configuration cannot request all memory."""

MOST_POINTS = 2**20
"""Largest number of points of a cloud that a network sees, for the same reason."""


def _check_patches(points: int, patches: int, patch_points: int, *, prefix: str = "") -> None:
    """Raise unless the patches fit into a view of this many points; ``prefix`` is the table's, for the message."""
    # Weights say nothing of these, so a file from elsewhere could ask for any amount of memory.
    if points > MOST_POINTS or patches * patch_points > 4 * MOST_POINTS:
        msg = (
            f"{prefix}points must be at most {MOST_POINTS:,}, and all its patches together at most four "
            f"times that, got {points} points and {patches} patches of {patch_points}"
        )
        raise ConfigError(msg)
    if not (1 <= patches <= points and 1 <= patch_points <= points):
        msg = (
            f"{prefix}patches and {prefix}patch_points must lie in 1 to points ({points}), "
            f"got {patches} and {patch_points}"
        )
        raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """The sizes of an encoder and of the views it is pretrained on; the defaults are the small model's."""

    width: int = 384
    """D, the width of tokens and features."""

    depth: int = 12
    """Transformer blocks."""

    heads: int = 6
    """Attention heads; divides ``width``."""

    stage_one: tuple[int, ...] = (128, 256)
    """Widths of the patch embedding's linear layers before its first maximum."""

    stage_two: tuple[int, ...] = (512,)
    """Widths of its hidden layers after that maximum; the last layer always has ``width`` outputs."""

    embedding_bias: bool = False
    """Whether the patch embedding's linear layers have biases (the deeper one of base and large does)."""

    cls_token: bool = True
    """Absent in MPM mode."""

    drop_path: float = 0.0
    """Stochastic depth rate of every block in pretraining."""

    points: int = 1024
    """Points of a global view."""

    patches: int = 64
    """Patches of a global view."""

    patch_points: int = 32
    """K, points per patch."""

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
        _check_patches(self.points, self.patches, self.patch_points, prefix="encoder.")


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig:
    """Widths of a projection head; the defaults are those of small and base (large: 2048 hidden)."""

    hidden: int = 1024
    """Width of the two hidden layers."""

    bottleneck: int = 256
    """Width of the unit vectors that are compared with the prototypes."""

    prototypes: int = 4096
    """Q, the number of prototypes: the size of the distributions that are distilled."""

    def __post_init__(self) -> None:
        for name in ("hidden", "bottleneck", "prototypes"):
            if getattr(self, name) < 1:
                msg = f"head.{name} must be at least 1, got {getattr(self, name)!r}"
                raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorConfig:
    """The sizes of the predictor; the defaults are the small model's."""

    width: int = 192
    """W, the width of its tokens."""

    heads: int = 3
    """Attention heads; divides ``width``."""

    depth: int = 6
    """Blocks of cross-attention and MLP."""

    query_attention: bool = False
    """Whether queries attend to each other before they attend to the memory; in the paper they do not."""

    def __post_init__(self) -> None:
        if not (self.width > 0 and self.heads > 0 and self.depth > 0):
            msg = (
                f"predictor.width, .heads and .depth must be at least 1, got {self.width}, {self.heads} and "
                f"{self.depth}; predictor = none trains without one"
            )
            raise ConfigError(msg)
        if self.width % self.heads:
            msg = f"predictor.heads must divide predictor.width, got {self.heads} heads, width {self.width}"
            raise ConfigError(msg)


class MaskKind(StrEnum):
    """How the hidden patches are chosen."""

    INVERSE_BLOCK = "inverse-block"
    BLOCK = "block"
    RANDOM = "random"


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskingConfig:
    """How patches are masked; the defaults are the paper's for the dual mode."""

    kind: MaskKind = MaskKind.INVERSE_BLOCK
    """The paper uses inverse block masking."""

    ratio: float = 0.7
    """Share of patches hidden from the student, in (0, 1)."""

    masks_per_view: int = 4
    """Number of independent masks per view; the student's cost grows linearly with it."""

    block_share: float = 0.1
    """Size of one block as a share of the view's patches; also the slack in the number of blocks."""

    def __post_init__(self) -> None:
        if not 0.0 < self.ratio < 1.0:
            msg = f"masking.ratio must lie strictly between 0 and 1, got {self.ratio!r}"
            raise ConfigError(msg)
        if self.masks_per_view < 1:
            msg = f"masking.masks_per_view must be at least 1, got {self.masks_per_view!r}"
            raise ConfigError(msg)
        if not 0.0 < self.block_share <= 1.0:
            msg = f"masking.block_share must lie in (0, 1], got {self.block_share!r}"
            raise ConfigError(msg)

    def hidden_patches(self, patches: int) -> int:
        """Number of hidden patches out of ``patches``: 45 of 64 at the default ratio.

        Raises:
            ConfigError: if that is none of them, or all.
        """
        hidden = round(self.ratio * patches)
        if not 0 < hidden < patches:
            msg = f"masking.ratio {self.ratio!r} hides {hidden} of {patches} patches; it must hide some, not all"
            raise ConfigError(msg)
        return hidden

    def blocks(self, patches: int) -> tuple[int, int]:
        """Number of blocks, and of patches in a block.

        For 64 patches at the default ratio: 4 visible blocks of 6, or 6 hidden ones in block masking.
        """
        size = max(1, int(self.block_share * patches))
        covered = self.ratio if self.kind is MaskKind.BLOCK else 1.0 - self.ratio
        # Visible blocks: one more than needed, since blocks overlap. Hidden blocks: one less, as in the authors'
        # code; the rest of the hidden patches is random.
        slack = -self.block_share if self.kind is MaskKind.BLOCK else self.block_share
        return min(patches, max(1, round(patches * (covered + slack) / size))), size


@dataclass(frozen=True, kw_only=True, slots=True)
class CropConfig:
    """One kind of view; the defaults are the paper's global view."""

    count: int = 2
    """Views of this kind per shape."""

    share_low: float = 0.4
    share_high: float = 1.0
    """The share of a shape's points in the crop is uniform between the two."""

    points: int = 1024
    """Points of the view, after random subsampling."""

    patches: int = 64
    patch_points: int = 32

    def __post_init__(self) -> None:
        if not 0.0 < self.share_low <= self.share_high <= 1.0:
            msg = f"crop shares must satisfy 0 < low <= high <= 1, got {self.share_low} and {self.share_high}"
            raise ConfigError(msg)
        if self.count < 1:
            msg = f"a kind of view needs a count of at least 1, got {self.count}"
            raise ConfigError(msg)
        _check_patches(self.points, self.patches, self.patch_points)


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """The augmentation of each crop."""

    rotate_z: bool = True
    """Rotation about z by U(0, 2 pi)."""

    scale_low: float = 0.8
    scale_high: float = 1.2
    """Each axis is scaled by its own factor, uniform between the two."""

    tilt_share: float = 0.0
    """Share of the crops that are rotated about any axis (SO(3), uniform) instead; not in the paper."""

    density_low: float = 1.0
    """A crop keeps a share of its points, uniform between this and 1, and repeats them; not in the paper."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.tilt_share <= 1.0:
            msg = f"augment.tilt_share must be from 0 to 1, got {self.tilt_share!r}"
            raise ConfigError(msg)
        if not 0.0 < self.density_low <= 1.0:
            msg = f"augment.density_low must be above 0 and at most 1, got {self.density_low!r}"
            raise ConfigError(msg)
        if not 0.0 < self.scale_low <= self.scale_high < math.inf:
            msg = (
                "augment.scale_low and .scale_high must satisfy 0 < low <= high, "
                f"got {self.scale_low!r} and {self.scale_high!r}"
            )
            raise ConfigError(msg)
