"""``--json``: one document on stdout, with the values that the human's output of the same command shows."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointdistill.cli.console import print_json
from tests.cli.test_surface import surface
from tests.cli.typed import Run, typed
from tests.data.test_corpus import some_rows, write_corpus
from tests.data.test_corpus_verify import flip_byte, place_of
from tests.engine.labelled import saved_encoder
from tests.engine.test_models import classifier_folder

PAGE = Path(__file__).parents[2] / "docs" / "json.md"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Type a command beside a corpus, an encoder, a classifier, and two classes of clouds."""
    monkeypatch.chdir(tmp_path)
    write_corpus(Path("mix"), [("a", some_rows("a", 4)), ("b", some_rows("b", 3))])
    saved_encoder(Path("encoder"))
    classifier_folder(Path("cls"))
    rng = np.random.default_rng(0)
    for label, stretch in (("ball", [1, 1, 1]), ("rod", [0.1, 0.1, 1])):
        Path("meshes", label).mkdir(parents=True)
        for number in range(10):
            cloud = rng.normal(size=(80, 3)) * stretch
            np.save(Path("meshes", label, f"{number}.npy"), cloud.astype(np.float32))
    return typed(capsys)


def document(run: Run, *words: str, code: int = 0) -> Any:
    """The only thing on stdout; its format is described in docs/json.md, and so is each of its fields."""
    found, out, _ = run(*words, "--json")
    assert found == code
    told = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert told["version"] == 1
    section = PAGE.read_text(encoding="utf-8").split(f"## `{told['format']}`: ", 1)[1]
    described = set(re.findall(r"`(\w+)`", section.split("\n## ", 1)[0]))
    assert set(told) - {"format", "version"} <= described
    return told


def cells(out: str) -> list[list[str]]:
    """The rows of a command's tables."""
    return [line.split("\t") for line in out.splitlines() if "\t" in line]


def test_every_command_that_reports_something_has_it() -> None:
    commands = surface()
    del commands[""]  # the program's own name, which prints its help
    assert [name for name, options in commands.items() if "as_json" not in options] == []
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in commands if f"`{name}`" not in text] == []


def test_inspect_and_verify(run: Run) -> None:
    _, out, _ = run("inspect", "mix")
    told = document(run, "inspect", "mix")
    assert [[s["name"], str(s["shapes"])] for s in told["sources"]] == [
        row[:2] for row in cells(out) if row[0] in ("a", "b") and len(row) == 7
    ]
    _, out, _ = run("verify", "mix")
    told = document(run, "verify", "mix")
    assert (told["whole"], told["faults"]) == (True, [])
    assert f"{told['shapes']} shapes in {told['shards']} shards, content {told['content']}" in out
    shard = next(Path("mix").glob("*.h5"))
    flip_byte(shard, place_of(shard, "points"))
    code, out, _ = run("verify", "mix")
    told = document(run, "verify", "mix", code=2)
    assert code == 2
    assert told["faults"] == out.splitlines()
    assert not told["whole"]


def test_recipes_plan_and_weights(run: Run) -> None:
    _, out, _ = run("recipes")
    told = document(run, "recipes")
    rows = cells(out)[1:]
    assert [one["name"] for one in told["recipes"]] == [row[0] for row in rows]
    assert [str(one["batch_size"]) for one in told["recipes"]] == [row[3] for row in rows]
    one = document(run, "recipes", "tiny")
    assert one["config"]["batch_size"] == next(
        recipe["batch_size"] for recipe in told["recipes"] if recipe["name"] == "tiny"
    )
    asked = ("plan", "--recipe", "tiny", "--shapes", "640", "--no-measure", "--device", "cpu")
    _, out, _ = run(*asked)
    told = document(run, *asked)
    assert f"{told['steps']:,} of {told['batch_size']} shapes ({told['epochs']:.1f} epochs)" in out
    assert f"{told['memory_gib']:.2f} GiB at its peak" in out
    assert f"next: {told['command']}\n" in out
    assert told["seconds"] is None
    _, out, _ = run("weights")
    known, published = out.split("Published accuracy\n")
    models = {row[0]: row[1] for row in cells(known)[1:]}
    scores = {row[0]: row[1] for row in cells(published)[1:]}
    for one in document(run, "weights")["encoders"]:
        score = one["accuracy"]["fine-tuned"]
        assert models[one["name"]] == one["model"]
        assert scores.get(one["name"]) == (None if score is None else f"{score:.2f}")


