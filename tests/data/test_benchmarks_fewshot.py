"""The few-shot reader, on archives made here in exactly the layout of ``ModelNetFewshot.zip``."""

import hashlib
import os
import pickle
import pickletools
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointdistill.data.benchmarks.modelnet40 import CLASSES
from pointdistill.data.benchmarks.modelnet_fewshot import FEWSHOT_SETTINGS, read_modelnet_fewshot
from pointdistill.data.benchmarks.records import Benchmark
from pointdistill.errors import ConfigError, DataError
from tests.data.refusals import refusal_of

POINTS = 40
ORIGINALS = (8, 0, 39, 33, 2)  # chair, airplane, xbox, table, bed

# Three directions of different lengths from a corner, in the archive's frame: 1 along x, 2 up along y, 3 along z.
CORNER = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]], dtype=np.float32)


def cloud(label: int = 0, number: int = 0, columns: int = 3) -> np.ndarray:
    rng = np.random.default_rng((label, number))
    points = rng.uniform(-1, 1, (POINTS, columns)).astype(np.float32)
    points[:4, :3] = CORNER
    return points


def rows(count: int, *, first: int = 0, columns: int = 3) -> list[tuple[Any, Any, Any]]:
    """``count`` shapes of each of the five classes."""
    return [
        (cloud(label, first + number, columns), label, original)
        for number in range(count)
        for label, original in enumerate(ORIGINALS)
    ]


def fold(columns: int = 3) -> dict[str, list[Any]]:
    return {"train": rows(10, columns=columns), "test": rows(20, first=10, columns=columns)}


def write(path: Path, content: bytes, *, name: str = "5way_10shot/3.pkl") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ModelNetFewshot/", b"")
        archive.writestr(f"ModelNetFewshot/{name}", content)
        archive.writestr("ModelNetFewshot/.DS_Store", b"\0\0\0\1Bud1")
        archive.writestr(f"__MACOSX/ModelNetFewshot/{name.replace('/', '/._')}", b"\0\5\x16\7")
    return path


def read(path: Path) -> Benchmark:
    return read_modelnet_fewshot(path, way=5, shot=10, fold=3)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write(tmp_path / "ModelNetFewshot.zip", pickle.dumps(fold(), protocol=4))


def refusal(path: Path) -> str:
    return refusal_of(path, read)


def old_numpy(data: bytes) -> bytes:
    """The same pickle as numpy 1.x writes it: names in ``numpy.core``, one byte shorter."""
    for module in (b"multiarray", b"numeric"):
        for start, end in ((b"\x8c%c", b""), (b"c", b"\n")):
            new, old = b"numpy._core." + module, b"numpy.core." + module
            if start == b"c":
                data = data.replace(start + new + end, start + old + end)
            else:
                data = data.replace(start % len(new) + new, start % len(old) + old)
    return pickletools.optimize(data)  # which also writes the frames' sizes anew


@pytest.mark.parametrize("columns", [3, 6])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("numpy_generation", ["1", "2"])
def test_every_protocol_and_generation_of_numpy(
    tmp_path: Path, protocol: int, numpy_generation: str, columns: int
) -> None:
    data = pickle.dumps(fold(columns), protocol=protocol)
    assert b"numpy._core" in data
    if numpy_generation == "1":
        data = old_numpy(data)
        assert b"numpy._core" not in data
        assert b"numpy.core" in data
    benchmark = read(write(tmp_path / "archive.zip", data))
    assert benchmark.train.points.shape == (50, POINTS, 3)
    assert benchmark.train.points.dtype == np.float32
    expected = np.stack([points[:, :3] for points, _, _ in fold(columns)["test"]])
    np.testing.assert_array_equal(benchmark.test.points, expected[..., [2, 0, 1]])
    assert benchmark.test.labels.tolist() == list(range(5)) * 20


def test_shapes_are_rotated_and_never_mirrored(archive: Path) -> None:
    """The usual reader swaps y and z, which puts up in place but turns a left hand into a right one."""
    turned = read(archive).train.points[0, :4]
    np.testing.assert_array_equal(turned, [[0, 0, 0], [0, 1, 0], [0, 0, 2], [3, 0, 0]])
    # Six times the volume that the three directions span: its sign is the handedness.
    assert np.linalg.det(CORNER[1:]) == pytest.approx(6.0)
    assert np.linalg.det(turned[1:]) == pytest.approx(6.0)


def test_labels_mean_the_classes_of_their_original_labels(archive: Path) -> None:
    benchmark = read(archive)
    assert benchmark.classes == ("chair", "airplane", "xbox", "table", "bed")
    assert CLASSES.index("table") == 33
    assert np.bincount(benchmark.train.labels).tolist() == [10] * 5


