"""Masks: exact counts, compact visible blocks, determinism."""

from __future__ import annotations

import pytest
import torch

from pointdistill.errors import ConfigError
from pointdistill.model.config import MaskingConfig, MaskKind
from pointdistill.model.masking import Masks, draw_masks
from pointdistill.model.random import KeyedRandom, sample_keys


def random(rows: int) -> KeyedRandom:
    return KeyedRandom(sample_keys(seed=0, epoch=0, index=torch.arange(rows)))


def centers(rows: int = 3, views: int = 2, patches: int = 64) -> torch.Tensor:
    return torch.randn(rows, views, patches, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("ratio", "hidden", "blocks"),
    [(0.7, 45, (4, 6)), (0.8, 51, (3, 6))],  # method, section 4
)
def test_the_papers_counts(ratio: float, hidden: int, blocks: tuple[int, int]) -> None:
    config = MaskingConfig(ratio=ratio)
    assert config.hidden_patches(64) == hidden
    assert config.blocks(64) == blocks


@pytest.mark.parametrize("kind", MaskKind)
def test_every_mask_hides_exactly_its_share(kind: MaskKind) -> None:
    mask = draw_masks(centers(), MaskingConfig(kind=kind), random(3))
    assert mask.shape == (3, 2, 4, 64)
    assert (mask.sum(-1) == 45).all()
    assert len({tuple(row) for row in mask.flatten(0, 2).int().tolist()}) == 24


def test_visible_patches_are_more_compact_than_chance() -> None:
    """The mean distance between visible centres: well below that of random masks."""
    places = centers(50)

    def spread(kind: MaskKind) -> float:
        mask = draw_masks(places, MaskingConfig(kind=kind), random(50))
        index = Masks.from_bool(mask.flatten(0, 2), 45).visible_index
        rows = places.flatten(0, 1).repeat_interleave(4, 0)
        seen = rows.gather(1, index[..., None].expand(-1, -1, 3))
        nearest = torch.cdist(seen, seen) + 9 * torch.eye(19)
        return float(nearest.amin(-1).mean())

    assert spread(MaskKind.INVERSE_BLOCK) < 0.85 * spread(MaskKind.RANDOM)


def test_most_visible_patches_lie_in_the_blocks_of_few_seeds() -> None:
    """With blocks that cover the visible share exactly, the visible set is a union of neighbourhoods."""
    line = torch.arange(20.0)[None, None, :, None].expand(1, 1, 20, 3)
    config = MaskingConfig(ratio=0.8, block_share=0.2, masks_per_view=100)
    assert config.blocks(20) == (2, 4)
    mask = draw_masks(line, config, random(1))[0, 0]
    visible = ~mask
    assert (visible.sum(-1) == 4).all()
    runs = visible[:, 1:] & visible[:, :-1]
    assert runs.sum(-1).float().mean() > 1.0  # of at most 3 adjacent pairs; chance gives 0.6


def test_block_masking_hides_compact_blocks() -> None:
    """Eight of twenty on a line hidden, four of them as one block; the other four are random."""
    line = torch.arange(20.0)[None, None, :, None].expand(1, 1, 20, 3)
    block = MaskingConfig(kind=MaskKind.BLOCK, ratio=0.4, block_share=0.2, masks_per_view=50)
    assert block.blocks(20) == (1, 4)
    hidden = draw_masks(line, block, random(1))[0, 0]
    assert (hidden.sum(-1) == 8).all()
    run = hidden.to(torch.int8).unfold(-1, 4, 1).sum(-1)  # (M, 17), hidden ones of 4 in a row
    assert (run == 4).any(-1).all()


def test_block_masking_has_the_authors_number_of_blocks() -> None:
    """The slack is subtracted: round(64 · (0.7 - 0.1) / 6) = 6 blocks of 6; the visible ones add it."""
    assert MaskingConfig(kind=MaskKind.BLOCK).blocks(64) == (6, 6)
    assert MaskingConfig().blocks(64) == (4, 6)


def test_indices_split_the_patches() -> None:
    mask = torch.tensor([[True, False, True, False], [False, False, True, True]])
    masks = Masks.from_bool(mask, 2)
    assert masks.hidden_index.tolist() == [[0, 2], [2, 3]]
    assert masks.visible_index.tolist() == [[1, 3], [0, 1]]


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1])
def test_a_ratio_that_hides_nothing_or_all_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match=r"masking\.ratio must lie strictly between 0 and 1"):
        MaskingConfig(ratio=ratio)


def test_too_few_patches_for_the_ratio_is_refused() -> None:
    with pytest.raises(ConfigError, match="hides 0 of 2 patches"):
        MaskingConfig(ratio=0.1).hidden_patches(2)


@pytest.mark.parametrize("patches", [16, 64])
def test_masks_by_hand(patches: int) -> None:
    """Blocks laid one after the other from the drawn seeds, then the flips the drawn numbers ask for."""
    config = MaskingConfig(masks_per_view=2, block_share=0.2)
    places, draws = centers(2, 1, patches), random(2)
    found = draw_masks(places, config, draws)
    count, size = config.blocks(patches)
    hidden = config.hidden_patches(patches)
    seed_numbers = draws.uniform("mask.seeds", (1, 2, patches))
    flip_numbers = draws.uniform("mask.flip", (1, 2, patches))
    for row in range(2):
        for mask in range(2):
            seeds = seed_numbers[row, 0, mask].argsort(descending=True)[:count]
            visible: set[int] = set()
            for seed in seeds.tolist():
                gaps = (places[row, 0] - places[row, 0, seed]).norm(dim=-1)
                visible |= set(gaps.argsort()[:size].tolist())
            # Hidden first are those outside the blocks; within a side, those with the larger number.
            order = sorted(
                range(patches),
                key=lambda p: (p not in visible, float(flip_numbers[row, 0, mask, p])),
                reverse=True,
            )
            assert set(found[row, 0, mask].nonzero().flatten().tolist()) == set(order[:hidden])
