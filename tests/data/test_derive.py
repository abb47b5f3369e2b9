"""Corpora made of corpora: what is copied is what was there, with its licence; the same bytes always."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointdistill.data.corpus import open_corpus, rows, verify_corpus
from pointdistill.data.corpus.refused import read_refused
from pointdistill.data.corpus.rows import ShapeFilter
from pointdistill.data.corpus_building import copying, division
from pointdistill.data.corpus_building.derive import merge_corpora, split_corpus, subset_corpus
from pointdistill.data.files.files import sha256_of
from pointdistill.errors import ConfigError, CorpusError, DataError
from tests.data.test_build import digest
from tests.data.test_corpus import edit, some_rows, write_corpus
from tests.data.test_corpus_verify import flip_byte, place_of


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards, and several blocks in a shard."""
    monkeypatch.setattr(division, "SHARD_SHAPES", 4)
    monkeypatch.setattr(copying, "BLOCK_POINTS", 100)


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """9 shapes of source a, without parts, and 7 of b, with parts."""
    a, b = some_rows("a", 9), some_rows("b", 7, parts=True)
    write_corpus(tmp_path / "both", [("a", a[:5]), ("a", a[5:]), ("b", b)])
    return tmp_path / "both"


def shapes_of(corpus: Path) -> dict[tuple[str, str], tuple[bytes, str | None, bytes | None]]:
    """Points, label and parts of each shape by its source and id."""
    opened = open_corpus(corpus)
    names = opened.label_names
    return {
        (shape.source, shape.id): (
            shape.points.tobytes(),
            names[shape.label] if shape.label >= 0 else None,
            None if shape.part is None else shape.part.tobytes(),
        )
        for shape in (opened[k] for k in range(len(opened)))
    }


