"""Published checkpoints: the features they should give, and what the user is told of others."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from pointdistill.cli.weights import import_weights as command
from pointdistill.engine.config.recipes import SIZES
from pointdistill.engine.weights.encoders import load_encoder
from pointdistill.engine.weights.published import (
    ImportedEncoder,
    import_weights,
    read_layout,
    read_published,
    to_our_names,
)
from pointdistill.engine.weights.torch_checkpoint import open_checkpoint
from pointdistill.errors import ConfigError, DataError
from pointdistill.model.config import Mode
from pointdistill.model.encoder import Encoder
from pointdistill.model.patches import cut_patches, to_unit_sphere
from tests.engine.handmade import refused, same


@pytest.fixture
def tiny(golden_dir: Path) -> Path:
    return golden_dir / "official_tiny.ckpt"


@pytest.mark.parametrize("branch", ["student", "teacher"])
def test_golden_features(tiny: Path, golden_dir: Path, tmp_path: Path, branch: str) -> None:
    expected = load_file(golden_dir / "official_tiny_features.safetensors")
    import_weights(tiny, tmp_path / "encoder", branch=branch)
    encoder = load_encoder(tmp_path / "encoder")
    points = to_unit_sphere(expected["input.points"])
    patches = cut_patches(points, expected["input.centers_idx"], expected["input.patches_idx"])
    cls, features = encoder.encode_tokens(encoder.embed(patches))
    torch.testing.assert_close(cls, expected[f"{branch}.cls"], rtol=0, atol=1e-5)
    torch.testing.assert_close(features, expected[f"{branch}.patch"], rtol=0, atol=1e-5)


def test_the_folder_says_where_it_came_from(tiny: Path, tmp_path: Path) -> None:
    found = import_weights(tiny, tmp_path / "encoder", branch="student")
    written = json.loads((tmp_path / "encoder" / "config.json").read_text())
    assert written["training"]["mode"] == found.mode == Mode.DUAL
    origin = written["training"]["imported"]
    assert (origin["file"], origin["branch"]) == ("official_tiny.ckpt", "student")
    assert len(origin["sha256"]) == 64
    assert written["sources"][0]["licence"].startswith("unknown")


@pytest.mark.parametrize("name", ["dual", "cls", "mpm", "dual_deep_patch_embedding"])
def test_every_mode_and_both_patch_embeddings(name: str, golden_dir: Path, tmp_path: Path) -> None:
    prefix = "weights."
    tensors = load_file(golden_dir / f"{name}.safetensors")
    weights = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "any.ckpt")
    found = read_published(tmp_path / "any.ckpt")
    ours = to_our_names(weights)
    for key, value in found.encoder.state_dict().items():
        assert torch.equal(value, ours[f"teacher.encoder.{key}"])
    assert (str(found.mode), found.epoch) == (name.split("_")[0], 3)
    assert found.encoder.config.cls_token == (name != "mpm")
    assert found.encoder.config.embedding_bias == ("deep" in name)
    assert (found.encoder.config.heads, found.heads_from) == (3, "the paper's size of this width")


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_the_layout_of_every_published_size(size: str) -> None:
    config = SIZES[size]().encoder
    with torch.device("meta"):
        shapes = {n: tuple(v.shape) for n, v in Encoder(config).state_dict().items()}
    assert read_layout(shapes) == replace(config, heads=1)


def stored_as(tiny: Path, path: Path, change: Callable[[Tensor], Any], **settings: Any) -> Path:
    """The golden weights saved anew by torch, each changed."""
    with open_checkpoint(tiny) as checkpoint:
        weights = checkpoint.tensors(checkpoint.state_dict())
    changed = {name: change(value) for name, value in weights.items()}
    torch.save({"state_dict": changed}, path, **settings)
    return path


def transposed(value: Tensor) -> Tensor:
    """The same values, not contiguous."""
    return value.transpose(0, -1).contiguous().transpose(0, -1)


def sliced(value: Tensor) -> Tensor:
    """The same values, inside of a larger storage."""
    return torch.stack([value, value + 1], dim=-1)[..., 0]


@pytest.mark.parametrize(
    "change", [transposed, sliced, torch.nn.Parameter, Tensor.double, Tensor.half, Tensor.bfloat16]
)
def test_however_torch_stored_them(
    tiny: Path, tmp_path: Path, change: Callable[[Tensor], Any]
) -> None:
    found = read_published(stored_as(tiny, tmp_path / "other.ckpt", change)).encoder
    for name, value in read_published(tiny).encoder.state_dict().items():
        assert torch.equal(found.state_dict()[name], change(value).detach().float())


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_any_pickle_protocol(tiny: Path, tmp_path: Path, protocol: int) -> None:
    path = stored_as(tiny, tmp_path / "other.ckpt", torch.clone, pickle_protocol=protocol)
    assert same(read_published(path), read_published(tiny))


def test_other_kinds_of_tensors_beside_the_encoder(tmp_path: Path) -> None:
    flat = torch.arange(12.0)
    weights = {
        "whole": flat.view(3, 4),
        "part": flat[4:],
        "count": torch.tensor(5),
        "empty": torch.zeros(0, 3),
        "bytes": torch.tensor([1, 255], dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
    }
    torch.save({"state_dict": weights}, tmp_path / "any.pt")
    with open_checkpoint(tmp_path / "any.pt") as checkpoint:
        found = checkpoint.tensors(checkpoint.state_dict())
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert all(found[name].dtype == value.dtype for name, value in weights.items())
    assert found["part"].data_ptr() == found["whole"].data_ptr() + 16


def test_heads_are_asked_for_where_nothing_says_them(tmp_path: Path) -> None:
    path = tmp_path / "odd.ckpt"
    encoder = Encoder(replace(SIZES["tiny"]().encoder, width=40))
    torch.save({"state_dict": official(encoder)}, path)
    with refused(r"no size of the paper has the width 40, .* say how many it has"):
        read_published(path)
    with refused(r"7 attention heads \(given\) do not divide its width, 40"):
        read_published(path, heads=7)
    assert read_published(path, heads=5).heads_from == "given"


def official(encoder: Encoder) -> dict[str, Tensor]:
    """An encoder's weights under names that are accepted as published ones."""
    return {f"teacher.encoder.{name}": value for name, value in encoder.state_dict().items()}


