"""The stand-ins for few-shot, part segmentation and LVIS, read back by the real readers."""

import hashlib
import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.benchmark_standins import (
    STAND_IN_SEED,
    FewshotSizes,
    LvisSizes,
    PartSizes,
    make_lvis_stand_in,
    make_modelnet_fewshot_stand_in,
    make_shapenetpart_stand_in,
)
from pointdistill.data.benchmark_standins.lvis import CORPUS_FOLDER
from pointdistill.data.benchmark_standins.modelnet import MADE_AS, STAND_IN_CLASSES
from pointdistill.data.benchmarks.lvis import ANNOTATION_NAME, draw_lvis, read_lvis
from pointdistill.data.benchmarks.modelnet_fewshot import read_modelnet_fewshot
from pointdistill.data.benchmarks.shapenetpart import CATEGORIES, CATEGORY_PARTS, read_shapenetpart
from pointdistill.data.corpus import open_corpus
from pointdistill.data.synthetic_shapes import PART_NAMES, make_shape, sample_faces, sample_shape
from pointdistill.errors import ConfigError, DataError

FEWSHOT = FewshotSizes(settings=((5, 10), (10, 20)), folds=2, test=2, points=64)
PARTS = PartSizes(train=2, val=1, test=1, points=400)
LVIS = LvisSizes(
    categories=("bowl", "chair", "cup", "mug"),
    each=12,
    scarce=1,
    unlabelled=3,
    missing=2,
    points=64,
)


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def fewshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stand-in") / "ModelNetFewshot.zip"
    make_modelnet_fewshot_stand_in(path, sizes=FEWSHOT, workers=1)
    return path


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stand-in") / "parts.zip"
    make_shapenetpart_stand_in(path, sizes=PARTS, workers=1)
    return path


@pytest.fixture(scope="module")
def lvis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stand-in") / "lvis"
    make_lvis_stand_in(path, sizes=LVIS, workers=1)
    return path


# ---- few-shot


@pytest.mark.parametrize(("way", "shot"), FEWSHOT.settings)
def test_every_fold_is_read_back(fewshot: Path, way: int, shot: int) -> None:
    classes = set()
    for fold in range(2):
        benchmark = read_modelnet_fewshot(fewshot, way=way, shot=shot, fold=fold)
        assert benchmark.train.points.shape == (way * shot, 64, 3)
        assert benchmark.test.points.shape == (way * 2, 64, 3)
        assert len(set(benchmark.classes)) == way
        assert set(benchmark.classes) <= set(STAND_IN_CLASSES)
        assert benchmark.stand_in
        assert benchmark.data_name == "ModelNet40 few-shot stand-in"
        classes.add(benchmark.classes)
    assert len(classes) == 2  # each fold has its own


def test_fewshot_shapes_stand_upright(fewshot: Path) -> None:
    """Built-in shapes stand on z = 0, and no other axis of theirs begins at 0."""
    points = read_modelnet_fewshot(fewshot, way=5, shot=10, fold=0).train.points
    assert (points[..., 2] >= -1e-6).all()
    assert (points[..., :2].min(axis=1) < -1e-3).all()


def test_stand_ins_are_the_builtin_shapes_and_not_their_mirror_images(
    fewshot: Path, parts: Path
) -> None:
    """Turned to y up when written and back when read, every point is where it was made."""
    benchmark = read_modelnet_fewshot(fewshot, way=5, shot=10, fold=1)
    name = MADE_AS.get(benchmark.classes[2], benchmark.classes[2])
    rng = np.random.default_rng((STAND_IN_SEED, 5, 10, 1, 2, 0))
    points, _ = sample_shape(make_shape(name, rng=rng), 64, rng=rng)
    np.testing.assert_array_equal(benchmark.train.points[2], points)

    rng = np.random.default_rng((STAND_IN_SEED, CATEGORIES.index("pistol"), 3))
    shape, count = make_shape("pistol", rng=rng), int(rng.integers(300, 400, endpoint=True))
    points, _ = sample_shape(shape, count, rng=rng)
    points -= points.mean(axis=0)
    points /= np.linalg.norm(points, axis=1).max()
    found = read_shapenetpart(parts, workers=1).test.points[CATEGORIES.index("pistol")]
    np.testing.assert_allclose(found, points, rtol=0, atol=1e-6)


