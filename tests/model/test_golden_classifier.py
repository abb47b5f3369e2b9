"""Classifiers with each head, and how their tokens are pooled, against an independent implementation."""

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
from pointdistill.model.classifier import (
    Classifier,
    ClassifierConfig,
    NormedMlp,
    Pooling,
    dropout,
    initialize_uniform,
    ramp_stochastic_depth,
)
from pointdistill.model.config import EncoderConfig
from pointdistill.model.encoder import Encoder
from pointdistill.model.patches import Patches, cut_patches, to_unit_sphere

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
CASES = {
    "mlp": ClassifierConfig(classes=4, hidden=(20, 20), dropout=0.0),
    "linear": ClassifierConfig(classes=4, hidden=(), dropout=0.0),
    "fewshot": ClassifierConfig(classes=4, hidden=(20, 20), dropout=0.0, pooling=Pooling.MEAN_MAX),
}


class GoldenClassifier:
    """A case's classifier with the stored weights, its input, and what it must say."""

    def __init__(self, folder: Path, name: str) -> None:
        self.expected: dict[str, float] = json.loads((folder / "classifier.json").read_text())[name]
        tensors = load_file(folder / "classifier.safetensors")
        self.labels = tensors["input.labels"]
        self.patches = cut_patches(
            to_unit_sphere(tensors["input.points"]),
            tensors["input.centers_idx"],
            tensors["input.patches_idx"],
        )
        self.logits = {mode: tensors[f"{name}.output.{mode}_logits"] for mode in ("train", "eval")}
        prefix = f"{name}.weights."
        weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        self.classifier = Classifier(Encoder(TINY), CASES[name])
        self.classifier.load_state_dict(to_our_names(weights))


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, golden_dir: Path) -> GoldenClassifier:
    return GoldenClassifier(golden_dir, request.param)


def test_evaluation_logits(case: GoldenClassifier) -> None:
    logits = case.classifier.eval()(case.patches)
    torch.testing.assert_close(logits, case.logits["eval"], rtol=0, atol=1e-5)


def test_training_logits_loss_and_gradients(case: GoldenClassifier) -> None:
    logits = case.classifier.train()(case.patches)
    torch.testing.assert_close(logits, case.logits["train"], rtol=0, atol=1e-5)
    loss = cross_entropy(logits, case.labels, label_smoothing=0.2)
    assert loss.item() == pytest.approx(case.expected["loss"], rel=1e-6)
    loss.backward()
    gradients = [parameter.grad for parameter in case.classifier.parameters()]
    assert all(gradient is not None for gradient in gradients)
    norm = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
    assert norm.item() == pytest.approx(case.expected["grad_total_norm"], rel=1e-4)


def test_pooling_by_hand() -> None:
    """One cloud: CLS (6, 0), patches (1, 4) and (2, 2)."""
    cls, patches = torch.tensor([[6.0, 0.0]]), torch.tensor([[[1.0, 4.0], [2.0, 2.0]]])
    assert Pooling.CLS_MEAN_MAX(cls, patches).tolist() == [[6.0, 0.0, 1.5, 3.0, 2.0, 4.0]]
    assert Pooling.MEAN_MAX(cls, patches).tolist() == [[3.0, 2.0, 6.0, 4.0]]
    for pooling in Pooling:
        assert pooling(None, patches).tolist() == [[1.5, 3.0, 2.0, 4.0]]


@pytest.mark.parametrize("pooling", Pooling)
@pytest.mark.parametrize("cls_token", [True, False])
def test_pooled_features_have_the_width_that_the_head_expects(
    pooling: Pooling, cls_token: bool
) -> None:
    encoder = Encoder(
        EncoderConfig(
            width=8, depth=1, heads=2, stage_one=(4, 4), stage_two=(4,), cls_token=cls_token
        )
    )
    classifier = Classifier(encoder, ClassifierConfig(classes=3, pooling=pooling))
    features = classifier.features(Patches(torch.zeros(2, 5, 3), torch.zeros(2, 5, 6, 3)))
    assert features.shape == (2, pooling.width(encoder))


def test_stochastic_depth_rises_from_nothing_to_the_last_block() -> None:
    encoder = Encoder(TINY)
    ramp_stochastic_depth(encoder, 0.2)
    assert [block.depth.rate for block in encoder.transformer.blocks] == [0.0, 0.1, 0.2]


def test_dropout_keeps_the_mean_and_drops_its_share() -> None:
    """A quarter of the threes become 0, the others 3 / (1 - 0.25) = 4."""
    dropped = dropout(torch.full((10_000,), 3.0), 0.25, torch.Generator().manual_seed(0))
    assert dropped.unique().tolist() == [0.0, 4.0]
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_dropout_is_for_training_alone() -> None:
    head = NormedMlp(3, (40,), dropout=(0.5,)).eval()
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert (head(rows) == 0).sum() == 0
    dropped = head.train()(rows, torch.Generator().manual_seed(0)) == 0
    assert dropped.float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_leading_sizes_are_rows_of_one_batch() -> None:
    """A norm over (clouds, points) at once, not cloud by cloud."""
    mlp = NormedMlp(3, (5,), dropout=(0.0,), outputs=2).train()
    rows = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mlp(rows), mlp(rows.flatten(0, 1)).view(4, 6, 2))


def test_uniform_weights_reach_every_parameter_and_stay_in_their_bounds() -> None:
    def draw() -> list[Tensor]:
        head = NormedMlp(16, (64,), dropout=(0.5,), outputs=400, bias=True)
        for parameter in head.parameters():
            torch.nn.init.constant_(parameter, torch.nan)
        initialize_uniform(head, generator=torch.Generator().manual_seed(0))
        return list(head.parameters())

    first, last, bias = (p for p in draw() if p.shape not in ((64,),))
    assert first.abs().max() <= 1 / 4
    assert max(last.abs().max(), bias.abs().max()) <= 1 / 8
    assert last.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.02)
    assert not any(p.isnan().any() for p in draw())
    assert all(torch.equal(a, b) for a, b in zip(draw(), draw(), strict=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": 1}, "at least 2 classes, got 1"),
        ({"classes": 3, "dropout": 1.0}, r"classifier.dropout must lie in \[0, 1\), got 1.0"),
        ({"classes": 3, "drop_path": -0.1}, r"classifier.drop_path must lie in \[0, 1\)"),
    ],
)
def test_impossible_settings_are_named(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClassifierConfig(**wrong)
