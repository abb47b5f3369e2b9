"""From what a reader found to a surface or a cloud that can be trusted: count the faults, refuse or drop.

Nothing is repaired unless the caller says so, and then the number of what was dropped is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.meshes.polygons import triangulate
from pointdistill.data.meshes.records import (
    Draft,
    Floats,
    Indices,
    MeshLimits,
    Part,
    PointSet,
    Surface,
)
from pointdistill.data.meshes.sampling import has_area
from pointdistill.errors import DataError

REPAIR_HINT = "correct the file, or sample it without them: `pointdistill sample --repair` (Python: repair=True)"


def assemble(draft: Draft, *, repair: bool, limits: MeshLimits) -> Surface | PointSet:
    """One surface, or one cloud where the file has points alone.

    Args:
        draft: what the reader found.
        repair: drop unusable faces and points instead of refusing the file.
        limits: largest scene that is accepted.

    Raises:
        DataError: if there is nothing, too much, or something unusable; says what and how many.
    """
    check_size("vertices", sum(len(part.vertices) for part in draft.parts), limits.vertices)
    check_size("points", sum(len(points) for points in draft.points), limits.vertices)
    check_size("triangles", sum(part.triangle_count for part in draft.parts), limits.faces)
    if any(part.face_count for part in draft.parts):
        return _surface(draft, repair=repair, limits=limits)
    if any(len(points) for points in draft.points):
        return _cloud(draft, repair=repair)
    vertices = sum(len(part.vertices) for part in draft.parts)
    msg = f"nothing to sample: {vertices:,} vertices, 0 faces and 0 points; export a mesh or a point cloud"
    raise DataError(msg)


def check_size(what: str, found: int, accepted: int) -> None:
    """Refuse more than a limit, before it is read or copied.

    Raises:
        DataError: if ``found`` exceeds ``accepted``.
    """
    if found > accepted:
        msg = f"{found:,} {what}, at most {accepted:,} are accepted; simplify or split the file"
        raise DataError(msg)


def finite_points(points: Floats, *, repair: bool) -> tuple[Floats, int]:
    """The points whose three coordinates are finite, and how many were dropped; (P, 3).

    Raises:
        DataError: if some are not finite and ``repair`` is off, or none is left.
    """
    finite = np.isfinite(points).all(axis=1)
    bad = int(len(points) - finite.sum())
    if bad and not repair:
        msg = f"{bad:,} of {len(points):,} points are NaN or infinite; {REPAIR_HINT}"
        raise DataError(msg)
    if bad == len(points):
        msg = f"no point is left after dropping {bad:,} that are NaN or infinite; export the file again"
        raise DataError(msg)
    return (points[finite] if bad else points), bad


def _cloud(draft: Draft, *, repair: bool) -> PointSet:
    points = draft.points[0] if len(draft.points) == 1 else np.concatenate(draft.points)
    points, dropped = finite_points(points, repair=repair)
    if not (points != points[0]).any():
        msg = f"all {len(points):,} points are at one place; export the file again"
        raise DataError(msg)
    return PointSet(points, declared_up=draft.declared_up, dropped_points=dropped)


def _surface(draft: Draft, *, repair: bool, limits: MeshLimits) -> Surface:
    faults = [find_faults(part) for part in draft.parts]
    bad = sum(fault.bad_faces for fault in faults)
    total = sum(part.face_count for part in draft.parts)
    if bad and not repair:
        msg = f"{bad:,} of {total:,} faces cannot be used ({_causes(faults)}); {REPAIR_HINT}"
        raise DataError(msg)
    if bad == total:
        msg = f"no face is left after dropping {bad:,} ({_causes(faults)}); export the file again"
        raise DataError(msg)
    vertices, faces = _merge(draft.parts, faults, limits)
    surface = Surface(vertices, faces, declared_up=draft.declared_up, dropped_faces=bad)
    if not has_area(vertices, faces):
        msg = (
            f"the surface has no area: {len(faces):,} of {len(faces):,} triangles are degenerate; "
            "export the file again"
        )
        raise DataError(msg)
    return surface


@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong with the faces of one part; a face with several faults counts once, in this order."""

    usable: NDArray[np.bool_]  # (F,)
    too_few_corners: int
    index_outside: int
    not_finite: int
    bad_vertices: int
    vertices: int

    @property
    def bad_faces(self) -> int:
        """Faces that cannot be used."""
        return self.too_few_corners + self.index_outside + self.not_finite


