"""A corpus on disk: what was written is read back, by this program and by plain h5py."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

import pointdistill
from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.corpus.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardRecord,
    SourceRecord,
    write_manifest,
)
from pointdistill.data.corpus.shard import Row, encode, make_row, sizes_of, write_shard
from pointdistill.data.files.files import sha256_of
from pointdistill.data.files.member import file_state
from pointdistill.data.sources import paths as shape_lists
from pointdistill.errors import CorpusError

LABELS = {"a": ("chair", "table"), "b": ("table", "lamp")}


def some_rows(source: str, count: int, *, parts: bool = False) -> list[Row]:
    """Clouds of 40, 41, … points; every third one without a label."""
    rng = np.random.default_rng(len(source) + count)
    return [
        make_row(
            f"{source}/é{k:02d}",
            rng.normal(size=(40 + k, 3)).astype(np.float32),
            label=k % 3 - 1,
            part=(np.arange(40 + k) % 5).astype(np.uint8) if parts and k % 2 else None,
        )
        for k in range(count)
    ]


def write_corpus(folder: Path, shards: Sequence[tuple[str, Sequence[Row]]]) -> None:
    """A corpus of the given shards, each of one source."""
    folder.mkdir()
    records, content = [], hashlib.sha256()
    for number, (source, rows) in enumerate(shards):
        path = folder / f"{source}-{number:05d}.h5"
        block = encode(rows, source=source, label_names=LABELS[source])
        write_shard(path, [block], sizes_of(block), source=source, label_names=LABELS[source])
        content.update(block.sha256.tobytes())
        records.append(
            ShardRecord(
                file=path.name,
                source=source,
                shapes=len(block),
                points=len(block.points),
                bytes=path.stat().st_size,
                sha256=sha256_of(path),
            )
        )
    sources = tuple(
        SourceRecord(
            name=name,
            licence="free",
            origin="a test",
            turned="none",
            labels=LABELS[name],
            settings={},
            kept=sum(len(rows) for source, rows in shards if source == name),
            refused=0,
        )
        for name in dict.fromkeys(source for source, _ in shards)
    )
    manifest = Manifest(
        seed=3,
        points=64,
        content=content.hexdigest(),
        refused_sha256=None,
        sources=sources,
        shards=tuple(records),
    )
    write_manifest(folder / MANIFEST_NAME, manifest)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sources, three shards, 4 + 3 + 5 shapes."""
    rows = some_rows("a", 7)
    shards = [("a", rows[:4]), ("a", rows[4:]), ("b", some_rows("b", 5, parts=True))]
    write_corpus(tmp_path / "corpus", shards)
    return tmp_path / "corpus"


def edit(folder: Path, changes: Mapping[str, object]) -> None:
    """Change some keys of ``corpus.json``."""
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_was_written_is_read_back(folder: Path) -> None:
    corpus = open_corpus(folder)
    assert len(corpus) == 12
    for k, row in enumerate([*some_rows("a", 7), *some_rows("b", 5, parts=True)]):
        shape = corpus[k]
        expected = row.shape.center + row.shape.scale * row.shape.points / np.float32(32767)
        assert shape.points.dtype == np.float32
        assert np.allclose(shape.points, expected, rtol=0, atol=1e-6)
        assert np.array_equal(corpus.points(k), shape.points)
        assert (shape.id, shape.source) == (row.id, row.id[0])
    assert corpus.ids() == [corpus[k].id for k in range(12)]
    assert corpus.ids()[0] == "a/é00"


def test_package_opens_a_corpus_by_name(folder: Path) -> None:
    assert len(pointdistill.open_corpus(str(folder))) == 12


def test_sources_that_share_a_label_name_share_the_label(folder: Path) -> None:
    """Source a has chair 0, table 1; source b has table 0, lamp 1; together chair, table, lamp."""
    corpus = open_corpus(folder)
    assert corpus.label_names == ("chair", "table", "lamp")
    expected = [-1, 0, 1, -1, 0, 1, -1, -1, 1, 2, -1, 1]
    assert corpus.labels().tolist() == expected
    assert [corpus[k].label for k in range(12)] == expected


def test_parts_are_read_and_unknown_ones_filled(folder: Path) -> None:
    corpus = open_corpus(folder)
    assert corpus[0].part is None, "source a has no parts"
    unknown, known = corpus[7].part, corpus[8].part
    assert unknown is not None
    assert known is not None
    assert set(unknown.tolist()) == {255}
    assert known.tolist() == (np.arange(41) % 5).tolist()


def test_numbers_count_from_either_end(folder: Path) -> None:
    corpus = open_corpus(folder)
    assert corpus[-1].id == corpus[11].id
    assert [shape.id for shape in corpus] == corpus.ids()
    for outside in (12, -13):
        with pytest.raises(IndexError, match=f"shape {outside} of a corpus of 12"):
            corpus[outside]


