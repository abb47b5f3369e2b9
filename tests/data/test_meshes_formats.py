"""The box in every variant of OBJ, OFF, PLY and STL."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.meshes import PointSet, read_mesh
from tests.data.meshes.box import BOX, QUADS, TRIANGLES, check_box, read_surface, rows


def obj_forms() -> dict[str, str]:
    vertices = "".join(f"v {x} {y} {z}\n" for x, y, z in BOX)
    faces = [[corner + 1 for corner in quad] for quad in QUADS]
    plain = vertices + "".join(f"f {a} {b} {c} {d}\n" for a, b, c, d in faces)
    return {
        "quads": plain,
        "windows_lines": plain.replace("\n", "\r\n"),
        "old_mac_lines": plain.replace("\n", "\r"),
        "tabs_and_comments": "# box\n\n" + plain.replace("v ", "v\t").replace("\n", "  \n"),
        "triangles": vertices + "".join(f"f {a + 1} {b + 1} {c + 1}\n" for a, b, c in TRIANGLES),
        "slashes": vertices
        + "".join("f " + " ".join(f"{c}/7/9" for c in quad) + "\n" for quad in faces),
        "normals_only": vertices
        + "".join("f " + " ".join(f"{c}//1" for c in quad) + "\n" for quad in faces),
        "mixed": vertices + "".join(f"f {a}/1 {b} {c}//2 {d}/1/1\n" for a, b, c, d in faces),
        "counted_back": vertices
        + "".join("f " + " ".join(str(c - 9) for c in quad) + "\n" for quad in faces),
        "joined_lines": vertices + "".join(f"f {a} {b} \\\n{c} {d}\n" for a, b, c, d in faces),
        "joined_vertices": plain.replace("v 0.0 ", "v\\\n0.0 \\\r\n"),
        "byte_order_mark": "\ufeff" + plain,
        "comment_with_a_backslash": plain.replace("v 0.0", "# C:\\box\\\nv 0.0"),
        "paths_with_a_backslash": "mtllib C:\\box\\\n"
        + plain.replace("f 1", "usemtl C:\\wood\\\nf 1"),
        "comments_behind": plain.replace("\n", " # 7 8 \\\n"),
        "colours": plain.replace("v 0.0 0.0 0.0\n", "v 0.0 0.0 0.0 0.5 0.5 0.5\n"),
        "faces_first": "".join(f"f {a} {b} {c} {d}\n" for a, b, c, d in faces) + vertices,
        "missing_material": "mtllib gone.mtl\nusemtl gone\n" + plain,
        "groups": plain.replace("f 1", "o empty\ng none\ns off\nl 1 2\np 1\nf 1"),
    }


@pytest.mark.parametrize("form", obj_forms())
def test_obj(form: str, tmp_path: Path) -> None:
    path = tmp_path / "box.OBJ"
    path.write_bytes(obj_forms()[form].encode())
    check_box(path)


def test_obj_counts_back_from_each_face(tmp_path: Path) -> None:
    """Two triangles that both say -3 -2 -1 are two triangles, also past the first block of lines."""
    triangle = "v {0} 0 0\nv {0} 1 0\nv {0} 0 1\nf -3 -2 -1\n"
    count = 140_000  # beyond the 4 MiB that are read at once
    path = tmp_path / "many.obj"
    path.write_text("".join(triangle.format(x) for x in range(count)))
    surface = read_surface(path)
    assert surface.faces.tolist() == np.arange(3 * count).reshape(-1, 3).tolist()


def off_forms() -> dict[str, str]:
    body = rows(BOX) + rows([[4, *quad] for quad in QUADS])
    return {
        "plain": "OFF\n8 6 0\n" + body,
        "glued": "OFF8 6 0\n" + body,
        "one_line": "OFF 8 6 0\n" + body,
        "no_edges": "OFF\n8 6\n" + body,
        "comments": "# box\nOFF # here\n\n8 6 0\n"
        + body.replace("1.0 2.0 3.0\n", "1.0 2.0 3.0 # corner\n\n"),
        "vertex_colours": "COFF\n8 6 0\n"
        + rows([[*vertex, 255, 0, 0, 255] for vertex in BOX])
        + rows([[4, *quad] for quad in QUADS]),
        "face_colours": "OFF\n8 6 0\n"
        + rows(BOX)
        + rows([[4, *quad, 0.5, 0.5, 0.5] for quad in QUADS]),
        "triangles": "OFF\n8 12 0\n" + rows(BOX) + rows([[3, *triangle] for triangle in TRIANGLES]),
    }


@pytest.mark.parametrize("form", off_forms())
def test_off(form: str, tmp_path: Path) -> None:
    path = tmp_path / "box.off"
    path.write_text(off_forms()[form])
    check_box(path)


def test_off_without_faces_is_a_cloud(tmp_path: Path) -> None:
    path = tmp_path / "points.off"
    path.write_text("OFF\n8 0 0\n" + rows(BOX))
    cloud = read_mesh(path)
    assert isinstance(cloud, PointSet)
    assert cloud.points.tolist() == BOX.tolist()


def ply_header(form: str, faces: int, *, before: str = "", after: str = "") -> str:
    return (
        f"ply\nformat {form} 1.0\ncomment box\nelement vertex 8\nproperty float x\nproperty float y\n"
        f"property float z\nproperty uchar red\nelement face {faces}\n{before}"
        f"property list uchar int vertex_indices\n{after}end_header\n"
    )


def ply_binary(order: str, polygons: list[list[int]], *, flag: bytes = b"") -> bytes:
    vertices = b"".join(struct.pack(f"{order}3fB", *vertex, 9) for vertex in BOX)
    faces = b"".join(flag + struct.pack(f"{order}B{len(p)}i", len(p), *p) for p in polygons)
    return vertices + faces


MIXED = [TRIANGLES[0], TRIANGLES[1], *QUADS[1:]]


def ply_forms() -> dict[str, bytes]:
    text = rows([[*vertex, 9] for vertex in BOX])
    flags = "property uchar flag\nproperty float weight\n"
    return {
        "text": (ply_header("ascii", 6) + text + rows([[4, *quad] for quad in QUADS])).encode(),
        "text_flags": (
            ply_header("ascii", 6, before=flags)
            + text
            + rows([[1, 0.5, 4, *quad] for quad in QUADS])
        ).encode(),
        "text_extra": (
            ply_header("ascii", 6, after="property list uchar float texcoord\n")
            + text
            + rows([[4, *quad, 2, 0.5, 0.5] for quad in QUADS])
        ).encode(),
        "little": ply_header("binary_little_endian", 6).encode() + ply_binary("<", QUADS),
        "big": ply_header("binary_big_endian", 6).encode() + ply_binary(">", QUADS),
        "triangles": ply_header("binary_little_endian", 12).encode() + ply_binary("<", TRIANGLES),
        "ragged": ply_header("binary_little_endian", 7).encode() + ply_binary("<", MIXED),
        "ragged_big": ply_header("binary_big_endian", 7).encode() + ply_binary(">", MIXED),
        "ragged_flags": ply_header("binary_little_endian", 7, before=flags).encode()
        + ply_binary("<", MIXED, flag=struct.pack("<Bf", 1, 0.5)),
        "trailing": ply_header("binary_little_endian", 6).encode() + ply_binary("<", QUADS) + b"\n",
    }


@pytest.mark.parametrize("form", ply_forms())
def test_ply(form: str, tmp_path: Path) -> None:
    path = tmp_path / "box.ply"
    path.write_bytes(ply_forms()[form])
    check_box(path)


def stl_binary(head: bytes = b"") -> bytes:
    facets = b"".join(struct.pack("<12fH", 0, 0, 0, *BOX[list(t)].ravel(), 0) for t in TRIANGLES)
    return head.ljust(80, b"\0") + struct.pack("<I", len(TRIANGLES)) + facets


def stl_text(triangles: list[list[int]], name: str) -> str:
    facets = "".join(
        "facet normal 0 0 0\n outer loop\n"
        + "".join("  vertex " + " ".join(map(str, BOX[corner])) + "\n" for corner in triangle)
        + " endloop\nendfacet\n"
        for triangle in triangles
    )
    return f"solid {name}\n{facets}endsolid {name}\n"


def stl_forms() -> dict[str, bytes]:
    return {
        "binary": stl_binary(),
        "binary_that_begins_with_solid": stl_binary(b"solid box"),
        "text": stl_text(TRIANGLES, "box").encode(),
        "text_of_two_solids": (
            stl_text(TRIANGLES[:5], "a") + stl_text(TRIANGLES[5:], "b")
        ).encode(),
        "text_in_capitals": stl_text(TRIANGLES, "box").upper().encode(),
    }


@pytest.mark.parametrize("form", stl_forms())
def test_stl(form: str, tmp_path: Path) -> None:
    path = tmp_path / "box.stl"
    path.write_bytes(stl_forms()[form])
    check_box(path)
