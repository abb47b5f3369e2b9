"""What cannot be read: one line with the file, the cause and the count; repair only where it is requested."""

from __future__ import annotations

from pathlib import Path

import pytest

from pointdistill.data.meshes import MeshLimits, Surface, read_mesh, surface_area
from pointdistill.errors import DataError
from tests.data.meshes.box import BOX, QUADS

BOX_OBJ = "".join(f"v {x} {y} {z}\n" for x, y, z in BOX) + "".join(
    "f " + " ".join(str(corner + 1) for corner in quad) + "\n" for quad in QUADS
)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.obj", "v 0 0 0\nv 1 0\nf 1 2 1\n", "expected at least 3 numbers a row, got '1 0'"),
        ("a.obj", "v 0 0 zero\nf 1 1 1\n", "expected numbers, got '0 0 zero'"),
        ("a.obj", "v 0 0 0\nf 1 2.5 1\n", "expected whole numbers, got '1 2.5 1'"),
        ("a.obj", "v 0 0 0\n" * 40, "all 40 points are at one place"),
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 0 1 2\n", "1 of 1 faces cannot be used"),
        ("a.obj", "v 0 0 0\nv 1 0 0\nl 1 2\n", "2 vertices and no faces but 1 lines"),
        ("a.obj", "v 0 0 0\nv 1 0 0\np 1 3\n", "not among the 2 vertices"),
        (
            "a.obj",
            "v 0 0 0\nv 1 0 0\nf 1 2\n",
            "no face is left after dropping 1 (fewer than 3 corners: 1)",
        ),
        (
            "a.obj",
            "v 0 0 0\nsurf 0 1 0 1 1 2 3 4\n",
            "free-form geometry (surf), which is not read",
        ),
        (
            "a.obj",
            "v 0 0 1.#INF\nv 1 0 -1.#IND00\nv 0 1 0\nf 1 2 3\n",
            "NaN or infinite vertices: 2 of 3",
        ),
        ("a.stl", "<?xml version='1.0'?><Error>gone</Error>", "is an XML or HTML page (<?xml"),
        ("a.ply", "\n<!DOCTYPE html><html>", "is an XML or HTML page (<!DOCTYPE"),
        (
            "a.stl",
            '{"error": "gone"}',
            "expected text that begins with 'solid', or binary STL, got",
        ),
        (
            "a.stl",
            "solid a\nendsolid a\nsolid b\nfacet normal 0 0 1\n",
            "ends inside a solid, after 0 facets",
        ),
        ("a.off", "ply\n3 1 0\n", "begins with OFF, COFF, NOFF or STOFF, got 'ply'"),
        ("a.off", "OFF BINARY\n3 1 0\n", "expected the counts"),
        ("a.off", "4OFF\n3 1 0\n", "begins with OFF, COFF, NOFF or STOFF, got '4OFF'"),
        (
            "a.off",
            "OFF\n3 1 0\n0 0 0\n1 0 0\n",
            "3 vertices and 1 faces, the file has 2 and 0 lines of them; it is cut short",
        ),
        (
            "a.off",
            "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1\n",
            "promises more indices than it has: '3 0 1'",
        ),
        ("a.off", "OFF\n900 900 0\n0 0 0\n", "bytes cannot hold"),
        ("a.ply", "ply\nformat ascii 1.0\nelement vertex 1\n", "no end_header line"),
        (
            "a.ply",
            "ply\nformat ascii 1.0\nelement vertex x\nend_header\n",
            "'element vertex x' is not PLY",
        ),
        ("a.ply", "ply\nformat binary_middle_endian 1.0\nend_header\n", "is not PLY"),
        ("a.ply", "ply\nformat ascii 1.0\nend_header\n", "no vertex element"),
        (
            "a.ply",
            "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n0\n",
            "the vertices have no y, z",
        ),
        (
            "a.stl",
            "solid\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\n",
            "ends inside a solid, after 0 facets",
        ),
        ("a.gltf", '{"asset": {"version": "1.0"}}', "glTF version '1.0', accepted is 2.x"),
        ("a.gltf", '{"asset": {}}', "not a readable GLTF file ('version' is missing)"),
        ("a.dae", "<COLLADA><asset>", "expected XML"),
        ("a.dae", "<html></html>", "expected a COLLADA document, got <html>"),
        ("a.dae", '<!DOCTYPE x [<!ENTITY a "b">]><COLLADA/>', "declares a document type"),
        ("a.3mf", "PK not a zip", "expected a zip archive"),
        ("a.xyz", "1 2\n3 4\n", "expected rows of x, y and z|expected at least 3 numbers"),
        ("a.xyz", "", "is empty (0 bytes)"),
        ("a.xyz", "# nothing\n", "the file has no points"),
        ("a.pts", "50\n" + "1 2 3\n" * 40, "states 50 points, the file has 40"),
        ("a.xyz", "1 2 3\n" * 40, "all 40 points are at one place"),
        ("a.npy", "junk", "expected a numpy array"),
        ("a.pcd", "junk\n", "expected a PCD header"),
        ("a.fbx", "x", "files ending in '.fbx' are not read, accepted are obj, off"),
        ("plain", "x", "files without an ending are not read"),
    ],
)
def test_what_cannot_be_read_says_why(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_mesh(path)
    assert any(part in str(caught.value) for part in message.split("|"))
    assert str(caught.value).startswith(f"{path}: ")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_mesh(tmp_path / "gone.obj")
    (tmp_path / "folder.obj").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        read_mesh(tmp_path / "folder.obj")


def test_a_name_with_a_line_break_stays_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_mesh(tmp_path / "a\nb.obj")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (MeshLimits(vertices=7), "8 vertices, at most 7 are accepted"),
        (MeshLimits(faces=11), "12 triangles, at most 11 are accepted"),
        (MeshLimits(text_bytes=100), "bytes of text, at most 100 are accepted"),
    ],
)
def test_limits(limits: MeshLimits, message: str, tmp_path: Path) -> None:
    path = tmp_path / "box.obj"
    path.write_text(BOX_OBJ)
    with pytest.raises(DataError, match=message):
        read_mesh(path, limits=limits)


def test_repair_keeps_the_polygons_that_are_whole(tmp_path: Path) -> None:
    """Of six sides, one has an index too many, one a NaN corner's vertex: 3 faces touch it, 3 - 1 are left."""
    text = BOX_OBJ.replace("v 1.0 2.0 3.0", "v nan nan nan").replace("f 1 2 4 3", "f 1 2 4 99")
    path = tmp_path / "box.obj"
    path.write_text(text)
    with pytest.raises(DataError, match="4 of 6 faces cannot be used") as caught:
        read_mesh(path)
    assert "index outside the vertices: 1, NaN or infinite corner: 3" in str(caught.value)
    surface = read_mesh(path, repair=True)
    assert isinstance(surface, Surface)
    assert surface.dropped_faces == 4
    assert surface_area(surface) == pytest.approx(1 * 3 + 1 * 2)  # the sides y = 0 and z = 0