def add_refused(corpus: Path, source: str, ids: list[str]) -> None:
    """Refused shapes of one source, in place of those that were listed."""
    lines = [{"source": source, "id": name, "cause": "empty"} for name in ids]
    (corpus / "refused.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    stored = json.loads((corpus / "corpus.json").read_text())
    sources = [
        record | {"refused": len(ids) if record["name"] == source else 0}
        for record in stored["sources"]
    ]
    edit(corpus, {"sources": sources, "refused_sha256": sha256_of(corpus / "refused.jsonl")})


def test_a_merge_holds_all_shapes_licences_and_refusals(tmp_path: Path) -> None:
    write_corpus(tmp_path / "one", [("b", some_rows("b", 6, parts=True))])
    write_corpus(tmp_path / "two", [("a", some_rows("a", 7))])
    stored = json.loads((tmp_path / "one" / "corpus.json").read_text())
    edit(tmp_path / "one", {"sources": [stored["sources"][0] | {"licence": "CC BY-NC 4.0"}]})
    add_refused(tmp_path / "one", "b", ["bad 1", "bad 2"])
    report = merge_corpora([tmp_path / "one", tmp_path / "two"], tmp_path / "all", workers=1)
    assert (report.kept, report.refused, report.was_complete) == (13, 2, False)
    assert shapes_of(tmp_path / "all") == shapes_of(tmp_path / "two") | shapes_of(tmp_path / "one")
    assert verify_corpus(tmp_path / "all") == ()
    merged = open_corpus(tmp_path / "all")
    told = [(s.name, s.licence, s.kept, s.refused) for s in merged.sources]
    assert told == [("a", "free", 7, 0), ("b", "CC BY-NC 4.0", 6, 2)], "sources by name"
    assert [shape.id for shape in read_refused(tmp_path / "all" / "refused.jsonl")] == [
        "bad 1",
        "bad 2",
    ]
    assert merge_corpora([tmp_path / "two", tmp_path / "one"], tmp_path / "all").was_complete


def test_sources_that_share_a_name_alone_stay_apart(tmp_path: Path) -> None:
    for name, archive in (("one", "x.zip"), ("two", "y.zip"), ("three", "y.zip")):
        write_corpus(tmp_path / name, [("a", some_rows("a", 5))])
        stored = json.loads((tmp_path / name / "corpus.json").read_text())
        edit(tmp_path / name, {"sources": [stored["sources"][0] | {"archive": archive}]})
    corpora = [tmp_path / name for name in ("one", "two", "three")]
    merge_corpora(corpora, tmp_path / "all", workers=1)
    merged = open_corpus(tmp_path / "all")
    assert [(s.name, s.archive, s.kept) for s in merged.sources] == [
        ("a", "x.zip", 5),
        ("a-2", "y.zip", 5),
    ]
    assert merged.sources[1].settings == {"name_before": "a"}
    assert verify_corpus(tmp_path / "all") == (), "checksums are those of the new name"
    assert np.array_equal(merged.points(7), merged.points(2))


def test_one_id_for_different_shapes_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    for name, count in (("one", 5), ("two", 6)):
        write_corpus(tmp_path / name, [("a", some_rows("a", count))])
    with pytest.raises(
        CorpusError, match="hold different shapes under the id 'a/é00' of a, as they"
    ):
        merge_corpora([tmp_path / "one", tmp_path / "two"], tmp_path / "all", workers=1)
    assert not (tmp_path / "all").exists()
    with pytest.raises(ConfigError, match="name two or more"):
        merge_corpora([tmp_path / "one", tmp_path / "one"], tmp_path / "all")


def test_other_seeds_and_points_stay_known(tmp_path: Path) -> None:
    write_corpus(tmp_path / "one", [("a", some_rows("a", 5))])
    write_corpus(tmp_path / "two", [("b", some_rows("b", 5))])
    edit(tmp_path / "two", {"seed": 8, "points": 128})
    merge_corpora([tmp_path / "one", tmp_path / "two"], tmp_path / "all", workers=1)
    merged = open_corpus(tmp_path / "all")
    assert (merged.manifest.seed, merged.manifest.points) == (3, 128)
    assert [s.settings["made_with"] for s in merged.sources] == [
        {"seed": 3, "points": 64},
        {"seed": 8, "points": 128},
    ]


def test_the_parts_of_a_split_are_all_of_it_once_and_merge_to_the_same(
    tmp_path: Path, both: Path
) -> None:
    shares = {"train": 0.5, "val": 0.25, "test": 0.25}
    reports = split_corpus(both, tmp_path / "parts", shares=shares, seed=1, workers=1)
    assert [report.kept for report in reports.values()] == [8, 4, 4]
    parts = [shapes_of(report.path) for report in reports.values()]
    assert sum(len(part) for part in parts) == 16
    assert parts[0] | parts[1] | parts[2] == shapes_of(both)
    merge_corpora([report.path for report in reports.values()], tmp_path / "again", workers=1)
    assert open_corpus(tmp_path / "again").content == open_corpus(both).content
    step = open_corpus(reports["val"].path).sources[0].settings["selection"][0]
    assert step == {
        "of": open_corpus(both).content,
        "part": "val",
        "shares": shares,
        "seed": 1,
    }
    other = split_corpus(both, tmp_path / "other", shares=shares, seed=2, workers=1)
    assert shapes_of(other["train"].path).keys() != parts[0].keys()


def test_every_label_is_divided_alike(tmp_path: Path) -> None:
    """12 shapes of each of two labels, and 12 without: 9 and 3 of each."""
    write_corpus(tmp_path / "corpus", [("a", some_rows("a", 36))])
    shares = {"train": 0.75, "test": 0.25}
    reports = split_corpus(tmp_path / "corpus", tmp_path / "parts", shares=shares, workers=1)
    for name, each in (("train", 9), ("test", 3)):
        labels = open_corpus(reports[name].path).labels()
        assert np.bincount(labels + 1).tolist() == [each] * 3


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        (
            {"train": 0.8, "test": 0.3},
            "two or more shares must add up to 1, got 2 that add up to 1.1",
        ),
        ({"a": 1.0}, "shares must lie between 0 and 1, got 1 for a"),
        ({"../up": 0.5, "b": 0.5}, "'../up' is no name for a folder"),
        ({"a": 0.999, "b": 0.001}, "b would get none of 16 shapes; give it a larger share"),
    ],
)
def test_shares_that_cannot_be(
    tmp_path: Path, both: Path, shares: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        split_corpus(both, tmp_path / "parts", shares=shares)


def test_a_subset_is_what_was_asked_for_and_says_so(tmp_path: Path, both: Path) -> None:
    def subset(name: str, shapes: int | None = None, **choice: Any) -> Path:
        wanted = ShapeFilter(**choice)
        done = subset_corpus(both, tmp_path / name, choice=wanted, shapes=shapes, workers=1)
        assert verify_corpus(done.path) == ()
        return done.path

    whole = shapes_of(both)
    tables = shapes_of(subset("tables", labels=("table",)))
    assert tables == {k: v for k, v in whole.items() if v[1] == "table"}
    assert len(tables) == 5
    of_b = subset("of b", sources=("b",))
    assert shapes_of(of_b) == {k: v for k, v in whole.items() if k[0] == "b"}
    named = subset("named", ids=("b/é03", "a/é01"))
    assert shapes_of(named).keys() == {("a", "a/é01"), ("b", "b/é03")}
    some = subset("some", shapes=6)
    assert len(shapes_of(some)) == 6
    twice = subset_corpus(some, tmp_path / "twice", choice=ShapeFilter(), shapes=3, workers=1)
    steps = open_corpus(twice.path).sources[0].settings["selection"]
    contents = [open_corpus(both).content, open_corpus(some).content]
    assert [(s["of"], s["shapes"], s["seed"]) for s in steps] == [
        (contents[0], 6, 0),
        (contents[1], 3, 0),
    ]
    with pytest.raises(ConfigError, match="no label 'tabel'; did you mean 'table'"):
        subset("wrong", labels=("tabel",))
    with pytest.raises(
        ConfigError, match="shapes must be at most 16, which meet the conditions, got 17"
    ):
        subset("wrong", shapes=17)
    with pytest.raises(DataError, match="no shape 'zebra'"):
        subset("wrong", ids=("zebra",))
    with pytest.raises(CorpusError, match="holds another corpus; choose another output"):
        subset("some", shapes=7)


def test_the_bytes_depend_neither_on_workers_nor_on_interruptions(
    tmp_path: Path, both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "more", [("b", some_rows("b", 7, parts=True))])
    corpora = [both, tmp_path / "more"]
    merge_corpora(corpora, tmp_path / "alone", workers=1)
    merge_corpora(corpora, tmp_path / "many", workers=2)
    assert digest(tmp_path / "many") == digest(tmp_path / "alone")
    write, done = copying._write_one, []

    def stop(task: Any) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(write(task))

    with monkeypatch.context() as broken:
        broken.setattr(copying, "_write_one", stop)
        with pytest.raises(KeyboardInterrupt):
            merge_corpora(corpora, tmp_path / "stopped", workers=1)
    assert not (tmp_path / "stopped" / "corpus.json").exists()
    report = merge_corpora(corpora, tmp_path / "stopped", workers=1)
    assert report.resumed == 6
    assert digest(tmp_path / "stopped") == digest(tmp_path / "alone")


def test_damage_is_named_and_not_copied(tmp_path: Path, both: Path) -> None:
    flip_byte(both / "a-00001.h5", place_of(both / "a-00001.h5", "points"))
    with pytest.raises(
        CorpusError, match=r"a-00001\.h5: damaged, shape a/é05 does not match its check"
    ):
        subset_corpus(both, tmp_path / "some", choice=ShapeFilter(sources=("a",)), workers=1)
    assert not (tmp_path / "some" / "corpus.json").exists()


def test_a_block_holds_no_more_points_than_allowed(both: Path) -> None:
    opened = open_corpus(both)
    source = opened.sources[1]
    shard = opened.manifest.shards[2]
    blocks = list(rows.read_rows(both, shard, source, np.arange(7), most_points=90))
    assert [len(block) for block in blocks] == [2, 2, 2, 1], "40 + 41, 42 + 43, 44 + 45, 46"
    assert all(block.part is not None for block in blocks)


@pytest.mark.parametrize(
    "name", ["{0}/victim/a", "../../victim/a", "..", ".hidden", "", "a\\b", "a\nb"]
)
def test_a_strangers_source_cannot_lead_out_of_the_folder(
    name: str, tmp_path: Path, both: Path
) -> None:
    write_corpus(tmp_path / "victim", [("a", some_rows("a", 3))])
    before = digest(tmp_path / "victim")
    evil = name.format(tmp_path)
    stored = json.loads((both / "corpus.json").read_text())
    for record in [*stored["sources"], *stored["shards"]]:
        key = "name" if "name" in record else "source"
        record[key] = evil if record[key] == "a" else record[key]
    edit(both, {"sources": stored["sources"], "shards": stored["shards"]})
    with pytest.raises(CorpusError, match="source name"):
        subset_corpus(both, tmp_path / "out" / "few", choice=ShapeFilter(), workers=1)
    assert digest(tmp_path / "victim") == before
