"""From labelled files to a model on disk and back: what it says, what it records, and going on after a stop."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh

from pointdistill import load_classifier, load_segmenter
from pointdistill.data.benchmark_standins import (
    PartSizes,
    ScanSizes,
    make_scanobjectnn_stand_in,
    make_shapenetpart_stand_in,
)
from pointdistill.data.benchmarks.registry import trainable_benchmarks
from pointdistill.data.benchmarks.shapenetpart import ARCHIVE_STEM
from pointdistill.engine.finetuning import finetune as module
from pointdistill.engine.finetuning.finetune import Finetuned, finetune, resume_finetune
from pointdistill.engine.finetuning.predict import classify_files
from pointdistill.engine.finetuning.recipes import RECIPES
from pointdistill.engine.finetuning.request import (
    FinetuneRequest,
    choose_data,
    choose_recipe,
    head_only,
    part_names,
)
from pointdistill.errors import CheckpointError, ConfigError, DataError
from tests.engine.labelled import make_encoder, part_benchmark, saved_encoder
from tests.engine.recorder import Recorder


def mesh_folder(folder: Path, each: int = 4) -> Path:
    """Balls and upright rods, a dozen files at the most."""
    for number in range(each):
        size = 1.0 + 0.1 * number
        shapes = {
            "ball": trimesh.creation.icosphere(1, size),
            "rod": trimesh.creation.cylinder(0.1, 2 * size),
        }
        for name, mesh in shapes.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            mesh.export(folder / name / f"{number}.ply")
    return folder


def request(tmp_path: Path, **changes: Any) -> FinetuneRequest:
    usual = FinetuneRequest(
        data=tmp_path / "meshes",
        encoder=tmp_path / "encoder",
        output=tmp_path / "model",
        epochs=2,
        device="cpu",
        folder=tmp_path,
    )
    return replace(usual, **changes)


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    saved_encoder(tmp_path / "encoder")
    return mesh_folder(tmp_path / "meshes")


def stored(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def test_from_a_folder_of_meshes_to_a_classifier(meshes: Path, tmp_path: Path) -> None:
    (meshes / "ball" / "broken.obj").write_text("nothing")
    (meshes / "stray.obj").write_text("v 0 0 0")
    recorder = Recorder()
    result = finetune(request(tmp_path, epochs=20), reporter=recorder)
    assert (result.kind, result.finished, result.epochs) == ("classifier", True, 20)
    classifier = load_classifier(result.output)
    assert classifier.classes == ("ball", "rod")
    assert sorted(p.name for p in result.output.iterdir()) == ["config.json", "model.safetensors"]
    config = stored(result.output)
    assert config["score"] == result.score
    assert f"test {result.score['accuracy']:.1f} %" in recorder.notes[-1]
    assert [source["name"] for source in config["sources"]] == ["made up", "your own folder meshes"]
    training = config["training"]
    assert (training["train_clouds"], training["test_clouds"]) == (6, 2)
    assert training["recipe"]["name"] == "few-shot"
    assert len(training["checksum"]) == 64
    assert str(tmp_path) not in json.dumps(config)
    assert any(line.startswith("left out: ball/broken.obj: an OBJ file") for line in recorder.said)
    assert "left out: files in no sub-folder, so of no class: 1" in recorder.said


def test_predict_names_the_files_it_was_trained_on(meshes: Path, tmp_path: Path) -> None:
    """Read again by the other way, with other points of the same surfaces."""
    result = finetune(request(tmp_path, epochs=80))
    files = sorted(meshes.rglob("*.ply"))
    named, failed = classify_files(load_classifier(result.output), files)
    assert (len(named), len(failed)) == (8, 0)
    assert [file.probabilities[0][0] for file in named] == [file.parent.name for file in files]


@contextmanager
def stopping_after(steps: int) -> Iterator[Callable[[], bool]]:
    """In place of Ctrl-C: yes from the ``steps``-th question on."""
    asked = iter(range(1, 10_000))
    yield lambda: next(asked) >= steps


def interrupted(monkeypatch: pytest.MonkeyPatch, steps: int, call: Callable[[], Finetuned]) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(module, "interruptible", lambda _: stopping_after(steps))
        assert not call().finished


def test_interrupted_and_resumed_gives_the_same_bytes(
    meshes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finetune(request(tmp_path, output=tmp_path / "whole", epochs=4))
    asked = request(tmp_path, output=tmp_path / "split", epochs=4)
    interrupted(monkeypatch, 1, lambda: finetune(asked))
    with pytest.raises(CheckpointError, match="not finished; resume it"):
        load_classifier(tmp_path / "split")
    with pytest.raises(DataError, match="was interrupted; resume it"):
        finetune(asked)
    interrupted(monkeypatch, 2, lambda: resume_finetune(tmp_path / "split", device="cpu"))
    split = resume_finetune(tmp_path / "split", device="cpu")
    assert split.score == whole.score
    for name in ("config.json", "model.safetensors"):
        assert (whole.output / name).read_bytes() == (split.output / name).read_bytes(), name
    with pytest.raises(CheckpointError, match="its training is finished"):
        resume_finetune(tmp_path / "split")


def full_disk(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """From now on the disk has no room for the file of this name, which is written under a hidden one."""

    def flush(path: Path) -> None:
        if path.name.startswith(f".{name}."):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("pointdistill.data.files.files.flush", flush)


def test_a_full_disk_is_one_line_and_the_training_can_be_resumed(
    meshes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model"
    with monkeypatch.context() as patched:
        full_disk(patched, "training")
        with pytest.raises(DataError, match=r"no space left on the disk.* and run the same again"):
            finetune(request(tmp_path))
    assert not (output / "config.json").exists()
    whole = finetune(request(tmp_path, output=tmp_path / "whole"))
    with monkeypatch.context() as patched:
        patched.setattr("pointdistill.engine.finetuning.training_file.SAVE_SECONDS", 0.0)
        full_disk(patched, "model")  # the end cannot be saved, the steps before it can
        with pytest.raises(
            DataError, match=r"no space left on the disk.*resume the training"
        ) as no:
            finetune(request(tmp_path))
    assert no.value.settings == ("resume",)
    with monkeypatch.context() as patched:
        patched.setattr("pointdistill.engine.finetuning.training_file.SAVE_SECONDS", 0.0)
        full_disk(patched, "training")  # and now the other way round
        assert resume_finetune(output, device="cpu").score == whole.score
    weights = "model.safetensors"
    assert (output / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def test_a_training_goes_on_while_the_disk_is_full(
    meshes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fails = iter([False, True, True])

    def flush(path: Path) -> None:
        if path.name.startswith(".training.") and next(fails, False):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("pointdistill.engine.finetuning.training_file.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("pointdistill.data.files.files.flush", flush)
    assert finetune(request(tmp_path)).finished
    assert "no space left on the disk; training continues" in caplog.text


def test_killed_before_the_last_file_was_removed(
    meshes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finished model is described already, without the path that its data could be read from again."""
    asked = request(tmp_path, epochs=1)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", _killed)
        with pytest.raises(KeyboardInterrupt):
            finetune(asked)
    with pytest.raises(DataError, match="resume it"):
        finetune(asked)
    whole = (tmp_path / "model" / "config.json").read_bytes()
    result = resume_finetune(tmp_path / "model", device="cpu")
    assert (result.finished, result.kind, result.epochs) == (True, "classifier", 1)
    assert result.score == stored(tmp_path / "model")["score"]
    assert (tmp_path / "model" / "config.json").read_bytes() == whole
    assert not (tmp_path / "model" / "training.safetensors").exists()


