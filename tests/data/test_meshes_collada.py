"""COLLADA scenes: groups of every kind, transforms, instances, skins, and what pycollada would change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.meshes import read_mesh, surface_area
from pointdistill.errors import DataError
from tests.data.meshes.box import BOX, QUADS, TRIANGLES, check_box, read_surface

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
    quads = group("polylist", [every_corner], "<vcount>4 4 4 4 4 4</vcount>")
    camera = '<node><lookat>5 0 0 0 0 0 0 0 1</lookat><instance_camera url="#gone"/></node>'
    material = '<bind_material><instance_material symbol="m" target="#gone"/></bind_material>'
    return {
        "triangles": collada(ONE_GROUP, HERE),
        "polylist": collada(quads, HERE),
        "polygons": collada(group("polygons", QUADS), HERE),
        "fans": collada(group("trifans", QUADS), HERE),
        "strips": collada(group("tristrips", zigzag), HERE),
        "two_groups": collada(group("polygons", QUADS[:2]) + group("trifans", QUADS[2:]), HERE),
        "an_empty_group": collada(f'<triangles count="0">{INPUTS}</triangles>' + ONE_GROUP, HERE),
        "lines_beside": collada("<lines><p>no numbers</p></lines>" + ONE_GROUP, HERE),
        "nested": collada(ONE_GROUP, nested),
        "no_turn": collada(ONE_GROUP, HERE.replace("<node>", "<node><rotate>0 0 0 90</rotate>")),
        "instanced_node": collada(
            ONE_GROUP, '<node><instance_node url="#n1"/></node>', more=library
        ),
        "instanced_before": collada(
            ONE_GROUP, '<node><instance_node url="#n"/></node><node id="n"/>' + HERE
        ),
        "camera_and_material": collada(
            ONE_GROUP, camera + HERE.replace("/></node>", f">{material}</instance_geometry></node>")
        ),
        "comments": collada(ONE_GROUP, HERE.replace("<node>", "<node><!-- here -->")).replace(
            " 1.0 2.0 3.0<", " 1.0 2.0 <!-- the last -->3.0<"
        ),
    }


@pytest.mark.parametrize("form", collada_forms())
def test_collada(form: str, tmp_path: Path) -> None:
    path = tmp_path / "box.dae"
    path.write_text(collada_forms()[form])
    check_box(path, within=1e-6)


def test_a_concave_polygon_is_covered_once(tmp_path: Path) -> None:
    """The corners 0 0, 2 2, 0 4 and 1 2 enclose an area of 2; a fan from the first would cover 4."""
    arrow = collada(group("polygons", [[0, 1, 2, 3]]), HERE)
    numbers = " ".join(map(str, BOX.ravel()))
    path = tmp_path / "arrow.dae"
    path.write_text(arrow.replace(numbers, "0 0 0 2 2 0 0 4 0 1 2 0" + " 0" * 12))
    assert surface_area(read_surface(path)) == pytest.approx(2)


def controlled(inner: str, *, node: str = "<scale>9 9 9</scale>") -> str:
    controllers = f"<library_controllers>{inner}</library_controllers>"
    there = f'<node>{node}<instance_controller url="#c"/></node>'
    return collada(ONE_GROUP, there, more=controllers)


DOUBLED = "<bind_shape_matrix>2 0 0 0  0 2 0 0  0 0 2 0  0 0 0 1</bind_shape_matrix>"
MORPH = '<controller id="m"><morph source="#g"/></controller>'


@pytest.mark.parametrize(
    ("controllers", "sides"),
    [
        # The node's own scale of 9 moves the skeleton's owner, not the skin.
        (f'<controller id="c"><skin source="#g">{DOUBLED}</skin></controller>', [2, 4, 6]),
        ('<controller id="c"><skin source="#g"/></controller>', [1, 2, 3]),
        (f'<controller id="c"><skin source="#m">{DOUBLED}</skin></controller>{MORPH}', [2, 4, 6]),
        # A morph has no joints: its node places it.
        (MORPH.replace('"m"', '"c"'), [9, 18, 27]),
    ],
    ids=["skin", "skin_without_matrix", "skin_over_morph", "morph"],
)
def test_a_controlled_shape_stands_at_rest(
    controllers: str, sides: list[int], tmp_path: Path
) -> None:
    path = tmp_path / "skin.dae"
    path.write_text(controlled(controllers))
    assert np.ptp(read_surface(path).vertices, axis=0).tolist() == sides


@pytest.mark.parametrize(
    ("faces", "node", "message"),
    [
        (group("polylist", [[0, 1, 3]], "<vcount>4</vcount>"), HERE, "4 corners of <polylist> are"),
        (f"<triangles>{INPUTS}<p>0 1 0</p></triangles>", HERE, "cannot reshape array of size 3"),
        (f"<triangles>{INPUTS}<p>0 1 0 x</p></triangles>", HERE, "Corrupted index in triangleset"),
        (
            ONE_GROUP.replace("<triangles>", '<triangles count="13">'),
            HERE,
            "13 items of <triangles>",
        ),
        (group("triangles", [[0, 1, 3], [0, 3, 2]]), HERE, "1 lists of <triangles> are stated, 2"),
        (group("triangles", [[0, 1, 4294967296]]), HERE, "an index that begins with 4294967296"),
        (group("triangles", [[0, 1, -1]]), HERE, "1 of 1 faces cannot be used .index outside"),
        (group("triangles", [[0, 1, 8]]), HERE, "maxindex=8"),
        (ONE_GROUP.replace('offset="1"', 'offset="-1"'), HERE, "an index at place -1 of a corner"),
        (f"<polygons>{INPUTS}<ph><p>0 1</p></ph></polygons>", HERE, "polygons with holes"),
        ("<trimesh/>", HERE, "Unknown geometry tag"),
        (ONE_GROUP, HERE.replace("#g", "#x"), "Geometry #x not found"),
        (ONE_GROUP, HERE.replace("#g", "other.dae#g"), "Invalid url in geometry instance"),
        (ONE_GROUP, '<node id="n"><instance_node url="#n"/></node>', "'#n' contains itself"),
        (ONE_GROUP, HERE.replace("<node>", "<node><scale>1 2</scale>"), "requires three float"),
        (
            ONE_GROUP,
            HERE.replace("<node>", "<node><translate>inf 0 0</translate>"),
            "12 of 12 faces cannot be used .NaN or infinite corner",
        ),
        (ONE_GROUP, HERE.replace("<node>", "<node><skew>1</skew>"), "Unknown scene node"),
        (
            ONE_GROUP,
            HERE.replace("<node>", "<node><lookat>5 0 0 0 0 0 0 0 1</lookat>"),
            "a shape is placed by <lookat>",
        ),
        (ONE_GROUP, "<node/>", "0 vertices, 0 faces and 0 points"),
    ],
)
def test_a_damaged_collada_file_says_what_is_wrong(
    faces: str, node: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.dae"
    path.write_text(collada(faces, node))
    with pytest.raises(DataError, match=message):
        read_mesh(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ('stride="3"', 'stride="4"', "positions lie among other numbers"),
        ('stride="3"', 'stride="3" offset="3"', "positions lie among other numbers"),
        ('name="X"/><param name="Y"', 'name="Y"/><param name="X"', "or not as x, y, z"),
        ('count="8"', 'count="9"', "9 points of a source are stated, 8 were read"),
        (" 1.0 2.0 3.0<", " 1.0 2.0<", "isn't reshapable"),
        (" 1.0 2.0 3.0<", " 1.0 2.0 ?<", "Corrupted float array|not a readable DAE file"),
        (" 1.0 2.0 3.0<", " 1.0 2.0 NaN<", "NaN or infinite vertices: 1 of 8"),
    ],
)
def test_damaged_positions_are_not_repaired_silently(
    good: str, bad: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.dae"
    text = collada(ONE_GROUP, HERE)
    assert good in text
    path.write_text(text.replace(good, bad))
    with pytest.raises(DataError, match=message):
        read_mesh(path)


def test_repair_drops_the_faces_of_a_collada_vertex_that_is_nan(tmp_path: Path) -> None:
    """The last corner touches three sides: four or five of the twelve triangles, by their diagonals."""
    path = tmp_path / "nan.dae"
    path.write_text(collada(ONE_GROUP, HERE).replace(" 1.0 2.0 3.0<", " 1.0 2.0 nan<"))
    surface = read_mesh(path, repair=True)
    assert surface.dropped_faces == sum(7 in triangle for triangle in TRIANGLES)


def test_a_chain_and_a_doubling_of_collada_nodes_end_soon(tmp_path: Path) -> None:
    """Each node instantiates the next: far down, or twice, which would make 2 ** 60 of the last."""
    chain = "".join(f'<node id="n{k}"><instance_node url="#n{k + 1}"/></node>' for k in range(3000))
    chain += f'<node id="n3000">{HERE}</node>'
    path = tmp_path / "chain.dae"
    start = '<node><instance_node url="#n0"/></node>'
    path.write_text(collada(ONE_GROUP, start, more=f"<library_nodes>{chain}</library_nodes>"))
    check_box(path)
    twice = "".join(
        f'<node id="n{k}">' + f'<instance_node url="#n{k + 1}"/>' * 2 + "</node>" for k in range(60)
    )
    twice += f'<node id="n60">{HERE}</node>'
    path.write_text(collada(ONE_GROUP, start, more=f"<library_nodes>{twice}</library_nodes>"))
    with pytest.raises(DataError, match="100,001 nodes, at most 100,000 are accepted"):
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
