"""Right files that are spelled unusually, and faces without area: read in full, what is left out is counted."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.meshes import (
    PointSet,
    RepairWarning,
    Surface,
    read_mesh,
    sample_surface,
    surface_area,
)
from pointdistill.data.meshes.records import counted
from pointdistill.errors import DataError
from tests.data.meshes.box import BOX, QUADS, TRIANGLES, check_box, read_surface, rows


def stl_binary(count: int, triangles: list[list[int]], attribute: bytes = b"\0\0") -> bytes:
    """Text of 80 characters, the count, and facets that each end with their attribute and its payload."""
    facets = [struct.pack("<12f", 0, 0, 0, *BOX[list(t)].ravel()) + attribute for t in triangles]
    return b" " * 80 + struct.pack("<I", count) + b"".join(facets)


def stl_text() -> str:
    facets = "".join(
        "facet normal 0 0 0\nouter loop\n"
        + "".join(f"vertex {x} {y} {z}\n" for x, y, z in BOX[list(triangle)])
        + "endloop\nendfacet\n"
        for triangle in TRIANGLES
    )
    return f"solid a\n{facets}endsolid a\n"


PAYLOAD = struct.pack("<H12f", 48, *[7e7] * 12)
"""Attributes of 48 bytes: with their size, as many as a facet; read as coordinates they would be far away."""

STL = {
    "payload": stl_binary(12, TRIANGLES, PAYLOAD),
    "two_files": stl_binary(5, TRIANGLES[:5]) + stl_binary(7, TRIANGLES[5:]),
    "an_empty_solid_between": stl_binary(5, TRIANGLES[:5])
    + stl_binary(0, [])
    + stl_binary(7, TRIANGLES[5:]),
    "colours": stl_binary(12, TRIANGLES, b"\x1f\x80"),
    "colours_and_a_line_end": stl_binary(12, TRIANGLES, b"\x1f\x80") + b"\r\n",
    "padding": stl_binary(12, TRIANGLES) + bytes(512),
    "end solid": stl_text().replace("endsolid", "end solid").encode(),
    "all ends apart": stl_text().replace("end", "end ").encode(),
    "END SOLID": stl_text().replace("endsolid", "end solid").upper().encode(),
    "a_remark_at_the_end": (stl_text() + "exported by hand\n\n").encode(),
    "byte_order_mark": b"\xef\xbb\xbf" + stl_text().encode(),
    "utf_16": stl_text().encode("utf-16"),
    "utf_16_big": b"\xfe\xff" + stl_text().encode("utf-16-be"),
}


@pytest.mark.parametrize("form", STL)
def test_stl(form: str, tmp_path: Path) -> None:
    path = tmp_path / "a.stl"
    path.write_bytes(STL[form])
    check_box(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (stl_binary(4, TRIANGLES), "promises 4 triangles, but 400 bytes follow the last"),
        (stl_binary(0, TRIANGLES), "promises 0 triangles, but 600 bytes follow"),
        (stl_binary(13, TRIANGLES), "promises 13 triangles (734 bytes), the file has 684"),
        (
            stl_binary(12, TRIANGLES) + stl_binary(12, TRIANGLES)[:-50],
            "but 634 bytes follow the last",
        ),
        (stl_binary(12, TRIANGLES, PAYLOAD)[:-1], "but 575 bytes follow the last"),
        (stl_binary(0, []), "84 bytes and 0 facets"),
    ],
    ids=["count_small", "count_zero", "count_large", "half_a_second", "payload_cut", "empty"],
)
def test_a_binary_stl_of_another_length_than_promised(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.stl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_mesh(path)
    assert message in str(caught.value)


def obj_text(quads: list[list[int]], *, word: str = "f") -> str:
    faces = [[word, *(corner + 1 for corner in quad)] for quad in quads]
    return rows([["v", *vertex] for vertex in BOX]) + rows(faces)


def test_obj_faces_of_old_files(tmp_path: Path) -> None:
    path = tmp_path / "a.obj"
    path.write_text(obj_text(QUADS[:3]) + obj_text(QUADS[3:], word="fo").split("3.0\n")[-1])
    check_box(path)


def test_obj_comment_right_behind_a_number(tmp_path: Path) -> None:
    path = tmp_path / "a.obj"
    path.write_text(obj_text(QUADS).replace("3.0\n", "3.#here\n").replace("2.0 ", "2. "))
    check_box(path)


def test_an_unused_vertex_may_be_no_number(tmp_path: Path) -> None:
    path = tmp_path / "a.obj"
    path.write_text(obj_text(QUADS) + "v 1.#QNAN -1.#IND 1.#INF00\n")
    check_box(path)


@pytest.mark.parametrize(
    ("statements", "points"),
    [("", BOX), ("p 1 2\np -6 # the third\np 2\n", BOX[:3])],
    ids=["vertices", "points"],
)
def test_obj_without_faces_is_a_cloud(
    statements: str, points: list[list[float]], tmp_path: Path
) -> None:
    path = tmp_path / "a.obj"
    path.write_text(obj_text([]) + statements)
    cloud = read_mesh(path)
    assert isinstance(cloud, PointSet)
    assert cloud.points.tolist() == np.asarray(points).tolist()


def test_an_organised_pcd_leaves_out_missing_returns(tmp_path: Path) -> None:
    """Ten of 50 points are NaN: 40 are left, counted without repair; an infinite one is a fault."""
    values = np.arange(150.0).reshape(50, 3)
    values[::5] = np.nan
    head = "FIELDS X Y Z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 10\nHEIGHT 5\nPOINTS 50\n"
    whole = values[~np.isnan(values[:, 0])]
    for name, data in (
        ("a.pcd", b"DATA ascii\n" + rows(values).encode()),
        ("b.pcd", b"DATA binary\n" + values.astype("<f4").tobytes()),
    ):
        path = tmp_path / name
        path.write_bytes(head.encode() + data)
        cloud = read_mesh(path)
        assert isinstance(cloud, PointSet)
        assert cloud.points.tolist() == whole.tolist()
        assert cloud.dropped_points == 10
        with pytest.warns(RepairWarning, match="dropped 10 points"):
            sample_surface(path, 32, seed=0)
    values[1] = np.inf
    path.write_text(head + "DATA ascii\n" + rows(values))
    with pytest.raises(DataError, match="1 of 40 points are NaN or infinite"):
        read_mesh(path)
    path.write_text(head + "DATA ascii\n" + rows(np.full((50, 3), np.nan)))
    with pytest.raises(DataError, match="all 50 points are NaN, which marks missing returns"):
        read_mesh(path)


def test_faces_without_area_are_left_out_and_counted(tmp_path: Path) -> None:
    """One and two corners; a face that names no vertex stays a reason to refuse the file."""
    head = "ply\nformat ascii 1.0\nelement vertex 8\nproperty float x\nproperty float y\nproperty float z\n"
    faces = [*QUADS, [0, 1], [5]]
    counted = rows([len(face), *face] for face in faces)
    files = {
        "a.obj": obj_text(faces),
        "a.off": "OFF\n8 8 0\n" + rows(BOX) + counted,
        "a.ply": head
        + "element face 8\nproperty list uchar int vertex_indices\nend_header\n"
        + rows(BOX)
        + counted,
    }
    for name, text in files.items():
        path = tmp_path / name
        path.write_text(text)
        check_box(path)
        assert read_surface(path).dropped_faces == 2
        with pytest.warns(RepairWarning, match="dropped 2 faces"):
            sample_surface(path, 32, seed=0)
    path = tmp_path / "a.obj"
    path.write_text(obj_text([*faces, [0, 1, 99]]))
    with pytest.raises(DataError, match="3 of 9 faces cannot be used") as caught:
        read_mesh(path)
    assert "fewer than 3 corners: 2, index outside the vertices: 1" in str(caught.value)
    surface = read_mesh(path, repair=True)
    assert isinstance(surface, Surface)
    assert surface_area(surface) == pytest.approx(22)


def test_off_in_lower_case(tmp_path: Path) -> None:
    """But not nOFF, which has as many coordinates as it says, and differs from NOFF in its case alone."""
    path = tmp_path / "a.off"
    path.write_text("off\n8 6 0\n" + rows(BOX) + rows([4, *quad] for quad in QUADS))
    check_box(path)
    path.write_text("nOFF\n3\n8 6 0\n" + rows(BOX) + rows([4, *quad] for quad in QUADS))
    with pytest.raises(DataError, match="begins with OFF, COFF, NOFF or STOFF, got 'nOFF'"):
        read_mesh(path)


@pytest.mark.parametrize("break_at", [1, 2, 3, 4])
def test_off_faces_over_several_lines(break_at: int, tmp_path: Path) -> None:
    """After any of their numbers, with one face in three still on one line."""
    faces = ""
    for number, quad in enumerate(QUADS):
        row = [4, *quad]
        rest = [row[break_at:]] if number % 2 else [[corner] for corner in row[break_at:]]
        faces += rows([row] if number % 3 == 2 else [row[:break_at], *rest])
    path = tmp_path / "a.off"
    path.write_text("OFF\n8 6 0\n" + rows(BOX) + faces)
    check_box(path)


def test_off_faces_over_several_lines_and_blocks(tmp_path: Path) -> None:
    """A file of 1.4 MB is read in several blocks; each of its faces is the same triangle."""
    path = tmp_path / "a.off"
    count = 100_000
    path.write_text(f"OFF\n8 {count} 0\n" + rows(BOX) + "3 0\n000001\n2\n" * count)
    surface = read_surface(path)
    assert surface.faces.tolist() == [[0, 1, 2]] * count


@pytest.mark.parametrize(
    "faces", ["3 0 1\n2 3 1 2 3\n", "3 0 1\n3 1 2 3\n", "3 0 1 2\n3 1\n2\n"], ids=repr
)
def test_off_faces_that_end_within_a_line_are_refused(faces: str, tmp_path: Path) -> None:
    path = tmp_path / "a.off"
    path.write_text("OFF\n8 2 0\n" + rows(BOX) + faces)
    with pytest.raises(DataError, match="a face promises more indices than it has"):
        read_mesh(path)


HEAD = "ply\nformat {form} 1.0\n{before}element vertex 8\n{vertex}{between}{faces}end_header\n"
XYZ = "property float x\nproperty float y\nproperty float z\n"
INDICES = "property list uchar int vertex_indices\n"
LITTLE, BIG = "binary_little_endian", "binary_big_endian"


def ply_head(
    form: str,
    *,
    before: str = "",
    vertex: str = XYZ,
    between: str = "",
    faces: str = "element face 6\n" + INDICES,
) -> str:
    return HEAD.format(form=form, before=before, vertex=vertex, between=between, faces=faces)


def ply_text(*, vertices: list[list[object]] | None = None, faces: str = "", **head: str) -> bytes:
    body = rows(vertices or BOX) + (faces or rows([4, *quad] for quad in QUADS))
    return (ply_head("ascii", **{k.removeprefix("_"): v for k, v in head.items()}) + body).encode()


def ply_binary(*, order: str = "<", lists: bool = False, ragged: bool = False) -> bytes:
    """Vertices and quads; with ``lists``, each vertex has a list between x and y: 1 item, or 2 if ``ragged``."""
    data = b""
    for number, (x, y, z) in enumerate(BOX):
        items = [7] * (1 + number % 2 * ragged)
        between = struct.pack(f"{order}B{len(items)}i", len(items), *items) if lists else b""
        data += struct.pack(f"{order}f", x) + between + struct.pack(f"{order}2f", y, z)
    return data + b"".join(struct.pack(f"{order}B4i", 4, *quad) for quad in QUADS)


SEEN = "property float x\nproperty list uchar int visible_in\nproperty float y\nproperty float z\n"
NAMES = "comment end_header\nobj_info end_header is below\n"

PLY = {
    "comments": ply_text(_before=NAMES, _between=NAMES),
    "comments_binary": ply_head(LITTLE, before=NAMES, between=NAMES).encode() + ply_binary(),
    "comment_with_a_form_feed": ply_text(_before="comment a\x0cb\n"),
    "lf_cr": ply_head(LITTLE).replace("\n", "\n\r").encode() + ply_binary(),
    "lf_cr_text": ply_text().replace(b"\n", b"\n\r"),
    "cr": ply_head(BIG).replace("\n", "\r").encode() + ply_binary(order=">"),
    "cr_lf": ply_head(BIG).replace("\n", "\r\n").encode() + ply_binary(order=">"),
    "cr_text": ply_text().replace(b"\n", b"\r"),
    "byte_order_mark": b"\xef\xbb\xbf" + ply_text(),
    "axes_in_upper_case": ply_text(
        _vertex=XYZ.replace(" x", " X").replace(" y", " Y").replace(" z", " Z")
    ),
    "vertex_lists": ply_head(LITTLE, vertex=SEEN).encode() + ply_binary(lists=True),
    "vertex_lists_ragged": ply_head(BIG, vertex=SEEN).encode()
    + ply_binary(order=">", lists=True, ragged=True),
    "vertex_lists_text": ply_text(
        vertices=[[x, 1 + (x > 0), *[7] * (1 + int(x > 0)), y, z] for x, y, z in BOX], _vertex=SEEN
    ),
    "vertex_lists_behind_text": ply_text(
        vertices=[[*vertex, 2, 7, 7] for vertex in BOX],
        _vertex=XYZ + "property list uchar int seen\n",
    ),
    "list_before_the_indices": ply_text(
        faces=rows([[n % 3, *[0.5] * (n % 3), 9, 4, *quad] for n, quad in enumerate(QUADS)]),
        _faces="element face 6\nproperty list uchar float uv\nproperty uchar flag\n" + INDICES,
    ),
    "triangles": ply_text(
        faces=rows([3, *t] for t in TRIANGLES), _faces="element triangles 12\n" + INDICES
    ),
    "polygons": ply_head(LITTLE, faces="element polygon 6\n" + INDICES).encode() + ply_binary(),
    "strips_and_faces": ply_text(
        faces="4 4 5 6 7\n" + rows([4, *quad] for n, quad in enumerate(QUADS) if n != 1),
        _faces="element tristrips 1\n" + INDICES + "element face 5\n" + INDICES,
    ),
    "strips_with_restarts": ply_text(
        faces=(
            "18 0 1 2 3 -1 4 5 6 7 -1 0 1 4 5 -1 -1 2 3\n7 6 7 -1 0 2 4 6\n4 2 3 6 7\n4 1 3 5 7\n"
        ),
        _faces="element tristrips 4\n" + INDICES,
    ),
}


@pytest.mark.parametrize("form", PLY)
def test_ply(form: str, tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    path.write_bytes(PLY[form])
    check_box(path)


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\n\r"], ids=repr)
@pytest.mark.parametrize("first", [b"\n", b"\r", b"\r\n", b"\n\r"], ids=repr)
def test_ply_data_may_begin_with_line_ends(end: str, first: bytes, tmp_path: Path) -> None:
    """The ends of the header's other lines tell how long that of its last is."""
    data = first.ljust(4, b"\0") + BOX.astype("<f4").tobytes()[4:]
    path = tmp_path / "a.ply"
    path.write_bytes(ply_head(LITTLE, faces="").replace("\n", end).encode() + data)
    cloud = read_mesh(path)
    assert isinstance(cloud, PointSet)
    assert cloud.points[0, 0] == np.frombuffer(first.ljust(4, b"\0"), "<f4")[0]
    assert (cloud.points.ravel()[1:] == BOX.ravel()[1:]).all()


