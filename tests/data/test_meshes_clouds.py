"""Point clouds as text columns, arrays and PCD."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.meshes import PointSet, read_mesh
from pointdistill.errors import DataError
from tests.data.meshes.box import rows

POINTS = np.arange(120, dtype=float).reshape(40, 3) / 8


def pcd(form: str) -> bytes:
    return (
        "# .PCD v.7\nVERSION .7\nFIELDS x y z rgb _\nSIZE 4 4 4 4 1\nTYPE F F F F U\nCOUNT 1 1 1 1 4\n"
        f"WIDTH 40\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 40\nDATA {form}\n"
    ).encode()


def cloud_forms() -> dict[str, bytes]:
    shuffled = POINTS[:, [2, 0, 1]]  # columns z, x, y
    return {
        "rows.xyz": rows(POINTS).encode(),
        "colours.txt": rows([[*point, 255, 0, 0] for point in POINTS]).encode(),
        "damaged_colour.txt": rows(
            [[*point, 255, "\x10" if n == 7 else 9, 0] for n, point in enumerate(POINTS)]
        ).encode(),
        "commas.csv": rows(POINTS, ",").encode(),
        "named.csv": (
            "id,z,x,y\n" + rows([[n, *point] for n, point in enumerate(shuffled)], ",")
        ).encode(),
        "marked.csv": "\ufeffx,id,y,z\n".encode()
        + rows([[x, 7, y, z] for x, y, z in POINTS], ",").encode(),
        "header.csv": ("east,north,height\n" + rows(POINTS, ",")).encode(),
        "comments.xyz": ("# x y z\n// scan\n" + rows(POINTS)).encode(),
        "counted.pts": ("40\n" + rows([[*point, 9] for point in POINTS])).encode(),
        "text.pcd": pcd("ascii") + rows([[*point, 0.5, 1, 2, 3, 4] for point in POINTS]).encode(),
        "binary.pcd": pcd("binary")
        + b"".join(struct.pack("<4f4B", *point, 0.5, 1, 2, 3, 4) for point in POINTS),
    }


@pytest.mark.parametrize("name", cloud_forms())
def test_clouds_as_text_and_pcd(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(cloud_forms()[name])
    cloud = read_mesh(path)
    assert isinstance(cloud, PointSet)
    assert cloud.points.tolist() == POINTS.tolist()


@pytest.mark.parametrize("before", ["45\n", ""])
def test_rows_of_separators_are_missing_returns(before: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(before + rows(POINTS, ";") + ";;\n" * 5)
    cloud = read_mesh(path)
    assert isinstance(cloud, PointSet)
    assert (cloud.dropped_points, len(cloud.points)) == (5, 40)
    path.write_text(",,\n" + rows(POINTS, ";"))
    with pytest.raises(DataError, match="the columns are ',,', none are surely x, y and z"):
        read_mesh(path)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4"])
def test_clouds_as_arrays(dtype: str, tmp_path: Path) -> None:
    array = np.arange(400).reshape(100, 4).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "b.npz", points=array, labels=np.arange(100))
    np.savez_compressed(tmp_path / "c.npz", cloud=array)
    for name in ("a.npy", "b.npz", "c.npz"):
        cloud = read_mesh(tmp_path / name)
        assert isinstance(cloud, PointSet)
        assert cloud.points.tolist() == array[:, :3].tolist()


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="expected a numpy array"):
        read_mesh(tmp_path / "a.npy")


def test_repair_drops_points_that_are_not_finite(tmp_path: Path) -> None:
    points = POINTS.copy()
    points[3, 1] = np.nan
    points[9, 0] = np.inf
    np.save(tmp_path / "a.npy", points)
    with pytest.raises(DataError, match="1 of 39 points are NaN or infinite"):
        read_mesh(tmp_path / "a.npy")
    cloud = read_mesh(tmp_path / "a.npy", repair=True)
    assert isinstance(cloud, PointSet)
    assert (cloud.dropped_points, len(cloud.points)) == (2, 38)
