"""The box in 3DXML: instances, bodies, strips and fans, levels of detail, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.meshes import read_mesh, surface_area
from pointdistill.errors import DataError
from tests.data.meshes.box import (
    BOX,
    QUADS,
    TRIANGLES,
    bounds,
    check_box,
    read_surface,
    write_zip,
)


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


BODY = (
    f"<Rep><VertexBuffer><Positions>{' '.join(map(str, BOX.ravel()))}</Positions></VertexBuffer><Faces>"
    f'<Face triangles="{" ".join(str(corner) for triangle in TRIANGLES for corner in triangle)}"/>'
    "</Faces></Rep>"
)


def assembly_3dxml(
    *bodies: str, names: str = "ab", parts: tuple[int, ...] = (0, 1)
) -> dict[str, str]:
    """A root that holds two parts, ten apart; body k is a shape of part ``parts[k]``."""
    places = "".join(
        f'<Reference3D id="p{k}" name="{names[k]}"/><Instance3D id="i{k}"><IsAggregatedBy>r</IsAggregatedBy>'
        f"<IsInstanceOf>urn:3DXML:Reference:loc#p{k}</IsInstanceOf><RelativeMatrix>1 0 0 0 1 0 0 0 1 "
        f"{10 * k} 0 0</RelativeMatrix></Instance3D>"
        for k in range(2)
    )
    shapes = "".join(
        f'<ReferenceRep id="s{k}" format="TESSELLATED" associatedFile="urn:3DXML:{k}.3DRep"/>'
        f'<InstanceRep id="h{k}"><IsAggregatedBy>p{part}</IsAggregatedBy><IsInstanceOf>s{k}</IsInstanceOf>'
        "</InstanceRep>"
        for k, part in enumerate(parts)
    )
    return {
        "Manifest.xml": "<Manifest><Root>root.3dxml</Root></Manifest>",
        "root.3dxml": '<Model_3dxml><ProductStructure root="r"><Reference3D id="r" name="root"/>'
        f"{places}{shapes}</ProductStructure><DefaultView>of no use</DefaultView></Model_3dxml>",
        **{f"{k}.3DRep": f"<X>{body}</X>" for k, body in enumerate(bodies)},
    }


@pytest.mark.parametrize("names", ["ab", "aa"])
@pytest.mark.parametrize(("parts", "far"), [((0, 1), 12), ((1, 1), 12), ((0, 0), 2)])
def test_3dxml_has_all_bodies_whatever_they_are_called(
    names: str, parts: tuple[int, ...], far: int, tmp_path: Path
) -> None:
    """A box and one of twice its size: in two parts, or both in one of them."""
    double = BODY.replace(" ".join(map(str, BOX.ravel())), " ".join(map(str, 2 * BOX.ravel())))
    path = tmp_path / "boxes.3dxml"
    write_zip(path, assembly_3dxml(BODY, double, names=names, parts=parts))
    assert surface_area(read_surface(path)) == pytest.approx(22 * (1 + 4))
    assert bounds(path) == [[10 if parts == (1, 1) else 0, 0, 0], [far, 4, 6]]


def test_3dxml_bodies_of_one_shape_and_a_shape_without_faces(tmp_path: Path) -> None:
    """Two bodies in a document, with strips too short for a triangle, beside a part that is a curve."""
    second = BODY.replace("<Face ", '<Face strips="0 1,2" fans="" ')
    bodies = f"<Rep>{BODY}{second}</Rep>"
    path = tmp_path / "boxes.3dxml"
    write_zip(path, assembly_3dxml(bodies, "<Rep><Edges/></Rep>"))
    surface = read_surface(path)
    assert (len(surface.faces), surface_area(surface)) == (24, pytest.approx(44))


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        # Without a check the index would reach into the other body of the shape.
        ('triangles="0', 'triangles="8', "an index outside the 8 vertices of its body"),
        ('triangles="0', 'triangles="-1', "an index outside the 8 vertices of its body"),
        ('triangles="0', 'triangles="0.5', "invalid literal for int"),
        ('triangles="0', 'triangles="0 0', "cannot reshape array of size 37"),
        ("<Positions>0.0", "<Positions>zero", "not a readable 3DXML file"),
        ("<Positions>0.0", "<Positions>", "an index outside the 7 vertices of its body"),
        ("<Positions>0.0", "<Positions>7 0.0", "cannot reshape array of size 25"),
        ("<Positions>0.0", "<Positions>nan", "1 of 16"),
        # trimesh gives these faces to both bodies.
        ("</Rep>", f"{BODY}</Rep>", "24 triangles are stored, 36 were read"),
    ],
)
def test_a_damaged_3dxml_file_says_what_is_wrong(
    good: str, bad: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert good in BODY
    path = tmp_path / "bad.3dxml"
    twice = BODY + BODY if "Rep" not in good else ""
    write_zip(path, assembly_3dxml(BODY.replace(good, bad) + twice[len(BODY) :], parts=(0,)))
    with pytest.raises(DataError, match=message):
        read_mesh(path)
    assert capfd.readouterr() == ("", "")


def test_3dxml_with_a_part_in_another_form_is_refused_not_left_out(tmp_path: Path) -> None:
    path = tmp_path / "box.3dxml"
    write_zip(path, structure_3dxml(stored="CGR"))
    with pytest.raises(DataError, match="stored as 'CGR', accepted is TESSELLATED"):
        read_mesh(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<IsInstanceOf>2", "<IsInstanceOf>9", "object '9' is not in the file"),
        ("<IsInstanceOf>2", "<IsInstanceOf>1", "object '1' contains itself"),
        ('root="1"', 'root="7"', "object '7' is not in the file"),
        ("<IsAggregatedBy>1</IsAggregatedBy>", "", "instance '3' has no IsAggregatedBy"),
        ("1 0 0 0 1 0 0 0 1 4 4 4", "1 0 0", "cannot reshape array of size 3"),
        ("part.3DRep", "gone.3DRep", "the archive has no 'gone.3DRep'"),
        ("part.3DRep", "picture.jpg", "expected XML"),
        ("ProductStructure", "Structure", "has no product structure"),
    ],
)
def test_a_damaged_3dxml_assembly_says_what_is_wrong(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    members = structure_3dxml()
    members["root.3dxml"] = members["root.3dxml"].replace(old, new)
    path = tmp_path / "bad.3dxml"
    write_zip(path, {**members, "picture.jpg": "\xff\xd8"})
    with pytest.raises(DataError, match=message):
        read_mesh(path)
