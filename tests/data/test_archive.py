"""Archives from strangers: unsafe names, hidden files, members of any size, and files that are no archive."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from pointdistill.data.files import archive as archives
from pointdistill.data.files.archive import open_archive
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.errors import DataError

NAMES = (
    "good/a.txt",
    "../up.txt",
    "/root.txt",
    "in/../../out.txt",
    "..\\up.txt",
    "a\\..\\..\\b.txt",
)
LITTER = ("__MACOSX/good/._a.txt", "good/._a.txt", "good/.DS_Store", "in/__MACOSX/a.txt")


@pytest.fixture(params=["zip", "tar"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An archive with one good member among names that lead out and litter."""
    path = tmp_path / f"x.{request.param}"
    if request.param == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for name in (*NAMES, *LITTER):
                file.writestr(name, b"12345")
    else:
        with tarfile.open(path, "w") as tar:
            for name in (*NAMES, *LITTER):
                member = tarfile.TarInfo(name)
                member.size = 5
                tar.addfile(member, io.BytesIO(b"12345"))
    return path


def test_names_that_lead_out_are_told_apart_and_litter_is_left_out(path: Path) -> None:
    with open_archive(path, absent="absent", tolerate_unsafe=True) as archive:
        assert archive.names == ("good/a.txt",)
        assert archive.unsafe == tuple(sorted(NAMES[1:]))
        assert archive.read("good/a.txt") == b"12345"
    with (
        pytest.raises(DataError, match="leads out of the archive; fetch it from its own site"),
        open_archive(path, absent="absent"),
    ):
        pass


def test_a_member_larger_than_any_real_one_is_not_unpacked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MEMBER_LIMIT_BYTES", 4)
    with (
        open_archive(path, absent="absent", tolerate_unsafe=True) as archive,
        pytest.raises(DataError, match=r"good/a\.txt is damaged \(5 bytes, at most 4 are read\)"),
    ):
        archive.read("good/a.txt")


def test_a_pipe_in_place_of_an_archive_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.zip")
    with (
        pytest.raises(DataError, match=r"a\.zip: is a device or a pipe, not an archive"),
        open_archive(tmp_path / "a.zip", absent="absent"),
    ):
        pass
    os.mkfifo(tmp_path / "h5_files.zip")
    request = SourceRequest(path=tmp_path / "h5_files.zip")
    with pytest.raises(DataError, match=r"h5_files\.zip: is a device or a pipe"):
        open_source("scanobjectnn", request).entries()


def test_an_archive_cut_anywhere_is_refused(path: Path) -> None:
    """A zip lacks its list then, a tar its end mark: neither gives the part for the whole."""
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0"))
    for share in (0.1, 0.5, 0.9, 0.99):
        path.write_bytes(whole[: int(share * end)])
        with (
            pytest.raises(DataError, match=r"ends early.*; fetch the archive again"),
            open_archive(path, absent="absent", tolerate_unsafe=True),
        ):
            pass


def test_linked_folders_are_walked_once_after_the_real_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A class on another disk, a loop, an alias of a folder inside, a broken link, a link within a linked one."""
    for name in ("data/chair/1.obj", "disk/lamp/2.obj", "far/3.obj"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("v 0 0 0\n")
    data = tmp_path / "data"
    (data / "lamp").symlink_to(tmp_path / "disk" / "lamp")
    (tmp_path / "disk" / "lamp" / "more").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "loop").symlink_to(data)
    (data / "a-seat").symlink_to(data / "chair")
    (data / "sofa").symlink_to(tmp_path / "unplugged")
    with open_archive(data, absent="") as archive:
        assert archive.names == ("chair/1.obj", "lamp/2.obj", "lamp/more/3.obj")
    said = sorted(caplog.messages)
    assert [line.split(": ")[0] for line in said] == [
        str(data / "a-seat"),
        str(data / "lamp/more/loop"),
        str(data / "sofa"),
    ]
    assert "files are read already" in said[0]
    assert "is broken" in said[2]


def test_a_knot_of_links_ends(tmp_path: Path) -> None:
    """Twelve folders, each with a link to every other: 12! ways through them."""
    folders = [tmp_path / f"f{k:02d}" for k in range(12)]
    for folder in folders:
        folder.mkdir()
        (folder / "a.obj").write_text("v 0 0 0\n")
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    with open_archive(tmp_path, absent="") as archive:
        assert archive.names == tuple(f"f{k:02d}/a.obj" for k in range(12))
