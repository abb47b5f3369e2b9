"""3DXML with tessellated parts, as CAD programs export it: the assembly with every instance in its place.

Only a part's finest form is read; its coarser levels of detail would double the surface. Numbers keep the
file's own unit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.archive import Archive, open_archive
from pointdistill.data.meshes.formats.xml import Element, float_list, index_list, parse_xml
from pointdistill.data.meshes.polygons import fan_triangles, strip_triangles
from pointdistill.data.meshes.records import Draft, Floats, Indices, MeshLimits, Part
from pointdistill.errors import DataError

_DEEPEST = 64


def read(path: Path, limits: MeshLimits) -> Draft:
    """Read the product structure that the manifest names.

    Raises:
        DataError: if the archive is damaged, or a part is stored as something other than triangles.
    """
    with open_archive(path, limits) as archive:
        manifest = parse_xml(archive.document("Manifest.xml"), limits)
        root = manifest.find("Root")
        document = parse_xml(archive.document(root.text.strip() if root else ""), limits)
        structure = document.find("ProductStructure")
        if structure is None:
            msg = "the archive has no product structure; export the model as tessellated 3DXML"
            raise DataError(msg)
        assembly = _Assembly(archive, limits)
        assembly.list_children(structure)
        assembly.place(structure.attribute("root"), np.eye(4), depth=0)
        return Draft(assembly.parts)


@dataclass(slots=True)
class _Assembly:
    archive: Archive
    limits: MeshLimits
    parts: list[Part] = field(default_factory=list)
    _children: dict[str, list[Element]] = field(default_factory=lambda: defaultdict(list))
    _shapes: dict[str, Element] = field(default_factory=dict)
    _read: dict[str, list[Part]] = field(default_factory=dict)
    _visits: int = 0

    def list_children(self, structure: Element) -> None:
        """Note which instances each reference aggregates, and which shapes there are."""
        for element in structure.children:
            if element.name in ("Instance3D", "InstanceRep"):
                self._children[_linked(element, "IsAggregatedBy")].append(element)
            elif element.name == "ReferenceRep":
                self._shapes[element.attribute("id")] = element

    def place(self, reference: str, matrix: Floats, *, depth: int) -> None:
        """Place everything below one reference."""
        if depth > _DEEPEST:
            msg = f"reference {reference!r} contains itself; the file is damaged, export it again"
            raise DataError(msg)
        for instance in self._children.get(reference, ()):
            self._visits += 1
            check_size("instances", self._visits, self.limits.instances)
            target = _linked(instance, "IsInstanceOf")
            if instance.name == "Instance3D":
                self.place(target, matrix @ _matrix(instance), depth=depth + 1)
                continue
            for part in self._shape(target):
                self.parts.append(Part(part.vertices, part.corners, matrix=matrix))

    def _shape(self, identity: str) -> list[Part]:
        if identity not in self._read:
            if identity not in self._shapes:
                msg = f"shape {identity!r} is not in the file; export it with its parts embedded"
                raise DataError(msg)
            shape = self._shapes[identity]
            stored = shape.attributes.get("format")
            if stored != "TESSELLATED":
                msg = f"a part is stored as {stored!r}, accepted is TESSELLATED; export it tessellated"
                raise DataError(msg)
            name = shape.attribute("associatedFile").rpartition(":")[2]
            document = parse_xml(self.archive.document(name), self.limits)
            self._read[identity] = [
                part
                for element in document.walk()
                if (part := _representation(element)) is not None
            ]
        return self._read[identity]


def _linked(element: Element, name: str) -> str:
    """The id that a child element names; a bare id or one after a '#'."""
    child = element.find(name)
    if child is None:
        msg = f"<{element.name}> has no {name}; the file is damaged, export it again"
        raise DataError(msg)
    return child.text.strip().rpartition("#")[2]


def _matrix(instance: Element) -> Floats:
    """Nine numbers, the columns of a rotation, and three of a translation."""
    matrix = np.eye(4)
    relative = instance.find("RelativeMatrix")
    if relative is not None:
        numbers = float_list(relative.text)
        if len(numbers) != 12:
            msg = f"a RelativeMatrix has {len(numbers)} numbers, expected 12; the file is damaged"
            raise DataError(msg)
        matrix[:3] = numbers.reshape(4, 3).T
    return matrix


def _representation(element: Element) -> Part | None:
    """The triangles of one <Rep> with vertices of its own; None for any other element."""
    buffer = element.find("VertexBuffer") if element.name == "Rep" else None
    positions = buffer.find("Positions") if buffer is not None else None
    if positions is None:
        return None
    numbers = float_list(positions.text)
    if len(numbers) % 3:
        msg = f"{len(numbers):,} coordinates are not points; the file is damaged, export it again"
        raise DataError(msg)
    corners = [_corners(face) for faces in element.all("Faces") for face in faces.all("Face")]
    return Part(numbers.reshape(-1, 3), np.concatenate([np.empty(0, np.int64), *corners]))


def _corners(face: Element) -> Indices:
    """The triangles of a <Face>, which may come as triangles, strips and fans together."""
    triangles = index_list(face.attributes.get("triangles", ""))
    if len(triangles) % 3:
        msg = f"{len(triangles):,} indices are not triangles; the file is damaged, export it again"
        raise DataError(msg)
    strips = _lists(face, "strips", strip_triangles)
    fans = _lists(face, "fans", fan_triangles)
    return np.concatenate([triangles, strips, fans])


def _lists(face: Element, name: str, cut: Callable[[list[Indices]], Indices]) -> Indices:
    lists = [index_list(text) for text in face.attributes.get(name, "").split(",")]
    return cut([indices for indices in lists if len(indices) > 2])