def test_reading_changes_nothing_that_the_next_reader_sees(folder: Path) -> None:
    corpus = open_corpus(folder)
    before = corpus.points(2).copy()
    corpus.points(2)[:] = 0
    assert np.array_equal(corpus.points(2), before)


def test_plain_h5py_reads_a_shard_as_the_docs_say(folder: Path) -> None:
    """The recipe of docs/corpus-format.md, without this program."""
    corpus = open_corpus(folder)
    manifest = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    shard = manifest["shards"][2]
    with h5py.File(folder / shard["file"], "r") as file:
        start, stop = file["offsets"][1:3]
        points = file["points"][start:stop]
        xyz = file["center"][1] + file["scale"][1] * points / np.float32(32767)
        assert file["id"].asstr()[1] == "b/é01"
        assert file["label_names"].asstr()[file["label"][1]] == "table"
        assert file.attrs["source"] == shard["source"] == "b"
        assert file["points"].chunks is None
        assert file["points"].compression is None
    assert np.allclose(xyz, corpus.points(8), rtol=0, atol=1e-6)


def test_bytes_depend_on_the_content_alone(tmp_path: Path) -> None:
    """No time is stored: HDF5 would keep it in whole seconds."""
    write_corpus(tmp_path / "one", [("a", some_rows("a", 3))])
    time.sleep(1.1)
    write_corpus(tmp_path / "two", [("a", some_rows("a", 3))])
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_blocks_one_after_another_give_the_shard_of_all_at_once(tmp_path: Path) -> None:
    """Also where only one of the blocks has parts, and ids are of different lengths."""
    rows = [*some_rows("a", 3), *some_rows("bbbb", 3, parts=True)]
    whole = encode(rows, source="a", label_names=LABELS["a"])
    blocks = [encode(part, source="a", label_names=LABELS["a"]) for part in (rows[:3], rows[3:])]
    sizes = sizes_of(blocks[0]) + sizes_of(blocks[1])
    write_shard(tmp_path / "1.h5", blocks, sizes, source="a", label_names=LABELS["a"])
    write_shard(tmp_path / "2.h5", [whole], sizes_of(whole), source="a", label_names=LABELS["a"])
    assert (tmp_path / "1.h5").read_bytes() == (tmp_path / "2.h5").read_bytes()


def test_opening_reads_no_shard(folder: Path) -> None:
    """Shards of zeros, of the right size, are noticed at the first read and not before."""
    for shard in folder.glob("*.h5"):
        shard.write_bytes(bytes(shard.stat().st_size))
    corpus = open_corpus(folder)
    assert len(corpus) == 12
    with pytest.raises(CorpusError, match=r"a-00000\.h5: damaged"):
        corpus[0]


def test_few_open_shards_are_enough(folder: Path) -> None:
    """With room for one mapped shard, reads in any order still give the right shapes."""
    corpus, narrow = open_corpus(folder), open_corpus(folder, most_shards=1)
    for k in np.random.default_rng(0).integers(0, 12, size=60):
        assert np.array_equal(narrow.points(int(k)), corpus.points(int(k)))
        assert len(narrow._shards) == 1


def test_threads_share_a_corpus(folder: Path) -> None:
    expected = [open_corpus(folder).points(k) for k in range(12)]
    corpus = open_corpus(folder, most_shards=2)
    numbers = np.random.default_rng(0).integers(0, 12, size=400).tolist()
    with ThreadPoolExecutor(4) as threads:
        clouds = list(threads.map(corpus.points, numbers))
    assert all(
        np.array_equal(expected[k], points) for k, points in zip(numbers, clouds, strict=True)
    )


def _sum(corpus: Corpus) -> float:
    return float(sum(corpus.points(k).sum() for k in range(len(corpus))))


def test_a_corpus_can_be_sent_to_another_process(folder: Path) -> None:
    corpus = open_corpus(folder)
    total = _sum(corpus)
    assert _sum(pickle.loads(pickle.dumps(corpus))) == total


def test_a_reader_in_order_holds_no_more_than_it_was_allowed(folder: Path) -> None:
    """Sent to another process too."""
    corpus = pickle.loads(pickle.dumps(open_corpus(folder, most_shards=2)))
    assert _sum(corpus) == _sum(open_corpus(folder))
    assert list(corpus._shards) == [1, 2], "the first of the three shards was let go"


