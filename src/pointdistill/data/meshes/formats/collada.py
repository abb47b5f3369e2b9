"""COLLADA 1.4 and 1.5: the geometries of the visual scene where its nodes put them, read by pycollada.

The file states its up axis. Numbers keep the file's own unit; positions are float32, as pycollada reads them.
Skins are in their bind pose, morphs in their base shape. Materials, normals and colours are never opened.
trimesh's own loader of the format leaves out skins and cuts concave polygons wrongly, so the library below it is
called directly.
"""

from __future__ import annotations

import math
import re
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from lxml import etree

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats.xml_documents import contents_first, parse_xml, strict_numbers
from pointdistill.data.meshes.records import Axis, MeshLimits, Part, RawMesh
from pointdistill.errors import DataError

_UP_AXES: Final[dict[str, Axis]] = {"X_UP": "x", "Y_UP": "y", "Z_UP": "z"}

_UNUSED: Final = (
    "asset", "library_animations", "library_cameras", "library_effects", "library_images",
    "library_lights", "library_materials", "bind_material", "extra", "instance_camera",
    "instance_light", "lines", "linestrips",
)  # fmt: skip

_PLACED_BY_LOOKAT: Final = etree.XPath(
    "//*[local-name() = 'node'][*[local-name() = 'lookat']]"
    "//*[local-name() = 'instance_geometry' or local-name() = 'instance_node']"
)

_MOST_LISTS: Final = 500_000
"""A strip of triangles costs a kilobyte and 20 microseconds, however short."""

_NAN: Final = re.compile("nan", re.IGNORECASE)
_TOO_LONG: Final = re.compile(r"[0-9]{10}")  # wraps around at 32 bits
_IDENTITY: Final = "1 0 0 0  0 1 0 0  0 0 1 0  0 0 0 1"


def read(path: Path, limits: MeshLimits) -> RawMesh:
    """Read the visual scene of a .dae file.

    Raises:
        DataError: if the document is damaged, refers to something that is not there, or holds a shape or
            a transform that pycollada does not read.
    """
    from collada import Collada
    from collada.common import DaeError

    check_size("bytes", path.stat().st_size, limits.document_bytes)
    root = parse_xml(path.read_bytes(), limits, long_texts=True)
    if (name := etree.QName(root).localname) != "COLLADA":
        msg = f"expected a COLLADA document, got <{name}>; export the model again"
        raise DataError(msg)
    stated = (root.findtext("{*}asset/{*}up_axis") or "").strip().upper()
    _prepare(root)
    document = etree.tostring(root)
    del root
    with strict_numbers():
        scene = Collada(BytesIO(document), ignore=[DaeError])
    if scene.errors:
        msg = f"{scene.errors[0].msg}; export the model again, all in one file"
        raise DataError(msg)
    # The specification's default is y.
    return RawMesh(_placed(scene, limits), declared_up=_UP_AXES.get(stated, "y"))


def _placed(document: Any, limits: MeshLimits) -> list[Part]:
    """Every geometry under the nodes of the scene."""
    parts: list[Part] = []
    shapes: dict[int, list[Part]] = {}
    scene = document.scene or next(iter(document.scenes), None)
    waiting = [(node, np.eye(4)) for node in (scene.nodes if scene is not None else ())]
    visits = triangles = 0
    while waiting:
        item, above = waiting.pop()
        visits += 1
        check_size("nodes", visits, limits.instances)
        if (geometry := getattr(item, "geometry", None)) is None:
            with np.errstate(invalid="ignore", over="ignore"):  # the checks count the outcome
                matrix = above @ item.matrix
            waiting.extend((child, matrix) for child in item.children)
            continue
        if id(geometry) not in shapes:
            shapes[id(geometry)] = [
                _part(group, limits) for group in geometry.primitives if len(group)
            ]
        for part in shapes[id(geometry)]:
            triangles += part.triangle_count
            check_size("triangles", triangles, limits.faces)
            parts.append(Part(part.vertices, part.corners, part.sizes, above))
    return parts


def _part(group: Any, limits: MeshLimits) -> Part:
    """One group of triangles, strips, fans or polygons, checked against the counts that the document states."""
    check_size("corners", group.vertex_index.size, 3 * limits.faces)
    corners = group.vertex_index.astype(np.int64).reshape(-1)
    kind = etree.QName(group.xmlnode).localname
    lists = len(group.xmlnode.findall("{*}p"))
    sizes = None
    if kind in ("polylist", "polygons"):
        sizes = group.vcounts.astype(np.int64)
        _check_count(f"corners of <{kind}>", int(sizes.sum()), len(corners))
    if kind in ("triangles", "polylist"):
        _check_count(f"lists of <{kind}>", 1, lists)
    items = lists if kind in ("tristrips", "trifans") else len(group)
    _check_count(f"items of <{kind}>", int(group.xmlnode.get("count", items)), items)
    source = group.sources["VERTEX"][0][4]
    accessor = source.xmlnode.find("{*}technique_common/{*}accessor")
    _check_count("points of a source", int(accessor.get("count")), len(source.data))
    names = "".join(entry.get("name") or "" for entry in accessor.iterfind("{*}param")).upper()
    plain = (accessor.get("stride"), accessor.get("offset", "0")) == ("3", "0")
    if not plain or (names != "XYZ" and sorted(names) == ["X", "Y", "Z"]):
        msg = "positions lie among other numbers, or not as x, y, z; export the model again"
        raise DataError(msg)
    check_size("vertices", len(source.data), limits.vertices)
    return Part(source.data.astype(np.float64), corners, sizes)


