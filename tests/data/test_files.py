"""Files that are either complete or absent: how they are written to disk."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pointdistill.data.corpus_building.state import remove_idle_build
from pointdistill.data.files import files
from pointdistill.engine.pretraining.run_folder import remove_unfinished_run_files
from pointdistill.errors import DataError


@pytest.mark.parametrize(("system", "how"), [("nt", os.O_RDWR), ("posix", os.O_RDONLY)])
def test_a_file_is_flushed_as_the_system_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, how: int
) -> None:
    """Windows flushes only what is open for writing; elsewhere a file may be there to be read alone."""
    opened: list[int] = []

    def open_(path: Path, flags: int) -> int:
        opened.append(flags)
        return os.open(path, flags)

    real = {name: getattr(os, name) for name in ("O_RDWR", "O_RDONLY", "fsync", "close")}
    monkeypatch.setattr(files, "os", SimpleNamespace(name=system, open=open_, **real))
    (tmp_path / "file").write_bytes(b"x")
    files.flush(tmp_path / "file")
    assert opened == [how]


def test_a_lock_keeps_a_second_one_out_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    folder, busy = tmp_path / "made" / "here", DataError("taken")
    with files.hold_folder(folder, busy):
        assert (folder / files.LOCK_NAME).is_file()
        with pytest.raises(DataError, match="taken"), files.hold_folder(folder, busy):
            pass
        (folder / "result").write_text("kept")
    assert [path.name for path in folder.iterdir()] == ["result"]


def test_of_the_folders_made_for_a_lock_none_is_left_and_those_that_were_there_stay(
    tmp_path: Path,
) -> None:
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "there" / "new" / "here", tmp_path / "there"):
        with pytest.raises(DataError), files.hold_folder(folder, DataError("taken")):
            raise DataError("refused")
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


@pytest.mark.parametrize("kind", ["pipe", "pipe that is read", "link", "folder"])
def test_what_is_no_lock_file_is_neither_waited_for_nor_followed(kind: str, tmp_path: Path) -> None:
    """A folder from elsewhere may hold anything under the lock's name."""
    pytest.importorskip("fcntl")
    lock, reader = tmp_path / files.LOCK_NAME, -1
    if kind == "link":
        lock.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        lock.mkdir()
    else:
        os.mkfifo(lock)
        reader = os.open(lock, os.O_RDONLY | os.O_NONBLOCK) if "read" in kind else -1
    with (
        pytest.raises(DataError, match=r"\.lock: is no lock file of this program; remove it"),
        files.hold_folder(tmp_path, DataError("taken")),
    ):
        pass
    if reader >= 0:
        os.close(reader)
    assert [path.name for path in tmp_path.iterdir()] == [files.LOCK_NAME]


def test_without_file_locks_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """NFS without its lock service, and Lustre without the option."""
    fcntl = pytest.importorskip("fcntl")

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):
        with files.hold_folder(tmp_path / "run", DataError("taken")):
            (tmp_path / "run" / "result").write_text("kept")
    assert len(caplog.messages) == 1
    assert "has no file locks (No locks available)" in caplog.messages[0]


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    with files.write_aside(tmp_path / "link.txt") as aside:
        aside.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_only_a_regular_file_is_replaced(tmp_path: Path, kind: str, linked: bool) -> None:
    place = Path("/dev/null") if kind == "device" else tmp_path / "place"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    if linked:
        (tmp_path / "link").symlink_to(place)
    output = tmp_path / "link" if linked else place
    what = "a folder" if kind == "folder" else "no regular file"
    with (
        pytest.raises(DataError, match=rf"is {what}, and is not replaced") as caught,
        files.write_aside(output),
    ):
        pass
    assert str(output) in str(caught.value)
    assert place.exists()
    assert not place.is_file()


def test_a_link_into_an_absent_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "unplugged" / "file")
    with (
        pytest.raises(DataError, match="is a broken link"),
        files.write_aside(tmp_path / "link"),
    ):
        pass
    assert not (tmp_path / "unplugged").exists()


