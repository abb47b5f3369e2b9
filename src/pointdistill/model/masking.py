"""Which patches of a view the student does not see. Sizes: R rows (view × mask), P patches.

Inverse block masking keeps a few compact blocks visible; block masking hides them instead; random masking has no
shape. Source: AsymDSD, section on masking (arXiv 2506.21724).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pointdistill.model.config import MaskingConfig as MaskingConfig
from pointdistill.model.config import MaskKind as MaskKind
from pointdistill.model.random import KeyedRandom


@dataclass(frozen=True, slots=True)
class Masks:
    """R masks that hide equally many of P patches each."""

    hidden_index: Tensor
    """(R, H) ascending patch indices that the student must predict."""

    visible_index: Tensor
    """(R, P - H) ascending patch indices that it sees."""

    @staticmethod
    def from_bool(mask: Tensor, hidden: int) -> Masks:
        """From an (R, P) bool mask, true = hidden, with exactly ``hidden`` true values a row."""
        order = mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        return Masks(order[:, :hidden], order[:, hidden:])


def draw_masks(centers: Tensor, config: MaskingConfig, random: KeyedRandom) -> Tensor:
    """Bool masks (B, V, M, P), true = hidden, for (B, V, P, 3) patch centres.

    Each hides exactly ``config.hidden_patches(P)`` patches: after the blocks are laid, random patches are
    flipped from the side that has too many.
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
    # The side a patch is on decides first, chance second: taking the best `hidden` flips a random few.
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
