"""Everyday objects made on the spot: parametric shapes with part labels, from numpy alone.

`make_shape` builds one object of one of `CATEGORIES`, `sample_shape` draws labelled points from its surface,
and `category_rng` gives the generator of the i-th shape of a category, so that a shape depends on (seed,
category, index) and on nothing else. Frame: z up, standing on z = 0, front towards -y, metres.
"""

from __future__ import annotations

from pointdistill.data.synthetic_shapes import (
    architecture,
    electronics,
    household,
    seats_and_tables,
    storage,
    tools,
    vehicles,
    vessels,
)
from pointdistill.data.synthetic_shapes.shape import (
    REGISTRY,
    BuiltinShape,
    category_rng,
    face_areas,
    make_shape,
    sample_faces,
    sample_shape,
)

# Importing the themes fills the registry.
_THEMES = (
    architecture,
    electronics,
    household,
    seats_and_tables,
    storage,
    tools,
    vehicles,
    vessels,
)

CATEGORIES: tuple[str, ...] = tuple(sorted(REGISTRY))
"""Every category that `make_shape` knows."""

PART_NAMES: dict[str, tuple[str, ...]] = {name: REGISTRY[name].part_names for name in CATEGORIES}
"""What the part labels of each category mean: label i is the i-th name."""

__all__ = [
    "CATEGORIES",
    "PART_NAMES",
    "BuiltinShape",
    "category_rng",
    "face_areas",
    "make_shape",
    "sample_faces",
    "sample_shape",
]
