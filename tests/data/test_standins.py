"""The stand-ins: archives in the real layouts, read back by the real readers."""

import io
import json
import re
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from pointdistill.data.benchmark_standins import (
    HARDNESS,
    Hardness,
    MeshSizes,
    ScanSizes,
    make_modelnet40_stand_in,
    make_scanobjectnn_stand_in,
)
from pointdistill.data.benchmark_standins.modelnet import STAND_IN_CLASSES, off_file
from pointdistill.data.benchmark_standins.scanobjectnn import (
    BACKGROUND,
    OBJECT,
    with_background,
    without_background,
)
from pointdistill.data.benchmark_standins.scans import Scene, front_points, look_at_room, pose
from pointdistill.data.benchmarks.modelnet40 import CLASSES as MODELNET_CLASSES
from pointdistill.data.benchmarks.modelnet40 import read_modelnet40
from pointdistill.data.benchmarks.records import Benchmark
from pointdistill.data.benchmarks.scanobjectnn import CLASSES, SPLITS, read_scanobjectnn
from pointdistill.data.meshes import Surface, read_mesh
from pointdistill.data.synthetic_shapes import make_shape
from pointdistill.errors import ConfigError, DataError

TINY = ScanSizes(train=2, test=1, copies=2)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stand-in") / "h5_files.zip"
    make_scanobjectnn_stand_in(path, sizes=TINY, workers=1)
    return path


@pytest.fixture(scope="module")
def meshes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stand-in") / "ModelNet40.zip"
    make_modelnet40_stand_in(path, sizes=MeshSizes(train=4, test=2), workers=1)
    return path


def masks(path: Path, split: str, side: int) -> np.ndarray:
    """What the reader leaves aside: which points are background."""
    with zipfile.ZipFile(path) as archive:
        content = archive.read(f"h5_files/{SPLITS[split].members[side]}")
    with h5py.File(io.BytesIO(content), "r") as file:
        return file["mask"][()]


# ---- seeing


def test_a_point_is_hidden_by_what_lies_well_in_front_of_it() -> None:
    """One cell of the image with depths 1, 1.06 and 1.1; one beside it and one far from it."""
    cell, beside, far = [0.01, 0.01], [0.06, 0.01], [0.16, 0.01]
    image = np.array([cell, cell, cell, beside, beside, far])
    depth = np.array([1.0, 1.06, 1.1, 1.15, 1.25, 2.0])
    assert front_points(image, depth).tolist() == [True, True, False, True, False, True]


def test_the_front_is_the_nearest_point_around() -> None:
    """Against the definition, one point at a time."""
    rng = np.random.default_rng(0)
    image, depth = rng.uniform(-0.3, 0.3, (300, 2)), rng.uniform(2.0, 2.5, 300)
    cells = np.floor(image / 0.05)
    expected = []
    for cell, behind in zip(cells, depth, strict=True):
        steps = np.abs(cells - cell).max(axis=1)
        own, around = depth[steps == 0].min(), depth[steps <= 1].min()
        expected.append(bool(behind <= own + 0.07 and behind <= around + 0.2))
    assert 30 < sum(expected) < 270
    assert front_points(image, depth).tolist() == expected


def test_a_pose_turns_and_scales_and_never_mirrors() -> None:
    """Three unequal edges keep their handedness, and up stays up to within the tilt."""
    corner = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]], dtype=float)
    headings = []
    for seed in range(20):
        posed = pose(corner, HARDNESS, rng=np.random.default_rng(seed))
        edges = posed[1:] - posed[0]
        lengths = np.linalg.norm(edges, axis=1)
        np.testing.assert_allclose(lengths / lengths[0], [1, 2, 3])
        assert np.linalg.det(edges / lengths[:, None]) == pytest.approx(1.0)
        assert edges[2, 2] / lengths[2] >= np.cos(np.radians(HARDNESS.tilt_degrees)) - 1e-9
        assert np.linalg.norm(posed, axis=1).max() == pytest.approx(1.0)
        headings.append(np.arctan2(edges[0, 1], edges[0, 0]))
    assert np.ptp(headings) > np.pi  # any heading


def test_one_camera_sees_one_side_of_a_ball() -> None:
    rng = np.random.default_rng(0)
    ball = rng.normal(size=(8192, 3))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    one = look_at_room(ball, None, Hardness(views=1, occluder=0.0), rng=rng)
    two = look_at_room(ball, None, Hardness(views=2, occluder=0.0), rng=rng)
    # From 2.5 to 4 radii a camera sees 30 to 38 % of a ball, less what its rim hides in the image.
    assert 0.22 < len(one.object_points) / len(ball) < 0.38
    assert len(two.object_points) > 1.15 * len(one.object_points)
    toward = one.object_points.mean(axis=0)
    assert ((one.object_points @ toward) > 0).mean() > 0.99


