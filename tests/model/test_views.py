"""Crops, augmentation and random numbers: definitions, distributions and determinism."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pointdistill.model.config import AugmentConfig, CropConfig
from pointdistill.model.random import _GOLDEN, KeyedRandom, _mix, sample_keys, stream_number
from pointdistill.model.views import (
    augment_points,
    box_distance,
    crop_points,
    draw_boxes,
    draw_views,
    random_rotations,
)

CROP = CropConfig(count=3, share_low=0.1, share_high=0.5, points=24, patches=4, patch_points=6)


def keyed(indices: list[int], epoch: int = 0) -> KeyedRandom:
    return KeyedRandom(sample_keys(seed=1, epoch=epoch, index=torch.tensor(indices)))


def clouds(rows: int, size: int) -> torch.Tensor:
    return torch.randn(rows, size, 3, generator=torch.Generator().manual_seed(0))


def test_bits_are_the_hash_of_a_counter_on_each_axis() -> None:
    keys = sample_keys(seed=2**63 - 1, epoch=5, index=torch.arange(8))
    mixed = _mix(keys + stream_number("/a"))
    for size in (3, 50):
        mixed = _mix(mixed[..., None] + torch.arange(1, size + 1) * _GOLDEN)
    assert torch.equal(KeyedRandom(keys).bits("a", (3, 50)), mixed)


def test_no_product_of_counters_alone_needs_64_bits() -> None:
    """PyTorch's compiler takes it for an index of 32 bits, which Triton refuses: no views would be compiled."""
    draw = make_fx(lambda keys: KeyedRandom(keys).bits("a", (3, 50)))
    nodes = draw(torch.arange(8)).graph.nodes
    counters = {node for node in nodes if node.target is torch.ops.aten.arange.start}
    products = [node for node in nodes if node.target is torch.ops.aten.mul.Tensor]
    assert len(counters) == 2
    assert len(products) > 6
    assert not any(counters.intersection(node.all_input_nodes) for node in products)


def test_views_of_a_shape_do_not_depend_on_its_batch() -> None:
    """Shape 7 alone, and between two others under heavier padding: the same views."""
    shape = clouds(1, 100)
    alone, _ = draw_views(shape, torch.tensor([100]), CROP, keyed([7]))
    padded = torch.cat([shape, torch.full((1, 50, 3), 9.0)], dim=1)
    batch = torch.cat([clouds(1, 150), padded, clouds(1, 150)])
    among, _ = draw_views(batch, torch.tensor([150, 100, 150]), CROP, keyed([3, 7, 5]))
    for view in ("centers", "offsets"):
        torch.testing.assert_close(
            getattr(alone, view)[0], getattr(among, view)[1], rtol=0, atol=1e-6
        )


def test_another_epoch_gives_other_views() -> None:
    points, counts = clouds(1, 100), torch.tensor([100])
    first, _ = draw_views(points, counts, CROP, keyed([7], epoch=0))
    second, _ = draw_views(points, counts, CROP, keyed([7], epoch=1))
    assert not torch.equal(first.centers, second.centers)


def test_a_crop_is_a_subset_of_the_points_nearest_in_the_box_measure() -> None:
    """Every chosen point belongs to the stored ones, none twice, none farther than the crop's share."""
    points, counts = clouds(2, 200), torch.tensor([200, 200])
    random = keyed([0, 1])
    cropped = crop_points(points, counts, CROP, random)
    distance = box_distance(points, *draw_boxes(points, counts, CROP.count, random))
    share = random.uniform("share", (CROP.count,), low=CROP.share_low, high=CROP.share_high)
    for row in range(2):
        for crop in range(CROP.count):
            keep = max(CROP.points, int(share[row, crop] * 200))
            allowed = set(distance[row, crop].argsort()[:keep].tolist())
            match = (cropped[row, crop][:, None] == points[row]).all(-1)
            chosen = match.int().argmax(1).tolist()
            assert match.any(1).all()
            assert len(set(chosen)) == CROP.points
            assert set(chosen) <= allowed


