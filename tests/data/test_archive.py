"""Archives from strangers: unsafe names, hidden files, members of any size, and files that are no archive."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pointdistill.data.benchmarks.registry import find_archive
from pointdistill.data.corpus_building.mixture_fetch import _missing_files
from pointdistill.data.files import archive as archives
from pointdistill.data.files import packed_tars
from pointdistill.data.files.archive import open_archive
from pointdistill.data.files.files import sha256_of
from pointdistill.data.files.member import read_member_at
from pointdistill.data.meshes import sample_files
from pointdistill.data.sources import SourceRequest, open_source, source_info
from pointdistill.data.sources.base import find_archives
from pointdistill.data.sources.paths import ReadSettings, ShapeLocation, list_shapes, read_shape
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


@pytest.fixture(params=["zip", "tar", "tgz", "tar.gz"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An archive with one good member among names that lead out and litter."""
    path = tmp_path / f"x.{request.param}"
    if request.param == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for name in (*NAMES, *LITTER):
                file.writestr(name, b"12345")
    else:
        with tarfile.open(path, "w" if request.param == "tar" else "w:gz") as tar:
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


@pytest.mark.parametrize(("encoding", "read_as"), [("utf-8", "é.off"), ("cp437", "é.off")])
def test_names_of_a_zip_without_a_flag_are_utf8_or_else_those_of_dos(
    tmp_path: Path, encoding: str, read_as: str
) -> None:
    """As `zip` on Linux writes them, and as old programs of Windows did."""
    path = tmp_path / "named.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("XX.off" if encoding == "utf-8" else "X.off", b"OFF\n0 0 0\n")
    placeholder = b"XX.off" if encoding == "utf-8" else b"X.off"
    path.write_bytes(path.read_bytes().replace(placeholder, "é.off".encode(encoding)))
    with open_archive(path, absent="absent") as archive:
        assert archive.names == (read_as,)
        assert archive.read(read_as).startswith(b"OFF")


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


def packed(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content))
    return path