@pytest.mark.parametrize("name", ["a" * 251 + ".npy", "椅" * 83 + ".npy", "a." + "b" * 250])
def test_the_longest_names_can_be_written(tmp_path: Path, name: str) -> None:
    with files.write_aside(tmp_path / name) as aside:
        aside.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with files.folder_aside(tmp_path / ("b" * 255)):
        pass
    assert (tmp_path / ("b" * 255)).is_dir()


@pytest.mark.skipif(
    sys.platform == "win32", reason="links need rights there, and there are no locks"
)
def test_a_link_and_its_file_have_one_lock(tmp_path: Path) -> None:
    link = tmp_path / "other" / "link.npz"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "file.npz")
    with (
        files.hold_file(tmp_path / "file.npz", DataError("first")),
        pytest.raises(DataError, match="second"),
        files.hold_file(link, DataError("second")),
    ):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["other", "link.npz"]


def test_a_process_of_the_same_id_on_another_host_keeps_its_folder(tmp_path: Path) -> None:
    """Both write a folder beside the same one, on a disk that they share."""
    mine, theirs = tmp_path / ("a" * 40 + "1"), tmp_path / ("a" * 40 + "2")
    with files.folder_aside(mine) as first:
        (first / "file").write_text("mine")
        with files.folder_aside(theirs) as second:
            (second / "file").write_text("theirs")
    assert [(path / "file").read_text() for path in (mine, theirs)] == ["mine", "theirs"]


@pytest.mark.parametrize(
    ("error", "free"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 10**9),
        (OSError(errno.ENOSPC, "No space left on device", "source", None, "copy"), 10**9),
        (OSError("60000 requested and 4064 written"), 4096),  # in NumPy's words
    ],
)
def test_a_full_disk_is_named_by_the_file_that_it_has_no_room_for(
    error: OSError, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(OSError, match="No space left") as caught, files.write_aside(tmp_path / "a"):
        raise error
    assert caught.value.filename == str(tmp_path / "a")
    assert files.disk_is_full(caught.value)


def test_other_errors_of_a_write_stay_as_they_are(tmp_path: Path) -> None:
    for error in (
        OSError(errno.EIO, "Input/output error"),
        OSError("3 requested and 1 written"),
        OSError(errno.ENOSPC, "No space left on device", "/elsewhere/b"),
    ):
        with pytest.raises(OSError) as caught, files.write_aside(tmp_path / "a"):  # noqa: PT011
            raise error
        assert caught.value is error


def test_names_that_are_not_utf8_are_written_in_records(tmp_path: Path) -> None:
    """For every reader as visible text; for what only this program reads, as they are."""
    name = os.fsdecode(b"caf\xe9/\xff")
    files.write_json(tmp_path / "a.json", {name: [name]})
    shown = r"caf\udce9/\udcff"
    assert files.read_json(tmp_path / "a.json") == {shown: [shown]}
    files.write_json(tmp_path / "b.json", {name: [name]}, any_text=True)
    assert files.read_json(tmp_path / "b.json", any_text=True) == {name: [name]}


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_nothing_is_deleted_behind_a_link_among_unfinished_work(tmp_path: Path) -> None:
    """A corpus or a run from elsewhere may hold links under the names of folders that are cleared."""
    corpus, theirs = tmp_path / "corpus", tmp_path / "theirs"
    (theirs / "folder").mkdir(parents=True)
    (theirs / "file").touch()
    corpus.mkdir()
    (corpus / ".building").symlink_to(theirs)
    with pytest.raises(DataError, match=r"\.building: is a link in place of a folder"):
        remove_idle_build(corpus)
    (corpus / ".step.part").symlink_to(theirs)
    remove_unfinished_run_files(corpus)
    assert not (corpus / ".step.part").is_symlink()
    assert sorted(path.name for path in theirs.iterdir()) == ["file", "folder"]