def test_strips_turn_every_second_triangle(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    path.write_bytes(
        ply_text(faces="6 0 1 2 3 -1 7\n3 4 5 6\n", _faces="element tristrips 2\n" + INDICES)
    )
    assert read_surface(path).faces.tolist() == [[0, 1, 2], [2, 1, 3], [4, 5, 6]]


def test_a_ply_whose_surface_is_not_found_is_no_cloud(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    for element in ("facets 6\n" + INDICES, "triangles 6\n" + INDICES.replace("vertex_", "")):
        path.write_bytes(ply_text(_faces="element " + element))
        with pytest.raises(DataError, match=r"the surface may be in (facets|triangles)"):
            read_mesh(path)
    path.write_bytes(ply_text(faces="1 0\n0\n", _faces="element range_grid 2\n" + INDICES))
    assert isinstance(read_mesh(path), PointSet)


OFF_BOX = rows(BOX) + rows([4, *quad] for quad in QUADS)
PCD = (
    "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH {0}\nHEIGHT 1\nPOINTS {0}\nDATA {1}\n"
)
TWICE = ply_head(LITTLE, faces="").replace("end_header", f"element vertex 8\n{XYZ}end_header")
LONGER = {
    "faces.ply": ply_text(faces=rows([4, *quad] for quad in (*QUADS, QUADS[0]))),
    "twice.ply": ply_text() * 2,
    "bytes.ply": ply_head(LITTLE).encode() + ply_binary() * 2,
    "points.ply": ply_head(LITTLE, faces="").encode() + BOX.astype("<f4").tobytes() * 2,
    "faces.off": f"OFF\n8 4 0\n{OFF_BOX}".encode(),
    "points.off": f"OFF\n4 0 0\n{rows(BOX)}".encode(),
    "twice.off": f"OFF\n8 6 0\n{OFF_BOX}".encode() * 2,
    "text.pcd": (PCD.format(4, "ascii") + rows(BOX)).encode(),
    "bytes.pcd": PCD.format(4, "binary").encode() + BOX.astype("<f4").tobytes(),
}


@pytest.mark.parametrize("name", LONGER)
def test_what_follows_a_count_that_is_too_small_is_not_lost(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(LONGER[name])
    with pytest.raises(DataError, match=r"promises .*, but more follows the last; the count is"):
        read_mesh(path)


def test_a_cloud_with_one_point_too_few_counted_is_read_and_this_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    head = ply_head("ascii", faces="element face 0\n" + INDICES)
    path.write_text(head + rows(BOX) + "1 2 3\n")
    cloud = read_mesh(path)
    assert isinstance(cloud, PointSet)
    assert len(cloud.points) == 8
    kind = "rows of vertices after the last that the header counts"
    assert cloud.left_out == {kind: 1}
    assert counted(cloud.left_out) == "1 row of vertices after the last that the header counts"
    path.write_text(head + rows(BOX) + "1 2 3\n" * 2)
    with pytest.raises(DataError, match="but more follows the last"):
        read_mesh(path)


def test_properties_that_are_not_read_may_have_one_name(tmp_path: Path) -> None:
    """Some programs write a quality of their own and one of the user's."""
    path = tmp_path / "a.ply"
    vertex = XYZ + 2 * "property float quality\n"
    path.write_bytes(ply_text(vertices=[[*row, 5, 6] for row in BOX.tolist()], _vertex=vertex))
    check_box(path)


def test_a_remark_or_padding_after_the_last_row_is_no_more(tmp_path: Path) -> None:
    points = ply_head(LITTLE, faces="element face 0\n").encode() + BOX.astype("<f4").tobytes()
    (tmp_path / "points.ply").write_bytes(points + b"\r\n")
    assert isinstance(read_mesh(tmp_path / "points.ply"), PointSet)
    for name, content in {
        "remark.ply": ply_text() + b"\n\nthe end\n",
        "padding.ply": ply_head(LITTLE).encode() + ply_binary() + bytes(512),
        "remark.off": f"OFF\n8 6 0\n{OFF_BOX}\n# 1 2 3\nthe end\n".encode(),
    }.items():
        (tmp_path / name).write_bytes(content)
        check_box(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.ply", TWICE.encode() + BOX.astype("<f4").tobytes() * 2, "2 elements have the name 'vertex'"),
        ("a.ply", ply_text(_vertex=XYZ + "property float x\n"), "2 properties of 'vertex' have the name 'x'"),
        ("a.ply", ply_text(vertices=[[7, *row] for row in BOX.tolist()]), "a row of 'vertex' is '7 0.0 0.0 0.0'"),
        ("a.pcd", PCD.replace("x y", "x x").format(8, "ascii").encode() + rows(BOX).encode(), "no y"),
        (
            "a.pcd",
            b"FIELDS x y z x\nSIZE 4 4 4 4\nTYPE F F F F\nPOINTS 8\nDATA ascii\n"
            + rows([*row, 5] for row in BOX).encode(),
            "several x among x, y, z, x",
        ),
        ("a.obj", rows(["v", *row] for row in BOX).encode() + b"f 1 2 3\ncall b.obj\n", "in another file"),
    ],
)  # fmt: skip
def test_no_column_is_chosen_among_two_and_nothing_elsewhere_is_passed_over(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_mesh(tmp_path / name)


def test_faces_in_a_further_element_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    faces = rows([4, *quad] for quad in QUADS) + "3 0 1 2\n"
    path.write_bytes(
        ply_text(faces=faces, _faces=f"element face 6\n{INDICES}element patch 1\n{INDICES}")
    )
    assert dict(read_surface(path).left_out) == {"elements of faces that are not read": 1}
