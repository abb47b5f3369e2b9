"""The meshes of ``meshes.py``: a bumpy ball in every format and size, plain and with four textures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh
from PIL import Image
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

FACES = (1_000, 20_000, 300_000)
PLAIN = ("obj", "off", "glb", "stl", "ply")
TEXTURED = ("obj", "glb")
TEXTURES, PIXELS = 4, 1024


def write_files(folder: Path, sizes: tuple[int, ...] = FACES) -> list[Path]:
    """Write every file, the same each time. Textures are beside an OBJ and inside a GLB."""
    files = []
    for faces in sizes:
        vertices, triangles, uv = ball(faces)
        plain = trimesh.Trimesh(vertices, triangles, process=False)
        scene = textured(vertices, triangles, uv)
        for name in PLAIN:
            files.append(folder / f"plain-{faces}.{name}")
            plain.export(files[-1])
        for name in TEXTURED:
            # The exporter always uses the same names for materials and images: each file needs its own folder.
            files.append(folder / f"textured-{faces}-{name}" / f"textured-{faces}.{name}")
            files[-1].parent.mkdir()
            scene.export(files[-1])
    return files


def ball(faces: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices (V, 3), triangles (F, 3), texture coordinates (V, 2). F is ``faces`` up to rounding."""
    rows = round((faces / 4) ** 0.5)
    columns = faces // (2 * rows)
    # Without the poles, where a row would be a single point.
    u, v = np.meshgrid(np.linspace(0, 1, columns + 1), np.linspace(0.001, 0.999, rows + 1))
    around, down = 2 * np.pi * u, np.pi * v
    radius = 1 + 0.2 * np.sin(3 * around) * np.sin(5 * down)
    direction = [np.sin(down) * np.cos(around), np.sin(down) * np.sin(around), np.cos(down)]
    vertices = np.stack([radius * axis for axis in direction], axis=-1).reshape(-1, 3)
    corner = (np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)).reshape(-1)
    below = corner + columns + 1
    quads = np.stack([corner, below, below + 1, corner, below + 1, corner + 1], axis=1)
    return vertices, quads.reshape(-1, 3), np.stack([u, v], axis=-1).reshape(-1, 2)


def textured(vertices: np.ndarray, triangles: np.ndarray, uv: np.ndarray) -> trimesh.Scene:
    """The same surface as four meshes, each with its own texture."""
    rng = np.random.default_rng(0)
    scene = trimesh.Scene()
    for number, piece in enumerate(np.array_split(triangles, TEXTURES)):
        used, corners = np.unique(piece, return_inverse=True)
        coarse = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        # Smooth patches compress like photographs: 1.4 MB of PNG.
        image = coarse.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
        material = PBRMaterial(name=f"skin{number}", baseColorTexture=image)
        mesh = trimesh.Trimesh(
            vertices[used],
            corners.reshape(-1, 3),
            visual=TextureVisuals(uv=uv[used], material=material),
            process=False,
        )
        scene.add_geometry(mesh, geom_name=f"piece{number}")
    return scene
