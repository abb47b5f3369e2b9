"""What a reader returns, what a checked file becomes, and the limits that every file must keep.

Sizes: V vertices, F faces, C corners of all faces together, P bare points.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Axis: TypeAlias = Literal["x", "y", "z", "-x", "-y", "-z"]
"""The signed axis of a file that points up."""

Floats: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]

MINIMUM_POINTS = 32
"""A cloud with fewer points is useless everywhere in the program: a single patch holds as many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshLimits:
    """What one file may hold; more is refused before it costs memory or time.

    With the defaults, reading any file takes less than 2 GB of memory.
    """

    file_bytes: int = 2**30
    """Size of a binary file, or of one member of an archive once unpacked."""

    text_bytes: int = 2**29
    """Size of a text file that is read block by block (obj, off, ply, stl, xyz, …)."""

    document_bytes: int = 100 * 2**20
    """Size of an XML or JSON document (dae, gltf), or of all documents of an archive (3mf, 3dxml)."""

    document_values: int = 5_000_000
    """Values of a JSON document, or tags and attributes of XML documents."""

    vertices: int = 15_000_000
    """Vertices of a whole scene, instances included, or points of a cloud."""

    faces: int = 5_000_000
    """Triangles of a whole scene, instances included."""

    instances: int = 100_000
    """Nodes visited and meshes placed in one scene."""

    concave_work: int = 10_000_000
    """Sum of the squared corner counts of polygons that are neither convex nor quads: what cutting them costs."""


@dataclass(frozen=True, slots=True)
class Surface:
    """Triangles of a whole scene with every transform applied, in the file's own frame."""

    vertices: Floats  # (V, 3), finite where a face uses them
    faces: Indices  # (F, 3), each index in [0, V)
    declared_up: Axis | None = None
    """The up axis that the format's standard or the file itself states; None if neither does."""

    dropped_faces: int = 0
    """Faces left out: always those of fewer than 3 corners, which have no area; others only by ``repair``."""


@dataclass(frozen=True, slots=True)
class PointSet:
    """A cloud: points of a file that has no faces, in the file's own frame."""

    points: Floats  # (P, 3), finite
    declared_up: Axis | None = None
    dropped_points: int = 0
    """Points left out because a coordinate was not finite: by ``repair``, or as missing returns of a scan."""


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a scene as a reader returns it: unchecked, with its polygons not cut yet."""

    vertices: Floats  # (V, 3)
    corners: Indices  # (C,), vertex index of each corner, face after face
    sizes: Indices | None = None  # (F,), corners of each face; None: all are triangles
    matrix: Floats | None = None  # (4, 4), acts on column vectors; None: identity

    @property
    def face_count(self) -> int:
        """Number of faces as the file counts them."""
        return len(self.corners) // 3 if self.sizes is None else len(self.sizes)

    @property
    def triangle_count(self) -> int:
        """Number of triangles once polygons are cut."""
        if self.sizes is None:
            return len(self.corners) // 3
        return int(np.maximum(self.sizes - 2, 0).sum())


@dataclass(frozen=True, slots=True)
class RawMesh:
    """All the geometry in one file, before any check.

    Points and lines beside faces are no surface and are ignored; points alone make a cloud.
    """

    parts: list[Part] = field(default_factory=list)
    points: list[Floats] = field(default_factory=list)  # each (P, 3)
    declared_up: Axis | None = None
    nan_is_missing: bool = False
    """The format marks a missing return of a scan by NaN: such points are left out and counted."""