def test_a_small_shape_gives_all_its_points_then_repeats() -> None:
    points = clouds(1, 40)
    crop = CropConfig(count=1, points=100, patches=4, patch_points=6)
    cropped = crop_points(points[:, :33], torch.tensor([33]), crop, keyed([0]))[0, 0]
    padded = crop_points(points, torch.tensor([33]), crop, keyed([0]))[0, 0]
    for view in (cropped, padded):
        match = (view[:, None] == points[0, :33]).all(-1)
        assert match.sum(1).tolist() == [1] * 100
        assert set(match.sum(0).tolist()) == {3, 4}  # 100 = 3 · 33 + 1


def test_each_point_is_equally_likely_to_be_drawn() -> None:
    """All 64 points kept, 16 drawn, 4,000 times: each about 1,000 times, within five deviations (27)."""
    crop = CropConfig(count=4000, share_low=1.0, points=16, patches=2, patch_points=2)
    points = torch.arange(64.0)[None, :, None].expand(1, 64, 3)
    drawn = crop_points(points, torch.tensor([64]), crop, keyed([0]))[..., 0]
    counts = drawn.flatten().long().bincount(minlength=64)
    assert (counts - 1000).abs().max() < 140


def test_rotations_are_proper_and_uniform() -> None:
    matrices = random_rotations(keyed([0]).uniform("r", (20000, 3)))[0]
    identity = torch.eye(3).expand(20000, 3, 3)
    torch.testing.assert_close(matrices @ matrices.transpose(1, 2), identity, atol=1e-5, rtol=0)
    assert torch.linalg.det(matrices).min() > 0.999
    # Uniform: a fixed axis is sent anywhere on the sphere with mean 0 and second moments 1/3.
    images = matrices[:, :, 2]
    assert images.mean(0).abs().max() < 0.02
    assert (images.square().mean(0) - 1 / 3).abs().max() < 0.01


def test_augmentation_turns_about_z_and_scales_each_axis() -> None:
    """A rotation alone keeps heights and lengths; a scaling alone multiplies the axes by U(0.8, 1.2)."""
    views = clouds(1, 50)[:, None].expand(1, 200, 50, 3)
    turned = augment_points(views, AugmentConfig(scale_low=1.0, scale_high=1.0), keyed([0]))
    torch.testing.assert_close(turned[..., 2], views[..., 2])
    torch.testing.assert_close(turned.norm(dim=-1), views.norm(dim=-1))
    scaled = augment_points(views, AugmentConfig(rotate_z=False), keyed([0]))
    ratio = (scaled / views)[0, :, 0]
    assert 0.8 <= ratio.min() < 0.82
    assert 1.18 < ratio.max() <= 1.2 + 1e-6
    assert ratio.mean().item() == pytest.approx(1.0, abs=0.02)


def test_a_share_of_the_crops_is_tilted() -> None:
    """The others are what they are without tilts; a tilted z axis points anywhere on the sphere."""
    views = torch.tensor([0.0, 0.0, 1.0]).expand(1, 4000, 2, 3)
    same = {"scale_low": 1.0, "scale_high": 1.0}
    tilted = augment_points(views, AugmentConfig(tilt_share=0.25, **same), keyed([0]))[0, :, 0]
    upright = (tilted[:, 2] - 1.0).abs() < 1e-6
    assert upright.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert tilted[~upright].mean(0).abs().max() < 0.06
    assert (tilted[~upright].square().mean(0) - 1 / 3).abs().max() < 0.04
    torch.testing.assert_close(tilted.norm(dim=-1), torch.ones(4000))
    plain = augment_points(clouds(1, 9)[:, None], AugmentConfig(), keyed([0]))
    assert plain.equal(
        augment_points(clouds(1, 9)[:, None], AugmentConfig(tilt_share=1e-9), keyed([0]))
    )


