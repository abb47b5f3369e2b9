"""ShapeNetPart's reader, on archives made here in exactly the distributed layout, zipped and tarred."""

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.benchmarks.records import PartBenchmark
from pointdistill.data.benchmarks.shapenetpart import (
    CATEGORIES,
    CATEGORY_PARTS,
    PART_COUNT,
    SYNSETS,
    read_shapenetpart,
)
from pointdistill.errors import DataError
from tests.data.refusals import refusal_of

ROOT = "shapenetcore_partanno_segmentation_benchmark_v0_normal"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"

# A corner with three directions of different lengths, in the archive's frame: 1 along x, 2 up along y, 3 along z.
CORNER = ((0, 0, 0), (1, 0, 0), (0, 2, 0), (0, 0, 3))


def text(*parts: int, rows: int = 4) -> bytes:
    """A cloud of the corner, then points on the x axis; its parts in turn."""
    points = [*CORNER, *((k, 0, 0) for k in range(2, rows - 2))][:rows]
    return "".join(
        f"{x:.6f} {y:.6f} {z:.6f} 0.000000 1.000000 0.000000 {parts[k % len(parts)]:.6f}\n"
        for k, (x, y, z) in enumerate(points)
    ).encode()


CHAIR, MUG, TABLE = "03001627", "03797390", "04379243"
CLOUDS = {
    f"{CHAIR}/a1": text(12, 13, 14, 15),
    f"{CHAIR}/a2": text(12, rows=5),
    f"{MUG}/b1": text(36, 37, rows=7),
    f"{TABLE}/c1": text(47, 49, rows=6),
}
LISTS = {
    "train": [f"shape_data/{MUG}/b1"],
    "val": [f"shape_data/{CHAIR}/a2"],
    "test": [f"shape_data/{TABLE}/c1", f"shape_data/{CHAIR}/a1"],
}


def members(
    clouds: dict[str, bytes] = CLOUDS, lists: dict[str, list[str]] = LISTS
) -> dict[str, bytes]:
    return {
        f"{ROOT}/synsetoffset2category.txt": b"Airplane\t02691156\n",
        f"{ROOT}/{CHAIR}/.DS_Store": b"\0\0\0\1Bud1",
        f"__MACOSX/{ROOT}/{CHAIR}/._a1.txt": b"\0\5\x16\7",
        **{f"{ROOT}/{name}.txt": content for name, content in clouds.items()},
        **{
            f"{ROOT}/train_test_split/shuffled_{split}_file_list.json": json.dumps(some).encode()
            for split, some in lists.items()
        },
    }


def write_zip(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, content: dict[str, bytes], *, start: str = "") -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(start + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_zip(tmp_path / f"{ROOT}.zip", members())


def refusal(path: Path) -> str:
    return refusal_of(path, lambda archive: read_shapenetpart(archive, workers=1))


def same(one: PartBenchmark, other: PartBenchmark) -> bool:
    return all(
        mine.ids == theirs.ids
        and mine.categories.tolist() == theirs.categories.tolist()
        and all(map(np.array_equal, mine.points, theirs.points))
        and all(map(np.array_equal, mine.parts, theirs.parts))
        for mine, theirs in ((one.train, other.train), (one.test, other.test))
    )


def test_categories_and_parts_are_in_the_published_order() -> None:
    assert list(SYNSETS) == sorted(SYNSETS)
    assert (len(CATEGORIES), CATEGORIES[0], CATEGORIES[15]) == (16, "airplane", "table")
    assert CATEGORY_PARTS[4] == (12, 13, 14, 15)  # chair
    assert CATEGORY_PARTS[10] == (30, 31, 32, 33, 34, 35)  # motorbike
    assert [part for own in CATEGORY_PARTS for part in own] == list(range(50))
    assert PART_COUNT == 50


def test_sides_are_those_of_the_lists_and_train_includes_val(archive: Path) -> None:
    benchmark = read_shapenetpart(archive, workers=1)
    assert benchmark.train.ids == (f"{CHAIR}/a2", f"{MUG}/b1")
    assert benchmark.train.categories.tolist() == [4, 11]
    assert benchmark.test.ids == (f"{CHAIR}/a1", f"{TABLE}/c1")
    assert benchmark.test.categories.tolist() == [4, 15]
    assert (len(benchmark.train), len(benchmark.test)) == (2, 2)


def test_clouds_are_ragged_and_keep_their_parts(archive: Path) -> None:
    benchmark = read_shapenetpart(archive, workers=1)
    assert [cloud.shape for cloud in benchmark.train.points] == [(5, 3), (7, 3)]
    assert [cloud.dtype for cloud in benchmark.train.points] == [np.float32, np.float32]
    assert benchmark.train.parts[1].tolist() == [36, 37, 36, 37, 36, 37, 36]
    assert benchmark.test.parts[0].tolist() == [12, 13, 14, 15]
    assert benchmark.test.parts[0].dtype == np.uint8


def test_shapes_are_rotated_and_never_mirrored(archive: Path) -> None:
    turned = read_shapenetpart(archive, workers=1).test.points[0]
    np.testing.assert_array_equal(turned, [[0, 0, 0], [0, 1, 0], [0, 0, 2], [3, 0, 0]])
    assert np.linalg.det(np.array(CORNER[1:])) == pytest.approx(6.0)
    assert np.linalg.det(turned[1:]) == pytest.approx(6.0)


def test_the_result_says_what_was_read(archive: Path) -> None:
    benchmark = read_shapenetpart(archive, workers=1)
    assert benchmark.name == "ShapeNetPart"
    assert benchmark.data_name == "ShapeNetPart (2 + 2 clouds, officially 14007 + 2874)"
    assert benchmark.form == f"{ROOT}, trained on train and val"
    assert benchmark.checksum == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert (benchmark.categories, benchmark.category_parts) == (CATEGORIES, CATEGORY_PARTS)
    assert not benchmark.stand_in


@pytest.mark.parametrize("start", ["", "./"])
def test_a_tar_and_a_folder_read_the_same(archive: Path, tmp_path: Path, start: str) -> None:
    whole = read_shapenetpart(archive, workers=1)
    tar = write_tar(tmp_path / f"{ROOT}.tar", members(), start=start)
    assert same(read_shapenetpart(tar, workers=1), whole)
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "extracted")
    for folder in (tmp_path / "extracted", tmp_path / "extracted" / ROOT):
        assert same(read_shapenetpart(folder, workers=1), whole)


