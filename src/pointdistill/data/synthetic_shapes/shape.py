"""Making one shape and drawing points from its surface."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.synthetic_shapes.mesh import (
    REGISTRY,
    Assembly,
    Draw,
    Faces,
    Floats,
    random_deformation,
)
from pointdistill.errors import ConfigError

SMALLEST_FACE = 1e-9
"""Area in units of the shape's diagonal squared; no sample would hit a smaller face."""


@dataclass(frozen=True, slots=True)
class BuiltinShape:
    """One object as labelled triangles, z up, standing on z = 0, its front towards -y, in metres.

    Sizes: V vertices, F faces.
    """

    category: str
    vertices: Floats  # (V, 3)
    faces: Faces  # (F, 3), every one with a positive area
    face_part: NDArray[np.uint8]  # (F,), an index into part_names
    part_names: tuple[str, ...]  # the category's vocabulary; a shape need not have every part


def category_rng(*, seed: int, category: str, index: int) -> np.random.Generator:
    """The generator of shape ``index`` of a category: the same whatever was made before it.

    Args:
        seed, index: not negative.
        category: enters by its name, so that new categories leave the old shapes as they were.
    """
    name = zlib.crc32(category.encode())
    return np.random.default_rng(np.random.SeedSequence((seed, name, index)))


def make_shape(category: str, *, rng: np.random.Generator) -> BuiltinShape:
    """A new object of a category; no two draws are alike.

    Raises:
        ConfigError: if there is no such category.
    """
    kind = REGISTRY.get(category)
    if kind is None:
        known = ", ".join(sorted(REGISTRY))
        msg = f"no built-in category {category!r}; choose one of: {known}"
        raise ConfigError(msg)
    assembly = Assembly(kind.part_names)
    kind.maker(assembly, Draw(rng))
    vertices, faces, part = assembly.merged()
    vertices = random_deformation(vertices, rng=rng)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    middle = (low + high) / 2.0
    vertices -= np.array((middle[0], middle[1], low[2]))
    area = face_areas(vertices, faces)
    large_enough = area > SMALLEST_FACE * float(((high - low) ** 2).sum())
    return BuiltinShape(
        category, vertices, faces[large_enough], part[large_enough], kind.part_names
    )


def face_areas(vertices: Floats, faces: Faces) -> Floats:
    """(F,) areas of the triangles, in the square of the vertices' unit."""
    corner = vertices[faces]
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    areas: Floats = 0.5 * np.sqrt(np.einsum("ij,ij->i", normal, normal))
    return areas


def sample_shape(
    shape: BuiltinShape, count: int, *, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Draw points uniformly by area.

    Args:
        shape: what to sample.
        count: number of points, at least 1.
        rng: source of randomness.

    Returns:
        points: (count, 3) float32, in the shape's frame and unit, in no order.
        part: (count,) uint8, the part that each lies on.

    Raises:
        ConfigError: if ``count`` is below 1.
    """
    points, face = sample_faces(shape, count, rng=rng)
    return points, shape.face_part[face]


def sample_faces(
    shape: BuiltinShape, count: int, *, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """The points of `sample_shape`, (count, 3), and the face that each lies on, (count,).

    Raises:
        ConfigError: if ``count`` is below 1.
    """
    if count < 1:
        msg = f"a sample needs at least 1 point, got {count}"
        raise ConfigError(msg)
    corner = shape.vertices[shape.faces].astype(np.float32)  # (F, 3, 3)
    reach = np.cumsum(face_areas(shape.vertices, shape.faces))
    face = np.searchsorted(reach, rng.random(count) * reach[-1], side="right")
    face = np.minimum(face, len(reach) - 1)
    weight = rng.random((count, 2), dtype=np.float32)
    # A point beyond the diagonal of the parallelogram is reflected into the triangle.
    beyond = weight.sum(axis=1) > 1.0
    weight[beyond] = 1.0 - weight[beyond]
    first, second = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
    points = corner[face, 0] + weight[:, :1] * first[face] + weight[:, 1:] * second[face]
    return points, face
