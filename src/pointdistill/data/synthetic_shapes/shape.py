"""What shapes are built from, making one shape, and drawing points from its surface.

Meshes, random choices, labelled assemblies, mild deformations, and the registry of categories. World frame: x to
the right, y to the back, z up, in metres; the front of an object faces -y.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pointdistill.errors import ConfigError

Vector = tuple[float, float, float]
Floats = NDArray[np.float64]
Faces = NDArray[np.int32]


Choice = TypeVar("Choice")
REGISTRY: dict[str, Category] = {}


@dataclass(frozen=True, slots=True)
class Mesh:
    """An indexed triangle mesh; every change returns a new one.

    Sizes: V vertices, F faces.
    """

    vertices: Floats  # (V, 3), metres
    faces: Faces  # (F, 3), counter-clockwise seen from outside

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Mesh:
        """Shifted by (x, y, z)."""
        return Mesh(self.vertices + np.array((x, y, z)), self.faces)

    def scaled(self, x: float = 1.0, y: float = 1.0, z: float = 1.0) -> Mesh:
        """Stretched about the origin; the factors are positive."""
        return Mesh(self.vertices * np.array((x, y, z)), self.faces)

    def turned(self, axis: str, degrees: float, *, about: Vector = (0.0, 0.0, 0.0)) -> Mesh:
        """Rotated by the right-hand rule about the line through ``about`` along ``axis`` (x, y or z)."""
        angle = np.deg2rad(degrees)
        cos, sin = np.cos(angle), np.sin(angle)
        first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
        matrix = np.eye(3)
        matrix[first, first] = matrix[second, second] = cos
        matrix[first, second], matrix[second, first] = -sin, sin
        center = np.array(about)
        return Mesh((self.vertices - center) @ matrix.T + center, self.faces)

    def mirrored(self) -> Mesh:
        """Reflected in the plane x = 0, still facing outwards."""
        return Mesh(self.vertices * np.array((-1.0, 1.0, 1.0)), self.faces[:, ::-1])


def join(*meshes: Mesh) -> Mesh:
    """Several meshes as one."""
    counts = [0, *(len(mesh.vertices) for mesh in meshes[:-1])]
    starts = np.cumsum(counts, dtype=np.int32)
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=True)]),
    )


def _to_unit_range(values: Floats) -> Floats:
    """Values scaled from their own range to [-1, 1]; all 0 if they do not vary."""
    low, high = float(values.min()), float(values.max())
    span = max(high - low, 1e-9)
    return (values - (low + high) / 2.0) * (2.0 / span)


def taper(vertices: Floats, amount: float) -> Floats:
    """Widen towards the top by ``amount`` and narrow towards the floor by as much."""
    factor = 1.0 + amount * _to_unit_range(vertices[:, 2])
    return vertices * np.column_stack((factor, factor, np.ones_like(factor)))


def bulge(vertices: Floats, amount: float) -> Floats:
    """Widen at half height by ``amount``; the floor and the top keep their size."""
    factor = 1.0 + amount * (1.0 - _to_unit_range(vertices[:, 2]) ** 2)
    return vertices * np.column_stack((factor, factor, np.ones_like(factor)))


def shear(vertices: Floats, amount: float, direction: float) -> Floats:
    """Lean over: the top moves by ``amount`` of the height, towards the angle ``direction`` in radians."""
    way = np.array((np.cos(direction), np.sin(direction), 0.0))
    return vertices + amount * vertices[:, 2:] * way


def bend(vertices: Floats, amount: float, axis: int) -> Floats:
    """Curve along ``axis`` (0, 1 or 2) into a bow whose ends move sideways by ``amount`` of its length."""
    length = float(np.ptp(vertices[:, axis]))
    moved = vertices.copy()
    moved[:, 0 if axis == 1 else 1] += amount * length * _to_unit_range(vertices[:, axis]) ** 2
    return moved


def twist(vertices: Floats, radians: float) -> Floats:
    """Turn the top by ``radians`` and the floor by as much the other way."""
    angle = radians * _to_unit_range(vertices[:, 2])
    cos, sin = np.cos(angle), np.sin(angle)
    x, y, z = vertices.T
    return np.column_stack((cos * x - sin * y, sin * x + cos * y, z))


def random_deformation(vertices: Floats, *, rng: np.random.Generator) -> Floats:
    """Uneven scaling and up to two of the deformations above; the shape stays on the floor."""
    spread = np.clip(rng.normal(0.0, 0.14, size=3), -0.3, 0.3)
    result: Floats = vertices * np.exp(spread + rng.normal(0.0, 0.2))
    for kind in rng.choice(5, size=rng.integers(0, 3), replace=False):
        amount = rng.uniform(-0.13, 0.13)
        if kind == 0:
            result = taper(result, amount)
        elif kind == 1:
            result = bulge(result, amount)
        elif kind == 2:
            result = shear(result, amount, rng.uniform(0.0, 2.0 * np.pi))
        elif kind == 3:
            result = bend(result, 0.6 * amount, int(rng.integers(3)))
        else:
            result = twist(result, amount)
    return result


class Draw:
    """Short names for the random choices that makers take."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def between(self, low: float, high: float) -> float:
        """A number, uniform in [low, high)."""
        return low + (high - low) * float(self.rng.random())

    def count(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both included."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return float(self.rng.random()) < probability

    def pick(self, options: Sequence[Choice]) -> Choice:
        """One of ``options``, all equally likely."""
        return options[int(self.rng.integers(len(options)))]


class Assembly:
    """The pieces of one shape, each under the name of its part.

    Attributes:
        pieces: the label of each piece, an index into the category's part names, and the piece.
    """

    def __init__(self, part_names: tuple[str, ...]) -> None:
        self._index = {name: index for index, name in enumerate(part_names)}
        self.pieces: list[tuple[int, Mesh]] = []

    def add(self, part: str, *pieces: Mesh) -> None:
        """Add pieces; ``part`` is one of the category's part names."""
        index = self._index[part]
        self.pieces.extend((index, piece) for piece in pieces)

    def merged(self) -> tuple[Floats, Faces, NDArray[np.uint8]]:
        """All pieces as vertices (V, 3), faces (F, 3) and the part of each face (F,)."""
        starts = np.cumsum([0, *(len(piece.vertices) for _, piece in self.pieces)])
        vertices = np.concatenate([piece.vertices for _, piece in self.pieces])
        faces = np.concatenate(
            [piece.faces + start for (_, piece), start in zip(self.pieces, starts, strict=False)]
        ).astype(np.int32)
        part = np.repeat(
            np.array([index for index, _ in self.pieces], dtype=np.uint8),
            [len(piece.faces) for _, piece in self.pieces],
        )
        return vertices, faces, part


Maker = Callable[[Assembly, Draw], None]


@dataclass(frozen=True, slots=True)
class Category:
    """A named kind of object: its maker and the vocabulary of its parts."""

    name: str
    part_names: tuple[str, ...]
    maker: Maker


def category(name: str, *parts: str) -> Callable[[Maker], Maker]:
    """Register the decorated maker under ``name``; ``parts`` is the vocabulary of its part labels."""

    def register(maker: Maker) -> Maker:
        REGISTRY[name] = Category(name, parts, maker)
        return maker

    return register


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
    low, high = bounds(vertices)
    middle = (low + high) / 2.0
    vertices -= np.array((middle[0], middle[1], low[2]))
    area = face_areas(vertices, faces)
    large_enough = area > SMALLEST_FACE * float(((high - low) ** 2).sum())
    return BuiltinShape(
        category, vertices, faces[large_enough], part[large_enough], kind.part_names
    )


def bounds(points: Floats) -> tuple[Floats, Floats]:
    """The lowest and the highest corner, (3,) each, of the box around points (N, 3)."""
    # NumPy takes the minimum along rows many times faster than down three columns.
    axes = np.ascontiguousarray(points.T)
    return axes.min(axis=1), axes.max(axis=1)


def cross(first: Floats, second: Floats) -> Floats:
    """The cross products of vectors (..., 3), as ``np.cross`` has them, in a fraction of its time."""
    ax, ay, az = first[..., 0], first[..., 1], first[..., 2]
    bx, by, bz = second[..., 0], second[..., 1], second[..., 2]
    return np.stack((ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx), axis=-1)


def lengths(vectors: Floats) -> Floats:
    """(N,) lengths of vectors (N, 3)."""
    x, y, z = vectors.T
    return np.asarray(np.sqrt(x * x + y * y + z * z))


def face_areas(vertices: Floats, faces: Faces) -> Floats:
    """(F,) areas of the triangles, in the square of the vertices' unit."""
    origin, second, third = (vertices.take(corner, axis=0) for corner in faces.T)
    return 0.5 * lengths(cross(second - origin, third - origin))


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
    reach = np.cumsum(face_areas(shape.vertices, shape.faces))
    target = rng.random(count) * reach[-1]
    # A search in ascending order finds what it needs in the cache.
    order = np.argsort(target)
    face = np.empty(count, dtype=np.intp)
    face[order] = np.searchsorted(reach, target.take(order), side="right")
    face = np.minimum(face, len(reach) - 1)
    weight = rng.random((count, 2), dtype=np.float32)
    # A point beyond the diagonal of the parallelogram is reflected into the triangle.
    beyond = weight[:, :1] + weight[:, 1:] > 1.0
    weight = np.where(beyond, 1.0 - weight, weight)
    vertices = shape.vertices.astype(np.float32)
    origin, first, second = (vertices.take(corner, axis=0) for corner in shape.faces.T)
    first -= origin
    second -= origin
    points = origin.take(face, axis=0)
    points += weight[:, :1] * first.take(face, axis=0)
    points += weight[:, 1:] * second.take(face, axis=0)
    return points, face
