"""Objaverse-LVIS over a corpus made here: which shapes are found, dropped, counted and drawn."""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.benchmarks.lvis import LvisShapes, draw_lvis, read_lvis
from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.corpus.manifest import SourceFacts
from pointdistill.data.corpus_building.build import build_corpus
from pointdistill.data.sources.base import Entry, SourceCloud
from pointdistill.errors import ConfigError, DataError

FACTS = SourceFacts(name="objaverse", licence="a test", origin="a test", turned="none", settings={})


@dataclass(frozen=True)
class Uids:
    """A source of random clouds under given ids."""

    ids: tuple[str, ...]
    facts: SourceFacts = FACTS

    def entries(self) -> list[Entry]:
        return [Entry(id=name) for name in self.ids]

    def read(self, entry: Entry, count: int, *, rng: np.random.Generator) -> SourceCloud:
        return SourceCloud(rng.normal(size=(count, 3)))


def uids(kind: str, count: int) -> list[str]:
    return [f"{kind}{number:03d}" for number in range(count)]


# 12 chairs, 11 apples (one more than is drawn), 10 mugs (one too few), and shapes that nobody annotated.
HELD = (*uids("chair", 12), *uids("apple", 11), *uids("mug", 10), *uids("other", 7))
TABLE = {
    "chair_(furniture)": [*uids("chair", 12), "gone001", "gone002"],
    "apple": [*uids("apple", 11), "gone003"],
    "mug": uids("mug", 10),
    "zebra": ["gone004"],
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    path = tmp_path_factory.mktemp("lvis") / "corpus"
    build_corpus(Uids(HELD), path, points=32, workers=0)
    return open_corpus(path)


@pytest.fixture
def annotated(corpus: Corpus, tmp_path: Path) -> Callable[[dict[str, list[str]]], LvisShapes]:
    def read(table: dict[str, list[str]]) -> LvisShapes:
        path = tmp_path / "lvis-annotations.json.gz"
        path.write_bytes(gzip.compress(json.dumps(table).encode()))
        return read_lvis(path, corpus)

    return read


Read = Callable[[dict[str, list[str]]], LvisShapes]


def test_shapes_are_found_by_their_uids(annotated: Read, corpus: Corpus) -> None:
    shapes = annotated(TABLE)
    assert shapes.classes == ("apple", "chair_(furniture)")
    assert len(shapes) == 23
    assert shapes.indices.tolist() == sorted(shapes.indices.tolist())
    for index, label in zip(shapes.indices.tolist(), shapes.labels.tolist(), strict=True):
        assert corpus[index].id in TABLE[shapes.classes[label]]


def test_what_is_left_out_is_counted(annotated: Read) -> None:
    shapes = annotated(TABLE)
    assert shapes.dropped_classes == ("mug", "zebra")
    assert shapes.annotated == 14 + 12 + 10 + 1
    assert shapes.missing == 4
    assert shapes.ambiguous == 0
    assert not shapes.stand_in
    assert shapes.data_name == "Objaverse-LVIS (23 shapes of 2 classes, officially 1,060 classes)"
    assert shapes.form == "lvis-annotations.json.gz over objaverse"


def test_a_category_is_dropped_by_what_the_corpus_has(annotated: Read) -> None:
    """Eleven are annotated, ten are there."""
    shapes = annotated(TABLE | {"mug": [*uids("mug", 10), "gone005"]})
    assert "mug" in shapes.dropped_classes
    shapes = annotated(TABLE | {"mug": [*uids("mug", 10), "other000"]})
    assert "mug" in shapes.classes


def test_a_shape_of_two_categories_has_no_label(annotated: Read) -> None:
    shapes = annotated(TABLE | {"seat": ["chair000", "chair000"], "stool": ["other001"] * 2})
    assert shapes.ambiguous == 1
    assert np.bincount(shapes.labels).tolist() == [11, 11]
    assert shapes.annotated == 38  # stools are annotated once


def test_uids_may_lie_in_folders(tmp_path: Path) -> None:
    path = tmp_path / "corpus"
    build_corpus(Uids(tuple(f"Cap3D_pcs/{uid}" for uid in HELD)), path, points=32, workers=0)
    annotation = tmp_path / "plain.json"
    annotation.write_text(json.dumps(TABLE))
    assert len(read_lvis(annotation, open_corpus(path))) == 23


def test_a_draw_takes_ten_of_each_and_leaves_the_rest(annotated: Read) -> None:
    shapes = annotated(TABLE)
    train, test = draw_lvis(shapes, seed=0)
    assert np.bincount(shapes.labels[train]).tolist() == [10, 10]
    assert np.bincount(shapes.labels[test]).tolist() == [1, 2]
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(23))
    assert (np.diff(train) > 0).all()
    assert (np.diff(test) > 0).all()


