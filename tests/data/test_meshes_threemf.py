"""The box in 3MF: components, parts of the model, shared names; and archives that are not opened."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from pointdistill.data.meshes import MeshLimits, read_mesh, surface_area
from pointdistill.errors import DataError
from tests.data.meshes.box import BOX, TRIANGLES, bounds, check_box, read_surface, write_zip


def mesh_3mf(name: str) -> str:
    vertices = "".join(f'<vertex x="{x}" y="{y}" z="{z}"/>' for x, y, z in BOX)
    triangles = "".join(f'<triangle v1="{a}" v2="{b}" v3="{c}"/>' for a, b, c in TRIANGLES)
    mesh = f"<vertices>{vertices}</vertices><triangles>{triangles}</triangles>"
    return f'<object id="{name}"><mesh>{mesh}</mesh></object>'


def model_3mf(objects: str, items: str) -> str:
    return (
        '<model xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02" '
        'xmlns:p="http://schemas.microsoft.com/3dmanufacturing/production/2015/06">'
        f"<resources>{objects}</resources><build>{items}</build></model>"
    )


DOUBLE = "2 0 0 0 2 0 0 0 2 10 10 10"
BACK = "0.5 0 0 0 0.5 0 0 0 0.5 -5 -5 -5"


def test_3mf_with_an_object_that_nothing_builds(tmp_path: Path) -> None:
    path = tmp_path / "box.3mf"
    write_zip(
        path, {"3D/3dmodel.model": model_3mf(mesh_3mf("1") + mesh_3mf("2"), '<item objectid="2"/>')}
    )
    check_box(path)


def test_3mf_components_apply_the_inner_transform_first(tmp_path: Path) -> None:
    """Doubled and moved by the component, halved and moved back by the build item; rows are vectors there."""
    component = f'<object id="2"><components><component objectid="1" transform="{DOUBLE}"/></components></object>'
    item = f'<item objectid="2" transform="{BACK}"/>'
    path = tmp_path / "box.3mf"
    write_zip(path, {"3D/3dmodel.model": model_3mf(mesh_3mf("1") + component, item)})
    check_box(path)


def test_3mf_objects_in_another_part_of_the_model(tmp_path: Path) -> None:
    part = '<object id="1"><components><component p:path="/3D/other.model" objectid="1"/></components></object>'
    relations = '<Relationships><Relationship Type="http://x/3dmodel" Target="/3D/root.model"/></Relationships>'
    members = {
        "_rels/.rels": relations,
        "3D/root.model": model_3mf(part, '<item objectid="1"/>'),
        "3D/other.model": model_3mf(mesh_3mf("1"), ""),
    }
    path = tmp_path / "box.3mf"
    write_zip(path, members)
    check_box(path)


def test_3mf_takes_from_another_part_the_object_that_is_named_each_time_it_is_named(
    tmp_path: Path,
) -> None:
    """Three boxes: the first object twice, ten apart, and the second, which is doubled, once."""
    items = (
        '<item p:path="/3D/other.model" objectid="1"/>'
        '<item p:path="/3D/other.model" objectid="1" transform="1 0 0 0 1 0 0 0 1 10 0 0"/>'
        '<item p:path="/3D/other.model" objectid="2"/>'
    )
    double = f'<object id="2"><components><component objectid="3" transform="{DOUBLE}"/></components></object>'
    other = model_3mf(mesh_3mf("1") + double + mesh_3mf("3"), "")
    path = tmp_path / "boxes.3mf"
    write_zip(path, {"3D/3dmodel.model": model_3mf("", items), "3D/other.model": other})
    assert surface_area(read_surface(path)) == pytest.approx(22 * (1 + 1 + 4))
    assert bounds(path) == [[0, 0, 0], [12, 14, 16]]


@pytest.mark.parametrize("names", [("", ""), ("world", "world"), ("body", "body(1)")])
def test_3mf_instances_and_objects_that_share_a_name(
    names: tuple[str, str], tmp_path: Path
) -> None:
    """Two items of one part number, and one of an object with the other's name: all three are there."""
    first, second = (
        mesh_3mf(number).replace("<object", f'<object name="{name}"')
        for number, name in zip("12", names, strict=True)
    )
    items = "".join(
        f'<item objectid="{number}" partnumber="7" transform="1 0 0 0 1 0 0 0 1 {place} 0 0"/>'
        for number, place in [("1", 0), ("1", 10), ("2", 20)]
    )
    path = tmp_path / "boxes.3mf"
    write_zip(path, {"3D/3dmodel.model": model_3mf(first + second, items)})
    assert surface_area(read_surface(path)) == pytest.approx(66)
    assert bounds(path) == [[0, 0, 0], [21, 2, 3]]