def test_a_compressed_tar_is_unpacked_once_and_its_members_are_found_by_their_place(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not path.name.endswith(packed_tars.PACKED_TARS):
        assert packed_tars.plain_tar(path) == path
        return
    with open_archive(path, absent="absent", tolerate_unsafe=True) as archive:
        location = archive.locate("good/a.txt")
        assert archive.checksum([]) == sha256_of(path)
    plain = packed_tars.plain_tar(path)
    assert plain != path
    assert plain.is_relative_to(os.environ[packed_tars.UNPACKED_VARIABLE])
    monkeypatch.setattr(packed_tars, "gzip", None)  # a second unpacking would need it
    assert read_member_at(path, location) == b"12345"
    assert packed_tars.plain_tar(path) == plain


def test_what_was_unpacked_goes_with_the_process_that_began_and_not_with_those_it_started(
    tmp_path: Path,
) -> None:
    (tmp_path / "temporary").mkdir()
    packed(tmp_path / "a.tgz", b"content")
    script = (
        "import os, subprocess, sys; from pathlib import Path\n"
        "from pointdistill.data.files.packed_tars import plain_tar\n"
        "print(plain_tar(Path('a.tgz')))\n"
        "assert plain_tar(Path('a.tgz')).read_bytes() == b'content'\n"
        "if len(sys.argv) < 2:\n"
        "    subprocess.run([sys.executable, __file__, 'child'], check=True)\n"
        "    assert plain_tar(Path('a.tgz')).exists()\n"
    )
    (tmp_path / "script.py").write_text(script)
    environment = {k: v for k, v in os.environ.items() if k != packed_tars.UNPACKED_VARIABLE}
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=environment | {"TMPDIR": str(tmp_path / "temporary"), "PYTHONUNBUFFERED": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    first, second = done.stdout.splitlines()
    assert first == second
    assert first.startswith(str(tmp_path / "temporary"))
    assert list((tmp_path / "temporary").iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next_and_nothing_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    packed(tmp_path / "a.tgz", b"content")
    script = (
        "import os, signal; from pathlib import Path\n"
        "from pointdistill.data.files.packed_tars import plain_tar\n"
        "plain_tar(Path('a.tgz')); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != packed_tars.UNPACKED_VARIABLE}
    killed = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment | {"TMPDIR": str(temporary)},
        check=False,
    )
    assert killed.returncode == -9
    (left,) = temporary.iterdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv(packed_tars.UNPACKED_VARIABLE, raising=False)
    prefix = "pointdistill-unpacked-"
    other = temporary / "pointdistill-mine"
    fresh, old = temporary / f"{prefix}fresh", temporary / f"{prefix}old"
    link = temporary / f"{prefix}link"
    for folder in (other, fresh, old):
        folder.mkdir()
    os.utime(old, (0, 0))
    link.symlink_to(other)
    used = packed_tars.plain_tar(packed(tmp_path / "b.tgz", b"other")).parent
    packed_tars.remove_abandoned.cache_clear()
    with zipfile.ZipFile(tmp_path / "any.zip", "w"):
        pass
    with open_archive(tmp_path / "any.zip", absent="absent"):
        assert not left.exists()
        assert set(temporary.iterdir()) == {other, fresh, link, used}
        assert (used / "lock").is_file()
    packed_tars.shutil.rmtree(used)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners of files")
def test_a_folder_of_another_user_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pointdistill-unpacked-theirs"
    folder.mkdir()
    (folder / "lock").touch()
    me = os.getuid()
    with monkeypatch.context() as other:
        other.setattr(packed_tars.os, "getuid", lambda: me + 1)
        packed_tars._remove_if_abandoned(folder)
    assert folder.exists()
    packed_tars._remove_if_abandoned(folder)
    assert not folder.exists()


@pytest.mark.parametrize("ending", [".tar", ".tgz", ".tar.gz"])
def test_a_packed_tar_is_found_by_the_name_of_the_tar(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"abo-3dmodels{ending}").touch()
    stem = "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    (tmp_path / f"{stem}{ending}").touch()
    abo = source_info("abo")
    assert find_archives(abo, tmp_path) == ((tmp_path / f"abo-3dmodels{ending}",), ())
    assert _missing_files(abo, tmp_path) == {}, "it is not downloaded again"
    found = find_archive("shapenetpart", data=tmp_path, folder=tmp_path)
    assert found == tmp_path / f"{stem}{ending}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda whole: whole[: len(whole) // 2], "damaged or ends early"),
        (lambda whole: b"PK" + whole, "damaged or ends early"),
        (lambda _: gzip.compress(b"no tar"), "unpacks to no tar archive"),
        (lambda _: b"", "unpacks to no tar|damaged or ends early|an empty file"),
        (lambda _: gzip.compress(bytes(1 << 20)), "bytes unpack to more than"),
    ],
)
def test_compressed_tars_that_cannot_be_used_are_refused_in_one_line(
    change: Callable[[bytes], bytes], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_tars, "_LEAST_REFUSED", 1 << 16)
    path = tmp_path / "a.tgz"
    noise = np.random.default_rng(0).bytes(50_000)
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("a.obj")
        member.size = len(noise)
        tar.addfile(member, io.BytesIO(noise))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=message) as refusal, open_archive(path, absent="absent"):
        pass
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)
    folder = Path(os.environ[packed_tars.UNPACKED_VARIABLE])
    assert not list(folder.glob(f"*.{os.getpid()}"))
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1 << 20


