"""SUN RGB-D: depth images decoded, turned upright, and cut by oriented boxes; only training images."""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.data.sources.indoor_scenes import Box, depth_metres, inside_box, room_points
from pointdistill.errors import DataError
from tests.data.source_archives import build, labels_of, refused, write_zip

ON_DISK = "/n/fs/sun3d/data/SUNRGBD"
LEVEL = np.eye(3)
CAMERA = np.array([[100.0, 0, 40.5], [0, 100, 30.5], [0, 0, 1]])


def depth_png(millimetres: np.ndarray) -> bytes:
    """16 bits rotated so that rotating right by 3 gives the millimetres."""
    values = millimetres.astype(np.uint16)
    memory = io.BytesIO()
    Image.fromarray((values << 3) | (values >> 13)).save(memory, "png")
    return memory.getvalue()


def test_depth_is_unrotated_and_clipped_at_eight_metres() -> None:
    """8,192 mm and more have bits that the rotation brought to the low end."""
    content = depth_png(np.array([[0, 1000, 7999], [8000, 9000, 40_000]]))
    assert depth_metres(content, "x").tolist() == [[0, 1, 7.999], [8, 8, 8]]


@pytest.mark.parametrize("kept", [0, 5, 60, 300])
def test_an_image_that_is_cut_short_is_refused(kept: int) -> None:
    content = depth_png(np.random.default_rng(0).integers(0, 9000, (20, 20)))[:kept]
    with pytest.raises(
        DataError, match=r"^a/b\.png is no depth image that can be read; fetch the archive again$"
    ):
        depth_metres(content, "a/b.png")


def test_an_image_of_eight_bits_is_refused() -> None:
    memory = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.uint8)).save(memory, "png")
    with pytest.raises(DataError, match="4 x 4 pixels of kind L, expected 16 bits"):
        depth_metres(memory.getvalue(), "x")


def test_pixels_become_points_upright_and_not_mirrored() -> None:
    """The principal point counts from 1: column 2, row 1 here. Right is x, away is y, up is z."""
    depth = np.zeros((3, 4))
    depth[0, 1], depth[0, 2], depth[1, 1] = 2.0, 4.0, 3.0
    camera = (100.0, 0.0, 2.0, 0.0, 100.0, 1.0, 0.0, 0.0, 1.0)
    points = room_points(depth, camera, tuple(LEVEL.ravel()))
    assert np.allclose(points, [[0, 2, 0], [0.04, 4, 0], [0, 3, -0.03]])


def test_the_tilt_turns_the_camera_to_the_room() -> None:
    """A camera that looks straight down: away becomes down, and what was up becomes away."""
    down = (1.0, 0, 0, 0, 0, 1.0, 0, -1.0, 0)
    depth = np.zeros((3, 4))
    depth[0, 1], depth[2, 2] = 2.0, 1.0
    camera = (100.0, 0.0, 2.0, 0.0, 100.0, 1.0, 0.0, 0.0, 1.0)
    points = room_points(depth, camera, down)
    assert np.allclose(points, [[0, 0, -2], [0.01, -0.02, -1]])


def test_boxes_are_oriented_and_their_sizes_are_halves() -> None:
    """A plank of 4 x 0.4 x 2 along the diagonal x = y; the one across it has none of its points."""
    s = math.sqrt(0.5)
    plank = Box("plank", (1, 1, 1), (s, s, 0, -s, s, 0, 0, 0, 2), (2, 0.2, -1))
    along = np.array([[1 + 1.9 * s, 1 + 1.9 * s, 1.9], [1 - 1.9 * s, 1 - 1.9 * s, 0.1]])
    across = np.array([[1 + 1.9 * s, 1 - 1.9 * s, 1], [1 + 2.1 * s, 1 + 2.1 * s, 1], [1, 1, 2.1]])
    assert inside_box(np.concatenate([along, across]), plank).tolist() == along.tolist()


def mat(**variables: Any) -> bytes:
    memory = io.BytesIO()
    scipy.io.savemat(memory, variables)
    return memory.getvalue()


def structs(rows: list[dict[str, Any]]) -> np.ndarray:
    """A 1 x n MATLAB struct array."""
    found = np.empty((1, len(rows)), [(name, object) for name in rows[0]])
    for k, row in enumerate(rows):
        found[0, k] = tuple(row.values())
    return found


def box(label: str, half_sizes: list[float], basis: np.ndarray = LEVEL) -> dict[str, Any]:
    return {
        "basis": basis,
        "coeffs": np.array([half_sizes]),
        "centroid": np.array([[0.0, 2.0, 0.0]]),
        "classname": label,
    }


def scene(folder: str, boxes: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "sequenceName": f"SUNRGBD/{folder}",
        "groundtruth3DBB": structs(boxes) if boxes else np.empty((0, 0)),
        "depthpath": f"{ON_DISK}/{folder}/depth_bfx/d.png",
        "Rtilt": LEVEL,
        "K": CAMERA,
    }


