"""The box in 3MF: components, parts of the model, shared names; and archives that are not opened."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from pointdistill.data.meshes import (
    LeftOutWarning,
    MeshLimits,
    read_mesh,
    sample_files,
    sample_surface,
    surface_area,
)
from pointdistill.data.meshes.records import counted
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


B = "http://schemas.microsoft.com/3dmanufacturing/beamlattice/2017/02"
MATERIAL = "http://schemas.microsoft.com/3dmanufacturing/material/2015/02"
SLICE = "http://schemas.microsoft.com/3dmanufacturing/slice/2015/07"
AWAY = 'transform="1 0 0 0 1 0 0 0 1 50 0 0"'
SECOND = f'<item objectid="2" {AWAY}/>'


def with_root(attributes: str, objects: str, items: str = ITEM) -> str:
    return model_3mf(objects, items).replace("<model ", f"<model {attributes} ", 1)


def typed(name: str, kind: str) -> str:
    return mesh_3mf(name).replace("<object ", f'<object type="{kind}" ')


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (f'xmlns:b="{B}" requiredextensions="b"', "the 3MF extension beamlattice/2017/02, which"),
        (f'xmlns:m="{B}" requiredextensions="p m"', "the 3MF extension beamlattice/2017/02, which"),
        (
            'xmlns:bo="http://schemas.3mf.io/3dmanufacturing/booleanoperations/2023/07" requiredextensions="bo"',
            "the 3MF extension http://schemas.3mf.io/3dmanufacturing/booleanoperations/2023/07",
        ),
        ('requiredextensions="z"', "requires the extension 'z' without naming its namespace"),
    ],
)
def test_3mf_that_requires_an_extension_of_the_shape_is_refused(
    attributes: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "box.3mf"
    write_zip(path, {"3D/3dmodel.model": with_root(attributes, mesh_3mf("1"))})
    with pytest.raises(DataError, match=message):
        read_mesh(path)


@pytest.mark.parametrize(
    "attributes",
    [
        f'xmlns:b="{MATERIAL}" requiredextensions="b p"',
        f'xmlns:s="{SLICE}" requiredextensions="s"',
        'requiredextensions=""',
    ],
)
def test_3mf_that_requires_only_what_leaves_the_shape_alone_is_read(
    attributes: str, tmp_path: Path
) -> None:
    path = tmp_path / "box.3mf"
    write_zip(path, {"3D/3dmodel.model": with_root(attributes, mesh_3mf("1"))})
    check_box(path)


def test_3mf_with_slices_beside_a_coarse_mesh_is_refused(tmp_path: Path) -> None:
    coarse = mesh_3mf("1").replace("<object ", '<object s:meshresolution="lowres" ')
    path = tmp_path / "box.3mf"
    write_zip(path, {"3D/3dmodel.model": with_root(f'xmlns:s="{SLICE}"', coarse)})
    with pytest.raises(DataError, match="keeps its shape as slices beside a coarse mesh"):
        read_mesh(path)


def test_3mf_elements_of_another_namespace_are_no_triangles(tmp_path: Path) -> None:
    """A lattice that is not required is passed over and named; its triangles and items are not the model's."""
    lattice = "<b:beamlattice><b:triangle v1='0' v2='1' v3='2'/><b:component objectid='7'/></b:beamlattice>"
    box = mesh_3mf("1").replace("</mesh>", f"{lattice}</mesh>")
    path = tmp_path / "box.3mf"
    write_zip(path, {"3D/3dmodel.model": with_root(f'xmlns:b="{B}"', box)})
    check_box(path)
    assert read_surface(path).left_out == {"beam lattices": 1}


