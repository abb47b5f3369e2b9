"""Trained models on disk: what they say is what was trained, in any batch; what is damaged is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pointdistill
from pointdistill.engine.finetuning.classification import build_classifier, patchify_from_outermost
from pointdistill.engine.finetuning.models import (
    ClassifierSpec,
    InputSpec,
    SegmenterSpec,
    TrainedClassifier,
    TrainedSegmenter,
    load_model,
    read_description,
    save_weights,
    write_description,
)
from pointdistill.engine.finetuning.recipes import RECIPES
from pointdistill.engine.finetuning.segmentation import SegmenterRecipe, build_segmenter
from pointdistill.engine.weights.encoders import save_encoder
from pointdistill.errors import CheckpointError, DataError
from pointdistill.model.patches import to_unit_sphere
from tests.engine.labelled import CATEGORY_PARTS, CONFIG, INPUTS, make_encoder

INPUT = InputSpec(
    points=48,
    patches=6,
    subsampling="uniform",
    augment=INPUTS.augment,
    cloud_points=60,
    up="z",
)
CLASSES = ("needle", "disc", "ball")
PART_NAMES = ("shaft", "head", "back", "seat", "leg")


def classifier_folder(folder: Path) -> Path:
    model = build_classifier(make_encoder(), 3, RECIPES["few-shot"], seed=0)
    spec = ClassifierSpec(encoder=CONFIG, classifier=model.config, classes=CLASSES, input=INPUT)
    save_weights(folder, model)
    write_description(folder, spec, {"sources": []})
    return folder


def segmenter_folder(folder: Path) -> Path:
    model = build_segmenter(make_encoder(), CATEGORY_PARTS, SegmenterRecipe(), seed=0)
    spec = SegmenterSpec(
        encoder=CONFIG,
        segmenter=model.config,
        categories=("stick", "chair"),
        category_parts=CATEGORY_PARTS,
        part_names=PART_NAMES,
        input=INPUT,
    )
    save_weights(folder, model)
    write_description(folder, spec, {"sources": []})
    return folder


def clouds(count: int, points: int = 48) -> torch.Tensor:
    return torch.randn(count, points, 3, generator=torch.Generator().manual_seed(0))


def test_a_classifier_in_one_line_says_what_the_model_says(tmp_path: Path) -> None:
    classifier = pointdistill.load_classifier(classifier_folder(tmp_path))
    points = clouds(4)
    said = classifier(points * 7 + 3)  # any unit and place
    unit = to_unit_sphere(points)
    model = build_classifier(make_encoder(), 3, RECIPES["few-shot"], seed=0).eval()
    expected = model(patchify_from_outermost(unit, INPUTS, CONFIG.patch_points))
    torch.testing.assert_close(said.logits, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(said.probabilities.sum(1), torch.ones(4))
    assert said.classes == CLASSES
    assert said.names == tuple(CLASSES[k] for k in expected.argmax(1).tolist())
    for row, ranked in enumerate(said.top(2)):
        assert ranked[0] == (said.names[row], pytest.approx(said.probabilities[row].max().item()))
        assert len(ranked) == 2
        assert ranked[0][1] >= ranked[1][1]
    assert len(said.top(9)[0]) == 3


@pytest.mark.parametrize("points", [8, 48, 200])
def test_what_is_said_of_a_cloud_does_not_depend_on_its_batch(points: int, tmp_path: Path) -> None:
    """Fewer points than the input, as many, and more, which are thinned."""
    batch = clouds(5, points)
    classifier = pointdistill.load_classifier(classifier_folder(tmp_path / "c"))
    alone = torch.cat([classifier(cloud[None]).logits for cloud in batch])
    torch.testing.assert_close(alone, classifier(batch).logits, rtol=0, atol=1e-5)
    segmenter = pointdistill.load_segmenter(segmenter_folder(tmp_path / "s"))
    names = ["stick", "chair", "chair", "stick", "chair"]
    apart = [segmenter(c[None], n).logits for c, n in zip(batch, names, strict=True)]
    said = segmenter(batch, names)
    torch.testing.assert_close(torch.cat(apart), said.logits, rtol=0, atol=1e-5)
    assert said.parts.shape == (5, points)
    for row, name in enumerate(names):
        assert set(said.parts[row].tolist()) <= set(CATEGORY_PARTS[name == "chair"])


def test_more_points_than_the_input_are_subsampled(tmp_path: Path) -> None:
    """48 of 200: the points that are left out decide nothing but the frame, here fixed by two kept outliers."""
    classifier = pointdistill.load_classifier(classifier_folder(tmp_path))
    said = classifier(clouds(1, 200)).logits
    patches = patchify_from_outermost(to_unit_sphere(clouds(1, 200)), INPUTS, CONFIG.patch_points)
    assert not torch.allclose(said, classifier.model(patches))


def test_the_other_kind_is_named(tmp_path: Path) -> None:
    classifier_folder(tmp_path / "c")
    segmenter_folder(tmp_path / "s")
    assert isinstance(load_model(tmp_path / "c" / "model.safetensors"), TrainedClassifier)
    assert isinstance(load_model(tmp_path / "s"), TrainedSegmenter)
    with pytest.raises(CheckpointError, match=r"a segmenter, not a classifier; .* load_segmenter"):
        pointdistill.load_classifier(tmp_path / "s")
    with pytest.raises(CheckpointError, match=r"a classifier, not a segmenter; .* load_classifier"):
        pointdistill.load_segmenter(tmp_path / "c")


def test_an_encoder_is_not_a_model(tmp_path: Path) -> None:
    save_encoder(make_encoder(), tmp_path)
    with pytest.raises(CheckpointError, match="neither a classifier nor a segmenter"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match="no model here"):
        load_model(tmp_path / "nowhere")


def test_a_model_that_is_not_finished_says_how_to_go_on(tmp_path: Path) -> None:
    (classifier_folder(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match="not finished; resume it with `pointdistill finetune`"
    ):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, "version 9, this program reads 1"),
        ({"classes": ["needle", "disc"]}, "names do not fit the model's outputs"),
        ({"classes": "needle"}, "model.classes must be of type"),
        ({"colour": 1}, "unknown setting 'model.colour'"),
        ({"input": {}}, "missing setting 'model.input.points'"),
        ({"subsampling": "random"}, "subsampling must be 'uniform' or 'farthest', got 'random'"),
        ({"up": "w"}, "up must be one of"),
    ],
)
def test_a_configuration_that_was_changed_is_named(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = classifier_folder(tmp_path) / "config.json"
    stored = json.loads(path.read_text())
    ((name, value),) = change.items()
    inner = stored["model"]["input"] if name in ("subsampling", "up") else stored["model"]
    (stored if name == "version" else inner)[name] = value
    path.write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match=message):
        read_description(tmp_path)


def test_parts_without_names_are_refused(tmp_path: Path) -> None:
    spec, _ = read_description(segmenter_folder(tmp_path))
    assert isinstance(spec, SegmenterSpec)
    for wrong in (
        replace(spec, part_names=PART_NAMES[:-1]),
        replace(spec, category_parts=((0, 1), (2, 5))),
        replace(spec, category_parts=((0, 1), ())),
    ):
        write_description(tmp_path, wrong, {})
        with pytest.raises(CheckpointError, match="names do not fit"):
            read_description(tmp_path)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros(48, 3), r"shape \(B, N, 3\) with N of at least 8, got \(48, 3\)"),
        (torch.zeros(1, 7, 3), r"got \(1, 7, 3\)"),
        (torch.full((1, 48, 3), torch.nan), "NaN or infinite"),
    ],
)
def test_unusable_points_are_named(points: torch.Tensor, message: str, tmp_path: Path) -> None:
    classifier = pointdistill.load_classifier(classifier_folder(tmp_path / "c"))
    segmenter = pointdistill.load_segmenter(segmenter_folder(tmp_path / "s"))
    with pytest.raises(DataError, match=message):
        classifier(points)
    with pytest.raises(DataError, match=message):
        segmenter(points, "stick")


def test_unknown_categories_are_named(tmp_path: Path) -> None:
    segmenter = pointdistill.load_segmenter(segmenter_folder(tmp_path))
    with pytest.raises(DataError, match="no category 'sofa'; it knows stick, chair"):
        segmenter(clouds(1), "sofa")
    with pytest.raises(DataError, match="one per cloud, got 2 for 3 clouds"):
        segmenter(clouds(3), ["stick", "chair"])
