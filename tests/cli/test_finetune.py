"""``finetune`` and ``predict`` as typed: what they print, their exit codes, and Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from matplotlib.figure import Figure

from pointdistill.cli import main
from pointdistill.cli.finetune import TaskName
from pointdistill.data.benchmarks.registry import trainable_benchmarks
from pointdistill.data.meshes import read_mesh
from pointdistill.data.meshes.sample import draw_up_to
from pointdistill.data.sources import source_shape_rng
from pointdistill.data.sources.folder import read_labelled_folder
from pointdistill.engine.evaluation.tables import confusion_chart
from pointdistill.engine.finetuning.request import FOLDER
from tests.engine.labelled import saved_encoder
from tests.engine.test_finetune import mesh_folder
from tests.engine.test_models import classifier_folder, segmenter_folder


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an encoder and a few labelled meshes."""
    monkeypatch.chdir(tmp_path)
    saved_encoder(tmp_path / "encoder")
    mesh_folder(tmp_path / "meshes")
    return tmp_path


def test_names_on_the_command_line_are_the_engines() -> None:
    assert [name.value for name in TaskName] == [FOLDER, *trainable_benchmarks()]


def test_from_a_folder_to_names(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trimesh.load_mesh("meshes/rod/2.ply").export("meshes/rod/2.obj")
    Path("meshes/rod/2.ply").unlink()
    with Path("meshes/rod/2.obj").open("a") as file:
        file.write("\nf 1 2\nf 2 3\n")
    Path("meshes/labels.csv").write_text("name,class\nball,round\nrod,long\n")
    Path("meshes/rod/README.txt").write_text("Made in 2024.\nAsk me.\n")
    begin = ("finetune", "--data", "meshes", "--encoder", "encoder", "--device", "cpu")
    assert run(*begin, "--epochs", "60") == 0
    said = capsys.readouterr()
    assert "test accuracy" in said.out
    assert "chosen on the test shapes: a bound, not a result" in said.out
    assert "next: pointdistill predict models/meshes FILE…" in said.out
    prose = "left out: 2 text files without points (labels.csv, rod/README.txt)\n"
    assert said.err.count(prose) == 1
    assert "recipe few-shot, 60 epochs instead of the recipe's 150, on cpu" in said.err
    assert "left out of 1 file: 2 faces of one or two corners (rod/2.obj)" in said.err
    files = ["meshes/ball/0.ply", "meshes/rod/1.ply", "meshes/rod/2.obj", "missing.obj"]
    assert run("predict", "models/meshes", *files, "--device", "cpu") == 2
    said = capsys.readouterr()
    assert "meshes/ball/0.ply\tball " in said.out
    assert "meshes/rod/1.ply\trod " in said.out
    assert "error: missing.obj: cannot be read" in said.err
    assert "left out of 1 file: 2 faces of one or two corners (meshes/rod/2.obj)" in said.err
    assert "1 of 4 files could not be used" in said.err
    assert "note: z was taken as the up axis of 3 files without a stated one; --up sets" in said.err
    assert run("predict", "models/meshes", files[0], "--json", "--device", "cpu") == 0
    said = capsys.readouterr()
    assert "note: z was taken as the up axis of 1 file without a stated one; --up sets" in said.err
    (row,) = json.loads(said.out)["files"]
    assert row["file"] == files[0]
    assert row["class"] == max(row["probabilities"], key=row["probabilities"].get) == "ball"
    assert sum(row["probabilities"].values()) == pytest.approx(1.0)
    assert run("predict", "models/meshes", files[0], "--up", "y", "--device", "cpu") == 0
    assert "up axis" not in capsys.readouterr().err
    # The same files beside shapes that are classified or evaluated, where their names have the folder.
    assert run("predict", "models/meshes", "meshes", "--device", "cpu") == 0
    said = capsys.readouterr()
    assert (
        "left out: 2 text files without points (meshes/labels.csv, meshes/rod/README.txt)"
        in said.err
    )
    assert "README" not in said.out
    judged = (
        "--data",
        "meshes",
        "--encoder",
        "encoder",
        "--protocol",
        "retrieval",
        "--device",
        "cpu",
    )
    assert run("evaluate", "folder", *judged) == 0
    assert capsys.readouterr().err.count(prose) == 1


def test_parts_of_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    segmenter_folder(here / "seg")
    asked = ("predict", "seg", "meshes/ball/0.ply", "--category", "chair", "--device", "cpu")
    assert run(*asked, "--output", "out") == 0
    said = capsys.readouterr().out
    assert "meshes/ball/0.ply\t16,384\t" in said
    assert "parts: out" in said
    assert (here / "out" / "0.ply").read_bytes().startswith(b"ply\n")
    whole = ("predict", "seg", "meshes/ball", "--category", "chair", "--device", "cpu")
    Path("meshes/ball/a.txt").write_text("Balls of four sizes.\n")
    assert run(*whole, "--output", "meshes/ball/out") == 0
    first = capsys.readouterr()
    prose = "left out: 1 text file without points (meshes/ball/a.txt)\n"
    assert first.err.count(prose) == 1
    parts = sorted(path.name for path in (here / "meshes" / "ball" / "out").iterdir())
    assert parts == sorted(f"{path.stem}.ply" for path in (here / "meshes" / "ball").glob("*.ply"))
    assert run(*whole, "--output", "meshes/ball/out") == 0  # what was written is no input
    assert capsys.readouterr().out == first.out
    assert run(*asked, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["files"]
    assert sum(row["parts"].values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune"], "--data is missing: a folder with one sub-folder"),
        (["finetune", "--data", "meshes", "--encoder", "nowhere"], "nowhere: no encoder here"),
        (["finetune", "modelnet40", "--encoder", "encoder"], "ModelNet40.zip"),
        (["finetune", "--resume"], "give --resume with --output alone"),
        (["finetune", "--resume", "--output", "x", "--seed", "1"], "alone, and seed was given"),
        (["finetune", "--resume", "--output", "x"], "x: no such file or folder"),
        (["finetune", "cars"], "'cars'"),
        (["predict", "encoder", "a.obj"], "neither a classifier nor a segmenter"),
        (["predict", "cls", "a.obj", "--category", "chair"], "cls is a classifier"),
        (["predict", "seg", "a.obj"], "needs the files' category"),
        (["predict", "seg", "a.obj", "--category", "x", "--output", "x.obj"], "not .obj"),
        (["predict", "cls", "a.obj", "--device", "tpu"], "tpu"),
        (["predict", "cls", "missing.obj"], "missing.obj"),
        (
            ["predict", "models/x", "a.obj"],
            "can be reached (no connection to the Hub); check the name",
        ),
        (
            ["predict", "sub/clx", "a.obj"],
            "reached (no connection to the Hub); check the name, or the",
        ),
        (
            ["predict", "./segg", "a.obj"],
            "segg: no such file or folder; check its name; did you mean",
        ),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier_folder(here / "cls")
    segmenter_folder(here / "seg")
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert [line.startswith("error: ") for line in lines] == [False] * (len(lines) - 1) + [True]


def test_ctrl_c_saves_and_resume_gives_the_same_bytes(here: Path) -> None:
    begin = [sys.executable, "-m", "pointdistill", "finetune", "--device", "cpu"]
    own = ["--data", "meshes", "--encoder", "encoder", "--epochs", "60"]
    started = subprocess.Popen(
        [*begin, *own, "--output", "split"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stderr is not None
    # Said just before the first step; Ctrl-C counts from then on.
    while "recipe few-shot" not in (line := started.stderr.readline()):
        assert line, "it ended before it trained"
    time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    out, error = started.communicate(timeout=60)
    assert started.returncode == 130, error
    assert "Traceback" not in error
    assert "finishing this step, then saving; a second signal stops at once" in error
    assert "next: pointdistill finetune --resume --output split" in out
    assert not (here / "split" / "model.safetensors").exists()
    assert run("finetune", "--resume", "--output", "split", "--device", "cpu") == 0
    assert run("finetune", *own, "--output", "whole", "--device", "cpu") == 0
    whole, split = (here / name / "model.safetensors" for name in ("whole", "split"))
    assert whole.read_bytes() == split.read_bytes()


def test_files_that_it_was_trained_on_do_not_count(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of four files of a class is held out; the folder is known by its name and its bytes."""
    begin = ("finetune", "--data", "meshes", "--encoder", "encoder", "--device", "cpu")
    assert run(*begin, "--epochs", "1") == 0
    capsys.readouterr()
    predict = ("predict", "models/meshes", "--device", "cpu", "--up", "z")

    def said(*words: str) -> str:
        run(*predict, *words)
        return capsys.readouterr().out

    assert "% of 2 files; 6 files that it was trained on left out\n" in said("meshes")
    told = json.loads(said("meshes", "--json"))
    assert (told["trained_on"], told["possibly_trained_on"]) == (6, 0)
    held_out = {
        row["file"] for row in told["files"] if row["file"] not in _trained_on(here / "meshes")
    }
    assert len(held_out) == 2
    seen = [row["file"] for row in told["files"] if row["file"] not in held_out]
    assert "% of 6 files; it was trained on 6 of them, so others may fare worse" in said(*seen)
    assert said(*held_out).endswith("% of 2 files\npicture: meshes-confusion.png\n")
    (here / "meshes").rename(here / "renamed")
    assert "% of 8 files\n" in said("renamed")
    # A folder of that name with one more file: what was held out of it then is no longer known.
    (here / "renamed").rename(here / "meshes")
    (here / "meshes" / "rod" / "new.ply").write_bytes((here / "meshes/rod/0.ply").read_bytes())
    assert "% of 9 files; it may have been trained on 9 of them\n" in said("meshes")
    # The next training takes a folder of its own.
    assert run(*begin, "--epochs", "1") == 0
    assert "next: pointdistill predict models/meshes-2 FILE…" in capsys.readouterr().out


def test_confusions_are_drawn_with_the_number_of_shapes_of_each_class(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of 100 % of one shape looks like one of 100 % of a thousand, but for its number."""
    drawn: list[list[str]] = []
    save = Figure.savefig

    def spy(figure: Figure, *places: Any, **settings: Any) -> None:
        save(figure, *places, **settings)
        drawn.append([label.get_text() for label in figure.axes[0].get_yticklabels()])

    monkeypatch.setattr(Figure, "savefig", spy)
    begin = ("finetune", "--data", "meshes", "--encoder", "encoder", "--device", "cpu")
    assert run(*begin, "--epochs", "1") == 0
    (here / "meshes").rename(here / "others")
    (here / "others" / "rod" / "0.ply").unlink()
    assert run("predict", "models/meshes", "others", "--device", "cpu", "--up", "z") == 0
    assert drawn == [["ball (1)", "rod (1)"], ["ball (4)", "rod (3)"]]
    counts = [np.array([[1199, 1], [2, 3]]), np.array([[1200, 0], [2, 2]])]
    confusion_chart(counts, ["ball", "rod"], title="two seeds")
    assert drawn[-1] == ["ball (1,200)", "rod (4 to 5)"]


def _trained_on(folder: Path) -> set[str]:
    """As the training itself reads it: the files whose clouds are among its training clouds."""
    read = read_labelled_folder(folder, points=64, seed=0, workers=1).benchmark
    alone = {}
    for path in sorted(folder.rglob("*.ply")):
        rng = source_shape_rng(seed=0, source="folder", shape_id=f"{path.parent.name}/{path.name}")
        cloud = draw_up_to(read_mesh(path), 64, up="z", rng=rng)
        alone[f"meshes/{path.parent.name}/{path.name}"] = cloud
    return {
        name
        for name, cloud in alone.items()
        if any(np.allclose(cloud, other) for other in read.train.points)
    }
