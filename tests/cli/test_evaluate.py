"""The command's own part: its names, its exit codes, what it prints."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from pointdistill.cli import main
from pointdistill.cli.evaluate import BenchmarkName, ProtocolName
from pointdistill.data.benchmark_standins import ScanSizes, make_scanobjectnn_stand_in
from pointdistill.data.benchmarks.registry import ALL_PROTOCOLS, BENCHMARKS
from pointdistill.data.files.workspace import remember_run, remember_stand_in
from pointdistill.engine.weights.encoders import load_encoder, save_encoder
from pointdistill.model.config import EncoderConfig
from pointdistill.model.encoder import Encoder
from pointdistill.model.initialize import initialize


def run_program(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run and a small stand-in, as the current one."""
    monkeypatch.chdir(tmp_path)
    config = EncoderConfig(
        width=12,
        depth=1,
        heads=2,
        stage_one=(8, 8),
        stage_two=(8,),
        points=48,
        patches=6,
        patch_points=8,
    )
    encoder = Encoder(config)
    initialize(encoder, generator=torch.Generator().manual_seed(0))
    save_encoder(encoder, Path("runs/a/encoder"), training={"name": "tiny", "mode": "dual"})
    Path("runs/a/metrics.jsonl").write_text("")
    remember_run(Path("runs/a"))
    archive = Path("data/stand-in/h5_files.zip")
    sizes = ScanSizes(train=2, test=1, copies=1)
    make_scanobjectnn_stand_in(archive, splits=("OBJ-BG",), sizes=sizes, workers=1)
    remember_stand_in("scanobjectnn", archive)
    return tmp_path


def test_names_offered_are_those_of_the_registry() -> None:
    assert tuple(BenchmarkName) == (*BENCHMARKS, "folder", "all")
    assert tuple(ProtocolName) == (*ALL_PROTOCOLS, "all")


