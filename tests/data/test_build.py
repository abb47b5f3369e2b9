"""Building a corpus: the same bytes whatever happens on the way, and no shape lost through another one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from pointdistill.data.corpus import open_corpus, verify_corpus
from pointdistill.data.corpus_building import BuildReport, build_corpus
from pointdistill.data.corpus_building import state as lock
from pointdistill.data.corpus_building.state import unfinished_build
from pointdistill.data.files import files
from pointdistill.data.sources import SourceRequest, open_source, source_shape_rng
from pointdistill.errors import ConfigError, CorpusError, DataError, PointDistillError
from tests.data.watching import Watching

HERE = Path(__file__).parent


def build(source: Any, output: Path, **options: Any) -> BuildReport:
    return build_corpus(source, output, **{"points": 64, "workers": 0} | options)


def digest(folder: Path) -> str:
    """One checksum of all files of a folder, names and bytes."""
    whole = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        whole.update(f"{file.relative_to(folder)}\0".encode())
        whole.update(file.read_bytes() if file.is_file() else b"")
    return whole.hexdigest()


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_bytes_do_not_depend_on_the_workers(
    tmp_path: Path, odd: Callable[..., Any], workers: int
) -> None:
    source = odd(200, {3: "refuse", 77: "many"})
    build(source, tmp_path / "alone")
    build(source, tmp_path / "many", workers=workers)
    assert digest(tmp_path / "many") == digest(tmp_path / "alone")
    assert not (tmp_path / "many" / ".building").exists()


def test_a_shapes_points_depend_on_seed_source_and_id_alone(
    tmp_path: Path, odd: Callable[..., Any]
) -> None:
    """Shape 0007 is the same among 10 shapes, among 100, and beside refused ones."""
    few = open_corpus(build(odd(10), tmp_path / "few").path)
    many = open_corpus(build(odd(100, {5: "refuse"}), tmp_path / "many").path)
    expected = source_shape_rng(seed=0, source="odd", shape_id="0007").normal(size=(64, 3))
    assert np.allclose(few.points(7), expected, atol=1e-4)
    assert many[6].id == "0007"
    assert np.array_equal(many.points(6), few.points(7))
    reseeded = open_corpus(build(odd(10), tmp_path / "reseeded", seed=1).path)
    renamed = open_corpus(build(odd(10, name="other"), tmp_path / "renamed").path)
    assert not np.array_equal(reseeded.points(7), few.points(7))
    assert not np.array_equal(renamed.points(7), few.points(7))


def test_rows_are_in_id_order_with_their_labels(tmp_path: Path, odd: Callable[..., Any]) -> None:
    corpus = open_corpus(build(odd(50), tmp_path / "corpus").path)
    assert corpus.ids() == [f"{k:04d}" for k in range(50)]
    assert corpus.labels().tolist() == [k % 2 for k in range(50)]
    part = corpus[3].part
    assert part is not None
    assert part.tolist() == [k % 3 for k in range(64)]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_used_is_refused_with_its_cause(
    tmp_path: Path, odd: Callable[..., Any], workers: int
) -> None:
    behaviours = {
        1: "raise",
        2: "refuse",
        3: "nan",
        4: "few",
        5: "one place",
        6: "wrong parts",
        7: "fewest",
        8: "many",
    }
    report = build(odd(20, behaviours), tmp_path / "corpus", workers=workers)
    assert (report.kept, report.refused) == (14, 6)
    assert sum(cause.shapes for cause in report.causes) == 6
    assert report.retryable == {}
    lines = (tmp_path / "corpus" / "refused.jsonl").read_text().splitlines()
    refused = {line["id"]: line["cause"] for line in map(json.loads, lines)}
    assert refused == {
        "0001": "ValueError: a reader's own bug",
        "0002": "a cause",
        "0003": "1 of 64 points are not finite",
        "0004": "31 points, at least 32 are needed",
        "0005": "all 64 points are at one place",
        "0006": "part labels of shape (63,) for 64 points",
    }
    corpus = open_corpus(tmp_path / "corpus")
    assert corpus.sources[0].refused == 6
    sizes = {shape.id: len(shape.points) for shape in corpus}
    assert (sizes["0007"], sizes["0008"], sizes["0009"]) == (32, 64, 64)
    assert verify_corpus(tmp_path / "corpus") == ()


def test_more_points_than_asked_for_are_a_subset_in_order(
    tmp_path: Path, odd: Callable[..., Any]
) -> None:
    corpus = open_corpus(build(odd(1, {0: "many"}), tmp_path / "corpus").path)
    rng = source_shape_rng(seed=0, source="odd", shape_id="0000")
    rng.normal(size=(64, 3))  # what the source draws first
    whole = rng.normal(size=(128, 3))
    gaps = np.abs(corpus.points(0)[:, None] - whole[None]).max(axis=2)
    chosen = gaps.argmin(axis=1)
    assert gaps.min(axis=1).max() < 1e-3
    assert (np.diff(chosen) > 0).all()


def test_a_shape_that_kills_its_reader_costs_itself_alone(
    tmp_path: Path, odd: Callable[..., Any]
) -> None:
    """Two killers in one piece and a third elsewhere, beside one that dies the first time only."""
    source = odd(60, {3: "die", 5: "die", 40: "die", 20: "die once"}, scratch=tmp_path)
    report = build(source, tmp_path / "corpus", workers=2)
    assert (report.kept, report.refused) == (57, 3)
    (cause,) = report.causes
    assert cause.example == "reading it ended the process 2 times (killed by SIGKILL)"
    assert (cause.example_id, report.retryable) == ("0003", {"crash": 3})
    spared = odd(60, {3: "refuse", 5: "refuse", 40: "refuse"})
    calm = open_corpus(build(spared, tmp_path / "calm").path)
    assert open_corpus(tmp_path / "corpus").content == calm.content


def test_a_source_without_a_usable_shape_leaves_nothing(
    tmp_path: Path, odd: Callable[..., Any]
) -> None:
    with pytest.raises(
        DataError, match="none of the 2 shapes of odd can be used; first 0000: a cause"
    ):
        build(odd(2, {0: "refuse", 1: "refuse"}), tmp_path / "corpus")
    assert build(odd(2), tmp_path / "corpus").kept == 2, "the same folder serves a better source"


def test_a_source_without_shapes_is_an_error(tmp_path: Path, odd: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match="odd holds no shapes"):
        build(odd(0), tmp_path / "corpus")


def test_a_complete_corpus_is_left_as_it_is(tmp_path: Path, odd: Callable[..., Any]) -> None:
    first = build(odd(20, {2: "refuse"}), tmp_path / "corpus")
    before = digest(tmp_path / "corpus")
    again = build(odd(20, {2: "refuse"}), tmp_path / "corpus")
    assert (first.was_complete, again.was_complete) == (False, True)
    assert (again.kept, again.refused, again.causes[0].example) == (19, 1, "a cause")
    assert digest(tmp_path / "corpus") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": 32}, "points: 64 then, 32 now"),
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"shapes": 21}, "source.settings.shapes: 20 then, 21 now"),
    ],
)
def test_other_settings_do_not_touch_a_corpus(
    tmp_path: Path, odd: Callable[..., Any], change: dict[str, int], message: str
) -> None:
    build(odd(20), tmp_path / "corpus")
    before = digest(tmp_path / "corpus")
    changed = dict(change)
    with pytest.raises(CorpusError, match=message):
        build(odd(changed.pop("shapes", 20)), tmp_path / "corpus", **changed)
    assert digest(tmp_path / "corpus") == before


def test_a_folder_with_other_files_is_not_mixed_with(
    tmp_path: Path, odd: Callable[..., Any]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CorpusError, match="holds other files"):
        build(odd(20), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(CorpusError, match="is a file"):
        build(odd(20), tmp_path / "thesis.tex")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 31}, "points must be at least 32, got 31"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"workers": -1}, "workers must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(
    tmp_path: Path, odd: Callable[..., Any], options: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(odd(20), tmp_path / "corpus", **options)
    assert not (tmp_path / "corpus").exists()


def stop_at(count: int) -> Watching:
    """A reporter that presses Ctrl-C once ``count`` shapes are done."""

    def press(done: int, _: int | None) -> None:
        if done >= count:
            raise KeyboardInterrupt

    return Watching(press)


def test_an_unfinished_build_tells_changed_files_from_other_settings(tmp_path: Path) -> None:
    begun = {"points": 64, "source": {"archive_sha256": "a", "labels": ["chair"]}, "division": 1}
    now = {"points": 64, "source": {"archive_sha256": "b", "labels": ["chair", "lamp"]}}
    with unfinished_build(tmp_path, begun):
        pass
    files = "the source's files have changed since it was begun; choose another output folder"
    for settings, message in (
        (now | {"division": 2}, files),
        (now | {"division": 2, "points": 32}, "with other settings .*points: 64 then, 32 now"),
        (begun | {"division": 2}, "with other settings .division: 1 then, 2 now"),
    ):
        with pytest.raises(CorpusError, match=message), unfinished_build(tmp_path, settings):
            pass


@pytest.mark.parametrize("workers", [0, 2])
def test_after_ctrl_c_the_same_call_goes_on(
    tmp_path: Path, odd: Callable[..., Any], workers: int
) -> None:
    source, folder = odd(100, {9: "refuse"}), tmp_path / "corpus"
    with pytest.raises(KeyboardInterrupt):
        build(source, folder, workers=workers, reporter=stop_at(60))
    with pytest.raises(CorpusError, match="not finished"):
        open_corpus(folder)
    with pytest.raises(CorpusError, match=r"unfinished build with other settings .*points"):
        build(source, folder, points=32)
    steps: list[tuple[int, int | None]] = []
    reporter = Watching(lambda *step: steps.append(step))
    report = build(source, folder, workers=workers, reporter=reporter)
    assert 16 <= report.resumed <= 60
    assert steps[0] == (report.resumed, 100)
    assert (steps[-1], reporter.notes[-1]) == ((100, 100), "1 refused")
    assert steps == sorted(steps)
    assert reporter.tasks == ["preparing odd"]
    build(source, tmp_path / "whole")
    assert digest(folder) == digest(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_twenty_builds_and_some_retries_killed_at_any_moment_go_on_to_the_same_bytes(
    tmp_path: Path,
) -> None:
    """SIGKILL to the parent alone, anywhere between the start and the end; orphans end by themselves."""
    words = ["0:11:4", "1:3:0", "2:3:1", "4:3:0"]
    program = [sys.executable, HERE / "killed_builds.py", tmp_path, "0", *words]
    ended = subprocess.run(program, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    builds, retries = map(json.loads(ended.stdout).get, ("builds", "retries"))
    assert (len(builds[0]), len(retries[0])) == (20, 5)
    assert min(builds[0]) < 0.2
    assert max(builds[0]) > 0.6
    assert min(builds[1] - 8, retries[1] - 4) >= 0, (
        "one undisturbed and one killed of each, at least"
    )


def test_a_shard_that_vanished_is_built_again(tmp_path: Path, odd: Callable[..., Any]) -> None:
    """As after a power failure that kept the mark of a shard and lost its name."""
    folder = tmp_path / "corpus"
    build(odd(40), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        # The last report comes when all pieces are there and the shard is not yet joined.
        build(odd(40), folder, reporter=stop_at(40))
    mark = folder / ".building" / "shard-00000.json"
    record = json.loads((tmp_path / "whole" / "corpus.json").read_text())["shards"][0]
    mark.write_text(json.dumps({"kept": 40, "refused": [], "record": record}))
    build(odd(40), folder)
    assert digest(folder) == digest(tmp_path / "whole")


def test_half_a_list_of_refused_shapes_is_not_left_behind(
    tmp_path: Path, odd: Callable[..., Any]
) -> None:
    folder = tmp_path / "corpus"
    with pytest.raises(KeyboardInterrupt):
        build(odd(40, {9: "refuse"}), folder, reporter=stop_at(40))
    (folder / ".refused.0123456789abcdef.part.jsonl").write_text('{"sour')
    build(odd(40, {9: "refuse"}), folder)
    build(odd(40, {9: "refuse"}), tmp_path / "whole")
    assert digest(folder) == digest(tmp_path / "whole")


def test_two_builds_of_one_folder_do_not_meet(tmp_path: Path, odd: Callable[..., Any]) -> None:
    pytest.importorskip("fcntl")
    source, folder = odd(40), tmp_path / "corpus"

    def second(*_: object) -> None:
        build(source, folder)

    with pytest.raises(CorpusError, match="another process is building"):
        build(source, folder, reporter=Watching(second))


def test_a_build_waits_for_the_workers_of_one_that_was_killed(
    tmp_path: Path, odd: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a worker may be joining a shard: its pieces vanish while the next build would join them too."""
    pytest.importorskip("fcntl")
    folder = tmp_path / "corpus"
    with pytest.raises(KeyboardInterrupt):
        build(odd(40), folder, reporter=stop_at(20))
    begun, ended = threading.Event(), list[float]()

    def orphan() -> None:
        with files.share_lock(folder / ".building" / "at-work"):
            begun.set()
            time.sleep(0.3)
            ended.append(time.monotonic())

    worker = threading.Thread(target=orphan)
    worker.start()
    begun.wait()
    started: list[float] = []
    build(odd(40), folder, reporter=Watching(lambda *_: started.append(time.monotonic())))
    worker.join()
    assert started[0] > ended[0]
    # One that hangs for ever does not keep the next from going on.
    monkeypatch.setattr(lock, "_ORPHANS_SECONDS", 0.05)
    with pytest.raises(KeyboardInterrupt):
        build(odd(40), tmp_path / "other", reporter=stop_at(20))
    with files.share_lock(tmp_path / "other" / ".building" / "at-work"):
        build(odd(40), tmp_path / "other")
    assert digest(tmp_path / "other") == digest(folder)