def test_several_processes_read_the_same(tmp_path: Path) -> None:
    clouds = {f"{MUG}/{k:04d}": text(36, 37, rows=4 + k % 3) for k in range(300)}
    lists = {"train": [f"shape_data/{name}" for name in clouds], "val": [], "test": LISTS["test"]}
    path = write_zip(tmp_path / "many.zip", members(CLOUDS | clouds, lists))
    calls: list[tuple[int, int]] = []
    one = read_shapenetpart(path, cache=tmp_path / "one", workers=1)
    two = read_shapenetpart(
        path, cache=tmp_path / "two", workers=2, progress=lambda *done: calls.append(done)
    )
    assert same(one, two)
    assert calls == [(256, 302), (302, 302)]


def test_what_was_read_is_kept_and_found_again(archive: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    calls: list[int] = []

    def read() -> PartBenchmark:
        return read_shapenetpart(
            archive, cache=cache, workers=1, progress=lambda done, _: calls.append(done)
        )

    first = read()
    assert calls == [4]
    assert same(read(), first)
    assert calls == [4]
    for cached in cache.iterdir():
        cached.write_bytes(cached.read_bytes()[:900])  # as a full disk leaves it
    assert same(read(), first)
    assert calls == [4, 4]
    write_zip(archive, members(CLOUDS | {f"{MUG}/b1": text(36, rows=9)}))
    assert len(read().train.points[1]) == 9  # another archive, another name


def test_without_a_place_to_keep_it_is_read_each_time(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file where the folder should be")
    assert len(read_shapenetpart(archive, cache=tmp_path / "occupied", workers=1).train) == 2


# ---- refusals


def test_an_absent_archive_says_where_it_comes_from(tmp_path: Path) -> None:
    message = refusal(tmp_path / "none.zip")
    assert "https://shapenet.org" in message
    assert "stand-in instead" in message


def with_mug(content: bytes, *, split: str = "test") -> dict[str, bytes]:
    others = LISTS if split == "train" else {"train": [f"shape_data/{TABLE}/c1"]}
    test = {} if split == "train" else {"test": [f"shape_data/{MUG}/b1", f"shape_data/{CHAIR}/a1"]}
    return members(CLOUDS | {f"{MUG}/b1": content}, LISTS | others | test)


def with_lists(**lists: list[str]) -> dict[str, bytes]:
    return members(lists=LISTS | lists)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (with_mug(text(36).replace(b"36", b"38")), "part 38 is none of mug's, 36 to 37"),
        (with_mug(text(36).replace(b"36.0", b"36.5")), "part 36.5 is none of mug's"),
        (with_mug(b""), "it has no rows of x y z nx ny nz part"),
        (with_mug(text(36)[:-12]), "row 4 has 6 numbers"),
        (with_mug(text(36).replace(b"2.000000", b"nan")), "not finite"),
        (with_mug(text(36).replace(b"2.000000", b"1e99")), "beyond what float32 holds"),
        (with_mug(text(36).replace(b"2.000000", b"two")), "expected numbers"),
        (with_mug(b"\0\0\0\0"), "expected numbers"),
        (with_mug(LFS), "is a Git-LFS pointer in place of the file"),
    ],
)
def test_a_damaged_shape_is_named(tmp_path: Path, content: dict[str, bytes], cause: str) -> None:
    for write, name in ((write_zip, "bad.zip"), (write_tar, "bad.tar")):
        message = refusal(write(tmp_path / name, content))
        assert cause in message
        assert f"{MUG}/b1.txt" in message


