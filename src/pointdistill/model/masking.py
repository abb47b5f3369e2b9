"""Chooses the patches of a view that are hidden from the student.

Inverse block masking leaves a few compact blocks visible, block masking hides them instead, and random masking
hides patches independently of each other. Source: AsymDSD, section on masking (arXiv 2506.21724).

Sizes: B shapes, V views, M masks per view, P patches, H of them hidden; R = B · V · M masks in all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pointdistill.model.config import MaskingConfig, MaskKind
from pointdistill.model.random import KeyedRandom


@dataclass(frozen=True, slots=True)
class Masks:
    """R masks, each of which hides H of P patches."""

    hidden_index: Tensor
    """(R, H) ascending indices of the patches that the student must predict."""

    visible_index: Tensor
    """(R, P - H) ascending indices of the patches that it sees."""

    @staticmethod
    def from_bool(mask: Tensor, hidden: int) -> Masks:
        """From a bool mask (R, P), true = hidden, with exactly ``hidden`` true values per row."""
        # A stable sort brings the hidden ones to the front, and leaves the indices ascending in both parts.
        order = mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        return Masks(order[:, :hidden], order[:, hidden:])


def draw_masks(centers: Tensor, config: MaskingConfig, random: KeyedRandom) -> Tensor:
    """Bool masks (B, V, M, P), true = hidden, for (B, V, P, 3) patch centres.

    Each hides exactly ``config.hidden_patches(P)`` patches. Blocks overlap and so cover a varying number of
    patches; random patches are then switched from hidden to visible, or the other way, until the number is right.
    """
    shapes, views, patches, _ = centers.shape
    masks = config.masks_per_view
    hidden = config.hidden_patches(patches)
    if config.kind is MaskKind.RANDOM:
        prefer = torch.zeros(shapes, views, masks, patches, device=centers.device)
    else:
        in_block = _blocks(centers, config, random)
        wants_hidden = in_block if config.kind is MaskKind.BLOCK else ~in_block
        prefer = wants_hidden.to(torch.float32)
    # The preference is 0 or 1, the random part in [0, 1). If too few patches prefer to be hidden, the highest
    # scores are all of these and a random few of the others; if too many do, they are a random choice of these.
    score = prefer + random.uniform("mask.flip", (views, masks, patches))
    chosen = score.topk(hidden, dim=-1, sorted=False).indices
    mask = torch.zeros(shapes, views, masks, patches, dtype=torch.bool, device=centers.device)
    return mask.scatter_(-1, chosen, True)


def _blocks(centers: Tensor, config: MaskingConfig, random: KeyedRandom) -> Tensor:
    """(B, V, M, P) bool, true for patches in a block: a random patch and its nearest, so many times per mask."""
    shapes, views, patches, _ = centers.shape
    count, size = config.blocks(patches)
    distance = torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist")
    near = distance.topk(size, dim=-1, largest=False, sorted=False).indices  # (B, V, P, size)
    draw = random.uniform("mask.seeds", (views, config.masks_per_view, patches))
    block_centers = draw.topk(count, dim=-1, sorted=False).indices  # (B, V, M, count)
    members = near[:, :, None].expand(-1, -1, config.masks_per_view, -1, -1)
    members = members.gather(3, block_centers[..., None].expand(-1, -1, -1, -1, size)).flatten(3)
    block = torch.zeros(
        shapes, views, config.masks_per_view, patches, dtype=torch.bool, device=centers.device
    )
    return block.scatter_(-1, members, True)
