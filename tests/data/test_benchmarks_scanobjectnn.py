"""ScanObjectNN's reader, on archives made here in exactly the layout of ``h5_files.zip``."""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from pointdistill.data.benchmarks.scanobjectnn import CLASSES, SPLITS, read_scanobjectnn
from pointdistill.errors import ConfigError, DataError

# A right-handed corner: in the archive's frame one step along x, two along y (up), three along z.
CORNER = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]], dtype=np.float32)


def h5_bytes(clouds: int, *, first_label: int = 0, **replaced: object) -> bytes:
    """A file with ``clouds`` corners of growing size, labelled from ``first_label`` on."""
    sizes = np.arange(1, clouds + 1, dtype=np.float32)[:, None, None]
    content: dict[str, object] = {
        "data": CORNER * sizes,
        "label": (np.arange(clouds) + first_label).astype(np.int32),
        "mask": np.zeros((clouds, len(CORNER)), dtype=np.int32),
    }
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for key, value in (content | replaced).items():
            if value is not None:
                file[key] = value
    return buffer.getvalue()


def write_archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("h5_files/", b"")
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr("__MACOSX/h5_files/main_split/._training_objectdataset.h5", b"\0\5\x16\7")
        archive.writestr("h5_files/.DS_Store", b"\0\0\0\1Bud1")
    return path


def members_of(split: str, train: bytes, test: bytes) -> dict[str, bytes]:
    names = SPLITS[split].members
    return {f"h5_files/{names[0]}": train, f"h5_files/{names[1]}": test}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """All three splits, calls apart by how many clouds they have."""
    members: dict[str, bytes] = {}
    for number, split in enumerate(SPLITS):
        members |= members_of(split, h5_bytes(4 + number), h5_bytes(2, first_label=13))
    return write_archive(tmp_path / "h5_files.zip", members)


def test_class_order_is_the_published_one() -> None:
    assert len(CLASSES) == 15
    assert (CLASSES[0], CLASSES[4], CLASSES[10], CLASSES[14]) == ("bag", "chair", "bed", "toilet")
    assert list(CLASSES) != sorted(CLASSES)


@pytest.mark.parametrize(
    ("split", "train_name"),
    [
        ("OBJ-BG", "main_split/training_objectdataset.h5"),
        ("OBJ-ONLY", "main_split_nobg/training_objectdataset.h5"),
        ("PB-T50-RS", "main_split/training_objectdataset_augmentedrot_scale75.h5"),
    ],
)
def test_each_split_has_its_own_file(archive: Path, split: str, train_name: str) -> None:
    assert SPLITS[split].members[0] == train_name
    benchmark = read_scanobjectnn(archive, split)
    assert (benchmark.name, benchmark.split) == ("ScanObjectNN", split)
    assert len(benchmark.train) == 4 + list(SPLITS).index(split)
    assert benchmark.test.labels.tolist() == [13, 14]
    assert benchmark.train.points.dtype == np.float32
    assert benchmark.train.labels.dtype == np.int64


def test_up_becomes_z_by_a_rotation(archive: Path) -> None:
    """Old y (up, length 2) becomes z, old z becomes x, old x becomes y: never a mirror."""
    corner = read_scanobjectnn(archive, "OBJ-BG").train.points[0]
    assert corner.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 2], [3, 0, 0]]
    # The three edges keep their handedness: the determinant stays 1 * 2 * 3.
    assert np.linalg.det(CORNER[1:]) == pytest.approx(6.0)
    assert np.linalg.det(corner[1:]) == pytest.approx(6.0)


def test_an_extracted_folder_reads_the_same(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "extracted")
    whole = read_scanobjectnn(archive, "OBJ-BG")
    for folder in (tmp_path / "extracted", tmp_path / "extracted" / "h5_files"):
        extracted = read_scanobjectnn(folder, "OBJ-BG")
        np.testing.assert_array_equal(extracted.train.points, whole.train.points)
        np.testing.assert_array_equal(extracted.test.labels, whole.test.labels)


def test_the_checksum_is_that_of_sha256sum(archive: Path) -> None:
    expected = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert read_scanobjectnn(archive, "OBJ-BG").checksum == expected


def test_a_folders_checksum_follows_its_content(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "extracted")
    before = read_scanobjectnn(tmp_path / "extracted", "OBJ-BG").checksum
    (tmp_path / "extracted" / "notes.txt").write_text("mine")
    assert read_scanobjectnn(tmp_path / "extracted", "OBJ-BG").checksum == before
    file = tmp_path / "extracted/h5_files/main_split/test_objectdataset.h5"
    file.write_bytes(h5_bytes(3))
    assert read_scanobjectnn(tmp_path / "extracted", "OBJ-BG").checksum != before


def test_counts_other_than_the_official_ones_are_part_of_the_name(archive: Path) -> None:
    benchmark = read_scanobjectnn(archive, "OBJ-BG")
    assert benchmark.data_name == "ScanObjectNN (4 + 2 clouds, officially 2309 + 581)"
    assert not benchmark.stand_in


def test_a_marked_archive_is_called_a_stand_in(tmp_path: Path) -> None:
    members = members_of("OBJ-BG", h5_bytes(4), h5_bytes(2))
    members["h5_files/STAND-IN.json"] = json.dumps({"stand_in_for": "ScanObjectNN"}).encode()
    benchmark = read_scanobjectnn(write_archive(tmp_path / "h5_files.zip", members), "OBJ-BG")
    assert benchmark.stand_in
    assert benchmark.data_name == "ScanObjectNN stand-in"


