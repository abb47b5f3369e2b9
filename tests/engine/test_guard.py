"""A number that is not finite changes nothing: not one weight, moment, centre or value of the teacher."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pointdistill.data.corpus import open_corpus
from pointdistill.data.corpus.shard import make_row
from pointdistill.engine.pretraining import step as step_module
from pointdistill.engine.pretraining import trainer as trainer_module
from pointdistill.engine.pretraining.checkpoints import load_latest, new_state
from pointdistill.engine.pretraining.pretrain import pretrain
from pointdistill.engine.pretraining.step import TrainingStep
from pointdistill.engine.runtime.optimizer import build_optimizer, guarded_step, update_average
from pointdistill.errors import CorpusError, DivergenceError
from pointdistill.model.config import Mode
from pointdistill.model.distillation import Head, Losses, TeacherOutput, objective
from pointdistill.reporter import StepRecord
from tests.data.test_corpus import write_corpus
from tests.engine.conftest import MemoryCorpus, micro_config
from tests.engine.runs import (
    assert_equal,
    assert_same_bits,
    losses,
    options,
    tensors,
    weights,
)
from tests.recorder import OnStep

BAD_STEP = 4

Breaking = Callable[[pytest.MonkeyPatch], None]


def break_loss(value: float) -> Breaking:
    """The loss of the bad step, and so its gradient, times ``value``."""

    def install(monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[int] = []

        def burst(*arguments: Any, **keywords: Any) -> Losses:
            found = objective(*arguments, **keywords)
            calls.append(1)
            return replace(found, total=found.total * (value if len(calls) == BAD_STEP else 1.0))

        monkeypatch.setattr(step_module, "objective", burst)

    return install


def break_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """One number of one gradient of the bad step; its loss is finite."""
    calls: list[int] = []
    clip = step_module.clip_gradients

    def clipped(parameters: Any, max_norm: float) -> torch.Tensor:
        kept = list(parameters)
        calls.append(1)
        if len(calls) == BAD_STEP:
            assert kept[-1].grad is not None
            kept[-1].grad.view(-1)[0] = math.nan
        return clip(kept, max_norm)

    monkeypatch.setattr(step_module, "clip_gradients", clipped)


def break_centers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of the teacher's logits alone, as an unmasked patch would: no loss sees it."""
    calls: list[int] = []
    targets_of = TrainingStep._targets

    def broken(self: TrainingStep, views: Any) -> tuple[TeacherOutput, dict[Head, torch.Tensor]]:
        targets, means = targets_of(self, views)
        calls.append(1)
        if len(calls) == BAD_STEP:
            means[Head.PATCH][0] = math.inf
        return targets, means

    monkeypatch.setattr(TrainingStep, "_targets", broken)


WAYS = {
    "nan": (break_loss(math.nan), "loss nan"),
    "infinite": (break_loss(math.inf), "loss inf"),
    "gradient": (break_gradient, "gradient norm nan"),
    "centres": (break_centers, "teacher's logits inf"),
}


