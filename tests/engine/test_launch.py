"""From what a user typed to a run: defaults, contradictions, remarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pointdistill.data.build import build_corpus
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.data.workspace import remember_corpus, remember_run
from pointdistill.engine import launch
from pointdistill.engine.launch import announce, carry_out, new_launch, resumed_launch
from pointdistill.engine.pretrain import RunOptions
from pointdistill.errors import CheckpointError, ConfigError, DataError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch") / "corpus"
    source = open_source("builtin", SourceRequest(shapes=60))
    build_corpus(source, folder, points=128, seed=0, workers=0)
    return folder


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def start(size: str = "tiny", **given: Any) -> launch.Launch:
    options: dict[str, Any] = {"data": None, "run": None, "init_from": None, "device": "cpu"}
    changes = {"epochs": None, "steps": None, "batch_size": None, "seed": 0}
    known = {name: given.pop(name) for name in list(given) if name in changes}
    return new_launch(size, "dual", changes=changes | known, **(options | given))


def test_without_data_the_last_corpus_is_taken_and_named(corpus: Path) -> None:
    remember_corpus(corpus)
    found = start()
    assert found.corpus.path == corpus
    assert f"corpus: {corpus} (the last one made in this folder)" in found.remarks
    assert found.run == Path("runs/tiny-dual-1")


def test_without_any_corpus_it_says_how_to_make_one() -> None:
    with pytest.raises(
        DataError, match=r"no corpus was made in this folder yet; run `pointdistill prep"
    ):
        start()


def test_runs_are_numbered(corpus: Path) -> None:
    Path("runs/tiny-dual-1").mkdir(parents=True)
    assert start(data=corpus).run == Path("runs/tiny-dual-2")


def test_epochs_and_steps_together_are_refused(corpus: Path) -> None:
    with pytest.raises(ConfigError, match="--epochs and --steps both say how long"):
        start(data=corpus, epochs=1, steps=1)


def test_epochs_decide_over_the_recipes_steps(corpus: Path) -> None:
    assert start(data=corpus, epochs=3).config.total_steps(60) == 3


def test_a_batch_larger_than_the_corpus_shrinks_and_is_said(corpus: Path) -> None:
    found = start("small", data=corpus)
    assert found.config.batch_size <= 60
    assert any(line.startswith("batch: 60 instead of 128") for line in found.remarks)


def test_a_batch_that_does_not_fit_a_cpu_shrinks_and_is_said(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_memory_gib", lambda: 16.0)
    found = start("small", data=corpus)
    assert 2 <= found.config.batch_size < 60
    assert any("of this CPU's memory" in line for line in found.remarks)
    insisted = start("small", data=corpus, batch_size=60)
    assert insisted.config.batch_size == 60


def test_resume_takes_the_last_run_with_its_own_configuration(corpus: Path) -> None:
    first = start(data=corpus, steps=2, batch_size=8, seed=3)
    assert announce(first)[-1].startswith("tiny encoder, dual mode, seed 3: 2 steps of 8 of 60")
    carry_out(first, RunOptions(device="cpu", stop_at=1), lambda _record: None)
    again = resumed_launch(data=None, run=None, changes={"steps": None})
    assert (again.run.resolve(), again.config) == (first.run.resolve(), first.config)
    assert again.resume


def test_resume_refuses_what_belongs_to_the_run(corpus: Path) -> None:
    with pytest.raises(ConfigError, match="--batch-size cannot be changed when a run is resumed"):
        resumed_launch(data=None, run=None, changes={"batch_size": 4})


def test_resume_without_a_run() -> None:
    with pytest.raises(CheckpointError, match="no run was made in this folder yet"):
        resumed_launch(data=None, run=None, changes={})


def test_a_run_that_was_deleted_is_no_last_run() -> None:
    remember_run(Path("runs/gone"))
    with pytest.raises(CheckpointError, match="no run was made in this folder yet"):
        resumed_launch(data=None, run=None, changes={})
