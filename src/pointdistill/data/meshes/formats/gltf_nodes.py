"""Where the nodes of a glTF scene stand, and the shape that a skin gives a mesh there."""

from __future__ import annotations

from typing import Any

import numpy as np

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.gltf_buffers import Document, Json
from pointdistill.data.meshes.records import Floats, Indices
from pointdistill.errors import DataError

_CHUNK = 500_000
"""Vertices skinned at once: 64 MB of matrices."""


def place_nodes(document: Document) -> dict[int, Floats]:
    """Every node of the default scene with its (4, 4) transform to the scene, in order of the tree.

    Raises:
        DataError: if a node is reached twice, which a glTF tree forbids, or is not there.
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


def _roots(document: Document) -> list[int]:
    """The roots of the default scene, else of the first; without scenes, the nodes without a parent."""
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
    """(3, 3) rotation of a quaternion x, y, z, w, which is brought to length 1."""
    length = float(np.linalg.norm(quaternion))
    x, y, z, w = quaternion / length if length > 0 else (0.0, 0.0, 0.0, 1.0)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def skinned(
    document: Document,
    skin_index: Any,
    vertices: Floats,
    joints: Indices,
    weights: Floats,
    placed: dict[int, Floats],
) -> Floats:
    """Vertices moved by their joints as the nodes stand; glTF 2.0 specification, "Skins".

    Args:
        document: the file.
        skin_index: entry of its skins.
        vertices: (V, 3), in the frame of the bind pose.
        joints: (V, J) indices into the skin's joints.
        weights: (V, J), share of each joint; brought to a sum of 1.
        placed: transform of every node of the scene.

    Returns:
        (V, 3) in the frame of the scene.

    Raises:
        DataError: if a joint is not in the scene or a vertex names a joint that is none.
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