def test_a_worker_ends_with_its_parent_in_the_middle_of_a_task(tmp_path: Path) -> None:
    """It would write to the folder of a build that another process has begun again."""
    program = f"""
import sys, time
from pointdistill.data.corpus_building.pool import open_pool
sys.path.insert(0, {str(HERE)!r})
from slow_task import sleep_long
if __name__ == "__main__":
    with open_pool(sleep_long, workers=1, on_step=lambda *_: None) as pool:
        pool.submit({str(tmp_path / "task")!r})
        list(pool.events())
"""
    (tmp_path / "program.py").write_text(program)
    parent = subprocess.Popen([sys.executable, tmp_path / "program.py"])
    note = tmp_path / "task"
    while not note.exists() or not note.read_text():
        assert parent.poll() is None
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    worker = int(note.read_text())
    for _ in range(1000):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    else:
        pytest.fail("the worker goes on without its parent")


def test_a_lock_that_went_with_its_folder_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process ends, and takes its folder away, after this one has opened the lock there."""
    pytest.importorskip("fcntl")
    place, take = tmp_path / ".building" / "lock", files._acquire
    taken: list[int] = []

    def late(file: IO[str], place_of_lock: Path, busy: PointDistillError) -> None:
        if not taken:
            place.unlink()
            place.parent.rmdir()
        taken.append(file.fileno())
        take(file, place_of_lock, busy)

    monkeypatch.setattr(files, "_acquire", late)
    with lock.locked(tmp_path):
        assert len(taken) == 2
        with pytest.raises(CorpusError, match="another process"), lock.locked(tmp_path):
            pass
        assert place.is_file()
    assert not place.parent.exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_while_reading_stops_the_build_and_keeps_what_is_done(
    tmp_path: Path, odd: Callable[..., Any], workers: int
) -> None:
    folder = tmp_path / "corpus"
    with pytest.raises(
        DataError, match=r"no space left on the disk; [\d,]+ of 100 shapes are safe"
    ):
        build(odd(100, {90: "full disk"}), folder, workers=workers)
    assert build(odd(100), folder).resumed > 0
    build(odd(100), tmp_path / "whole")
    assert digest(folder) == digest(tmp_path / "whole")


def test_a_full_disk_while_writing_is_one_line(
    tmp_path: Path, odd: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pointdistill.data.corpus_building.tasks.write_shard", fail)
    with pytest.raises(DataError, match=r"0 of 100 shapes are safe: make room and run the same"):
        build(odd(100), tmp_path / "corpus")


def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, odd: Callable[..., Any]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CorpusError, match=r"cannot be made \(Not a directory\)"):
        build(odd(20), tmp_path / "file" / "corpus")


def test_two_shapes_of_one_id_are_an_error(tmp_path: Path, odd: Callable[..., Any]) -> None:
    class Doubled(odd):  # type: ignore[misc]
        def entries(self) -> list[Any]:
            return [*super().entries(), *super().entries()]

    with pytest.raises(DataError, match="odd holds '0000' twice"):
        build(Doubled(3), tmp_path / "corpus")


def test_builtin_gives_the_same_bytes_with_two_workers_as_with_none(tmp_path: Path) -> None:
    source = open_source("builtin", SourceRequest(shapes=60))
    build(source, tmp_path / "alone")
    build(source, tmp_path / "pair", workers=2)
    assert digest(tmp_path / "alone") == digest(tmp_path / "pair")
