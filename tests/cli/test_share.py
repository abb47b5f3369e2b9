"""From scores to a model card as typed, the code in the cards, and the command that each output names next."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh

from pointdistill.cli import leaks, main
from pointdistill.data.benchmark_standins import ScanSizes, make_scanobjectnn_stand_in
from pointdistill.data.corpus_building import BuildSettings
from pointdistill.data.corpus_building.prepare import prepare_corpus
from pointdistill.data.files.schema import to_plain
from pointdistill.data.files.workspace import remember_run, remember_stand_in
from pointdistill.data.leaks import LeakReport
from pointdistill.data.sources import SourceRequest
from pointdistill.engine.evaluation.leak_check import Checked
from pointdistill.engine.pretraining.run_folder import encoder_line
from pointdistill.engine.sharing.push import prepare
from pointdistill.engine.weights.encoders import save_encoder
from tests.engine.conftest import micro_config
from tests.engine.labelled import make_encoder, saved_encoder
from tests.engine.test_models import classifier_folder, segmenter_folder

SOURCES = [{"name": "builtin", "licence": "CC0-1.0 (made on the spot)", "shapes": 4000}]
MEASURE = ("--stand-in", "--split", "OBJ-BG", "--protocol", "knn", "--seeds", "1")
ROW = "| ScanObjectNN stand-in, OBJ-BG | knn | 48 | OA "


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


def push(source: str) -> str:
    """The model card that pushing ``source`` would upload."""
    assert run("push", source, "me/my-encoder", "--card-only", "card") == 0
    return Path("card/README.md").read_text(encoding="utf-8")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run that was trained on 4,000 shapes, and a small stand-in."""
    monkeypatch.chdir(tmp_path)
    training = {"name": "tiny", "mode": "dual", "step": 600, "seed": 0}
    save_encoder(make_encoder(), Path("runs/a/encoder"), sources=SOURCES, training=training)
    Path("runs/a/metrics.jsonl").touch()
    corpus = {"path": "/home/jane/secret", "shapes": 4000, "fingerprint": "abc"}
    described = {"format": "pointdistill-run", "corpus": corpus, "config": {}}
    Path("runs/a/config.json").write_text(json.dumps(described))
    remember_run(Path("runs/a"))
    archive = Path("data/stand-in/h5_files.zip")
    sizes = ScanSizes(train=2, test=1, copies=1)
    make_scanobjectnn_stand_in(archive, splits=("OBJ-BG",), sizes=sizes, workers=1)
    remember_stand_in("scanobjectnn", archive)
    return tmp_path


def test_evaluated_exported_and_pushed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The card of an exported encoder tells what was measured with its run's, even where the run is gone."""
    assert run("evaluate", "scanobjectnn", *MEASURE, "--device", "cpu") == 0
    assert run("export", "my-encoder") == 0
    card = push("my-encoder")
    assert ROW in card
    assert "| recipe | tiny |" in card
    assert "| shapes of the corpus | 4000 |" in card
    assert "| content of the corpus | abc |" in card
    assert "| builtin | 4,000 | CC0-1.0 (made on the spot) | any use |" in card
    assert "licence cc0-1.0, 1 result on the card\n" in capsys.readouterr().out
    assert push("runs/a") == card
    shutil.rmtree("runs")
    assert push("my-encoder") == card
    uploaded = "".join(path.read_text(errors="replace") for path in Path("card").iterdir())
    assert "secret" not in uploaded
    assert str(here) not in uploaded


