"""Several processes on one global batch: the losses and gradients of one, one checkpoint format, one decision."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.engine.pretraining.checkpoints import load_latest
from pointdistill.engine.pretraining.loader import epoch_order
from pointdistill.engine.pretraining.pretrain import pretrain
from pointdistill.engine.pretraining.run_folder import read_metrics, read_run_config
from tests.engine.runs import assert_equal, losses, options, tensors, weights
from tests.engine.worker import shapes, shared_config
from tests.warm import Program, Warm

REPOSITORY = Path(__file__).parent.parent.parent
WORKER = "tests.engine.worker"
ON_CPU = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
SAVED = {"save_every": 100}

pytestmark = pytest.mark.slow


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def torchrun() -> list[str]:
    here = ["--nnodes", "1", "--master_addr", "127.0.0.1", "--master_port", free_port()]
    return ["-m", "torch.distributed.run", "--nproc_per_node", "2", *here]


def accelerate() -> list[str]:
    """With ``--cpu`` it would start a single process (unless there is MPI), whatever their number."""
    several = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    several += ["--mixed_precision", "no"]
    where = ["--main_process_ip", "127.0.0.1", "--main_process_port", free_port()]
    dynamo = ["--dynamo_backend", "no", "--num_cpu_threads_per_process", "1", "--machine_rank", "0"]
    return ["-m", "accelerate.commands.launch", *several, *where, *dynamo]


def launched(launcher: list[str], asked: dict[str, Any]) -> tuple[int, str]:
    """Exit code and standard error of a launcher with the worker on two processes."""
    done = subprocess.run(
        [sys.executable, *launcher, "-m", WORKER, json.dumps(asked)],
        cwd=REPOSITORY,
        env=os.environ | ON_CPU,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    return done.returncode, done.stderr


def two_processes(warm: Warm, asked: dict[str, Any]) -> tuple[set[int], str]:
    """Exit codes and standard error of the worker on two processes, without a launcher's cost."""
    both = start_both(warm, WORKER, json.dumps(asked), cwd=REPOSITORY)
    ended = [program.wait() for program in both]
    return {one.returncode for one in ended}, "".join(one.stderr for one in ended)


def start_both(warm: Warm, module: str, *arguments: str, cwd: Path) -> list[Program]:
    """What a launcher tells its processes, each in its variables."""
    where = ON_CPU | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [
        warm.start(
            module, *arguments, cwd=cwd, env=where | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in (0, 1)
    ]


def one_process(run: Path, **changes: Any) -> None:
    pretrain(shared_config(), corpus=shapes(), run=run, options=options(**SAVED | changes))


def assert_shared(run: Path) -> None:
    """Two processes took part, and each saw its own half of every batch."""
    said = [
        json.loads(run.with_name(f"{run.name}.rank-{rank}.json").read_text()) for rank in (0, 1)
    ]
    assert [one["processes"] for one in said] == [2, 2]
    order = epoch_order(20, seed=0, epoch=0).tolist()
    assert said[0]["shapes"][0] + said[1]["shapes"][0] == order[:6]
    assert said[0]["shapes"][1] + said[1]["shapes"][1] == order[6:12]


@pytest.mark.parametrize("launcher", [torchrun, accelerate])
def test_two_processes_give_the_losses_and_gradients_of_one(
    launcher: Callable[[], list[str]], warm: Warm, tmp_path: Path
) -> None:
    """Losses to 1e-5, gradients to 1e-4 of their norm; and one process goes on where two stopped."""
    one, two = tmp_path / "one", tmp_path / "two"
    alone = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    stop = SAVED | {"stop_at": 3}
    code, said = launched(
        launcher(), {"run": str(two), "gradients": str(alone[1]), "options": stop}
    )
    assert code == 130 or "exitcode  : 130" in said, said
    assert_shared(two)
    asked = json.dumps({"run": str(one), "gradients": str(alone[0])})
    assert warm.run(WORKER, asked, cwd=REPOSITORY).returncode == 0
    assert losses(two) == pytest.approx(losses(one)[:3], rel=1e-5)
    ours, theirs = load_file(alone[1]), load_file(alone[0])
    assert ours.keys() == theirs.keys()
    norm = torch.stack([gradient.norm() for gradient in theirs.values()]).norm()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-4 * max(gradient.norm(), 1e-3 * norm), name
    pretrain(shared_config(), corpus=shapes(), run=two, resume=True, options=options(**SAVED))
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)


