"""Triangles with a position: the one value that every primitive returns.

World frame: x to the right, y to the back, z up, in metres; the front of an object looks towards -y.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = tuple[float, float, float]
Floats = NDArray[np.float64]
Faces = NDArray[np.int32]


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
        """Turned by the right-hand rule about the line through ``about`` along ``axis`` (x, y or z)."""
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
