"""glTF 2 and GLB: every mesh of the scene where its nodes put it, skins and Draco included.

Materials and textures are never opened. Points and lines beside triangles are ignored; a scene of points alone is
a cloud. Animations are ignored: nodes stay where the file places them. Nodes that the file hides are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pointdistill.data.meshes.checks import check_size, fan_triangles, strip_triangles, transform
from pointdistill.data.meshes.formats.gltf_buffers import (
    Document,
    DracoDecoder,
    DracoMesh,
    Json,
    open_document,
)
from pointdistill.data.meshes.records import Floats, Indices, MeshLimits, Part, RawMesh
from pointdistill.errors import DataError

_POINTS, _TRIANGLES, _STRIP, _FAN = 0, 4, 5, 6
_DRACO = "KHR_draco_mesh_compression"
_VISIBILITY = "KHR_node_visibility"
_READ = {_DRACO, _VISIBILITY, "KHR_mesh_quantization"}
_LOOKS = re.compile(
    r"[A-Z0-9]+_(materials?|textures?|techniques?|lights?|lightmap|environment|image|packing|blend|xmp|animation"
    r"|audio)(_|$)"
)
"""Extensions that change the look of a surface, or what goes with it, and not its shape; whoever defined them."""


_CHUNK = 500_000
"""Vertices skinned at once: 64 MB of matrices."""


def read(path: Path, limits: MeshLimits) -> RawMesh:
    """Read the default scene of a .gltf or .glb file, y up as the standard says.

    Raises:
        DataError: if the file is damaged, refers to something missing, or needs an extension that
            changes geometry and is not known here.
    """
    document = open_document(path, limits)
    needed = document.json.get("extensionsRequired", ())
    if unknown := [name for name in needed if name not in _READ and not _LOOKS.match(name)]:
        msg = f"needs the extension {', '.join(unknown)}; export the model without it"
        raise DataError(msg)
    scene = _SceneReader(document)
    placed = place_nodes(document)
    hidden = _hidden(document, placed)
    for node, matrix in placed.items():
        if node not in hidden:
            scene.add(node, matrix, placed)
    meshes = sum("mesh" in document.item("nodes", node) for node in hidden)
    if meshes and not scene.parts and not scene.points:
        msg = f"all its meshes are on nodes that {_VISIBILITY} hides; make one visible and export it again"
        raise DataError(msg)
    left_out = {"meshes on hidden nodes": meshes} if meshes else {}
    return RawMesh(scene.parts, scene.points, declared_up="y", left_out=left_out)


@dataclass(frozen=True, slots=True)
class _Primitive:
    """A primitive as it is stored, before its node places it."""

    vertices: Floats  # (V, 3)
    corners: Indices | None  # (F * 3,); None for bare points
    joints: Indices | None = None  # (V, 4 * sets)
    weights: Floats | None = None  # (V, 4 * sets)


@dataclass(slots=True)
class _SceneReader:
    document: Document
    parts: list[Part] = field(default_factory=list)
    points: list[Floats] = field(default_factory=list)
    _meshes: dict[tuple[int, tuple[float, ...]], list[_Primitive]] = field(default_factory=dict)
    _vertices: int = 0
    _decoder: DracoDecoder = field(default_factory=DracoDecoder)

    def add(self, index: int, matrix: Floats, placed: dict[int, Floats]) -> None:
        """Add the mesh of one node, if it has one."""
        node = self.document.item("nodes", index)
        if "mesh" not in node:
            return
        if "EXT_mesh_gpu_instancing" in node.get("extensions", {}):
            msg = "uses EXT_mesh_gpu_instancing; export the model with its copies as nodes"
            raise DataError(msg)
        mesh = self.document.item("meshes", node["mesh"])
        # A node may set its own weights of the mesh's morph targets.
        key = node["mesh"], tuple(node.get("weights", mesh.get("weights", ())))
        if key not in self._meshes:
            self._meshes[key] = self._read(mesh, key[1])
        for primitive in self._meshes[key]:
            self._vertices += len(primitive.vertices)
            check_size("vertices", self._vertices, self.document.limits.vertices)
            self._add_primitive(primitive, node, matrix, placed)

    def _read(self, mesh: Json, weights: Sequence[float]) -> list[_Primitive]:
        """The primitives of a mesh, which together may have no more vertices than a scene."""
        found, vertices = list[_Primitive](), self._vertices
        for primitive in _primitives(self.document, mesh, weights, self._decoder):
            found.append(primitive)
            vertices += len(primitive.vertices)
            check_size("vertices", vertices, self.document.limits.vertices)
        return found

    def _add_primitive(
        self, primitive: _Primitive, node: Json, matrix: Floats, placed: dict[int, Floats]
    ) -> None:
        vertices, place = primitive.vertices, matrix
        if "skin" in node and primitive.joints is not None and primitive.weights is not None:
            # A skinned mesh follows its joints; the standard ignores the transform of its own node.
            vertices = apply_skin(
                self.document, node["skin"], vertices, primitive.joints, primitive.weights, placed
            )
            place = np.eye(4)
        if primitive.corners is None:
            self.points.append(transform(vertices, place))
        else:
            self.parts.append(Part(vertices, primitive.corners, matrix=place))


def _primitives(
    document: Document, mesh: Json, weights: Sequence[float], decoder: DracoDecoder
) -> Iterator[_Primitive]:
    for primitive in mesh["primitives"]:
        mode = primitive.get("mode", _TRIANGLES)
        if mode in (_POINTS, _TRIANGLES, _STRIP, _FAN) and "POSITION" in primitive["attributes"]:
            yield _primitive(document, primitive, mode, weights, decoder)


def _primitive(
    document: Document,
    primitive: Json,
    mode: int,
    weights: Sequence[float],
    decoder: DracoDecoder,
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
    check_size("joint weights", 4 * len(sets) * len(vertices), 2 * document.limits.vertices)
    joints = np.concatenate([attribute(f"JOINTS_{name}") for name in sets], axis=1)
    shares = np.concatenate([attribute(f"WEIGHTS_{name}") for name in sets], axis=1)
    return _Primitive(vertices, corners, joints.astype(np.int64), shares)


def _draco_mesh(document: Document, primitive: Json, decoder: DracoDecoder) -> DracoMesh | None:
    """The decoded Draco stream of a primitive; None if it is stored uncompressed."""
    extension = primitive.get("extensions", {}).get(_DRACO)
    if extension is None:
        return None
    vertices = document.item("accessors", primitive["attributes"]["POSITION"])["count"]
    corners = document.item("accessors", primitive.get("indices"))["count"]
    check_size("vertices", vertices, document.limits.vertices)
    check_size("triangles", corners // 3, document.limits.faces)
    view = document.view(extension["bufferView"])
    stream = bytes(document.read(view, 0, len(view)))
    return decoder.decode(stream, vertices=vertices, faces=corners // 3)


def _corners(document: Document, primitive: Json, mode: int, vertices: int) -> Indices:
    if "indices" in primitive:
        corners = document.array(primitive["indices"], np.int64)[:, 0]
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


def place_nodes(document: Document) -> dict[int, Floats]:
    """Every node of the default scene with its (4, 4) transform to the scene, in order of the tree.

    Raises:
        DataError: if a node is reached twice, which a glTF tree forbids, or is missing.
    """
    placed: dict[int, Floats] = {}
    waiting = [(root, np.eye(4)) for root in reversed(_roots(document))]
    while waiting:
        index, above = waiting.pop()
        node = document.item("nodes", index)
        if index in placed:
            msg = f"node {index} has two parents or is its own ancestor; export the model again"
            raise DataError(msg)
        placed[index] = above @ _local(node)
        check_size("nodes", len(placed), document.limits.instances)
        waiting.extend((child, placed[index]) for child in reversed(node.get("children", ())))
    return placed


def _hidden(document: Document, placed: dict[int, Floats]) -> set[int]:
    """The nodes that are not shown: those that say so, and all below them."""
    hidden: set[int] = set()
    for index in placed:  # every parent comes before its children
        node = document.item("nodes", index)
        visible = node.get("extensions", {}).get(_VISIBILITY, {}).get("visible", True)
        if index in hidden or visible is False:
            hidden.update((index, *node.get("children", ())))
    return hidden


def _roots(document: Document) -> list[int]:
    """The roots of the default scene, or of the first; without scenes, all nodes without a parent."""
    if document.json.get("scenes"):
        scene = document.item("scenes", document.json.get("scene", 0))
        return list(scene.get("nodes", ()))
    nodes = document.json.get("nodes", ())
    children = {child for node in nodes for child in node.get("children", ())}
    return [index for index in range(len(nodes)) if index not in children]


def _local(node: Json) -> Floats:
    """A node's own (4, 4) transform: its matrix, or translation after rotation after scale."""
    if "matrix" in node:
        return np.array(node["matrix"], dtype=np.float64).reshape(4, 4).T
    matrix = np.eye(4)
    rotation = _rotation(np.array(node.get("rotation", (0, 0, 0, 1)), dtype=np.float64))
    matrix[:3, :3] = rotation * np.array(node.get("scale", (1, 1, 1)), dtype=np.float64)
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


