"""What a corpus holds: counts that can be checked by hand, and sizes compared with the points themselves."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from pointdistill.data.corpus import inspect, open_corpus, reader, refused
from pointdistill.data.corpus.inspect import PointCounts, inspect_corpus
from pointdistill.data.corpus.refused import count_causes, general_cause
from pointdistill.errors import CorpusError
from tests.data.test_corpus import edit, some_rows, write_corpus


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sources, three shards, 4 + 3 + 5 shapes of 40, 41, … points."""
    rows = some_rows("a", 7)
    shards = [("a", rows[:4]), ("a", rows[4:]), ("b", some_rows("b", 5))]
    write_corpus(tmp_path / "corpus", shards)
    return tmp_path / "corpus"


def test_labels_and_points_are_counted_by_source(folder: Path) -> None:
    """Labels run unknown, first, second: of seven shapes three, two, two; of five two, two, one."""
    steps: list[tuple[int, int]] = []
    first, second = inspect_corpus(folder, progress=lambda *step: steps.append(step)).sources
    assert (first.labels, first.unlabelled) == ({"chair": 2, "table": 2}, 3)
    assert (second.labels, second.unlabelled) == ({"table": 2, "lamp": 1}, 2)
    assert first.points == PointCounts(total=301, least=40, median=43, most=46)
    assert second.points == PointCounts(total=210, least=40, median=42, most=44)
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_extents_are_those_of_the_points(folder: Path) -> None:
    corpus = open_corpus(folder)
    sides = np.array([np.ptp(corpus.points(k), axis=0) for k in range(7)])
    extents = inspect_corpus(folder).sources[0].extents
    assert extents is not None
    assert extents.least == pytest.approx(sides.max(axis=1).min(), rel=1e-4)
    assert extents.most == pytest.approx(sides.max(axis=1).max(), rel=1e-4)
    assert extents.median == pytest.approx(np.median(sides, axis=0), rel=1e-4)
    assert extents.sampled == 7


def test_a_sample_is_spread_over_the_shards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of seven: the first, the middle one and the last, in whatever chunks they are read."""
    corpus = open_corpus(folder)
    sides = np.array([np.ptp(corpus.points(k), axis=0) for k in (0, 3, 6)])
    monkeypatch.setattr(inspect, "SAMPLED", 3)
    whole = inspect_corpus(folder)
    monkeypatch.setattr(reader, "CHUNK", 3)
    assert inspect_corpus(folder) == whole
    extents = whole.sources[0].extents
    assert extents is not None
    assert extents.median == pytest.approx(np.median(sides, axis=0), rel=1e-4)
    assert extents.sampled == 3


def test_a_source_of_which_all_was_refused_is_still_named(folder: Path) -> None:
    stored = json.loads((folder / "corpus.json").read_text())
    empty = stored["sources"][0] | {"name": "none", "kept": 0, "refused": 9}
    edit(folder, {"sources": [*stored["sources"], empty]})
    last = inspect_corpus(folder).sources[-1]
    assert (last.record.name, last.record.refused) == ("none", 9)
    assert (last.points, last.extents, last.labels) == (None, None, {"chair": 0, "table": 0})


@pytest.mark.parametrize(
    ("dataset", "value", "message"),
    [
        ("label", 7, "a label is none of the 2 known"),
        ("offsets", 1000, "offsets do not fit"),
        ("scale", np.nan, "a scale is not a finite length"),
        ("scale", -1.0, "a scale is not a finite length"),
    ],
)
def test_damage_is_one_line_that_leads_to_verify(
    folder: Path, dataset: str, value: float, message: str
) -> None:
    with h5py.File(folder / "a-00001.h5", "r+") as file:
        file[dataset][1] = value
    with pytest.raises(CorpusError, match=message) as caught:
        inspect_corpus(folder)
    assert "a-00001.h5: damaged" in str(caught.value)
    assert "`pointdistill verify`" in str(caught.value)


def test_a_missing_dataset_or_shard_is_named(folder: Path) -> None:
    with h5py.File(folder / "b-00002.h5", "r+") as file:
        del file["scale"]
    with pytest.raises(CorpusError, match="'scale' is missing"):
        inspect_corpus(folder)
    (folder / "a-00000.h5").unlink()
    with pytest.raises(CorpusError, match=r"a-00000.h5: missing, with 4 shapes"):
        inspect_corpus(folder)


def refused_list(path: Path, *causes: tuple[str, str, str]) -> Path:
    lines = [json.dumps({"source": s, "id": i, "cause": c}) for s, i, c in causes]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_refused_shapes_are_counted_by_what_their_causes_share(tmp_path: Path) -> None:
    path = refused_list(
        tmp_path / "refused.jsonl",
        ("b", "x", "no faces"),
        ("a", "one.off", "3 of 10 points are not finite"),
        ("a", "two.off", "is empty"),
        ("a", "k7.off", "k7.off: 12 of 1,500 points are not finite"),
        ("a", "three.off", "999 of 1e4 points are not finite"),
    )
    found = [(c.source, c.shapes, c.cause, c.example_id) for c in count_causes(path)]
    assert found == [
        ("a", 2, "… of … points are not finite", "one.off"),
        ("a", 1, "is empty", "two.off"),
        ("a", 1, "…: … of … points are not finite", "k7.off"),
        ("b", 1, "no faces", "x"),
    ]
    assert count_causes(path)[0].example == "3 of 10 points are not finite"


def test_quoted_names_are_a_shapes_own() -> None:
    assert general_cause("texture 'a b.png' of \"c\" at -1.5e-3", "") == "texture … of … at …"


def test_a_list_of_unlike_causes_does_not_grow_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refused, "MOST_CAUSES", 2)
    causes = [("a", str(k), "cause " + "x" * k) for k in range(1, 6)]
    found = count_causes(refused_list(tmp_path / "refused.jsonl", *causes))
    assert sorted((c.shapes, c.cause) for c in found) == [
        (1, "cause x"),
        (1, "cause xx"),
        (3, "other causes"),
    ]


def test_a_damaged_list_of_refused_shapes_is_named(folder: Path) -> None:
    edit(folder, {"refused_sha256": "0" * 64})
    with pytest.raises(CorpusError, match=r"refused\.jsonl: no such file"):
        inspect_corpus(folder)
    (folder / "refused.jsonl").write_text('{"source": "a", "id": "b", "cause": "c"}\n{"sou\n')
    with pytest.raises(CorpusError, match="line 2 is no refused shape"):
        inspect_corpus(folder)
