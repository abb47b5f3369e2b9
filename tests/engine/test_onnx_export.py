"""The ONNX file computes what the encoder does, for any number of clouds; a wrong one is never left behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pointdistill import load_classifier, load_segmenter
from pointdistill.engine.finetuning.models import (
    ClassifierSpec,
    build_model,
    read_description,
    save_weights,
    write_description,
)
from pointdistill.engine.sharing.export import export_encoder, export_model_onnx, export_onnx
from pointdistill.engine.weights.encoders import load_encoder, save_encoder
from pointdistill.errors import CheckpointError, ConfigError, DataError
from pointdistill.model.classifier import Pooling
from pointdistill.model.config import EncoderConfig
from pointdistill.model.encoder import Encoder
from pointdistill.model.initialize import initialize
from pointdistill.model.patches import to_unit_sphere
from tests.engine.conftest import micro_config
from tests.engine.test_models import CLASSES, classifier_folder, segmenter_folder

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

MICRO = micro_config().encoder
DEEP = replace(MICRO, stage_one=(8, 8, 16), stage_two=(24, 8), embedding_bias=True, depth=2)


def saved(folder: Path, config: EncoderConfig = MICRO) -> Path:
    """An encoder whose weights, biases too, are far from those of a fresh one."""
    encoder = Encoder(config)
    generator = torch.Generator().manual_seed(0)
    initialize(encoder, generator=generator)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    save_encoder(encoder, folder, sources=[{"name": "x", "licence": "CC0"}], training={"step": 7})
    return folder


def clouds(count: int, points: int) -> Tensor:
    """Raw ones: in another unit, far from the origin, flat."""
    generator = torch.Generator().manual_seed(points)
    return torch.randn(count, points, 3, generator=generator) * torch.tensor([40.0, 20, 5]) + 9.0


def run(path: Path, points: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"points": points.numpy()}), strict=True))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("config", "points"),
    [
        pytest.param(MICRO, None, id="points of pretraining"),
        pytest.param(MICRO, 30, id="fewer"),
        pytest.param(MICRO, 96, id="more, in more patches"),
        pytest.param(MICRO, 97, id="so many that they are thinned"),
        pytest.param(DEEP, None, id="deep patch embedding with biases"),
        pytest.param(replace(MICRO, cls_token=False), None, id="no CLS token"),
    ],
)
def test_the_file_computes_what_the_encoder_does(
    tmp_path: Path, config: EncoderConfig, points: int | None, batch: int
) -> None:
    made = export_onnx(saved(tmp_path / "encoder", config), tmp_path / "out", points=points)
    given = clouds(batch, points or 48)
    found, expected = run(made.path, given), load_encoder(tmp_path / "encoder")(given)
    assert list(found) == [*(["cls"] if config.cls_token else []), "patches", "centers"]
    for name, value in found.items():
        np.testing.assert_allclose(value, getattr(expected, name), rtol=0, atol=1e-4)
    assert found["patches"].shape == (batch, made.patches, config.width)
    assert made.difference is not None
    assert made.difference < 1e-4


@pytest.mark.parametrize("radii", [1, 10, 30])
def test_a_cloud_away_from_the_origin(tmp_path: Path, radii: float) -> None:
    """As far as the documentation promises, in radii of the cloud."""
    made = export_onnx(saved(tmp_path / "encoder"), tmp_path / "out")
    given = (
        to_unit_sphere(torch.randn(20, 48, 3, generator=torch.Generator().manual_seed(1))) + radii
    )
    found, expected = run(made.path, given), load_encoder(tmp_path / "encoder")(given)
    for name, value in found.items():
        np.testing.assert_allclose(value, getattr(expected, name), rtol=0, atol=1e-4)


def test_a_cloud_of_one_repeated_point_is_no_nan(tmp_path: Path) -> None:
    made = export_onnx(saved(tmp_path / "encoder"), tmp_path / "out")
    found = run(made.path, torch.full((1, 48, 3), 2.0))
    assert all(np.isfinite(value).all() for value in found.values())
    assert not found["centers"].any()


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    made = export_onnx(saved(tmp_path / "encoder"), tmp_path / "out")
    model = onnx.load(str(made.path))
    onnx.checker.check_model(model, full_check=True)
    stored = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert stored["pointdistill.sources"] == [{"name": "x", "licence": "CC0"}]
    assert stored["pointdistill.training"] == {"step": 7}
    assert stored["pointdistill.encoder"]["width"] == 12
    assert "48 raw points" in model.doc_string
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("_gelu", lambda g, value: g.add("Relu", value)),
        ("_unit_sphere", lambda g, points: points),
        ("_nearest", lambda g, points, centers, count: g.add("Identity", "nowhere")),
    ],
)
def test_a_wrong_graph_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, wrong: Callable[..., str]
) -> None:
    """Another function, a missing step, a graph that does not even load."""
    monkeypatch.setattr(f"pointdistill.engine.sharing.onnx_graph.{part}", wrong)
    with pytest.raises(CheckpointError, match=r"differs from the model by|does not run"):
        export_onnx(saved(tmp_path / "encoder"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without onnxruntime the file is written unchecked; without onnx one line says what to install."""
    folder = saved(tmp_path / "encoder")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export_onnx(folder, tmp_path / "out").difference is None
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "pointdistill.engine.sharing.onnx_graph")
    monkeypatch.delattr("pointdistill.engine.sharing.onnx_graph", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'pointdistill\[onnx\]'"):
        export_onnx(folder, tmp_path / "other")


def test_both_formats_in_one_folder_and_no_other_files(tmp_path: Path) -> None:
    folder = saved(tmp_path / "encoder")
    export_onnx(folder, tmp_path / "out")
    export_encoder(folder, tmp_path / "out")
    export_onnx(folder, tmp_path / "out", points=30)
    names = {entry.name for entry in (tmp_path / "out").iterdir()}
    assert names == {"model.onnx", "model.safetensors", "config.json"}
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(DataError, match="exists and holds other files"):
        export_onnx(folder, tmp_path / "photos")


def test_fewer_points_than_a_patch(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"points must be at least 6, one patch .* got 5"):
        export_onnx(saved(tmp_path / "encoder"), tmp_path / "out", points=5)


def test_features_that_hang_on_rounding_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cloud is fit for the check if its features jump when its points move by a few last digits."""
    monkeypatch.setattr("pointdistill.engine.sharing.export.TOLERANCE", 0.0)
    with pytest.raises(CheckpointError, match="24 of 24 clouds of 48 points change by more"):
        export_onnx(saved(tmp_path / "encoder"), tmp_path / "out")


@pytest.mark.parametrize("batch", [1, 3])
def test_a_classifier_without_torch_says_what_it_says_with_it(tmp_path: Path, batch: int) -> None:
    made = export_model_onnx(classifier_folder(tmp_path / "cls"), tmp_path / "out")
    assert made.difference is not None
    assert made.difference <= 1e-4
    points = clouds(batch, made.points)
    expected = load_classifier(tmp_path / "cls")(points)
    found = run(made.path, points)
    np.testing.assert_allclose(found["logits"], expected.logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(found["probabilities"], expected.probabilities.numpy(), atol=1e-5)
    stored = {item.key: json.loads(item.value) for item in onnx.load(made.path).metadata_props}
    assert stored["pointdistill.classes"] == list(CLASSES)
    assert stored["pointdistill.model"]["classifier"]["classes"] == 3


@pytest.mark.parametrize("pooling", ["mean-max", "cls-mean-max"])
@pytest.mark.parametrize("hidden", [(), (6, 5)])
def test_every_head_has_its_graph(tmp_path: Path, pooling: str, hidden: tuple[int, ...]) -> None:
    """With batch statistics as a training leaves them, which are far from 0 and 1."""
    folder = classifier_folder(tmp_path / "cls")
    spec, _ = read_description(folder)
    assert isinstance(spec, ClassifierSpec)
    head = replace(spec.classifier, pooling=Pooling(pooling), hidden=hidden)
    model = build_model(replace(spec, classifier=head))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.add_(
                    torch.rand(value.shape, generator=generator), alpha=0.3 + ("var" in name)
                )
    save_weights(folder, model)
    write_description(folder, replace(spec, classifier=head), {"sources": []})
    made = export_model_onnx(folder, tmp_path / "out")
    points = clouds(2, made.points)
    expected = load_classifier(folder)(points).logits
    np.testing.assert_allclose(run(made.path, points)["logits"], expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("category", [0, 1])
def test_a_segmenter_without_torch_labels_the_same_points(tmp_path: Path, category: int) -> None:
    made = export_model_onnx(segmenter_folder(tmp_path / "seg"), tmp_path / "out")
    assert made.difference is not None
    assert made.difference <= 1e-4
    points = clouds(2, made.points)
    segmenter = load_segmenter(tmp_path / "seg")
    expected = segmenter(points, segmenter.categories[category])
    session = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    feed = {"points": points.numpy(), "category": np.array([category, category])}
    logits, parts = session.run(["logits", "parts"], feed)
    np.testing.assert_allclose(logits, expected.logits.numpy(), atol=1e-4)
    assert (parts == expected.parts.numpy()).all()
    assert set(np.unique(parts)) <= set(segmenter.spec.category_parts[category])
    stored = {item.key: json.loads(item.value) for item in onnx.load(made.path).metadata_props}
    assert stored["pointdistill.categories"] == list(segmenter.categories)


def test_a_model_that_differs_from_its_graph_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pointdistill.engine.sharing import onnx_graph

    monkeypatch.setattr(onnx_graph, "_gelu", lambda g, value: value)
    with pytest.raises(CheckpointError, match="the exported graph differs from the model by"):
        export_model_onnx(classifier_folder(tmp_path / "cls"), tmp_path / "out")
    assert not (tmp_path / "out" / "model.onnx").exists()
    with pytest.raises(CheckpointError, match="no model here"):
        export_model_onnx(tmp_path / "nothing", tmp_path / "out")