def test_no_test_shape_is_a_training_shape(fewshot: Path) -> None:
    benchmark = read_modelnet_fewshot(fewshot, way=10, shot=20, fold=1)
    both = np.concatenate([benchmark.train.points, benchmark.test.points])
    assert len({cloud.tobytes() for cloud in both}) == len(both) == 220


def test_the_fewshot_stand_in_is_a_pickle_that_others_read(fewshot: Path) -> None:
    with zipfile.ZipFile(fewshot) as archive:
        content = pickle.loads(archive.read("ModelNetFewshot/5way_10shot/1.pkl"))
        marker = json.loads(archive.read("ModelNetFewshot/STAND-IN.json"))
    points, label, original = content["train"][0]
    assert (points.shape, points.dtype, label) == ((64, 3), np.float32, 0)
    assert 0 <= original < 40
    assert marker["stand_in_for"] == "ModelNet40 few-shot"


def test_fewshot_archives_are_the_same_however_made(fewshot: Path, tmp_path: Path) -> None:
    sizes = replace(FEWSHOT, settings=((5, 10),))
    told: list[tuple[int, int]] = []
    make_modelnet_fewshot_stand_in(tmp_path / "1.zip", sizes=sizes, workers=1)
    make_modelnet_fewshot_stand_in(
        tmp_path / "2.zip", sizes=sizes, workers=2, progress=lambda *done: told.append(done)
    )
    assert sha(tmp_path / "1.zip") == sha(tmp_path / "2.zip") != sha(fewshot)
    assert told == [(1, 2), (2, 2)]
    make_modelnet_fewshot_stand_in(tmp_path / "2.zip", sizes=sizes, seed=1, workers=1)
    assert sha(tmp_path / "1.zip") != sha(tmp_path / "2.zip")


# ---- parts


def test_all_categories_and_their_parts_are_read_back(parts: Path) -> None:
    benchmark = read_shapenetpart(parts, workers=1)
    assert (len(benchmark.train), len(benchmark.test)) == (16 * 3, 16)
    assert benchmark.stand_in
    assert benchmark.data_name == "ShapeNetPart stand-in"
    assert np.bincount(benchmark.train.categories).tolist() == [3] * 16
    for points, labels, category in zip(
        benchmark.train.points, benchmark.train.parts, benchmark.train.categories, strict=True
    ):
        assert len(points) == len(labels)
        assert 300 <= len(points) <= 400
        assert set(labels.tolist()) <= set(CATEGORY_PARTS[category])
        assert np.linalg.norm(points, axis=1).max() == pytest.approx(1.0, abs=1e-5)
    assert len({len(points) for points in benchmark.train.points}) > 10


def test_builtin_parts_are_those_of_shapenetpart_in_its_order() -> None:
    """The stand-in maps a category's i-th part to its i-th label, so the orders must be the same."""
    assert [len(PART_NAMES[name]) for name in CATEGORIES] == [len(own) for own in CATEGORY_PARTS]
    published = {
        "airplane": ("body", "wing", "tail", "engine"),
        "car": ("roof", "hood", "wheel", "body"),
        "chair": ("back", "seat", "leg", "arm"),
        "guitar": ("head", "neck", "body"),
        "mug": ("handle", "cup"),
        "rocket": ("body", "fin", "nose"),
    }
    assert {name: PART_NAMES[name] for name in published} == published


def test_parts_lie_where_they_belong(parts: Path) -> None:
    """A chair's legs are below its seat, and its seat below its back, once it is z up."""
    benchmark = read_shapenetpart(parts, workers=1)
    chairs = np.flatnonzero(benchmark.train.categories == CATEGORIES.index("chair"))
    assert len(chairs) == 3
    for chair in chairs:
        height, part = benchmark.train.points[chair][:, 2], benchmark.train.parts[chair]
        back, seat, leg = (np.median(height[part == number]) for number in (12, 13, 14))
        assert leg < seat < back


def test_normals_are_units_and_stand_on_the_surface(parts: Path) -> None:
    with zipfile.ZipFile(parts) as archive:
        name = next(n for n in archive.namelist() if n.endswith("/03797390/stand-in-0000.txt"))
        rows = np.array([line.split() for line in archive.read(name).splitlines()], dtype=float)
    assert rows.shape[1] == 7
    np.testing.assert_allclose(np.linalg.norm(rows[:, 3:6], axis=1), 1.0, atol=1e-5)
    # A mug's cup faces sideways nearly everywhere: y is up in the archive.
    cup = rows[rows[:, 6] == 37]
    assert np.median(np.abs(cup[:, 4])) < 0.5