def test_draws_depend_on_the_seed_and_the_category_alone(annotated: Read) -> None:
    shapes = annotated(TABLE)
    first, second = (draw_lvis(shapes, seed=0)[0] for _ in range(2))
    assert first.tolist() == second.tolist()
    draws = {tuple(draw_lvis(shapes, shots=5, seed=seed)[0].tolist()) for seed in range(10)}
    assert len(draws) == 10
    chairs = annotated({"chair_(furniture)": TABLE["chair_(furniture)"]})
    alone = chairs.indices[draw_lvis(chairs, seed=3)[0]]
    among = shapes.indices[draw_lvis(shapes, seed=3)[0]]
    assert alone.tolist() == among[np.isin(among, chairs.indices)].tolist()


def test_categories_are_drawn_apart(annotated: Read) -> None:
    """Two categories of eleven shapes each do not always leave out the same place."""
    shapes = annotated({"apple": uids("apple", 11), "pear": uids("chair", 11)})
    left_out = [draw_lvis(shapes, seed=seed)[1] for seed in range(10)]
    assert any(first % 11 != second % 11 for first, second in left_out)


def test_every_shape_is_drawn_about_as_often(annotated: Read) -> None:
    """Of 12 chairs one shot takes each a twelfth of the times: 2,400 draws, 200 ± 14 each."""
    shapes = annotated({"chair_(furniture)": TABLE["chair_(furniture)"]})
    drawn = np.concatenate([draw_lvis(shapes, shots=1, seed=seed)[0] for seed in range(2400)])
    assert np.abs(np.bincount(drawn, minlength=12) - 200).max() < 70


@pytest.mark.parametrize(("shots", "seed"), [(11, 0), (0, 0), (10, -1)])
def test_impossible_draws(annotated: Read, shots: int, seed: int) -> None:
    with pytest.raises(ConfigError, match=r"1 to 10 shots .* 11 shapes.* a seed from 0"):
        draw_lvis(annotated(TABLE), shots=shots, seed=seed)


GOOD = gzip.compress(json.dumps(TABLE).encode())


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (GOOD[:-20], "not a table of categories"),
        (GOOD[:30] + bytes(20) + GOOD[50:], "not a table of categories"),
        (b"", "not a table of categories"),
        (b"{", "not a table of categories"),
        (b"[" * 100_000, "not a table of categories"),
        (b"\xff\xfe", "not a table of categories"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git-LFS pointer"),
        (b"[]", "expected a JSON table"),
        (b"{}", "expected a JSON table"),
        (b'{"chair": "uid"}', "expected a JSON table"),
        (b'{"chair": [1]}', "expected a JSON table"),
        (gzip.compress(bytes(65 << 20)), "more than 67,108,864 bytes"),
        (b'{"chair": ["chair000"]}', "1 of 1 annotated shapes .* more than 10"),
    ],
)
def test_annotations_that_are_refused(
    corpus: Corpus, tmp_path: Path, content: bytes, cause: str
) -> None:
    path = tmp_path / "lvis-annotations.json.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=cause) as caught:
        read_lvis(path, corpus)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_absent_annotation(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="comes with Objaverse"):
        read_lvis(tmp_path / "none.json.gz", corpus)
