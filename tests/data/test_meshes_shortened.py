"""A file that becomes shorter while it is read, as one that is still copied may: one line, never a signal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TRIALS = """
import os, sys
from pathlib import Path

from pointdistill.data.meshes import read_mesh
from pointdistill.errors import DataError


def events(path, cut_at):
    "Read the file, cut it at that call of a function after it is opened first; how many calls there were."
    seen, opened = 0, False

    def watch(frame, event, argument):
        nonlocal seen, opened
        if event not in ("call", "c_call"):
            return
        opened = opened or getattr(argument, "__name__", "") == "open"
        seen += opened
        if cut_at and seen == cut_at:
            os.truncate(path, 64)

    sys.setprofile(watch)
    try:
        read_mesh(path)
    except DataError as error:
        assert str(error).startswith(f"{path}: "), error
        assert cut_at, error
    finally:
        sys.setprofile(None)
    return seen


for name in sys.argv[1:]:
    path = Path(name)
    content = path.read_bytes()
    events(path, 0)  # loads the reader, whose imports would count
    total = events(path, 0)
    for trial in range(16):
        path.write_bytes(content)
        events(path, 1 + total * trial // 16)
    print(path.name, flush=True)
"""


def test_a_file_cut_at_any_moment_of_its_reading_ends_in_one_line(tmp_path: Path) -> None:
    """Tried in a process of its own: reading past the end of a mapped file would end it by SIGBUS."""
    import numpy as np
    import trimesh

    ball = trimesh.creation.icosphere(3)
    paths = [tmp_path / f"ball.{ending}" for ending in ("stl", "ply", "glb", "obj", "off", "3mf")]
    for path in paths:
        ball.export(path)
    cloud = np.random.default_rng(0).normal(size=(4000, 3))
    np.save(tmp_path / "cloud.npy", cloud)
    np.savez(tmp_path / "cloud.npz", points=cloud)
    trimesh.PointCloud(cloud).export(tmp_path / "cloud.ply")
    np.savetxt(tmp_path / "cloud.xyz", cloud)
    head = "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 4000\nHEIGHT 1\nPOINTS 4000\n"
    (tmp_path / "cloud.pcd").write_bytes(
        f"{head}DATA binary\n".encode() + cloud.astype("<f4").tobytes()
    )
    las = bytearray(227)
    las[:4], las[24:26] = b"LASF", bytes((1, 2))
    las[96:111] = np.array([227, 0], "<u4").tobytes() + bytes([0, 20, 0, 0xA0, 0x0F, 0, 0])
    las[131:179] = np.array([0.001, 0.001, 0.001, 0, 0, 0], "<f8").tobytes()
    rows = np.zeros((4000, 5), "<i4")
    rows[:, :3] = cloud * 1000
    (tmp_path / "cloud.las").write_bytes(bytes(las) + rows.tobytes())
    paths += sorted(tmp_path.glob("cloud.*"))
    done = subprocess.run(
        [sys.executable, "-c", TRIALS, *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr[-2000:])
    assert done.stdout.split() == [path.name for path in paths]
