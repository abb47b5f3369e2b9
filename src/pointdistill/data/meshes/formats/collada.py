"""COLLADA 1.4 and 1.5: the geometries of the visual scene where its nodes put them.

The file states its up axis. Numbers keep the file's own unit. Skins stand in their bind pose. Materials are
never opened. Layout: COLLADA 1.5 specification, chapters 5 ("Core") and 6 ("Geometry").
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.collada_geometry import geometry_parts
from pointdistill.data.meshes.formats.collada_transforms import local_matrix, matrix_of
from pointdistill.data.meshes.formats.xml import Element, parse_xml
from pointdistill.data.meshes.records import Axis, Draft, Floats, MeshLimits, Part
from pointdistill.errors import DataError

_UP_AXES: dict[str, Axis] = {"X_UP": "x", "Y_UP": "y", "Z_UP": "z"}
_DEEPEST = 128


def read(path: Path, limits: MeshLimits) -> Draft:
    """Read the visual scene of a .dae file.

    Raises:
        DataError: if the document is damaged, or refers to something that is not there.
    """
    check_size("bytes", path.stat().st_size, limits.document_bytes)
    root = parse_xml(path.read_bytes(), limits)
    if root.name != "COLLADA":
        msg = f"expected a COLLADA document, got <{root.name}>; export the model again"
        raise DataError(msg)
    scene = _Scene(root, limits)
    for node in scene.roots():
        scene.place(node, np.eye(4), depth=0)
    return Draft(scene.parts, declared_up=_up_axis(root))


def _up_axis(root: Element) -> Axis:
    asset = root.find("asset")
    stated = asset.find("up_axis") if asset is not None else None
    # The specification's default.
    return _UP_AXES.get(stated.text.strip().upper(), "y") if stated is not None else "y"


@dataclass(slots=True)
class _Scene:
    root: Element
    limits: MeshLimits
    parts: list[Part] = field(default_factory=list)
    _by_id: dict[str, Element] = field(init=False)
    _geometries: dict[str, list[Part]] = field(default_factory=dict)
    _visits: int = 0

    def __post_init__(self) -> None:
        self._by_id = {
            element.attributes["id"]: element
            for element in self.root.walk()
            if "id" in element.attributes
        }

    def roots(self) -> list[Element]:
        """The nodes of the scene that the document instantiates, else of its first visual scene."""
        scene = self.root.find("scene")
        instance = scene.find("instance_visual_scene") if scene is not None else None
        if instance is not None:
            return list(self._target(instance, "url", "visual_scene").all("node"))
        library = self.root.find("library_visual_scenes")
        first = library.find("visual_scene") if library is not None else None
        return list(first.all("node")) if first is not None else []

    def place(self, node: Element, above: Floats, *, depth: int) -> None:
        """Place what hangs on one node, and its children."""
        self._visits += 1
        check_size("nodes", self._visits, self.limits.instances)
        if depth > _DEEPEST:
            msg = f"nodes lie deeper than {_DEEPEST} or contain themselves; export the model again"
            raise DataError(msg)
        matrix = above @ local_matrix(node)
        for child in node.children:
            match child.name:
                case "node":
                    self.place(child, matrix, depth=depth + 1)
                case "instance_node":
                    self.place(self._target(child, "url", "node"), matrix, depth=depth + 1)
                case "instance_geometry":
                    self._add(self._target(child, "url", "geometry"), matrix)
                case "instance_controller":
                    # Joints place a skin, not its node; at rest they leave it in its bind pose.
                    self._add_controlled(self._target(child, "url", "controller"), np.eye(4))

    def _add(self, geometry: Element, matrix: Floats) -> None:
        self._visits += 1
        identity = geometry.attribute("id")
        if identity not in self._geometries:
            self._geometries[identity] = geometry_parts(geometry)
        for part in self._geometries[identity]:
            self.parts.append(Part(part.vertices, part.corners, part.sizes, matrix))

    def _add_controlled(self, controller: Element, matrix: Floats) -> None:
        """The base shape of a morph, or of a skin in its bind pose."""
        for _ in range(_DEEPEST):
            shape = controller.find("skin") or controller.find("morph")
            if shape is None:
                msg = f"controller {controller.attributes.get('id')!r} is neither skin nor morph"
                raise DataError(msg)
            bind = shape.find("bind_shape_matrix")
            if bind is not None:
                matrix = matrix @ matrix_of(bind)
            base = self._target(shape, "source")
            if base.name == "geometry":
                self._add(base, matrix)
                return
            controller = base
        msg = "controllers refer to each other in a circle; export the model again"
        raise DataError(msg)

    def _target(self, element: Element, attribute: str, expected: str | None = None) -> Element:
        """The element that a local reference names."""
        reference = element.attribute(attribute)
        found = self._by_id.get(reference.removeprefix("#")) if reference.startswith("#") else None
        if found is None or (expected is not None and found.name != expected):
            msg = (
                f"<{element.name}> refers to {reference!r}, which is not in the file; export the model "
                "in one file"
            )
            raise DataError(msg)
        return found
