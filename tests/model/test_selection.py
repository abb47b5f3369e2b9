"""Selection: NumPy's way and torch's choose the same, ties included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pointdistill.model import selection
from pointdistill.model.random import sample_keys
from pointdistill.model.selection import draw_nearest, largest_index, smallest_indices


@pytest.fixture(params=["numpy", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(selection, "in_numpy", lambda _values: False)
    return str(request.param)


def draw(*shape: int, levels: int) -> Tensor:
    """Whole numbers below ``levels``, so that few levels mean many ties."""
    return torch.randint(levels, shape, generator=torch.Generator().manual_seed(levels))


@pytest.mark.parametrize("levels", [3, 1000])
def test_a_subset_is_drawn_of_the_nearest(way: str, levels: int) -> None:
    """Distinct points, none farther than the last that is kept."""
    distance, keep = draw(2, 3, 40, levels=levels).float(), torch.tensor([[9, 15, 40], [20, 9, 39]])
    chosen = draw_nearest(distance, keep, draw(2, 3, levels=2**60), 9)
    assert chosen.shape == (2, 3, 9)
    assert all(len(set(row.tolist())) == 9 for row in chosen.flatten(0, 1))
    last = distance.sort(-1).values.gather(-1, (keep - 1)[..., None])
    assert (distance.gather(-1, chosen) <= last).all()


def test_both_ways_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few points and many, ties, and rows that keep fewer than are wanted."""
    distance = draw(4, 2, 50, levels=9).float()
    distance[:, :, 30:] = torch.inf
    keep = torch.tensor([[30, 12], [5, 30], [13, 2], [1, 30]])
    seeds = draw(4, 2, levels=2**60)
    fast = draw_nearest(distance, keep, seeds, 12)
    monkeypatch.setattr(selection, "in_numpy", lambda _values: False)
    slow = draw_nearest(distance, keep, seeds, 12)
    enough = (distance <= distance.sort(-1).values.gather(-1, (keep - 1)[..., None])).sum(-1) >= 12
    assert torch.equal(fast[enough], slow[enough])


def test_every_subset_is_as_likely(way: str) -> None:
    """Two of four points, 6,000 times: each of six pairs about 1,000 times (within five deviations)."""
    distance = torch.zeros(6000, 4)
    seeds = sample_keys(seed=0, epoch=0, index=torch.arange(6000))
    chosen = draw_nearest(distance, torch.full((6000,), 4), seeds, 2)
    counts = torch.bincount(4 * chosen[:, 0] + chosen[:, 1], minlength=16)
    assert counts[counts > 0].tolist() == pytest.approx([1000] * 6, abs=5 * 29)


def test_a_row_that_keeps_too_few_repeats_from_its_first(way: str) -> None:
    distance = torch.tensor([[0.0, 1.0, torch.inf, torch.inf]])
    chosen = draw_nearest(distance, torch.tensor([2]), torch.tensor([7]), 5)
    assert chosen.tolist() == [[0, 1, 0, 1, 0]]


@pytest.mark.parametrize("kind", [torch.int32, torch.float32])
@pytest.mark.parametrize("levels", [2, 5, 100_000])
@pytest.mark.parametrize("count", [1, 9, 40])
def test_smallest_indices_rise_and_prefer_the_lower_of_a_tie(
    way: str, kind: torch.dtype, levels: int, count: int
) -> None:
    values = draw(2, 3, 40, levels=levels).to(kind)
    wanted = values.sort(dim=-1, stable=True).indices[..., :count].sort(-1).values
    assert torch.equal(smallest_indices(values, count), wanted)


def test_largest_index_prefers_the_lower_of_a_tie(way: str) -> None:
    values = torch.tensor([[1.0, 5.0, 5.0], [2.0, 0.0, 2.0]])
    assert largest_index(values).tolist() == [1, 0]


def test_numbers_with_a_gradient_are_left_to_torch() -> None:
    """NumPy would refuse them."""
    values = torch.tensor([[1.0, 5.0, 2.0]], requires_grad=True)
    assert largest_index(values).item() == 1
    assert smallest_indices(values.detach(), 2).tolist() == [[0, 2]]
