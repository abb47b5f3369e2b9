"""Checkpoints: whole or not there, written behind the training's back, and a disk that is full."""

from __future__ import annotations

import errno
import json
import logging
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from pointdistill.engine.pretraining import checkpoints as saving
from pointdistill.engine.pretraining import trainer
from pointdistill.engine.pretraining.checkpoints import (
    Saver,
    Snapshot,
    is_whole,
    list_checkpoints,
    load_latest,
    new_state,
    take_snapshot,
    write_snapshot,
)
from pointdistill.engine.pretraining.monitor import DeviceMetrics
from pointdistill.engine.pretraining.pretrain import pretrain
from pointdistill.engine.pretraining.run_folder import read_metrics
from pointdistill.engine.pretraining.step import TrainingStep
from pointdistill.errors import CheckpointError
from tests.engine.conftest import MemoryCorpus, micro_config
from tests.engine.runs import assert_equal, assert_same_bits, options, tensors


def snapshot(step: int = 1) -> Snapshot:
    state = new_state(micro_config())
    state.step = step
    taken = take_snapshot(state, seconds=1.5, keep=True)
    assert taken is not None
    return taken


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Writing past ``size`` bytes of a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_snapshot_is_a_copy_and_comes_back_as_it_was(tmp_path: Path) -> None:
    state = new_state(micro_config())
    before = tensors(state)
    taken = take_snapshot(state, seconds=1.5, keep=True)
    assert taken is not None
    with torch.no_grad():
        for parameter in (*state.student.parameters(), *state.teacher.parameters()):
            parameter.add_(1.0)
    write_snapshot(taken, tmp_path, keep=1)
    found, described = load_latest(tmp_path)
    assert_equal(tensors(found), before)
    assert described.seconds == 1.5


def test_a_snapshots_encoder_is_the_teachers() -> None:
    state = new_state(micro_config())
    taken = take_snapshot(state, seconds=0.0, keep=True, moments=False)
    assert taken is not None
    assert taken.moments == {}
    points = torch.randn(2, 48, 3, generator=torch.Generator().manual_seed(0))
    found, wanted = taken.teacher_encoder()(points), state.teacher.encoder(points)
    assert torch.equal(found.patches, wanted.patches)


def cut_short(checkpoint: Path) -> None:
    file = checkpoint / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def without_state(checkpoint: Path) -> None:
    (checkpoint / "state.json").unlink()


def half_described(checkpoint: Path) -> None:
    state = checkpoint / "state.json"
    state.write_text(state.read_text()[:40])


def without_model(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()


def half_renamed(checkpoint: Path) -> None:
    checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.4711.part"))


def emptied(checkpoint: Path) -> None:
    for file in checkpoint.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    "damage", [cut_short, without_state, half_described, without_model, half_renamed, emptied]
)
def test_a_damaged_checkpoint_is_never_loaded_and_the_one_before_is(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    for step in (1, 2):
        write_snapshot(snapshot(step), tmp_path, keep=2)
    damage(tmp_path / "step-00000002")
    assert load_latest(tmp_path)[0].step == 1


@pytest.mark.parametrize(
    "change",
    [
        {"step": "2"},
        {"step": -1},
        {"seconds": None},
        {"config": []},
        {"files": {"/dev/zero": "0" * 64}},
        {"files": {}},
        {"version": [[[]]]},
    ],
)
def test_a_state_of_another_form_is_damage_too(change: dict[str, object], tmp_path: Path) -> None:
    """A name that leads elsewhere is not opened: of ``/dev/zero`` there is no end."""
    for step in (1, 2):
        write_snapshot(snapshot(step), tmp_path, keep=2)
    path = tmp_path / "step-00000002" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert not is_whole(path.parent)
    assert load_latest(tmp_path)[0].step == 1


def test_damaged_rows_of_the_metrics_are_left_out_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        b'{"step": 1, "loss": 2.5}',
        b'{"step": 2, "loss": [}',
        b'{"step": "3"}',
        b"[4]",
        b'{"step": 5, "lo',
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(rows))
    with caplog.at_level(logging.WARNING, "pointdistill"):
        assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.5}]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith("metrics.jsonl: 4 rows are cut short or damaged, and are left out")


def test_a_damaged_checkpoint_of_the_same_step_is_written_anew(tmp_path: Path) -> None:
    write_snapshot(snapshot(), tmp_path, keep=1)
    cut_short(tmp_path / "step-00000001")
    write_snapshot(snapshot(), tmp_path, keep=1)
    assert load_latest(tmp_path)[0].step == 1


def test_thinning_never_counts_what_a_run_could_not_go_on_with(tmp_path: Path) -> None:
    """12 is damaged, so the run went on from 8 and saves 10: 10 is kept, and 12 does not stand for it."""
    for step in (4, 8, 12):
        write_snapshot(snapshot(step), tmp_path, keep=3)
    cut_short(tmp_path / "step-00000012")
    write_snapshot(snapshot(10), tmp_path, keep=2)
    assert [path.name[-2:] for path in list_checkpoints(tmp_path)] == ["08", "10"]
    assert load_latest(tmp_path)[0].step == 10


def test_a_checkpoint_that_is_passed_over_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        write_snapshot(snapshot(step), tmp_path, keep=2)
    without_model(tmp_path / "step-00000002")
    with caplog.at_level(logging.WARNING, "pointdistill"):
        load_latest(tmp_path)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "step-00000002/model.safetensors is missing or damaged" in line


def test_a_state_on_the_cpu_never_asks_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """To wait for a GPU would take memory of one that ``--device cpu`` left alone."""
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: asked.append(device))
    snapshot()
    assert asked == []