def _rotation(quaternion: Floats) -> Floats:
    """(3, 3) rotation by a quaternion x, y, z, w, which is normalised first."""
    length = float(np.linalg.norm(quaternion))
    x, y, z, w = quaternion / length if length > 0 else (0.0, 0.0, 0.0, 1.0)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def apply_skin(
    document: Document,
    skin_index: Any,
    vertices: Floats,
    joints: Indices,
    weights: Floats,
    placed: dict[int, Floats],
) -> Floats:
    """Vertices moved by their joints in the pose of the scene; glTF 2.0 specification, "Skins".

    Args:
        document: the file.
        skin_index: entry of its skins.
        vertices: (V, 3), in the frame of the bind pose.
        joints: (V, J) indices into the skin's joints.
        weights: (V, J), share of each joint; normalised to a sum of 1.
        placed: transform of every node of the scene.

    Returns:
        (V, 3) in the frame of the scene.

    Raises:
        DataError: if a joint is not in the scene or a vertex names a joint that does not exist.
    """
    skin = document.item("skins", skin_index)
    nodes = skin["joints"]
    if joints.size and not 0 <= int(joints.min()) <= int(joints.max()) < len(nodes):
        msg = f"a vertex follows joint {int(joints.max())} of {len(nodes)}; export the model again"
        raise DataError(msg)
    if missing := [node for node in nodes if node not in placed]:
        msg = f"joint node {missing[0]} is not in the scene; export the model again"
        raise DataError(msg)
    matrices = np.stack([placed[node] for node in nodes])
    if "inverseBindMatrices" in skin:
        inverse = document.floats(skin["inverseBindMatrices"])[: len(nodes)]
        matrices = matrices @ inverse.reshape(-1, 4, 4).transpose(0, 2, 1)
    moved = np.empty_like(vertices)
    for start in range(0, len(vertices), _CHUNK):
        rows = slice(start, start + _CHUNK)
        moved[rows] = _blend(matrices, vertices[rows], joints[rows], weights[rows])
    return moved


def _blend(matrices: Floats, vertices: Floats, joints: Indices, weights: Floats) -> Floats:
    total = weights.sum(axis=1, keepdims=True)
    shares = weights / np.where(total > 0, total, 1.0)
    # A vertex without weights follows its first joint, as viewers show it.
    shares[total[:, 0] <= 0, 0] = 1.0
    moved = np.zeros_like(vertices)
    for joint, share in zip(joints.T, shares.T, strict=True):
        used = matrices[joint]
        turned = np.einsum("vij,vj->vi", used[:, :3, :3], vertices)
        moved += share[:, None] * (turned + used[:, :3, 3])
    return moved