def test_results_and_the_next_step_are_printed(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_program(
        *("evaluate", "scanobjectnn", "--stand-in", "--split", "OBJ-BG"),
        *("--protocol", "knn", "--protocol", "svm", "--device", "cpu", "--seeds", "1"),
    )
    out, err = capsys.readouterr()
    assert code == 0
    assert "encoder: runs/a/encoder, the teacher of the last run in this folder" in err
    assert "data: ScanObjectNN stand-in, OBJ-BG" in err
    assert "Accuracy on ScanObjectNN stand-in, OBJ-BG\n" in out
    assert [line.split("\t")[0] for line in out.splitlines() if line[:4] in ("knn\t", "svm\t")]
    assert "not comparable with published" in out
    assert out.splitlines()[-1] == "next: pointdistill evaluate modelnet40 --stand-in"
    assert (workplace / "runs/a/evaluation/scanobjectnn-stand-in/results.json").is_file()


def test_without_the_archive_one_line_and_exit_code_2(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program("evaluate", "scanobjectnn") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "data/h5_files.zip" in err
    assert "--stand-in" in err


def test_seeds_are_three_and_deviations_are_named(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_program(
        *("evaluate", "scanobjectnn", "--stand-in", "--split", "OBJ-BG", "--device", "cpu"),
        *("--protocol", "linear", "--epochs", "2", "--votes", "2", "--output", "out"),
    )
    out = capsys.readouterr().out
    assert code == 0
    assert "linear (2 of 150 epochs, 2 votes)" in out
    assert "Seeds: 0, 1, 2; mean ± sample standard deviation." in out
    assert "results: out/results.json, out/results.md" in out


def test_an_epoch_is_selected_on_clouds_that_are_held_out(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_program(
        *("evaluate", "scanobjectnn", "--stand-in", "--split", "OBJ-BG", "--device", "cpu"),
        *("--protocol", "knn", "--protocol", "linear", "--protocol", "finetune"),
        *("--epochs", "2", "--hold-out", "0.5", "--seeds", "1", "--augmented-copies", "1"),
        *("--output", "out"),
    )
    out = capsys.readouterr().out
    assert code == 0
    assert "best epoch %\tselected %" in out
    rows = {
        row["protocol"]: row for row in json.loads(Path("out/results.json").read_text())["results"]
    }
    assert (rows["knn"]["hold_out"], rows["knn"]["selected_accuracy"]) == (None, None)
    for protocol in ("linear", "finetune"):
        assert rows[protocol]["hold_out"] == 0.5
        last, best = (rows[protocol][f"{key}accuracy"] for key in ("", "best_epoch_"))
        assert rows[protocol]["selected_accuracy"]["mean"] <= best["mean"]
        assert last["mean"] <= best["mean"]
    assert "finetune (2 of 150 epochs, 50 % held out)" in out
    assert "Selected: the test score after the epoch that was best on the held-out part" in out


def test_partial_shapes_have_a_table_and_a_curve_of_several_encoders(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = load_encoder(Path("runs/a/encoder"))
    initialize(other, generator=torch.Generator().manual_seed(1))
    save_encoder(other, Path("other"))
    words = ("evaluate", "scanobjectnn", "--stand-in", "--split", "OBJ-BG", "--device", "cpu")
    words += ("--protocol", "partial-knn", "--protocol", "partial-svm", "--output", "out")
    assert run_program(*words, "--seeds", "2") == 0
    assert run_program(*words, "--seeds", "2", "--encoder", "other") == 0
    out = capsys.readouterr().out
    shares = "\t".join(f"{cut} {s} %" for cut in ("random", "contiguous") for s in (75, 50, 25))
    assert f"whole OA %\twhole mAcc %\t{shares}" in out
    assert "Accuracy with a share of each test cloud's points kept, on ScanObjectNN" in out
    rows = json.loads(Path("out/results.json").read_text())["results"]
    assert len(rows) == 4
    assert len(rows[0]["further"]) == 6
    pictures = sorted(path.name for path in Path("out/pictures").iterdir())
    assert len(pictures) == 2, "one for each probe, with both encoders"
    assert Path("out/results.md").read_text().count("![") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--hold-out", "0.6"), "hold_out must be above 0 and at most 0.5, got 0.6"),
        (("--hold-out", "0.1", "--protocol", "knn"), "is tested after every epoch"),
        (
            ("--hold-out", "0.1", "--protocol", "mlp", "--votes", "3"),
            "an epoch is selected without",
        ),
    ],
)
def test_a_hold_out_that_cannot_be_is_one_line(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program("evaluate", "scanobjectnn", *words) == 2
    assert message in capsys.readouterr().err


def test_ctrl_c_says_that_what_is_finished_stays(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pointdistill.engine.evaluation.classification.trained_score", interrupt)
    code = run_program(
        *("evaluate", "scanobjectnn", "--stand-in", "--split", "OBJ-BG", "--device", "cpu"),
        *("--protocol", "knn", "--protocol", "finetune", "--seeds", "1"),
    )
    assert code == 130
    assert "what is done is kept, the same command goes on" in capsys.readouterr().err
    assert len(list(Path("runs/a/evaluation/scanobjectnn-stand-in/scores").iterdir())) == 1


def test_the_first_ctrl_c_of_a_training_is_answered(
    workplace: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)
        assert "finishing this step, then saving; a second signal stops at once" in (
            capfd.readouterr().err
        )
        raise KeyboardInterrupt

    monkeypatch.setattr("pointdistill.engine.evaluation.classification.trained_score", stopped)
    code = run_program(
        *("evaluate", "scanobjectnn", "--stand-in", "--split", "OBJ-BG", "--device", "cpu"),
        *("--protocol", "finetune", "--seeds", "1"),
    )
    assert code == 130


def test_all_measures_what_there_is_and_says_what_there_is_not(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An archive with one of ScanObjectNN's three splits, and nothing of the other benchmarks."""
    Path("data/h5_files.zip").write_bytes(Path("data/stand-in/h5_files.zip").read_bytes())
    code = run_program("evaluate", "all", "--protocol", "knn", "--seeds", "1", "--device", "cpu")
    out = capsys.readouterr().out
    assert code == 0
    assert "Accuracy on ScanObjectNN stand-in, OBJ-BG\n" in out
    missing = [line for line in out.splitlines() if line.startswith("not measured: ")]
    assert [line.split(": ")[1] for line in missing] == [
        "modelnet40",
        "fewshot",
        "lvis",
        "psb",
        "scanobjectnn, OBJ-ONLY",
        "scanobjectnn, PB-T50-RS",
    ]
    assert "modelnet.cs.princeton.edu" in missing[0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("modelnet10",), "modelnet10"),
        (("scanobjectnn", "--protocol", "parts"), "parts"),
        (("scanobjectnn", "--protocol", "knn", "--votes", "3"), "knn"),
        (("scanobjectnn", "--split", "PB"), "PB"),
        (("scanobjectnn", "--encoder", "nowhere", "--stand-in"), "nowhere"),
        (("scanobjectnn", "--up", "y"), "scanobjectnn has its own axes"),
        (("psb",), "prepare-data psb"),
        (("folder",), "--data"),
        (("folder", "--data", "nothing-here"), "nothing-here"),
        (("folder", "--data", "runs", "--up", "up"), "up must be one of"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    workplace: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    named: str,
) -> None:
    assert run_program("evaluate", *arguments) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert named in err
