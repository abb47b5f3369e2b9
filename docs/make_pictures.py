"""Draws the pictures of the site again, with the program and from its own shapes.

Run: python docs/make_pictures.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image

import pointdistill

HERE = Path(__file__).parent.absolute()
PICTURES = HERE / "pictures"
WIDTH = 1400
"""Widest picture, in pixels; they are stored with a palette, which keeps each below 200 kB."""


def main() -> None:
    """Make meshes and a corpus in a temporary folder, run the commands there, keep what they draw."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        call(here, sys.executable, str(HERE.parent / "examples" / "make_meshes.py"), "my-shapes")
        run(here, "embed", "my-shapes", "--output", "my-shapes.npz")
        query = "my-shapes/chair/chair-0.obj"
        run(here, "search", query, "my-shapes.npz", "--count", "8", "--sheet", "search.png")
        run(here, "prepare-data", "builtin", "--shapes", "300", "--points", "2048")
        run(here, "preview", "--shapes", "8", "--output", "preview")
        run(here, "reconstruct", "--steps", "200", "--output", "reconstruction")
        keep(here / "search.png", "search.png")
        keep(here / "preview.png", "preview.png")
        keep(here / "reconstruction" / "reconstruction.png", "reconstruction.png")
        files = [
            here / "my-shapes" / name
            for name in ("chair/chair-0.obj", "airplane/airplane-1.obj", "mug/mug-2.obj")
        ]
        draw_patches(files, here / "patches.png")
        keep(here / "patches.png", "patches.png")


def run(folder: Path, *words: str) -> None:
    call(folder, sys.executable, "-m", "pointdistill", *words)


def call(folder: Path, *words: str) -> None:
    print("$", *words[1:])
    subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def keep(source: Path, name: str) -> None:
    """Store a picture at most `WIDTH` pixels wide, with a palette of 128 colours."""
    PICTURES.mkdir(exist_ok=True)
    picture = Image.open(source).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture).convert("RGB")
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)))
    picture.quantize(128).save(PICTURES / name, optimize=True)


def draw_patches(files: list[Path], output: Path) -> None:
    """Colour the points of each shape by the first three principal components of its patches' features."""
    mpl.use("agg")
    from matplotlib import pyplot as plt

    encoder = pointdistill.load_encoder("procedural-mini")
    clouds = [pointdistill.sample_surface(file, 4096, seed=0, up="z") for file in files]
    with torch.inference_mode():
        points = torch.from_numpy(np.stack(clouds)).float()
        out = encoder(points[:, : 2 * encoder.config.points])
    features = out.patches.flatten(0, 1)
    features = features - features.mean(dim=0)
    _, _, axes = torch.linalg.svd(features, full_matrices=False)
    colours = (features @ axes[:3].T).reshape(*out.patches.shape[:2], 3)
    low, high = colours.amin(dim=(0, 1)), colours.amax(dim=(0, 1))
    colours = (colours - low) / (high - low)
    figure = plt.figure(figsize=(10, 3.6))
    for place, (cloud, centers, colour) in enumerate(
        zip(points, out.centers, colours, strict=True)
    ):
        middle = cloud - cloud.mean(dim=0)
        unit = middle / middle.norm(dim=1).max()
        nearest = torch.cdist(unit, centers).argmin(dim=1)
        axis = figure.add_subplot(1, len(files), place + 1, projection="3d")
        axis.scatter(*unit.T, c=colour[nearest].numpy(), s=3)
        axis.set_aspect("equal")
        axis.set_axis_off()
        axis.view_init(20, -60)
    figure.tight_layout()
    figure.savefig(output, dpi=120)


main()
