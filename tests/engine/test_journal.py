"""Rows of a run: what they hold, a disk that refuses them, trackers by name."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from pointdistill.engine.pretraining import monitor as journal
from pointdistill.engine.pretraining.monitor import Journal, check_trackers
from pointdistill.engine.pretraining.pretrain import pretrain
from pointdistill.engine.pretraining.run_folder import read_metrics
from pointdistill.errors import ConfigError, DataError
from pointdistill.model.config import Mode
from tests.engine.conftest import MemoryCorpus, micro_config
from tests.engine.runs import options

RATES = {"learning_rate", "teacher_momentum", "cls_temperature", "patch_temperature"}
ALWAYS = RATES | {"student_temperature", "step", "epoch", "loss", "gradient_norm", "seconds"}


def of_teacher(kind: str) -> set[str]:
    return {
        f"{kind}_{what}_{unit}"
        for what in ("marginal", "posterior")
        for unit in ("entropy", "share")
    }


@pytest.mark.parametrize("mode", Mode)
def test_a_row_holds_all_that_can_be_watched(
    mode: Mode, memory_corpus: MemoryCorpus, tmp_path: Path
) -> None:
    pretrain(micro_config(mode), corpus=memory_corpus, run=tmp_path, options=options(stop_at=2))
    row = read_metrics(tmp_path)[1]
    wanted = ALWAYS | {"shapes_per_second"}
    wanted |= (of_teacher("cls") | {"cls", "koleo"}) if mode.has_cls else {"regression"}
    wanted |= (of_teacher("patch") | {"patch"}) if mode.has_patches else set()
    assert row.keys() == wanted
    rates = micro_config(mode).schedule.at(1, total=7, steps_per_epoch=3)
    assert row["learning_rate"] == rates.learning_rate
    assert row["teacher_momentum"] == rates.teacher_momentum
    assert all(0.0 <= row[name] <= 1.0 for name in row if name.endswith("_share"))


def test_the_first_and_the_last_step_are_always_written(
    memory_corpus: MemoryCorpus, tmp_path: Path
) -> None:
    pretrain(micro_config(), corpus=memory_corpus, run=tmp_path, options=options(log_every=3))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3, 6, 7]


def test_a_row_that_a_full_disk_refuses_comes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = Journal(path, Accelerator(cpu=True), {})
    rows.write({"step": 1, "loss": 1.0})
    whole = Path.open

    def full(self: Path, *arguments: Any, **keywords: Any) -> Any:
        with whole(self, "a", encoding="utf-8") as file:
            file.write('{"step": 2, "lo')
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "pointdistill"):
        patch.setattr(Path, "open", full)
        rows.write({"step": 2, "loss": 2.0})
        rows.write({"step": 3, "loss": 3.0})
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: No space left on device; rows will be written later"
    ]
    rows.write({"step": 4, "loss": 4.0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_no_row_can_be_appended_to_is_refused_before_the_first_step(
    kind: str, tmp_path: Path
) -> None:
    """A pipe would be waited for."""
    path = tmp_path / "metrics.jsonl"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(DataError, match=r"metrics\.jsonl: is no regular file"):
        Journal(path, Accelerator(cpu=True), {})


def test_a_tracker_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no tracker 'tensorbord'; did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])


def test_a_tracker_without_its_package_is_refused_before_anything_starts(
    memory_corpus: MemoryCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "get_available_trackers", lambda: [])
    with pytest.raises(
        ConfigError, match="tracker 'wandb' needs a package that is not installed; run `pip install"
    ):
        pretrain(
            micro_config(),
            corpus=memory_corpus,
            run=tmp_path / "run",
            options=options(track=("wandb",)),
        )
    assert not (tmp_path / "run").exists()


class Noting(GeneralTracker):
    """A tracker that keeps what it is told."""

    name = "noting"
    requires_logging_directory = False
    told: ClassVar[list[tuple[int | None, dict[str, Any]]]] = []
    settings: ClassVar[dict[str, Any]] = {}
    finished = False

    def __init__(self, *_arguments: Any, **_keywords: Any) -> None:
        super().__init__()

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        Noting.settings = dict(values)

    def log(self, values: Mapping[str, Any], step: int | None = None, **_keywords: Any) -> None:
        Noting.told.append((step, dict(values)))

    def finish(self) -> None:
        Noting.finished = True


def test_a_tracker_is_told_every_row_and_the_settings(
    memory_corpus: MemoryCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "check_trackers", lambda _names: None)
    monkeypatch.setattr(
        "pointdistill.engine.pretraining.pretrain.check_trackers", lambda _names: None
    )
    tracker: Any = Noting()
    pretrain(
        micro_config(),
        corpus=memory_corpus,
        run=tmp_path,
        options=options(log_every=3, track=(tracker,)),
    )
    assert [step for step, _ in Noting.told] == [1, 3, 6, 7]
    written = [{n: v for n, v in row.items() if n != "step"} for row in read_metrics(tmp_path)]
    assert [values for _, values in Noting.told] == written
    assert Noting.settings["batch_size"] == 6
    assert Noting.settings["encoder.width"] == 12
    assert Noting.finished


def test_tensorboard_where_it_is_installed(memory_corpus: MemoryCorpus, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    pretrain(
        micro_config(),
        corpus=memory_corpus,
        run=tmp_path,
        options=options(stop_at=2, track=("tensorboard",)),
    )
    assert list((tmp_path / "tracking").rglob("events.out.tfevents.*"))