def test_the_result_says_what_was_read(archive: Path) -> None:
    benchmark = read(archive)
    assert (benchmark.name, benchmark.split) == ("ModelNet40 few-shot", "5w10s")
    assert benchmark.data_name == "ModelNet40 few-shot"  # 50 + 100 are the published counts
    assert benchmark.form == "ModelNetFewshot.zip, 5way_10shot/3.pkl"
    assert benchmark.checksum == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert not benchmark.stand_in


def test_the_checksum_is_that_of_the_archive_as_it_is_now(archive: Path) -> None:
    """It is worked out once for forty folds, and again when the file has changed."""
    before = read(archive).checksum
    write(archive, pickle.dumps(fold(6)))
    assert read(archive).checksum == hashlib.sha256(archive.read_bytes()).hexdigest() != before


def test_fewer_test_shapes_are_named(tmp_path: Path) -> None:
    some = {"train": rows(10), "test": rows(2)}
    benchmark = read(write(tmp_path / "archive.zip", pickle.dumps(some)))
    assert benchmark.data_name == "ModelNet40 few-shot (50 + 10 clouds, officially 50 + 100)"


def test_an_extracted_folder_reads_the_same(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "extracted")
    whole = read(archive)
    for folder in (tmp_path / "extracted", tmp_path / "extracted" / "ModelNetFewshot"):
        np.testing.assert_array_equal(read(folder).train.points, whole.train.points)


def test_labels_may_be_numpys_and_rows_lists(tmp_path: Path) -> None:
    """As scalars, as arrays of one, and with points of another width, byte order and memory order."""
    odd = {
        side: [
            [np.asfortranarray(p.astype(">f8")), np.int32(label), np.array([original], np.uint8)]
            for p, label, original in some
        ]
        for side, some in fold().items()
    }
    for protocol in (2, 5):
        benchmark = read(write(tmp_path / "odd.zip", pickle.dumps(odd, protocol=protocol)))
        plain = read(write(tmp_path / "plain.zip", pickle.dumps(fold())))
        np.testing.assert_array_equal(benchmark.train.points, plain.train.points)
        assert benchmark.classes == plain.classes


# ---- refusals


@pytest.mark.parametrize(
    ("way", "shot", "fold_number", "cause"),
    [(5, 15, 0, "no setting of 5 way 15 shot"), (5, 10, 10, "folds 0 to 9, got 10")],
)
def test_a_setting_that_does_not_exist(
    archive: Path, way: int, shot: int, fold_number: int, cause: str
) -> None:
    with pytest.raises(ConfigError, match=cause):
        read_modelnet_fewshot(archive, way=way, shot=shot, fold=fold_number)


def test_an_absent_archive_and_an_absent_fold(archive: Path, tmp_path: Path) -> None:
    message = refusal(tmp_path / "none.zip")
    assert "Point-BERT" in message
    assert "stand-in instead" in message
    with pytest.raises(DataError, match=r"has no 5way_10shot/4\.pkl; .*folds of: 5way_10shot$"):
        read_modelnet_fewshot(archive, way=5, shot=10, fold=4)
    assert len(FEWSHOT_SETTINGS) == 4