TURNED = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
SCENES = [
    scene(
        "kv1/NYUdata/NYU0003", [box("sofa", [0.1, 0.6, 0.5], TURNED), box("lamp", [0.1, 0.1, 0.1])]
    ),
    scene("kv1/NYUdata/NYU0001", [box("test table", [1, 1, 1])]),
    scene("kv2/align/empty", []),
    scene("xtion/a/b", [box("bed", [0.6, 0.1, 0.5])]),
    scene("realsense/lost", [box("desk", [1, 1, 1])]),
]
TRAIN = ["kv1/NYUdata/NYU0003/", "kv2/align/empty", "xtion/a/b", "realsense/lost"]


@pytest.fixture
def sunrgbd(tmp_path: Path) -> Path:
    """A flat wall 2 m away in every image: 80 x 60 points, from -0.79 to 0.79 m and -0.59 to 0.59 m."""
    folder = tmp_path / "sunrgbd"
    wall = depth_png(np.full((60, 80), 2000))
    images: dict[str, str | bytes] = {
        f"SUNRGBD/{row['sequenceName'].removeprefix('SUNRGBD/')}/depth_bfx/d.png": wall
        for row in SCENES
        if "lost" not in row["sequenceName"]
    }
    images["SUNRGBD/kv1/NYUdata/NYU0003/depth/d.png"] = b"the raw depth"
    write_zip(folder / "SUNRGBD.zip", images)
    split = np.array([f"{ON_DISK}/{name}" for name in TRAIN], dtype=object)
    tests = np.array([f"{ON_DISK}/kv1/NYUdata/NYU0001"], dtype=object)
    member = "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat"
    write_zip(folder / "SUNRGBDtoolbox.zip", {member: mat(alltrain=split, alltest=tests)})
    (folder / "SUNRGBDMeta3DBB_v2.mat").write_bytes(mat(SUNRGBDMeta=structs(SCENES)))
    return folder


def test_sunrgbd_gives_the_objects_of_its_training_images(tmp_path: Path, sunrgbd: Path) -> None:
    """The sofa's box is turned by a quarter: taken as axis-aligned it would hold 10 columns, not 60."""
    corpus = build("sunrgbd", tmp_path / "corpus", path=sunrgbd, points=8192)
    assert corpus.ids() == ["kv1/NYUdata/NYU0003/000", "xtion/a/b/000"]
    assert labels_of(corpus) == ["sofa", "bed"]
    for k in range(2):
        assert corpus.points(k).shape == (60 * 50, 3)
        assert np.allclose(corpus.points(k).min(0), [-0.59, 2, -0.49], atol=1e-3)
        assert np.allclose(corpus.points(k).max(0), [0.59, 2, 0.49], atol=1e-3)
    causes = refused(corpus)
    assert set(causes) == {"kv1/NYUdata/NYU0003/001", "realsense/lost/000"}
    assert "100 points, objects with at least 2,048" in causes["kv1/NYUdata/NYU0003/001"]
    assert "is not in SUNRGBD.zip" in causes["realsense/lost/000"]
    assert corpus.sources[0].turned == "Rtilt"


def test_any_of_the_three_files_finds_the_others_and_a_worker_reads_alike(sunrgbd: Path) -> None:
    source = open_source("sunrgbd", SourceRequest(path=sunrgbd / "SUNRGBDMeta3DBB_v2.mat"))
    entry = source.entries()[0]
    ours = source.read(entry, 64, rng=np.random.default_rng(0)).points
    worker = pickle.loads(pickle.dumps(source))
    assert np.array_equal(worker.read(entry, 64, rng=np.random.default_rng(0)).points, ours)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("SUNRGBDMeta3DBB_v2.mat", b"x" * 200, "no MATLAB file with SUNRGBDMeta"),
        ("SUNRGBDMeta3DBB_v2.mat", mat(other=1), "no MATLAB file with SUNRGBDMeta"),
        ("SUNRGBDMeta3DBB_v2.mat", mat(SUNRGBDMeta=np.eye(2)), "is not as expected"),
        (
            "SUNRGBDMeta3DBB_v2.mat",
            mat(SUNRGBDMeta=structs([SCENES[0] | {"K": np.full((3, 3), np.nan)}])),
            "expected 9 finite numbers",
        ),
        (
            "SUNRGBDMeta3DBB_v2.mat",
            mat(SUNRGBDMeta=structs(SCENES[1:2])),
            "none of its images is in the training split",
        ),
        ("SUNRGBDtoolbox.zip", b"PK", "ends early"),
        ("SUNRGBD.zip", b"", "an empty file"),
        ("SUNRGBDtoolbox.zip", None, r"SUNRGBDtoolbox\.zip missing; .*from https://rgbd"),
    ],
)
def test_a_damaged_or_missing_file_is_one_line(
    sunrgbd: Path, name: str, content: bytes | None, message: str
) -> None:
    (sunrgbd / name).unlink()
    if content is not None:
        (sunrgbd / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_source("sunrgbd", SourceRequest(path=sunrgbd)).entries()
    assert "\n" not in str(caught.value)


def test_a_folder_with_none_of_the_files_says_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds none of SUNRGBD\.zip, SUNRGBDtoolbox\.zip"):
        open_source("sunrgbd", SourceRequest(path=tmp_path))
