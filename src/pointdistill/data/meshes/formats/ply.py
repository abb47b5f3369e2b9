"""Stanford PLY, text and binary of either byte order, with or without faces."""

from __future__ import annotations

from pathlib import Path

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats import ply_binary, ply_text
from pointdistill.data.meshes.formats.ply_header import Header, read_header
from pointdistill.data.meshes.records import Draft, MeshLimits, Part
from pointdistill.errors import DataError

_AXES = ("x", "y", "z")
_INDEX_NAMES = ("vertex_indices", "vertex_index")


def read(path: Path, limits: MeshLimits) -> Draft:
    """Read a PLY file as one part, or as points where it has no faces.

    Raises:
        DataError: if the header is none, promises more than the file holds, lacks coordinates, or
            stores its surface as something other than faces.
    """
    header = read_header(path)
    vertex = header.element("vertex")
    if vertex is None:
        msg = f"no vertex element, found {header.names}; it is not a mesh or a point cloud"
        raise DataError(msg)
    if missing := [axis for axis in _AXES if axis not in vertex.scalar_names]:
        msg = f"the vertices have no {', '.join(missing)}; export them with x, y and z"
        raise DataError(msg)
    check_size("vertices", vertex.count, limits.vertices)
    face = header.element("face")
    if face is not None:
        check_size("faces", face.count, limits.faces)
    index_name = _index_name(header)
    reader = ply_text if header.form == "ascii" else ply_binary
    vertices, corners, sizes = reader.read(path, header, index_name, limits)
    if index_name is None:
        return Draft(points=[vertices])
    return Draft([Part(vertices, corners, sizes)])


def _index_name(header: Header) -> str | None:
    """The property that holds the faces' indices; None for a file without faces."""
    face = header.element("face")
    if face is None or not face.count:
        strips = header.element("tristrips")
        if strips is not None and strips.count:
            msg = "the surface is stored as tristrips; export it with faces"
            raise DataError(msg)
        return None
    for name in _INDEX_NAMES:
        if name in face.list_names:
            return name
    msg = (
        f"the faces have no vertex_indices list, found {face.property_names}; export the mesh again"
    )
    raise DataError(msg)
