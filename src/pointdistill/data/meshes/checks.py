"""From a reader's raw mesh to a surface or a cloud that can be trusted: count the faults, refuse or drop them.

Nothing is repaired unless the caller asks for it. What is left out is counted: by repair, and always faces of
fewer than 3 corners, which have no area, and what the format itself marks as missing.
Polygons are cut into triangles here, without any tolerance that depends on a unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.meshes.records import (
    Floats,
    Indices,
    MeshLimits,
    Part,
    PointSet,
    RawMesh,
    Surface,
)
from pointdistill.data.meshes.sampling import has_area
from pointdistill.errors import DataError

_REPAIR_HINT = "correct the file, or have `pointdistill sample` repair it"


def triangulate(
    vertices: Floats, corners: Indices, sizes: Indices, *, concave_work: int
) -> Indices:
    """Cut polygons into triangles. Sizes: V vertices, C corners, F polygons, T triangles.

    Args:
        vertices: (V, 3).
        corners: (C,), each in [0, V), polygon after polygon.
        sizes: (F,), corners of each polygon, at least 3; sums to C.
        concave_work: largest accepted sum of (corners squared) over concave polygons beyond quads.

    Returns:
        (T, 3) vertex indices, T = sum(sizes - 2), in the order of the polygons.

    Raises:
        DataError: if the concave polygons exceed ``concave_work``.
    """
    if (sizes == 3).all():
        return corners.reshape(-1, 3)
    # Every polygon is cut as a fan from its first corner, all at once: right for convex ones. A concave one would
    # be covered twice in places, and its area counted too large, so those few are cut again below.
    counts = sizes - 2
    starts = np.cumsum(sizes) - sizes
    triangle_starts = np.cumsum(counts) - counts
    owner = np.repeat(np.arange(len(sizes)), counts)
    first = starts[owner]
    second = first + 1 + np.arange(len(owner)) - triangle_starts[owner]
    faces = np.stack([corners[first], corners[second], corners[second + 1]], axis=1)
    concave = _concave(vertices, faces, owner, sizes)
    # A fan from the next corner is right for any concave quad.
    quads = concave[sizes[concave] == 4]
    a, b, c, d = (corners[starts[quads] + corner] for corner in range(4))
    faces[triangle_starts[quads]] = np.stack([b, c, d], axis=1)
    faces[triangle_starts[quads] + 1] = np.stack([b, d, a], axis=1)
    larger = concave[sizes[concave] > 4]
    _check_work(sizes[larger], concave_work)
    for polygon in larger:
        loop = corners[starts[polygon] : starts[polygon] + sizes[polygon]]
        ears = cut_ears(vertices[loop])
        if ears is not None:
            start = triangle_starts[polygon]
            faces[start : start + counts[polygon]] = loop[ears]
    return faces


def _concave(vertices: Floats, faces: Indices, owner: Indices, sizes: Indices) -> Indices:
    """Polygons whose fan has a triangle that faces away from the polygon as a whole; (n,) polygon indices."""
    candidates = np.flatnonzero(sizes[owner] > 3)
    a, b, c = (vertices[faces[candidates, corner]] for corner in range(3))
    normals = np.cross(b - a, c - a)
    whole = np.zeros((len(sizes), 3))
    for axis in range(3):
        whole[:, axis] = np.bincount(owner[candidates], normals[:, axis], minlength=len(sizes))
    whole = whole[owner[candidates]]
    against = np.einsum("ij,ij->i", normals, whole)
    # Rounding may flip slivers of a flat polygon: only triangles with an area of their own count.
    noise = 1e-9 * np.einsum("ij,ij->i", whole, whole)
    return np.unique(owner[candidates[against < -noise]])


def _check_work(sizes: Indices, accepted: int) -> None:
    work = int((sizes**2).sum())
    if work > accepted:
        msg = (
            f"{len(sizes):,} concave polygons with up to {sizes.max():,} corners would take too long to "
            f"cut (corners squared {work:,}, accepted {accepted:,}); triangulate them in a 3-D program"
        )
        raise DataError(msg)


def cut_ears(loop: Floats) -> Indices | None:
    """Cut one polygon into triangles by clipping its ears. Sizes: N corners.

    Args:
        loop: (N, 3) corners in order, close to one plane.

    Returns:
        (N - 2, 3) indices into ``loop``, or None if the outline crosses itself so that no ear is left.
    """
    flat = _flatten(loop)
    remaining = list(range(len(loop)))
    ears: list[tuple[int, int, int]] = []
    position, failures = 0, 0
    while len(remaining) > 3:
        position %= len(remaining)
        ear = (
            remaining[position - 1],
            remaining[position],
            remaining[(position + 1) % len(remaining)],
        )
        if _is_ear(flat, ear, remaining):
            ears.append(ear)
            remaining.pop(position)
            failures = 0
        else:
            position += 1
            failures += 1
            if failures >= len(remaining):
                return None
    ears.append((remaining[0], remaining[1], remaining[2]))
    return np.array(ears, dtype=np.int64)


def _flatten(loop: Floats) -> Floats:
    """The polygon projected into its own plane, counter-clockwise; (N, 2). The normal is Newell's."""
    following = np.roll(loop, -1, axis=0)
    normal = np.cross(loop - loop[0], following - loop[0]).sum(axis=0)
    drop = int(np.abs(normal).argmax())
    keep = [(drop + 1) % 3, (drop + 2) % 3]
    flat = loop[:, keep]
    return flat if normal[drop] > 0 else flat * (1.0, -1.0)