def test_part_archives_are_the_same_however_made(parts: Path, tmp_path: Path) -> None:
    make_shapenetpart_stand_in(tmp_path / "2.zip", sizes=PARTS, workers=2)
    assert sha(tmp_path / "2.zip") == sha(parts)


def test_a_point_lies_on_the_face_that_is_named() -> None:
    shape = make_shape("chair", rng=np.random.default_rng(0))
    points, face = sample_faces(shape, 200, rng=np.random.default_rng(1))
    a, b, c = shape.vertices[shape.faces[face]].transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    np.testing.assert_allclose(((points - a) * normal).sum(axis=1), 0.0, atol=1e-6)
    same, part = sample_shape(shape, 200, rng=np.random.default_rng(1))
    np.testing.assert_array_equal(points, same)
    np.testing.assert_array_equal(part, shape.face_part[face])


# ---- LVIS


def test_the_lvis_folder_is_read_back(lvis: Path) -> None:
    corpus = open_corpus(lvis / CORPUS_FOLDER)
    assert len(corpus) == 3 * 12 + 10 + 3
    assert corpus[0].points.shape == (64, 3)
    shapes = read_lvis(lvis / ANNOTATION_NAME, corpus)
    assert shapes.classes == ("bowl", "chair", "cup")
    assert shapes.dropped_classes == ("mug",)
    assert np.bincount(shapes.labels).tolist() == [12, 12, 12]
    assert (shapes.annotated, shapes.missing) == (3 * 12 + 10 + 2, 2)
    assert shapes.stand_in
    assert shapes.data_name == "Objaverse-LVIS stand-in"
    train, test = draw_lvis(shapes, seed=0)
    assert (len(train), len(test)) == (30, 6)
    assert json.loads((lvis / "STAND-IN.json").read_text())["stand_in_for"] == "Objaverse-LVIS"


def test_lvis_labels_are_the_shapes_own(lvis: Path) -> None:
    """A bowl is wider than high, a chair mostly higher than wide; medians keep a few odd ones out."""
    corpus = open_corpus(lvis / CORPUS_FOLDER)
    shapes = read_lvis(lvis / ANNOTATION_NAME, corpus)
    slender = []
    for label in (0, 1):
        sizes = [np.ptp(corpus.points(i), axis=0) for i in shapes.indices[shapes.labels == label]]
        slender.append(np.median([size[2] / size[:2].max() for size in sizes]))
    assert slender[0] < 0.8 < slender[1]


def test_lvis_folders_are_the_same_however_made(lvis: Path, tmp_path: Path) -> None:
    make_lvis_stand_in(tmp_path / "again", sizes=LVIS, workers=2)
    files = [path.relative_to(lvis) for path in sorted(lvis.rglob("*")) if path.is_file()]
    assert len(files) >= 4
    assert [sha(lvis / file) for file in files] == [sha(tmp_path / "again" / f) for f in files]


# ---- all


class _StopError(Exception):
    pass


@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        (make_modelnet_fewshot_stand_in, FEWSHOT),
        (make_shapenetpart_stand_in, PARTS),
        (make_lvis_stand_in, LVIS),
    ],
)
def test_a_stand_in_is_whole_or_absent(make: object, sizes: object, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise _StopError

    assert callable(make)
    with pytest.raises(_StopError):
        make(tmp_path / "stopped", sizes=sizes, workers=1, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_lvis_folder_is_left_alone(lvis: Path) -> None:
    before = sha(lvis / ANNOTATION_NAME)
    with pytest.raises(DataError, match="exists already"):
        make_lvis_stand_in(lvis, sizes=LVIS, seed=1, workers=1)
    assert sha(lvis / ANNOTATION_NAME) == before


def test_impossible_sizes_are_refused() -> None:
    for wrong in (
        lambda: FewshotSizes(settings=((5, 15),)),
        lambda: FewshotSizes(settings=()),
        lambda: FewshotSizes(folds=11),
        lambda: FewshotSizes(test=0),
        lambda: PartSizes(val=0),
        lambda: PartSizes(points=1),
        lambda: LvisSizes(each=10),
        lambda: LvisSizes(scarce=54),
        lambda: LvisSizes(missing=-1),
    ):
        with pytest.raises(ConfigError, match="a stand-in"):
            wrong()