def test_an_occluder_hides_its_share() -> None:
    points = np.random.default_rng(0).normal(size=(4000, 3))
    points /= np.linalg.norm(points, axis=1).max()
    free, hidden = (
        len(look_at_room(points, None, hardness, rng=np.random.default_rng(1)).object_points)
        for hardness in (
            Hardness(views=1, occluder=0.0),
            Hardness(views=1, occluder=1.0, occluded_share=(0.5, 0.5)),
        )
    )
    assert hidden == pytest.approx(0.5 * free, abs=1)


def test_clutter_has_the_share_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    scene = Scene(
        object_points=rng.uniform(-1, 1, (500, 3)),
        background_points=rng.uniform(-2, 2, (500, 3)),
        low=-np.ones(3),
        high=np.ones(3),
    )
    hardness = Hardness(clutter_share=(0.1, 0.1))
    cloud = with_background(scene, 1000, hardness, rng=rng)
    assert (cloud.mask == BACKGROUND).sum() == 100
    assert (cloud.mask == OBJECT).sum() == 900
    assert cloud.points.shape == (1000, 3)
    assert not (without_background(scene, 1000, hardness, rng=rng).mask == BACKGROUND).any()


# ---- the ScanObjectNN stand-in


@pytest.mark.parametrize("split", SPLITS)
def test_the_scans_have_the_real_layout(scans: Path, split: str) -> None:
    benchmark = read_scanobjectnn(scans, split)
    copies = TINY.copies if split == "PB-T50-RS" else 1
    assert benchmark.train.points.shape == (2 * 15 * copies, 2048, 3)
    assert benchmark.test.points.shape == (15 * copies, 2048, 3)
    assert benchmark.classes == CLASSES
    for side, objects in ((benchmark.train, TINY.train), (benchmark.test, TINY.test)):
        assert np.bincount(side.labels, minlength=15).tolist() == [objects * copies] * 15
        radius = np.linalg.norm(side.points, axis=2).max(axis=1)
        np.testing.assert_allclose(radius, 1.0, atol=0.03)  # the unit sphere, and the jitter
    with zipfile.ZipFile(scans) as archive:
        content = archive.read(f"h5_files/{SPLITS[split].members[0]}")
    with h5py.File(io.BytesIO(content), "r") as file:
        assert {key: (file[key].dtype, file[key].ndim) for key in file} == {
            "data": (np.float32, 3),
            "label": (np.int32, 1),
            "mask": (np.int32, 2),
        }


@pytest.mark.parametrize("split", SPLITS)
def test_everything_says_that_it_is_a_stand_in(scans: Path, split: str) -> None:
    benchmark = read_scanobjectnn(scans, split)
    assert benchmark.stand_in
    assert benchmark.data_name == "ScanObjectNN stand-in"
    with zipfile.ZipFile(scans) as archive:
        facts = json.loads(archive.read("h5_files/STAND-IN.json"))
    assert facts["stand_in_for"] == "ScanObjectNN"
    assert facts["hardness"]["version"] == HARDNESS.version
    assert facts["objects_per_class"] == {"train": 2, "test": 1, "copies": 2}


def test_the_scans_are_upright_once_read(scans: Path) -> None:
    """The floor is the most of the background: it lies low in z, and nowhere low in x or y."""
    below = np.zeros(3)
    for side, clouds in enumerate((lambda b: b.train, lambda b: b.test)):
        points = clouds(read_scanobjectnn(scans, "OBJ-BG")).points
        for cloud, mask in zip(points, masks(scans, "OBJ-BG", side), strict=True):
            background, body = cloud[mask == BACKGROUND], cloud[mask == OBJECT]
            below += (np.median(background, axis=0) < np.quantile(body, 0.25, axis=0)) / 45
    assert below[2] > 0.8
    assert below[:2].max() < 0.5


def test_only_the_clouds_with_background_have_some(scans: Path) -> None:
    low, high = HARDNESS.clutter_share
    share = (masks(scans, "OBJ-BG", 0) == BACKGROUND).mean(axis=1)
    assert (share >= low - 0.001).all()
    assert (share <= high + 0.001).all()
    assert (masks(scans, "OBJ-ONLY", 0) == OBJECT).all()
    assert (masks(scans, "PB-T50-RS", 0) == BACKGROUND).any()


def test_perturbed_copies_of_an_object_differ(scans: Path) -> None:
    train = read_scanobjectnn(scans, "PB-T50-RS").train
    assert train.labels[:4].tolist() == [0, 0, 1, 1]
    extents = np.ptp(train.points, axis=1)
    assert not np.allclose(extents[0::2], extents[1::2], atol=0.05)