def test_thinned_crops_repeat_a_random_part_of_their_points() -> None:
    """Between a quarter and all of 40 points stay, from anywhere in the order; nothing new appears."""
    augment = AugmentConfig(rotate_z=False, scale_low=1.0, scale_high=1.0, density_low=0.25)
    views = torch.arange(40.0)[:, None].expand(1, 300, 40, 3)
    thinned = augment_points(views, augment, keyed([0]))[0, :, :, 0]
    kept = torch.tensor([len(row.unique()) for row in thinned])
    assert (kept.min(), kept.max()) == (11, 40)
    assert kept.float().mean().item() == pytest.approx(0.5 + 0.625 * 40, abs=2.0)
    assert thinned.unique().equal(torch.arange(40.0))
    # As often as another: each point stays in a share of the views, whatever its place.
    present = torch.stack([(thinned == place).any(1).float().mean() for place in range(40)])
    assert present.max() - present.min() < 0.2
    # Every point that stays is there once or more, and no more often than the others by two.
    counts = torch.stack([(thinned[0] == value).sum() for value in thinned[0].unique()])
    assert counts.max() - counts.min() <= 1


def test_views_are_normalised() -> None:
    _, views = draw_views(clouds(2, 100), torch.tensor([100, 100]), CROP, keyed([0, 1]))
    assert views.mean(-2).abs().max() < 1e-5
    torch.testing.assert_close(views.norm(dim=-1).amax(-1), torch.ones(2, CROP.count))


def test_uniform_numbers_are_uniform_and_streams_differ() -> None:
    random = keyed(list(range(100)))
    first, second = random.uniform("a", (1000,)), random.uniform("b", (1000,))
    histogram = torch.histc(first, 20, min=0.0, max=1.0)
    assert (histogram - 5000).abs().max() < 5 * 5000**0.5
    assert torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].abs() < 0.02
    neighbours = torch.corrcoef(first[:2])[0, 1]
    assert neighbours.abs() < 0.15


def test_integers_cover_their_range_evenly() -> None:
    draws = keyed([0]).integers("i", torch.full((1, 7000), 7))
    counts = draws.flatten().bincount(minlength=7)
    assert len(counts) == 7
    assert (counts - 1000).abs().max() < 5 * 1000**0.5


def test_box_distance_by_hand() -> None:
    """Point by point and axis by axis: the largest of |scale · (rotated offset from the centre)|."""
    points, counts = clouds(2, 30), torch.tensor([30, 25])
    random = keyed([4, 5])
    found = box_distance(points, *draw_boxes(points, counts, 2, random))
    aspect = random.uniform("aspect", (2,), low=0.33, high=3.0)
    order = random.uniform("axes", (2, 3)).argsort(-1)
    turn = random_rotations(random.uniform("rotation", (2, 3)))
    center = random.integers("center", counts[:, None].expand(-1, 2))
    assert (center < counts[:, None]).all()
    for shape in range(2):
        for crop in range(2):
            a = float(aspect[shape, crop])
            three = (1.0, a**-0.5, a**0.5)
            scales = [three[int(place)] for place in order[shape, crop]]
            for number in range(30):
                offset = points[shape, number] - points[shape, int(center[shape, crop])]
                along = [float(turn[shape, crop, axis] @ offset) for axis in range(3)]
                by_hand = max(abs(s * x) for s, x in zip(scales, along, strict=True))
                assert found[shape, crop, number].item() == pytest.approx(by_hand, abs=1e-5)


def test_aspect_ratios_are_uniform_in_their_range() -> None:
    aspect = keyed([0]).uniform("aspect", (5000,), low=0.33, high=3.0)
    assert 0.33 <= aspect.min() < 0.34
    assert 2.99 < aspect.max() < 3.0
    assert aspect.mean().item() == pytest.approx(1.665, abs=0.05)  # (0.33 + 3) / 2
