"""Members read from their location: the same bytes as through the archive, and nothing else."""

from __future__ import annotations

import errno
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from pointdistill.data.files import member as places
from pointdistill.data.files.archive import MemberLocation, open_archive
from pointdistill.data.files.member import read_member_at
from pointdistill.errors import DataError

CONTENT = b"0123456789" * 5000


@pytest.fixture(params=["deflated", "stored", "after a prefix", "tar", "folder"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "b.txt").write_bytes(CONTENT)
    (folder / "c.txt").write_bytes(b"")
    if request.param == "folder":
        return folder
    path = tmp_path / ("x.tar" if request.param == "tar" else "x.zip")
    if request.param == "tar":
        with tarfile.open(path, "w") as tar:
            tar.add(folder, arcname="")
        return path
    method = zipfile.ZIP_STORED if request.param == "stored" else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in ("a/b.txt", "c.txt"):
            archive.write(folder / name, name)
    if request.param == "after a prefix":
        path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    return path


def location_of(root: Path, name: str) -> MemberLocation:
    with open_archive(root, absent="absent") as archive:
        return archive.locate(name)


def test_a_place_gives_what_the_archive_gives(root: Path) -> None:
    with open_archive(root, absent="absent") as archive:
        for name in ("a/b.txt", "c.txt"):
            assert read_member_at(root, archive.locate(name)) == archive.read(name)


def test_an_archive_that_is_gone_is_the_machines_fault(root: Path) -> None:
    """So that a build stops, and does not refuse every shape that is left."""
    location = location_of(root, "a/b.txt")
    root.rename(root.with_name("elsewhere"))
    with pytest.raises(OSError, match="was there when it was listed and is gone") as caught:
        read_member_at(root, location)
    assert caught.value.errno == errno.ESTALE


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"crc": 1}, "its checksum is another"),
        ({"size": 49_999}, "its checksum is another"),
        ({"offset": 5}, "is not where"),
        ({"packed": 10**9}, "ends before it does"),
        ({"method": -1}, "asks for a password"),
        ({"size": 2**31}, "at most 1,073,741,824 are read"),
    ],
)
def test_a_member_that_is_not_what_the_list_says_is_refused(
    tmp_path: Path, change: dict[str, int], cause: str
) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b.txt", CONTENT)
    with pytest.raises(DataError, match=cause) as caught:
        read_member_at(path, replace(location_of(path, "b.txt"), **change))
    assert str(tmp_path) not in str(caught.value)


def test_of_a_name_that_a_zip_has_twice_the_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("b.txt", b"first")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("b.txt", b"last")
    with open_archive(path, absent="absent") as archive:
        assert archive.names == ("b.txt",)
    assert read_member_at(path, location_of(path, "b.txt")) == b"last"


def test_bytes_that_do_not_unpack_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b.txt", CONTENT)
    location = location_of(path, "b.txt")
    damaged = bytearray(path.read_bytes())
    damaged[location.offset + 40 : location.offset + 60] = b"\xff" * 20
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"b\.txt is damaged"):
        read_member_at(path, location)


def test_a_password_is_seen_in_the_list(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("b.txt", CONTENT)
    flagged = bytearray(path.read_bytes())
    flagged[flagged.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(flagged)
    assert location_of(path, "b.txt").method == -1


def test_a_file_of_a_folder_is_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.txt").write_bytes(CONTENT)
    monkeypatch.setattr(places, "MEMBER_LIMIT_BYTES", len(CONTENT) - 1)
    location = location_of(tmp_path, "b.txt")
    for grown in (location, replace(location, size=1)):
        with pytest.raises(DataError, match="49,999"):
            read_member_at(tmp_path, grown)


def test_a_pointer_of_git_lfs_is_told_apart_from_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("b.h5", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(DataError, match=r"b\.h5 is a Git-LFS pointer in place of the file; run"):
        read_member_at(path, location_of(path, "b.h5"))
