"""What a reader returns, what a checked file becomes, and the limits that every file must keep.

Sizes: V vertices, F faces, C corners of all faces together, P bare points.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pointdistill.errors import ConfigError
from pointdistill.reporter import plural

Axis: TypeAlias = Literal["x", "y", "z", "-x", "-y", "-z"]
"""The signed axis of a file that points up."""

Floats: TypeAlias = NDArray[np.float64]
AnyFloats: TypeAlias = NDArray[np.float32] | NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]

_NAMED_FILES = 3

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

    left_out: Mapping[str, int] = field(default_factory=dict)
    """What the file holds besides, and asks not to show or print; see `RawMesh`."""


@dataclass(frozen=True, slots=True)
class PointSet:
    """A cloud: points of a file that has no faces, in the file's own frame."""

    points: Floats  # (P, 3), finite
    declared_up: Axis | None = None
    dropped_points: int = 0
    """Points left out because a coordinate was not finite: by ``repair``, or as missing returns of a scan."""

    left_out: Mapping[str, int] = field(default_factory=dict)
    """What the file holds besides, and asks not to show or print; see `RawMesh`."""


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
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Geometry that is stored and is no part of the shape: how many of each kind, named in the plural."""

    nan_is_missing: bool = False
    """The format marks a missing return of a scan by NaN: such points are left out and counted."""


def counted(kinds: Mapping[str, int]) -> str:
    """Kinds with their counts, for a person to read: ``2 modifiers, 1 support blocker``."""
    return ", ".join(
        plural(count, _SINGULAR.sub(r"\1\2", kind), kind) for kind, count in kinds.items()
    )


_SINGULAR = re.compile(r"^(.+?)(?:(?<=sh)e)?s((?: (?:of|on|without) .*)?)$")
"""A kind in the plural: what stays of it in the singular."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What was left out of files that are used, counted so that one line can say it of many."""

    kinds: Mapping[str, int] = field(default_factory=dict)
    files: int = 0
    first: tuple[str, ...] = ()
    """Names of the first few of these files."""

    def __post_init__(self) -> None:
        if self.files < 0 or any(count < 0 for count in self.kinds.values()):
            msg = (
                f"counts must not be negative, got {plural(self.files, 'file')}, {dict(self.kinds)}"
            )
            raise ConfigError(msg)

    @classmethod
    def of(cls, shape: Surface | PointSet, name: str) -> LeftOut:
        """What was left out of the file called ``name``, as it was read without repair."""
        kinds = dict(shape.left_out)
        if isinstance(shape, Surface) and shape.dropped_faces:
            kinds["faces of one or two corners"] = shape.dropped_faces
        if isinstance(shape, PointSet) and shape.dropped_points:
            kinds["points without finite coordinates"] = shape.dropped_points
        return cls(kinds, 1, (name,)) if kinds else cls()

    def __add__(self, other: LeftOut) -> LeftOut:
        """Of both sets of files; the names are those that come first."""
        if not (self.files and other.files):
            return self if self.files else other
        kinds = Counter(self.kinds)
        kinds.update(other.kinds)
        first = (*self.first, *other.first)[:_NAMED_FILES]
        return LeftOut(dict(kinds), self.files + other.files, first)

    def line(self) -> str:
        """One line; empty if nothing was left out."""
        if not self.files:
            return ""
        more = f" and {self.files - len(self.first):,} more" if self.files > len(self.first) else ""
        where = plural(self.files, "file")
        return f"left out of {where}: {counted(self.kinds)} ({', '.join(self.first)}{more})"
