"""3MF: the build items of a model, components and their transforms included; z up as the standard says.

trimesh reads it. Numbers keep the model's own unit. Layout: 3MF Core Specification 1.3, and its production
extension for objects in other model parts.

Supports, infill modifiers and volumes that a slicer subtracts are stored as meshes like any other, and are left
out. The core specification marks some by the type of their object; slicers mark the others in files of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
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
from pointdistill.data.meshes.records import MeshLimits, RawMesh, counted
from pointdistill.errors import DataError

_ROOT: Final = "3D/3dmodel.model"
_PATH: Final = "{http://schemas.microsoft.com/3dmanufacturing/production/2015/06}path"

_MOST_INSTANCES: Final = 5_000
"""trimesh looks for a free name for each instance of an object: 5,000 instances take eight seconds, ten times as
many a hundred times as long."""


_SETTINGS: Final = ("Metadata/model_settings.config", "Metadata/Slic3r_PE_model.config")
"""What Bambu Studio and OrcaSlicer, and PrusaSlicer, say about the parts of a model."""

_SCHEMAS: Final = "http://schemas.microsoft.com/3dmanufacturing/"
_HARMLESS: Final = frozenset(
    f"{_SCHEMAS}{name}"
    for name in ("core/2015/02", "material/2015/02", "production/2015/06", "trianglesets/2021/07")
)
"""Namespaces that may be required: they say where objects are stored, what they are made of, or name triangles."""

_SLICE: Final = f"{_SCHEMAS}slice/2015/07"

_GEOMETRY: Final = {
    "beamlattice": "beam lattices",
    "booleanshape": "boolean shapes",
    "displacementmesh": "displaced meshes",
    "levelset": "level sets",
    "volumetricstack": "volumetric stacks",
    "implicitfunction": "implicit functions",
    "alternatives": "alternative meshes",
}
"""Elements of extensions that hold a shape. An extension that a file does not require may be passed over."""

_NO_SHAPE: Final = {
    "other": "objects of type other",
    "support": "support objects",
    "solidsupport": "support objects",
}
"""Types of objects that are no part of the shape; "model" and "surface" are."""

_SLICER_PARTS: Final = {
    "negative_part": "negative parts",
    "negativevolume": "negative parts",
    "modifier_part": "modifiers",
    "parametermodifier": "modifiers",
    "support_enforcer": "support enforcers",
    "supportenforcer": "support enforcers",
    "support_blocker": "support blockers",
    "supportblocker": "support blockers",
}
"""How slicers name parts that are no part of the shape, in lower case."""

_CURA: Final = {
    "infill_mesh": "modifiers",
    "cutting_mesh": "modifiers",
    "support_mesh": "support objects",
    "anti_overhang_mesh": "support blockers",
}
"""The metadata by which Cura marks an object as no part of the shape."""

_TRIANGLES = etree.XPath("count(.//*[local-name() = 'triangle'])")


def read(path: Path, limits: MeshLimits) -> RawMesh:
    """Read everything that a 3MF file asks to print.

    Raises:
        DataError: if the archive or its model is damaged, or refers to an object that is missing.
    """
    from trimesh.exchange.threemf import load_3MF

    left_out: Counter[str] = Counter()
    with open_zipped_documents(path, limits) as archive:
        root = _root_name(archive)
        model = _merged(archive, root, left_out)
        settings = [archive.parse(name) for name in _SETTINGS if name in archive.names]
    items = len(_object_ids(model, "item"))
    _leave_out(model, root, settings, left_out)
    objects = list(model.iter("{*}object"))
    children = {item.get("id"): _object_ids(item, "component") for item in objects}
    if len(children) < len(objects):
        msg = "two objects of the model have one id; the file is damaged, export it again"
        raise DataError(msg)
    if not items:
        msg = "the model builds nothing: it has no build items; export it again"
        raise DataError(msg)
    built = _object_ids(model, "item")
    stored = {item.get("id"): int(_TRIANGLES(item)) for item in objects}
    instances, triangles = count_placed(children, stored, built)
    if left_out and not triangles:
        msg = (
            f"the model builds nothing besides {counted(left_out)}; export it with a part to print"
        )
        raise DataError(msg)
    check_size("instances", instances, min(limits.instances, _MOST_INSTANCES))
    check_size("triangles", triangles, limits.faces)
    document = etree.tostring(model)
    # The elements take ten times the bytes of the document, and trimesh is about to parse it again.
    del model, objects
    # trimesh's clean-up renames bodies, and would lose those that then share a name.
    loader = partial(load_3MF, postprocess=False)
    parts = load_parts(loader, {_ROOT: document}, triangles=triangles)
    return RawMesh(parts, declared_up="z", left_out=dict(left_out))


def _object_ids(element: Any, kind: str) -> list[str]:
    return [item.get("objectid") for item in element.iter(f"{{*}}{kind}")]


def _merged(archive: ZippedDocuments, root: str, left_out: Counter[str]) -> Any:
    """All parts of the model as one document; trimesh would load a whole part for each object referenced in it.

    Ids become "part#id". Names are removed: trimesh identifies instances by them, and drops those that share one.
    """
    parts = {root: _parse(archive, root, left_out)}
    waiting = [root]
    resources = parts[root].find("{*}resources")
    while waiting:
        name = waiting.pop()
        for reference in parts[name].iter("{*}component", "{*}item"):
            target = _part_of(reference, name)
            if target not in parts:
                parts[target] = _parse(archive, target, left_out)
                waiting.append(target)
            reference.set("objectid", f"{target}#{reference.get('objectid')}")
            reference.attrib.pop("partnumber", None)
        for item in parts[name].findall("{*}resources/{*}object"):
            item.set("id", f"{name}#{item.get('id')}")
            item.attrib.pop("name", None)
            if name != root:
                resources.append(item)
    return parts[root]


def _parse(archive: ZippedDocuments, name: str, left_out: Counter[str]) -> Any:
    """One part of the model, without what extensions add to it."""
    model = archive.parse(name)
    _check_extensions(model)
    left_out.update(_keep_core(model))
    return model


def _part_of(reference: Any, here: str) -> str:
    """The model part that contains the object of a build item or a component."""
    path: str = reference.attrib.pop(_PATH, here)
    return path.lstrip("/")


def _root_name(archive: ZippedDocuments) -> str:
    if "_rels/.rels" in archive.names:
        for relation in archive.parse("_rels/.rels").iter("{*}Relationship"):
            if relation.get("Type", "").endswith("/3dmodel"):
                target: str = relation.get("Target")
                return target.lstrip("/")
    return _ROOT


def _check_extensions(model: Any) -> None:
    """Refuse a model that requires an extension which adds to its shape, or changes it.

    Raises:
        DataError: names the extension.
    """
    for prefix in model.get("requiredextensions", "").split():
        uri = model.nsmap.get(prefix)
        if uri is None:
            msg = f"requires the extension {prefix!r} without naming its namespace; export the model again"
            raise DataError(msg)
        if uri not in _HARMLESS and uri != _SLICE:
            name = uri.removeprefix(_SCHEMAS)
            msg = f"requires the 3MF extension {name}, which is not read; export the model as a plain mesh"
            raise DataError(msg)
    for item in model.iter("{*}object"):
        if item.get(f"{{{_SLICE}}}meshresolution") == "lowres":
            msg = "keeps its shape as slices beside a coarse mesh; export the model as a plain mesh"
            raise DataError(msg)


def _keep_core(model: Any) -> Counter[str]:
    """Remove the elements of all other namespaces than the model's own; counts those that hold a shape."""
    core = etree.QName(model).namespace or ""
    foreign = model.xpath("//*[namespace-uri() != $core]", core=core)
    counts: Counter[str] = Counter()
    for element in foreign:
        if kind := _GEOMETRY.get(etree.QName(element).localname):
            counts[kind] += 1
        parent = element.getparent()
        if parent is not None:
            parent.remove(element)
    return counts