def test_a_damaged_training_shape_costs_itself_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when the others come from the cache, which does not know the cause."""
    path = write_zip(tmp_path / "one.zip", with_mug(b"", split="train"))
    for cause in (f" ({ROOT}/{MUG}/b1.txt is damaged (it has no rows", "\n"):
        caplog.clear()
        benchmark = read_shapenetpart(path, workers=1)
        assert benchmark.train.ids == (f"{CHAIR}/a2",)
        assert len(benchmark.test) == 2
        said = f"{caplog.messages[0]}\n"
        assert f"left out 1 of 2 training shapes as damaged: {MUG}/b1{cause}" in said


def test_two_damaged_training_shapes_of_a_few_are_too_many(tmp_path: Path) -> None:
    """At most one in a hundred, and at least one, is left out."""
    some = CLOUDS | {f"{MUG}/b{k}": text(36) for k in range(1, 6)}
    lists = LISTS | {"train": [f"shape_data/{MUG}/b{k}" for k in range(1, 6)]}
    bad = {f"{MUG}/b2": b"", f"{MUG}/b4": b"\0"}
    message = refusal(write_zip(tmp_path / "two.zip", members(some | bad, lists)))
    assert f"2 of 6 training shapes are damaged, such as {MUG}/b2 (" in message
    assert message.endswith("at most 1 is left out, so fetch the archive again")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (with_lists(train=[f"shape_data/{MUG}/b9"]), f"lacks 1 of the 4 shapes .* {MUG}/b9.txt"),
        (with_lists(val=[f"shape_data/{MUG}/b1"]), "in the lists of train and val"),
        (with_lists(val=["shape_data/00000000/b1"]), "is not shape_data/<synset>/<id>"),
        (with_lists(test=[]), "not a list of shapes"),
        (
            {k: v for k, v in members().items() if "shuffled_val" not in k},
            "has no train_test_split/shuffled_val_file_list.json",
        ),
        (
            {k: v[:-4] if "shuffled_val" in k else v for k, v in members().items()},
            "shuffled_val_file_list.json is damaged",
        ),
        (members() | {f"again/{MUG}/b1.txt": text(36)}, f"holds {MUG}/b1 twice"),
        (members() | {f"../{ROOT}/{MUG}/b2.txt": text(36)}, "leads out of the archive"),
        (members() | {f"/{MUG}/b2.txt": text(36)}, "leads out of the archive"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, content: dict[str, bytes], cause: str) -> None:
    for write, name in ((write_zip, "bad.zip"), (write_tar, "bad.tar")):
        path = write(tmp_path / name, content)
        with pytest.raises(DataError, match=cause):
            read_shapenetpart(path, workers=1)
        assert "\n" not in refusal(path)


def test_a_tar_cut_short_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    """At the end of a member too, where it looks like a shorter but whole one."""
    path = write_tar(tmp_path / "cut.tar", members())
    data = path.read_bytes()
    used = -(-(data.rindex(b"]") + 1) // 512) * 512  # up to the last list's own blocks
    for length in (100, 512, 700, 1536, used - 512, used - 100, used):
        path.write_bytes(data[:length])
        assert "tar archive" in refusal(path)
    path.write_bytes(data[:used] + bytes(512))  # one empty block is end enough
    assert len(read_shapenetpart(path, workers=1).train) == 2


def test_a_tar_damaged_between_members_is_refused(tmp_path: Path) -> None:
    """There ``tarfile`` stops, and would give what came before for the whole."""
    path = write_tar(tmp_path / "damaged.tar", members())
    data = bytearray(path.read_bytes())
    header = data.index(f"{ROOT}/{TABLE}".encode())
    data[header : header + 512] = b"x" * 512
    path.write_bytes(data)
    assert "tar archive" in refusal(path)


def test_links_in_a_tar_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_bytes(text(36))
    path = write_tar(tmp_path / "links.tar", members())
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo(f"{ROOT}/{MUG}/b2.txt")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "outside.txt")
        archive.addfile(link)
    lists = with_lists(train=[f"shape_data/{MUG}/b2"])
    assert len(read_shapenetpart(path, workers=1).train) == 2
    path = write_tar(tmp_path / "listed.tar", lists)
    with tarfile.open(path, "a") as archive:
        archive.addfile(link)
    assert "lacks 1 of the 4 shapes" in refusal(path)


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("a.tar", LFS, "Git-LFS pointer in place of the tar archive"),
        ("a.tar", b"<html>", "web page"),
        ("a.tar", b"", "an empty file, not a tar archive"),
        ("a.tar.gz", b"\x1f\x8b\x08", "is damaged or ends early"),
        ("a.gz", b"\x1f\x8b\x08", "gunzip it"),
        ("a.zip", b"something else", "not a zip archive"),
    ],
)
def test_files_that_are_no_archive(tmp_path: Path, name: str, content: bytes, cause: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert cause in refusal(path)
