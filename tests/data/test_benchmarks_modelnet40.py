"""ModelNet40's reader, on archives made here in exactly the layout of ``ModelNet40.zip``."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.benchmarks.modelnet40 import CLASSES, read_modelnet40
from pointdistill.errors import ConfigError, DataError

# Small triangles at three places that no mirror or change of axes maps onto each other, with areas
# in the ratio 1 : 2 : 3: at x = 10, at y = 20, at z = 30 (up).
PLACES = np.array([[10, 0, 0], [0, 20, 0], [0, 0, 30]], dtype=float)


def off_text(*, glued: bool = False, scale: float = 1.0) -> bytes:
    vertices = [
        (scale * (place + np.array(step))).tolist()
        for place, side in zip(PLACES, (1.0, 2.0, 3.0), strict=True)
        for step in ((0, 0, 0), (0.1 * side, 0, 0), (0, 0.1, 0))
    ]
    rows = [" ".join(map(str, vertex)) for vertex in vertices]
    faces = ["3 0 1 2", "3 3 4 5", "3 6 7 8"]
    header = "OFF9 3 0" if glued else "OFF\n9 3 0"
    return "\n".join([header, *rows, *faces, ""]).encode()


def write_archive(path: Path, meshes: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ModelNet40/", b"")
        for name, content in meshes.items():
            archive.writestr(f"ModelNet40/{name}", content)
        archive.writestr("ModelNet40/.DS_Store", b"\0\0\0\1Bud1")
        archive.writestr("__MACOSX/ModelNet40/chair/train/._chair_0001.off", b"\0\5\x16\7")
    return path


MESHES = {
    "chair/train/chair_0001.off": off_text(),
    "chair/train/chair_0002.off": off_text(glued=True),
    "chair/test/chair_0003.off": off_text(scale=2.0),
    "xbox/train/xbox_0001.off": off_text(),
    "xbox/test/xbox_0002.off": off_text(glued=True, scale=2.0),
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_archive(tmp_path / "ModelNet40.zip", MESHES)


def test_there_are_forty_classes_in_alphabetical_order() -> None:
    assert len(CLASSES) == 40
    assert list(CLASSES) == sorted(CLASSES)
    assert (CLASSES[0], CLASSES[-1]) == ("airplane", "xbox")


def test_splits_and_labels_are_those_of_the_folders(archive: Path) -> None:
    benchmark = read_modelnet40(archive, points=64, workers=1)
    assert (benchmark.name, benchmark.split) == ("ModelNet40", None)
    assert benchmark.classes == ("chair", "xbox")
    assert benchmark.train.points.shape == (3, 64, 3)
    assert benchmark.train.points.dtype == np.float32
    assert benchmark.train.labels.tolist() == [0, 0, 1]
    assert benchmark.test.labels.tolist() == [0, 1]


def test_axes_stay_as_they_are_and_points_follow_the_area(archive: Path) -> None:
    """Glued header or not: a sixth of the points at x = 10, a third at y = 20, half at z = 30."""
    benchmark = read_modelnet40(archive, points=6000, workers=1)
    for scale, cloud in [
        (1.0, benchmark.train.points[0]),
        (1.0, benchmark.train.points[1]),
        (2.0, benchmark.test.points[1]),
    ]:
        distance = np.linalg.norm(cloud[:, None] - scale * PLACES, axis=2)
        assert distance.min(axis=1).max() < 0.4 * scale
        share = np.bincount(distance.argmin(axis=1), minlength=3) / len(cloud)
        np.testing.assert_allclose(share, [1 / 6, 2 / 6, 3 / 6], atol=0.03)


def test_points_depend_on_seed_and_id_alone(archive: Path, tmp_path: Path) -> None:
    more = {"airplane/train/airplane_0001.off": off_text()} | MESHES
    larger = write_archive(tmp_path / "larger.zip", more)
    some = read_modelnet40(archive, points=32, seed=7, workers=1).train.points
    same = read_modelnet40(larger, points=32, seed=7, workers=1).train.points
    other = read_modelnet40(archive, points=32, seed=8, workers=1).train.points
    np.testing.assert_array_equal(same[1:], some)
    assert not np.array_equal(other, some)
    assert not np.array_equal(some[0], some[1])  # the same mesh under two names


def test_several_processes_give_the_same_points(tmp_path: Path) -> None:
    meshes = {f"chair/train/chair_{i:04d}.off": off_text() for i in range(20)}
    meshes["chair/test/chair_0020.off"] = off_text()
    archive = write_archive(tmp_path / "ModelNet40.zip", meshes)
    calls: list[tuple[int, int]] = []
    one = read_modelnet40(archive, points=32, cache=tmp_path / "one", workers=1)
    two = read_modelnet40(
        archive,
        points=32,
        cache=tmp_path / "two",
        workers=2,
        progress=lambda done, total: calls.append((done, total)),
    )
    np.testing.assert_array_equal(one.train.points, two.train.points)
    assert calls == [(16, 21), (21, 21)]


def test_an_extracted_folder_reads_the_same(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "extracted")
    whole = read_modelnet40(archive, points=32, workers=1)
    for folder in (tmp_path / "extracted", tmp_path / "extracted" / "ModelNet40"):
        extracted = read_modelnet40(folder, points=32, workers=1)
        np.testing.assert_array_equal(extracted.train.points, whole.train.points)
        np.testing.assert_array_equal(extracted.test.points, whole.test.points)


def test_points_are_kept_and_found_again(archive: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    calls: list[int] = []

    def read(points: int = 32) -> np.ndarray:
        benchmark = read_modelnet40(
            archive, points=points, cache=cache, workers=1, progress=lambda done, _: calls.append(1)
        )
        return benchmark.train.points

    first = read()
    assert len(calls) == 1
    np.testing.assert_array_equal(read(), first)
    assert len(calls) == 1
    read(points=33)
    assert len(calls) == 2
    for cached in cache.iterdir():
        cached.write_bytes(cached.read_bytes()[:900])  # as a full disk leaves it
    np.testing.assert_array_equal(read(), first)
    assert len(calls) == 3


def test_points_of_another_archive_are_not_taken(archive: Path, tmp_path: Path) -> None:
    before = read_modelnet40(archive, points=32, workers=1)
    write_archive(archive, MESHES | {"chair/train/chair_0001.off": off_text(scale=3.0)})
    after = read_modelnet40(archive, points=32, workers=1)
    assert after.checksum != before.checksum
    assert after.train.points[0].max() > 2.5 * before.train.points[0].max()


def test_without_a_place_for_the_points_they_are_sampled_each_time(
    archive: Path, tmp_path: Path
) -> None:
    (tmp_path / "occupied").write_text("a file where the folder should be")
    benchmark = read_modelnet40(archive, points=32, cache=tmp_path / "occupied", workers=1)
    assert benchmark.train.points.shape == (3, 32, 3)


def test_the_result_says_what_was_read(archive: Path) -> None:
    benchmark = read_modelnet40(archive, points=1024, workers=1)
    assert benchmark.checksum == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert benchmark.form == "ModelNet40.zip, OFF meshes, 1,024 points uniform by area"
    assert benchmark.data_name == "ModelNet40 (3 + 2 clouds, officially 9843 + 2468)"
    assert not benchmark.stand_in


def test_absent_archive_says_where_it_comes_from_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "ModelNet40.zip"
    with pytest.raises(DataError) as caught:
        read_modelnet40(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), "https://modelnet.cs.princeton.edu", "stand-in instead"):
        assert part in message


@pytest.mark.parametrize(
    ("meshes", "cause"),
    [
        ({"chair/train/chair_0001.off": off_text()}, "holds no <class>/test/<name>.off"),
        ({"chair/chair_0001.txt": b"0 0 0"}, "holds no <class>/train/<name>.off"),
        (MESHES | {"horse/test/horse_0001.off": off_text()}, "'horse' is none of ModelNet40's"),
        (MESHES | {"again/chair/test/chair_0003.off": off_text()}, "chair/test/chair_0003 twice"),
        (MESHES | {"../../chair/test/chair_0009.off": off_text()}, "leads out of the archive"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, meshes: dict[str, bytes], cause: str) -> None:
    with pytest.raises(DataError, match=cause) as caught:
        read_modelnet40(write_archive(tmp_path / "ModelNet40.zip", meshes), points=32, workers=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        off_text()[:60],
        b"",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        b"OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n",
    ],
)
def test_a_damaged_mesh_is_named(tmp_path: Path, content: bytes) -> None:
    archive = write_archive(
        tmp_path / "ModelNet40.zip", MESHES | {"xbox/test/xbox_0002.off": content}
    )
    with pytest.raises(DataError, match="xbox/test/xbox_0002") as caught:
        read_modelnet40(archive, points=32, workers=1)
    assert "\n" not in str(caught.value)
    assert "pointdistill-" not in str(caught.value)  # no temporary file of ours


def test_a_damaged_training_mesh_costs_itself(
    tmp_path: Path, archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Named each time, also where the points come from the cache."""
    damaged = MESHES | {"chair/train/chair_0002.off": off_text()[:60]}
    path = write_archive(tmp_path / "damaged.zip", damaged)
    whole = read_modelnet40(archive, points=32, workers=1).train
    for _ in range(2):
        caplog.clear()
        benchmark = read_modelnet40(path, points=32, cache=tmp_path / "cache", workers=1)
        np.testing.assert_array_equal(benchmark.train.points, whole.points[[0, 2]])
        assert benchmark.train.ids == ("chair/train/chair_0001", "xbox/train/xbox_0001")
        assert benchmark.data_name.startswith("ModelNet40 (2 + 2 clouds, officially 9843 + 2468)")
        said = "left out 1 of 3 training shapes as damaged: chair/train/chair_0002"
        assert said in caplog.text


@pytest.mark.parametrize(("points", "seed"), [(0, 0), (32, -1)])
def test_impossible_settings_are_refused(archive: Path, points: int, seed: int) -> None:
    with pytest.raises(ConfigError, match="1 point or more and a seed from 0"):
        read_modelnet40(archive, points=points, seed=seed)