def test_doctor(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointdistill.engine.runtime.doctor.bf16_failure", lambda: "")
    code, out, _ = run("doctor")
    told = document(run, "doctor", code=code)
    assert told["facts"]["pointdistill"] in out
    assert [line for line in out.splitlines() if line.startswith("problem: ")] == [
        f"problem: {problem}" for problem in told["problems"]
    ]


def test_embed_search_and_duplicates(run: Run) -> None:
    Path("meshes/bad.stl").write_text("no mesh")
    told = document(run, "embed", "meshes", "--encoder", "encoder", code=2)
    _, out, err = run("embed", "meshes", "--encoder", "encoder")
    assert f"{told['output']}: {told['features']} features of {told['shapes']} shapes" in out
    (failed,) = told["failed"]
    assert f"error: meshes/{failed['id']}: {failed['reason']}" in err
    assert (told["total"], told["assumed_up"], told["was_complete"]) == (21, 20, False)
    assert 0 < told["seconds"] < 60
    asked = ("search", "meshes/ball/0.npy", "--count", "2")
    _, out, _ = run(*asked)
    told = document(run, *asked)
    near = told["queries"][0]["neighbours"]
    assert [[one["id"], f"{one['similarity']:.4f}"] for one in near] == [
        row[1:] for row in cells(out)[1:]
    ]
    Path("meshes/bad.stl").unlink()
    Path("meshes/copy.npy").write_bytes(Path("meshes/ball/0.npy").read_bytes())
    _, out, _ = run("duplicates", "meshes")
    told = document(run, "duplicates", "meshes")
    assert [one["id"] for group in told["groups"] for one in group] == [
        row[1] for row in cells(out)[1:]
    ]
    assert len(told["groups"]) == 1


def test_finetune_predict_and_evaluate(run: Run) -> None:
    labelled = ("--data", "meshes", "--encoder", "encoder", "--device", "cpu")
    told = document(run, "finetune", *labelled, "--epochs", "1", "--output", "own")
    assert (told["output"], told["kind"], told["finished"], told["epochs"]) == (
        "own",
        "classifier",
        True,
        1,
    )
    assert told["score"] == json.loads(Path("own/config.json").read_text())["score"]
    assert Path(told["picture"]).read_bytes().startswith(b"\x89PNG")
    asked = ("predict", "own", "meshes", "none.obj", "--device", "cpu")
    code, out, err = run(*asked)
    told = document(run, *asked, code=code)
    shown = {row[0]: row[1] for row in cells(out)[1:]}
    assert {
        one["file"]: f"{one['class']} {100 * one['probability']:.1f} %" for one in told["files"]
    } == shown
    assert len(shown) == 20
    right = sum(
        one["class"] == one["label"] == Path(one["file"]).parent.name for one in told["files"]
    )
    # Of the 20 files, 16 were trained on, and each of the 4 others is a quarter.
    assert told["accuracy"] / 25 in range(min(4, right) + 1)
    assert (told["trained_on"], told["possibly_trained_on"]) == (16, 0)
    assert f"folders: {told['accuracy']:.1f} % of 4 files; 16 files that it was trained on" in out
    assert "picture: own-confusion.png" in out
    assert Path("own-confusion.png").read_bytes().startswith(b"\x89PNG")
    drawn = document(run, *asked, "--output", "drawn.png", code=code)["picture"]
    assert Path(drawn).read_bytes() == Path("own-confusion.png").read_bytes()
    assert told["picture"] is None
    alone = document(run, "predict", "own", "meshes/rod", "--device", "cpu")
    assert (alone["accuracy"], alone["trained_on"], alone["picture"]) == (None, None, None)
    assert f"error: {told['failed'][0]['reason']}" in err
    asked = ("evaluate", "folder", *labelled, "--protocol", "svm", "--seeds", "1")
    told = document(run, *asked)
    _, out, _ = run(*asked)
    (row,) = told["results"]
    shown = [f"{row[name]['mean']:.2f}" for name in ("accuracy", "class_accuracy")]
    assert cells(out)[1] == ["svm", *shown]
    stored = json.loads(Path(told["outputs"][0], "results.json").read_text())["results"]
    assert row in stored


def test_sample_preview_and_export(run: Run) -> None:
    asked = ("sample", "meshes", "none.obj", "--points", "50", "--output", "clouds")
    told = document(run, *asked, code=2)
    _, out, err = run(*asked, "--overwrite")
    assert f"sampled {len(told['files'])} files, 50 points each" in out
    assert f"error: {told['failed'][0]['reason']}" in err
    assert all(np.load(one["output"]).shape == (50, 3) for one in told["files"])
    told = document(run, "preview", "mix", "--shapes", "2", "--output", "seen")
    assert (told["shapes"], told["of"]) == (2, 7)
    assert Path(told["picture"]).is_file()
    assert Path(told["page"]).is_file()
    told = document(run, "export", "copy", "--encoder", "encoder")
    assert all(Path(file).is_file() for file in told["files"])
    assert (told["model"], told["difference"]) == ("encoder", None)


def test_prepare_data(run: Run) -> None:
    asked = ("prepare-data", "folder", "--input", "meshes", "--points", "64", "--workers", "0")
    Path("meshes/bad.stl").write_text("no mesh")
    told = document(run, *asked)
    _, out, _ = run(*asked)
    assert f"{told['corpus']} was complete already: {told['kept']} shapes" in out
    assert (told["refused"], told["retryable"]) == (1, {})
    assert told["causes"][0]["example_id"] == "bad.stl"


def test_corpora_of_corpora(run: Run) -> None:
    write_corpus(Path("more"), [("b", some_rows("b", 5)[3:])])
    for command, words, shapes in (
        ("merge", ("mix", "more", "--output", "both"), [9]),
        ("subset", ("mix", "--output", "few", "--source", "a", "--shapes", "2"), [2]),
        ("split", ("mix", "--output", "parts", "--shares", "train=0.5,test=0.5"), [4, 3]),
    ):
        _, out, _ = run("corpus", command, *words, "--workers", "1")
        told = document(run, "corpus", command, *words)
        assert told["command"] == command
        lines = [
            f"{one['corpus']} is complete: {one['shapes']} shapes "
            f"({', '.join(f'{name} {kept}' for name, kept in one['sources'].items())})"
            for one in told["corpora"]
        ]
        assert out.splitlines()[:-1] == lines
        assert sorted((one["shapes"] for one in told["corpora"]), reverse=True) == shapes
        assert all(one["was_complete"] for one in told["corpora"]), "the second call found them"
        assert all(
            one["content"] == json.loads(Path(one["corpus"], "corpus.json").read_text())["content"]
            for one in told["corpora"]
        )
    assert [one["part"] for one in told["corpora"]] == ["train", "test"]
    told = document(run, "corpus", "export", "mix", "--output", "arrays", "--workers", "1")
    _, out, _ = run("corpus", "export", "mix", "--output", "arrays")
    assert f"arrays was complete already: {told['shapes']} shapes in {told['files']} file" in out
    assert (told["output"], told["layout"], told["shapes"]) == ("arrays", "npz", 7)


def test_pretrain_and_report(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointdistill.engine.pretraining.monitor.COLLAPSED_BELOW", 2.0)
    monkeypatch.setattr("pointdistill.engine.pretraining.monitor.IN_A_ROW", 1)
    monkeypatch.setattr("pointdistill.engine.pretraining.online_probe.BUILTIN_SHAPES", 108)
    assert run("prepare-data", "--shapes", "8", "--points", "300", "--workers", "0")[0] == 0
    asked = ("pretrain", "--recipe", "tiny-mpm", "--batch-size", "4", "--steps", "1")
    told = document(run, *asked, "--device", "cpu", "--set", "encoder.depth=1", "--run", "one")
    assert (told["run"], told["encoder"], told["finished"]) == ("one", "one/encoder", True)
    assert (told["step"], told["steps"], told["judgement"]) == (1, 1, None)
    assert told["corpus"] == "data/builtin"
    (row,) = (json.loads(line) for line in Path("one/metrics.jsonl").read_text().splitlines())
    assert told["loss"] == pytest.approx(row["loss"])
    # Every step counts as collapsed here; a call that has nothing to do says so again, and to a reader too.
    code, out, err = run("pretrain", "--resume")
    assert (code, "1 step done; the teacher's encoder is in one/encoder" in out) == (0, True)
    (warned,) = told["warnings"]
    remedy = "pointdistill pretrain --config one/config.json --data "
    assert warned["remedy"].startswith(f"{remedy}data/builtin --set ")
    assert f"warning: {warned['warning']}\nremedy: {remedy}" in err
    told = document(run, "report", "--device", "cpu")
    assert (told["runs"], told["probe"]) == (["one"], "builtin")
    assert "<html" in Path(told["page"]).read_text(encoding="utf-8")


def test_push_and_import_weights(run: Run, golden_dir: Path) -> None:
    checkpoint = str(golden_dir / "official_tiny.ckpt")
    asked = ("import-weights", checkpoint, "--output", "theirs")
    _, out, _ = run(*asked)
    told = document(run, *asked)
    assert (
        f"{told['checkpoint']}: {told['branch']}, mode {told['mode']}, {told['parameters']:,} parameters, "
        f"width {told['width']}, depth {told['depth']}, {told['heads']} heads ({told['heads_from']})"
    ) in out
    stored = json.loads(Path(told["output"], "config.json").read_text())["encoder"]
    assert (stored["width"], stored["depth"]) == (told["width"], told["depth"])
    asked = ("push", "encoder", "jane/shapes", "--card-only", "card")
    _, out, _ = run(*asked)
    told = document(run, *asked)
    licence = (
        f"{told['licence']} ({told['licence_name']})" if told["licence_name"] else told["licence"]
    )
    assert f"encoder -> {told['folder']}: licence {licence}, no results on the card" in out
    assert (told["results"], told["address"], told["kind"]) == (0, None, "encoder")
    assert told["load"] in Path(told["card"]).read_text(encoding="utf-8")


def test_what_json_has_no_word_for_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"a": math.nan, "b": [math.inf, 1.5], "c": Path("x"), "d": np.float32(2)}
    print_json("test", values)
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "format": "pointdistill-test",
        "version": 1,
        "a": None,
        "b": [None, 1.5],
        "c": "x",
        "d": 2.0,
    }
