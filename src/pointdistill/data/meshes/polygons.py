"""Polygons, strips and fans cut into triangles that cover them exactly once.

A fan from the first corner covers a convex polygon; a concave one would be covered twice in places, and
its area counted too large, so those few are cut ear by ear.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pointdistill.data.meshes.records import Floats, Indices
from pointdistill.errors import DataError


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
    counts = sizes - 2
    starts = np.cumsum(sizes) - sizes
    triangle_starts = np.cumsum(counts) - counts
    owner = np.repeat(np.arange(len(sizes)), counts)
    first = starts[owner]
    second = first + 1 + np.arange(len(owner)) - triangle_starts[owner]
    faces = np.stack([corners[first], corners[second], corners[second + 1]], axis=1)
    concave = _concave(vertices, faces, owner, sizes)
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
    """Polygons whose fan has a triangle that faces against the whole polygon; (n,) polygon indices."""
    candidates = np.flatnonzero(sizes[owner] > 3)
    a, b, c = (vertices[faces[candidates, corner]] for corner in range(3))
    normals = np.cross(b - a, c - a)
    whole = np.zeros((len(sizes), 3))
    for axis in range(3):
        whole[:, axis] = np.bincount(owner[candidates], normals[:, axis], minlength=len(sizes))
    whole = whole[owner[candidates]]
    against = np.einsum("ij,ij->i", normals, whole)
    # Rounding turns slivers of a flat polygon over: only what has an area of its own counts.
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
    """Cut one polygon by ears. Sizes: N corners.

    Args:
        loop: (N, 3) corners in order, close to one plane.

    Returns:
        (N - 2, 3) indices into ``loop``, or None where the outline crosses itself so that no ear is left.
    """
    flat = _flatten(loop)
    left = list(range(len(loop)))
    ears: list[tuple[int, int, int]] = []
    position, failures = 0, 0
    while len(left) > 3:
        position %= len(left)
        ear = (left[position - 1], left[position], left[(position + 1) % len(left)])
        if _is_ear(flat, ear, left):
            ears.append(ear)
            left.pop(position)
            failures = 0
        else:
            position += 1
            failures += 1
            if failures >= len(left):
                return None
    ears.append((left[0], left[1], left[2]))
    return np.array(ears, dtype=np.int64)


def _flatten(loop: Floats) -> Floats:
    """The polygon in its own plane, counter-clockwise; (N, 2). The plane's normal is Newell's."""
    following = np.roll(loop, -1, axis=0)
    normal = np.cross(loop - loop[0], following - loop[0]).sum(axis=0)
    drop = int(np.abs(normal).argmax())
    keep = [(drop + 1) % 3, (drop + 2) % 3]
    flat = loop[:, keep]
    return flat if normal[drop] > 0 else flat * (1.0, -1.0)


def _is_ear(flat: Floats, ear: tuple[int, int, int], left: list[int]) -> bool:
    """Whether the triangle turns left and holds no other remaining corner."""
    a, b, c = flat[list(ear)]
    if _turn(a, b, c) <= 0:
        return False
    others = flat[[corner for corner in left if corner not in ear]]
    # A corner that lies on one of the ear's own corners touches it, and is not inside.
    apart = ((others[:, None] != flat[list(ear)]).any(axis=2)).all(axis=1)
    inside = (_turn(a, b, others) >= 0) & (_turn(b, c, others) >= 0) & (_turn(c, a, others) >= 0)
    return not bool((inside & apart).any())


def _turn(a: Floats, b: Floats, c: Floats) -> Floats:
    """Twice the signed area of the plane triangles a, b, c; the last axis holds x and y."""
    turn: Floats = (b[0] - a[0]) * (c[..., 1] - a[1]) - (b[1] - a[1]) * (c[..., 0] - a[0])
    return turn


def strip_triangles(strips: Sequence[Indices]) -> Indices:
    """Triangles of strips: every three successive corners, every second one turned; (T * 3,) corners."""
    pieces = []
    for strip in strips:
        triangles = np.stack([strip[:-2], strip[1:-1], strip[2:]], axis=1)
        triangles[1::2] = triangles[1::2, ::-1]
        pieces.append(triangles.reshape(-1))
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)


def fan_triangles(fans: Sequence[Indices]) -> Indices:
    """Triangles of fans: the first corner with every two successive others; (T * 3,) corners."""
    pieces = []
    for fan in fans:
        hub = np.broadcast_to(fan[:1], fan[1:-1].shape)
        pieces.append(np.stack([hub, fan[1:-1], fan[2:]], axis=1).reshape(-1))
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)