ITEM = '<item objectid="1"/>'
LOOP = '<object id="1"><components><component objectid="1"/></components></object>'
BOTH = mesh_3mf("1").replace(
    "</mesh>", '</mesh><components><component objectid="2"/></components>'
) + mesh_3mf("2")


@pytest.mark.parametrize(
    ("objects", "items", "message"),
    [
        (LOOP, ITEM, "model#1' contains itself"),
        (mesh_3mf("1"), '<item objectid="9"/>', "model#9' is not in the file"),
        (
            mesh_3mf("1"),
            '<item p:path="/gone.model" objectid="1"/>',
            "the archive has no 'gone.model'",
        ),
        (mesh_3mf("1") * 2, ITEM, "two objects of the model have one id"),
        (mesh_3mf("1"), "", "it has no build items"),
        # trimesh leaves out the mesh of an object that has components too.
        (BOTH, ITEM, "24 triangles are stored, 12 were read"),
        (mesh_3mf("1").replace('v1="0"', 'v1="0.5"'), ITEM, "not a readable 3MF file .ValueError"),
        (mesh_3mf("1").replace('x="1.0"', 'x="one"'), ITEM, "not a readable 3MF file .ValueError"),
        (mesh_3mf("1").replace('x="1.0"', 'w="1.0"'), ITEM, "'x' is missing"),
        (mesh_3mf("1").replace('v1="0"', 'v1="8"', 1), ITEM, "1 of 12 faces cannot be used"),
        (mesh_3mf("1").replace('x="1.0"', 'x="nan"', 1), ITEM, "infinite vertices: 1 of 8"),
        (mesh_3mf("1"), ITEM * 6000, "instances, at most 5,000 are accepted"),
        (mesh_3mf("1"), '<item objectid="1" transform="1 2"/>', "cannot reshape array of size 2"),
    ],
)
def test_a_damaged_3mf_file_says_what_is_wrong(
    objects: str, items: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.3mf"
    write_zip(path, {"3D/3dmodel.model": model_3mf(objects, items)})
    with pytest.raises(DataError, match=message):
        read_mesh(path)
    assert capfd.readouterr() == ("", "")


def test_3mf_components_that_double_sixty_times_are_counted_not_placed(tmp_path: Path) -> None:
    twice = mesh_3mf("0") + "".join(
        f'<object id="{k + 1}"><components>'
        + f'<component objectid="{k}"/>' * 2
        + "</components></object>"
        for k in range(60)
    )
    path = tmp_path / "twice.3mf"
    write_zip(path, {"3D/3dmodel.model": model_3mf(twice, '<item objectid="60"/>')})
    with pytest.raises(DataError, match="2,305,843,009,213,693,951 instances, at most"):
        read_mesh(path)


MODEL = model_3mf(mesh_3mf("1"), ITEM)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (f"<!DOCTYPE model>{MODEL}", "declares a document type"),
        (f'<!DOCTYPE m [<!ENTITY a "b">]>{MODEL}', "declares a document type"),
        (f'<?xml version="1.0" encoding="UTF-7"?>+ADw-!DOCTYPE m+AD4-{MODEL}', "expected XML"),
        (f"{MODEL}<!--{' ' * 3_000_000}-->", "at most 200 times as many are accepted"),
        (MODEL[:-1], "expected XML"),
    ],
    ids=["doctype", "entity", "hidden", "dense", "cut"],
)
def test_a_document_of_an_archive_that_is_not_opened(
    document: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.3mf"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("3D/3dmodel.model", document)
    with pytest.raises(DataError, match=message):
        read_mesh(path)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (MeshLimits(document_bytes=2 * len(MODEL) - 1), "bytes of XML, at most"),
        (MeshLimits(document_values=150), "tags and attributes, at most 150 are accepted"),
        (MeshLimits(faces=11), "24 triangles, at most 11"),
        (MeshLimits(vertices=7), "16 vertices, at most 7"),
        (MeshLimits(file_bytes=100), "bytes, at most 100"),
    ],
)
def test_limits_hold_for_all_documents_of_an_archive(
    limits: MeshLimits, message: str, tmp_path: Path
) -> None:
    """Two parts of the model, the one as long as the other, with some 100 tags and attributes each."""
    items = ITEM + '<item p:path="other.model" objectid="1"/>'
    path = tmp_path / "box.3mf"
    write_zip(path, {"3D/3dmodel.model": MODEL.replace(ITEM, items), "other.model": MODEL})
    with pytest.raises(DataError, match=message):
        read_mesh(path, limits=limits)
