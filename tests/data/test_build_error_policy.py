"""What an error costs: a disk that is gone stops a build; one that reads badly only costs a retry."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import pickle
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.corpus import open_corpus
from pointdistill.data.corpus.refused import read_refused
from pointdistill.data.corpus_building import BuildReport, build_corpus, retry_corpus
from pointdistill.data.corpus_building.state import Refusal
from pointdistill.data.corpus_building.tasks import classify_read_error
from pointdistill.data.files.archive import walk
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.data.sources.base import Entry, SourceCloud
from pointdistill.errors import DataError
from tests.data.odd_source import OddSource
from tests.data.source_archives import (
    box_cloud,
    h5_bytes,
    wedge_glb,
    wedge_obj,
    wedge_off,
    write_zip,
)
from tests.data.watching import Watching

SHAPES = range(4)
BAD_NAME = os.fsdecode(b"ch\xe9se")
"""Latin-1, as disks of long ago have it."""

not_utf8 = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")


def write_folder(at: Path) -> Path:
    at.mkdir(parents=True)
    for k in SHAPES:
        np.save(at / f"{k}.npy", box_cloud(64, seed=k).astype(np.float32))
    return at


def folder_of_links(at: Path) -> Path:
    disk = write_folder(at / "disk")
    (at / "mine").mkdir()
    for k in SHAPES:
        (at / f"mine/{k}.npy").symlink_to(disk / f"{k}.npy")
    return disk


def extracted(at: Path) -> Path:
    """The folder that is given stays, as the place does where a disk was mounted."""
    folder = at / "place/ModelNet40"
    (folder / "chair/train").mkdir(parents=True)
    for k in SHAPES:
        (folder / f"chair/train/chair_{k}.off").write_text(wedge_off())
    return folder


def packed(at: Path) -> Path:
    names = (f"ModelNet40/chair/train/chair_{k}.off" for k in SHAPES)
    return write_zip(at / "ModelNet40.zip", dict.fromkeys(names, wedge_off()))


def taped(at: Path) -> Path:
    at.mkdir()
    with tarfile.open(at / "abo-3dmodels.tar", "w") as tape:
        for k in SHAPES:
            member = tarfile.TarInfo(f"3dmodels/original/A/{k}.glb")
            member.size = len(wedge_glb())
            tape.addfile(member, io.BytesIO(wedge_glb()))
    return at / "abo-3dmodels.tar"


def scanned(at: Path) -> Path:
    for k in SHAPES:
        write_zip(at / f"zips/{k}.zip", {"meshes/model.obj": wedge_obj()})
    return at / "zips"


@pytest.mark.parametrize(
    ("source", "write", "path"),
    [
        ("folder", lambda at: write_folder(at / "mine"), "mine"),
        ("folder", folder_of_links, "mine"),
        ("modelnet40", extracted, "place"),
        ("modelnet40", packed, "ModelNet40.zip"),
        ("abo", taped, "abo-3dmodels.tar"),
        ("google-scanned-objects", scanned, "zips"),
    ],
    ids=["folder", "links", "mount", "zip", "tar", "zips"],
)
def test_what_vanishes_in_the_middle_stops_the_build_and_costs_no_shape(
    tmp_path: Path, source: str, write: Callable[[Path], Path], path: str
) -> None:
    there = write(tmp_path / "in")
    away = tmp_path / "away"
    request = SourceRequest(path=tmp_path / "in" / path)

    def build(output: str, unplug_at: int = -1) -> BuildReport:
        def unplug(done: int, _: object) -> None:
            if done == unplug_at and there.exists():
                there.rename(away)

        opened = open_source(source, request)
        return build_corpus(
            opened, tmp_path / output, points=64, workers=0, reporter=Watching(unplug)
        )

    with pytest.raises(DataError, match="is gone; put that right and run the same again to go on"):
        build("corpus", unplug_at=2)
    away.rename(there)
    report = build("corpus")
    assert (report.kept, report.refused) == (len(SHAPES), 0)
    build("fresh")
    contents = [open_corpus(tmp_path / name).content for name in ("corpus", "fresh")]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_an_hdf5_archive_that_a_worker_does_not_find_any_more_is_the_machines_fault(
    tmp_path: Path, kind: str
) -> None:
    """A worker opens the archive when it reads its first shape."""
    member = "h5_files/main_split_nobg/training_objectdataset.h5"
    content = h5_bytes(np.ones((2, 64, 3)), np.zeros(2, np.int64))
    path = tmp_path / "h5_files.zip"
    if kind == "zip":
        write_zip(path, {member: content})
    else:
        (path / member).parent.mkdir(parents=True)
        (path / member).write_bytes(content)
    source = open_source("scanobjectnn", SourceRequest(path=path))
    entry = source.entries()[0]
    worker = pickle.loads(pickle.dumps(source))
    (path / "h5_files" if kind == "folder" else path).rename(tmp_path / "away")
    with pytest.raises((OSError, DataError)) as caught:
        worker.read(entry, 64, rng=np.random.default_rng(0))
    with pytest.raises(DataError, match="is gone; put that right"):
        classify_read_error(entry.id, caught.value, outer=None)


def test_a_file_that_the_user_deletes_is_named_and_the_next_build_says_what_changed(
    tmp_path: Path,
) -> None:
    folder = write_folder(tmp_path / "mine")

    def build(on_progress: Callable[..., object] | None = None) -> None:
        source = open_source("folder", SourceRequest(path=folder))
        build_corpus(
            source, tmp_path / "corpus", points=64, workers=0, reporter=Watching(on_progress)
        )

    with pytest.raises(DataError, match=r"2\.npy: was there when it was listed and is gone"):
        build(lambda *_: (folder / "2.npy").unlink(missing_ok=True))
    with pytest.raises(DataError, match="the source's files have changed since it was begun"):
        build()


def test_a_link_that_leads_nowhere_from_the_start_costs_itself_alone(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine")
    (folder / "4.npy").symlink_to(tmp_path / "nothing")
    source = open_source("folder", SourceRequest(path=folder))
    report = build_corpus(source, tmp_path / "corpus", points=64, workers=0)
    assert (report.kept, report.retryable) == (4, {})
    assert report.causes[0].example.startswith("4.npy: is a broken link")


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(walk(tmp_path / "gone"))


class UnreadSource(OddSource):
    """One shape's file cannot be read until the folder ``scratch`` has a file ``healed``."""

    def read(self, entry: Entry, count: int, *, rng: np.random.Generator) -> SourceCloud:
        if entry.where == "3" and not (self.scratch / "healed").exists():
            raise OSError(errno.EIO, "Input/output error", "/some/where")
        return super().read(entry, count, rng=rng)


