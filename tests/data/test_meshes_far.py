"""Shapes far from the origin, as georeferenced scans are: float32 has steps of half a metre there."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.meshes import (
    PointSet,
    draw,
    named_rng,
    read_mesh,
    sample_files,
    sample_surface,
)
from pointdistill.data.meshes.records import Floats
from pointdistill.data.meshes.sample import draw_up_to
from pointdistill.data.meshes.sampling import to_float32
from pointdistill.data.sources.paths import ReadSettings, ShapeLocation, read_shape

UTM = np.array([431_000.0, 5_412_345.0, 120.0])


def tile() -> Floats:
    """2,000 points of a tile of 300 x 600 m, in whole millimetres."""
    rng = np.random.default_rng(1)
    return np.round(rng.random((2000, 3)) * [300, 600, 12], 3)


def write_las(path: Path, points: Floats, offset: Floats) -> Path:
    header = bytearray(227)
    header[:4], header[24:26] = b"LASF", bytes((1, 2))
    struct.pack_into("<HIIBHI", header, 94, 227, 227, 0, 0, 20, len(points))
    struct.pack_into("<6d", header, 131, 0.001, 0.001, 0.001, *offset)
    steps = np.round((points - offset) / 0.001).astype("<i4")
    path.write_bytes(bytes(header) + b"".join(row.tobytes() + bytes(8) for row in steps))
    return path


def write_ply(path: Path, points: Floats) -> Path:
    header = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n"
        "property double x\nproperty double y\nproperty double z\nend_header\n"
    )
    path.write_bytes(header.encode() + points.astype("<f8").tobytes())
    return path


def write_text(path: Path, points: Floats) -> Path:
    np.savetxt(path, points, fmt="%.3f")
    return path


def write(name: str, folder: Path, points: Floats, offset: Floats = UTM) -> Path:
    path = folder / name
    if name.endswith(".las"):
        return write_las(path, points, offset)
    return write_ply(path, points) if name.endswith(".ply") else write_text(path, points)


FORMS = ["tile.las", "tile.ply", "tile.xyz", "tile.txt"]


@pytest.mark.parametrize("name", FORMS)
def test_points_for_a_corpus_or_an_embedding_are_centred_before_they_are_float32(
    name: str, tmp_path: Path
) -> None:
    """Up to the shift they are the points of the file to 0.05 mm; in float32 y alone would be off by 0.25 m."""
    shape = read_mesh(write(name, tmp_path, tile() + UTM))
    points = draw(shape, 2000, rng=named_rng(0), up=None)
    assert points.dtype == np.float32
    expected = tile() - (tile().min(0) + tile().max(0)) / 2
    np.testing.assert_allclose(points, expected, atol=5e-5)
    assert (points == draw_up_to(shape, 9999, up="z", rng=named_rng(0))).all()


@pytest.mark.parametrize("name", FORMS)
def test_an_embedding_reads_the_same_shape_here_and_there(name: str, tmp_path: Path) -> None:
    settings = ReadSettings(points=1024, up="z", seed=0)
    read = []
    for offset in (np.zeros(3), UTM):
        path = write(name, tmp_path, tile() + offset, offset)
        shape = read_shape(ShapeLocation("file", str(path), name, 0), settings)
        assert shape.points is not None, shape.reason
        read.append(shape.points.astype(np.float64))
    here, there = (points - points.mean(0) for points in read)
    np.testing.assert_allclose(here, there, atol=5e-5)


@pytest.mark.parametrize("output", ["out.npy", "out.ply", "out.xyz", "out.pcd", "out.npz"])
def test_sample_keeps_the_frame_of_the_file_and_writes_float64(output: str, tmp_path: Path) -> None:
    path = write_las(tmp_path / "tile.las", tile() + UTM, UTM)
    report = sample_files([path], points=2000, seed=0, output=tmp_path / output)
    assert report.sampled[0].is_double
    cloud = read_mesh(tmp_path / output)
    assert isinstance(cloud, PointSet)
    np.testing.assert_allclose(cloud.points, tile() + UTM, atol=1e-8, rtol=0)
    drawn = sample_surface(path, 2000, seed=0)
    assert drawn.dtype == np.float64
    assert (drawn == cloud.points).all()


def test_a_small_object_in_utm_coordinates_is_read(tmp_path: Path) -> None:
    """An OBJ of one square metre, 5,000 km from the origin: two float32 steps across."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]) + UTM
    lines = "".join(f"v {x!r} {y!r} {z!r}\n" for x, y, z in corners.tolist())
    (tmp_path / "a.obj").write_text(f"{lines}f 1 2 3\nf 1 3 4\n")
    points = draw(read_mesh(tmp_path / "a.obj"), 4000, rng=named_rng(0), up=None)
    assert len(np.unique(points, axis=0)) > 3990
    assert points.min(0) == pytest.approx([-0.5, -0.5, 0], abs=2e-3)
    assert points.max(0) == pytest.approx([0.5, 0.5, 0], abs=2e-3)


def test_points_that_float32_holds_stay_float32(tmp_path: Path) -> None:
    """In place if float32 has them exactly, or if the shape is less than 16 times its size from the origin."""
    whole = np.round(tile()) + UTM.round()
    for points in (np.floor(whole / 2) * 2, tile(), tile() + 9000):
        path = write_ply(tmp_path / "tile.ply", points)
        drawn = sample_surface(path, 2000, seed=0)
        assert drawn.dtype == np.float32
        assert (drawn == points.astype(np.float32)).all()


def test_shapes_near_the_origin_are_not_moved() -> None:
    points = tile() + 9000
    assert (to_float32(points) == points.astype(np.float32)).all()
    assert abs(to_float32(points + 20_000).mean()) < 20
