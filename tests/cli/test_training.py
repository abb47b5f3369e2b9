"""What a training run shows, plain and on a terminal, and how it says that it must stop."""

from __future__ import annotations

import io
import json
import logging
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pointdistill.cli import console, main
from pointdistill.cli.console import training_console
from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.engine.pretraining import cost, launch, monitor
from pointdistill.engine.pretraining.run_folder import encoder_line
from pointdistill.reporter import StepRecord


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training") / "corpus"
    source = open_source("builtin", SourceRequest(shapes=16))
    build_corpus(source, folder, points=300, seed=0, workers=0)
    return folder


def record(step: int, total: int = 100, speed: float = 64.0) -> StepRecord:
    return StepRecord(
        step=step,
        total=total,
        epoch=0,
        batch_size=32,
        loss=4.25,
        terms={"patch": 4.0, "cls": 4.5},
        gradient_norm=1.0,
        learning_rate=1e-3,
        shapes_per_second=speed,
    )


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


def test_a_file_gets_a_line_a_minute_and_no_control_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps of 40 seconds: the first, the third (80 s later), the fifth, and the last."""
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    file = io.StringIO()
    with training_console(Console(file=file)) as reporter:
        for step in range(1, 7):
            reporter.step(record(step, total=6))
            clock[0] += 40.0
    text = file.getvalue()
    assert [line.split(":")[0] for line in text.splitlines()] == [
        f"step {step} of 6" for step in (1, 3, 5, 6)
    ]
    assert text.splitlines()[1].endswith("64 shapes/s, 2 min left")
    assert text.isprintable() or set(text) - {c for c in text if c.isprintable()} == {"\n"}


def test_a_terminal_gets_a_bar() -> None:
    file = io.StringIO()
    with training_console(Console(file=file, force_terminal=True, width=120)) as reporter:
        reporter.step(record(3))
    assert "3/100" in file.getvalue()
    assert "loss 4.250 (patch 4.000 cls 4.500)" in file.getvalue()


def test_a_narrow_terminal_keeps_steps_and_times_whole() -> None:
    file = io.StringIO()
    with training_console(Console(file=file, force_terminal=True, width=80)) as reporter:
        reporter.step(record(20_003, total=20_100))
    shown = file.getvalue()
    assert "20003/20100" in shown
    assert "loss 4.250 64 shapes/s" in shown
    assert "…" not in shown


def test_a_slow_run_says_its_cost_once() -> None:
    file = io.StringIO()
    with training_console(Console(file=file)) as reporter:
        for step in range(1, 6):
            reporter.step(record(step, total=90_003, speed=32.0))  # a step a second
    (line,) = [line for line in file.getvalue().splitlines() if line.startswith("cost:")]
    assert line.startswith("cost: about 25 h for this run on this device (32 shapes/s)")


def test_remarks_of_the_run_are_shown_while_it_lasts() -> None:
    file, log = io.StringIO(), logging.getLogger("pointdistill")
    with training_console(Console(file=file)):
        log.warning("the disk is [full]")
    log.warning("nobody listens")
    assert file.getvalue() == "the disk is [full]\n"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_full_memory_is_one_line_with_the_next_step(
    corpus: Path,
    tmp_path: Path,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pointdistill.engine.pretraining.launch.execute", full)
    code = run("pretrain", "--recipe", "tiny", "--data", str(corpus), "--batch-size", "8")
    assert code == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("error: a step of 8 shapes does not fit into the memory of this device")
    assert "smaller --batch-size (such as 4)" in said
    assert "pointdistill plan" in said


def test_ctrl_c_is_answered_at_once_and_saves(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The signal comes while the second step is reported: it is answered before the run is over."""
    import signal

    def signal_at_two(_reporter: console.TrainingConsole, seen: StepRecord) -> None:
        if seen.step == 2:
            signal.raise_signal(signal.SIGINT)
            assert "finishing this step, then saving" in capfd.readouterr().err

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console.TrainingConsole, "step", signal_at_two)
    code = run(
        *("pretrain", "--recipe", "tiny-mpm", "--data", str(corpus), "--batch-size", "4"),
        *("--steps", "50", "--device", "cpu", "--set", "encoder.depth=1"),
    )
    assert code == 130
    said = capfd.readouterr()
    assert "everything is saved in runs/tiny-mpm-1" in said.out
    assert "next: pointdistill pretrain --resume --run runs/tiny-mpm-1" in said.out
    assert list(Path("runs/tiny-mpm-1/checkpoints").iterdir())


