"""Writes meshes to play with: one folder per class of the builtin shapes, as OBJ files, z up.

Run: python examples/make_meshes.py my-shapes
"""

import sys
from pathlib import Path

import numpy as np

from pointdistill.data.synthetic_shapes import category_rng, make_shape
from pointdistill.errors import PointDistillError

CLASSES = ("airplane", "bed", "chair", "lamp", "mug", "table")


def main(folder: str = "my-shapes", count: str = "12") -> None:
    """Write ``count`` files of each class: ``my-shapes/chair/chair-0.obj`` and so on."""
    for name in CLASSES:
        place = Path(folder) / name
        place.mkdir(parents=True, exist_ok=True)
        for index in range(int(count)):
            shape = make_shape(name, rng=category_rng(seed=11, category=name, index=index))
            with (place / f"{name}-{index}.obj").open("w") as file:
                np.savetxt(file, shape.vertices, fmt="v %.6f %.6f %.6f")
                np.savetxt(file, shape.faces + 1, fmt="f %d %d %d")
    print(f"{len(CLASSES) * int(count)} meshes of {len(CLASSES)} classes in {folder}")


try:
    main(*sys.argv[1:3])
except (PointDistillError, ValueError, OSError) as error:
    sys.exit(f"error: {error}")
