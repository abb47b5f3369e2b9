"""The training loop: determinism, resume bit for bit, interruption, refusal of what is not finite."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pointdistill.engine.config.config import Recompute
from pointdistill.engine.pretraining.checkpoints import list_checkpoints, load_latest, new_state
from pointdistill.engine.pretraining.execution import prepare_student
from pointdistill.engine.pretraining.loader import epoch_order
from pointdistill.engine.pretraining.pretrain import pretrain
from pointdistill.engine.pretraining.run_folder import RunEnvironment, begin_run
from pointdistill.engine.runtime.devices import build_accelerator
from pointdistill.engine.weights.encoders import load_encoder
from pointdistill.errors import CheckpointError, ConfigError, DataError
from pointdistill.model.config import Mode
from pointdistill.model.distillation import SeenAs, Student, Views
from pointdistill.model.transformer import DepthDraws
from pointdistill.reporter import StepRecord
from tests.engine.conftest import MemoryCorpus, micro_config
from tests.engine.runs import assert_same_bits, losses, options, weights
from tests.recorder import OnStep

CPU = RunEnvironment(device="cpu", precision="no")


@pytest.mark.parametrize("mode", Mode)
def test_resumed_run_equals_uninterrupted_run(
    mode: Mode, memory_corpus: MemoryCorpus, tmp_path: Path
) -> None:
    """Seven steps in one go, and three plus four after a reload: the same weights, moments and losses."""
    config = micro_config(mode)
    whole, split = tmp_path / "whole", tmp_path / "split"
    pretrain(config, corpus=memory_corpus, run=whole, options=options())
    first = pretrain(config, corpus=memory_corpus, run=split, options=options(stop_at=3))
    assert first.interrupted
    second = pretrain(config, corpus=memory_corpus, run=split, resume=True, options=options())
    assert (second.step, second.interrupted) == (7, False)
    assert_same_bits(whole, split)
    assert losses(whole) == losses(split)
    assert len(losses(whole)) == 7


def test_every_step_and_every_seed_draw_stochastic_depth_of_their_own(
    memory_corpus: MemoryCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    draw_depth = Student.draw_depth

    def noted(
        self: Student, views: Views, generator: torch.Generator
    ) -> dict[SeenAs, list[DepthDraws]]:
        drawn.append(generator.initial_seed())
        return draw_depth(self, views, generator)

    monkeypatch.setattr(Student, "draw_depth", noted)
    for seed in (0, 1):
        config = replace(micro_config(), seed=seed)
        pretrain(config, corpus=memory_corpus, run=tmp_path / str(seed), options=options(stop_at=2))
    assert len(drawn) == len(set(drawn)) == 4


def test_the_loss_counts_koleo_with_the_configured_weight(
    memory_corpus: MemoryCorpus, tmp_path: Path
) -> None:
    config = replace(micro_config(), koleo_weight=0.5)
    pretrain(config, corpus=memory_corpus, run=tmp_path, options=options(stop_at=2))
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        total = row["patch"] + row["cls"] + 0.5 * row["koleo"]
        assert row["loss"] == pytest.approx(total / 2.5, rel=1e-5)


def test_a_run_from_before_a_setting_existed_resumes_with_its_default(
    memory_corpus: MemoryCorpus, tmp_path: Path
) -> None:
    config = micro_config()
    whole, split = tmp_path / "whole", tmp_path / "split"
    pretrain(config, corpus=memory_corpus, run=whole, options=options())
    pretrain(config, corpus=memory_corpus, run=split, options=options(stop_at=3))
    (of_checkpoint,) = split.glob("checkpoints/*/*.json")
    for file in (split / "config.json", of_checkpoint):
        plain = json.loads(file.read_text())
        del plain["config"]["koleo_weight"], plain["config"]["checkpoint_patch_embedding"]
        file.write_text(json.dumps(plain))
    pretrain(config, corpus=memory_corpus, run=split, resume=True, options=options())
    assert_same_bits(whole, split)


def test_recomputing_the_patch_embedding_changes_no_bit(
    memory_corpus: MemoryCorpus, tmp_path: Path
) -> None:
    kept, again = tmp_path / "kept", tmp_path / "again"
    for run, recompute in ((kept, Recompute.AUTO), (again, Recompute.ON)):
        config = replace(micro_config(), checkpoint_patch_embedding=recompute, steps=3)
        state = new_state(config)
        prepare_student(state, build_accelerator("cpu", "auto"), "none")
        assert state.student.encoder.patch_embedding.recompute == (recompute is Recompute.ON)
        assert not state.teacher.encoder.patch_embedding.recompute
        pretrain(config, corpus=memory_corpus, run=run, options=options())
    assert losses(kept) == losses(again)
    assert_same_bits(kept, again)
    encoders = [json.loads((run / "encoder" / "config.json").read_text()) for run in (kept, again)]
    assert encoders[0] == encoders[1]  # how it was trained is not a part of the model


def test_by_default_only_a_gpu_recomputes_the_patch_embedding() -> None:
    default = micro_config().checkpoint_patch_embedding
    assert [default.applies_on(device) for device in ("cpu", "cuda")] == [False, True]
    assert [Recompute.OFF.applies_on(device) for device in ("cpu", "cuda")] == [False, False]


def test_same_seed_same_losses_and_another_seed_others(
    memory_corpus: MemoryCorpus, tmp_path: Path
) -> None:
    config = micro_config()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        pretrain(
            replace(config, seed=seed),
            corpus=memory_corpus,
            run=tmp_path / name,
            options=options(stop_at=2),
        )
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


def test_a_signal_finishes_the_step_and_saves(memory_corpus: MemoryCorpus, tmp_path: Path) -> None:
    def interrupt(record: StepRecord) -> None:
        if record.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    config = micro_config()
    result = pretrain(
        config,
        corpus=memory_corpus,
        run=tmp_path / "run",
        options=options(),
        reporter=OnStep(interrupt),
    )
    assert (result.step, result.interrupted) == (2, True)
    pretrain(config, corpus=memory_corpus, run=tmp_path / "run", resume=True, options=options())
    pretrain(config, corpus=memory_corpus, run=tmp_path / "whole", options=options())
    assert_same_bits(tmp_path / "run", tmp_path / "whole")


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    memory_corpus: MemoryCorpus, tmp_path: Path
) -> None:
    config, run = micro_config(), tmp_path / "run"
    pretrain(config, corpus=memory_corpus, run=run, options=options(save_every=2))
    before, last = list_checkpoints(run / "checkpoints")
    damaged = last / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    result = pretrain(config, corpus=memory_corpus, run=run, resume=True, options=options())
    assert before.name == "step-00000006"
    assert (result.step, len(losses(run))) == (7, 7)
    pretrain(config, corpus=memory_corpus, run=tmp_path / "whole", options=options())
    assert_same_bits(run, tmp_path / "whole")


@pytest.mark.parametrize("poison", ["nan", "infinite", "empty"])
def test_a_poisoned_shape_never_changes_a_weight(
    poison: str, memory_corpus: MemoryCorpus, tmp_path: Path
) -> None:
    """Shape 11 comes in the second batch: the run stops there, with the state of after the first."""
    config, run = micro_config(), tmp_path / "run"
    assert 11 in epoch_order(20, seed=0, epoch=0)[6:12]
    if poison == "empty":
        memory_corpus.clouds[11] = memory_corpus.clouds[11][:0]
    else:
        memory_corpus.clouds[11][0, 0] = np.nan if poison == "nan" else np.inf
    with pytest.raises(DataError, match=r"shape 11 of the corpus has (no points|coordinates that)"):
        pretrain(config, corpus=memory_corpus, run=run, options=options(save_every=1))
    state, _ = load_latest(run / "checkpoints")
    assert (state.step, len(losses(run))) == (1, 1)
    assert all(torch.isfinite(tensor).all() for tensor in weights(run).values())


def test_the_run_leaves_the_teachers_encoder(memory_corpus: MemoryCorpus, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(micro_config(), corpus=memory_corpus, run=run, options=options())
    state, _ = load_latest(run / "checkpoints")
    encoder = load_encoder(run)
    for name, value in state.teacher.encoder.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], value), name
    described = json.loads((run / "encoder" / "config.json").read_text())
    assert described["sources"] == [{"name": "random", "licence": "CC0", "shapes": 20}]
    assert (described["training"]["step"], described["training"]["total_steps"]) == (7, 7)


def test_init_from_begins_with_an_encoders_weights(
    memory_corpus: MemoryCorpus, tmp_path: Path
) -> None:
    pretrain(micro_config(), corpus=memory_corpus, run=tmp_path / "first", options=options())
    state = begin_run(
        replace(micro_config(), seed=5),
        memory_corpus,
        tmp_path / "second",
        init_from=tmp_path / "first",
        environment=CPU,
    )
    kept = load_encoder(tmp_path / "first").state_dict()
    for branch in (state.student, state.teacher):
        for name, value in branch.encoder.state_dict().items():
            assert torch.equal(kept[name], value), name


def test_init_from_an_encoder_of_another_size_lists_what_does_not_fit(
    memory_corpus: MemoryCorpus, tmp_path: Path
) -> None:
    pretrain(micro_config(), corpus=memory_corpus, run=tmp_path / "a", options=options(stop_at=1))
    config = micro_config()
    wider = replace(config, encoder=replace(config.encoder, width=16))
    with pytest.raises(
        CheckpointError, match=r"does not fit this model: .*cls_token is \(1, 1, 12\)"
    ):
        begin_run(wider, memory_corpus, tmp_path / "b", init_from=tmp_path / "a", environment=CPU)


def test_resume_refuses_another_corpus(memory_corpus: MemoryCorpus, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(micro_config(), corpus=memory_corpus, run=run, options=options(stop_at=1))
    with pytest.raises(CheckpointError, match=r"was started with the corpus .*memory"):
        pretrain(
            micro_config(), corpus=MemoryCorpus(memory_corpus.clouds[:12]), run=run, resume=True
        )


def test_a_folder_with_a_run_is_not_overwritten(
    memory_corpus: MemoryCorpus, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    pretrain(micro_config(), corpus=memory_corpus, run=run, options=options(stop_at=1))
    with pytest.raises(ConfigError, match="holds a run already; resume it"):
        pretrain(micro_config(), corpus=memory_corpus, run=run)


def test_nothing_to_resume_is_said(memory_corpus: MemoryCorpus, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run here"):
        pretrain(micro_config(), corpus=memory_corpus, run=tmp_path / "none", resume=True)


def test_a_corpus_smaller_than_a_batch_is_refused(
    memory_corpus: MemoryCorpus, tmp_path: Path
) -> None:
    few = MemoryCorpus(memory_corpus.clouds[:5])
    with pytest.raises(ConfigError, match="holds 5 shapes, fewer than one batch of 6"):
        pretrain(micro_config(), corpus=few, run=tmp_path / "run")


def test_a_run_killed_before_its_first_checkpoint_begins_anew(
    memory_corpus: MemoryCorpus, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    begin_run(micro_config(), memory_corpus, run, init_from=None, environment=CPU)
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 9.0}\n')
    pretrain(micro_config(), corpus=memory_corpus, run=run, options=options())
    assert len(losses(run)) == 7
    assert losses(run)[0] != 9.0


@pytest.mark.parametrize("log_every", [1, 3, 100])
def test_what_is_logged_changes_no_bit(
    log_every: int, memory_corpus: MemoryCorpus, tmp_path: Path
) -> None:
    config = micro_config()
    pretrain(config, corpus=memory_corpus, run=tmp_path / "a", options=options(log_every=2))
    pretrain(config, corpus=memory_corpus, run=tmp_path / "b", options=options(log_every=log_every))
    assert_same_bits(tmp_path / "a", tmp_path / "b")


def test_checkpoints_are_thinned_to_those_asked_for(
    memory_corpus: MemoryCorpus, tmp_path: Path
) -> None:
    for keep, left in ((1, [7]), (3, [4, 6, 7])):
        run = tmp_path / str(keep)
        pretrain(
            micro_config(), corpus=memory_corpus, run=run, options=options(save_every=2, keep=keep)
        )
        found = [path.name for path in list_checkpoints(run / "checkpoints")]
        assert found == [f"step-{step:08d}" for step in left]


def test_a_run_that_was_killed_while_it_wrote_its_first_file_begins_anew(
    memory_corpus: MemoryCorpus, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.4711.part.json").write_text("{")
    pretrain(micro_config(), corpus=memory_corpus, run=run, options=options(stop_at=1))
    assert not (run / ".config.4711.part.json").exists()


def test_what_a_killed_process_wrote_aside_is_removed_on_resume(
    memory_corpus: MemoryCorpus, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    pretrain(micro_config(), corpus=memory_corpus, run=run, options=options(stop_at=1))
    half = run / "checkpoints" / ".step-00000005.4711.part"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (run / "encoder" / ".model.4711.part.safetensors").write_bytes(b"half")
    pretrain(micro_config(), corpus=memory_corpus, run=run, resume=True, options=options(stop_at=2))
    assert list(run.rglob(".*.part*")) == []


def test_options_that_cannot_be_are_refused() -> None:
    for wrong, said in (
        ({"keep": 0}, "keep must be at least 1, got 0"),
        ({"log_every": 0}, "log_every must be at least 1"),
        ({"save_minutes": 0.0}, "save_minutes must be positive"),
        ({"sharding": "zero"}, "sharding must be one of none, fsdp, got 'zero'"),
    ):
        with pytest.raises(ConfigError, match=said):
            options(**wrong)


def test_sharding_one_process_is_refused(memory_corpus: MemoryCorpus, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="splits a model over several processes, but there is only one"
    ):
        pretrain(
            micro_config(),
            corpus=memory_corpus,
            run=tmp_path / "run",
            options=options(sharding="fsdp"),
        )


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_is_being_trained_is_refused(
    memory_corpus: MemoryCorpus, tmp_path: Path, resume: bool
) -> None:
    """A second start or resume while the first one is at work; the first one goes on undisturbed."""
    pytest.importorskip("fcntl")
    refused: list[str] = []

    def second(record: StepRecord) -> None:
        if record.step == 2:
            with pytest.raises(ConfigError) as caught:
                pretrain(
                    micro_config(),
                    corpus=memory_corpus,
                    run=tmp_path / "run",
                    resume=resume,
                    options=options(),
                )
            refused.append(str(caught.value))

    pretrain(
        micro_config(),
        corpus=memory_corpus,
        run=tmp_path / "run",
        options=options(),
        reporter=OnStep(second),
    )
    assert refused == [
        f"{tmp_path / 'run'}: another process is training this run; wait for it, or choose another folder"
    ]
    assert len(losses(tmp_path / "run")) == 7
    assert not (tmp_path / "run" / ".lock").exists()
