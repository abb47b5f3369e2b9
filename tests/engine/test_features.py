"""Clouds to features: subsets, augmentation, pooling; and the geometric baseline's features."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointdistill.engine.features.extract import (
    extract_features,
    pool_moments,
    pool_tokens,
    unit_features,
)
from pointdistill.engine.features.feature_extractors import (
    GEOMETRY_WIDTH,
    EncoderFeatures,
    GeometricFeatures,
    geometric_features,
)
from pointdistill.engine.features.inputs import (
    ProtocolInput,
    cloud_batches,
    protocol_input,
    published_input,
    random_start,
    subsample,
    voting_input,
)
from pointdistill.errors import ConfigError, DataError
from pointdistill.model.config import AugmentConfig, EncoderConfig
from pointdistill.model.encoder import Encoder, EncoderOutput
from pointdistill.model.initialize import initialize
from pointdistill.model.patches import to_unit_sphere
from pointdistill.model.random import KeyedRandom, sample_keys

CPU = torch.device("cpu")
CONFIG = EncoderConfig(
    width=16,
    depth=1,
    heads=2,
    stage_one=(8, 16),
    stage_two=(16,),
    points=48,
    patches=6,
    patch_points=8,
)
INPUTS = ProtocolInput(
    points=48,
    patches=6,
    subsampling="uniform",
    augment=AugmentConfig(rotate_z=True, scale_low=0.9, scale_high=1.1),
)


def make_encoder(*, cls_token: bool = True) -> Encoder:
    encoder = Encoder(replace(CONFIG, cls_token=cls_token))
    initialize(encoder, generator=torch.Generator().manual_seed(0))
    return encoder


def make_clouds(n: int = 10, points: int = 80, *, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, points, 3)).astype(np.float32)


def draw(points: NDArray[np.float32], **changes: object) -> Tensor:
    """All batches of ``cloud_batches`` in one tensor."""
    options: dict[str, object] = {"seed": 0, "epoch": None, "batch_size": 4, "device": CPU}
    inputs = changes.pop("inputs", INPUTS)
    batches = cloud_batches(points, inputs, **{**options, **changes})  # type: ignore[arg-type]
    return torch.cat([clouds for _, clouds in batches])


def random_of(n: int, *, seed: int = 0) -> KeyedRandom:
    return KeyedRandom(sample_keys(seed=seed, epoch=0, index=torch.arange(n)))


def test_features_do_not_depend_on_the_batch_size() -> None:
    encoder, clouds = make_encoder(), make_clouds()
    whole = extract_features(encoder, clouds, inputs=INPUTS, seed=3, epoch=1, batch_size=10)
    for batch_size in (1, 3):
        parts = extract_features(
            encoder, clouds, inputs=INPUTS, seed=3, epoch=1, batch_size=batch_size
        )
        torch.testing.assert_close(parts, whole, rtol=0.0, atol=1e-5)


def test_features_are_the_encoders_tokens_pooled() -> None:
    """All points of each cloud are used, so the encoder can be called by hand."""
    encoder, clouds = make_encoder(), make_clouds(points=48)
    features = extract_features(encoder, clouds, inputs=INPUTS, seed=0)
    with torch.no_grad():
        output = encoder(torch.from_numpy(clouds), patches=6)
    cls, mean, largest = features.split(16, dim=1)
    torch.testing.assert_close(cls, output.cls)
    torch.testing.assert_close(mean, output.patches.mean(dim=1))
    torch.testing.assert_close(largest, output.patches.max(dim=1).values)


def test_encoder_keeps_its_mode_and_counts_are_reported() -> None:
    encoder, counted = make_encoder(), list[int]()
    extract_features(
        encoder.train(),
        make_clouds(),
        inputs=INPUTS,
        seed=0,
        batch_size=4,
        progress=counted.append,
    )
    assert encoder.training
    assert counted == [4, 4, 2]


def test_pooled_tokens() -> None:
    """One cloud of two patches, D = 1: CLS 3, mean 4, maximum 5; the vector (3, 4) has length 5."""
    patches = torch.tensor([[[3.0], [5.0]]])
    encoder = Encoder(replace(CONFIG, width=1, heads=1))
    pooled = pool_tokens(EncoderOutput(torch.tensor([[3.0]]), patches, torch.zeros(1, 2, 3)))
    assert pooled.tolist() == [[3.0, 4.0, 5.0]]
    assert unit_features(pooled, encoder)[0].tolist() == pytest.approx([0.6, 0.8])
    pooled = pool_tokens(EncoderOutput(None, patches, torch.zeros(1, 2, 3)))
    assert pooled.tolist() == [[4.0, 5.0]]
    assert unit_features(pooled, encoder).tolist() == [[1.0]]


def test_moments() -> None:
    """Four patches, D = 2: one feature is 0, 0, 0, 4 (mean 1, variance 3, third moment 6), the other always 7."""
    patches = torch.tensor([[[0.0, 7.0], [0.0, 7.0], [0.0, 7.0], [4.0, 7.0]]])
    cls = torch.tensor([[3.0, 5.0]])
    moments = [1.0, 7.0, math.sqrt(3), 0.0, 2.0, 0.0]
    found = pool_moments(EncoderOutput(cls, patches, torch.zeros(1, 4, 3)))
    assert found[0].tolist() == pytest.approx([3.0, 5.0, *moments])
    found = pool_moments(EncoderOutput(None, -patches, torch.zeros(1, 4, 3)))
    assert found[0].tolist() == pytest.approx([-1.0, -7.0, math.sqrt(3), 0.0, -2.0, 0.0])
    found = pool_moments(EncoderOutput(None, patches[:, 3:], torch.zeros(1, 1, 3)))
    assert found.tolist() == [[4.0, 7.0, 0.0, 0.0, 0.0, 0.0]], "a single patch"


@pytest.mark.parametrize(("cls_token", "whole", "unit"), [(True, 48, 32), (False, 32, 16)])
def test_widths_of_an_encoders_features(cls_token: bool, whole: int, unit: int) -> None:
    extractor = EncoderFeatures(
        name="tiny", encoder=make_encoder(cls_token=cls_token), inputs=INPUTS
    )
    features = extractor(make_clouds(), seed=0, epoch=None, count=lambda _: None)
    assert features.shape == (10, whole)
    assert extractor.unit(features).shape == (10, unit)
    assert extractor.unit(features).norm(dim=1).tolist() == pytest.approx([1.0] * 10)


def test_no_clouds_is_an_error() -> None:
    with pytest.raises(DataError, match="no clouds"):
        extract_features(make_encoder(), make_clouds(0), inputs=INPUTS, seed=0)


def test_a_clouds_subset_depends_on_the_seed_and_its_index_alone() -> None:
    """Cloud 2 gives the same points whatever the batches and whichever clouds lie around it."""
    clouds = make_clouds()
    expected = draw(clouds)[2]
    others = make_clouds(seed=1)
    others[2] = clouds[2]
    assert torch.equal(draw(clouds, batch_size=1)[2], expected)
    assert torch.equal(draw(others[:3], batch_size=2)[2], expected)
    assert not torch.equal(draw(clouds, seed=1)[2], expected)


def test_equal_clouds_at_different_places_get_different_subsets() -> None:
    clouds = np.repeat(make_clouds(1), 2, axis=0)
    first, second = draw(clouds)
    assert not torch.equal(first, second)


def test_uniform_subsets_are_distinct_points_of_the_cloud() -> None:
    points = torch.arange(50.0)[None, :, None].expand(40, 50, 3)
    chosen = subsample(points, 20, "uniform", random_of(40))[..., 0]
    assert all(len(set(row)) == 20 for row in chosen.tolist())
    in_random_order = random_of(40).bits("subset", (50,)).argsort(dim=1)
    assert torch.equal(chosen.long(), in_random_order[:, :20]), "figures depend on the very points"
    # 800 draws out of 50 points: every point is met, near 16 times each.
    counts = torch.bincount(chosen.flatten().long(), minlength=50)
    assert counts.min() >= 6
    assert counts.max() <= 28


def test_farthest_subset_of_a_line_takes_its_ends() -> None:
    """Three of eleven points in a row: whatever the first, both ends or an end and the middle."""
    line = torch.stack([torch.arange(11.0), torch.zeros(11), torch.zeros(11)], dim=1)
    chosen = subsample(line.expand(30, 11, 3), 3, "farthest", random_of(30))[..., 0]
    for start, second, third in chosen.tolist():
        assert second == (0.0 if start > 5 else 10.0 if start < 5 else second)
        assert {second, third} & {0.0, 10.0}
    assert len(set(chosen[:, 0].tolist())) > 5


@pytest.mark.parametrize("how", ["uniform", "farthest"])
def test_a_small_cloud_comes_back_as_it_is(how: str) -> None:
    points = torch.randn(2, 20, 3)
    assert subsample(points, 20, how, random_of(2)) is points  # type: ignore[arg-type]


def test_only_training_epochs_are_augmented_and_each_anew() -> None:
    clouds = make_clouds(points=48)
    assert torch.equal(draw(clouds), torch.from_numpy(clouds))
    first, second = draw(clouds, epoch=0), draw(clouds, epoch=1)
    assert not torch.equal(first, draw(clouds))
    assert not torch.equal(first, second)
    assert torch.equal(first, draw(clouds, epoch=0, batch_size=7))


def test_augmentation_of_scanobjectnn_turns_about_z_and_stretches_by_a_tenth() -> None:
    """Heights change by their factor alone; distances from the axis by at most a tenth."""
    clouds = make_clouds(64, 48)
    inputs = replace(INPUTS, augment=published_input("ScanObjectNN").augment)
    augmented = draw(clouds, epoch=0, inputs=inputs)
    plain = torch.from_numpy(clouds)
    heights = augmented[..., 2] / plain[..., 2]
    torch.testing.assert_close(heights, heights[:, :1].expand_as(heights))
    assert 0.9 <= heights.min() < 0.93
    assert 1.07 < heights.max() <= 1.1
    radii = augmented[..., :2].norm(dim=-1) / plain[..., :2].norm(dim=-1)
    assert radii.min() >= 0.9 - 1e-5
    assert radii.max() <= 1.1 + 1e-5
    turned = torch.atan2(augmented[:, 0, 1], augmented[:, 0, 0])
    assert turned.min() < -2.0
    assert turned.max() > 2.0


def test_augmentation_of_modelnet40_only_stretches() -> None:
    clouds = make_clouds(64, 48)
    inputs = replace(INPUTS, augment=published_input("ModelNet40").augment)
    factors = draw(clouds, epoch=0, inputs=inputs) / torch.from_numpy(clouds)
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors))
    assert 0.6 <= factors.min() < 0.65
    assert 1.35 < factors.max() <= 1.4


def test_published_density_gets_the_published_input() -> None:
    assert protocol_input("ScanObjectNN", EncoderConfig()).points == 2048
    assert protocol_input("ScanObjectNN", EncoderConfig()).patches == 128
    modelnet = protocol_input("ModelNet40", EncoderConfig())
    assert (modelnet.points, modelnet.patches, modelnet.subsampling) == (1024, 64, "farthest")


def test_another_density_is_kept() -> None:
    inputs = protocol_input("ScanObjectNN", CONFIG)
    assert (inputs.points, inputs.patches, inputs.subsampling) == (48, 6, "uniform")
    assert inputs.augment == published_input("ScanObjectNN").augment


def test_unknown_benchmark_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no protocol for 'ModelNet10'.*ModelNet40"):
        protocol_input("ModelNet10", CONFIG)


def turned(points: Tensor, degrees: float) -> Tensor:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return points @ torch.tensor([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])


def test_geometry_ignores_turn_place_and_size() -> None:
    points = torch.randn(4, 300, 3, generator=torch.Generator().manual_seed(0))
    points = points * torch.tensor([1.0, 0.5, 2.0])
    plain = geometric_features(points, seed=0)
    moved = geometric_features(7.0 * turned(points, 40.0) + torch.tensor([1.0, -2.0, 3.0]), seed=0)
    # A point that rounding carries over the edge of a bin moves 1/300 from one share to the next.
    torch.testing.assert_close(moved, plain, rtol=0.0, atol=0.011)
    assert (moved - plain).abs().mean() < 1e-3


def test_geometry_sees_what_is_up() -> None:
    points = torch.randn(1, 300, 3, generator=torch.Generator().manual_seed(0))
    tall = points * torch.tensor([0.2, 0.2, 1.0])
    lying = tall[..., [2, 0, 1]]
    difference = geometric_features(tall, seed=0) - geometric_features(lying, seed=0)
    assert difference.abs().max() > 0.3


def test_geometry_of_two_poles() -> None:
    """Half of the points at the top, half at the bottom: known shares in known bins."""
    points = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]).repeat(50, 1)[None]
    numbers = geometric_features(points, seed=0)[0]
    assert numbers.shape == (GEOMETRY_WIDTH,)
    summary, shares = numbers[:11], numbers[11:]
    # Deviations along z, then x, y: 1, 0, 0; the longest axis is upright; extent along z is 1.
    assert summary[:3].tolist() == pytest.approx([0.0, 0.0, 1.0], abs=1e-6)
    assert summary[6] == pytest.approx(1.0)
    assert summary[9] == pytest.approx(1.0)
    assert summary[10] == pytest.approx(1.0)
    heights, from_axis, from_center, gaps = shares[:42].split([10, 8, 8, 16])
    assert heights.tolist() == pytest.approx([0.5] + [0.0] * 8 + [0.5])
    assert from_axis.tolist() == pytest.approx([1.0] + [0.0] * 7)
    assert from_center.tolist() == pytest.approx([0.0] * 7 + [1.0], abs=1e-6)
    assert gaps[0] + gaps[15] == pytest.approx(1.0, abs=1e-5)
    assert gaps[0] == pytest.approx(0.5, abs=0.05)
    assert shares[42:].sum() == pytest.approx(1.0, abs=1e-5)


def test_geometry_extractor_gives_both_forms() -> None:
    extractor = GeometricFeatures(inputs=INPUTS)
    features = extractor(make_clouds(), seed=0, epoch=None, count=lambda _: None)
    assert features.shape == (10, GEOMETRY_WIDTH)
    assert features.isfinite().all()
    torch.testing.assert_close(extractor.unit(features).norm(dim=1), torch.ones(10))


def test_patches_of_training_clouds_start_at_a_random_point() -> None:
    """By seed, epoch and cloud; the points and their augmentation stay as they are. Test clouds: the outermost."""
    encoder, clouds = make_encoder(), make_clouds(6)

    def of(*, training: bool, epoch: int | None = 0, seed: int = 0) -> torch.Tensor:
        return extract_features(
            encoder, clouds, inputs=INPUTS, seed=seed, epoch=epoch, training=training, batch_size=4
        )

    assert torch.equal(of(training=True), of(training=True))
    assert not torch.allclose(of(training=True), of(training=False))
    assert torch.equal(of(training=True, epoch=None), of(training=False, epoch=None))
    index = torch.arange(200)
    many = torch.zeros(200, 48, 3)
    first = random_start(many, index, seed=0, epoch=0)
    assert int(first.min()) < 5
    assert 42 < int(first.max()) < 48
    assert not torch.equal(first, random_start(many, index, seed=0, epoch=1))
    assert not torch.equal(first, random_start(many, index, seed=1, epoch=0))
    assert torch.equal(first[50:60], random_start(many[:10], index[50:60], seed=0, epoch=0))


def test_votes_on_test_clouds_start_at_the_outermost_point() -> None:
    features = EncoderFeatures(name="tiny", encoder=make_encoder(), inputs=INPUTS)
    clouds = make_clouds(6)
    seen = features.voting()(clouds, seed=0, epoch=0, count=lambda _: None)
    inputs = voting_input(INPUTS)
    expected = extract_features(features.encoder, clouds, inputs=inputs, seed=0, epoch=0)
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("points", [48, 200])
def test_an_encoder_starts_where_it_is_told(points: int) -> None:
    """The first centre is that point, also of a cloud that is reduced first."""
    clouds = torch.from_numpy(make_clouds(3, points))
    start = torch.tensor([5, 0, 40])
    centers = make_encoder().eval()(clouds, start=start).centers[:, 0]
    unit = to_unit_sphere(clouds)
    wanted = unit[torch.arange(3), start]
    if points == 48:
        assert torch.allclose(centers, wanted, atol=1e-6)
    else:  # its unit sphere is that of the reduced cloud
        assert not torch.allclose(centers, make_encoder().eval()(clouds).centers[:, 0])
