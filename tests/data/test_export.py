"""Exports, read back without this program: the shapes of the corpus, their names, and their licences."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.corpus.shard import make_row
from pointdistill.data.corpus_building import build_corpus, export
from pointdistill.data.corpus_building.export import (
    export_corpus,
    find_export_damage,
    ply_path,
)
from pointdistill.data.files.archive import safe_name
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.errors import ConfigError, CorpusError, DataError
from tests.data.test_build import digest
from tests.data.test_corpus import edit, some_rows, write_corpus
from tests.data.test_corpus_verify import flip_byte, place_of


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """7 shapes of source a in two shards, and 5 of b with parts; two or three shapes are in memory."""
    monkeypatch.setattr(export, "BLOCK_POINTS", 120)
    rows = some_rows("a", 7)
    shards = [("a", rows[:4]), ("a", rows[4:]), ("b", some_rows("b", 5, parts=True))]
    write_corpus(tmp_path / "corpus", shards)
    return open_corpus(tmp_path / "corpus")


def test_npz_holds_the_arrays_of_a_shard(tmp_path: Path, corpus: Corpus) -> None:
    report = export_corpus(corpus.path, tmp_path / "out", layout="npz", workers=1)
    assert (report.shapes, report.files) == (12, 3)
    number = 0
    for name in ("a-00000.npz", "a-00001.npz", "b-00002.npz"):
        with np.load(tmp_path / "out" / name, allow_pickle=False) as file:
            arrays = dict(file)
        for k, (start, stop) in enumerate(
            zip(arrays["offsets"][:-1], arrays["offsets"][1:], strict=True)
        ):
            shape = corpus[number]
            assert np.array_equal(arrays["points"][start:stop], shape.points)
            assert (str(arrays["id"][k]), str(arrays["source"])) == (shape.id, shape.source)
            if shape.label >= 0:
                label = arrays["label_names"][arrays["label"][k]]
                assert str(label) == corpus.label_names[shape.label]
            if shape.part is not None:
                assert np.array_equal(arrays["part"][start:stop], shape.part)
            number += 1
    assert number == 12


def test_webdataset_has_members_that_share_a_key(tmp_path: Path, corpus: Corpus) -> None:
    export_corpus(corpus.path, tmp_path / "out", layout="webdataset", workers=1)
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, ending = member.name.partition(".")
                content = archive.extractfile(member)
                assert content is not None
                samples.setdefault(key, {})[ending] = content.read()
                assert (member.mtime, member.uid, member.uname) == (0, 0, "")
    assert list(samples) == [f"{k:09d}" for k in range(12)]
    for k, sample in enumerate(samples.values()):
        shape = corpus[k]
        assert np.array_equal(np.load(io.BytesIO(sample["points.npy"])), shape.points)
        name = corpus.label_names[shape.label] if shape.label >= 0 else None
        about = {"id": shape.id, "source": shape.source, "label": name, "licence": "free"}
        assert json.loads(sample["json"]) == about
        assert sample.get("cls") == (str(shape.label).encode() if name else None)
        assert ("part.npy" in sample) == (shape.part is not None)


def test_parquet_has_a_row_for_each_shape(tmp_path: Path, corpus: Corpus) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    export_corpus(corpus.path, tmp_path / "out", layout="parquet", workers=1)
    files = sorted((tmp_path / "out").glob("*.parquet"))
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    assert pq.read_schema(files[0]).metadata[b"licence"] == b"free"
    for k, row in enumerate(rows):
        shape = corpus[k]
        assert np.array_equal(np.array(row["points"], np.float32), shape.points)
        assert (row["id"], row["source"]) == (shape.id, shape.source)
        assert row["label"] == (corpus.label_names[shape.label] if shape.label >= 0 else None)
        assert row["part"] == (None if shape.part is None else shape.part.tolist())
    assert len(rows) == 12


def test_ply_files_are_a_folder_that_can_be_prepared_again(tmp_path: Path, corpus: Corpus) -> None:
    export_corpus(corpus.path, tmp_path / "out", layout="ply", workers=1)
    source = open_source("folder", SourceRequest(path=tmp_path / "out" / "b", up="z"))
    again = open_corpus(build_corpus(source, tmp_path / "again", points=64, workers=0).path)
    assert again.ids() == [f"b/%C3%A9{k:02d}.ply" for k in range(5)]
    assert again.label_names == ("b",), "the first part of the ids"
    for k in range(5):
        assert np.allclose(again.points(k), corpus.points(7 + k), atol=1e-4)


@pytest.mark.parametrize("layout", ["npz", "ply", "webdataset", "parquet"])
def test_an_export_is_the_same_again_and_verifiable(
    tmp_path: Path, corpus: Corpus, layout: str
) -> None:
    if layout == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / "out"
    export_corpus(corpus.path, out, layout=layout, workers=1)
    export_corpus(corpus.path, tmp_path / "again", layout=layout, workers=1)
    assert digest(tmp_path / "again") == digest(out)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert export_corpus(corpus.path, out, layout=layout).was_complete
    about = json.loads((out / "export.json").read_text())
    assert about["content"] == corpus.content
    assert [source["licence"] for source in about["sources"]] == ["free", "free"]
    assert "licence: free" in (out / "LICENCES.txt").read_text()
    lines = [line.split("  ") for line in (out / "SHA256SUMS").read_text().splitlines()]
    for checksum, name in lines:
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == checksum
    assert list(find_export_damage(out)) == []
    first, second = lines[0][1], lines[1][1]
    flip_byte(out / first, 20)
    (out / second).unlink()
    assert list(find_export_damage(out)) == [
        f"{first}: changed since it was written",
        f"{second}: missing",
    ]
    with pytest.raises(DataError, match="out: exists and is another thing; choose another output"):
        export_corpus(corpus.path, out, layout="ply" if layout != "ply" else "npz")


def test_an_export_goes_on_and_does_not_depend_on_the_workers(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_corpus(corpus.path, tmp_path / "alone", layout="npz", workers=1)
    write, done = export._write_unit, []

    def stop(unit: Any) -> None:
        if done:
            (unit.folder / "a-00001.npz").write_bytes(b"half of it")
            raise KeyboardInterrupt
        done.append(write(unit))

    with monkeypatch.context() as broken:
        broken.setattr(export, "_write_unit", stop)
        with pytest.raises(KeyboardInterrupt):
            export_corpus(corpus.path, tmp_path / "out", layout="npz", workers=1)
    assert not (tmp_path / "out").exists()
    report = export_corpus(corpus.path, tmp_path / "out", layout="npz", workers=2)
    assert report.resumed == 4
    assert digest(tmp_path / "out") == digest(tmp_path / "alone")


def test_damage_is_named_and_leaves_no_export(tmp_path: Path, corpus: Corpus) -> None:
    flip_byte(corpus.path / "a-00001.h5", place_of(corpus.path / "a-00001.h5", "points"))
    with pytest.raises(CorpusError, match="shape a/é04 does not match its checksum"):
        export_corpus(corpus.path, tmp_path / "out", layout="npz", workers=1)
    assert not (tmp_path / "out").exists()


def test_parquet_without_pyarrow_is_one_line(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    with pytest.raises(
        ConfigError, match=r"Parquet needs pyarrow; pip install 'pointdistill\[parq"
    ):
        export_corpus(corpus.path, tmp_path / "out", layout="parquet")
    with pytest.raises(
        ConfigError, match="must be one of npz, ply, webdataset, parquet, got 'csv'"
    ):
        export_corpus(corpus.path, tmp_path / "out", layout="csv")


NAMES = [
    "..",
    ".",
    "",
    "a",
    ".a",
    "%2Ea",
    "a.",
    "a ",
    "a\\b",
    "a:b",
    "a\nb",
    "ä",
    "x" * 300,
    "x" * 301,
]


def test_names_from_elsewhere_lead_nowhere_and_stay_different() -> None:
    safe = [safe_name(name) for name in NAMES]
    assert len(set(safe)) == len(NAMES)
    for name in safe:
        assert name
        assert name not in {".", ".."}
        assert not set(name) & set('/\\:\n"\0')
        assert len(name) <= 200
    assert safe_name("chair_01.off") == "chair_01.off"
    assert ply_path("../../etc/passwd") == "%2E%2E/%2E%2E/etc/passwd.ply"
    assert ply_path("/etc/passwd") == "%/etc/passwd.ply"
    assert ply_path("a.ply/b") == "a%2Eply/b.ply", "no folder is where the file of the shape `a` is"
    assert ply_path("a") == "a.ply"


def test_a_shape_with_a_hostile_name_stays_in_the_export(tmp_path: Path) -> None:
    cloud = np.random.default_rng(0).normal(size=(40, 3))
    names = sorted(["../../up", "/abs", "a", "a.ply/b"])
    write_corpus(tmp_path / "corpus", [("a", [make_row(name, cloud) for name in names])])
    export_corpus(tmp_path / "corpus", tmp_path / "in" / "out", layout="ply", workers=1)
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.ply") if p.is_file()}
    assert files == {
        "in/out/a/%2E%2E/%2E%2E/up.ply",
        "in/out/a/%/abs.ply",
        "in/out/a/a.ply",
        "in/out/a/a%2Eply/b.ply",
    }


def test_names_that_differ_by_upper_case_alone_are_two_files_everywhere(tmp_path: Path) -> None:
    cloud = np.random.default_rng(0).normal(size=(40, 3))
    first = [make_row(name, cloud) for name in ("Chair/1", "b")]
    write_corpus(tmp_path / "c", [("a", first), ("a", [make_row("chair/1", cloud)])])
    report = export_corpus(tmp_path / "c", tmp_path / "out", layout="ply", workers=1)
    files = [p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.rglob("*.ply")]
    assert report.files == len({name.lower() for name in files}) == 3
    assert "a/b.ply" in files, "other names stay as they are"
    assert not list(find_export_damage(tmp_path / "out"))


def test_a_shard_is_marked_after_its_files_are_on_the_disk(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of power in between leaves no mark of files that are empty."""
    seen: list[tuple[int, int]] = []
    out = tmp_path / ".out.unfinished"

    def sync(*_: object) -> None:
        seen.append((len(list(out.rglob("*.ply"))), len(list(out.glob(".finished/0*")))))

    monkeypatch.setattr(export.os, "sync", sync, raising=False)
    export_corpus(corpus.path, tmp_path / "out", layout="ply", workers=1)
    assert seen[:3] == [(4, 0), (7, 1), (12, 2)]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_no_link_leads_an_export_to_the_files_of_others(tmp_path: Path, corpus: Corpus) -> None:
    theirs = tmp_path / "theirs"
    (theirs / "folder").mkdir(parents=True)
    (theirs / "file").write_text("kept")
    (tmp_path / ".out.unfinished").symlink_to(theirs)
    with pytest.raises(DataError, match="is a link in place of a folder for unfinished work"):
        export_corpus(corpus.path, tmp_path / "out", layout="ply", workers=1)
    assert sorted(path.name for path in theirs.iterdir()) == ["file", "folder"]
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    export_corpus(corpus.path, tmp_path / "link", layout="npz", workers=1)
    assert not list(find_export_damage(tmp_path / "absent"))
    (tmp_path / "broken").symlink_to(tmp_path / "gone" / "too")
    with pytest.raises(DataError, match="broken: is a broken link; choose another output"):
        export_corpus(corpus.path, tmp_path / "broken", layout="npz", workers=1)


