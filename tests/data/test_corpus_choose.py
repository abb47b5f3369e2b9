"""Which shapes are chosen: those requested, and the same ones for the same seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pointdistill.data.corpus import Corpus, open_corpus, reader
from pointdistill.data.corpus.rows import ShapeFilter, choose_shapes
from pointdistill.errors import ConfigError, DataError
from tests.data.test_corpus import some_rows, write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Source a: shapes 0 to 6 in two shards; source b: 7 to 11. Labels run unknown, first, second."""
    rows = some_rows("a", 7)
    write_corpus(tmp_path / "corpus", [("a", rows[:4]), ("a", rows[4:]), ("b", some_rows("b", 5))])
    return open_corpus(tmp_path / "corpus")


def choose(
    corpus: Corpus, *, count: int = 100, seed: int = 0, **wanted: tuple[str, ...]
) -> list[int]:
    return choose_shapes(corpus, ShapeFilter(**wanted), count=count, seed=seed).tolist()


@pytest.mark.parametrize("chunk", [2, 100])
def test_ids_labels_and_sources_choose_together(
    corpus: Corpus, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "CHUNK", chunk)
    assert choose(corpus) == list(range(12))
    assert choose(corpus, sources=("b",)) == [7, 8, 9, 10, 11]
    assert choose(corpus, labels=("chair",)) == [1, 4]
    assert choose(corpus, labels=("table",)) == [2, 5, 8, 11]
    assert choose(corpus, labels=("table",), sources=("b",)) == [8, 11]
    assert choose(corpus, labels=("lamp", "chair")) == [1, 4, 9]
    assert choose(corpus, ids=("b/é04", "a/é05")) == [5, 11]
    assert choose(corpus, ids=("b/é04", "a/é05"), sources=("a", "b"), count=1) == [5, 11]


def test_the_seed_draws_among_what_is_left(corpus: Corpus) -> None:
    drawn = {tuple(choose(corpus, count=2, seed=seed, labels=("table",))) for seed in range(30)}
    assert len(drawn) == 6
    assert {number for pair in drawn for number in pair} == {2, 5, 8, 11}
    assert all(pair == tuple(sorted(pair)) for pair in drawn)
    assert choose(corpus, count=5, seed=3) == choose(corpus, count=5, seed=3)
    assert choose(corpus, count=5, seed=3) != choose(corpus, count=5, seed=4)


def test_names_that_are_not_there_are_named(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match=r"no label 'chiar'; did you mean 'chair'\?"):
        choose(corpus, labels=("chiar",))
    with pytest.raises(ConfigError, match="no source 'objaverse'; it has 'a', 'b'"):
        choose(corpus, sources=("objaverse",))
    with pytest.raises(DataError, match=r"no shape 'x' .* \(1 of 2 ids not found\); .*'a/é00'"):
        choose(corpus, ids=("a/é00", "x"))
    with pytest.raises(DataError, match="no shape 'a/é00' with the given source and label"):
        choose(corpus, ids=("a/é00",), sources=("b",))
    with pytest.raises(DataError, match="no shape has that source and label"):
        choose(corpus, sources=("a",), labels=("lamp",))
