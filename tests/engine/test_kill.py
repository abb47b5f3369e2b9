"""SIGKILL at ten places of a run: what is left is always a run, and it ends with the bits of an undisturbed one.

No clock is asked. A process is killed by itself, at an event of its own, so that a slow machine is killed at the
same places as a fast one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pointdistill.engine.pretraining.checkpoints import is_whole, list_checkpoints
from pointdistill.engine.pretraining.pretrain import pretrain
from pointdistill.engine.pretraining.run_folder import read_metrics
from pointdistill.engine.weights.encoders import load_encoder
from tests.engine.runs import assert_same_bits, options, untimed
from tests.engine.worker import shapes, shared_config

REPOSITORY = Path(__file__).parent.parent.parent
STEPS, SAVE_EVERY = 24, 2
KILLED = -9

EVENTS = (
    "pretrain.begin_run:1",  # before anything is there
    "run_folder.write_json:1",  # the run's own configuration is written
    "step:1",  # steps are reported, nothing is saved
    "checkpoints.save_file:1",  # the first checkpoint is begun
    "checkpoints.save_file:2",  # its weights are there, its moments are not
    "checkpoints.write_json:1",  # resumed: a later checkpoint has all but its description
    "step:3",
    "trainer.save_teacher:1",  # a checkpoint is complete, the encoder is still the one before
    "checkpoints.save_file:4",
    "step:5",
)
"""Where the process is killed: just before the n-th call of a function, or when the n-th step is reported."""

Attempt = Callable[[dict[str, Any]], int]


@pytest.fixture
def attempt() -> Iterator[Attempt]:
    """Begin or go on with a run in a process of its own; its exit code, or minus the signal that ended it."""
    nursery = subprocess.Popen(
        [sys.executable, "-m", "tests.engine.worker"],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    stdin, stdout = nursery.stdin, nursery.stdout

    def run(asked: dict[str, Any]) -> int:
        stdin.write(json.dumps(asked) + "\n")
        stdin.flush()
        return int(stdout.readline())

    yield run
    stdin.close()
    nursery.wait(60)
    stdout.close()


def newest_step(run: Path) -> int:
    """Of the checkpoints that are whole; 0 without any."""
    whole = [path for path in list_checkpoints(run / "checkpoints") if is_whole(path)]
    return int(whole[-1].name.removeprefix("step-")) if whole else 0


@pytest.mark.slow
def test_ten_kills_and_an_undisturbed_run_give_the_same_bits(
    tmp_path: Path, attempt: Attempt
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    settings = {"save_every": SAVE_EVERY, "save_minutes": 1e6, "probe": None}
    pretrain(shared_config(STEPS), corpus=shapes(), run=whole, options=options(**settings))
    asked = {"run": str(run), "steps": STEPS, "resume": True, "options": settings}
    reached = []
    for event in EVENTS:
        assert attempt(asked | {"kill_at": event}) == KILLED, event
        reached.append(max((row["step"] for row in read_metrics(run)), default=0))
        assert reached[-1] - newest_step(run) <= SAVE_EVERY, event
    assert len(set(reached)) >= len(EVENTS) // 2, reached  # it was killed in the middle of things
    assert attempt(asked) == 0
    assert_same_bits(run, whole)
    assert untimed(run) == untimed(whole)
    assert len(read_metrics(run)) == STEPS
    assert load_encoder(run).config == load_encoder(whole).config
    assert list(run.rglob(".*.part*")) == []