def test_a_list_of_shapes_lets_go_of_the_shards_behind_it(folder: Path) -> None:
    shapes = shape_lists.list_shapes([folder])
    settings = shape_lists.ReadSettings(points=64, seed=0)
    for k in range(len(shapes)):
        assert shape_lists.read_shape(shapes[k][1], settings).points is not None
    state = file_state(folder / MANIFEST_NAME)
    assert list(shape_lists._corpus(str(folder.resolve()), state)._shards) == [1, 2]


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork"
)
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_reads_what_its_parent_had_open(folder: Path) -> None:
    corpus = open_corpus(folder)
    total = _sum(corpus)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=lambda: theirs.send(_sum(corpus)))
    child.start()
    assert ours.poll(30)
    assert ours.recv() == total
    child.join()


def test_description_names_sources_counts_and_licences(folder: Path) -> None:
    text = open_corpus(folder).describe()
    assert "12 shapes" in text
    assert "a: 7 shapes, 2 labels; free" in text
    assert "seed 3" in text


def damage_none(folder: Path) -> None:
    (folder / MANIFEST_NAME).unlink()


def damage_unfinished(folder: Path) -> None:
    damage_none(folder)
    (folder / ".building").mkdir()


def damage_shard_missing(folder: Path) -> None:
    (folder / "a-00001.h5").unlink()


def damage_shard_short(folder: Path) -> None:
    content = (folder / "a-00001.h5").read_bytes()
    (folder / "a-00001.h5").write_bytes(content[:-7])


def damage_manifest_short(folder: Path) -> None:
    text = (folder / MANIFEST_NAME).read_text()
    (folder / MANIFEST_NAME).write_text(text[: len(text) // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_none, "not a corpus, it holds no corpus.json"),
        (damage_unfinished, "not finished; run the same"),
        (damage_shard_missing, r"a-00001\.h5: missing, with 3 shapes"),
        (damage_shard_short, r"a-00001\.h5: cut short, [\d,]+ bytes of [\d,]+"),
        (damage_manifest_short, "not readable as JSON"),
        (
            lambda folder: edit(folder, {"version": 2}),
            "format version 2, this program reads version 1",
        ),
        (lambda folder: edit(folder, {"format": "other"}), "not a corpus"),
        (
            lambda folder: edit(folder, {"shards": [{"file": "x.h5"}]}),
            r"damaged \(missing setting 'shards.source'\)",
        ),
        (lambda folder: edit(folder, {"seed": None}), "damaged"),
    ],
)
def test_what_is_no_whole_corpus_is_one_clear_line(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)
    with pytest.raises(CorpusError, match=message) as caught:
        open_corpus(folder)
    assert "\n" not in str(caught.value)


def test_no_folder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError, match="no such corpus; make one with `pointdistill prepare-data`"
    ):
        open_corpus(tmp_path / "nothing")


def test_a_strangers_corpus_cannot_name_files_elsewhere(folder: Path) -> None:
    stored = json.loads((folder / MANIFEST_NAME).read_text())
    for name in ("../x.h5", "/etc/passwd", "..", "a/b.h5"):
        stored["shards"][0]["file"] = name
        edit(folder, stored)
        with pytest.raises(CorpusError, match="leads out of the corpus folder"):
            open_corpus(folder)


def test_a_shard_that_is_another_is_refused(folder: Path) -> None:
    """The size in corpus.json made to fit, so that only the file's own layout is wrong."""
    other = folder / "b-00002.h5"
    stored = json.loads((folder / MANIFEST_NAME).read_text())
    stored["shards"][0] |= {"file": other.name, "bytes": other.stat().st_size}
    edit(folder, stored)
    with pytest.raises(CorpusError, match=r"b-00002\.h5: points is int16 \(210, 3\), expected <i2"):
        open_corpus(folder)[0]


def test_a_shard_that_is_cut_short_while_it_is_read_is_one_line(folder: Path) -> None:
    """A memory map of it would end the process with a signal."""
    corpus = open_corpus(folder)
    corpus.points(0)
    path = folder / "a-00000.h5"
    os.truncate(path, path.stat().st_size // 4)
    with pytest.raises(CorpusError, match=r"a-00000\.h5: was cut short while it was in use"):
        [corpus[k] for k in range(3)]


def test_a_label_that_is_none_is_one_line(folder: Path) -> None:
    with h5py.File(folder / "a-00000.h5", "r+") as file:
        file["label"][1] = 7
    corpus = open_corpus(folder)
    for read in (corpus.labels, lambda: corpus[1]):
        with pytest.raises(CorpusError, match=r"a-00000\.h5: damaged, a label is none of the"):
            read()


@pytest.mark.parametrize("name", ["offsets", "scale", "center"])
def test_damaged_numbers_of_a_shard_are_one_line(folder: Path, name: str) -> None:
    with h5py.File(folder / "a-00000.h5", "r+") as file:
        file[name][1] = -1
        if name == "center":
            file[name][1] = np.nan
    with pytest.raises(CorpusError, match=r"a-00000\.h5: damaged"):
        open_corpus(folder).points(0)
