"""3MF: the build items of a model, components and their transforms included; z up as the standard says.

Numbers keep the model's own unit. Layout: 3MF Core Specification 1.3, and its production extension for
objects in other model parts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.archive import Archive, open_archive
from pointdistill.data.meshes.formats.xml import Element, float_list, parse_xml
from pointdistill.data.meshes.records import Draft, Floats, Indices, MeshLimits, Part
from pointdistill.errors import DataError

_PACKED = {"vertex": ("x", "y", "z"), "triangle": ("v1", "v2", "v3")}
_DEFAULT_ROOT = "3D/3dmodel.model"
_DEEPEST = 64


def read(path: Path, limits: MeshLimits) -> Draft:
    """Read everything that a 3MF file would have printed.

    Raises:
        DataError: if the archive or its model is damaged, or refers to an object that is not there.
    """
    with open_archive(path, limits) as archive:
        model = _Model(archive, limits)
        root = _root_name(archive, limits)
        build = model.part(root).find("build")
        items = list(build.all("item")) if build is not None else []
        if not items:
            msg = "the model builds nothing: it has no build items; export it again"
            raise DataError(msg)
        for item in items:
            model.place(item, root, np.eye(4), depth=0)
        return Draft(model.parts, declared_up="z")


def _root_name(archive: Archive, limits: MeshLimits) -> str:
    if "_rels/.rels" in archive.names:
        for relation in parse_xml(archive.document("_rels/.rels"), limits).all("Relationship"):
            if relation.attributes.get("Type", "").endswith("/3dmodel"):
                return relation.attribute("Target").lstrip("/")
    return _DEFAULT_ROOT


@dataclass(slots=True)
class _Model:
    archive: Archive
    limits: MeshLimits
    parts: list[Part] = field(default_factory=list)
    _documents: dict[str, Element] = field(default_factory=dict)
    _objects: dict[tuple[str, str], Element] = field(default_factory=dict)
    _meshes: dict[tuple[str, str], tuple[Floats, Indices]] = field(default_factory=dict)
    _visits: int = 0

    def part(self, name: str) -> Element:
        """A model part of the archive, parsed once, with its objects listed."""
        if name not in self._documents:
            document = parse_xml(self.archive.document(name), self.limits, packed=_PACKED)
            self._documents[name] = document
            resources = document.find("resources")
            for item in resources.all("object") if resources is not None else ():
                self._objects[name, item.attribute("id")] = item
        return self._documents[name]

    def place(self, reference: Element, document: str, above: Floats, *, depth: int) -> None:
        """Place the object that an item or a component refers to, and its components."""
        self._visits += 1
        check_size("components", self._visits, self.limits.instances)
        document = reference.attributes.get("path", document).lstrip("/")
        self.part(document)
        key = (document, reference.attribute("objectid"))
        if key not in self._objects or depth > _DEEPEST:
            problem = "contains itself" if key in self._objects else "is not in the model"
            msg = f"object {key[1]!r} {problem}; the file is damaged, export it again"
            raise DataError(msg)
        matrix = above @ _matrix(reference.attributes.get("transform"))
        found = self._objects[key]
        if found.find("mesh") is not None:
            vertices, corners = self._mesh(key)
            self.parts.append(Part(vertices, corners, matrix=matrix))
        components = found.find("components")
        for component in components.all("component") if components is not None else ():
            self.place(component, document, matrix, depth=depth + 1)

    def _mesh(self, key: tuple[str, str]) -> tuple[Floats, Indices]:
        if key not in self._meshes:
            mesh = self._objects[key].find("mesh")
            vertices = _packed(mesh, "vertices").reshape(-1, 3)
            triangles = _packed(mesh, "triangles")
            with np.errstate(invalid="ignore"):
                corners = triangles.astype(np.int64)
            # A fraction or an overflow is an index outside the vertices, as the checks count them.
            corners[corners != triangles] = -1
            self._meshes[key] = (vertices, corners)
        return self._meshes[key]


def _packed(mesh: Element | None, name: str) -> Floats:
    holder = mesh.find(name) if mesh is not None else None
    return np.array(holder.packed if holder is not None else [], dtype=np.float64)


def _matrix(text: str | None) -> Floats:
    """The 12 numbers of a 3MF transform, which acts on row vectors, as (4, 4) for column vectors."""
    matrix = np.eye(4)
    if text is not None:
        numbers = float_list(text)
        if len(numbers) != 12:
            msg = f"a transform has {len(numbers)} numbers, expected 12; the file is damaged"
            raise DataError(msg)
        matrix[:3] = numbers.reshape(4, 3).T
    return matrix
