"""glTF 2 and GLB: every mesh of the scene where its nodes put it, skins and Draco included.

Materials and textures are never opened. Points and lines beside triangles are ignored; a scene of points
alone is a cloud. Animations are ignored: the scene stands as its nodes do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pointdistill.data.meshes.checks import check_size, transform
from pointdistill.data.meshes.formats.draco import Decoder, DracoMesh
from pointdistill.data.meshes.formats.gltf_buffers import Document, Json, open_document
from pointdistill.data.meshes.formats.gltf_nodes import place_nodes, skinned
from pointdistill.data.meshes.polygons import fan_triangles, strip_triangles
from pointdistill.data.meshes.records import Draft, Floats, Indices, MeshLimits, Part
from pointdistill.errors import DataError

_POINTS, _TRIANGLES, _STRIP, _FAN = 0, 4, 5, 6
_DRACO = "KHR_draco_mesh_compression"
_READ = {_DRACO, "KHR_mesh_quantization"}
_LOOKS = (
    "KHR_materials_",
    "KHR_texture_",
    "KHR_lights_",
    "EXT_texture_",
    "KHR_xmp",
    "KHR_animation_",
)
"""Extensions that change how a surface looks, not where it is."""


def read(path: Path, limits: MeshLimits) -> Draft:
    """Read the default scene of a .gltf or .glb file, y up as the standard says.

    Raises:
        DataError: if the file is damaged, refers to what is not there, or needs an extension that
            changes geometry and is not known here.
    """
    document = open_document(path, limits)
    needed = document.json.get("extensionsRequired", ())
    if unknown := [name for name in needed if name not in _READ and not name.startswith(_LOOKS)]:
        msg = f"needs the extension {', '.join(unknown)}; export the model without it"
        raise DataError(msg)
    scene = _Scene(document)
    placed = place_nodes(document)
    for node, matrix in placed.items():
        scene.add(node, matrix, placed)
    return Draft(scene.parts, scene.points, declared_up="y")


@dataclass(frozen=True, slots=True)
class _Primitive:
    """A primitive as it is stored, before its node places it."""

    vertices: Floats  # (V, 3)
    corners: Indices | None  # (F * 3,); None for bare points
    joints: Indices | None = None  # (V, 4 * sets)
    weights: Floats | None = None  # (V, 4 * sets)


@dataclass(slots=True)
class _Scene:
    document: Document
    parts: list[Part] = field(default_factory=list)
    points: list[Floats] = field(default_factory=list)
    _meshes: dict[int, list[_Primitive]] = field(default_factory=dict)
    _decoder: Decoder = field(default_factory=Decoder)

    def add(self, index: int, matrix: Floats, placed: dict[int, Floats]) -> None:
        """Add the mesh of one node, if it has one."""
        node = self.document.item("nodes", index)
        if "mesh" not in node:
            return
        if "EXT_mesh_gpu_instancing" in node.get("extensions", {}):
            msg = "uses EXT_mesh_gpu_instancing; export the model with its copies as nodes"
            raise DataError(msg)
        mesh = node["mesh"]
        if mesh not in self._meshes:
            self._meshes[mesh] = list(_primitives(self.document, mesh, self._decoder))
        for primitive in self._meshes[mesh]:
            self._add_primitive(primitive, node, matrix, placed)

    def _add_primitive(
        self, primitive: _Primitive, node: Json, matrix: Floats, placed: dict[int, Floats]
    ) -> None:
        vertices, place = primitive.vertices, matrix
        if "skin" in node and primitive.joints is not None and primitive.weights is not None:
            # A skinned mesh stands where its joints are; the standard ignores its own node's transform.
            vertices = skinned(
                self.document, node["skin"], vertices, primitive.joints, primitive.weights, placed
            )
            place = np.eye(4)
        if primitive.corners is None:
            self.points.append(transform(vertices, place))
        else:
            self.parts.append(Part(vertices, primitive.corners, matrix=place))


def _primitives(document: Document, mesh_index: Any, decoder: Decoder) -> Iterator[_Primitive]:
    mesh = document.item("meshes", mesh_index)
    for primitive in mesh["primitives"]:
        mode = primitive.get("mode", _TRIANGLES)
        if mode in (_POINTS, _TRIANGLES, _STRIP, _FAN) and "POSITION" in primitive["attributes"]:
            yield _primitive(document, primitive, mode, mesh.get("weights", ()), decoder)


def _primitive(
    document: Document, primitive: Json, mode: int, weights: Any, decoder: Decoder
) -> _Primitive:
    attributes = primitive["attributes"]
    stream = _draco_mesh(document, primitive, decoder)
    if stream is not None:
        ids = primitive["extensions"][_DRACO]["attributes"]
        vertices, corners = stream.points, stream.corners
    else:
        ids = {}
        vertices = document.floats(attributes["POSITION"])
        corners = _corners(document, primitive, mode, len(vertices))

    def attribute(name: str) -> Floats:
        if stream is not None and name in ids:
            return stream.attribute(ids[name])
        return document.floats(attributes[name])

    for weight, target in zip(weights, primitive.get("targets", ()), strict=False):
        if weight and "POSITION" in target:
            vertices = vertices + weight * document.floats(target["POSITION"])
    sets = sorted(name[7:] for name in attributes if name.startswith("JOINTS_"))
    if not sets:
        return _Primitive(vertices, None if mode == _POINTS else corners)
    joints = np.concatenate([attribute(f"JOINTS_{name}") for name in sets], axis=1)
    shares = np.concatenate([attribute(f"WEIGHTS_{name}") for name in sets], axis=1)
    return _Primitive(vertices, corners, joints.astype(np.int64), shares)


def _draco_mesh(document: Document, primitive: Json, decoder: Decoder) -> DracoMesh | None:
    """The decoded Draco stream of a primitive; None where it is stored plainly."""
    extension = primitive.get("extensions", {}).get(_DRACO)
    if extension is None:
        return None
    vertices = document.item("accessors", primitive["attributes"]["POSITION"])["count"]
    corners = document.item("accessors", primitive.get("indices"))["count"]
    check_size("vertices", vertices, document.limits.vertices)
    check_size("triangles", corners // 3, document.limits.faces)
    stream = bytes(document.view(extension["bufferView"]))
    return decoder.decode(stream, vertices=vertices, faces=corners // 3)


def _corners(document: Document, primitive: Json, mode: int, vertices: int) -> Indices:
    if "indices" in primitive:
        corners = document.array(primitive["indices"])[:, 0].astype(np.int64)
    else:
        corners = np.arange(vertices)
    if mode == _STRIP:
        return strip_triangles([corners]) if len(corners) > 2 else corners[:0]
    if mode == _FAN:
        return fan_triangles([corners]) if len(corners) > 2 else corners[:0]
    if mode == _TRIANGLES and len(corners) % 3:
        msg = f"{len(corners):,} indices are not triangles; the file is damaged, export it again"
        raise DataError(msg)
    return corners
