"""Every command as a user types it, one after the other, on small stand-ins of the real archives."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh

from pointdistill import load_encoder, open_corpus
from pointdistill.data.benchmark_standins import (
    MeshSizes,
    ScanSizes,
    make_modelnet40_stand_in,
    make_scanobjectnn_stand_in,
)
from tests.warm import Warm

TINY = ["--size", "tiny", "--batch-size", "16", "--device", "cpu"]


Succeed = Callable[..., str]


@pytest.fixture
def succeed(warm: Warm, tmp_path: Path) -> Succeed:
    """Run a command in the test's folder; what it said."""

    def run(*arguments: str) -> str:
        done = warm.run("pointdistill", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return run


def an_l_of_boxes(path: Path) -> None:
    """An upright L in a y-up file: 3 high, its foot 2 long towards +x, 1 thick along z."""
    post = trimesh.creation.box(
        (1, 3, 1), trimesh.transformations.translation_matrix((0.5, 1.5, 0.5))
    )
    foot = trimesh.creation.box(
        (1, 1, 1), trimesh.transformations.translation_matrix((1.5, 0.5, 0.5))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    trimesh.util.concatenate([post, foot]).export(path)


def test_from_a_folder_of_meshes_to_an_encoder(succeed: Succeed, tmp_path: Path) -> None:
    """Axes: a y-up L must stand upright in z with its foot where a rotation, and no mirror, puts it."""
    for number in range(20):
        an_l_of_boxes(tmp_path / "my meshes" / "ell" / f"{number}.obj")
    said = succeed("prepare-data", "folder", "--input", "my meshes", "--up", "y", "--points", "300")
    assert "next: pointdistill pretrain" in said
    shape = open_corpus(tmp_path / "data" / "my meshes")[0]
    # zxy: new (x, y, z) = old (z, x, y). The post's height is z, the foot's length y, the thickness x.
    np.testing.assert_allclose(np.ptp(shape.points, axis=0), [1, 2, 3], atol=0.05)
    low, high = shape.points[shape.points[:, 2] < 0.9], shape.points[shape.points[:, 2] > 1.1]
    assert low[:, 1].max() > 1.9
    assert high[:, 1].max() < 1.05
    said = succeed("pretrain", *TINY, "--steps", "2")
    assert "(the last one made in this folder)" in said
    assert "next: pointdistill embed YOUR_FILES" in said
    (measuring,) = (line for line in said.splitlines() if line.startswith("next, for `search`: "))
    succeed(*shlex.split(measuring.partition("pointdistill ")[2].partition("   (")[0]))
    assert (tmp_path / "tiny-dual-1-encoder" / "feature_statistics.safetensors").is_file()
    succeed("export", "out")
    assert load_encoder(tmp_path / "out").config.width == 64


def test_scanobjectnn_from_archive_to_evaluation(succeed: Succeed, tmp_path: Path) -> None:
    make_scanobjectnn_stand_in(
        tmp_path / "data" / "h5_files.zip", sizes=ScanSizes(train=2, test=1, copies=1), workers=1
    )
    succeed("prepare-data", "scanobjectnn", "--archive", "data/h5_files.zip")
    succeed("pretrain", *TINY, "--steps", "1")
    said = succeed("evaluate", "scanobjectnn", "--split", "OBJ-ONLY", "--protocol", "knn")
    assert "stand-in" in said
    assert "OBJ-ONLY" in said


def test_modelnet40_from_archive_to_evaluation(succeed: Succeed, tmp_path: Path) -> None:
    archive = tmp_path / "ModelNet40.zip"
    make_modelnet40_stand_in(archive, sizes=MeshSizes(train=1, test=1), workers=1)
    succeed("prepare-data", "modelnet40", "--archive", str(archive), "--points", "512")
    succeed("pretrain", *TINY, "--steps", "1")
    said = succeed("evaluate", "modelnet40", "--data", str(archive), "--protocol", "svm")
    assert "stand-in" in said


def test_ctrl_c_saves_and_resume_goes_on_as_if_nothing_had_happened(
    succeed: Succeed, tmp_path: Path
) -> None:
    succeed("prepare-data", "--shapes", "64", "--points", "512", "--workers", "0")
    length = ["--steps", "24"]
    succeed("pretrain", *TINY, *length, "--run", "whole")
    started = subprocess.Popen(
        [sys.executable, "-m", "pointdistill", "pretrain", *TINY, *length, "--run", "split"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "split" / "metrics.jsonl"
    while not metrics.exists():
        assert started.poll() is None, started.stderr.read() if started.stderr else ""
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    out, error = started.communicate(timeout=60)
    assert started.returncode == 130, error
    assert "Traceback" not in error
    assert "next: pointdistill pretrain --resume --run split" in out
    succeed("pretrain", "--resume", "--run", "split", "--device", "cpu")
    whole, split = (
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "split")
    )
    assert [(row["step"], row["loss"]) for row in whole] == [
        (row["step"], row["loss"]) for row in split
    ]


@pytest.mark.slow
def test_small_starts_on_a_cpu_and_says_what_it_costs(succeed: Succeed) -> None:
    """The command as typed in the README: a batch that fits, steps taken, interrupted, resumable."""
    succeed("prepare-data", "--shapes", "8", "--points", "1024", "--workers", "0")
    said = succeed("pretrain", "--size", "small", "--batch-size", "2", "--steps", "1")
    assert "small, dual mode, seed 0: 1 step of 2 of 8 shapes" in said