@pytest.fixture(scope="module")
def one_step(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What two processes hold after one step."""
    run = tmp_path_factory.mktemp("good") / "run"
    two_processes(warm, {"run": str(run), "options": SAVED | {"stop_at": 1}})
    return weights(run)


@pytest.mark.parametrize("how", ["nan", "inf", "empty"])
def test_a_poisoned_shape_stops_both_processes_before_the_step(
    how: str, warm: Warm, one_step: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Shape 11 comes in the second batch: the process that reads it says so, and what is saved is step 1."""
    run = tmp_path / "run"
    codes, said = two_processes(warm, {"run": str(run), "poison": 11, "how": how, "options": SAVED})
    assert codes == {2}
    assert "error: shape 11 of the corpus has" in said
    assert "error: step 2: another process could not read its shapes; the weights were not" in said
    state, _ = load_latest(run / "checkpoints")
    assert (state.step, len(losses(run))) == (1, 1)
    assert_equal(tensors(state), one_step)


def test_machines_of_different_memory_agree_on_the_smaller_batch(
    warm: Warm, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    asked = {"run": str(run), "batches": [6, 4], "steps": 2, "options": SAVED}
    codes, said = two_processes(warm, asked)
    assert codes == {0}, said
    assert read_run_config(run)["config"]["batch_size"] == 4
    seen = [
        json.loads(run.with_name(f"run.rank-{rank}.json").read_text())["shapes"] for rank in (0, 1)
    ]
    assert [len(part) for shapes in seen for part in shapes] == [2, 2, 2, 2]


def test_a_signal_to_one_process_stops_both_after_the_same_step(warm: Warm, tmp_path: Path) -> None:
    """Rank 1 is asked to stop after step 2, and says so in step 3: both stop there."""
    run = tmp_path / "run"
    codes, said = two_processes(warm, {"run": str(run), "signal": [1, 2], "options": SAVED})
    assert codes == {130}, said
    assert load_latest(run / "checkpoints")[0].step == 3
    assert len(losses(run)) == 3


def test_parts_of_a_model_train_as_the_whole_and_save_in_the_same_format(
    warm: Warm, tmp_path: Path
) -> None:
    """FSDP on two processes: the losses of one, its teacher, a checkpoint that one process resumes, and back."""
    one, parts = tmp_path / "one", tmp_path / "parts"
    split = {"sharding": "fsdp"}
    stop = SAVED | split | {"stop_at": 2, "probe": None}
    codes, said = two_processes(warm, {"run": str(parts), "options": stop})
    assert codes == {130}, said
    one_process(one)
    assert losses(parts) == pytest.approx(losses(one)[:2], rel=1e-5)
    pretrain(
        shared_config(),
        corpus=shapes(),
        run=parts,
        resume=True,
        options=options(**SAVED, stop_at=4),
    )
    again = {"run": str(parts), "resume": True, "options": SAVED | split}
    codes, said = two_processes(warm, again)
    assert codes == {0}, said
    assert losses(parts) == pytest.approx(losses(one), rel=1e-5)
    ours, theirs = weights(parts), weights(one)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=2e-5, msg=name)


def test_a_poisoned_shape_stops_parts_of_a_model_too(
    warm: Warm, one_step: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    split = SAVED | {"sharding": "fsdp"}
    codes, said = two_processes(warm, {"run": str(run), "poison": 11, "options": split})
    assert codes == {2}
    assert "error: shape 11 of the corpus has" in said
    found = weights(run)
    assert [row["step"] for row in read_metrics(run)] == [1]
    for name, value in one_step.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5, msg=name)


def test_the_program_itself_on_two_processes_talks_once(warm: Warm, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    build_corpus(open_source("builtin", SourceRequest(shapes=64)), corpus, points=512, workers=0)
    wanted = [
        "pretrain",
        "--data",
        str(corpus),
        "--size",
        "tiny",
        "--batch-size",
        "16",
        "--steps",
        "2",
    ]
    wanted += ["--device", "cpu", "--run", "two"]
    both = start_both(warm, "pointdistill", *wanted, cwd=tmp_path)
    said = [program.wait() for program in both]
    assert [one.returncode for one in said] == [0, 0], said
    assert "2 steps done" in said[0].stdout
    assert (said[1].stdout, said[1].stderr) == ("", "")
    assert len(losses(tmp_path / "two")) == 2