def test_commands_say_which_encoder_they_took_and_that_its_run_was_stopped(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described = json.loads(Path("runs/a/config.json").read_text())
    described["config"] = to_plain(replace(micro_config(), steps=1000))
    Path("runs/a/config.json").write_text(json.dumps(described))
    trimesh.creation.box().export("box.glb")
    line, state = "encoder: runs/a/encoder", ", unfinished: step 600 of 1,000\n"
    default, by_default = ", the teacher of the last run in this folder", ("embed", "export")
    for words in (
        ("embed", "box.glb", "--points", "64"),
        ("search", "box.glb"),
        ("export", "mine"),
        ("push", "runs/a", "me/shapes", "--card-only", "card"),
    ):
        assert run(*words) == 0
        err = capsys.readouterr().err
        said = err.replace(default, "") if words[0] in by_default else err
        assert (said == err) == (words[0] not in by_default), (
            "what was not named is said to be a default"
        )
        assert f"runs/a/encoder{state}" in said, words
        assert err.count("encoder: ") == 1, words
    assert "| steps | 600 of 1000 steps, unfinished |" in Path("card/README.md").read_text()
    assert encoder_line(Path("mine")) == "encoder: mine" + state.strip()
    described["config"]["steps"] = 600
    Path("runs/a/config.json").write_text(json.dumps(described))
    assert encoder_line(Path("runs/a/encoder"), ", because") == f"{line}, because"
    Path("runs/a/encoder/config.json").write_text("{")
    assert encoder_line(Path("runs/a/encoder")) == line


def test_exported_evaluated_and_pushed(here: Path) -> None:
    """Scores of the exported folder lie under evaluation/ of the working folder; those of others do too."""
    assert run("export", "my-encoder") == 0
    other = make_encoder()
    with torch.no_grad():
        other.transformer.norm.weight.add_(1.0)
    save_encoder(other, Path("other"), sources=SOURCES)
    assert "None were recorded" in push("my-encoder")
    for name in ("my-encoder", "other"):
        measured = ("evaluate", "scanobjectnn", "--encoder", name, *MEASURE, "--device", "cpu")
        assert run(*measured) == 0
    assert push("my-encoder").count(ROW) == 1


def test_the_code_in_every_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trimesh.creation.box().export("chair.obj")
    made = {
        "me/encoder": saved_encoder(tmp_path / "encoder"),
        "me/classifier": classifier_folder(tmp_path / "classifier"),
        "me/segmenter": segmenter_folder(tmp_path / "segmenter"),
    }
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda repository, **_: str(made[repository])
    )
    said = {name: _run_snippet(prepare(made[name], name, tmp_path / name).folder) for name in made}
    assert said["me/encoder"]["features"].cls.shape == (1, 16)
    assert said["me/classifier"]["prediction"].classes == ("needle", "disc", "ball")
    assert said["me/segmenter"]["prediction"].parts.shape == (1, 1024)
    # The category that the card names is the chair, whose parts are 2, 3 and 4.
    assert set(said["me/segmenter"]["prediction"].parts.flatten().tolist()) <= {2, 3, 4}


def _run_snippet(folder: Path) -> dict[str, Any]:
    """Names that the Python in a model card leaves behind."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_push_and_evaluate_quote_what_they_name(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/a/encoder").rename("my encoder")
    assert run("push", "my encoder", "me/shapes", "--card-only", "my card") == 0
    assert last_line(capsys) == (
        "next: read 'my card/README.md', then pointdistill push 'my encoder' me/shapes"
    )
    assert run("push", "my encoder", "me/shapes", "--card-only", "my card") == 0
    said = capsys.readouterr().out
    assert "no results on the card; `pointdistill evaluate` measures some\n" in said
    measured = ("scanobjectnn", "--encoder", "my encoder", *MEASURE, "--device", "cpu")
    assert run("evaluate", *measured) == 0
    assert last_line(capsys) == (
        "next: pointdistill evaluate modelnet40 --encoder 'my encoder' --stand-in"
    )


def test_reconstruct_names_its_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    saved_encoder(tmp_path / "my encoder")
    prepare_corpus(
        "builtin",
        SourceRequest(shapes=24),
        output=tmp_path / "c",
        settings=BuildSettings(points=80, workers=1),
    )
    asked = ("reconstruct", "--data", "c", "--steps", "1", "--device", "cpu")
    assert run(*asked, "--encoder", "my encoder") == 0
    assert last_line(capsys) == "next: pointdistill export my-encoder --encoder 'my encoder'"


def test_leaks_names_its_archive(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Checked("modelnet40", Path("corpus"), ())
    monkeypatch.setattr(
        "pointdistill.engine.evaluation.leak_check.check_leaks", lambda *_, **__: found
    )
    monkeypatch.setattr(sys.modules[leaks.__module__], "require_leak_corpus", lambda *_: None)
    assert run("leaks", "modelnet40", "--encoder", "my run", "--data", "my data/M.zip") == 0
    assert last_line(capsys) == (
        "next: pointdistill evaluate modelnet40 --encoder 'my run' --data 'my data/M.zip'"
    )
    assert run("leaks", "modelnet40", "--stand-in") == 0
    assert last_line(capsys) == "next: pointdistill evaluate modelnet40 --stand-in"


def test_leaks_without_a_hit_is_a_line_and_no_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = LeakReport(
        benchmark="ModelNet40",
        test_shapes=7,
        corpus_shapes=30,
        corpus="0",
        leaks=(),
        ids_met=(),
        geometry=True,
    )
    found = Checked("modelnet40", Path("corpus"), ((None, report),))
    monkeypatch.setattr(
        "pointdistill.engine.evaluation.leak_check.check_leaks", lambda *_, **__: found
    )
    monkeypatch.setattr(sys.modules[leaks.__module__], "require_leak_corpus", lambda *_: None)
    assert run("leaks", "modelnet40", "--corpus", "corpus") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("0 of 7 test shapes are among the corpus's 30: 0 by id")
    assert second.startswith("next: ")


def test_import_weights_quotes_its_folder(
    golden_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        run("import-weights", str(golden_dir / "official_tiny.ckpt"), "--output", "my encoder") == 0
    )
    assert last_line(capsys) == "next: pointdistill evaluate scanobjectnn --encoder 'my encoder'"