def test_a_full_disk_leaves_nothing_of_the_new_and_all_of_the_old(tmp_path: Path) -> None:
    write_snapshot(snapshot(1), tmp_path, keep=1)
    with files_up_to(4096), pytest.raises((OSError, saving.SafetensorError)):
        write_snapshot(snapshot(2), tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert load_latest(tmp_path)[0].step == 1


def test_training_goes_on_when_a_checkpoint_cannot_be_written(
    memory_corpus: MemoryCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The disk is full at step 4 and has room again at step 6: one line, and the run of a larger disk."""
    write = saving.save_file

    def full_at_four(tensors: Any, path: Path) -> None:
        if "step-00000004" in str(path):
            path.write_bytes(b"a part")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(tensors, path)

    whole, run = tmp_path / "whole", tmp_path / "run"
    pretrain(micro_config(), corpus=memory_corpus, run=whole, options=options())
    monkeypatch.setattr(saving, "save_file", full_at_four)
    with caplog.at_level(logging.WARNING, "pointdistill"):
        pretrain(
            micro_config(), corpus=memory_corpus, run=run, options=options(save_every=2, keep=9)
        )
    assert [path.name[-1] for path in list_checkpoints(run / "checkpoints")] == ["2", "6", "7"]
    assert [record.getMessage() for record in caplog.records] == [
        "the checkpoint of step 4 could not be written (No space left on device); training continues, "
        "older checkpoints are intact"
    ]
    assert_same_bits(run, whole)


def test_a_last_checkpoint_that_cannot_be_written_is_an_error_and_can_be_mended(
    memory_corpus: MemoryCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = saving.save_file

    def full(tensors: Any, path: Path) -> None:
        if "step-00000007" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(tensors, path)

    run = tmp_path / "run"
    monkeypatch.setattr(saving, "save_file", full)
    with pytest.raises(
        CheckpointError,
        match=r"after step 7 could not be saved \(No space.*Last good checkpoint: .*step-00000006",
    ):
        pretrain(micro_config(), corpus=memory_corpus, run=run, options=options(save_every=6))
    monkeypatch.undo()
    pretrain(micro_config(), corpus=memory_corpus, run=run, resume=True, options=options())
    pretrain(micro_config(), corpus=memory_corpus, run=tmp_path / "whole", options=options())
    assert_same_bits(run, tmp_path / "whole")
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3, 4, 5, 6, 7]


def test_a_snapshot_is_written_while_its_caller_goes_on() -> None:
    """``save`` returns at once; the next ``save`` waits, so that no more than one is held."""
    free, written = threading.Event(), []

    def write(taken: Snapshot) -> None:
        free.wait(10)
        written.append(taken.step)

    saver = Saver(write, safe=0)
    saver.save(snapshot(1))
    assert written == []
    free.set()
    saver.save(snapshot(2))
    assert written[:1] == [1]
    assert saver.safe >= 1
    saver.close()
    assert written == [1, 2]


def test_a_bug_while_writing_is_not_taken_for_a_full_disk() -> None:
    def write(_taken: Snapshot) -> None:
        raise ZeroDivisionError

    saver = Saver(write, safe=0)
    saver.save(snapshot())
    with pytest.raises(ZeroDivisionError):
        saver.wait()
    saver.close()


@pytest.mark.parametrize("every", [1, 2, 4])
def test_a_slow_disk_is_waited_for_before_a_kill_could_cost_more(
    every: int, memory_corpus: MemoryCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint takes longer than steps do; none is taken more than ``every`` past the last on the disk."""
    write, behind = saving.write_snapshot, []

    def slow(*arguments: Any, **keywords: Any) -> Path:
        time.sleep(0.3)
        return write(*arguments, **keywords)

    class Watched(TrainingStep):
        def __call__(self, *arguments: Any, **keywords: Any) -> DeviceMetrics:
            numbers = super().__call__(*arguments, **keywords)
            saved = list_checkpoints(tmp_path / "run" / "checkpoints")
            newest = int(saved[-1].name.removeprefix("step-")) if saved else 0
            behind.append(numbers.step - newest)
            return numbers

    monkeypatch.setattr(trainer, "write_snapshot", slow)
    monkeypatch.setattr(trainer, "TrainingStep", Watched)
    pretrain(
        micro_config(),
        corpus=memory_corpus,
        run=tmp_path / "run",
        options=options(save_every=every),
    )
    assert len(behind) == 7
    assert max(behind) == every


def test_checkpoints_begin_a_tenth_early() -> None:
    found = [options(save_every=every).steps_between_checkpoints for every in (1, 9, 10, 500)]
    assert found == [1, 9, 9, 450]


def test_thinning_leaves_intact_checkpoints_of_later_steps(tmp_path: Path) -> None:
    """What is newer than the checkpoint that a run was resumed from is not this run's to remove."""
    for step in (4, 8, 12):
        write_snapshot(snapshot(step), tmp_path, keep=3)
    write_snapshot(snapshot(10), tmp_path, keep=1)
    assert [path.name[-2:] for path in list_checkpoints(tmp_path)] == ["10", "12"]


def test_of_a_linked_checkpoint_only_the_link_is_removed(tmp_path: Path) -> None:
    """Such as one of another run, or a name that a folder from elsewhere holds."""
    others, folder = tmp_path / "others", tmp_path / "run"
    kept = write_snapshot(snapshot(1), others, keep=2)
    folder.mkdir()
    (folder / kept.name).symlink_to(kept)
    (folder / "step-99999999").symlink_to(tmp_path)
    for step in (2, 3):
        write_snapshot(snapshot(step), folder, keep=2)
    assert [path.name for path in list_checkpoints(folder)] == ["step-00000002", "step-00000003"]
    assert is_whole(kept)