def _check_count(what: str, stated: int, actual: int) -> None:
    if stated != actual:
        msg = (
            f"{stated:,} {what} are stated, {actual:,} were read; the file is damaged or cut short"
        )
        raise DataError(msg)


def _prepare(root: Any) -> None:
    """Remove what is not geometry, and rewrite what pycollada would read wrongly."""
    etree.strip_elements(root, *(f"{{*}}{name}" for name in _UNUSED), with_tail=False)
    check_size("lists of corners", sum(1 for _ in root.iter("{*}p")), _MOST_LISTS)
    for mesh in root.iter("{*}mesh"):
        _keep_positions(mesh)
    for turn in list(root.iter("{*}rotate")):
        *axis, angle = map(float, turn.text.split())
        # An axis not of length 1 would stretch the shape, and one of length 0 collapse it.
        if length := math.hypot(*axis):
            turn.text = " ".join(map(str, (*(value / length for value in axis), angle)))
        else:
            turn.getparent().remove(turn)
    _place_controlled(root)
    if _PLACED_BY_LOOKAT(root):
        msg = "a shape is placed by <lookat>; export the model with matrices"
        raise DataError(msg)
    for library in root.iter("{*}library_nodes", "{*}visual_scene"):
        # pycollada looks for what a node instantiates among earlier nodes only; sorted, it finds all in one pass.
        nodes = {f"#{node.get('id')}": node for node in library.findall("{*}node")}
        uses = {
            name: [instance.get("url") for instance in node.iter("{*}instance_node")]
            for name, node in nodes.items()
        }
        library.extend(nodes[name] for name in contents_first(uses) if name in nodes)


def _keep_positions(mesh: Any) -> None:
    """Keep only the positions of a mesh, and refuse what pycollada would change silently."""
    position = mesh.find("{*}vertices/{*}input[@semantic='POSITION']")
    reference = position.get("source") if position is not None else ""
    for source in mesh.findall("{*}source"):
        if f"#{source.get('id')}" != reference:
            mesh.remove(source)
    for entry in mesh.iterfind("*/{*}input"):
        if int(entry.get("offset", 0)) < 0:
            msg = f"an index at place {entry.get('offset')} of a corner; the file is damaged"
            raise DataError(msg)
        if entry.get("semantic") not in ("VERTEX", "POSITION"):
            # It still takes up an index of each corner, and colours are never read.
            entry.set("semantic", "COLOR")
            entry.set("source", reference)
    for group in mesh.findall("*"):
        if group.find("{*}ph") is not None:
            msg = "has polygons with holes (<ph>); triangulate the mesh in a 3-D program"
            raise DataError(msg)
        if group.get("count") == "0" and group.find("{*}p") is None:
            mesh.remove(group)
    for array in mesh.iterfind("{*}source/{*}float_array"):
        # NaN would become 0; the checks count infinite vertices together with NaN.
        if _NAN.search(array.text or ""):
            array.text = _NAN.sub("inf", array.text)
    for indices in mesh.iter("{*}p", "{*}vcount"):
        if long := _TOO_LONG.search(indices.text or ""):
            msg = f"an index that begins with {long[0]}; the file is damaged"
            raise DataError(msg)


def _place_controlled(root: Any) -> None:
    """Replace each skin and morph by its base geometry.

    A skin is placed by its joints, not its node, and at rest they leave it in its bind pose.
    """
    controllers = {f"#{item.get('id')}": item for item in root.iter("{*}controller")}
    for instance in list(root.iter("{*}instance_controller")):
        base, bind = instance.get("url"), None
        for _ in range(2):  # a skin may stand over a morph
            if base in controllers:
                shape = next(controllers[base].iterchildren("{*}skin", "{*}morph"))
                base = shape.get("source")
                if etree.QName(shape).localname == "skin":
                    bind = shape.findtext("{*}bind_shape_matrix") or _IDENTITY
        space = f"{{{etree.QName(instance).namespace}}}"
        geometry = etree.Element(f"{space}instance_geometry", url=base)
        if bind is None:
            instance.getparent().replace(instance, geometry)
            continue
        scene = next(instance.iterancestors("{*}visual_scene"))
        node = etree.SubElement(scene, f"{space}node")
        etree.SubElement(node, f"{space}matrix").text = bind
        node.append(geometry)
        instance.getparent().remove(instance)
    etree.strip_elements(root, "{*}library_controllers", with_tail=False)
