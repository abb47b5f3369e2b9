"""Encoders by name as typed, and what the commands do in a folder without a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pointdistill.cli import main
from pointdistill.cli.weights import _named_weights
from pointdistill.data.benchmark_standins import ScanSizes, make_scanobjectnn_stand_in
from pointdistill.data.files.workspace import remember_run, remember_stand_in
from pointdistill.engine.weights import BUNDLED
from pointdistill.engine.weights.encoders import save_encoder
from tests.engine.labelled import make_encoder, saved_encoder
from tests.engine.local_hub import local_hub
from tests.engine.test_finetune import mesh_folder
from tests.engine.test_push import point_client_at

SAID = (
    f"encoder: {BUNDLED}, which comes with pointdistill (trained on made shapes only, free for any use); "
    "another can be chosen (--encoder)"
)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with labelled meshes and no run; an empty cache; no bundled encoder; no network."""
    monkeypatch.setenv("POINTDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pointdistill.engine.weights.BUNDLED_FOLDER", tmp_path / "bundled")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    mesh_folder(Path("meshes"))
    return tmp_path


@pytest.fixture
def bundled(here: Path) -> None:
    save_encoder(make_encoder(), here / "bundled", half=True)


def test_the_list(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("weights") == 0
    said = capsys.readouterr().out
    assert "asymdsd-s\tsmall, dual\t230 MB\tno\tShapeNetCore v2\n" in said
    assert "- Licence of the data, ShapeNetCore v2: non-commercial" in said
    assert "asymdsd-s\t90.53\t83.33\t82.34\t94.10\n" in said
    assert "asymdsd-b\t93.72\t91.96\t-\t94.70\n" in said
    assert BUNDLED not in said
    assert str(here / "cache" / "encoders") in said
    save_encoder(make_encoder(), here / "bundled")
    save_encoder(make_encoder(), here / "cache" / "encoders" / "asymdsd-s")
    assert run("weights") == 0
    said = capsys.readouterr().out
    assert "230 MB\tyes\t" in said
    assert f"{BUNDLED}\tmini, dual\t-\tyes\tshapes made on the spot\n" in said
    assert "made on the spot: any use, also commercial." in said
    assert str(here / "bundled") not in said
    for table in _named_weights():
        assert table.column_widths(80, wrapped=True) is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("weights", "asymdsd"), "there are no weights 'asymdsd'; did you mean 'asymdsd-s'?"),
        (("embed", "meshes", "--encoder", "asymdsd_s"), "did you mean 'asymdsd-s'?"),
        (("embed", "meshes", "--encoder", "asymdsd-s"), "HF_HUB_OFFLINE forbids a download"),
        (("finetune", "--data", "meshes", "--encoder", "asymdsd-b"), "HF_HUB_OFFLINE forbids"),
        (("export", "mine", "--encoder", "asymsd-cls-s"), "HF_HUB_OFFLINE forbids"),
        (("push", "asymsd-mpm-s", "me/mine"), "HF_HUB_OFFLINE forbids"),
        (("evaluate", "scanobjectnn", "--stand-in", "--encoder", "asymdsd-s"), "HF_HUB_OFFLINE"),
        (("reconstruct", "--encoder", "asymdsd-s"), "HF_HUB_OFFLINE"),
        (("weights", BUNDLED), "not in this installation"),
        (("embed", "meshes"), "no run was made in this folder yet"),
        (("finetune", "--data", "meshes"), "no run was made in this folder yet"),
        (("export", "mine", "--half", "--format", "onnx"), "--half belongs to --format safet"),
    ],
)
def test_every_command_knows_the_names(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    """And says in one line what is missing."""
    assert run(*arguments) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert said.out == ""


def test_a_name_downloads_once_for_all_commands(
    here: Path,
    golden_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = (golden_dir / "official_tiny.ckpt").read_bytes()
    folder = here / "cache" / "encoders" / "asymdsd-s"
    with local_hub({"AsymDSD-S_ShapeNet.ckpt": content}) as hub:
        point_client_at(monkeypatch, hub.address)
        assert run("weights", "asymdsd-s") == 0
    said = capsys.readouterr()
    assert said.err.startswith("asymdsd-s: downloading 230 MB, once, from http://127.0.0.1:")
    assert said.out.splitlines()[0] == f"asymdsd-s: {folder}"
    device = ("--device", "cpu")
    assert run("embed", "meshes/ball", "--encoder", "asymdsd-s", "--draws", "1", *device) == 0
    assert f"encoder: asymdsd-s ({folder})" in capsys.readouterr().err
    index = json.loads(str(np.load("embedding.npz")["info"]))
    assert index["encoder"] == "asymdsd-s"
    assert run("search", "meshes/ball/0.ply", *device) == 0
    assert "0.ply is the query itself (1.0000)" in capsys.readouterr().out
    assert run("export", "mine", "--encoder", "asymdsd-s", "--half") == 0
    small, whole = (f / "model.safetensors" for f in (Path("mine"), folder))
    assert small.stat().st_size < 0.6 * whole.stat().st_size


def test_features_without_a_run(
    bundled: None, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("embed", "meshes", "--device", "cpu") == 0
    assert SAID in capsys.readouterr().err.splitlines()
    assert run("search", "meshes/ball/0.ply", "--device", "cpu") == 0
    said = capsys.readouterr()
    assert "ball/0.ply is the query itself (1.0000)" in said.out
    assert f"encoder: {BUNDLED}, which comes with pointdistill" in said.err
    # Another installation has it elsewhere: the index names it, and not its place.
    (here / "bundled").rename(here / "moved")
    assert run("search", "meshes/ball/0.ply", "--device", "cpu") == 2
    assert "not in this installation" in capsys.readouterr().err


def test_a_classifier_without_a_run(bundled: None, capsys: pytest.CaptureFixture[str]) -> None:
    begin = ("finetune", "--data", "meshes", "--epochs", "1", "--device", "cpu")
    assert run(*begin) == 0
    assert SAID in capsys.readouterr().err.splitlines()
    assert run("predict", "models/meshes", "meshes/ball/0.ply", "--device", "cpu") == 0


def test_a_measurement_without_a_run(bundled: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Results call the encoder by its name, not by where this installation keeps it."""
    archive, sizes = Path("data/stand-in/h5_files.zip"), ScanSizes(train=2, test=1, copies=1)
    make_scanobjectnn_stand_in(archive, splits=("OBJ-BG",), sizes=sizes, workers=1)
    remember_stand_in("scanobjectnn", archive)
    asked = ("--stand-in", "--split", "OBJ-BG", "--protocol", "knn", "--seeds", "1")
    assert run("evaluate", "scanobjectnn", *asked, "--device", "cpu") == 0
    assert SAID in capsys.readouterr().err.splitlines()
    (file,) = Path("evaluation").rglob("results.json")
    (row,) = json.loads(file.read_text())["results"]
    assert row["features"] == f"encoder of {BUNDLED}"


def test_a_run_of_this_folder_comes_first(
    bundled: None, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_encoder(Path("runs/a/encoder"))
    Path("runs/a/metrics.jsonl").touch()
    remember_run(Path("runs/a"))
    assert run("embed", "meshes/ball", "--device", "cpu") == 0
    assert "encoder: runs/a/encoder" in capsys.readouterr().err


def test_a_last_run_that_is_gone_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the program's own encoder takes its place, a line says both; where nothing does, the error says so."""
    gone = "runs/a, the last run made in this folder, is gone"
    remember_run(Path("runs/a"))
    for words in (("embed", "meshes"), ("report",), ("pretrain", "--resume")):
        assert run(*words) == 2
        assert capsys.readouterr().err.startswith(f"error: {gone}; ")
    run("doctor")
    assert "runs/a, which is gone" in capsys.readouterr().out
    save_encoder(make_encoder(), here / "bundled", half=True)
    finetune = ("finetune", "--data", "meshes", "--epochs", "1", "--device", "cpu")
    for words in (
        ("embed", "meshes/ball", "--device", "cpu"),
        ("export", "mine"),
        (*finetune, "--output", "one"),
        (*finetune, "--output", "two", "--from-scratch"),
    ):
        assert run(*words) == 0
        said = capsys.readouterr().err
        assert said.count(f"{gone}; {BUNDLED} is taken in its place (--encoder)\n") == 1
    assert run("export", "other", "--encoder", BUNDLED) == 0
    assert "gone" not in capsys.readouterr().err


def test_export_takes_the_bundled_encoder_last_and_replaces_nothing_unasked(
    bundled: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", "mine") == 0
    said = capsys.readouterr()
    assert f"encoder: {BUNDLED}, which comes with pointdistill" in said.err
    assert said.out.startswith(f"{BUNDLED} -> mine/model.safetensors, ")
    written = Path("mine/model.safetensors").stat().st_mtime_ns
    assert run("export", "mine", "--encoder", BUNDLED) == 2
    assert "mine/model.safetensors exists; name another folder" in capsys.readouterr().err
    assert Path("mine/model.safetensors").stat().st_mtime_ns == written
    assert run("export", "mine", "--encoder", BUNDLED, "--overwrite") == 0
    assert Path("mine/model.safetensors").stat().st_mtime_ns != written
