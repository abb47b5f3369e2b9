"""``pretrain --init-from``: an encoder continues on a user's own shapes, and is judged before and after."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pointdistill.cli import main
from pointdistill.data.corpus import open_corpus
from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.files.workspace import last_run
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.engine.config.recipes import RECIPES, adapt, recipe
from pointdistill.engine.pretraining import adapting
from pointdistill.engine.pretraining.adapting import (
    Judge,
    expected_first_loss,
    nearest_rows,
    overlap,
    read_judgement,
    twins_found,
    two_draws,
)
from pointdistill.engine.pretraining.checkpoints import list_checkpoints
from pointdistill.engine.runtime import devices
from pointdistill.engine.weights.encoders import fingerprint, load_encoder, save_encoder
from pointdistill.model.config import EncoderConfig, Mode
from pointdistill.model.encoder import Encoder
from pointdistill.model.initialize import initialize
from tests.warm import Warm

CONFIG = EncoderConfig(
    width=16,
    depth=1,
    heads=2,
    stage_one=(8, 8),
    stage_two=(8,),
    points=64,
    patches=8,
    patch_points=8,
)
"""A size that no recipe has."""


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


def weights(folder: Path, config: EncoderConfig = CONFIG) -> Path:
    encoder = Encoder(config)
    initialize(encoder, generator=torch.Generator().manual_seed(0))
    sources = [{"name": "toys4k", "licence": "each object under its own licence", "shapes": 9}]
    save_encoder(encoder, folder, sources=sources, training={"name": "mine", "mode": "dual"})
    return folder


def write_clouds(folder: Path, *, classes: int, each: int) -> Path:
    """Boxes of a class's own proportions, as point files in one sub-folder a class."""
    rng = np.random.default_rng(0)
    for number in range(classes):
        (folder / f"class{number}").mkdir(parents=True)
        for shape in range(each):
            stretch = 1.0 + number * np.array([0.0, 1.0, 3.0])
            points = rng.uniform(-1.0, 1.0, (200, 3)) * stretch
            np.savetxt(folder / f"class{number}" / f"{shape}.xyz", points)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    # In this process: workers take longer to start than a dozen files to read.
    monkeypatch.setattr("pointdistill.data.corpus_building.build.usable_cores", lambda: 0)
    weights(tmp_path / "weights")
    return tmp_path


