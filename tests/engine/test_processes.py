"""Two processes on one global batch: the losses of one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "pointdistill"]
    corpus = ["prepare-data", "--shapes", "64", "--points", "512", "--workers", "0"]
    subprocess.run([*program, *corpus], cwd=tmp_path, check=True, capture_output=True)
    wanted = ["pretrain", "--size", "tiny", "--batch-size", "16", "--steps", "3", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*program, *wanted, "--run", "one"], cwd=tmp_path, check=True, env=environment)
    port = str(free_port())
    both = [
        subprocess.Popen(
            [*program, *wanted, "--run", "two"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"},
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[1] == ("", "")  # one of them talks
    losses = [
        [
            json.loads(line)["loss"]
            for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        ]
        for run in ("one", "two")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
