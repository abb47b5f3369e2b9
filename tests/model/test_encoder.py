"""The encoder: sizes, invariances, refusals."""

from __future__ import annotations

import pytest
import torch

from pointdistill.errors import ConfigError, DataError
from pointdistill.model.config import EncoderConfig
from pointdistill.model.encoder import Encoder, PatchEmbedding
from pointdistill.model.initialize import initialize
from tests.engine.conftest import micro_config


def micro_encoder() -> Encoder:
    encoder = Encoder(micro_config().encoder)
    initialize(encoder, generator=torch.Generator().manual_seed(0))
    return encoder.eval()


def clouds(rows: int, size: int) -> torch.Tensor:
    return torch.randn(rows, size, 3, generator=torch.Generator().manual_seed(1))


def test_output_shapes_and_default_number_of_patches() -> None:
    """Pretrained on 48 points in 8 patches: 6 points a patch, so 96 points give 16."""
    out = micro_encoder()(clouds(2, 96))
    assert out.cls is not None
    assert out.cls.shape == (2, 12)
    assert out.patches.shape == (2, 16, 12)
    assert out.centers.shape == (2, 16, 3)


def test_features_do_not_depend_on_place_size_order_or_batch() -> None:
    encoder, points = micro_encoder(), clouds(3, 48)
    expected = encoder(points).cls
    moved = encoder(points * 7.0 + torch.tensor([100.0, -20.0, 3.0])).cls
    shuffled = encoder(points[:, torch.randperm(48)]).cls
    alone = torch.cat([encoder(points[i : i + 1]).cls for i in range(3)])
    for other in (moved, shuffled, alone):
        torch.testing.assert_close(other, expected, atol=1e-4, rtol=0)


def test_a_dense_cloud_is_thinned_to_the_density_of_pretraining() -> None:
    out = micro_encoder()(clouds(1, 1000))
    assert out.patches.shape == (1, 8, 12)


def test_the_patch_embedding_is_the_plain_formula() -> None:
    """Against the concatenation [features, their maximum] written out."""
    embedding = PatchEmbedding(10, stage_one=(6, 8), stage_two=(12,), bias=True)
    offsets = torch.randn(2, 5, 7, 3)
    local = embedding.stage_one(offsets)
    joined = torch.cat([local, local.amax(-2, keepdim=True).expand_as(local)], dim=-1)
    torch.testing.assert_close(embedding(offsets), embedding.stage_two(joined).amax(-2))


def test_a_recomputed_patch_embedding_has_the_same_bits_and_keeps_only_its_input() -> None:
    embedding = PatchEmbedding(10, stage_one=(6, 8), stage_two=(12,), bias=True)
    offsets, kept, gradients = torch.randn(2, 5, 7, 3), [], []
    for recompute in (False, True):
        embedding.recompute = recompute
        sizes: dict[int, int] = {}

        def keep(value: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[value.data_ptr()] = value.numel()
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            embedded = embedding(offsets)
        gradients.append(torch.autograd.grad(embedded.square().sum(), list(embedding.parameters())))
        kept.append(sum(sizes.values()))
    for plain, again in zip(*gradients, strict=True):
        assert torch.equal(plain, again)
    assert kept[1] <= offsets.numel()
    assert kept[0] > 4 * kept[1]


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (
            torch.zeros(48, 3),
            r"expected points of shape \(B, N, 3\), got \(48, 3\); add a batch axis",
        ),
        (torch.zeros(1, 5, 3), "expected at least 6 points per cloud"),
        (torch.full((1, 48, 3), torch.nan), "NaN or infinite coordinates"),
    ],
)
def test_bad_points_are_refused_in_one_line(points: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        micro_encoder()(points)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 50, "heads": 6}, "heads must divide encoder.width, got 6 heads, width 50"),
        ({"drop_path": 1.0}, r"drop_path must lie in \[0, 1\), got 1.0"),
        ({"patches": 2000}, r"must lie in 1 to points \(1024\), got 2000"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncoderConfig(**changes)
