"""Selection: NumPy's way and torch's choose the same, ties included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pointdistill.model import selection
from pointdistill.model.selection import kth_smallest, largest_index, smallest_indices


@pytest.fixture(params=["numpy", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(selection, "in_numpy", lambda _values: False)
    return str(request.param)


def draw(*shape: int, levels: int) -> Tensor:
    """Whole numbers below ``levels``, so that few levels mean many ties."""
    return torch.randint(levels, shape, generator=torch.Generator().manual_seed(levels))


@pytest.mark.parametrize("levels", [3, 1000])
def test_kth_smallest_is_the_kth_of_the_sorted_row(way: str, levels: int) -> None:
    values, k = draw(2, 3, 40, levels=levels).float(), torch.tensor([[1, 7, 40], [20, 2, 39]])
    wanted = values.sort(-1).values.gather(-1, (k - 1)[..., None])[..., 0]
    assert torch.equal(kth_smallest(values, k), wanted)


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
