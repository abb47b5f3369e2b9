"""Every kind of cloud file through each of its entrances: ``sample``, ``embed``, and ``prepare-data folder``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.meshes import sample_files
from pointdistill.data.sources.paths import ReadSettings, list_shapes, read_shape
from tests.data.source_archives import build, refused
from tests.data.test_meshes_clouds import POINTS, cloud_forms
from tests.data.test_meshes_las import las
from tests.data.test_meshes_pcd_packed import packed_pcd


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same 40 points in every format; the LAS file has its own."""
    folder = tmp_path / "clouds"
    folder.mkdir()
    for name, content in cloud_forms().items():
        (folder / name).write_bytes(content)
    (folder / "packed.pcd").write_bytes(packed_pcd())
    (folder / "scan.las").write_bytes(las())
    np.save(folder / "array.npy", POINTS)
    np.savez_compressed(folder / "arrays.npz", points=POINTS, labels=np.arange(40))
    return folder


def rows(points: np.ndarray) -> set[tuple[int, ...]]:
    """The points in eighths, of which they are whole numbers."""
    return {tuple(row) for row in np.round(8 * points).astype(int).tolist()}


def test_each_way_in_reads_every_cloud(folder: Path, tmp_path: Path) -> None:
    files = sorted(folder.iterdir())
    expected = {file.name: file.name != "scan.las" for file in files}
    assert {Path(name).suffix for name in expected} == {
        *(".npy", ".npz", ".xyz", ".txt", ".csv", ".pts", ".pcd", ".las")
    }

    report = sample_files(files, points=32, seed=0, output=tmp_path / "sampled")
    assert report.failed == ()
    for sampled in report.sampled:
        assert not sampled.is_surface
        if expected[sampled.source.name]:
            assert rows(np.load(sampled.output)) < rows(POINTS)

    shapes = list_shapes([folder])
    assert len(shapes) == len(files)
    for index in range(len(shapes)):
        shape = read_shape(shapes[index][1], ReadSettings(points=40, seed=0))
        assert shape.points is not None, shape.reason
        if expected[shape.name]:
            assert rows(shape.points) == rows(POINTS)

    corpus = build("folder", tmp_path / "corpus", path=folder)
    assert corpus.ids() == [file.name for file in files]
    assert refused(corpus) == {}
    for index, file in enumerate(files):
        if expected[file.name]:
            assert np.allclose(corpus.points(index), POINTS, atol=1e-3)