def _leave_out(model: Any, root: str, settings: Sequence[Any], counts: Counter[str]) -> None:
    """Remove what is no part of the shape from the build and from other objects, and count it by its kind.

    Args:
        model: all parts of the model as one document; ids are "part#id".
        root: the part that has the build.
        settings: the slicers' files.
        counts: receives the count of each kind.
    """
    objects = {item.get("id"): item for item in model.iterfind("{*}resources/{*}object")}
    for config in settings:
        for entry in config.iterfind("object"):
            target = objects.get(f"{root}#{entry.get('id')}")
            if target is not None:
                _leave_out_parts(target, entry, counts)
                _leave_out_volumes(target, entry, counts)
    for item in list(model.iterfind("{*}build/{*}item")):
        if item.get("printable", "1").strip().lower() in ("0", "false"):
            counts["items that are not to be printed"] += 1
            item.getparent().remove(item)
    kinds = {name: kind for name, item in objects.items() if (kind := _kind(item))}
    for reference in list(model.iter("{*}item", "{*}component")):
        if kind := kinds.get(reference.get("objectid")):
            counts[kind] += 1
            reference.getparent().remove(reference)


def _kind(item: Any) -> str | None:
    """What an object is, if it is no part of the shape. The type says nothing about objects of components."""
    if item.find("{*}components") is None and (kind := _NO_SHAPE.get(item.get("type", "model"))):
        return kind
    for entry in item.iterfind("{*}metadatagroup/{*}metadata"):
        name = entry.get("name", "").rpartition(":")[2]
        if name in _CURA and (entry.text or "").strip().lower() == "true":
            return _CURA[name]
    return None


def _leave_out_parts(target: Any, entry: Any, counts: Counter[str]) -> None:
    """Remove the components that Bambu Studio's file marks: a part has the id of the component's object."""
    marked = {
        part.get("id"): kind
        for part in entry.iterfind("part")
        if (kind := _SLICER_PARTS.get(part.get("subtype", "").lower()))
    }
    for component in list(target.iterfind("{*}components/{*}component")):
        if kind := marked.get(component.get("objectid").rpartition("#")[2]):
            counts[kind] += 1
            component.getparent().remove(component)


def _leave_out_volumes(target: Any, entry: Any, counts: Counter[str]) -> None:
    """Remove the triangles that PrusaSlicer's file marks: all volumes of an object share one mesh."""
    triangles = target.findall("{*}mesh/{*}triangles/{*}triangle")
    for volume in entry.iterfind("volume"):
        said = {item.get("key"): item.get("value", "") for item in volume.iterfind("metadata")}
        kind = _SLICER_PARTS.get(said.get("volume_type", "").lower())
        if kind is None and said.get("modifier") == "1":  # as older versions write it
            kind = "modifiers"
        if kind is None:
            continue
        first, last = int(volume.get("firstid")), int(volume.get("lastid"))
        if not 0 <= first <= last < len(triangles):
            msg = (
                f"a slicer's volume has the triangles {first:,} to {last:,} of {len(triangles):,}; "
                "export the model again"
            )
            raise DataError(msg)
        counts[kind] += 1
        for triangle in triangles[first : last + 1]:
            if triangle.getparent() is not None:
                triangle.getparent().remove(triangle)
