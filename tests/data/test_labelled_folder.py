"""A user's own folder as a benchmark: split by class and seed, points repeated, bad files named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.sources.folder import LabelledFolder, read_labelled_folder, repeated
from pointdistill.errors import ConfigError, DataError


def make_folder(folder: Path, counts: dict[str, int], points: int = 50) -> Path:
    """Clouds whose first coordinate is their number in the class."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            cloud = np.random.default_rng(number).normal(size=(points, 3))
            cloud[:, 0] = number
            np.save(folder / name / f"{number}.npy", cloud)
    return folder


def read(folder: Path, **changes: object) -> LabelledFolder:
    settings: dict[str, object] = {"points": 40, "seed": 0, "workers": 1} | changes
    return read_labelled_folder(folder, **settings)  # type: ignore[arg-type]


def numbers(found: LabelledFolder, side: str, label: int) -> set[int]:
    clouds = getattr(found.benchmark, side)
    return {int(x) for x in clouds.points[clouds.labels == label, 0, 0]}


def test_every_class_is_split_by_its_share(tmp_path: Path) -> None:
    """A fifth of ten is two, of three rounds to one; of two one is left to train on."""
    labelled = read(make_folder(tmp_path, {"b": 10, "a": 3, "c": 2}))
    assert labelled.benchmark.classes == ("a", "b", "c")
    for label, (count, held_out) in enumerate(((3, 1), (10, 2), (2, 1))):
        train, test = numbers(labelled, "train", label), numbers(labelled, "test", label)
        assert (len(train), len(test)) == (count - held_out, held_out)
        assert train | test == set(range(count))
    assert labelled.benchmark.train.points.shape == (11, 40, 3)
    assert labelled.benchmark.train.points.dtype == np.float32


def test_the_split_is_the_seeds_and_a_files_side_is_its_own(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {"a": 12, "b": 12})
    first, again, other = read(folder), read(folder), read(folder, seed=1)
    assert np.array_equal(first.benchmark.test.points, again.benchmark.test.points)
    assert numbers(first, "test", 0) != numbers(other, "test", 0)
    # Another class beside it moves no file of this one to the other side.
    make_folder(tmp_path, {"c": 5})
    assert numbers(read(folder), "test", 0) == numbers(first, "test", 0)


def test_workers_do_not_matter(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {"a": 12, "b": 12})
    one, two = read(folder).benchmark, read(folder, workers=2).benchmark
    assert np.array_equal(one.train.points, two.train.points)
    assert np.array_equal(one.test.labels, two.test.labels)


def test_a_smaller_cloud_gives_all_then_the_same_again(tmp_path: Path) -> None:
    assert repeated(np.array([[1], [2], [3]]), 5).tolist() == [[1], [2], [3], [1], [2]]
    labelled = read(make_folder(tmp_path, {"a": 2, "b": 2}), points=70)
    cloud = labelled.benchmark.train.points[0]
    assert np.array_equal(cloud[50:], cloud[:20])
    assert len(np.unique(cloud, axis=0)) == 50


def test_axes(tmp_path: Path) -> None:
    """Old y is new z; the number in x becomes y."""
    folder = make_folder(tmp_path, {"a": 2, "b": 2})
    turned, plain = read(folder, up="y").benchmark.train, read(folder).benchmark.train
    assert np.array_equal(turned.points, plain.points[:, :, [2, 0, 1]])


def test_bad_files_are_named_and_left_out(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {"a": 3, "b": 3})
    (folder / "a" / "0.npy").write_bytes(b"broken")
    np.save(folder / "stray.npy", np.zeros((50, 3)))
    labelled = read(folder)
    assert len(labelled.refused) == 1
    assert labelled.refused[0].startswith("a/0.npy: ")
    assert labelled.unlabelled == 1
    assert len(labelled.benchmark.train) + len(labelled.benchmark.test) == 5


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"a": 3}, "needs at least 2 sub-folders with shapes, one a class, got 1"),
        (
            {"a": 3, "b": 1},
            "needs at least 2 usable files, one to train and one to test, 'b' has 1",
        ),
    ],
)
def test_too_little_is_named(counts: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(make_folder(tmp_path, counts))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_impossible_shares_are_named(share: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must lie between 0 and 1"):
        read(make_folder(tmp_path, {"a": 2, "b": 2}), held_out=share)


def test_a_linked_class_counts(tmp_path: Path) -> None:
    """A class folder that lies on another disk gives the labels that it gives as a plain folder."""
    plain = read(make_folder(tmp_path / "plain", {"a": 3, "b": 3}))
    folder = make_folder(tmp_path / "linked", {"a": 3, "b": 3})
    (folder / "b").rename(tmp_path / "elsewhere")
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    linked = read(folder)
    assert linked.benchmark.classes == ("a", "b")
    np.testing.assert_array_equal(linked.benchmark.train.labels, plain.benchmark.train.labels)
    np.testing.assert_array_equal(linked.benchmark.train.points, plain.benchmark.train.points)
