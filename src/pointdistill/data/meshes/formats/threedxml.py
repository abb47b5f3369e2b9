"""3DXML with tessellated parts, as CAD programs export it: the assembly with every instance in its place.

trimesh reads it. Only the finest form of a part counts; coarser levels of detail would double the surface.
Numbers keep the file's own unit.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from lxml import etree

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.xml_documents import (
    ZippedDocuments,
    count_placed,
    load_parts,
    open_zipped_documents,
)
from pointdistill.data.meshes.records import MeshLimits, RawMesh
from pointdistill.errors import DataError

_MANIFEST: Final = "Manifest.xml"

_MOST_STEPS: Final = 1_000_000
"""trimesh walks the whole assembly once for each shape, at about twenty microseconds per instance."""

_MOST_FACES: Final = 500_000
"""A <Face> costs a kilobyte and 40 microseconds, however few triangles it has."""


def read(path: Path, limits: MeshLimits) -> RawMesh:
    """Read the product structure that the manifest names.

    Raises:
        DataError: if the archive is damaged, or a part is stored as something other than triangles.
    """
    from trimesh.exchange.threedxml import load_3DXML

    with open_zipped_documents(path, limits) as archive:
        manifest = archive.parse(_MANIFEST)
        name = (manifest.findtext("{*}Root") or "").strip()
        product = archive.parse(name)
        structure = product.find("{*}ProductStructure")
        if structure is None:
            msg = "the archive has no product structure; export the model as tessellated 3DXML"
            raise DataError(msg)
        # Drop the views and materials beside it.
        product[:] = [structure]
        stored, members = _shapes(structure, archive)
    children = _children(structure, stored)
    instances, triangles = count_placed(children, stored, [structure.get("root")])
    check_size("instances", instances, limits.instances)
    check_size("shapes times instances", len(stored) * instances, _MOST_STEPS)
    check_size("triangles", triangles, limits.faces)
    members |= {_MANIFEST: etree.tostring(manifest), name: etree.tostring(product)}
    return RawMesh(load_parts(load_3DXML, members, triangles=triangles))


def _shapes(structure: Any, archive: ZippedDocuments) -> tuple[dict[str, int], dict[str, bytes]]:
    """The number of triangles of each shape, and the documents that hold them; shapes without any are removed."""
    stored: dict[str, int] = {}
    counts: dict[str, int] = {}
    members: dict[str, bytes] = {}
    faces = 0
    for shape in structure.findall("{*}ReferenceRep"):
        if (form := shape.get("format")) != "TESSELLATED":
            msg = f"a part is stored as {form!r}, accepted is TESSELLATED; export it tessellated"
            raise DataError(msg)
        name = shape.get("associatedFile", "").rpartition(":")[2]
        if name not in members:
            document = archive.parse(name)
            faces += sum(1 for _ in document.iter("{*}Face"))
            check_size("<Face> elements", faces, _MOST_FACES)
            counts[name] = _tidy(document)
            members[name] = etree.tostring(document)
        stored[shape.get("id")] = counts[name]
        if not counts[name]:
            structure.remove(shape)
    return stored, members


def _tidy(document: Any) -> int:
    """Reduce each <Rep> to what trimesh reads correctly, and count the triangles."""
    looks = ("SurfaceAttributes", "PolygonalLOD", "Normals", "TextureCoordinates", "Edges")
    etree.strip_elements(document, *(f"{{*}}{name}" for name in looks), with_tail=False)
    triangles = 0
    for shape in document.iter("{*}Rep"):
        if (buffer := shape.find("{*}VertexBuffer")) is None:
            continue
        # trimesh requires normals, which are not used here.
        etree.SubElement(buffer, "Normals").text = "0 0 0"
        positions = buffer.findtext("{*}Positions", "").replace(",", " ").split()
        for group in shape.findall("{*}Faces"):
            for face in group.findall("{*}Face"):
                triangles += _tidy_face(face, vertices=len(positions) // 3)
                # trimesh would count the faces of one group several times, so each gets a group of its own.
                etree.SubElement(shape, "Faces").append(face)
            shape.remove(group)
    return triangles


def _tidy_face(face: Any, *, vertices: int) -> int:
    """Remove strips and fans too short for a triangle, check the indices, and count the triangles."""
    indices = [int(index) for index in face.attrib.pop("triangles", "").replace(",", " ").split()]
    if indices:
        face.set("triangles", " ".join(map(str, indices)))
    triangles = len(indices) // 3
    for kind in ("strips", "fans"):
        lists = [text.split() for text in face.attrib.pop(kind, "").split(",")]
        if lists := [text for text in lists if len(text) > 2]:
            face.set(kind, ",".join(" ".join(text) for text in lists))
        indices += (int(index) for text in lists for index in text)
        triangles += sum(len(text) - 2 for text in lists)
    if indices and not 0 <= min(indices) <= max(indices) < vertices:
        # trimesh joins the vertices of all bodies of a part, so the index would refer to those of another.
        msg = f"a face has an index outside the {vertices:,} vertices of its body; export the model again"
        raise DataError(msg)
    return triangles


def _children(structure: Any, shapes: Iterable[str]) -> dict[str, list[str]]:
    """What every part contains; ids and links are rewritten as trimesh expects them.

    trimesh names a shape after the part that contains it, and of two with the same name keeps one. So ids become
    names, and each shape gets a part of its own, inside the one that contained it.
    """
    children: dict[str, list[str]] = {shape: [] for shape in shapes}
    for part in structure.findall("{*}Reference3D"):
        part.set("name", part.get("id"))
        children[part.get("id")] = []
    for instance in structure.findall("{*}Instance3D"):
        instance.set("name", instance.get("id"))
        children.setdefault(_link(instance, "IsAggregatedBy").text, []).append(
            _link(instance, "IsInstanceOf").text
        )
    for instance in structure.findall("{*}InstanceRep"):
        owner = _link(instance, "IsAggregatedBy")
        alone = f"part of {instance.get('id')}"
        children.setdefault(owner.text, []).append(alone)
        children[alone] = [_link(instance, "IsInstanceOf").text]
        etree.SubElement(structure, "Reference3D", id=alone, name=alone)
        place = etree.SubElement(structure, "Instance3D", id=f"place of {alone}", name=alone)
        etree.SubElement(place, "IsAggregatedBy").text = owner.text
        etree.SubElement(place, "IsInstanceOf").text = alone
        owner.text = alone
    return children


def _link(instance: Any, name: str) -> Any:
    """The element that names another's id, bare or after a '#'; the id is left alone in it."""
    link = instance.find(f"{{*}}{name}")
    if link is None:
        msg = f"instance {instance.get('id')!r} has no {name}; the file is damaged, export it again"
        raise DataError(msg)
    link.text = (link.text or "").strip().rpartition("#")[2]
    return link
