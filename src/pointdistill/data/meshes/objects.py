"""Meshes that are already in memory: trimesh's Trimesh, Scene and PointCloud.

They are recognised by what they have, so that trimesh is not imported for files that do not need it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pointdistill.data.meshes.checks import assemble, transform
from pointdistill.data.meshes.records import Draft, MeshLimits, Part, PointSet, Surface
from pointdistill.errors import DataError


def from_object(
    mesh: Any, *, repair: bool = False, limits: MeshLimits | None = None
) -> Surface | PointSet:
    """The surface of a ``trimesh.Trimesh`` or ``trimesh.Scene``, or the points of a ``PointCloud``.

    Args:
        mesh: has ``vertices`` (V, 3) and, for a surface, ``faces`` (F, 3); or is a scene of such.
        repair: leave out faces and points that cannot be used, instead of refusing the mesh.
        limits: largest scene that is accepted.

    Raises:
        DataError: if there is no surface and no point, or something in it cannot be used.
        TypeError: if ``mesh`` is none of these.
    """
    draft = Draft()
    if hasattr(mesh, "geometry") and hasattr(mesh, "graph"):
        for name in mesh.graph.nodes_geometry:
            matrix, geometry = mesh.graph[name]
            _add(mesh.geometry[geometry], np.asarray(matrix, dtype=np.float64), draft)
    elif hasattr(mesh, "vertices"):
        _add(mesh, np.eye(4), draft)
    else:
        msg = f"expected a path, a trimesh.Trimesh or a trimesh.Scene, got {type(mesh).__name__}"
        raise TypeError(msg)
    try:
        return assemble(draft, repair=repair, limits=limits or MeshLimits())
    except DataError as error:
        msg = f"the given {type(mesh).__name__}: {error}"
        raise DataError(msg) from error


def _add(geometry: Any, matrix: np.ndarray[Any, np.dtype[np.float64]], draft: Draft) -> None:
    """Add one geometry of a scene; paths, which have entities and no faces, are no surface."""
    if not hasattr(geometry, "vertices") or hasattr(geometry, "entities"):
        return
    vertices = np.asarray(geometry.vertices, dtype=np.float64).reshape(-1, 3)
    if hasattr(geometry, "faces"):
        corners = np.asarray(geometry.faces, dtype=np.int64).reshape(-1)
        draft.parts.append(Part(vertices, corners, matrix=matrix))
    else:
        draft.points.append(transform(vertices, matrix))
