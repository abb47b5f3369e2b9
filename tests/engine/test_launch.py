"""From what a user typed to a run: defaults, contradictions, remarks."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.files.workspace import remember_corpus, remember_run
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.engine.config.settings import RunOverrides
from pointdistill.engine.pretraining import launch
from pointdistill.engine.pretraining.launch import (
    announce,
    execute,
    prepare_resumed_run,
    prepare_run,
)
from pointdistill.engine.pretraining.trainer import RunOptions
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


def start(size: str = "tiny", *, data: Path | None = None, **asked: Any) -> launch.PreparedRun:
    given = {} if "recipe" in asked else {"size": size}
    with prepare_run(RunOverrides(**given, **asked), data=data, device="cpu") as prepared:
        return prepared


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


@pytest.mark.parametrize(
    ("recipe", "run"),
    [
        ("tiny-mpm-no-predictor", "tiny-mpm-no-predictor-1"),  # says its mode
        ("tiny-no-local-crops", "tiny-no-local-crops-dual-1"),
    ],
)
def test_a_recipe_names_its_run(corpus: Path, recipe: str, run: str) -> None:
    found = start(data=corpus, recipe=recipe)
    assert found.config.name == recipe
    assert found.run == Path("runs", run)


def test_what_was_changed_is_said(corpus: Path) -> None:
    found = start(data=corpus, recipe="tiny-mpm", set=["masking.ratio=0.7"])
    assert found.remarks[-1] == "changed from tiny-mpm: masking.ratio = 0.7 (recipe: 0.8)"


def test_epochs_decide_over_the_recipes_steps(corpus: Path) -> None:
    assert start(data=corpus, epochs=3).config.total_steps(60) == 3


def test_a_batch_larger_than_the_corpus_shrinks_and_is_said(corpus: Path) -> None:
    found = start("small", data=corpus)
    assert found.config.batch_size <= 60
    assert any(line.startswith("batch: 60 instead of 128") for line in found.remarks)


def test_a_batch_that_does_not_fit_a_cpu_shrinks_and_is_said(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "memory_gib", lambda: 16.0)
    found = start("small", data=corpus)
    assert 2 <= found.config.batch_size < 60
    assert any("of this CPU's memory" in line for line in found.remarks)
    insisted = start("small", data=corpus, batch_size=60)
    assert insisted.config.batch_size == 60


@pytest.mark.parametrize(
    ("size", "processes", "batch", "said"),
    [
        ("small", 4, 60, "batch: 60 instead of 128, all the corpus has, and 4 processes can share"),
        ("small", 7, 56, "batch: 56 instead of 128, all the corpus has, and 7 processes can share"),
        ("tiny", 3, 30, "batch: 30 instead of 32, a multiple of the 3 processes"),
    ],
)
def test_a_batch_of_our_choice_is_one_that_the_processes_can_share(
    corpus: Path,
    size: str,
    processes: int,
    batch: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setattr(launch, "memory_gib", lambda: 1000.0)
    with prepare_run(RunOverrides(size=size), data=corpus, run=Path("run"), device="cpu") as found:
        pass
    assert found.config.batch_size == batch
    assert said in found.remarks
    monkeypatch.setattr(launch, "memory_gib", lambda: 20.0)
    with prepare_run(
        RunOverrides(size="small"), data=corpus, run=Path("run"), device="cpu"
    ) as fitted:
        pass
    assert fitted.config.batch_size < 56
    assert fitted.config.batch_size % processes == 0


@pytest.mark.parametrize(
    ("processes", "batch", "said"),
    [
        (4, 30, "batch_size 30 is not a multiple of the 4 processes; use a batch size of 28"),
        (4, 2, "batch_size 2 is not a multiple of the 4 processes; use a batch size of 4"),
        (8, 64, "holds 60 shapes, fewer than one batch of 64; .*a batch size of 56"),
        (64, None, "holds 60 shapes, fewer than the 64 processes that share a batch; start fewer"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused_with_one_that_can(
    corpus: Path, processes: int, batch: int | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    asked = RunOverrides(size="tiny", batch_size=batch)
    preparing = prepare_run(asked, data=corpus, run=Path("run"), device="cpu")
    with pytest.raises(ConfigError, match=said), preparing:
        pass
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("asked", "warning"),
    [
        ({}, None),  # 600 steps of 32, of 60 shapes
        ({"steps": 60}, None),  # 1,920, a tenth of 19,200
        ({"steps": 59}, "this run sees 1,888 shapes, the tiny recipe's 19,200"),
        ({"batch_size": 60}, "60 shapes are one batch, so every step sees them all"),
        ({"recipe": "small-shapenet", "batch_size": 60}, "60 shapes are one batch"),
    ],
)
def test_a_run_too_small_to_teach_anything_is_warned_of_once(
    asked: dict[str, Any], warning: str | None, corpus: Path
) -> None:
    said = [line for line in announce(start(data=corpus, **asked)) if line.startswith("warning: ")]
    assert len(said) == (warning is not None)
    assert all(warning in line for line in said if warning)


def test_resume_takes_the_last_run_with_its_own_configuration(corpus: Path) -> None:
    asked = RunOverrides(size="tiny", steps=2, batch_size=8, seed=3)
    with prepare_run(asked, data=corpus, device="cpu") as first:
        assert announce(first)[-1].startswith("tiny, dual mode, seed 3: 2 steps of 8 of 60")
        execute(first, RunOptions(device="cpu", stop_at=1))
    again = prepare_resumed_run(RunOverrides(), data=None, run=None)
    assert (again.run.resolve(), again.config) == (first.run.resolve(), first.config)
    assert again.resume


@pytest.mark.parametrize(
    ("overrides", "settings"),
    [
        (RunOverrides(batch_size=4), ("batch_size",)),
        (RunOverrides(recipe="tiny"), ("recipe",)),
        (RunOverrides(config=Path("run.toml")), ("config",)),
        (RunOverrides(set=["seed=1", "steps=2"], seed=0), ("set", "seed")),
    ],
)
def test_resume_refuses_what_belongs_to_the_run(
    overrides: RunOverrides, settings: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match="a run is resumed with the settings") as refused:
        prepare_resumed_run(overrides, data=None, run=None)
    assert refused.value.settings == settings


def test_resume_without_a_run() -> None:
    with pytest.raises(CheckpointError, match="no run was made in this folder yet"):
        prepare_resumed_run(RunOverrides(), data=None, run=None)


def test_a_run_that_was_deleted_is_no_last_run() -> None:
    remember_run(Path("runs/gone"))
    with pytest.raises(
        CheckpointError, match="runs/gone, the last run made in this folder, is gone"
    ):
        prepare_resumed_run(RunOverrides(), data=None, run=None)


def test_runs_prepared_together_have_a_folder_each(corpus: Path) -> None:
    asked = RunOverrides(size="tiny")
    with ExitStack() as held:
        together = [prepare_run(asked, data=corpus, device="cpu") for _ in range(3)]
        found = [held.enter_context(one).run for one in together]
        assert all(run.is_dir() for run in found)
    assert found == [Path("runs", f"tiny-dual-{k}") for k in (1, 2, 3)]
    assert not Path("runs").exists(), "none was begun"