@pytest.mark.parametrize("behind", [0, 1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_the_run_stops_with_the_state_of_the_step_before(
    way: str,
    behind: int,
    memory_corpus: MemoryCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Read at once as on a CPU, or one and two steps late as on a GPU: the state saved is that of step 3."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    pretrain(micro_config(), corpus=memory_corpus, run=whole, options=options(stop_at=BAD_STEP - 1))
    breaking, said = WAYS[way]
    breaking(monkeypatch)
    monkeypatch.setattr(trainer_module, "steps_behind", lambda _device: behind)
    with pytest.raises(
        DivergenceError,
        match=rf"step 4: .*{said}.* were not changed.*step-00000003\. A resumed run would",
    ):
        pretrain(micro_config(), corpus=memory_corpus, run=run, options=options(save_every=100))
    assert_equal(weights(run), weights(whole))
    assert load_latest(run / "checkpoints")[0].step == 3
    assert losses(run) == losses(whole)


def test_a_first_step_that_is_not_finite_leaves_nothing_to_resume(
    memory_corpus: MemoryCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.BAD_STEP", 1)
    break_loss(math.nan)(monkeypatch)
    with pytest.raises(DivergenceError, match=r"step 1: .*Last good checkpoint: none yet"):
        pretrain(micro_config(), corpus=memory_corpus, run=tmp_path / "run", options=options())
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_reading_late_gives_the_same_run(
    memory_corpus: MemoryCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records come in order, none is lost, checkpoints are those of their steps."""
    steps: list[int] = []

    def report(record: StepRecord) -> None:
        steps.append(record.step)

    runs = []
    for behind in (0, 1):
        monkeypatch.setattr(trainer_module, "steps_behind", lambda _device, lag=behind: lag)
        run = tmp_path / str(behind)
        pretrain(
            micro_config(),
            corpus=memory_corpus,
            run=run,
            options=options(save_every=2, keep=9),
            reporter=OnStep(report),
        )
        runs.append([tensors(load_latest(run / "checkpoints")[0]), losses(run)])
        assert len(list((run / "checkpoints").iterdir())) == 4
    assert steps == [1, 2, 3, 4, 5, 6, 7] * 2
    assert_equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


def test_a_step_called_off_changes_no_weight_and_no_moment() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(layer, learning_rate=0.0, weight_decay=0.1)
    states = []
    for applied, poison in ((1.0, 0.0), (0.0, math.nan)):
        layer(torch.ones(1, 3)).sum().backward()
        for parameter in layer.parameters():
            assert parameter.grad is not None
            parameter.grad += poison
        guarded_step(optimizer, 0.5, torch.tensor(applied))
        moments = [v.clone() for p in layer.parameters() for v in optimizer.state[p].values()]
        states.append([p.detach().clone() for p in layer.parameters()] + moments)
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert optimizer.state[layer.weight]["step"].item() == 1.0
    assert layer.weight.grad is None


@pytest.mark.parametrize("mode", Mode)
def test_the_teacher_follows_by_the_share_it_is_given(mode: Mode) -> None:
    """By hand: 0.75 of itself and 0.25 of the student; with a share of 0, its own bits."""
    state = new_state(micro_config(mode))
    with torch.no_grad():
        for parameter in state.student.parameters():
            parameter.add_(1.0)
    before = {n: p.clone() for n, p in state.teacher.named_parameters()}
    update_average(state.teacher, state.student, torch.tensor(0.0))
    for name, value in state.teacher.named_parameters():
        assert torch.equal(value, before[name])
    update_average(state.teacher, state.student, torch.tensor(0.25))
    students = dict(state.student.named_parameters())
    for name, value in state.teacher.named_parameters():
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * students[name])


def test_a_disk_that_fails_while_reading_costs_nothing(
    memory_corpus: MemoryCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second batch cannot be read: the error is raised as it is, and the first step is saved."""
    points, read = MemoryCorpus.points, []

    def failing(self: MemoryCorpus, index: int) -> NDArray[np.float32]:
        read.append(index)
        if len(read) > 6:
            raise OSError(errno.EIO, "Input/output error")
        return points(self, index)

    run, whole = tmp_path / "run", tmp_path / "whole"
    pretrain(micro_config(), corpus=memory_corpus, run=whole, options=options(stop_at=1))
    monkeypatch.setattr(MemoryCorpus, "points", failing)
    with pytest.raises(OSError, match="Input/output error"):
        pretrain(micro_config(), corpus=memory_corpus, run=run, options=options())
    assert_equal(weights(run), weights(whole))


def test_divergence_is_named_even_when_the_disk_is_full(
    memory_corpus: MemoryCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    break_loss(math.nan)(monkeypatch)
    monkeypatch.setattr("pointdistill.engine.pretraining.checkpoints.save_file", full)
    with pytest.raises(DivergenceError, match=r"step 4: .*Last good checkpoint: none yet"):
        pretrain(micro_config(), corpus=memory_corpus, run=tmp_path / "run", options=options())
    assert "the state after step 3 could not be saved (No space" in caplog.text


def test_a_shard_cut_short_under_a_training_costs_nothing_that_was_done(tmp_path: Path) -> None:
    """One line, the state saved; with the shard back, the run goes on to the same bits."""
    rng = np.random.default_rng(0)
    rows = [make_row(f"{k}", rng.normal(size=(60, 3)).astype(np.float32)) for k in range(20)]
    write_corpus(tmp_path / "corpus", [("a", rows)])
    shard = tmp_path / "corpus" / "a-00000.h5"
    content = shard.read_bytes()
    whole, run = tmp_path / "whole", tmp_path / "run"
    pretrain(micro_config(), corpus=open_corpus(shard.parent), run=whole, options=options())

    def truncate(record: StepRecord) -> None:
        if record.step == 2:
            os.truncate(shard, 4096)

    with pytest.raises(CorpusError, match="was cut short while it was in use"):
        pretrain(
            micro_config(),
            corpus=open_corpus(shard.parent),
            run=run,
            options=options(),
            reporter=OnStep(truncate),
        )
    assert load_latest(run / "checkpoints")[0].step >= 2
    shard.write_bytes(content)
    corpus = open_corpus(shard.parent)
    pretrain(micro_config(), corpus=corpus, run=run, resume=True, options=options())
    assert_same_bits(run, whole)
