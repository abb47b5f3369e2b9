"""The box in COLLADA, 3MF and 3DXML scenes: transforms, instances, components, strips and fans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.meshes import read_mesh
from pointdistill.data.meshes.formats.collada_transforms import matrix_of
from pointdistill.data.meshes.formats.xml import Element
from pointdistill.errors import DataError
from tests.data.meshes.box import BOX, QUADS, TRIANGLES, check_box, read_surface, write_zip

ALL_TRIANGLES = [corner for triangle in TRIANGLES for corner in triangle]


def collada(faces: str, node: str, *, more: str = "", up: str = "<up_axis>Z_UP</up_axis>") -> str:
    numbers = " ".join(map(str, BOX.ravel()))
    return f"""<?xml version="1.0"?>
<COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1"><asset>{up}</asset>
<library_geometries><geometry id="g"><mesh>
<source id="p"><float_array id="pa" count="24">{numbers}</float_array><technique_common>
<accessor source="#pa" count="8" stride="3"><param name="X"/><param name="Y"/><param name="Z"/></accessor>
</technique_common></source><vertices id="v"><input semantic="POSITION" source="#p"/></vertices>
{faces}</mesh></geometry></library_geometries>{more}
<library_visual_scenes><visual_scene id="s">{node}</visual_scene></library_visual_scenes>
<scene><instance_visual_scene url="#s"/></scene></COLLADA>"""


INPUTS = '<input semantic="NORMAL" source="#n" offset="0"/><input semantic="VERTEX" source="#v" offset="1"/>'
HERE = '<node><instance_geometry url="#g"/></node>'


def group(kind: str, lists: list[list[int]], more: str = "") -> str:
    """A group of faces whose corners have a normal, always 0, before their vertex."""
    numbers = [" ".join(f"0 {corner}" for corner in corners) for corners in lists]
    return f"<{kind}>{INPUTS}{more}{''.join(f'<p>{text}</p>' for text in numbers)}</{kind}>"


ONE_GROUP = group("triangles", [ALL_TRIANGLES])


def collada_forms() -> dict[str, str]:
    moved_and_halved = "0.5 0 0 1  0 0.5 0 1  0 0 0.5 1  0 0 0 1"
    # Turned by 90 degrees about z and back, doubled first of all, halved and moved, moved back.
    nested = (
        "<node><translate>-1 -1 -1</translate><rotate>0 0 1 90</rotate><node><rotate>0 0 2 -90</rotate>"
        f"<matrix>{moved_and_halved}</matrix><node><scale>2 2 2</scale>"
        '<instance_geometry url="#g"/></node></node></node>'
    )
    library = f'<library_nodes><node id="n1">{HERE}</node></library_nodes>'
    every_corner = [corner for quad in QUADS for corner in quad]
    zigzag = [[a, b, d, c] for a, b, c, d in QUADS]
    return {
        "triangles": collada(ONE_GROUP, HERE),
        "polylist": collada(
            group("polylist", [every_corner], "<vcount>4 4 4 4 4 4</vcount>"), HERE
        ),
        "polygons": collada(group("polygons", QUADS), HERE),
        "fans": collada(group("trifans", QUADS), HERE),
        "strips": collada(group("tristrips", zigzag), HERE),
        "two_groups": collada(group("polygons", QUADS[:2]) + group("trifans", QUADS[2:]), HERE),
        "nested": collada(ONE_GROUP, nested),
        "instanced_node": collada(
            ONE_GROUP, '<node><instance_node url="#n1"/></node>', more=library
        ),
    }


@pytest.mark.parametrize("form", collada_forms())
def test_collada(form: str, tmp_path: Path) -> None:
    path = tmp_path / "box.dae"
    path.write_text(collada_forms()[form])
    check_box(path)


def test_a_collada_skin_stands_in_its_bind_pose(tmp_path: Path) -> None:
    """Doubled by the bind matrix; the node's own scale moves the skeleton's owner, not the skin."""
    skin = (
        '<library_controllers><controller id="c"><skin source="#g"><bind_shape_matrix>'
        "2 0 0 0  0 2 0 0  0 0 2 0  0 0 0 1</bind_shape_matrix></skin></controller></library_controllers>"
    )
    node = '<node><scale>9 9 9</scale><instance_controller url="#c"/></node>'
    path = tmp_path / "skin.dae"
    path.write_text(collada(ONE_GROUP, node, more=skin))
    assert np.ptp(read_surface(path).vertices, axis=0).tolist() == [2, 4, 6]


def test_collada_transforms_in_closed_form() -> None:
    """A quarter turn about z takes x to y; a skew by 45 degrees adds as much of y to x; a look-at faces -z."""
    turn = matrix_of(Element("rotate", {}, texts=["0 0 3 90"]))
    assert turn @ (1, 0, 0, 1) == pytest.approx((0, 1, 0, 1))
    skew = matrix_of(Element("skew", {}, texts=["45 0 1 0 1 0 0"]))
    assert skew @ (0, 1, 0, 1) == pytest.approx((1, 1, 0, 1))
    look = matrix_of(Element("lookat", {}, texts=["5 0 0  0 0 0  0 0 1"]))
    assert look @ (0, 0, -5, 1) == pytest.approx((0, 0, 0, 1))
    assert look @ (0, 1, 0, 1) == pytest.approx((5, 0, 1, 1))


@pytest.mark.parametrize(
    ("faces", "node", "message"),
    [
        (group("polylist", [[0, 1, 3]], "<vcount>4</vcount>"), HERE, "states 4 corners and has 3"),
        (f"<triangles>{INPUTS}<p>0 1 0</p></triangles>", HERE, "3 indices, not a multiple of 2"),
        (f"<polygons>{INPUTS}<ph><p>0 1</p></ph></polygons>", HERE, "polygons with holes"),
        (
            ONE_GROUP,
            '<node><instance_geometry url="#x"/></node>',
            "refers to '#x', which is not in the",
        ),
        (ONE_GROUP, '<node id="n"><instance_node url="#n"/></node>', "or contain themselves"),
        (ONE_GROUP, "<node><scale>1 2</scale></node>", "<scale> has 2 numbers, expected 3"),
        (ONE_GROUP, "<node/>", "0 vertices, 0 faces and 0 points"),
    ],
)
def test_a_damaged_collada_file_says_what_is_wrong(
    faces: str, node: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.dae"
    path.write_text(collada(faces, node))
    with pytest.raises(DataError, match=message):
        read_mesh(path)


@pytest.mark.parametrize(
    ("stated", "up"),
    [("<up_axis>X_UP</up_axis>", "x"), ("<up_axis>Y_UP</up_axis>", "y"), ("", "y")],
)
def test_collada_states_its_up_axis_and_means_y_without_it(
    stated: str, up: str, tmp_path: Path
) -> None:
    path = tmp_path / "box.dae"
    path.write_text(collada(ONE_GROUP, HERE, up=stated))
    assert read_mesh(path).declared_up == up


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


def test_3mf_that_contains_itself_is_refused(tmp_path: Path) -> None:
    loop = '<object id="1"><components><component objectid="1"/></components></object>'
    path = tmp_path / "loop.3mf"
    write_zip(path, {"3D/3dmodel.model": model_3mf(loop, '<item objectid="1"/>')})
    with pytest.raises(DataError, match="object '1' contains itself"):
        read_mesh(path)


def structure_3dxml(*, stored: str = "TESSELLATED") -> dict[str, str]:
    """An assembly whose part is a strip, a fan and triangles, with a coarser form that must not count."""
    strips = " ".join(map(str, [0, 1, 2, 3]))  # the side x = 0
    fans = " ".join(map(str, QUADS[1]))
    triangles = " ".join(str(corner) for triangle in TRIANGLES[4:] for corner in triangle)
    positions = ",".join(" ".join(map(str, vertex)) for vertex in BOX - (4, 4, 4))
    face = f'<Faces><Face strips="{strips}" fans="{fans}"/><Face triangles="{triangles}"/></Faces>'
    coarse = '<PolygonalLOD accuracy="1"><Faces><Face triangles="0 3 5"/></Faces></PolygonalLOD>'
    vertices = f"<VertexBuffer><Positions>{positions}</Positions></VertexBuffer>"
    return {
        "Manifest.xml": "<Manifest><Root>root.3dxml</Root></Manifest>",
        "part.3DRep": f"<Representation><Rep><Rep>{coarse}{face}{vertices}</Rep></Rep></Representation>",
        "root.3dxml": f"""<Model_3dxml xmlns="http://www.3ds.com/xsd/3DXML"><ProductStructure root="1">
            <Reference3D id="1" name="a"/><Reference3D id="2" name="b"/>
            <Instance3D id="3" name="c"><IsAggregatedBy>1</IsAggregatedBy><IsInstanceOf>2</IsInstanceOf>
            <RelativeMatrix>1 0 0 0 1 0 0 0 1 4 4 4</RelativeMatrix></Instance3D>
            <ReferenceRep id="4" format="{stored}" associatedFile="urn:3DXML:part.3DRep"/>
            <InstanceRep id="5"><IsAggregatedBy>2</IsAggregatedBy><IsInstanceOf>4</IsInstanceOf></InstanceRep>
            </ProductStructure></Model_3dxml>""",
    }


def test_3dxml_strips_fans_triangles_and_levels_of_detail(tmp_path: Path) -> None:
    path = tmp_path / "box.3dxml"
    write_zip(path, structure_3dxml())
    check_box(path)


def test_3dxml_turns_by_the_columns_of_its_matrix(tmp_path: Path) -> None:
    """x -> y -> z -> x: the box of 1 x 2 x 3 becomes 3 x 1 x 2."""
    members = structure_3dxml()
    members["root.3dxml"] = members["root.3dxml"].replace(
        "1 0 0 0 1 0 0 0 1 4 4 4", "0 1 0 0 0 1 1 0 0 4 4 4"
    )
    path = tmp_path / "box.3dxml"
    write_zip(path, members)
    surface = read_surface(path)
    assert np.ptp(surface.vertices, axis=0).tolist() == [3, 1, 2]


def test_3dxml_with_a_part_in_another_form_is_refused_not_left_out(tmp_path: Path) -> None:
    path = tmp_path / "box.3dxml"
    write_zip(path, structure_3dxml(stored="CGR"))
    with pytest.raises(DataError, match="stored as 'CGR', accepted is TESSELLATED"):
        read_mesh(path)