def _is_ear(flat: Floats, ear: tuple[int, int, int], remaining: list[int]) -> bool:
    """Whether the triangle turns left and contains none of the remaining corners."""
    a, b, c = flat[list(ear)]
    if _turn(a, b, c) <= 0:
        return False
    others = flat[[corner for corner in remaining if corner not in ear]]
    # A corner that coincides with one of the ear's own corners touches it and is not inside.
    apart = ((others[:, None] != flat[list(ear)]).any(axis=2)).all(axis=1)
    inside = (_turn(a, b, others) >= 0) & (_turn(b, c, others) >= 0) & (_turn(c, a, others) >= 0)
    return not bool((inside & apart).any())


def _turn(a: Floats, b: Floats, c: Floats) -> Floats:
    """Twice the signed area of the plane triangles a, b, c; the last axis holds x and y."""
    turn: Floats = (b[0] - a[0]) * (c[..., 1] - a[1]) - (b[1] - a[1]) * (c[..., 0] - a[0])
    return turn


def strip_triangles(strips: Sequence[Indices]) -> Indices:
    """Triangles of strips: every three successive corners, every second one reversed; (T * 3,) corners."""
    pieces = []
    for strip in strips:
        triangles = np.stack([strip[:-2], strip[1:-1], strip[2:]], axis=1)
        triangles[1::2] = triangles[1::2, ::-1]
        pieces.append(triangles.reshape(-1))
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)


def fan_triangles(fans: Sequence[Indices]) -> Indices:
    """Triangles of fans: the first corner with each pair of successive others; (T * 3,) corners."""
    pieces = []
    for fan in fans:
        hub = np.broadcast_to(fan[:1], fan[1:-1].shape)
        pieces.append(np.stack([hub, fan[1:-1], fan[2:]], axis=1).reshape(-1))
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)


def assemble(raw: RawMesh, *, repair: bool, limits: MeshLimits) -> Surface | PointSet:
    """One surface, or one cloud if the file has only points.

    Args:
        raw: what the reader returned.
        repair: drop unusable faces and points instead of refusing the file.
        limits: largest scene that is accepted.

    Raises:
        DataError: if there is nothing, too much, or something unusable; says what and how much.
    """
    check_size("vertices", sum(len(part.vertices) for part in raw.parts), limits.vertices)
    check_size("points", sum(len(points) for points in raw.points), limits.vertices)
    check_size("triangles", sum(part.triangle_count for part in raw.parts), limits.faces)
    if any(part.face_count for part in raw.parts):
        return _surface(raw, repair=repair, limits=limits)
    if any(len(points) for points in raw.points):
        return _cloud(raw, repair=repair)
    vertices = sum(len(part.vertices) for part in raw.parts)
    msg = f"nothing to sample: {vertices:,} vertices, 0 faces and 0 points; export a mesh or a point cloud"
    raise DataError(msg)


