"""Archives from strangers: unsafe names, hidden files, members of any size, and files that are no archive."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from pointdistill.data.files import archive as archives
from pointdistill.data.files.archive import open_archive
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