def test_a_full_disk_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packed(tmp_path / "a.tar.gz", bytes(20_000))
    monkeypatch.setattr(packed_tars.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    with (
        pytest.raises(DataError, match="; set TMPDIR to a folder that has some"),
        open_archive(path, absent="absent"),
    ):
        pass


def test_a_folder_is_not_removed_between_its_making_and_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process looks for what is abandoned at the moment at which the lock is there and not held."""
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(packed_tars.UNPACKED_VARIABLE, raising=False)
    hold, looks = fcntl.flock, []

    def look_and_hold(file: int, operation: int) -> None:
        if not looks:
            looks.append(operation)
            packed_tars.remove_abandoned.cache_clear()
            packed_tars.remove_abandoned()
        hold(file, operation)

    monkeypatch.setattr(fcntl, "flock", look_and_hold)
    plain = packed_tars.plain_tar(packed(tmp_path / "a.tgz", b"content"))
    assert looks
    assert plain.read_bytes() == b"content"
    packed_tars.shutil.rmtree(plain.parent)


def test_a_disk_without_locks_keeps_what_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(packed_tars.UNPACKED_VARIABLE, raising=False)

    def no_locks(_file: int, _operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    plain = packed_tars.plain_tar(packed(tmp_path / "a.tgz", b"content"))
    os.utime(plain.parent, (0, 0))
    packed_tars.remove_abandoned.cache_clear()
    packed_tars.remove_abandoned()
    assert plain.exists()
    packed_tars.shutil.rmtree(plain.parent)


def test_a_second_name_of_a_file_in_a_tar_counts_and_other_links_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Tar keeps a file of two names once, with a hard link to it; soft links and what is not there stay out."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("chair/a.xyz")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"1 2 3"))
        for name, kind, target in (
            ("lamp/same.xyz", tarfile.LNKTYPE, "chair/a.xyz"),
            ("lamp/passwd.xyz", tarfile.LNKTYPE, "/etc/passwd"),
            ("lamp/soft.xyz", tarfile.SYMTYPE, "../chair/a.xyz"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            tar.addfile(link)
    with open_archive(path, absent="absent") as archive:
        assert archive.names == ("chair/a.xyz", "lamp/same.xyz")
        assert archive.read("lamp/same.xyz") == b"1 2 3"
        place = archive.locate("lamp/same.xyz")
        assert (place.size, place.offset) == (5, archive.locate("chair/a.xyz").offset)
    with open_archive(Path(os.path.relpath(path)), absent="absent"):
        pass
    (said,) = caplog.messages
    assert said.startswith(f"{path}: holds 2 links that are not followed (lamp/passwd.xyz); unpack")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_what_is_no_file_in_a_folder_is_listed_and_not_missing(tmp_path: Path) -> None:
    folder = tmp_path / "shapes"
    folder.mkdir()
    np.save(folder / "a.npy", np.random.default_rng(0).random((90, 3)))
    (folder / "broken.npy").symlink_to("gone.npy")
    (folder / "itself.npy").symlink_to("itself.npy")
    (folder / "zero.npy").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.npy")
    wrong = ["broken.npy", "itself.npy", "pipe.npy", "zero.npy"]
    with open_archive(folder, absent="absent") as archive:
        assert archive.names == ("a.npy",)
        assert list(archive.irregular) == wrong
    report = sample_files([folder], points=20, seed=0, output=tmp_path / "out")
    assert [file.source.name for file in report.failed] == wrong
    (place,) = list_shapes([folder]).sources
    assert place.names == ("a.npy", *wrong)
    read = [
        read_shape(ShapeLocation("folder", place.path, name, 0), ReadSettings(points=40, seed=0))
        for name in place.names
    ]
    assert [shape.reason for shape in read] == [
        "",
        *["is a broken link; put the file there that it stands for"] * 2,
        *["is a device or a pipe, not a file; save its content to a file"] * 2,
    ]


def test_a_member_that_a_killed_process_unpacked_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed by SIGKILL, as a machine without memory does it, while it reads a member."""
    script = (
        "import os, signal; from pathlib import Path\n"
        "from pointdistill.data.meshes import sample\n"
        "sample.read_named = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sample.read_content(b'1 2 3', 'a.xyz')\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"TMPDIR": str(tmp_path)}, check=False
    )
    assert killed.returncode == -9
    assert [path.name for path in tmp_path.rglob("member.xyz")]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    packed_tars.remove_abandoned.cache_clear()
    with packed_tars.temporary_folder() as folder:
        packed_tars.remove_abandoned.cache_clear()
        packed_tars.remove_abandoned()
        assert [path.name for path in tmp_path.iterdir()] == [folder.parent.name]
        assert not any(folder.iterdir())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("method", "read"), [(zipfile.ZIP_DEFLATED, 8), (zipfile.ZIP_BZIP2, 0), (zipfile.ZIP_LZMA, 0)]
)
def test_only_the_beginning_of_a_member_is_unpacked(
    method: int, read: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bzip2 and LZMA would unpack the whole block, of which a few bytes may hold gigabytes."""
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("a.txt", bytes(2**24))
    unpacked: list[int] = []
    update = zipfile.ZipExtFile._read1  # type: ignore[attr-defined]

    def counted(stream: object, count: int) -> bytes:
        data: bytes = update(stream, count)
        unpacked.append(len(data))
        return data

    monkeypatch.setattr(zipfile.ZipExtFile, "_read1", counted)
    with open_archive(path, absent="none") as archive:
        assert archive.head("a.txt", 8) == bytes(read)
    assert sum(unpacked) < 2**14