def test_a_warning_is_repeated_at_the_end_with_a_command_and_stays_with_the_encoder(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every step counts as collapsed here; what follows is what a real collapse leads to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(monitor, "COLLAPSED_BELOW", 2.0)
    monkeypatch.setattr(monitor, "IN_A_ROW", 1)
    assert run(
        *("pretrain", "--recipe", "tiny-mpm", "--data", str(corpus), "--batch-size", "4"),
        *("--steps", "1", "--device", "cpu", "--set", "encoder.depth=1"),
    ) == 0  # fmt: skip
    said = capsys.readouterr().err.splitlines()
    first, again = (line for line in said if "step 1: collapse: " in line)
    assert again == f"warning: {first}"
    (remedy,) = (line for line in said if line.startswith("remedy: "))
    assert remedy == (
        f"remedy: pointdistill pretrain --config runs/tiny-mpm-1/config.json --data {corpus} "
        "--set schedule.first_patch_temperature=0.06"
    )
    # The command is read by the program, with the run's own settings and the new one.
    words = remedy.removeprefix("remedy: pointdistill pretrain ").split()
    assert run("plan", "--no-measure", "--device", "cpu", *words) == 0
    assert "schedule.first_patch_temperature = 0.06" in capsys.readouterr().err
    line = encoder_line(Path("runs/tiny-mpm-1/encoder"))
    assert "; warning of its training: step 1: collapse: " in line
    assert run("push", "runs/tiny-mpm-1", "jane/shapes", "--card-only", "card") == 0
    card = Path("card/README.md").read_text()
    assert "**Warning of the training:** step 1: collapse: the teacher puts" in card


def test_a_run_of_weeks_on_a_cpu_is_said_before_it_starts(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class BeforeTheFirstStepError(Exception):
        pass

    def stop(*_: object) -> None:
        raise BeforeTheFirstStepError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cost, "usable_cores", lambda: 2)
    monkeypatch.setattr(launch, "execute", stop)
    words = ("pretrain", "--epochs", "100000", "--data", str(corpus), "--device", "cpu")
    with pytest.raises(BeforeTheFirstStepError):
        main(words)
    said = capsys.readouterr().err
    assert re.search(
        r"warning: on this CPU the run takes about [\d.]+ days, by a rough estimate", said
    )
    assert f"`pointdistill pretrain --size tiny --data {corpus}` takes minutes" in said
    with pytest.raises(BeforeTheFirstStepError):
        main((*words[:1], *words[3:], "--size", "tiny"))
    assert "rough estimate" not in capsys.readouterr().err
    assert run("plan", "--no-measure", *words[1:]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"next: pointdistill pretrain --size tiny --data {corpus}   (minutes")


def test_recipes_are_listed_and_printed_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipes") == 0
    assert "tiny-mpm-no-predictor\tmpm\t600 steps\t32" in capsys.readouterr().out
    assert run("recipes", "tiny-mpm") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("# Our own: masked patches alone")
    assert "masking.ratio = 0.8" in lines
    assert "# Run: pointdistill pretrain --recipe tiny-mpm" in lines


def test_a_plan_by_arithmetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--recipe", "tiny-mpm", "--set", "seed=4", "--shapes", "4000", "--device", "cpu"]
    assert run("plan", "--no-measure", *arguments) == 0
    said = capsys.readouterr()
    assert "changed from tiny-mpm: seed = 4 (recipe: 0)" in said.err
    lines = dict(line.split(maxsplit=1) for line in said.out.splitlines())
    assert lines["run"] == "tiny-mpm, mpm mode"
    assert lines["steps"] == "600 of 32 shapes (4.8 epochs)"
    assert lines["basis"] == "arithmetic for float32"
    assert lines["time"].startswith("not measured; 1.66 GFLOP per step")
    assert lines["next:"] == (
        "pointdistill pretrain --recipe tiny-mpm --set seed=4 --data YOUR_CORPUS --device cpu"
    )
    assert " GiB free" in lines["disk"]
    assert not list(tmp_path.iterdir())
    assert run("plan", "--no-measure", *arguments, "--keep", "9") == 0
    many = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert float(many["disk"].split()[0]) > 2 * float(lines["disk"].split()[0])
    assert "--keep 9" in many["next:"]


def test_a_plan_for_a_gpu_elsewhere_names_no_corpus_and_no_disk_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    elsewhere = ["--shapes", "52470", "--gpu", "rtx4090"]
    assert run("plan", "--recipe", "small-shapenet", *elsewhere) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["next:"] == (
        "pointdistill pretrain --recipe small-shapenet --data YOUR_CORPUS   (on that machine)"
    )
    assert "free" not in lines["disk"]
    assert run("plan", "--recipe", "adapt", "--json", *elsewhere) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["command"].endswith("--recipe adapt --data YOUR_CORPUS --init-from ENCODER")
    assert record["free_gib"] is None


def test_the_recipe_adapt_says_its_length_and_the_command_that_runs_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("recipes") == 0
    assert "\nadapt\tdual\t20 epochs, at least 300 steps\t" in capsys.readouterr().out
    assert run("recipes", "adapt") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "# Run: pointdistill pretrain --init-from ENCODER --data YOUR_FILES" in lines
    assert "epochs = 20" in lines
