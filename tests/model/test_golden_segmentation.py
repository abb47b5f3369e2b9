"""Part segmentation against an independent implementation, and its shortcuts against the obvious way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from pointdistill.engine.weights.published import to_our_names
from pointdistill.errors import ConfigError
from pointdistill.model.config import EncoderConfig
from pointdistill.model.encoder import Encoder
from pointdistill.model.patches import Patches, cut_patches, to_unit_sphere
from pointdistill.model.segmenter import Segmenter, SegmenterConfig, interpolate

TINY = EncoderConfig(
    width=48,
    depth=3,
    heads=3,
    stage_one=(16, 24),
    stage_two=(32,),
    points=256,
    patches=16,
    patch_points=8,
)
CONFIG = SegmenterConfig(
    layers=(1, 2, 3), point_widths=(40, 40), category_width=12, head_widths=(32, 24), dropout=0.0
)


class GoldenSegmenter:
    """The segmenter with the stored weights, its input, and what it must say."""

    def __init__(self, folder: Path) -> None:
        self.expected: dict[str, float] = json.loads((folder / "segmentation.json").read_text())
        tensors = load_file(folder / "segmentation.safetensors")
        self.truth = tensors["input.point_labels"]
        self.category = tensors["input.cloud_labels"]
        self.points = to_unit_sphere(tensors["input.points"])
        self.patches = cut_patches(
            self.points, tensors["input.centers_idx"], tensors["input.patches_idx"]
        )
        self.logits = {mode: tensors[f"output.{mode}_logits"] for mode in ("train", "eval")}
        prefix = "weights."
        weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        self.segmenter = Segmenter(Encoder(TINY), CONFIG)
        self.segmenter.load_state_dict(to_our_names(weights))

    def __call__(self, rows: slice = slice(None)) -> Tensor:
        cut = Patches(self.patches.centers[rows], self.patches.offsets[rows])
        return self.segmenter(self.points[rows], cut, self.category[rows])


@pytest.fixture
def case(golden_dir: Path) -> GoldenSegmenter:
    return GoldenSegmenter(golden_dir)


def test_evaluation_logits(case: GoldenSegmenter) -> None:
    case.segmenter.eval()
    torch.testing.assert_close(case(), case.logits["eval"], rtol=0, atol=1e-5)


def test_training_logits_loss_and_gradients(case: GoldenSegmenter) -> None:
    """Logits to 1e-5 of the largest: in float64 the stored ones are themselves 1.04e-5 off, absolutely.

    BatchNorm divides small spreads (variance 0.007 around means of 2) by themselves, and rounding with them.
    """
    logits, stored = case(), case.logits["train"]
    assert (logits - stored).abs().max() <= 1e-5 * stored.abs().max()
    loss = cross_entropy(logits.flatten(0, 1), case.truth.flatten())
    assert loss.item() == pytest.approx(case.expected["loss"], rel=1e-6)
    loss.backward()
    gradients = [parameter.grad for parameter in case.segmenter.parameters()]
    assert all(gradient is not None for gradient in gradients)
    norm = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
    assert norm.item() == pytest.approx(case.expected["grad_total_norm"], rel=1e-4)


@pytest.mark.parametrize("size", [1, 2])
def test_evaluation_does_not_depend_on_the_batch(case: GoldenSegmenter, size: int) -> None:
    case.segmenter.eval()
    parts = [case(slice(first, first + size)) for first in range(0, len(case.points), size)]
    torch.testing.assert_close(torch.cat(parts), case(), rtol=0, atol=1e-6)


def test_a_single_shape_can_be_trained_on(case: GoldenSegmenter) -> None:
    """Its points are the rows that BatchNorm averages over."""
    logits = case(slice(0, 1))
    assert logits.shape == (1, 256, 50)
    assert logits.isfinite().all()


def test_an_encoder_without_cls_token() -> None:
    encoder = Encoder(
        EncoderConfig(width=8, depth=2, heads=2, stage_one=(4, 4), stage_two=(4,), cls_token=False)
    )
    segmenter = Segmenter(encoder, SegmenterConfig(parts=5, layers=(1, 2))).eval()
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(2, 20, 3, generator=draw)
    patches = Patches(points[:, :4], torch.randn(2, 4, 6, 3, generator=draw))
    assert segmenter(points, patches, torch.tensor([0, 15])).shape == (2, 20, 5)


def test_interpolation_by_hand() -> None:
    """Three centres on a line at 0, 1 and 3, a fourth far away; squared distances of 2 are 4, 1, 1."""
    centers = torch.zeros(1, 4, 3)
    centers[0, :, 0] = torch.tensor([0.0, 1.0, 3.0, 100.0])
    points = torch.zeros(1, 2, 3)
    points[0, :, 0] = torch.tensor([2.0, 3.0])
    values = torch.tensor([[[9.0], [18.0], [27.0], [1e6]]])
    between, on_center = interpolate(values, centers, points)[0, :, 0].tolist()
    assert between == pytest.approx((9 / 4 + 18 + 27) / (1 / 4 + 1 + 1), rel=1e-5)
    assert on_center == pytest.approx(27.0, rel=1e-5)


def test_fewer_centers_than_neighbours() -> None:
    values, centers = torch.tensor([[[5.0]]]), torch.zeros(1, 1, 3)
    assert interpolate(values, centers, torch.ones(1, 2, 3)).tolist() == [[[5.0], [5.0]]]


def test_layers_that_the_encoder_lacks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"layers \(4, 8, 12\) go beyond the encoder's 3 blocks"):
        Segmenter(Encoder(TINY), SegmenterConfig())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"layers": (0, 3)}, "counted from 1, got"), ({"dropout": 1.0}, r"must lie in \[0, 1\)")],
)
def test_impossible_settings_are_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SegmenterConfig(**wrong)