def _killed(path: Path, missing_ok: bool = False) -> None:
    """In place of `Path.unlink`: the end, where the training file is removed."""
    if path.name == "training.safetensors":
        raise KeyboardInterrupt
    if path.exists() or not missing_ok:
        os.unlink(path)  # noqa: PTH108 (what is replaced)


def test_a_file_by_itself_is_an_encoder(meshes: Path, tmp_path: Path) -> None:
    alone = (tmp_path / "encoder" / "model.safetensors").rename(tmp_path / "mine.safetensors")
    result = finetune(request(tmp_path, encoder=alone, epochs=1))
    config = stored(result.output)
    assert config["sources"][0]["name"] == "made up"
    assert config["pretraining"] == {"name": "tiny"}


def test_a_hub_repository_is_an_encoder(
    meshes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda repository, **_: {"jane/shapes": str(tmp_path / "encoder")}[repository],
    )
    result = finetune(request(tmp_path, encoder=Path("jane/shapes"), epochs=1))
    assert stored(result.output)["sources"][0]["name"] == "made up"


def test_resume_wants_the_same_data(
    meshes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, 1, lambda: finetune(request(tmp_path)))
    (meshes / "rod" / "0.ply").write_bytes((meshes / "rod" / "1.ply").read_bytes())
    with pytest.raises(CheckpointError, match=r"not the data that .*model was started with"):
        resume_finetune(tmp_path / "model")


