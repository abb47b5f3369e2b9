"""``embed`` and ``search`` as they are typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh

from pointdistill.engine.weights.encoders import save_encoder
from tests.engine.test_embedding import random_encoder


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pointdistill", *arguments],
        cwd=cwd,
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_encoder(random_encoder(), tmp_path / "my encoder")
    (tmp_path / "meshes").mkdir()
    for number in range(3):
        trimesh.creation.box((1, 2, 1 + number)).export(tmp_path / "meshes" / f"{number}.obj")
    return tmp_path


def test_from_a_folder_to_an_embedding_and_a_search(folder: Path) -> None:
    named = ("embed", "meshes", "--encoder", "my encoder", "--output", "all.npz")
    done = command(*named, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "note: 3 files do not state their up axis, so z was assumed; use --up y" in done.stderr
    assert done.stdout.splitlines() == [
        "all.npz: pooled features of 3 shapes",
        "next: pointdistill search FILE all.npz",
    ]
    again = command(*named, cwd=folder)
    assert again.stdout.startswith("all.npz: pooled features of 3 shapes, complete already")
    other = command(*named, "--seed", "1", cwd=folder)
    assert other.returncode == 2
    assert "made of other seed; remove it, or choose another output file (--output)" in other.stderr
    assert np.load(folder / "all.npz")["ids"].tolist() == ["0.obj", "1.obj", "2.obj"]
    found = command("search", "meshes/1.obj", "--count", "2", cwd=folder)
    assert found.returncode == 0, found.stderr
    assert "| 1 | 1.obj | 1.0000 |" in found.stdout
    assert found.stdout.count("| ") > 6
    (folder / "my encoder").rename(folder / "moved")
    gone = command("search", "meshes/1.obj", cwd=folder)
    assert gone.returncode == 2
    assert "name its new path, or embed again (--encoder)" in gone.stderr
    assert (folder / "1-neighbours.png").read_bytes().startswith(b"\x89PNG")


def test_bad_files_end_with_exit_code_two_and_no_traceback(folder: Path) -> None:
    (folder / "meshes" / "broken.ply").write_text("no mesh")
    done = command("embed", "meshes", "--encoder", "my encoder", "--up", "y", cwd=folder)
    assert done.returncode == 2
    assert "error: broken.ply: " in done.stderr
    assert "1 of 4 shapes were not embedded; all are listed in the output" in done.stderr
    assert "embedding.npz: pooled features of 3 shapes" in done.stdout
    assert "Traceback" not in done.stderr
