"""3MF: the build items of a model, components and their transforms included; z up as the standard says.

trimesh reads it. Numbers keep the model's own unit. Layout: 3MF Core Specification 1.3, and its production
extension for objects in other model parts.
"""

from __future__ import annotations

from functools import partial
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

_ROOT: Final = "3D/3dmodel.model"

_MOST_INSTANCES: Final = 5_000
"""trimesh looks for a free name for each instance of an object: 5,000 instances take eight seconds, ten times as
many a hundred times as long."""


_TRIANGLES = etree.XPath("count(.//*[local-name() = 'triangle'])")


def read(path: Path, limits: MeshLimits) -> RawMesh:
    """Read everything that a 3MF file asks to print.

    Raises:
        DataError: if the archive or its model is damaged, or refers to an object that is missing.
    """
    from trimesh.exchange.threemf import load_3MF

    with open_zipped_documents(path, limits) as archive:
        model = _merged(archive)
    objects = list(model.iter("{*}object"))
    children = {item.get("id"): _object_ids(item, "component") for item in objects}
    if len(children) < len(objects):
        msg = "two objects of the model have one id; the file is damaged, export it again"
        raise DataError(msg)
    if not (items := _object_ids(model, "item")):
        msg = "the model builds nothing: it has no build items; export it again"
        raise DataError(msg)
    stored = {item.get("id"): int(_TRIANGLES(item)) for item in objects}
    instances, triangles = count_placed(children, stored, items)
    check_size("instances", instances, min(limits.instances, _MOST_INSTANCES))
    check_size("triangles", triangles, limits.faces)
    document = etree.tostring(model)
    # The elements take ten times the bytes of the document, and trimesh is about to parse it again.
    del model, objects
    # trimesh's clean-up renames bodies, and would lose those that then share a name.
    loader = partial(load_3MF, postprocess=False)
    return RawMesh(load_parts(loader, {_ROOT: document}, triangles=triangles), declared_up="z")


def _object_ids(element: Any, kind: str) -> list[str]:
    return [item.get("objectid") for item in element.iter(f"{{*}}{kind}")]


def _merged(archive: ZippedDocuments) -> Any:
    """All parts of the model as one document; trimesh would load a whole part for each object referenced in it.

    Ids become "part#id". Names are removed: trimesh identifies instances by them, and drops those that share one.
    """
    root = _root_name(archive)
    parts = {root: archive.parse(root)}
    waiting = [root]
    resources = parts[root].find("{*}resources")
    while waiting:
        name = waiting.pop()
        for reference in parts[name].iter("{*}component", "{*}item"):
            target = _part_of(reference, name)
            if target not in parts:
                parts[target] = archive.parse(target)
                waiting.append(target)
            reference.set("objectid", f"{target}#{reference.get('objectid')}")
            reference.attrib.pop("partnumber", None)
        for item in parts[name].findall("{*}resources/{*}object"):
            item.set("id", f"{name}#{item.get('id')}")
            item.attrib.pop("name", None)
            if name != root:
                resources.append(item)
    return parts[root]


def _part_of(reference: Any, here: str) -> str:
    """The model part that contains the object of a build item or a component."""
    for name in reference.attrib:
        if etree.QName(name).localname == "path":
            path: str = reference.attrib.pop(name)
            return path.lstrip("/")
    return here


def _root_name(archive: ZippedDocuments) -> str:
    if "_rels/.rels" in archive.names:
        for relation in archive.parse("_rels/.rels").iter("{*}Relationship"):
            if relation.get("Type", "").endswith("/3dmodel"):
                target: str = relation.get("Target")
                return target.lstrip("/")
    return _ROOT
