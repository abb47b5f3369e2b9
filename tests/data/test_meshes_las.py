"""LAS clouds written byte by byte: what is read, what is refused, and arrays that claim more than they hold."""

from __future__ import annotations

import io
import math
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.meshes import PointSet, read_mesh
from pointdistill.errors import DataError

COUNTS = np.arange(120).reshape(40, 3).astype("<i4")


def las(*, minor: int = 2, form: int = 0, record: int = 20, points: int = 40) -> bytes:
    """A header as the specification lays it out, and 40 points; scale 0.5, 0.25, 2, moved by 10, 20, 30."""
    header = bytearray(375 if minor >= 4 else 227)
    header[:4] = b"LASF"
    header[24:26] = bytes((1, minor))
    struct.pack_into(
        "<HIIBHI",
        header,
        94,
        len(header),
        len(header),
        0,
        form,
        record,
        0 if minor >= 4 else points,
    )
    struct.pack_into("<6d", header, 131, 0.5, 0.25, 2.0, 10.0, 20.0, 30.0)
    if minor >= 4:
        struct.pack_into("<Q", header, 247, points)
    return bytes(header) + b"".join(row.tobytes() + b"\7" * (record - 12) for row in COUNTS)


def changed(at: int, content: bytes) -> bytes:
    """A file with other bytes at one place of its header."""
    whole = las()
    return whole[:at] + content + whole[at + len(content) :]


@pytest.mark.parametrize(
    ("minor", "form", "record"), [(2, 0, 20), (3, 3, 34), (4, 6, 30), (4, 1, 31)]
)
def test_points_are_scaled_and_moved(minor: int, form: int, record: int, tmp_path: Path) -> None:
    path = tmp_path / "scan.LAS"
    path.write_bytes(las(minor=minor, form=form, record=record))
    cloud = read_mesh(path)
    assert isinstance(cloud, PointSet)
    np.testing.assert_array_equal(cloud.points, COUNTS * [0.5, 0.25, 2.0] + [10.0, 20.0, 30.0])
    assert cloud.declared_up == "z"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (las(points=4_000_000_000), "at most 15,000,000 are accepted"),
        (las(points=41), "promises 41 points, the file has 40; it is cut short"),
        (las(minor=4, points=10**18), "at most 15,000,000 are accepted"),
        (las()[:300], "promises 40 points, the file has 3; it is cut short"),
        (
            las(form=0x82),
            r"needs laspy and lazrs|not a readable LAZ file",
        ),
        (las(form=11), "point format 11 with 20 bytes a point"),
        (changed(96, struct.pack("<I", 100)), "points begin at byte 100, inside the header"),
        (changed(139, bytes(8)), r"scales x, y and z by 0\.5, 0\.0, 2\.0 .* no scale of 0"),
        (changed(155, struct.pack("<d", math.nan)), r"shifts them by nan, 20\.0, 30\.0"),
        (b"LASF" + b"\0" * 300, "point format 0 with 0 bytes a point"),
        (b"PK\3\4" + b"\0" * 300, "expected a LAS header"),
    ],
)
def test_damage_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "scan.las"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_mesh(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", [1, 6])
@pytest.mark.parametrize(("older", "newer"), [(40, 0), (0, 40), (40, 40)])
def test_a_count_in_either_field_of_las_1_4_is_enough(
    form: int, older: int, newer: int, tmp_path: Path
) -> None:
    content = bytearray(las(minor=4, form=form, record=31))
    struct.pack_into("<I", content, 107, older)
    struct.pack_into("<Q", content, 247, newer)
    (tmp_path / "scan.las").write_bytes(content)
    cloud = read_mesh(tmp_path / "scan.las")
    assert isinstance(cloud, PointSet)
    assert len(cloud.points) == 40


def test_a_header_of_an_older_length_has_no_newer_count(tmp_path: Path) -> None:
    """Version 1.4 is stated over a header of 227 bytes: what follows are points, not a count."""
    content = bytearray(las())
    content[25] = 4
    (tmp_path / "scan.las").write_bytes(content)
    cloud = read_mesh(tmp_path / "scan.las")
    assert isinstance(cloud, PointSet)
    assert len(cloud.points) == 40


def test_a_count_of_zero_is_named(tmp_path: Path) -> None:
    (tmp_path / "scan.las").write_bytes(las(minor=4, points=0))
    with pytest.raises(DataError, match="states 0 points, 40 records could follow it"):
        read_mesh(tmp_path / "scan.las")


def test_a_scale_of_nan_is_refused(tmp_path: Path) -> None:
    content = bytearray(las())
    struct.pack_into("<d", content, 131, float("nan"))
    (tmp_path / "scan.las").write_bytes(content)
    with pytest.raises(DataError, match=r"scales x, y and z by nan, 0\.25, 2\.0"):
        read_mesh(tmp_path / "scan.las")


def test_an_array_that_claims_more_than_its_member_holds(tmp_path: Path) -> None:
    """Before room is made: 2**40 rows would not fit into any memory."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (2**40, 3)}
    )
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("points.npy", header.getvalue() + b"\0" * 1200)
    with pytest.raises(DataError, match="claims 13,194,139,533,312 bytes"):
        read_mesh(tmp_path / "huge.npz")
    (tmp_path / "huge.npy").write_bytes(header.getvalue() + b"\0" * 1200)
    with pytest.raises(DataError, match="claims 13,194,139,533,312 bytes"):
        read_mesh(tmp_path / "huge.npy")


@pytest.mark.parametrize("minor", [2, 4])
def test_a_count_smaller_than_the_points_is_noticed(minor: int, tmp_path: Path) -> None:
    """What is no multiple of a point, or begins where the header says that records do, is something else."""
    path = tmp_path / "scan.las"
    path.write_bytes(las(minor=minor, points=30))
    with pytest.raises(DataError, match="promises 30 points, but more follows the last"):
        read_mesh(path)
    path.write_bytes(las(minor=minor) + b"of another program")
    assert len(read_mesh(path).points) == 40  # type: ignore[union-attr]
    if minor == 4:
        whole = bytearray(las(minor=4, points=30))
        struct.pack_into("<Q", whole, 235, 375 + 30 * 20)
        path.write_bytes(whole)
        assert len(read_mesh(path).points) == 30  # type: ignore[union-attr]
