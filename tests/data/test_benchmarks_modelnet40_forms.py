"""The two forms of ModelNet40 beside its meshes, in archives made here in exactly their layouts."""

import hashlib
import io
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from pointdistill.data.benchmarks.modelnet40 import CLASSES, OFFICIAL, read_modelnet40
from pointdistill.data.benchmarks.records import Benchmark
from pointdistill.errors import DataError
from tests.data.refusals import refusal_of

POINTS = 40
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"

# Directions of different lengths, in the archive's frame with y up: no mirror image of it is a rotation of it.
CORNER = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]], dtype=np.float32)
TURNED = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 2], [3, 0, 0]], dtype=np.float32)


def cloud(number: int, points: int = POINTS) -> np.ndarray:
    found = np.random.default_rng(number).uniform(-1, 1, (points, 3)).astype(np.float32)
    found[:4] = CORNER
    return found


def write(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def read(path: Path, points: int = POINTS) -> Benchmark:
    return read_modelnet40(path, points=points, workers=1)


def refusal(path: Path) -> str:
    return refusal_of(path, read)


# ---- HDF5


def hdf5(numbers: list[int], labels: list[int], points: int = POINTS) -> bytes:
    """One file as distributed: labels (n, 1) uint8, and normals beside the points."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["data"] = np.stack([cloud(number, points) for number in numbers])
        file["label"] = np.array(labels, dtype=np.uint8)[:, None]
        file["normal"] = np.zeros((len(numbers), points, 3), np.float32)
    return content.getvalue()


HDF5_ROOT = "modelnet40_ply_hdf5_2048"
HDF5 = {
    f"{HDF5_ROOT}/ply_data_train0.h5": hdf5([0, 1], [39, 0]),
    f"{HDF5_ROOT}/ply_data_train1.h5": hdf5([2], [7]),
    f"{HDF5_ROOT}/ply_data_test0.h5": hdf5([3, 4], [0, 8]),
    f"{HDF5_ROOT}/ply_data_train_0_id2file.json": b"[]",
    f"{HDF5_ROOT}/shape_names.txt": "\n".join(CLASSES).encode(),
    f"{HDF5_ROOT}/train_files.txt": b"data/modelnet40_ply_hdf5_2048/ply_data_train0.h5\n",
    f"__MACOSX/{HDF5_ROOT}/._ply_data_train0.h5": b"\0\5\x16\7",
}


def test_hdf5_files_are_joined_and_turned(tmp_path: Path) -> None:
    benchmark = read(write(tmp_path / "hdf5.zip", HDF5), points=4096)  # it has what it has
    assert benchmark.train.points.shape == (3, POINTS, 3)
    assert benchmark.train.labels.tolist() == [39, 0, 7]
    assert benchmark.test.labels.tolist() == [0, 8]
    assert benchmark.classes == CLASSES
    np.testing.assert_array_equal(benchmark.train.points[2], cloud(2)[:, [2, 0, 1]])
    np.testing.assert_array_equal(benchmark.test.points[0, :4], TURNED)
    assert np.linalg.det(TURNED[1:]) == pytest.approx(np.linalg.det(CORNER[1:]))


def test_the_result_says_which_form_was_read(tmp_path: Path) -> None:
    path = write(tmp_path / "hdf5.zip", HDF5)
    benchmark = read(path)
    assert benchmark.form == "modelnet40_ply_hdf5_2048, 40 points a model as distributed"
    assert benchmark.data_name == "ModelNet40 (3 + 2 clouds, officially 9840 + 2468)"
    assert benchmark.checksum == hashlib.sha256(path.read_bytes()).hexdigest()
    assert OFFICIAL["ModelNet40.zip"] == (9843, 2468)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"ply_data_train0.h5": HDF5[f"{HDF5_ROOT}/ply_data_train0.h5"][:900]}, "damaged"),
        ({"ply_data_train0.h5": LFS}, "is a Git-LFS pointer in place of the file"),
        ({"ply_data_train0.h5": hdf5([0], [40])}, "labels from 40 to 40"),
        (
            {"ply_data_train0.h5": hdf5([0], [3], points=41)},
            r"clouds of \[40, 41\] points in train",
        ),
        ({"shape_names.txt": "\n".join(reversed(CLASSES)).encode()}, "has other classes"),
    ],
)
def test_damaged_hdf5_files(tmp_path: Path, changes: dict[str, bytes], cause: str) -> None:
    changed = HDF5 | {f"{HDF5_ROOT}/{name}": content for name, content in changes.items()}
    path = write(tmp_path / "bad.zip", changed)
    with pytest.raises(DataError, match=cause):
        read(path)
    refusal(path)


def test_points_that_are_not_finite(tmp_path: Path) -> None:
    content = io.BytesIO(HDF5[f"{HDF5_ROOT}/ply_data_test0.h5"])
    with h5py.File(content, "r+") as file:
        file["data"][1, 5, 1] = np.inf
    changed = HDF5 | {f"{HDF5_ROOT}/ply_data_test0.h5": content.getvalue()}
    assert "1 of 2 clouds are not finite" in refusal(write(tmp_path / "bad.zip", changed))


def test_without_test_files(tmp_path: Path) -> None:
    some = {name: content for name, content in HDF5.items() if "test0" not in name}
    assert "holds no ply_data_test0.h5" in refusal(write(tmp_path / "bad.zip", some))


# ---- resampled


def rows(number: int, points: int = POINTS) -> bytes:
    table = np.column_stack([cloud(number, points), np.tile([0.0, 1.0, 0.0], (points, 1))])
    return "\n".join(",".join(f"{x:.6f}" for x in row) for row in table.tolist()).encode() + b"\n"


TXT_ROOT = "modelnet40_normal_resampled"
TXT = {
    f"{TXT_ROOT}/filelist.txt": b"chair/chair_0001.txt\n",
    f"{TXT_ROOT}/modelnet10_train.txt": b"chair_0001\n",
    f"{TXT_ROOT}/modelnet40_shape_names.txt": "\n".join(CLASSES).encode(),
    f"{TXT_ROOT}/modelnet40_train.txt": b"night_stand_0001\nchair_0001\n",
    f"{TXT_ROOT}/modelnet40_test.txt": b"chair_0002\r\n",
    f"{TXT_ROOT}/chair/chair_0001.txt": rows(1),
    f"{TXT_ROOT}/chair/chair_0002.txt": rows(2),
    f"{TXT_ROOT}/night_stand/night_stand_0001.txt": rows(3),
    f"__MACOSX/{TXT_ROOT}/chair/._chair_0001.txt": b"\0\5\x16\7",
}


def test_resampled_clouds_are_those_of_the_lists(tmp_path: Path) -> None:
    benchmark = read(write(tmp_path / "txt.zip", TXT))
    assert benchmark.classes == ("chair", "night_stand")
    assert benchmark.train.labels.tolist() == [0, 1]
    assert benchmark.test.labels.tolist() == [0]
    np.testing.assert_allclose(
        benchmark.train.points[0], cloud(1)[:, [2, 0, 1]], rtol=0, atol=5.1e-7
    )
    np.testing.assert_array_equal(benchmark.test.points[0, :4], TURNED)
    assert benchmark.form == "modelnet40_normal_resampled, 40 of each model's resampled points"
    assert benchmark.data_name.endswith("officially 9843 + 2468)")


def test_fewer_points_are_a_random_subset_by_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "txt.zip", TXT)
    whole = {tuple(point) for point in read(path).train.points[0].tolist()}
    some, other = (
        read_modelnet40(path, points=32, seed=seed, workers=1).train.points[0] for seed in (0, 1)
    )
    assert {tuple(point) for point in some.tolist()} < whole
    assert not np.array_equal(some, other)


def test_an_extracted_folder_reads_the_same(tmp_path: Path) -> None:
    for members in (HDF5, TXT):
        path = write(tmp_path / "archive.zip", members)
        folder = tmp_path / str(len(members))
        with zipfile.ZipFile(path) as file:
            file.extractall(folder)
        whole, extracted = read(path), read(folder)
        np.testing.assert_array_equal(extracted.train.points, whole.train.points)
        np.testing.assert_array_equal(extracted.test.labels, whole.test.labels)
        assert extracted.form == whole.form


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"chair/chair_0002.txt": rows(2)[:-12]}, "row 40 has 5 numbers"),
        ({"chair/chair_0002.txt": rows(2).replace(b"2.000000", b"nan")}, "not finite"),
        ({"chair/chair_0002.txt": b""}, "it has no rows"),
        ({"chair/chair_0002.txt": LFS}, "is a Git-LFS pointer in place of the file"),
        ({"chair/chair_0002.txt": rows(2, 39)}, "a point cloud of 39 points, 40 are needed"),
        ({"modelnet40_test.txt": b"chair_0002\nchair_0003\n"}, "lacks 1 of the 2 clouds"),
        ({"modelnet40_test.txt": b"chair_0002\nchair_0002\n"}, "chair/test/chair_0002 twice"),
        (
            {"modelnet40_test.txt": b"horse_0001\n", "horse/horse_0001.txt": rows(1)},
            "'horse' is none of ModelNet40's classes",
        ),
        ({"../../chair_0009.txt": rows(1)}, "leads out of the archive"),
    ],
)
def test_damaged_resampled_clouds(tmp_path: Path, changes: dict[str, bytes], cause: str) -> None:
    changed = TXT | {f"{TXT_ROOT}/{name}": content for name, content in changes.items()}
    assert cause in refusal(write(tmp_path / "bad.zip", changed))


def test_without_one_of_the_lists(tmp_path: Path) -> None:
    some = {name: content for name, content in TXT.items() if "modelnet40_test" not in name}
    assert "has no modelnet40_test.txt" in refusal(write(tmp_path / "bad.zip", some))


def test_a_folder_with_several_forms_is_refused(tmp_path: Path) -> None:
    """Which one was measured must not depend on what else lies there."""
    both = write(tmp_path / "both.zip", HDF5 | TXT)
    assert "several forms" in refusal(both)
    assert "modelnet40_normal_resampled, modelnet40_ply_hdf5_2048" in refusal(both)
