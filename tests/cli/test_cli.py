"""The command line as a whole: its surface, its exit codes, and how long ``--help`` takes to load."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import typing
from importlib import import_module
from pathlib import Path

import pytest

from pointdistill.cli import main, options
from pointdistill.cli.options import ModeName, Size
from pointdistill.data.meshes import Axis
from pointdistill.engine.config.recipes import SIZES
from pointdistill.engine.embedding import file
from pointdistill.engine.pretraining import trainer
from pointdistill.engine.runtime import devices
from pointdistill.engine.runtime import doctor as engine_doctor
from pointdistill.errors import DataError
from pointdistill.model.config import Mode
from tests.cli.typed import typed


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


def test_names_on_the_command_line_are_the_engines() -> None:
    assert [size.value for size in Size] == list(SIZES)
    assert [mode.value for mode in ModeName] == [mode.value for mode in Mode]
    assert options.DEVICES == devices.DEVICES
    assert options.PRECISIONS == devices.PRECISIONS
    assert set(options.UP_AXES) == set(typing.get_args(Axis))
    assert import_module("pointdistill.cli.embed").OUTPUT_SUFFIXES == file.SUFFIXES
    assert import_module("pointdistill.cli.pretrain").SHARDINGS == trainer.SHARDINGS


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("pointdistill ")
    assert run("--help") == 0
    assert "quickstart" in capsys.readouterr().out


@pytest.mark.usefixtures("no_bundled_encoder")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "--size", "huge"], "'huge'"),
        (["pretrain", "--sice", "tiny"], "--sice"),
        (["pretrain", "--recipe", "tinny"], "did you mean 'tiny'?"),
        (["pretrain", "--set", "masking.ratoi=1"], "did you mean 'masking.ratio'?"),
        (["pretrain", "--config", "missing.toml"], "missing.toml"),
        (["pretrain", "--resume", "--set", "seed=1"], "or start a new run (--set)"),
        (["plan"], "for a number of shapes (--shapes)"),
        (["plan", "--shapes", "9", "--device", "tpu"], "tpu"),
        (["recipes", "tinny"], "did you mean 'tiny'?"),
        (["pretrain"], "no corpus was made in this folder yet"),
        (["pretrain", "--resume"], "no run was made in this folder yet"),
        (["pretrain", "--data", "nowhere"], "nowhere"),
        (["pretrain", "--epochs", "1", "--steps", "1"], "give one of them (--epochs, --steps)"),
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


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 1, ""),
        (OSError(errno.ENOSPC, "no space", "out.npz"), 2, "error: out.npz: no space; give another"),
        (MemoryError(), 2, "error: not enough memory"),
        (DataError("a: damaged", settings=("data",)), 2, "error: a: damaged"),
    ],
)
def test_what_ends_a_command_decides_its_exit_code(
    raised: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def examine() -> None:
        raise raised

    monkeypatch.setattr(engine_doctor, "examine", examine)
    assert run("doctor") == code
    # Some versions of typer end an interrupted command themselves, without the program's own line.
    said = capsys.readouterr().err.strip().removesuffix("interrupted")
    assert said.startswith(line)
    assert len(said.splitlines()) == bool(line)


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


def test_embedding_a_mesh_loads_no_library_that_it_does_not_need(tmp_path: Path) -> None:
    """Accelerate trains, h5py reads corpora, scikit-learn fits probes: together 6 % of the time."""
    corners = "4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n"
    faces = "3 0 2 1\n3 0 1 3\n3 0 3 2\n3 1 2 3\n"
    (tmp_path / "one.off").write_text(f"OFF\n{corners}{faces}")
    code = (
        "import sys; from pointdistill.cli import main\n"
        "try: main(['embed', 'one.off', '--draws', '1', '--turns', '1', '--device', 'cpu'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print({'accelerate', 'h5py', 'sklearn', 'scipy', 'matplotlib'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert done.stdout.endswith("set()\n"), done.stdout


WITHOUT_TORCH = [
    ["recipes"],
    ["recipes", "tiny"],
    ["recipes", "tinny"],
    ["weights"],
    ["embed", ".", "--encoder", "asymdsd_s"],
    ["embed", "nothere.stl"],
    ["embed", ".", "--encoder", "nothere"],
    ["embed", ".", "--device", "tpu"],
    ["search", "nothere.stl"],
    ["sample", "nothere.stl", "--output", "out"],
    ["pretrain", "--data", "nothere"],
    ["pretrain", "--resume", "--run", "nothere"],
    ["pretrain", "--init-from", "nothere"],
    ["pretrain", "--config", "nothere.toml"],
    ["pretrain", "--epochs", "1", "--steps", "3"],
    ["pretrain", "--set", "nonsense"],
    ["pretrain", "--set", "masking.ratoi=1"],
    ["pretrain", "--set", "masking.ratio=2"],
    ["pretrain", "--recipe", "tinny"],
    ["pretrain", "--recipe", "tiny", "--size", "small"],
    ["pretrain", "--device", "tpu"],
    ["pretrain", "--precision", "fp8"],
    ["pretrain", "--sice", "tiny"],
    ["plan", "--data", "nothere"],
    ["plan", "--set", "nonsense"],
    ["evaluate", "scanobjectnn", "--encoder", "nothere"],
    ["evaluate", "nonsense"],
    ["finetune", "--data", "nothere"],
    ["finetune", "--resume"],
    ["finetune", "--resume", "--output", "nothere"],
    ["predict", "nothere", "nothere.stl"],
    ["predict", ".", "nothere.stl"],
    ["predict", ".", "."],
    ["embed", ".", "--up", "w"],
    ["embed", ".", "--output", "x.txt"],
    ["search", "."],
    ["evaluate", "scanobjectnn"],
    ["evaluate", "scanobjectnn", "--split", "nonsense"],
    ["evaluate", "folder"],
    ["evaluate", "folder", "--data", "nothere"],
    ["finetune"],
    ["finetune", "scanobjectnn"],
    ["duplicates", "nothere"],
    ["leaks", "scanobjectnn"],
    ["leaks", "scanobjectnn", "--corpus", "nothere"],
    ["reconstruct"],
    ["pretrain"],
    ["pretrain", "--sharding", "ddp"],
    ["reconstruct", "--data", "nothere"],
    ["export", "out", "--encoder", "nothere"],
    ["push", "nothere", "jane/shapes"],
    ["import-weights", "nothere.ckpt", "--output", "out"],
    ["inspect", "nothere"],
    ["verify", "nothere"],
    ["preview", "nothere"],
]


def test_torch_is_not_loaded_for_an_answer_without_it(tmp_path: Path) -> None:
    """Torch takes seconds to load, and an answer that does not depend on it must not wait so long."""
    # One process for all of them: the first that loads torch is found, and the start of fifty processes is saved.
    code = (
        "import contextlib, io, json, sys; from pointdistill.cli import main\n"
        f"for words in {WITHOUT_TORCH!r}:\n"
        "    said = io.StringIO()\n"
        "    try:\n"
        "        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()): main(words)\n"
        "    except SystemExit as stopped: code = stopped.code\n"
        "    print(json.dumps([words, code, said.getvalue().splitlines(), 'torch' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(WITHOUT_TORCH)
    for words, code, said, torch in answers:
        right = words[0] in ("recipes", "weights") and words != ["recipes", "tinny"]
        assert not torch, words
        assert (code, len(said)) == ((0, 0) if right else (2, 1)), (words, said)


def test_without_arguments_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert "quickstart" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_batch_system_or_a_closed_terminal_leaves_no_temporary_files(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    number = getattr(signal, name)
    earlier = signal.signal(number, signal.SIG_DFL)  # under nohup it is ignored, and stays so
    request.addfinalizer(lambda: signal.signal(number, earlier))
    place = tmp_path / "temporary"
    place.mkdir()
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")

    def ended(*_: object, **__: object) -> None:
        assert list(place.iterdir())
        os.kill(os.getpid(), number)

    monkeypatch.setattr("tempfile.tempdir", str(place))
    monkeypatch.setattr("pointdistill.data.leaks.duplicates.build_corpus", ended)
    assert run("duplicates", str(tmp_path / "shapes")) == 130
    assert "stopped" in capsys.readouterr().err
    assert list(place.iterdir()) == []
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_notebooks_backend_for_pictures_does_not_matter() -> None:
    """Notebooks set it for the commands that they run, with a module that need not be installed there."""
    code = (
        "import sys; sys.argv[1:] = ['--version']\n"
        "from pointdistill.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "from pointdistill.engine.reports.pictures import run_curves\n"
        "assert run_curves([[{'step': 1, 'loss': 2.0}]], 'loss').startswith(b'\\x89PNG')"
    )
    environment = os.environ | {"MPLBACKEND": "module://no_such_inline.backend"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_a_current_folder_that_was_removed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The libraries of torch would end the program in words of their own."""

    def getcwd() -> str:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "getcwd", getcwd)
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "error: the current folder was removed; change into one that exists\n"
    )


def test_ctrl_c_in_any_stage_of_quickstart_says_that_it_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pointdistill.engine.quickstart.build_corpus", interrupt)
    code, _, err = typed(capsys)("quickstart", "--folder", str(tmp_path / "q"), "--shapes", "64")
    assert code == 130
    assert "stopped; everything is saved in " in err
    assert "the same command continues from there" in err
