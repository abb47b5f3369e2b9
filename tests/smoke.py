"""A trial of an installed pointdistill, from an empty folder, with nothing but Python and the package.

Run: python tests/smoke.py [--without-quickstart]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import pointdistill
from pointdistill.data.benchmark_standins import ScanSizes, make_scanobjectnn_stand_in
from pointdistill.engine.quickstart import QuickstartConfig, stand_in_path


def main(*options: str) -> None:
    """Sample, embed, search, pretrain two steps, load the encoder, and run the quickstart."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for index in range(20):
            write_box(here / "boxes" / f"{index}.obj", np.array([1.0, 1.0 + index / 10, 2.0]))
        run(here, "sample", "boxes/0.obj", "--points", "500", "--output", "one.npy")
        assert np.load(here / "one.npy").shape == (500, 3)
        run(here, "embed", "boxes", "--output", "boxes.npz", "--draws", "1", "--turns", "1")
        run(here, "search", "boxes/3.obj", "boxes.npz", "--json")
        run(here, "prepare-data", "folder", "--input", "boxes", "--points", "400", "--workers", "0")
        tiny = ("--size", "tiny", "--steps", "2", "--batch-size", "8", "--device", "cpu")
        run(here, "pretrain", *tiny, "--run", "run")
        encoder = pointdistill.load_encoder(here / "run")
        points = pointdistill.sample_surface(here / "boxes" / "0.obj", 256, seed=0, up="z")
        with torch.inference_mode():
            features = encoder(torch.from_numpy(points).float()[None])
        assert torch.isfinite(features.cls).all()
        corpus = pointdistill.open_corpus(here / "data" / "boxes")
        assert len(corpus) == 20
        if "--without-quickstart" not in options:
            # Unless there is one, it makes a stand-in of 3,810 scans, for minutes: a tiny one.
            make_scanobjectnn_stand_in(
                stand_in_path(here / "quickstart", QuickstartConfig()),
                splits=["OBJ-BG"],
                sizes=ScanSizes(train=4, test=2, copies=1),
                workers=1,
            )
            run(here, "quickstart", "--shapes", "64", "--steps", "2", "--folder", "quickstart")
            assert "<html" in (here / "quickstart" / "report.html").read_text(encoding="utf-8")
        said = run(here, "--version").strip()
    print(
        json.dumps({"version": said, "python": sys.version.split()[0], "torch": torch.__version__})
    )


def run(folder: Path, *words: str) -> str:
    """What a command printed; its errors go to this program's."""
    done = subprocess.run(
        [sys.executable, "-m", "pointdistill", *words],
        cwd=folder,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout


def write_box(path: Path, size: np.ndarray) -> None:
    """An upright box as an OBJ file."""
    path.parent.mkdir(exist_ok=True)
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * size
    quads = ("1 2 4 3", "5 7 8 6", "1 5 6 2", "3 4 8 7", "1 3 7 5", "2 6 8 4")
    rows = [f"v {x} {y} {z}" for x, y, z in corners] + [f"f {quad}" for quad in quads]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
