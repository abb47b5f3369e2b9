"""Checksums of large files are cached, but never those of a file that has changed."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

from pointdistill.data.files import workspace
from pointdistill.data.files.workspace import CHECKSUMS_NAME, file_checksum, without_checksums

OLD = 1_000_000_000
"""Seconds: a time long before the test."""


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were read whole; a few bytes are large here, and nothing is kept in memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workspace, "REMEMBERED_BYTES", 4)
    monkeypatch.setattr(workspace, "_SETTLED_SECONDS", -1.0)
    monkeypatch.setattr(workspace, "_checksum_of", workspace._checksum_of.__wrapped__)
    files: list[Path] = []

    def counted(path: Path) -> str:
        files.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(workspace, "sha256_of", counted)
    return files


def test_a_large_file_is_read_once_and_a_small_one_is_not_remembered(
    read: list[Path], tmp_path: Path
) -> None:
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(b"12345")
    small.write_bytes(b"123")
    for _ in range(3):
        assert file_checksum(large) == hashlib.sha256(b"12345").hexdigest()
        assert file_checksum(small) == hashlib.sha256(b"123").hexdigest()
    assert read.count(large) == 1
    assert read.count(small) == 3
    assert list(json.loads(CHECKSUMS_NAME.read_text())) == [str(large)]


@pytest.mark.parametrize("way", ["longer", "same length", "same length and time", "another file"])
def test_a_file_that_changed_is_read_again(read: list[Path], tmp_path: Path, way: str) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"12345")
    os.utime(path, (OLD, OLD))
    file_checksum(path)
    changed = b"123456" if way == "longer" else b"54321"
    if way == "another file":
        (tmp_path / "new").write_bytes(changed)
        (tmp_path / "new").replace(path)
    else:
        path.write_bytes(changed)
    if way != "same length":
        os.utime(path, (OLD, OLD))  # as an unpacker or rsync sets it
    assert file_checksum(path) == hashlib.sha256(changed).hexdigest()
    assert len(read) == 2


def test_a_file_that_has_just_changed_is_not_remembered(
    read: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one tick of the file system's clock a second change would leave no trace."""
    monkeypatch.setattr(workspace, "_SETTLED_SECONDS", 3600.0)
    path = tmp_path / "a.zip"
    path.write_bytes(b"12345")
    assert file_checksum(path) == file_checksum(path)
    assert len(read) == 2
    assert not CHECKSUMS_NAME.exists()


@pytest.mark.parametrize(
    "stored", ["", "[]", '{"PATH": 3}', '{"PATH": {"state": [], "sha256": 1}}']
)
def test_a_damaged_cache_is_ignored(read: list[Path], tmp_path: Path, stored: str) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"12345")
    CHECKSUMS_NAME.parent.mkdir()
    CHECKSUMS_NAME.write_text(stored.replace("PATH", str(path)))
    assert file_checksum(path) == hashlib.sha256(b"12345").hexdigest()
    assert file_checksum(path) == hashlib.sha256(b"12345").hexdigest()
    assert read == [path]


def test_a_plan_reads_nothing(read: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"12345")
    with without_checksums():
        assert file_checksum(path) == ""
    assert file_checksum(path) != ""
    assert read == [path]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_not_utf8_is_remembered_too(read: list[Path], tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xe9.zip")
    path.write_bytes(b"12345")
    assert file_checksum(path) == file_checksum(path) == hashlib.sha256(b"12345").hexdigest()
    assert len(read) == 1
