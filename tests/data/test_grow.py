"""A corpus of a folder that grows: only new and changed files are read, and the bytes are those of one build."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointdistill.data.corpus import open_corpus, verify_corpus
from pointdistill.data.corpus_building import (
    BuildReport,
    BuildSettings,
    division,
    grow,
    retry_corpus,
    tasks,
)
from pointdistill.data.corpus_building.build import build_source
from pointdistill.data.corpus_building.grow import grow_corpus
from pointdistill.data.sources import SourceRequest, folder, open_source
from pointdistill.errors import CorpusError
from tests.data.test_build import digest

SETTINGS = BuildSettings(points=64, workers=0)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards, with boundaries that move when shapes are added."""
    monkeypatch.setattr(division, "SHARD_SHAPES", 8)


def write_clouds(files: Path, names: list[str], *, seed: int = 0) -> None:
    for name in names:
        path = files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, *name.encode()])
        np.savetxt(path, rng.normal(size=(100, 3)))


def make(files: Path, output: Path, **options: Any) -> BuildReport | None:
    """Bring a corpus up to date, or build it."""
    source = open_source("folder", SourceRequest(path=files, up=options.pop("up", None)))
    grown = grow_corpus(source, output, SETTINGS, **options)
    return grown or build_source(source, output, SETTINGS)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the files that are read from now on."""
    seen: list[str] = []
    read = folder.read_named

    def watch(path: Path, name: str) -> Any:
        seen.append(name)
        return read(path, name)

    monkeypatch.setattr(folder, "read_named", watch)
    return seen


NAMES = [f"chair/{k:02d}.xyz" for k in range(11)] + [f"table/{k:02d}.xyz" for k in range(9)]


def test_a_grown_corpus_has_the_bytes_of_one_build(tmp_path: Path, reads: list[str]) -> None:
    """New classes come before, between and after the old ones, so labels and shards are numbered anew."""
    files = tmp_path / "mine"
    write_clouds(files, NAMES)
    (files / "chair" / "bad.off").write_text("OFF\nnothing")
    make(files, tmp_path / "grown")
    added = ["aeroplane/0.xyz", "aeroplane/1.xyz", "chair/05a.xyz", "stool/0.xyz", "z.xyz"]
    write_clouds(files, added)
    (files / "stool" / "worse.off").write_text("OFF\nnothing at all")
    reads.clear()
    report = make(files, tmp_path / "grown")
    assert sorted(reads) == sorted([*added, "stool/worse.off"])
    assert report is not None
    assert (report.kept, report.refused, report.resumed) == (25, 2, 21)
    make(files, tmp_path / "at once")
    assert digest(tmp_path / "grown") == digest(tmp_path / "at once")
    assert verify_corpus(tmp_path / "grown") == ()
    assert open_corpus(tmp_path / "grown").label_names == ("aeroplane", "chair", "stool", "table")


def test_changed_and_removed_files_are_told_and_removed_ones_only_leave_on_request(
    tmp_path: Path, reads: list[str]
) -> None:
    files, corpus = tmp_path / "mine", tmp_path / "grown"
    write_clouds(files, NAMES)
    make(files, corpus)
    write_clouds(files, ["chair/03.xyz"], seed=1)
    for name in NAMES[-9:]:
        (files / name).unlink()
    before = digest(corpus)
    with pytest.raises(
        CorpusError, match=r"9 of its shapes have no file .* such as 'table/00.xyz'"
    ):
        make(files, corpus)
    assert digest(corpus) == before
    reads.clear()
    make(files, corpus, drop_removed=True)
    assert reads == ["chair/03.xyz"]
    make(files, tmp_path / "at once")
    assert digest(corpus) == digest(tmp_path / "at once"), "no shard of the larger corpus is left"
    reads.clear()
    again = make(files, corpus)
    assert again is not None
    assert (again.was_complete, reads) == (True, [])


def test_another_folder_of_the_same_name_never_replaces_a_corpus(tmp_path: Path) -> None:
    write_clouds(tmp_path / "a" / "mine", NAMES[:3])
    write_clouds(tmp_path / "b" / "mine", NAMES[:4], seed=1)
    make(tmp_path / "a" / "mine", tmp_path / "corpus")
    with pytest.raises(
        CorpusError, match="none of the files that this corpus was made of is unchang"
    ):
        make(tmp_path / "b" / "mine", tmp_path / "corpus")
    with pytest.raises(CorpusError, match="made with other settings"):
        make(tmp_path / "a" / "mine", tmp_path / "corpus", up="y")


@pytest.mark.parametrize("buffer", ["b.bin", "b.ply"])
def test_a_gltf_is_read_again_where_the_file_with_its_vertices_changed(
    tmp_path: Path, reads: list[str], buffer: str
) -> None:
    """Refused or not: what matters is that it is not taken as unchanged."""
    files = tmp_path / "mine"
    write_clouds(files, ["one/a.xyz"])
    for place in ("one", "two"):
        (files / place).mkdir(exist_ok=True)
        (files / place / "b.gltf").write_text("{}")
        (files / place / buffer).write_bytes(b"vertices")
    make(files, tmp_path / "corpus")
    (files / "two" / buffer).write_bytes(b"VERTICES")
    reads.clear()
    make(files, tmp_path / "corpus")
    assert [name for name in reads if name != f"two/{buffer}"] == ["two/b.gltf"]


@pytest.mark.parametrize("moment", ["reading", "moving"])
def test_a_growth_that_is_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str], moment: str
) -> None:
    files, corpus = tmp_path / "mine", tmp_path / "grown"
    write_clouds(files, NAMES)
    make(files, corpus)
    old = digest(corpus)
    write_clouds(files, ["a.xyz", "m.xyz", "z.xyz"])
    with monkeypatch.context() as broken:
        if moment == "reading":
            run = tasks.BuildJob._read

            def stop(job: Any, entry: Any) -> Any:
                if entry.id == "z.xyz":
                    raise KeyboardInterrupt
                return run(job, entry)

            broken.setattr(tasks.BuildJob, "_read", stop)
        else:

            def halfway(output: Path) -> None:
                (output / "corpus.json").unlink()
                raise KeyboardInterrupt

            broken.setattr(grow, "apply_staged", halfway)
        with pytest.raises(KeyboardInterrupt):
            make(files, corpus)
    if moment == "reading":
        shutil.copytree(corpus, tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy" / ".building")
        assert digest(tmp_path / "copy") == old, "until then it is the old corpus"
    reads.clear()
    make(files, corpus)
    assert len(reads) <= 1
    make(files, tmp_path / "at once")
    assert digest(corpus) == digest(tmp_path / "at once")


def test_what_a_stopped_growth_left_goes_when_the_folder_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, corpus = tmp_path / "mine", tmp_path / "grown"
    write_clouds(files, NAMES)
    make(files, corpus)
    old = digest(corpus)
    write_clouds(files, ["a.xyz"])

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(tasks.BuildJob, "_read", stop)
        with pytest.raises(KeyboardInterrupt):
            make(files, corpus)
    (files / "a.xyz").unlink()
    make(files, corpus)
    assert digest(corpus) == old


def test_a_retryable_failure_stays_and_can_be_read_again_after_the_growth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, corpus = tmp_path / "mine", tmp_path / "grown"
    write_clouds(files, NAMES)
    read = folder.read_named

    def broken_sector(path: Path, name: str) -> Any:
        if name == "chair/02.xyz":
            raise TimeoutError(110, "timed out")
        return read(path, name)

    with monkeypatch.context() as broken:
        broken.setattr(folder, "read_named", broken_sector)
        make(files, corpus)
    write_clouds(files, ["a.xyz"])
    report = make(files, corpus)
    assert report is not None
    assert (report.kept, report.refused, len(report.retryable)) == (20, 1, 1)
    source = open_source("folder", SourceRequest(path=files))
    retry_corpus([source], corpus, workers=0)
    make(files, tmp_path / "at once")
    assert digest(corpus) == digest(tmp_path / "at once")


def test_verify_names_a_changed_list_of_files(tmp_path: Path) -> None:
    files, corpus = tmp_path / "mine", tmp_path / "corpus"
    write_clouds(files, NAMES[:2])
    make(files, corpus)
    listing = (corpus / "files.sha256").read_text()
    assert [line.split("  ")[1] for line in listing.splitlines()] == NAMES[:2]
    (corpus / "files.sha256").write_text(listing.replace("00.xyz", "09.xyz"))
    assert verify_corpus(corpus) == (
        "files.sha256: changed since it was written, so the corpus cannot grow",
    )
