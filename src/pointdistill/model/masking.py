"""Which patches of a view the student does not see. Sizes: R rows (view × mask), P patches.

Inverse block masking leaves a few compact blocks visible, block masking hides them instead, and random masking
hides patches independently of each other. Source: AsymDSD, section on masking (arXiv 2506.21724).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from pointdistill.errors import ConfigError
from pointdistill.model.random import KeyedRandom


class MaskKind(StrEnum):
    """How the hidden patches are chosen."""

    INVERSE_BLOCK = "inverse-block"
    BLOCK = "block"
    RANDOM = "random"


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskingConfig:
    """How much is hidden, and how; the defaults are the paper's for the dual mode."""

    kind: MaskKind = MaskKind.INVERSE_BLOCK

    ratio: float = 0.7
    """Share of patches hidden from the student, in (0, 1)."""

    masks_per_view: int = 4
    """Independent masks drawn for each view; the student's cost grows linearly with their number."""

    block_share: float = 0.1
    """Size of one block as a share of the view's patches; also added to the share that blocks are to cover."""

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
        """Number of hidden patches out of ``patches``: 45 of 64 at the default ratio."""
        hidden = round(self.ratio * patches)
        if not 0 < hidden < patches:
            msg = f"masking.ratio {self.ratio!r} hides {hidden} of {patches} patches; it must hide some, not all"
            raise ConfigError(msg)
        return hidden

    def blocks(self, patches: int) -> tuple[int, int]:
        """Number of blocks and of patches in a block: 4 of 6 for 64 patches at the default ratio."""
        size = max(1, int(self.block_share * patches))
        covered = self.ratio if self.kind is MaskKind.BLOCK else 1.0 - self.ratio
        # One block's share more than must be covered, because blocks overlap.
        return min(patches, max(1, round(patches * (covered + self.block_share) / size))), size


@dataclass(frozen=True, slots=True)
class Masks:
    """R masks, each of which hides H of P patches."""

    hidden_index: Tensor
    """(R, H) ascending indices of the patches that the student must predict."""

    visible_index: Tensor
    """(R, P - H) ascending indices of the patches that it sees."""

    @staticmethod
    def from_bool(mask: Tensor, hidden: int) -> Masks:
        """From an (R, P) bool mask, true = hidden, with exactly ``hidden`` true values a row."""
        # A stable sort brings the hidden ones to the front and leaves the indices on both sides ascending.
        order = mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        return Masks(order[:, :hidden], order[:, hidden:])


def draw_masks(centers: Tensor, config: MaskingConfig, random: KeyedRandom) -> Tensor:
    """Bool masks (B, V, M, P), true = hidden, for (B, V, P, 3) patch centres.

    Each hides exactly ``config.hidden_patches(P)`` patches: blocks overlap and cover a varying number of patches,
    so random patches are moved from the side that has too many to the other.
    """
    rows, views, patches, _ = centers.shape
    masks = config.masks_per_view
    hidden = config.hidden_patches(patches)
    if config.kind is MaskKind.RANDOM:
        prefer = torch.zeros(rows, views, masks, patches, device=centers.device)
    else:
        in_block = _blocks(centers, config, random)
        wants_hidden = in_block if config.kind is MaskKind.BLOCK else ~in_block
        prefer = wants_hidden.to(torch.float32)
    # Preference is 0 or 1 and chance in [0, 1): the `hidden` highest scores are all patches that prefer to be
    # hidden and a random few of the others, or a random choice of those that prefer it where they are too many.
    score = prefer + random.uniform("mask.flip", (views, masks, patches))
    chosen = score.topk(hidden, dim=-1, sorted=False).indices
    mask = torch.zeros(rows, views, masks, patches, dtype=torch.bool, device=centers.device)
    return mask.scatter_(-1, chosen, True)


def _blocks(centers: Tensor, config: MaskingConfig, random: KeyedRandom) -> Tensor:
    """(B, V, M, P) bool, true in the union of blocks of nearest centres around distinct random seeds."""
    rows, views, patches, _ = centers.shape
    count, size = config.blocks(patches)
    distance = torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist")
    near = distance.topk(size, dim=-1, largest=False, sorted=False).indices  # (B, V, P, size)
    draw = random.uniform("mask.seeds", (views, config.masks_per_view, patches))
    seeds = draw.topk(count, dim=-1, sorted=False).indices  # (B, V, M, count)
    members = near[:, :, None].expand(-1, -1, config.masks_per_view, -1, -1)
    members = members.gather(3, seeds[..., None].expand(-1, -1, -1, -1, size)).flatten(3)
    block = torch.zeros(
        rows, views, config.masks_per_view, patches, dtype=torch.bool, device=centers.device
    )
    return block.scatter_(-1, members, True)