def check_size(what: str, count: int, accepted: int) -> None:
    """Refuse what exceeds a limit before it is read or copied.

    Raises:
        DataError: if ``count`` exceeds ``accepted``.
    """
    if count > accepted:
        msg = f"{count:,} {what}, at most {accepted:,} are accepted; simplify or split the file"
        raise DataError(msg)


def finite_points(points: Floats, *, repair: bool) -> tuple[Floats, int]:
    """The points whose three coordinates are finite, and how many were dropped; (P, 3).

    Raises:
        DataError: if some are not finite and ``repair`` is off, or none is left.
    """
    finite = np.isfinite(points).all(axis=1)
    bad = int(len(points) - finite.sum())
    if bad and not repair:
        msg = f"{bad:,} of {len(points):,} points are NaN or infinite; {_REPAIR_HINT}"
        raise DataError(msg, settings=("repair",))
    if bad == len(points):
        msg = f"no point is left after dropping {bad:,} that are NaN or infinite; export the file again"
        raise DataError(msg)
    return (points[finite] if bad else points), bad


def _cloud(raw: RawMesh, *, repair: bool) -> PointSet:
    points = raw.points[0] if len(raw.points) == 1 else np.concatenate(raw.points)
    missing = 0
    if raw.nan_is_missing:
        measured = ~np.isnan(points).any(axis=1)
        missing = int(len(points) - measured.sum())
        if missing == len(points):
            msg = f"all {missing:,} points are NaN, which marks missing returns; nothing is left"
            raise DataError(msg)
        points = points[measured] if missing else points
    points, dropped = finite_points(points, repair=repair)
    if not (points != points[0]).any():
        msg = f"all {len(points):,} points are at one place; export the file again"
        raise DataError(msg)
    return PointSet(
        points,
        declared_up=raw.declared_up,
        dropped_points=missing + dropped,
        left_out=raw.left_out,
    )


def _surface(raw: RawMesh, *, repair: bool, limits: MeshLimits) -> Surface:
    faults = [find_faults(part) for part in raw.parts]
    bad = sum(fault.bad_faces for fault in faults)
    without_area = sum(fault.too_few_corners for fault in faults)
    total = sum(part.face_count for part in raw.parts)
    if bad > without_area and not repair:
        msg = f"{bad:,} of {total:,} faces cannot be used ({_causes(faults)}); {_REPAIR_HINT}"
        raise DataError(msg, settings=("repair",))
    if bad == total:
        msg = f"no face is left after dropping {bad:,} ({_causes(faults)}); export the file again"
        raise DataError(msg)
    vertices, faces = _merge(raw.parts, faults, limits)
    surface = Surface(vertices, faces, raw.declared_up, bad, raw.left_out)
    if not has_area(vertices, faces):
        msg = (
            f"the surface has no area: {len(faces):,} of {len(faces):,} triangles are degenerate; "
            "export the file again"
        )
        raise DataError(msg)
    return surface


@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong with the faces of one part; a face with several faults counts only for the first."""

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
    """Whether nothing is wrong at all: one pass over the numbers, where counting the faults takes several."""
    indices_fit = not len(part.corners) or (
        int(part.corners.min()) >= 0 and int(part.corners.max()) < len(part.vertices)
    )
    enough_corners = part.sizes is None or int(part.sizes.min(initial=3)) >= 3
    finite_matrix = part.matrix is None or bool(np.isfinite(part.matrix).all())
    return (
        indices_fit and enough_corners and finite_matrix and bool(np.isfinite(part.vertices).all())
    )


def _any_corner(flags: NDArray[np.bool_], part: Part) -> NDArray[np.bool_]:
    """(C,) flags of corners -> (F,) whether any corner of each face is flagged."""
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
    """The causes that occur, each with its count."""
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
    """The usable triangles of all parts in one frame; (V, 3) and (F, 3)."""
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
    # A vertex that no face uses may be infinite; it stays so and does no harm.
    with np.errstate(invalid="ignore", over="ignore"):
        moved: Floats = points @ matrix[:3, :3].T + matrix[:3, 3]
    return moved