def test_a_file_that_the_disk_cannot_read_is_retryable_and_read_again(tmp_path: Path) -> None:
    """A bad sector stops no build; a cable that was loose loses no shape."""
    source = UnreadSource(8, {5: "nan"}, tmp_path)
    report = build_corpus(source, tmp_path / "corpus", points=64, workers=0)
    assert (report.kept, report.retryable) == (6, {"machine": 1})
    (tmp_path / "healed").touch()
    again = retry_corpus([source], tmp_path / "corpus", workers=0)
    assert (again.recovered, again.kept, again.retryable) == (1, 7, {})


def wrapped(first: BaseException) -> DataError:
    """As a reader makes its own error of what the system says."""
    try:
        try:
            raise first
        except BaseException as error:
            raise ValueError("no mesh") from error
    except ValueError:
        try:
            raise DataError("a.off: cannot be read")
        except DataError as error:
            return error


@pytest.mark.parametrize(
    ("first", "failure"),
    [
        (OSError(errno.EIO, "Input/output error"), "machine"),
        (OSError(errno.ETIMEDOUT, "Connection timed out"), "machine"),
        (PermissionError(errno.EACCES, "Permission denied"), "machine"),
        (TimeoutError("600 seconds"), "deadline"),
        (FileNotFoundError(errno.ENOENT, "a texture"), None),
        (ValueError("three corners"), None),
    ],
)
def test_a_refusal_says_whether_it_is_retryable(first: BaseException, failure: str | None) -> None:
    error = wrapped(first)
    assert classify_read_error("a", error, outer=None) == Refusal(
        "a", "a.off: cannot be read", failure
    )


@pytest.mark.parametrize(
    ("first", "raised", "message"),
    [
        (OSError(errno.ENOSPC, "No space left", "/tmp"), OSError, "No space left"),
        (OSError(errno.EMFILE, "Too many open files"), DataError, "a: Too many open files; put"),
        (OSError(errno.ENOMEM, "Cannot allocate"), MemoryError, "a: a.off"),
        (MemoryError(), MemoryError, "a: a.off"),
    ],
)
def test_what_meets_every_shape_is_no_refusal(
    first: BaseException, raised: type[Exception], message: str
) -> None:
    with pytest.raises(raised, match=message):
        classify_read_error("a", wrapped(first), outer=None)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_caller_was_handling_is_no_fault_of_a_shape(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent.parent)
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError:
        source = OddSource(4, {1: "refuse", 2: "raise"})
        report = build_corpus(source, tmp_path / "corpus", points=64, workers=workers)
    assert (report.kept, report.retryable) == (2, {})


