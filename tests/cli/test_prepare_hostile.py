"""``pointdistill prepare-data`` of files that mean harm, and of shapes that are read again."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointdistill.data.corpus import open_corpus, verify_corpus
from pointdistill.data.sources.folder import FolderSource
from tests.cli.typed import Run, typed
from tests.data.source_archives import WEDGE, wedge_off
from tests.data.test_build import digest

CLOUD = "".join(f"{k} {k * k} 1\n" for k in range(40))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Type a command in a folder inside an empty one; its exit code, output and errors."""
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    return typed(capsys, "prepare-data")


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def causes(corpus: Path) -> dict[str, str]:
    lines = map(json.loads, (corpus / "refused.jsonl").read_text().splitlines())
    return {line["id"]: line["cause"] for line in lines}


class Payload:
    """Touches a file when it is unpickled as pickles usually are."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
def test_a_hostile_folder_costs_its_bad_files_alone_and_nothing_runs(
    run: Run, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    files = Path("mine")
    files.mkdir()
    for name in ("good", "fine"):
        (files / f"{name}.off").write_text(wedge_off())
    (files / "cut.off").write_text(wedge_off()[:30])
    (files / "nan.off").write_text(wedge_off(WEDGE * [1, 1, np.nan]))
    np.save(files / "nan.npy", np.full((40, 3), np.nan, np.float32))
    np.save(files / "pickle.npy", np.array([Payload(marker)], object), allow_pickle=True)
    (files / "bare.npy").write_bytes(pickle.dumps(Payload(marker)))
    np.savez(files / "pickles.npz", points=np.array([Payload(marker)], object))
    (files / "empty.stl").touch()
    (files / "endless.off").symlink_to("/dev/zero")
    (files / "nowhere.off").symlink_to("nothing")
    os.mkfifo(files / "pipe.off")
    before = files_below(tmp_path)
    code, out, err = run("folder", "--input", "mine", "--points", "64", "--workers", "1")
    assert (code, "data/mine is complete: 2 shapes of folder" in out) == (0, True), err
    assert sorted(causes(Path("data/mine"))) == [
        "bare.npy",
        "cut.off",
        "empty.stl",
        "endless.off",
        "nan.npy",
        "nan.off",
        "nowhere.off",
        "pickle.npy",
        "pickles.npz",
        "pipe.off",
    ]
    assert "retryable" not in err, "all are refused for what they are"
    assert not marker.exists()
    made = {name for name in files_below(tmp_path) - before if "/data/mine/" not in name}
    assert all(name.startswith("inside/") and "workspace" in name for name in made), made


def test_a_hostile_archive_costs_its_bad_members_alone_and_writes_nothing_outside(
    run: Run, tmp_path: Path
) -> None:
    names = {
        "ModelNet40/chair/train/chair_0001.off": wedge_off(),
        "ModelNet40/chair/train/cut.off": wedge_off()[:30],
        "ModelNet40/chair/train/nan.off": wedge_off(WEDGE * [1, 1, np.nan]),
        "../../chair/train/up.off": wedge_off(),
        f"{tmp_path}/chair/train/absolute.off": wedge_off(),
    }
    with zipfile.ZipFile("ModelNet40.zip", "w") as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    before = files_below(tmp_path)
    code, out, err = run("modelnet40", "--archive", ".", "--points", "64", "--workers", "1")
    assert (code, "1 shape of modelnet40" in out) == (0, True), err
    assert open_corpus("data/modelnet40").ids() == ["chair/train/chair_0001"]
    found = causes(Path("data/modelnet40"))
    outside = [name for name, cause in found.items() if "leads out of the archive" in cause]
    assert sorted(outside) == sorted(name for name in names if not name.startswith("ModelNet40"))
    assert "NaN" in found["chair/train/nan"]
    assert "chair/train/cut" in found
    made = {name for name in files_below(tmp_path) - before if "/data/modelnet40/" not in name}
    assert all(name.startswith("inside/") and "workspace" in name for name in made), made


def test_retryable_shapes_are_counted_and_read_again_with_retry(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine").mkdir()
    for k in range(9):
        Path(f"mine/{k}.xyz").write_text(CLOUD)
    Path("mine/bad.xyz").write_text("1 2 nan\n" * 40)
    words = ("folder", "--input", "mine", "--points", "64", "--up", "z", "--workers", "0")
    assert run(*words, "--output", "whole")[0] == 0
    plainly = FolderSource.read

    def short(self: FolderSource, entry: Any, *args: Any, **options: Any) -> Any:
        if entry.id in ("3.xyz", "4.xyz"):
            raise MemoryError
        return plainly(self, entry, *args, **options)

    monkeypatch.setattr(FolderSource, "read", short)
    code, _, err = run(*words)
    assert code == 0
    assert "refused: 3.xyz: reading it took more memory than there is (and 1 like it)" in err
    assert "3 of 10 shapes were refused; all are listed in data/mine/refused.jsonl" in err
    assert "2 of them are retryable (memory 2); the same command with --retry reads" in err
    code, _, err = run(*words, "--retry", "--memory", "1", "--deadline", "9.5")
    assert (code, "2 shapes were read again, 0 of them can be used" in err) == (0, True)
    monkeypatch.setattr(FolderSource, "read", plainly)
    code, out, err = run(*words, "--retry")
    assert (code, "data/mine is complete: 9 shapes of folder" in out) == (0, True)
    assert "2 shapes were read again, 2 of them can be used" in err
    assert "retryable" not in err
    assert digest(Path("data/mine")) == digest(Path("whole"))
    assert verify_corpus("data/mine") == ()
    code, out, _ = run(*words, "--retry")
    assert (code, "data/mine was complete already" in out) == (0, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--deadline", "0"], "deadline of a shape must be a positive number of seconds, got 0"),
        (["--memory", "0.1"], "memory of a worker must be at least 0.25 GiB, got 0.1"),
        (["--memory", "nan"], "--memory must be a number of GiB, got nan; leave it out"),
        (["--memory", "inf"], "--memory must be a number of GiB, got inf; leave it out"),
    ],
)
def test_limits_that_leave_no_room_are_one_line(run: Run, words: list[str], message: str) -> None:
    code, _, err = run("--shapes", "20", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