def test_a_branch_that_is_not_there(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="branch must be one of teacher, student, got 'both'"):
        read_published(tiny, branch="both")
    torch.save({"state_dict": {"model.conv.weight": torch.ones(2)}}, tmp_path / "any.ckpt")
    with refused(r"no encoder of this method under 'teacher' .*; it holds 'model'"):
        read_published(tmp_path / "any.ckpt")


@pytest.mark.parametrize(
    ("name", "value", "pattern"),
    [
        ("transformer.norm.weight", torch.ones(48, dtype=torch.int64), "is torch.int64 of shape"),
        (
            "cls_token",
            torch.ones(1, 48),
            r"cls_token is torch.float32 of shape \(1, 48\); expected",
        ),
        ("transformer.blocks.300.x", torch.ones(1), "301 blocks; accepted are 1 to 256"),
        ("transformer.odd", torch.ones(1), "unexpected transformer.odd"),
        ("transformer.norm.weight", torch.full((48,), torch.nan), "values that are not finite"),
        ("\x1b[31m", torch.ones(1), r"a weight whose name, '.*\\x1b\[31m', is no plain text"),
        (
            "transformer.odd",
            "text",
            r"'teacher\.encoder\.transformer\.odd' is no tensor but 'text'",
        ),
    ],
)
def test_weights_that_do_not_fit(
    tiny: Path, tmp_path: Path, name: str, value: Any, pattern: str
) -> None:
    weights: dict[str, Any] = dict(official(read_published(tiny).encoder))
    weights[f"teacher.encoder.{name}"] = value
    torch.save({"state_dict": weights}, tmp_path / "odd.ckpt")
    with refused(pattern):
        read_published(tmp_path / "odd.ckpt")


def test_only_an_encoder_folder_is_replaced(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    with pytest.raises(DataError, match="exists and holds other files"):
        import_weights(tiny, run)
    assert (run / "config.json").read_text() == "{}"
    import_weights(tiny, tmp_path / "encoder", branch="student")
    import_weights(tiny, tmp_path / "encoder")
    assert same(
        read_published(tiny),
        ImportedEncoder(
            load_encoder(tmp_path / "encoder"),
            *[None] * 5,  # type: ignore[arg-type]
        ),
    )


def test_the_command(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()
    app.command()(command)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [str(tiny), "--output", "mine", "--branch", "student"])
    assert done.exit_code == 0
    assert "student, mode dual, " in done.output
    assert "width 48, depth 3, 3 heads (the file's settings)" in done.output
    assert "next: pointdistill evaluate scanobjectnn --encoder mine" in done.output
    assert load_encoder("mine").config.depth == 3