def test_a_folder_of_files_is_made_a_corpus_and_judged_on_its_labels(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clouds(here / "mine", classes=2, each=6)
    words = ("--init-from", "weights", "--data", "mine", "--steps", "3", "--device", "cpu")
    assert run("pretrain", *words) == 0
    out, err = capsys.readouterr()
    assert "encoder: weights" in err
    assert "run: runs/adapt-dual-1\n" in err
    assert "corpus: runs/adapt-dual-1-corpus, made of 12 files in mine\n" in err
    assert "note: files that state no up axis were taken as z up (--up)\n" in err
    assert "changed from adapt: steps = 3 (recipe: 300)" in err
    assert "warning: 12 shapes are few: each is seen 1 times" in err
    assert "first loss: about 5.52 expected, 4.4 to 6.9 is healthy" in err
    assert ", near the 5.52 expected" in err
    assert "The weights before and after\n" in out
    assert "nearest neighbours with your labels, 5 folds, 2 classes\t" in out
    assert "a shape found by another draw of its points\t" in out
    assert "% of the 1 nearest of a shape are the same before and after" in out
    made = Path("runs/adapt-dual-1")
    assert last_run() == made
    judged = read_judgement(made)
    assert judged is not None
    assert judged.after is not None
    assert (judged.shapes, judged.classes, judged.folds) == (12, 2, 5)
    # The encoder has the weights' own size, and its ledger begins with what they were trained on.
    facts = json.loads((made / "encoder/config.json").read_text())
    assert load_encoder(made).config == CONFIG
    assert [source["name"] for source in facts["sources"]] == ["toys4k", "folder"]
    begun = facts["training"]["continued_from"]
    assert begun["fingerprint"] == fingerprint(load_encoder(here / "weights"))
    assert begun["training"]["name"] == "mine"
    # What it has seen is not these few shapes alone.
    assert run("embed", "mine", "--draws", "1", "--turns", "1", "--device", "cpu") == 0
    err = capsys.readouterr().err
    assert "encoder: runs/adapt-dual-1/encoder, the teacher of the last run" in err
    assert "it has seen" not in err


def test_a_corpus_without_labels_is_judged_by_neighbours_also_after_an_interruption(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = open_source("builtin", SourceRequest(shapes=20, procedural=1.0))
    build_corpus(source, here / "corpus", points=200, seed=0, workers=0)
    words = ("--init-from", "weights", "--data", "corpus", "--steps", "3", "--device", "cpu")
    assert run("pretrain", *words, "--run", "r") == 0
    out, _ = capsys.readouterr()
    assert "labels, " not in out
    assert "Without labels these figures say how consistent the features are" in out
    whole = read_judgement(Path("r"))
    assert whole is not None
    # As after a kill between the last step and the judgement.
    judgement = json.loads(Path("r/judgement.json").read_text())
    Path("r/judgement.json").write_text(json.dumps(judgement | {"after": None, "unchanged": None}))
    assert run("pretrain", "--resume", "--run", "r") == 0
    assert "the same 2 nearest for two draws\t" in capsys.readouterr().out
    assert read_judgement(Path("r")) == whole
    assert len(list_checkpoints(Path("r/checkpoints"))) >= 1


def test_files_with_another_up_axis_are_turned(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was y is z; the axes keep their order, since shapes are turned and not mirrored."""
    points = np.random.default_rng(0).uniform(-1.0, 1.0, (200, 3)) * (1.0, 5.0, 2.0)
    Path("mine").mkdir()
    for number in range(8):
        np.savetxt(f"mine/{number}.xyz", points)
    words = ("--init-from", "weights", "--data", "mine", "--up", "y", "--steps", "1")
    assert run("pretrain", *words, "--run", "r", "--device", "cpu") == 0
    err = capsys.readouterr().err
    assert "corpus: r-corpus, made of 8 files in mine\n" in err
    assert "up axis" not in err
    made = open_corpus(Path("r-corpus")).points(0)
    assert np.ptp(made, axis=0) == pytest.approx(np.ptp(points, axis=0)[[2, 0, 1]], rel=1e-3)
    assert run("pretrain", "--resume", "--run", "r", "--up", "y") == 2
    assert "--up is for a new run of a folder of files" in capsys.readouterr().err


@pytest.mark.parametrize("folder", [(), ("--run", "new/parents/r")], ids=["runs", "new parents"])
@pytest.mark.parametrize(
    ("broken", "asked", "message"),
    [
        (
            (3, 5),
            (),
            "mine: 7 shapes are too few to adapt to beside 2 that cannot be used (class0/3",
        ),
        ((3,), ("--batch-size", "9"), "holds 8 shapes, fewer than one batch of 9"),
        ((), ("--precision", "bf16"), "precision 'bf16' does not work on this CPU (no units)"),
    ],
    ids=["few that can be read", "no batch", "no bf16"],
)
def test_a_start_refused_after_its_corpus_was_built_leaves_nothing_new(
    here: Path,
    broken: tuple[int, ...],
    asked: tuple[str, ...],
    message: str,
    folder: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "bf16_failure", lambda: "no units")
    write_clouds(here / "mine", classes=1, each=9)
    for number in broken:
        Path(f"mine/class0/{number}.xyz").write_text("0 0 0\n1 1\n")
    before = sorted(here.rglob("*"))
    words = ("--init-from", "weights", "--data", "mine", "--device", "cpu")
    assert run("pretrain", *words, *asked, *folder) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("--batch-size", "0"), "--batch-size must be a whole number of at least 1, got '0'"),
        (("--batch-size", "13"), "holds 12 shapes, fewer than one batch of 13; use a larger"),
        (("--set", "masking.ratio=7"), "masking.ratio must lie strictly between 0 and 1, got 7.0"),
        (("--track", "tensorbord"), "no tracker 'tensorbord'; did you mean 'tensorboard'?"),
        (("--probe", "nowhere.zip"), "nowhere.zip: no such file; a probe takes builtin, a corpus"),
        (("--sharding", "fsdp"), "sharding 'fsdp' splits a model over several processes, but"),
        (("--run", "mine"), "mine is not empty and holds no run; choose a new folder (--run)"),
        (("--run", "weights/config.json"), "is not empty and holds no run; choose a new folder"),
    ],
)
def test_what_is_refused_is_refused_before_a_corpus_is_built(
    here: Path,
    asked: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("pointdistill.engine.pretraining.adapting.build_source")
    write_clouds(here / "mine", classes=2, each=6)
    before = sorted(here.rglob("*"))
    words = ("--init-from", "weights", "--data", "mine", "--device", "cpu")
    assert run("pretrain", *words, *asked) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert sorted(here.rglob("*")) == before


def test_a_folder_that_was_there_stays_after_a_refusal(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may have been made with permissions of its own."""
    write_clouds(here / "mine", classes=2, each=6)
    Path("r").mkdir()
    words = ("--init-from", "weights", "--data", "mine", "--batch-size", "13", "--run", "r")
    assert run("pretrain", *words, "--device", "cpu") == 2
    assert list(Path("r").iterdir()) == []


def test_a_folder_that_checkpoints_cannot_use_is_refused_before_a_corpus_is_built(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a mount of a bucket, which renames files alone."""

    def refuses(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.delattr("pointdistill.engine.pretraining.adapting.build_source")
    write_clouds(here / "mine", classes=2, each=6)
    before = sorted(here.rglob("*"))
    monkeypatch.setattr(Path, "rename", refuses)
    words = ("--init-from", "weights", "--data", "mine", "--device", "cpu", "--run", "r")
    assert run("pretrain", *words) == 2
    assert "r: folders cannot be renamed there (Permission denied)" in capsys.readouterr().err
    assert sorted(here.rglob("*")) == before


def test_of_two_begun_in_one_folder_one_is_refused_before_it_makes_anything(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second comes while the first builds its corpus, and again while it judges the weights."""
    pytest.importorskip("fcntl")
    write_clouds(here / "mine", classes=2, each=6)
    words = ("--init-from", "weights", "--data", "mine", "--steps", "2", "--device", "cpu")
    refused: list[str] = []

    def second() -> None:
        before = sorted(here.rglob("*"))
        assert run("pretrain", *words, "--run", "r") == 2
        refused.append(capsys.readouterr().err.splitlines()[-1])
        assert sorted(here.rglob("*")) == before

    build, begin = adapting.build_source, Judge.begin

    def build_and_meet(*given: Any, **named: Any) -> Any:
        second()
        return build(*given, **named)

    def judge_and_meet(self: Judge, encoder: Encoder) -> Any:
        second()
        return begin(self, encoder)

    monkeypatch.setattr(adapting, "build_source", build_and_meet)
    monkeypatch.setattr(Judge, "begin", judge_and_meet)
    assert run("pretrain", *words, "--run", "r") == 0
    busy = "error: r: another process is training this run; wait for it, or choose another folder"
    assert refused == [f"{busy} (--run)"] * 2
    assert len(open_corpus(Path("r-corpus"))) == 12
    assert not Path("r/.lock").exists()


@pytest.mark.slow
def test_of_two_processes_begun_in_one_folder_one_trains_and_the_other_is_refused(
    here: Path, warm: Warm
) -> None:
    pytest.importorskip("fcntl")
    write_clouds(here / "mine", classes=2, each=6)
    words = ("pretrain", "--init-from", "weights", "--data", "mine", "--steps", "2")
    words += ("--device", "cpu", "--run", "new/r")
    both = [warm.start("pointdistill", *words, cwd=here) for _ in range(2)]
    ended = sorted((one.wait() for one in both), key=lambda one: one.returncode)
    assert [one.returncode for one in ended] == [0, 2], ended
    # On a slow machine the first may be done before the second begins.
    last = ended[1].stderr.splitlines()[-1]
    assert "another process is training this run" in last or "holds a run already" in last
    left = sorted(path.name for path in Path("new").iterdir())
    assert left == ["r", "r-corpus"]
    judged = read_judgement(Path("new/r"))
    assert judged is not None
    assert judged.after is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--recipe", "adapt"), "the recipe adapt continues from weights; name an encoder"),
        (("--init-from", "weights", "--data", "few"), "4 shapes are too few to adapt to; 8 are"),
        (("--init-from", "weights", "--data", "empty"), "empty: holds no mesh or point cloud"),
        (("--init-from", "weights", "--recipe", "tiny", "--data", "few"), "not a corpus"),
        (("--data", "few", "--up", "y"), "an up axis is for a folder of files and weights to"),
        (("--init-from", "weights", "--up", "y"), "up already (--up, --init-from, --data)"),
    ],
)
def test_what_cannot_be_continued_is_one_line(
    here: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "empty").mkdir()
    if "few" in words:
        write_clouds(here / "few", classes=1, each=4)
    before = sorted(here.rglob("*"))
    assert run("pretrain", *words) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert sorted(here.rglob("*")) == before


def test_the_recipe_fits_the_weights_and_the_number_of_shapes() -> None:
    many = adapt(recipe("base").encoder, Mode.DUAL, shapes=50_000)
    assert (many.batch_size, many.steps) == (128, 20 * 390)
    assert many.predictor == recipe("base").predictor
    assert many.schedule.peak_learning_rate == pytest.approx(1e-4)
    assert many.schedule.warmup_epochs == pytest.approx(2.0)
    few = adapt(recipe("tiny").encoder, Mode.DUAL, shapes=30)
    assert (few.batch_size, few.steps, few.name) == (7, 300, "adapt")
    assert few.schedule.warmup_epochs * few.steps_per_epoch(30) == pytest.approx(30.0)
    assert few.global_crop == recipe("tiny").global_crop
    assert few.local_crop == recipe("tiny").local_crop
    odd = adapt(CONFIG, Mode.DUAL, shapes=30)
    assert (odd.global_crop.points, odd.global_crop.patches) == (64, 8)
    assert odd.local_crop is not None
    assert (odd.local_crop.points, odd.local_crop.patches) == (24, 4)
    masked = adapt(replace(CONFIG, cls_token=False), Mode.MPM, shapes=30)
    assert expected_first_loss(masked) is None
    loss = expected_first_loss(RECIPES["adapt"].config)
    assert loss == pytest.approx(2 * np.log(RECIPES["adapt"].config.head.prototypes) / 2.01)


def test_twins_and_neighbours_are_what_a_reader_can_count() -> None:
    first = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -0.1]]))
    second = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [-1.0, 0.0], [0.1, 1.0]]))
    # Only the first shape's draws are each other's nearest.
    assert twins_found(first, second) == pytest.approx(100.0 * 2 / 6)
    assert nearest_rows(first, 1)[:, 0].tolist()[:2] == [1, 0]
    assert overlap(torch.tensor([[1, 2], [0, 2]]), torch.tensor([[2, 1], [2, 3]])) == 75.0
    points = np.arange(30, dtype=np.float32).reshape(10, 3)
    draws = two_draws(points, 5, number=3)
    assert sorted(draws[..., 0].ravel().tolist()) == points[:, 0].tolist(), "no point in both"
    assert two_draws(points, 16, number=3).shape == (2, 16, 3)


def test_a_judge_measures_any_encoder_alike(here: Path) -> None:
    corpus = write_clouds(here / "mine", classes=3, each=5)
    source = open_source("folder", SourceRequest(path=corpus))
    build_corpus(source, here / "corpus", points=128, seed=0, workers=0)
    judge = Judge(open_corpus(here / "corpus"), points=64)
    encoder = load_encoder(here / "weights")
    begun = judge.begin(encoder)
    finished = judge.finish(begun, encoder)
    assert finished.after == begun.before
    assert finished.unchanged == 100.0
    assert begun.before.knn is not None
    assert begun.before.knn > 100.0 / 3.0
