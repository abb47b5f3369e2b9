"""Farthest points, neighbours and patches: golden numbers, and slow versions anyone can believe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pointdistill.model.patches import (
    cut_patches,
    farthest_points,
    gather_points,
    nearest_points,
    patchify,
    to_unit_sphere,
)


@pytest.mark.parametrize("name", ["cloud0", "cloud1", "cloud2"])
def test_golden_patchify(golden_dir: Path, name: str) -> None:
    golden = load_file(golden_dir / "patchify.safetensors")
    points = golden[f"{name}.points"][None]
    expected = golden[f"{name}.patches_idx"]
    count, members = expected.shape
    index = farthest_points(points, count, start=torch.tensor([points.shape[1] // 2]))
    assert index[0].tolist() == golden[f"{name}.centers_idx"].tolist()
    near = nearest_points(points, gather_points(points, index), members)[0]
    for ours, theirs in zip(near.tolist(), expected.tolist(), strict=True):
        assert set(ours) == set(theirs)


def farthest_points_by_definition(points: torch.Tensor, count: int, start: int) -> list[int]:
    """Always the point farthest from those chosen."""
    chosen = [start]
    while len(chosen) < count:
        gaps = [min(float((p - points[c]).square().sum()) for c in chosen) for p in points]
        chosen.append(gaps.index(max(gaps)))
    return chosen


@pytest.mark.parametrize("seed", range(3))
def test_farthest_points_match_the_definition(seed: int) -> None:
    points = torch.randn(2, 30, 3, generator=torch.Generator().manual_seed(seed))
    fast = farthest_points(points, 8, start=torch.tensor([0, 7]))
    assert fast[0].tolist() == farthest_points_by_definition(points[0], 8, 0)
    assert fast[1].tolist() == farthest_points_by_definition(points[1], 8, 7)


def test_farthest_points_of_a_line() -> None:
    """From the left end of 0, 1, …, 4: the right end, then the middle."""
    line = torch.tensor([[[float(x), 0.0, 0.0] for x in range(5)]])
    assert farthest_points(line, 3, start=torch.tensor([0])).tolist() == [[0, 4, 2]]


def test_more_farthest_points_than_points_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot choose 4 farthest points out of 3"):
        farthest_points(torch.zeros(1, 3, 3), 4, start=torch.tensor([0]))


def test_patches_hold_their_centre_and_offsets_lead_back_to_points() -> None:
    points = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    cut = patchify(points, patches=5, patch_points=4, start=torch.tensor([0, 1]))
    assert cut.centers.shape == (2, 5, 3)
    assert (cut.offsets.norm(dim=-1).amin(-1) == 0).all()
    restored = cut.centers[:, :, None] + cut.offsets
    gap = (restored.flatten(1, 2)[:, :, None] - points[:, None]).norm(dim=-1).amin(-1)
    assert gap.max() < 1e-6


def test_patches_from_given_indices() -> None:
    points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 2, 0]]])
    cut = cut_patches(points, torch.tensor([[1]]), torch.tensor([[[1, 2]]]))
    assert cut.centers.tolist() == [[[1.0, 0, 0]]]
    assert cut.offsets.tolist() == [[[[0.0, 0, 0], [-1, 2, 0]]]]


def test_unit_sphere() -> None:
    """Two points 4 apart around (3, 0, 0) become -1 and 1; a single repeated point stays finite."""
    cloud = torch.tensor([[1.0, 0, 0], [5, 0, 0]])
    assert to_unit_sphere(cloud).tolist() == [[-1.0, 0, 0], [1, 0, 0]]
    assert to_unit_sphere(torch.ones(4, 3)).tolist() == [[0.0, 0, 0]] * 4