def test_frozen_keeps_the_encoder_and_from_scratch_draws_it_anew(
    meshes: Path, tmp_path: Path
) -> None:
    before = make_encoder().state_dict()

    def trained(name: str, **changes: Any) -> dict[str, torch.Tensor]:
        result = finetune(request(tmp_path, output=tmp_path / name, **changes))
        return load_classifier(result.output).model.encoder.state_dict()

    frozen = trained("frozen", frozen=True)
    assert all(torch.equal(value, before[name]) for name, value in frozen.items())
    tuned, drawn = trained("tuned"), trained("drawn", from_scratch=True)
    moved = [name for name in before if not torch.equal(before[name], tuned[name])]
    assert moved == list(before)
    # Two steps at 1e-3 move a weight by 2e-3 at the most; weights drawn anew are further away.
    assert (drawn["cls_token"] - before["cls_token"]).abs().max() > 5e-3
    assert [s["name"] for s in stored(tmp_path / "drawn")["sources"]] == ["your own folder meshes"]
    assert stored(tmp_path / "drawn")["pretraining"] == {}


def test_a_scanobjectnn_stand_in(tmp_path: Path) -> None:
    saved_encoder(tmp_path / "encoder")
    make_scanobjectnn_stand_in(
        tmp_path / "data" / "h5_files.zip", sizes=ScanSizes(train=2, test=1, copies=1), workers=1
    )
    asked = request(tmp_path, benchmark="scanobjectnn", data=None, split="OBJ-ONLY", epochs=1)
    result = finetune(asked)
    classifier = load_classifier(result.output)
    assert len(classifier.classes) == 15
    assert classifier.spec.input.cloud_points == 2048
    config = stored(result.output)
    assert config["training"]["data"]["split"] == "OBJ-ONLY"
    assert config["sources"][-1] == {
        "name": "ScanObjectNN stand-in",
        "licence": "CC0-1.0 (made on the spot)",
        "shapes": 30,
    }


def test_a_shapenetpart_stand_in(tmp_path: Path) -> None:
    saved_encoder(tmp_path / "encoder")
    archive = tmp_path / "parts.zip"
    make_shapenetpart_stand_in(
        archive, sizes=PartSizes(train=1, val=1, test=1, points=100), workers=1
    )
    result = finetune(request(tmp_path, benchmark="shapenetpart", data=archive, epochs=1))
    assert result.kind == "segmenter"
    segmenter = load_segmenter(result.output)
    assert segmenter.categories[4] == "chair"
    assert segmenter.spec.part_names[12:16] == (
        "chair back", "chair seat", "chair leg", "chair arm",
    )  # fmt: skip
    said = segmenter(torch.randn(1, 60, 3), "chair")
    assert set(said.parts.flatten().tolist()) <= {12, 13, 14, 15}
    assert result.score["by_category"].keys() == set(segmenter.categories)


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_a_shapenetpart_archive_is_found_in_both_forms(tmp_path: Path, form: str) -> None:
    archive = tmp_path / "data" / f"{ARCHIVE_STEM}.{form}"
    archive.parent.mkdir()
    archive.touch()
    options = {"data": None, "split": None, "stand_in": False, "held_out": None, "up": None}
    choice = choose_data(
        "shapenetpart",
        **options,  # type: ignore[arg-type]
        seed=0,
        folder=tmp_path,
    )
    assert Path(choice.path) == archive