def find_faults(part: Part) -> Faults:
    """Faces with fewer than 3 corners, with an index outside the vertices, or with a NaN or infinite corner."""
    count = len(part.vertices)
    if _is_faultless(part):
        return Faults(np.ones(part.face_count, bool), 0, 0, 0, 0, count)
    short = np.zeros(part.face_count, bool) if part.sizes is None else part.sizes < 3
    outside_corner = np.logical_or(part.corners < 0, part.corners >= count)
    finite_vertex: NDArray[np.bool_] = np.all(np.isfinite(part.vertices), axis=1)
    if part.matrix is not None and not np.isfinite(part.matrix).all():
        finite_vertex[:] = False
    bad_corner = outside_corner.copy()
    bad_corner[~outside_corner] = ~finite_vertex[part.corners[~outside_corner]]
    outside = _any_corner(outside_corner, part) & ~short
    not_finite = _any_corner(bad_corner, part) & ~short & ~outside
    return Faults(
        usable=~(short | outside | not_finite),
        too_few_corners=int(short.sum()),
        index_outside=int(outside.sum()),
        not_finite=int(not_finite.sum()),
        bad_vertices=int(count - finite_vertex.sum()),
        vertices=count,
    )


def _is_faultless(part: Part) -> bool:
    """Whether nothing at all is wrong: one pass over the numbers, where finding out what is takes many."""
    within = not len(part.corners) or (
        int(part.corners.min()) >= 0 and int(part.corners.max()) < len(part.vertices)
    )
    whole = part.sizes is None or int(part.sizes.min(initial=3)) >= 3
    placed = part.matrix is None or bool(np.isfinite(part.matrix).all())
    return within and whole and placed and bool(np.isfinite(part.vertices).all())


def _any_corner(flags: NDArray[np.bool_], part: Part) -> NDArray[np.bool_]:
    """(C,) flags of corners -> (F,) whether any corner of the face is flagged."""
    if part.sizes is None:
        any_flag: NDArray[np.bool_] = np.any(flags.reshape(-1, 3), axis=1)
        return any_flag
    if not flags.any():
        return np.zeros(len(part.sizes), bool)
    before = np.concatenate([[0], np.cumsum(flags)])
    ends = np.cumsum(part.sizes)
    flagged: NDArray[np.bool_] = before[ends] > before[ends - part.sizes]
    return flagged


def _causes(faults: list[Faults]) -> str:
    """The causes that occur, with their counts."""
    named = {
        "fewer than 3 corners": sum(fault.too_few_corners for fault in faults),
        "index outside the vertices": sum(fault.index_outside for fault in faults),
        "NaN or infinite corner": sum(fault.not_finite for fault in faults),
    }
    causes = [f"{cause}: {count:,}" for cause, count in named.items() if count]
    if named["NaN or infinite corner"]:
        bad = sum(fault.bad_vertices for fault in faults)
        causes.append(f"NaN or infinite vertices: {bad:,} of {sum(f.vertices for f in faults):,}")
    return ", ".join(causes)


def _merge(parts: list[Part], faults: list[Faults], limits: MeshLimits) -> tuple[Floats, Indices]:
    """Usable triangles of all parts in one frame; (V, 3) and (F, 3)."""
    all_vertices, all_faces, offset = [], [], 0
    for part, fault in zip(parts, faults, strict=True):
        vertices = part.vertices if part.matrix is None else transform(part.vertices, part.matrix)
        faces = _triangles(part, fault, limits)
        all_vertices.append(vertices)
        all_faces.append(faces + offset if offset else faces)
        offset += len(vertices)
    if len(parts) == 1:
        return all_vertices[0], all_faces[0]
    return np.concatenate(all_vertices), np.concatenate(all_faces)


def _triangles(part: Part, fault: Faults, limits: MeshLimits) -> Indices:
    if part.sizes is None:
        faces = part.corners.reshape(-1, 3)
        return faces if fault.usable.all() else faces[fault.usable]
    corners, sizes = part.corners, part.sizes
    if not fault.usable.all():
        corners, sizes = corners[np.repeat(fault.usable, sizes)], sizes[fault.usable]
    return triangulate(part.vertices, corners, sizes, concave_work=limits.concave_work)


def transform(points: Floats, matrix: Floats) -> Floats:
    """Apply a (4, 4) affine matrix, which acts on column vectors, to (P, 3) points."""
    # A vertex that no face uses may be infinite; it stays what it is and harms nothing.
    with np.errstate(invalid="ignore", over="ignore"):
        moved: Floats = points @ matrix[:3, :3].T + matrix[:3, 3]
    return moved
