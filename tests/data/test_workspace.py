"""What a folder remembers of the last commands, and what it forgets."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pointdistill.data.files import workspace

PAIRS = [
    (workspace.remember_corpus, workspace.last_corpus),
    (workspace.remember_run, workspace.last_run),
]


@pytest.mark.parametrize(("remember", "last"), PAIRS)
def test_the_last_one_is_found_from_the_same_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    remember: Callable[[Path], None],
    last: Callable[[], Path | None],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert last() is None
    for name in ("data/one", "data/two"):
        Path(name).mkdir(parents=True)
        remember(Path(name))
    assert last() == Path("data/two")


def test_corpus_run_and_stand_ins_are_apart(tmp_path: Path) -> None:
    for name in ("corpus", "run", "s.zip", "m.zip"):
        (tmp_path / name).touch()
    workspace.remember_corpus(tmp_path / "corpus", folder=tmp_path)
    workspace.remember_run(tmp_path / "run", folder=tmp_path)
    workspace.remember_stand_in("scanobjectnn", tmp_path / "s.zip", folder=tmp_path)
    workspace.remember_stand_in("modelnet40", tmp_path / "m.zip", folder=tmp_path)
    assert workspace.last_corpus(folder=tmp_path) == tmp_path / "corpus"
    assert workspace.last_run(folder=tmp_path) == tmp_path / "run"
    assert workspace.last_stand_in("scanobjectnn", folder=tmp_path) == tmp_path / "s.zip"
    assert workspace.last_stand_in("modelnet40", folder=tmp_path) == tmp_path / "m.zip"
    assert workspace.last_stand_in("other", folder=tmp_path) is None


def test_a_moved_folder_still_finds_what_lies_in_it(tmp_path: Path) -> None:
    (tmp_path / "old" / "corpus").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    workspace.remember_corpus(tmp_path / "old" / "corpus", folder=tmp_path / "old")
    workspace.remember_run(tmp_path / "elsewhere", folder=tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    assert workspace.last_corpus(folder=tmp_path / "new") == tmp_path / "new" / "corpus"
    assert workspace.last_run(folder=tmp_path / "new") == tmp_path / "elsewhere"


def test_what_was_deleted_is_not_named(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    workspace.remember_corpus(tmp_path / "corpus", folder=tmp_path)
    (tmp_path / "corpus").rmdir()
    assert workspace.last_corpus(folder=tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"corpus": 3, "stand_ins": []}', "\xff"])
def test_a_damaged_note_is_no_note(tmp_path: Path, content: str) -> None:
    path = tmp_path / workspace.WORKSPACE_NAME
    path.parent.mkdir()
    path.write_bytes(content.encode("latin-1"))
    assert workspace.last_corpus(folder=tmp_path) is None
    assert workspace.last_stand_in("modelnet40", folder=tmp_path) is None
    (tmp_path / "corpus").mkdir()
    workspace.remember_corpus(tmp_path / "corpus", folder=tmp_path)
    assert workspace.last_corpus(folder=tmp_path) == tmp_path / "corpus"


def test_where_nothing_can_be_written_nothing_is_remembered(tmp_path: Path) -> None:
    (tmp_path / ".pointdistill").touch()
    workspace.remember_corpus(tmp_path, folder=tmp_path)
    assert workspace.last_corpus(folder=tmp_path) is None


@pytest.mark.parametrize("kind", ["folder", "broken link"])
def test_what_stands_in_the_place_of_the_note_is_left_alone(tmp_path: Path, kind: str) -> None:
    place = tmp_path / workspace.WORKSPACE_NAME
    place.parent.mkdir()
    place.mkdir() if kind == "folder" else place.symlink_to(tmp_path / "gone" / "file")
    workspace.remember_corpus(tmp_path / "corpus", folder=tmp_path)
    assert workspace.last_corpus(folder=tmp_path) is None


def test_names_that_are_not_utf8_are_remembered(tmp_path: Path) -> None:
    corpus = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        corpus.mkdir()
    except OSError:
        pytest.skip("this file system has names of Unicode only")
    workspace.remember_corpus(corpus, folder=tmp_path)
    assert workspace.last_corpus(folder=tmp_path) == corpus
