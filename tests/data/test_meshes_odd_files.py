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
