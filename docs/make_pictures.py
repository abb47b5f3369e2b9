"""Draws the pictures of the site again, with the program and from its own shapes.

Run: python docs/make_pictures.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import pointdistill
from pointdistill.engine.features.extract import feature_colors
from pointdistill.engine.reports.pictures import SheetShape, contact_sheet

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
            here / "my-shapes" / kind / f"{kind}-{number}.obj"
            for kind in ("chair", "airplane", "mug")
            for number in (0, 1)
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
    picture.quantize(128, dither=Image.Dither.NONE).save(PICTURES / name, optimize=True)


def draw_patches(files: list[Path], output: Path) -> None:
    """Colour the points of each shape by the first three principal components of its patches' features."""
    clouds = [pointdistill.sample_surface(file, 2048, seed=0, up="z") for file in files]
    points = np.stack(clouds).astype(np.float32)
    colors = feature_colors(pointdistill.load_encoder("procedural-mini"), torch.from_numpy(points))
    shapes = [
        SheetShape(points=cloud, name=file.stem, colors=color)
        for file, cloud, color in zip(files, points, colors, strict=True)
    ]
    note = "Colours: the first three principal components of the patch features of all shapes."
    output.write_bytes(contact_sheet(shapes, note=note))


main()
