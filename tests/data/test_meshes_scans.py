"""LAZ and E57, whose readers are extras: their own numbers, poses, limits, damage; and one line without them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.meshes import MeshLimits, PointSet, read_mesh, sample_surface
from pointdistill.errors import DataError

UTM = np.array([431000.0, 5412345.0, 120.0])
CLOUD = np.random.default_rng(3).integers(0, 9000, size=(500, 3)) / 1000 + UTM


@pytest.fixture(scope="module")
def laz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 points with a step of a millimetre, at the coordinates of a map."""
    laspy = pytest.importorskip("laspy")
    pytest.importorskip("lazrs")
    header = laspy.LasHeader(version="1.4", point_format=6)
    header.scales, header.offsets = np.full(3, 0.001), UTM
    scan = laspy.LasData(header)
    scan.x, scan.y, scan.z = CLOUD.T
    path = tmp_path_factory.mktemp("laz") / "tile.laz"
    scan.write(str(path))
    return path


@pytest.fixture(scope="module")
def e57(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans in the scanner's own frame, moved to the coordinates of a map, the second turned around z too."""
    pye57 = pytest.importorskip("pye57")
    path = tmp_path_factory.mktemp("e57") / "room.E57"
    with pye57.E57(str(path), mode="w") as file:
        for part, rotation, move in (
            (CLOUD[:300] - UTM, [1, 0, 0, 0], UTM),
            (CLOUD[300:] - UTM, [0.5**0.5, 0, 0, 0.5**0.5], UTM),  # by a quarter
        ):
            names = ("cartesianX", "cartesianY", "cartesianZ")
            data = dict(zip(names, np.ascontiguousarray(part.T), strict=True))
            file.write_scan_raw(data, rotation=np.array(rotation), translation=np.array(move))
    return path


def test_compressed_points_are_those_of_the_file(laz: Path) -> None:
    cloud = read_mesh(laz)
    assert isinstance(cloud, PointSet)
    np.testing.assert_allclose(cloud.points, CLOUD, rtol=0, atol=1e-8)
    assert cloud.declared_up == "z"
    assert sample_surface(laz, 64, seed=0).dtype == np.float64, (
        "float32 would lose a quarter of a metre"
    )


def test_damaged_and_large_compressed_files_are_one_line(laz: Path, tmp_path: Path) -> None:
    path, content = tmp_path / "tile.laz", laz.read_bytes()
    for end in (300, len(content) // 2, len(content) - 3):
        path.write_bytes(content[:end])
        with pytest.raises(DataError) as caught:
            read_mesh(path)
        assert str(caught.value).isprintable()
    changed = bytearray(content)
    changed[100:104] = (
        b"\xff" * 4
    )  # four thousand million records, each of which would be looked for
    path.write_bytes(changed)
    with pytest.raises(DataError, match="more records than the file has room for"):
        read_mesh(path)
    changed = bytearray(content)
    start = int.from_bytes(content[96:100], "little")
    table = int.from_bytes(content[start : start + 8], "little")
    assert start < table < len(content)
    # The number of chunks: lazrs would ask for 64 GB, and end its process.
    changed[table + 4 : table + 8] = b"\xff" * 4
    path.write_bytes(changed)
    with pytest.raises(DataError, match=r"does not fit into memory|not a readable LAZ file"):
        read_mesh(path)
    with pytest.raises(DataError, match="500 points, at most 499 are accepted"):
        read_mesh(laz, limits=MeshLimits(vertices=499))


def test_the_scans_of_a_file_stand_where_their_poses_say(e57: Path) -> None:
    cloud = read_mesh(e57)
    assert isinstance(cloud, PointSet)
    x, y, z = (CLOUD[300:] - UTM).T
    expected = np.concatenate([CLOUD[:300], np.stack([-y, x, z], axis=1) + UTM])
    # The writer stores float32 within each scan; poses and the points that they move are float64.
    np.testing.assert_allclose(cloud.points, expected, rtol=0, atol=1e-6)
    assert cloud.declared_up is None
    assert sample_surface(e57, 64, seed=0).dtype == np.float64


def test_damaged_and_large_scans_are_one_line(e57: Path, tmp_path: Path) -> None:
    path, content = tmp_path / "room.e57", bytearray(e57.read_bytes())
    content[2000] ^= 255  # every page has a checksum
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a readable E57 file") as caught:
        read_mesh(path)
    assert str(caught.value).isprintable()
    with pytest.raises(DataError, match="500 points, at most 499 are accepted"):
        read_mesh(e57, limits=MeshLimits(vertices=499))


@pytest.mark.parametrize(
    ("name", "start", "message"),
    [
        ("a.e57", b"ASTM-E57" + bytes(100), r"needs pye57; pip install 'pointdistill\[e57\]'"),
        ("a.e57", b"PK" + bytes(100), "expected ASTM-E57, got"),
    ],
)
def test_without_its_extra_a_format_is_named(
    name: str, start: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    (tmp_path / name).write_bytes(start)
    with pytest.raises(DataError, match=message):
        read_mesh(tmp_path / name)


def test_without_its_extra_laz_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.data.test_meshes_las import las

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    (tmp_path / "a.laz").write_bytes(las(form=0x80))
    with pytest.raises(DataError, match=r"pip install 'pointdistill\[laz\]', or save it as LAS"):
        read_mesh(tmp_path / "a.laz")