class _Runs:
    """Asks whoever loads it to make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("where", ["beside", "as points", "as a label"])
def test_a_pickle_that_runs_something_is_refused_and_does_nothing(
    tmp_path: Path, where: str
) -> None:
    marker = tmp_path / "marker"
    content: dict[str, Any] = fold()
    if where == "beside":
        content["more"] = _Runs(marker)
    else:
        row = (cloud(), _Runs(marker), 8) if where == "as a label" else (_Runs(marker), 0, 8)
        content["train"][0] = row
    data = pickle.dumps(content)
    assert "which labelled clouds do not need" in refusal(write(tmp_path / "bad.zip", data))
    assert not marker.exists()
    pickle.loads(data)  # that it is an attack
    assert marker.is_dir()


def test_naming_a_module_does_not_import_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bait.py").write_text("from pathlib import Path\nPath('sprung').touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"train": [], "test": []}, protocol=2)[:-1] + b"cbait\nThing\n0."
    assert "holds no list 'train'" in refusal(write(tmp_path / "bad.zip", data))
    assert "bait" not in sys.modules
    assert not (tmp_path / "sprung").exists()


def test_one_array_a_thousand_times_is_not_unfolded(tmp_path: Path) -> None:
    same = cloud()
    content = {
        "train": [(same, label, original) for label, original in enumerate(ORIGINALS)] * 10,
        "test": rows(1),
    }
    assert "states points of" in refusal(write(tmp_path / "bad.zip", pickle.dumps(content)))


def changed(**sides: list[Any]) -> bytes:
    return pickle.dumps(fold() | sides)


def with_first(row: tuple[Any, ...]) -> bytes:
    return changed(train=[row, *rows(10)[1:]])


NOT_FINITE = cloud()
NOT_FINITE[7, 1] = np.nan


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        pytest.param(pickle.dumps([1]), "no table of train and test", id="a list"),
        pytest.param(pickle.dumps({"train": rows(10)}), "holds no list 'test'", id="one side"),
        pytest.param(
            changed(train=rows(9)), r"\[9\] training shapes a class, not 10", id="9 shots"
        ),
        pytest.param(changed(train=rows(10)[1:]), r"\[9, 10\] training shapes", id="one missing"),
        pytest.param(changed(test=rows(1)[:4]), "labels .* in 'test'", id="four classes"),
        pytest.param(with_first((cloud(), 0)), "shape 0 of 'train' is not", id="two values"),
        pytest.param(with_first((cloud().tolist(), 0, 8)), "shape 0 of 'train'", id="a list"),
        pytest.param(with_first((cloud()[0], 0, 8)), "shape 0 of 'train'", id="one point"),
        pytest.param(with_first((cloud(), 0, 9)), "labels", id="one label, two classes"),
        pytest.param(with_first((cloud(), "0", 8)), "labels", id="a label of text"),
        pytest.param(with_first((cloud(), 0.5, 8)), "labels", id="half a label"),
        pytest.param(with_first((cloud()[:9], 0, 8)), "clouds of shapes", id="fewer points"),
        pytest.param(with_first((NOT_FINITE, 0, 8)), "1 of 50 clouds are not finite", id="NaN"),
        pytest.param(
            with_first((cloud().astype(np.float64) * 1e300, 0, 8)),
            "1 of 50 clouds are not finite",
            id="too large",
        ),
        pytest.param(
            with_first((np.array([[object()] * 3]), 0, 8)),
            "accepted are plain numbers",
            id="objects",
        ),
        pytest.param(
            with_first((np.zeros((4, 3), dtype="U3"), 0, 8)),
            "accepted are plain numbers",
            id="text",
        ),
        pytest.param(
            changed(test=[(p, (k + 1) % 5, o) for p, k, o in rows(1)]),
            "other classes in training than in testing",
            id="labels shifted",
        ),
        pytest.param(pickle.dumps(fold())[:-20], "damaged|ends|frame", id="cut short"),
        pytest.param(b"", "damaged", id="empty"),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "Git-LFS pointer .*git lfs pull",
            id="pointer",
        ),
    ],
)
def test_another_content_is_refused(tmp_path: Path, data: bytes, cause: str) -> None:
    message = refusal(write(tmp_path / "bad.zip", data))
    assert re.search(cause, message), message
    assert "5way_10shot/3.pkl" in message


def state(shape: tuple[Any, ...], data: bytes, kind: bytes = b"f4") -> bytes:
    """A pickle of one array, written step by step."""
    text = b"X%c\0\0\0%s" % (len(kind), kind)
    dtype = b"cnumpy\ndtype\n" + text + b"\x89\x88\x87R"
    sizes = b"(" + b"".join(b"K%c" % n for n in shape) + b"t"
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\x01b\x87R"
    return made + b"(K\x01" + sizes + dtype + b"\x89C%c" % len(data) + data + b"tb"


def of_array(array: bytes) -> bytes:
    row = b"(" + array + b"K\0K\x08t"
    return b"\x80\x04}(X\x05\0\0\0train](" + row + b"eX\x04\0\0\0test](" + row + b"eu."


@pytest.mark.parametrize(
    ("array", "cause"),
    [
        (state((1, 3), bytes(12)), "labels"),  # the array itself is fine
        (state((2, 3), bytes(12)), "states an array of 24 bytes and holds 12"),
        (state((255,) * 6 + (3,), bytes(12)), "states an array of"),
        (state((1,) * 20 + (3,), bytes(12)), "not up to 8 counts"),
        (state((1, 3), bytes(12), b"O8"), "accepted are plain numbers"),
        (b"cnumpy.core.multiarray\n_reconstruct\nK\0\x85R", "not numpy.ndarray"),
        (b"c_codecs\nencode\nX\1\0\0\0aX\4\0\0\0zlib\x86R", "not written as Latin-1"),
        (b"cnumpy\nload\nX\1\0\0\0a\x85R", "shape 0 of 'train' is not"),
    ],
)
def test_arrays_that_are_not_what_they_state(tmp_path: Path, array: bytes, cause: str) -> None:
    assert cause in refusal(write(tmp_path / "bad.zip", of_array(array)))


def test_archives_that_are_none(tmp_path: Path, archive: Path) -> None:
    for content, cause in [
        (archive.read_bytes()[:-30], "ends early"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git-LFS pointer"),
        (b"<!DOCTYPE html>", "web page"),
        (b"", "empty file"),
    ]:
        path = tmp_path / "bad.zip"
        path.write_bytes(content)
        assert cause in refusal(path)


def test_a_name_that_leads_out_of_the_archive(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.zip", pickle.dumps(fold()))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("../../5way_10shot/4.pkl", b"")
    assert "leads out of the archive" in refusal(path)


def test_a_flipped_byte_is_noticed(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[data.index(CORNER.tobytes())] ^= 1
    archive.write_bytes(data)
    assert "5way_10shot/3.pkl is damaged" in refusal(archive)