def test_no_room_for_temporary_files_is_no_shapes_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "gone")])
    with pytest.raises(FileNotFoundError, match="No usable temporary directory"):
        build_corpus(OddSource(4), tmp_path / "corpus", points=64, workers=0)


def test_a_cause_has_no_address_of_memory_and_prints() -> None:
    error = DataError(f"{io.BytesIO()!r} in {BAD_NAME}.txt\n(a   b)")
    assert (
        classify_read_error("a", error, outer=None).cause
        == r"<_io.BytesIO object> in ch\xe9se.txt (a b)"
    )


def s3dis(at: Path, kind: str) -> Path:
    rows = "\n".join(f"{x} {y} {z} 1 2 3" for x, y, z in box_cloud(2048))
    objects = at / "S3DIS/Area_1/office_1/Annotations"
    objects.mkdir(parents=True)
    (objects / "chair_1.txt").write_text(rows)
    (objects / f"{BAD_NAME}_1.txt").write_text("1 2 3 4 5 6\n" * 10)
    if kind == "folder":
        return at / "S3DIS"
    path = at / f"{BAD_NAME}.tar"
    with tarfile.open(path, "w") as tape:
        tape.add(at / "S3DIS", "S3DIS")
    return path


@not_utf8
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_member_whose_name_is_not_utf8_costs_itself_at_most(tmp_path: Path, kind: str) -> None:
    """The tar's own name is not UTF-8 either."""
    source = open_source("s3dis", SourceRequest(path=s3dis(tmp_path, kind)))
    report = build_corpus(source, tmp_path / "corpus", points=64, workers=0)
    assert report.kept == 1
    (refusal,) = read_refused(tmp_path / "corpus/refused.jsonl")
    assert refusal.id == r"Area_1/office_1/ch\xe9se_1"
    assert r"Annotations/ch\xe9se_1.txt: 10 points" in refusal.cause
    assert source.facts.archive == ("S3DIS" if kind == "folder" else r"ch\xe9se.tar")


@not_utf8
@pytest.mark.parametrize("source", ["folder", "google-scanned-objects"])
def test_a_file_whose_name_is_not_utf8_costs_itself_at_most(tmp_path: Path, source: str) -> None:
    """One that can be read is kept, one that cannot is refused, and no cause names the folder."""
    folder = tmp_path / "in"
    ending = ".zip" if source != "folder" else ".off"
    for name in ("good", BAD_NAME):
        if source == "folder":
            folder.mkdir(exist_ok=True)
            (folder / f"{name}.off").write_text(wedge_off())
        else:
            write_zip(folder / f"{name}.zip", {"meshes/model.obj": wedge_obj()})
    (folder / f"{BAD_NAME}  2{ending}").write_bytes(b"damaged")
    opened = open_source(source, SourceRequest(path=folder))
    report = build_corpus(opened, tmp_path / "corpus", points=64, workers=0)
    assert (report.kept, report.refused) == (2, 1)
    (refusal,) = read_refused(tmp_path / "corpus/refused.jsonl")
    assert refusal.id.startswith(r"ch\xe9se  2")
    assert str(tmp_path) not in refusal.cause


def test_a_uid_of_half_a_character_is_spelled_out(tmp_path: Path) -> None:
    """JSON can say what no text can hold."""
    (tmp_path / "glbs").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"glbs/{name}.glb").write_bytes(wedge_glb())
    (tmp_path / "glbs/nothing.glb").symlink_to(tmp_path / "nothing")
    index = json.dumps({"a": "glbs/a.glb", "\ud800": "glbs/b.glb", "c": "glbs/nothing.glb"})
    (tmp_path / "object-paths.json.gz").write_bytes(gzip.compress(index.encode()))
    source = open_source("objaverse", SourceRequest(path=tmp_path))
    build_corpus(source, tmp_path / "corpus", points=64, workers=0)
    assert open_corpus(tmp_path / "corpus").ids() == [r"\xed\xa0\x80", "a"]