def test_recipes_fit_the_data() -> None:
    parts = part_benchmark()
    whole = choose_recipe(FinetuneRequest(benchmark="shapenetpart", from_scratch=True), parts)
    assert (whole.name, whole.random_encoder) == ("parts", True)  # type: ignore[union-attr]
    head = head_only(RECIPES["scratch"])
    assert head.frozen_steps(700) == 700
    assert head.learning_rate(0, total=700) == pytest.approx(5e-4)
    assert head.learning_rate(700, total=700) == pytest.approx(1e-7)


def test_parts_of_unknown_categories_are_numbered() -> None:
    """A stick is none of ShapeNetPart's, and this chair has three parts where it has four."""
    names = part_names(part_benchmark())
    assert names == ("stick 1", "stick 2", "chair 1", "chair 2", "chair 3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "your own shapes are a folder of data"),
        ({"stand_in": True}, "neither official splits nor a stand-in"),
        (
            {"benchmark": "shapenet"},
            "no model is trained on 'shapenet'; choose one of scanobjectnn",
        ),
        ({"benchmark": "modelnet40", "split": "OBJ-BG"}, "modelnet40 has no split 'OBJ-BG'"),
        ({"benchmark": "scanobjectnn", "split": "BG"}, "choose from OBJ-BG, OBJ-ONLY"),
        ({"benchmark": "modelnet40", "stand_in": True}, "a stand-in has data of its own"),
        ({"benchmark": "modelnet40", "up": "y"}, "are for your own folder"),
        ({"frozen": True, "from_scratch": True}, "a frozen encoder keeps its weights"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
    ],
)
def test_contradictions_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        request(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": 1.5}, "must lie between 0 and 1, got 1.5"),
        ({"up": "w"}, "up must be one of z, y, x"),
        ({"device": "tpu"}, "device must be one of"),
    ],
)
def test_impossible_requests_leave_nothing(
    changes: dict[str, Any], message: str, meshes: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        finetune(request(tmp_path, **changes))
    assert not (tmp_path / "model").exists()


def test_a_folder_that_holds_something_is_left_alone(meshes: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "diary.txt").write_text("mine")
    with pytest.raises(DataError, match="model exists already; choose another output folder"):
        finetune(request(tmp_path))


@pytest.mark.usefixtures("no_bundled_encoder")
def test_no_encoder_is_named(meshes: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run was made in this folder yet"):
        finetune(request(tmp_path, encoder=None))


@pytest.mark.parametrize("name", trainable_benchmarks())
def test_an_absent_archive_says_where_it_comes_from(name: str, tmp_path: Path) -> None:
    saved_encoder(tmp_path / "encoder")
    with pytest.raises(DataError, match=r"no such archive.*https://"):
        finetune(request(tmp_path, benchmark=name, data=None))


def test_a_folder_that_is_being_trained_in_is_refused(
    meshes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second training begun or resumed in the output folder of one that is at work."""
    pytest.importorskip("fcntl")
    asked, refused = request(tmp_path, data=meshes), []
    train = module.train_epochs

    def meanwhile(*given: Any, **named: Any) -> Any:
        for call in (lambda: finetune(asked), lambda: resume_finetune(asked.output or tmp_path)):
            with pytest.raises(DataError) as caught:
                call()
            refused.append(str(caught.value))
        return train(*given, **named)

    monkeypatch.setattr(module, "train_epochs", meanwhile)
    result = finetune(asked)
    assert result.finished
    assert len(refused) == 2
    assert all("another process is training a model there" in line for line in refused)
    assert not (result.output / ".lock").exists()