def test_test_objects_are_not_training_objects(scans: Path) -> None:
    benchmark = read_scanobjectnn(scans, "OBJ-ONLY")
    # The same running number, and so the same class, on either side.
    train, test = (np.ptp(side.points[:15], axis=1) for side in (benchmark.train, benchmark.test))
    assert np.median(np.abs(train - test).max(axis=1)) > 0.1


def test_the_same_bytes_whatever_the_workers(scans: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    make_scanobjectnn_stand_in(
        tmp_path / "two.zip",
        sizes=TINY,
        workers=2,
        progress=lambda done, total: told.append((done, total)),
    )
    assert (tmp_path / "two.zip").read_bytes() == scans.read_bytes()
    assert told == [(10, 45), (20, 45), (30, 45), (40, 45), (45, 45)]


def test_a_split_alone_has_the_same_clouds(scans: Path, tmp_path: Path) -> None:
    alone = tmp_path / "h5_files.zip"
    make_scanobjectnn_stand_in(alone, splits=["OBJ-ONLY"], sizes=TINY, workers=1)
    np.testing.assert_array_equal(
        read_scanobjectnn(alone, "OBJ-ONLY").test.points,
        read_scanobjectnn(scans, "OBJ-ONLY").test.points,
    )
    with pytest.raises(DataError, match=r"which OBJ-BG needs; splits it has: OBJ-ONLY$"):
        read_scanobjectnn(alone, "OBJ-BG")


def test_another_seed_gives_other_scans(scans: Path, tmp_path: Path) -> None:
    other = tmp_path / "h5_files.zip"
    make_scanobjectnn_stand_in(other, splits=["OBJ-BG"], sizes=TINY, seed=1, workers=1)
    ours, theirs = (read_scanobjectnn(path, "OBJ-BG").test.points for path in (scans, other))
    assert not np.allclose(ours, theirs, atol=0.1)


def test_impossible_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no splits \['HARD'\]; choose from OBJ-BG, "):
        make_scanobjectnn_stand_in(tmp_path / "h5_files.zip", splits=["HARD"])
    with pytest.raises(ConfigError, match="at least 1 object a class"):
        ScanSizes(train=0)
    with pytest.raises(ConfigError, match="at least 1 mesh a class"):
        MeshSizes(test=0)
    assert list(tmp_path.iterdir()) == []


# ---- the ModelNet40 stand-in


def test_the_meshes_have_the_real_layout(meshes: Path) -> None:
    with zipfile.ZipFile(meshes) as archive:
        names = archive.namelist()
        headers = {n: archive.read(n).split(b"\n")[0] for n in names if n.endswith("_0005.off")}
    assert "ModelNet40/.DS_Store" in names
    assert any(name.startswith("__MACOSX/") for name in names)
    pattern = re.compile(r"ModelNet40/(\w+)/(train|test)/\1_000[1-6]\.off")
    wanted = [name for name in names if pattern.fullmatch(name)]
    assert len(wanted) == 6 * len(STAND_IN_CLASSES)
    assert "ModelNet40/chair/train/chair_0004.off" in wanted
    assert "ModelNet40/chair/test/chair_0005.off" in wanted
    assert all(re.fullmatch(rb"OFF\d+ \d+ 0", header) for header in headers.values())


def test_the_meshes_read_as_a_stand_in(meshes: Path) -> None:
    benchmark: Benchmark = read_modelnet40(meshes, points=64, workers=1)
    assert benchmark.stand_in
    assert benchmark.data_name == "ModelNet40 stand-in"
    assert benchmark.classes == STAND_IN_CLASSES == MODELNET_CLASSES
    assert len(benchmark.train) == 4 * 40
    assert len(benchmark.test) == 2 * 40


@pytest.mark.parametrize("glued", [False, True])
def test_an_off_file_is_the_shape_itself(tmp_path: Path, glued: bool) -> None:
    """Same vertices, same faces, no axis turned or mirrored; only the unit is another."""
    shape = make_shape("chair", rng=np.random.default_rng(0))
    path = tmp_path / "chair.off"
    path.write_bytes(off_file(shape, scale=100.0, glued=glued))
    surface = read_mesh(path)
    assert isinstance(surface, Surface)
    corners = surface.vertices[surface.faces]
    np.testing.assert_allclose(corners, 100.0 * shape.vertices[shape.faces], rtol=1e-4, atol=1e-2)


def test_the_same_meshes_whatever_the_workers(meshes: Path, tmp_path: Path) -> None:
    sizes = MeshSizes(train=4, test=2)
    make_modelnet40_stand_in(tmp_path / "two.zip", sizes=sizes, workers=2)
    assert (tmp_path / "two.zip").read_bytes() == meshes.read_bytes()