def test_3mf_finds_other_parts_by_namespace_and_not_by_prefix(tmp_path: Path) -> None:
    """A path of another extension says nothing of where an object is."""
    path = tmp_path / "box.3mf"
    item = '<item objectid="1" x:path="/nowhere.model"/>'
    write_zip(path, {"3D/3dmodel.model": with_root('xmlns:x="urn:x"', mesh_3mf("1"), item)})
    check_box(path)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("other", "1 object of type other"),
        ("support", "1 support object"),
        ("solidsupport", "1 support object"),
    ],
)
def test_3mf_objects_that_are_no_part_of_the_shape_are_left_out_and_named(
    kind: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "box.3mf"
    both = mesh_3mf("1") + typed("2", kind)
    write_zip(path, {"3D/3dmodel.model": model_3mf(both, ITEM + SECOND)})
    check_box(path)
    assert counted(read_surface(path).left_out) == said
    components = f'<component objectid="1"/><component objectid="2" {AWAY}/>'
    # The type of an object of components says nothing.
    whole = f'<object id="3" type="other"><components>{components}</components></object>'
    write_zip(path, {"3D/3dmodel.model": model_3mf(both + whole, '<item objectid="3"/>')})
    check_box(path)
    assert counted(read_surface(path).left_out) == said
    write_zip(path, {"3D/3dmodel.model": model_3mf(both, SECOND)})
    with pytest.raises(DataError, match=f"builds nothing besides {said}; export it with a part"):
        read_mesh(path)


@pytest.mark.parametrize("kind", ["model", "surface"])
def test_3mf_surfaces_are_part_of_the_shape(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "box.3mf"
    write_zip(
        path, {"3D/3dmodel.model": model_3mf(typed("1", kind) + typed("2", kind), ITEM + SECOND)}
    )
    assert surface_area(read_surface(path)) == pytest.approx(44)
    assert read_surface(path).left_out == {}


def test_3mf_items_that_are_not_to_be_printed_are_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "box.3mf"
    items = ITEM.replace("/>", ' printable="1"/>') + SECOND.replace("/>", ' printable="0"/>')
    write_zip(path, {"3D/3dmodel.model": model_3mf(mesh_3mf("1") + mesh_3mf("2"), items)})
    check_box(path)
    assert read_surface(path).left_out == {"items that are not to be printed": 1}


@pytest.mark.parametrize(
    ("subtype", "said"),
    [
        ("negative_part", "1 negative part"),
        ("modifier_part", "1 modifier"),
        ("support_blocker", "1 support blocker"),
        ("support_enforcer", "1 support enforcer"),
    ],
)
def test_3mf_parts_that_bambu_studio_marks_are_left_out_and_named(
    subtype: str, said: str, tmp_path: Path
) -> None:
    component = '<component p:path="/3D/o.model" objectid='
    components = f'{component}"1"/>{component}"2" {AWAY}/>'
    whole = f'<object id="3"><components>{components}</components></object>'
    config = (
        '<config><object id="3"><metadata key="name" value="x"/><part id="1" subtype="normal_part"/>'
        f'<part id="2" subtype="{subtype}"/></object></config>'
    )
    path = tmp_path / "box.3mf"
    members = {
        "3D/3dmodel.model": model_3mf(whole, '<item objectid="3"/>'),
        "3D/o.model": model_3mf(mesh_3mf("1") + mesh_3mf("2"), ""),
        "Metadata/model_settings.config": config,
    }
    write_zip(path, members)
    check_box(path)
    assert counted(read_surface(path).left_out) == said


def prusa(volume: str) -> dict[str, str]:
    """One mesh of the box and of another box 50 away, as PrusaSlicer stores the volumes of an object."""
    vertices = "".join(
        f'<vertex x="{x + away}" y="{y}" z="{z}"/>' for away in (0, 50) for x, y, z in BOX
    )
    triangles = "".join(
        f'<triangle v1="{a + first}" v2="{b + first}" v3="{c + first}"/>'
        for first in (0, 8)
        for a, b, c in TRIANGLES
    )
    mesh = f"<vertices>{vertices}</vertices><triangles>{triangles}</triangles>"
    config = (
        '<config><object id="1"><volume firstid="0" lastid="11"><metadata type="volume" key="volume_type" '
        f'value="ModelPart"/></volume>{volume}</object></config>'
    )
    return {
        "3D/3dmodel.model": model_3mf(f'<object id="1"><mesh>{mesh}</mesh></object>', ITEM),
        "Metadata/Slic3r_PE_model.config": config,
    }


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("volume_type", "NegativeVolume", {"negative parts": 1}),
        ("volume_type", "ParameterModifier", {"modifiers": 1}),
        ("volume_type", "SupportBlocker", {"support blockers": 1}),
        ("modifier", "1", {"modifiers": 1}),
        ("volume_type", "ModelPart", {}),
    ],
)
def test_3mf_volumes_that_prusaslicer_marks_are_left_out_and_named(
    key: str, value: str, said: dict[str, int], tmp_path: Path
) -> None:
    volume = f'<volume firstid="12" lastid="23"><metadata type="volume" key="{key}" value="{value}"/></volume>'
    path = tmp_path / "box.3mf"
    write_zip(path, prusa(volume))
    surface = read_surface(path)
    assert surface_area(surface) == pytest.approx(22 if said else 44)
    assert surface.left_out == said
    assert surface.vertices[surface.faces.ravel()].max() == (3 if said else 51)


def test_3mf_volumes_beyond_the_mesh_are_damage(tmp_path: Path) -> None:
    kind = '<metadata key="volume_type" value="NegativeVolume"/>'
    path = tmp_path / "box.3mf"
    write_zip(path, prusa(f'<volume firstid="12" lastid="24">{kind}</volume>'))
    with pytest.raises(DataError, match="has the triangles 12 to 24 of 24"):
        read_mesh(path)


def test_3mf_objects_that_cura_marks_are_left_out_and_named(tmp_path: Path) -> None:
    mark = '<metadatagroup><metadata name="cura:anti_overhang_mesh">True</metadata></metadatagroup>'
    blocker = mesh_3mf("2").replace("<mesh>", f"{mark}<mesh>")
    path = tmp_path / "box.3mf"
    write_zip(path, {"3D/3dmodel.model": model_3mf(mesh_3mf("1") + blocker, ITEM + SECOND)})
    check_box(path)
    with pytest.warns(LeftOutWarning, match=r"box\.3mf: left out 1 support blocker"):
        sample_surface(path, 40, seed=0)
    report = sample_files([path], points=40, seed=0, output=tmp_path / "box.npy")
    assert report.sampled[0].left_out == {"support blockers": 1}
    assert read_surface(path).left_out == {"support blockers": 1}