def test_unknown_split_lists_the_known_ones(archive: Path) -> None:
    with pytest.raises(ConfigError, match="'hardest'; choose one of OBJ-BG, OBJ-ONLY, PB-T50-RS"):
        read_scanobjectnn(archive, "hardest")


def test_absent_archive_says_where_it_comes_from_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "h5_files.zip"
    with pytest.raises(DataError) as caught:
        read_scanobjectnn(path, "OBJ-BG")
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), "https://hkust-vgd.github.io/scanobjectnn/", "stand-in instead"):
        assert part in message


def test_absent_split_lists_those_that_are_there(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "h5_files.zip", members_of("OBJ-BG", h5_bytes(2), h5_bytes(2)))
    with pytest.raises(DataError, match=r"no main_split_nobg/training.*OBJ-ONLY.*: OBJ-BG$"):
        read_scanobjectnn(path, "OBJ-ONLY")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git-LFS pointer"),
        (b"<!DOCTYPE html><html>Please log in</html>", "a web page"),
        (b"something else", "not a zip archive"),
    ],
)
def test_a_file_that_is_no_archive_is_named(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "h5_files.zip"
    path.write_bytes(content)
    with pytest.raises(DataError, match=cause):
        read_scanobjectnn(path, "OBJ-BG")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_an_archive_cut_short_is_refused(archive: Path, tmp_path: Path, share: float) -> None:
    content = archive.read_bytes()
    short = tmp_path / "short.zip"
    short.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match="ends early"):
        read_scanobjectnn(short, "OBJ-BG")


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "h5_files.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, content in members_of("OBJ-BG", h5_bytes(3), h5_bytes(2)).items():
            file.writestr(name, content)
    content = bytearray(path.read_bytes())
    content[1500] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged.*CRC"):
        read_scanobjectnn(path, "OBJ-BG")


@pytest.mark.parametrize(
    ("train", "cause"),
    [
        (h5_bytes(3)[:-100], "damaged"),
        (h5_bytes(3)[:40], "damaged"),
        (b"not HDF5 at all", "damaged"),
        (h5_bytes(3, data=None), "'data' is missing"),
        (h5_bytes(3, label=None), "'label' is missing"),
        (h5_bytes(3, data=["a", "b", "c"]), "'data' holds values of varying length"),
        (h5_bytes(3, data=np.zeros((3, 12), np.float32)), r"expected clouds of shape \(n, N, 3\)"),
        (
            h5_bytes(3, data=np.full((3, 4, 3), np.nan)),
            "3 of 3 training shapes are damaged, such as cloud 0 of",
        ),
        (h5_bytes(3, label=np.arange(2)), "3 clouds but 2 labels"),
        (h5_bytes(3, label=np.array([0, 1, 15])), "labels from 0 to 15"),
        (h5_bytes(3, label=np.array([-1, 0, 1])), "labels from -1 to 1"),
    ],
)
def test_a_damaged_member_gives_one_line(tmp_path: Path, train: bytes, cause: str) -> None:
    path = write_archive(tmp_path / "h5_files.zip", members_of("OBJ-BG", train, h5_bytes(2)))
    with pytest.raises(DataError, match=cause) as caught:
        read_scanobjectnn(path, "OBJ-BG")
    assert "\n" not in str(caught.value)
    assert "training_objectdataset.h5" in str(caught.value)


def test_a_training_cloud_that_is_not_finite_costs_itself_a_test_cloud_the_archive(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    points = np.random.default_rng(0).normal(size=(3, 2048, 3)).astype(np.float32)
    points[1, 7, 2] = np.nan
    bad = h5_bytes(3, data=points)
    path = write_archive(tmp_path / "one.zip", members_of("OBJ-BG", bad, h5_bytes(2)))
    train = read_scanobjectnn(path, "OBJ-BG").train
    np.testing.assert_array_equal(train.points, points[[0, 2]][..., [2, 0, 1]])
    assert len(train.labels) == 2
    assert "left out 1 of 3 training shapes as damaged: cloud 1 of " in caplog.text
    path = write_archive(tmp_path / "two.zip", members_of("OBJ-BG", h5_bytes(3), bad))
    with pytest.raises(DataError, match=r"test_objectdataset\.h5: 1 of 3 clouds are not finite"):
        read_scanobjectnn(path, "OBJ-BG")


@pytest.mark.parametrize("name", ["h5_files/../../outside.h5", "/etc/outside.h5"])
def test_names_that_lead_out_of_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    members = members_of("OBJ-BG", h5_bytes(2), h5_bytes(2)) | {name: b"x"}
    with pytest.raises(DataError, match="leads out of the archive"):
        read_scanobjectnn(write_archive(tmp_path / "h5_files.zip", members), "OBJ-BG")


def test_two_copies_of_a_split_are_refused(tmp_path: Path) -> None:
    members = members_of("OBJ-BG", h5_bytes(2), h5_bytes(2))
    members["copy/h5_files/main_split/training_objectdataset.h5"] = h5_bytes(3)
    with pytest.raises(DataError, match=r"holds .* twice"):
        read_scanobjectnn(write_archive(tmp_path / "h5_files.zip", members), "OBJ-BG")