def test_only_files_of_an_export_are_read_to_verify_it(tmp_path: Path, corpus: Corpus) -> None:
    """Whoever made the export wrote the names; none of them is another file of this machine."""
    out, secret = tmp_path / "out", tmp_path / "secret"
    export_corpus(corpus.path, out, layout="npz", workers=1)
    secret.write_text("not for others")
    (out / "link").symlink_to(secret)
    names = ["../secret", str(secret), "link"]
    sums = "".join(f"{hashlib.sha256(secret.read_bytes()).hexdigest()}  {name}\n" for name in names)
    (out / "SHA256SUMS").write_text(sums)
    about = json.loads((out / "export.json").read_text())
    about["sums_sha256"] = hashlib.sha256(sums.encode()).hexdigest()
    (out / "export.json").write_text(json.dumps(about))
    assert list(find_export_damage(out)) == [
        f"{name}: is in another folder, and is not read" for name in names
    ]


def test_names_that_the_export_or_windows_needs_are_quoted() -> None:
    assert ply_path("SHA256SUMS/a") == "%53HA256SUMS/a.ply"
    assert ply_path("export.json/a") == "%65xport.json/a.ply"
    assert safe_name("con.1") == "%63on.1"
    assert safe_name("console") == "console"


def test_an_export_of_other_licences_is_another_one(tmp_path: Path, corpus: Corpus) -> None:
    export_corpus(corpus.path, tmp_path / "out", layout="ply", workers=1)
    stored = json.loads((corpus.path / "corpus.json").read_text())
    stored["sources"][0]["licence"] = "CC BY-NC 4.0"
    edit(corpus.path, {"sources": stored["sources"]})
    with pytest.raises(DataError, match="is another thing"):
        export_corpus(corpus.path, tmp_path / "out", layout="ply", workers=1)
