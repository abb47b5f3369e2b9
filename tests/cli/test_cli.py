"""The command line as a whole: its surface, its exit codes, and how long ``--help`` takes to load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from pointdistill.cli import app, main
from pointdistill.cli.run_options import ModeName, Size
from pointdistill.engine.recipes import SIZES
from pointdistill.model.distillation import Mode

SURFACE = {
    "quickstart": {"--folder", "--seed", "--shapes", "--steps"},
    "prepare-data": {
        "--input",
        "--archive",
        "--archives",
        "--output",
        "-o",
        "--points",
        "--shapes",
        "--seed",
        "--workers",
        "--cluster",
        "--deadline",
        "--memory",
        "--retry",
        "--up",
        "--include-test",
        "--plan",
        "--fetch",
        "--sources",
        "--take-tests",
        "--exclude-tests",
    },
    "inspect": {"--json"},
    "verify": set(),
    "preview": {"--shapes", "--seed", "--ids", "--label", "--source", "--output", "-o"},
    "recipes": set(),
    "plan": {
        "--recipe",
        "--size",
        "--mode",
        "--config",
        "--set",
        "--data",
        "--shapes",
        "--epochs",
        "--steps",
        "--batch-size",
        "--keep",
        "--device",
        "--precision",
        "--no-measure",
    },
    "pretrain": {
        "--recipe",
        "--config",
        "--set",
        "--keep",
        "--probe",
        "--probe-every",
        "--track",
        "--sharding",
        "--size",
        "--mode",
        "--data",
        "--run",
        "--resume",
        "--init-from",
        "--epochs",
        "--steps",
        "--batch-size",
        "--seed",
        "--save-every",
        "--device",
        "--precision",
    },
    "evaluate": {
        "--encoder",
        "--data",
        "--stand-in",
        "--split",
        "--protocol",
        "--seeds",
        "--corpus",
        "--epochs",
        "--votes",
        "--augmented-copies",
        "--output",
        "--device",
    },
    "leaks": {"--corpus", "--encoder", "--data", "--stand-in", "--split", "--json", "--workers"},
    "finetune": {
        "--data",
        "--encoder",
        "--output",
        "-o",
        "--split",
        "--stand-in",
        "--from-scratch",
        "--frozen",
        "--epochs",
        "--seed",
        "--held-out",
        "--up",
        "--resume",
        "--device",
    },
    "predict": {"--category", "--output", "-o", "--up", "--json", "--device"},
    "embed": {
        "--output",
        "-o",
        "--encoder",
        "--features",
        "--points",
        "--draws",
        "--seed",
        "--up",
        "--batch-size",
        "--device",
    },
    "search": {"--count", "--sheet", "--encoder", "--up", "--device"},
    "sample": {
        "--points",
        "--seed",
        "--output",
        "-o",
        "--format",
        "--up",
        "--repair",
    },
    "reconstruct": {"--encoder", "--data", "--steps", "--seeds", "--output", "--device"},
    "export": {"--encoder", "--format", "--points"},
    "push": {"--card-only", "--private"},
    "import-weights": {"--output", "--branch", "--heads"},
    "doctor": set(),
}


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


def test_every_command_has_a_row() -> None:
    assert set(SURFACE) == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", SURFACE)
def test_options_do_not_grow_by_accident(command: str) -> None:
    """A new option is a decision: extend this set and the README in the same commit."""
    known = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    options = {name for p in known.params for name in p.opts if name.startswith("-")}
    assert options == SURFACE[command]


def test_names_on_the_command_line_are_the_engines() -> None:
    assert [size.value for size in Size] == list(SIZES)
    assert [mode.value for mode in ModeName] == [mode.value for mode in Mode]


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("pointdistill ")
    assert run("--help") == 0
    assert "quickstart" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "--size", "huge"], "'huge'"),
        (["pretrain", "--sice", "tiny"], "--sice"),
        (["pretrain", "--recipe", "tinny"], "did you mean 'tiny'?"),
        (["pretrain", "--set", "masking.ratoi=1"], "did you mean 'masking.ratio'?"),
        (["pretrain", "--config", "missing.toml"], "missing.toml"),
        (["pretrain", "--resume", "--set", "seed=1"], "--set cannot be changed"),
        (["plan"], "or plan without one: --shapes N"),
        (["plan", "--shapes", "9", "--device", "tpu"], "tpu"),
        (["recipes", "tinny"], "did you mean 'tiny'?"),
        (["pretrain"], "no corpus was made in this folder yet"),
        (["pretrain", "--resume"], "no run was made in this folder yet"),
        (["pretrain", "--data", "nowhere"], "nowhere"),
        (["pretrain", "--epochs", "1", "--steps", "1"], "--epochs and --steps"),
        (["pretrain", "--device", "tpu"], "tpu"),
        (["export", "out"], "no run was made in this folder yet"),
        (
            ["export", "out", "--encoder", "x", "--points", "9"],
            "--points 9 belongs to --format onnx",
        ),
        (["reconstruct"], "no run was made in this folder yet"),
        (["push", "missing", "jane/shapes"], "no encoder here"),
        (["push", "missing", "shapes"], "expected owner/name"),
        (["evaluate", "scanobjectnn"], "--stand-in"),
        (["frobnicate"], "frobnicate"),
        (["sample", "missing.obj", "--output", "out"], "missing.obj"),
        (["prepare-data", "shapenet"], "shapenet"),
        (["import-weights", "missing.ckpt", "--output", "out"], "missing.ckpt"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert "Traceback" not in said


def test_doctor_finds_nothing_that_stops_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("doctor") == 0
    said = capsys.readouterr().out
    assert "torch" in said
    assert "nothing here would stop a run" in said


def test_help_loads_neither_torch_nor_trimesh() -> None:
    code = (
        "import sys; from pointdistill.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'trimesh', 'sklearn', 'h5py')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0
