"""The mixture: what goes in, that it is one valid corpus, and that it resumes wherever it stopped."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointdistill.data.benchmarks.shapenetpart import ARCHIVE_STEM
from pointdistill.data.corpus import open_corpus, verify_corpus
from pointdistill.data.corpus_building import BuildSettings, ShapeLimits
from pointdistill.data.corpus_building.mixture import build_mixture, retry_mixture
from pointdistill.data.corpus_building.source_status import (
    MixtureRequest,
    mixture_sources,
    scan_sources,
)
from pointdistill.data.files.processes import GIB
from pointdistill.data.sources.base import Entry
from pointdistill.errors import ConfigError, CorpusError, DataError
from tests.data.mixture_archives import (
    PART_LIST,
    write_archives,
    write_cap3d,
    write_lists,
    write_modelnet40,
    write_objaverse,
    write_shapenetcore,
)
from tests.data.odd_source import OddSource
from tests.data.source_archives import build, wedge_obj, wedge_off, write_zip
from tests.data.watching import Watching

NAMES = ["abo", "google-scanned-objects", "modelnet40", "scanobjectnn", "shapenetcore"]


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    return write_archives(tmp_path / "archives")


def mixed(archives: Path, output: Path, *, workers: int = 0, **request: Any) -> Path:
    mixture_request = MixtureRequest(archives=archives, **request)
    return build_mixture(mixture_request, output, BuildSettings(points=128, workers=workers)).path


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# One corpus


def test_every_archive_that_is_there_goes_into_one_corpus(archives: Path, tmp_path: Path) -> None:
    request = MixtureRequest(archives=archives)
    made = build_mixture(request, tmp_path / "corpus", BuildSettings(points=128, workers=0))
    assert (made.kept, made.refused, made.resumed, made.was_complete) == (8, 1, 0, False)
    corpus = open_corpus(made.path)
    assert [source.name for source in corpus.sources] == NAMES
    assert [source.kept for source in corpus.sources] == [1, 1, 2, 2, 2]
    assert [source.refused for source in corpus.sources] == [0, 1, 0, 0, 0]
    assert corpus.ids()[-2:] == ["02691156/b2", "03001627/a1"]
    assert verify_corpus(made.path) == ()
    (line,) = (made.path / "refused.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert (row["source"], row["id"]) == ("google-scanned-objects", "Broken")
    assert not (made.path / ".building").exists()


def test_a_shape_is_the_one_that_a_corpus_of_its_source_alone_has(
    archives: Path, tmp_path: Path
) -> None:
    corpus = open_corpus(mixed(archives, tmp_path / "corpus"))
    whole = {(shape.source, shape.id): shape.points for shape in corpus}
    for name in NAMES:
        for shape in build(name, tmp_path / name, points=128, path=archives):
            assert np.array_equal(shape.points, whole.pop((name, shape.id)))
    assert not whole


def test_a_mixture_of_one_source_has_the_content_of_its_corpus(tmp_path: Path) -> None:
    write_modelnet40(tmp_path / "archives")
    one = build("modelnet40", tmp_path / "one", points=128, path=tmp_path / "archives")
    mixture = mixed(tmp_path / "archives", tmp_path / "mixture")
    assert files_of(mixture) == files_of(one.path)


# Never loses


def test_workers_do_not_change_a_byte(archives: Path, tmp_path: Path) -> None:
    one = mixed(archives, tmp_path / "one")
    two = mixed(archives, tmp_path / "two", workers=2)
    assert files_of(one) == files_of(two)


@pytest.mark.parametrize("begun", [1, 3, 5])
def test_a_build_that_was_stopped_between_sources_goes_on(
    archives: Path, tmp_path: Path, begun: int
) -> None:
    def stop_in_time(*_: object) -> None:
        if len(reporter.tasks) == begun:
            raise KeyboardInterrupt

    reporter = Watching(stop_in_time)
    output = tmp_path / "corpus"
    request = MixtureRequest(archives=archives)
    with pytest.raises(KeyboardInterrupt):
        build_mixture(request, output, BuildSettings(points=128, workers=0), reporter=reporter)
    with pytest.raises(CorpusError, match="not finished"):
        open_corpus(output)
    made = build_mixture(request, output, BuildSettings(points=128, workers=0))
    assert made.resumed == [0, 0, 3, 0, 7][begun - 1]
    assert files_of(output) == files_of(mixed(archives, tmp_path / "whole"))


@pytest.mark.parametrize("moved", [0, 2, 5])
def test_a_build_that_was_stopped_while_shards_are_moved_goes_on(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    """Five shards and the manifest move; after five the manifest alone is missing."""
    output = tmp_path / "corpus"
    replace = Path.replace
    done: list[Path] = []

    def stopping(self: Path, target: Path) -> Path:
        if target.parent == output and self.parent.name != output.name:
            if len(done) == moved:
                raise KeyboardInterrupt
            done.append(target)
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stopping)
        with pytest.raises(KeyboardInterrupt):
            mixed(archives, output)
    assert len(list(output.glob("*.h5"))) == moved
    assert not (output / "corpus.json").exists()
    mixed(archives, output)
    assert files_of(output) == files_of(mixed(archives, tmp_path / "whole"))


def test_a_list_of_refused_shapes_is_that_of_the_sources_that_go_in(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the list was written, and gone on without the source that has a refused shape."""

    def stopping(*_: object) -> None:
        raise KeyboardInterrupt

    output = tmp_path / "corpus"
    with monkeypatch.context() as patched:
        patched.setattr("pointdistill.data.corpus_building.mixture.write_manifest", stopping)
        with pytest.raises(KeyboardInterrupt):
            mixed(archives, output)
    assert (output / ".building" / "refused.jsonl").is_file()
    mixed(archives, output, sources=("modelnet40",))
    assert sorted(files_of(output)) == ["corpus.json", "modelnet40-00000.h5"]


def test_an_archive_may_be_added_to_an_unfinished_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives, output = tmp_path / "archives", tmp_path / "corpus"
    write_shapenetcore(archives)
    request = MixtureRequest(archives=archives)
    with monkeypatch.context() as patched:
        patched.setattr("pointdistill.data.corpus_building.mixture.join", stop)
        with pytest.raises(KeyboardInterrupt):
            build_mixture(request, output, BuildSettings(points=128, workers=0))
    write_modelnet40(archives)
    made = build_mixture(request, output, BuildSettings(points=128, workers=0))
    assert (made.kept, made.resumed) == (4, 2)


def test_a_finished_mixture_is_left_as_it_is(archives: Path, tmp_path: Path) -> None:
    output = mixed(archives, tmp_path / "corpus")
    before = files_of(output)
    made = build_mixture(
        MixtureRequest(archives=archives), output, BuildSettings(points=128, workers=0)
    )
    assert (made.was_complete, made.kept) == (True, 8)
    with pytest.raises(CorpusError, match=r"sources\.modelnet40\.settings\.splits: \[\"train\"\]"):
        mixed(archives, output, take_tests=("modelnet40",))
    with pytest.raises(CorpusError, match=r"holds abo, which now stays out \(not requested\)"):
        mixed(archives, output, sources=("modelnet40",))
    with pytest.raises(CorpusError, match=r"other settings .*points: 128 then, 64 now"):
        build_mixture(
            MixtureRequest(archives=archives), output, BuildSettings(points=64, workers=0)
        )
    assert files_of(output) == before


# Grows

LATER = ("abo", "google-scanned-objects", "scanobjectnn")
"""Sources whose archives come later: before, between and after those that were there; one has a refused shape."""


@pytest.fixture
def grown(archives: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A finished mixture of two sources, and the folder to which the archives of three more have come."""
    first = tmp_path / "first"
    write_modelnet40(first)
    write_shapenetcore(first)
    output = mixed(first, tmp_path / "corpus")
    assert sorted(files_of(output)) == [
        "corpus.json",
        "modelnet40-00000.h5",
        "shapenetcore-00000.h5",
    ]
    for name in ("ModelNet40.zip", "ShapeNetCore.v2.zip"):
        (first / name).replace(archives / name)  # the same bytes, not those of another zip
    return output, archives


def test_a_finished_mixture_takes_in_what_came_later_and_only_that_is_built(
    grown: tuple[Path, Path], tmp_path: Path
) -> None:
    output, archives = grown
    before = (output / "modelnet40-00000.h5").stat()
    reporter = Watching()
    made = build_mixture(
        MixtureRequest(archives=archives),
        output,
        BuildSettings(points=128, workers=0),
        reporter=reporter,
    )
    assert reporter.tasks == [f"preparing {name}" for name in LATER]
    assert (made.kept, made.refused, made.resumed, made.was_complete) == (8, 1, 4, False)
    assert (output / "modelnet40-00000.h5").stat() == before
    assert files_of(output) == files_of(mixed(archives, tmp_path / "whole"))
    assert verify_corpus(output) == ()


def test_lists_of_refused_shapes_grow_too(tmp_path: Path) -> None:
    """A source without, and then one with refused shapes, come to one that has some."""
    archives = write_archives(tmp_path / "archives")
    (archives / "google-scanned-objects/Also.zip").write_bytes(b"no zip")
    output = mixed(archives, tmp_path / "corpus", sources=("google-scanned-objects",))
    mixed(archives, output, sources=("google-scanned-objects", "modelnet40"))
    members: dict[str, str | bytes] = {
        "ShapeNetCore.v2/03001627/a1/models/model_normalized.obj": wedge_obj(),
        "ShapeNetCore.v2/03001627/a2/models/model_normalized.obj": "v 0 0 0",
    }
    write_zip(archives / "ShapeNetCore.v2.zip", members)
    names = ("google-scanned-objects", "modelnet40", "shapenetcore")
    mixed(archives, output, sources=names)
    rows = [json.loads(line) for line in (output / "refused.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["Also", "Broken", "03001627/a2"]
    assert files_of(output) == files_of(mixed(archives, tmp_path / "whole", sources=names))


@pytest.mark.parametrize("moved", range(6))
def test_growth_that_was_stopped_while_files_are_moved_is_old_or_new_and_goes_on(
    grown: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    """Decided, then three shards, the list of refused shapes and the manifest move: five renames."""
    output, archives = grown
    replace = Path.replace
    done: list[str] = []

    def stopping(self: Path, target: Path) -> Path:
        if target.parent == output and len(done) == moved:
            raise KeyboardInterrupt
        if target.parent == output:
            done.append(target.name)
        return replace(self, target)

    before = (output / "corpus.json").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stopping)
        with contextlib.suppress(KeyboardInterrupt):
            mixed(archives, output)
    assert len(done) == min(moved, 5)
    assert len(open_corpus(output)) == (8 if moved == 5 else 4)
    assert ((output / "corpus.json").read_bytes() == before) == (moved < 5)
    assert verify_corpus(output) == ()
    mixed(archives, output)
    assert files_of(output) == files_of(mixed(archives, tmp_path / "whole"))
    assert not (output / ".building").exists()


def test_growth_that_was_stopped_while_it_builds_goes_on_also_with_one_archive_more(
    grown: tuple[Path, Path], tmp_path: Path
) -> None:
    output, archives = grown
    waiting = tmp_path / "h5_files.zip"
    (archives / waiting.name).replace(waiting)
    second = Watching(lambda *_: stop() if len(second.tasks) == 2 else None)
    request = MixtureRequest(archives=archives)
    with pytest.raises(KeyboardInterrupt):
        build_mixture(request, output, BuildSettings(points=128, workers=0), reporter=second)
    assert len(open_corpus(output)) == 4
    as_it_is = MixtureRequest(archives=archives, sources=("modelnet40", "shapenetcore"))
    assert build_mixture(as_it_is, output, BuildSettings(points=128, workers=0)).was_complete
    waiting.replace(archives / waiting.name)
    assert build_mixture(request, output, BuildSettings(points=128, workers=0)).resumed == 4 + 1
    assert files_of(output) == files_of(mixed(archives, tmp_path / "whole"))


def test_what_a_mixture_holds_may_not_go_or_change(archives: Path, tmp_path: Path) -> None:
    output = mixed(archives, tmp_path / "corpus")
    before = files_of(output)
    (archives / "abo-3dmodels.tar").replace(tmp_path / "abo.tar")
    with pytest.raises(CorpusError, match=r"holds abo, and abo-3dmodels\.tar is no longer in"):
        mixed(archives, output)
    (tmp_path / "abo.tar").replace(archives / "abo-3dmodels.tar")
    write_zip(archives / "ModelNet40.zip", {"ModelNet40/cup/train/cup_0001.off": wedge_off()})
    with pytest.raises(CorpusError, match="archive of modelnet40 has changed since this corpus"):
        mixed(archives, output)
    assert files_of(output) == before
    (output / "shapenetcore-00000.h5").unlink()
    with pytest.raises(CorpusError, match="shapenetcore-00000"):
        mixed(archives, output)


def test_a_part_is_not_lost_because_its_archive_is_away(archives: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    second = Watching(lambda *_: stop() if len(second.tasks) == 2 else None)
    with pytest.raises(KeyboardInterrupt):
        build_mixture(
            MixtureRequest(archives=archives),
            output,
            BuildSettings(points=128, workers=0),
            reporter=second,
        )
    (archives / "abo-3dmodels.tar").unlink()
    expected = r"has begun abo, and abo-3dmodels\.tar .*, or name the sources without it"
    with pytest.raises(CorpusError, match=expected) as refused:
        mixed(archives, output)
    assert refused.value.settings == ("output", "sources")
    assert len(open_corpus(mixed(archives, output, sources=("modelnet40",)))) == 2


def test_retryable_shapes_stay_so_as_a_mixture_grows_and_may_then_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: Callable[..., Any]
) -> None:
    sources = [odd(8, {2: "nan", 4: "hoard"}, tmp_path, "one")]
    monkeypatch.setattr(
        "pointdistill.data.corpus_building.mixture.open_taken", lambda _: tuple(sources)
    )
    request, output = MixtureRequest(archives=tmp_path), tmp_path / "corpus"
    strict = ShapeLimits(memory_bytes=GIB // 4)
    made = build_mixture(request, output, BuildSettings(points=64, workers=1, limits=strict))
    assert (made.kept, made.refused, made.retryable) == (6, 2, {"memory": 1})
    sources.append(odd(5, {}, tmp_path, "two"))
    grown = build_mixture(request, output, BuildSettings(points=64, workers=0))
    assert (grown.kept, grown.refused, grown.retryable) == (11, 2, {"memory": 1})
    (tmp_path / "healed").touch()
    again = retry_mixture(request, output, workers=0)
    assert (again.kept, again.retried, again.recovered) == (12, 1, 1)
    fresh = build_mixture(request, tmp_path / "fresh", BuildSettings(points=64, workers=0)).path
    assert files_of(output) == files_of(fresh)


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_growth_that_was_stopped_while_files_are_moved_is_finished_by_a_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    """A shard, the list of refused shapes and the manifest move; both sources have retryable shapes."""
    sources = [OddSource(8, {2: "nan", 4: "one huge array"}, tmp_path, "one")]
    monkeypatch.setattr(
        "pointdistill.data.corpus_building.mixture.open_taken", lambda _: tuple(sources)
    )
    request, output = MixtureRequest(archives=tmp_path), tmp_path / "corpus"
    build_mixture(request, output, BuildSettings(points=64, workers=0))
    sources.append(OddSource(5, {1: "one huge array"}, tmp_path, "two"))
    replace = Path.replace
    done: list[str] = []

    def stopping(self: Path, target: Path) -> Path:
        if target.parent == output:
            if len(done) == moved:
                raise KeyboardInterrupt
            done.append(target.name)
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stopping)
        with pytest.raises(KeyboardInterrupt):
            build_mixture(request, output, BuildSettings(points=64, workers=0))
    (tmp_path / "healed").touch()
    again = retry_mixture(request, output, workers=0)
    assert (again.kept, again.retried, again.recovered) == (12, 2, 2)
    assert build_mixture(request, output, BuildSettings(points=64, workers=0)).was_complete
    fresh = build_mixture(request, tmp_path / "fresh", BuildSettings(points=64, workers=0)).path
    assert files_of(output) == files_of(fresh)


def test_a_run_that_has_nothing_to_do_leaves_one_alone_that_is_about_to_add(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a large archive is listed, there is nothing of it on the disk but the lock."""
    pytest.importorskip("fcntl")
    request, output = MixtureRequest(archives=tmp_path), tmp_path / "corpus"
    one = OddSource(8, {}, tmp_path, "one")
    taken: list[Any] = [one]
    others: list[bool] = []

    class Listed(OddSource):
        def entries(self) -> Sequence[Entry]:
            taken[:] = [one]
            others.append(
                build_mixture(request, output, BuildSettings(points=64, workers=0)).was_complete
            )
            assert (output / ".building" / "lock").is_file()
            return super().entries()

    monkeypatch.setattr(
        "pointdistill.data.corpus_building.mixture.open_taken", lambda _: tuple(taken)
    )
    build_mixture(request, output, BuildSettings(points=64, workers=0))
    assert not (output / ".building").exists()
    taken.append(Listed(5, {}, tmp_path, "two"))
    assert build_mixture(request, output, BuildSettings(points=64, workers=0)).kept == 13
    assert others == [True]
    assert not (output / ".building").exists()


# Test splits


def test_test_splits_are_out_unless_asked_for(archives: Path, tmp_path: Path) -> None:
    out = open_corpus(mixed(archives, tmp_path / "out"))
    assert not any("/test/" in name for name in out.ids())
    for name, taken in (("modelnet40", "chair/test/chair_0890"), ("scanobjectnn", "OBJ-BG/test/")):
        corpus = open_corpus(mixed(archives, tmp_path / name, take_tests=(name,)))
        tests = [shape for shape in corpus.ids() if "/test/" in shape]
        assert len(tests) == 1
        assert tests[0].startswith(taken)
        (record,) = (source for source in corpus.sources if source.name == name)
        assert "test" in json.dumps(record.settings)


@pytest.mark.parametrize("form", ["list", "archive", "folder"])
def test_exclude_all_leaves_out_the_test_shapes_of_shapenetpart_and_lvis(
    tmp_path: Path, form: str
) -> None:
    archives = tmp_path / "archives"
    write_shapenetcore(archives)
    write_objaverse(archives)
    write_lists(archives)
    content = (archives / PART_LIST).read_text()
    if form != "list":
        (archives / PART_LIST).unlink()
    if form == "archive":
        write_zip(
            archives / f"{ARCHIVE_STEM}.zip",
            {f"{ARCHIVE_STEM}/train_test_split/{PART_LIST}": content},
        )
    elif form == "folder":
        (archives / ARCHIVE_STEM / "train_test_split").mkdir(parents=True)
        (archives / ARCHIVE_STEM / "train_test_split" / PART_LIST).write_text(content)
    every = open_corpus(mixed(archives, tmp_path / "every"))
    assert every.ids() == ["u1", "u2", "02691156/b2", "03001627/a1"]
    corpus = open_corpus(mixed(archives, tmp_path / "fewer", exclude_all_tests=True))
    assert corpus.ids() == ["u1", "02691156/b2"]
    recorded = [source.settings["test_shapes"] for source in every.sources]
    left = [source.settings["test_shapes"] for source in corpus.sources]
    assert [(k["benchmark"], k["left_out"]) for k in recorded] == [
        ("Objaverse-LVIS", False),
        ("ShapeNetPart", False),
    ]
    assert [(k["left_out"], k["listed"]) for k in left] == [(True, 3), (True, 2)]
    assert all(len(k["list_sha256"]) == 64 for k in left)


def test_a_list_that_is_missing_or_damaged_is_asked_for(tmp_path: Path) -> None:
    archives = tmp_path / "archives"
    write_shapenetcore(archives)
    with pytest.raises(DataError, match=f"ShapeNetPart's shapes their list is needed.*{PART_LIST}"):
        mixed(archives, tmp_path / "corpus", exclude_all_tests=True)
    for content in ("{", "[]", '["a1"]'):
        (archives / PART_LIST).write_text(content)
        with pytest.raises(DataError, match=PART_LIST):
            mixed(archives, tmp_path / "corpus", exclude_all_tests=True)
    assert not (tmp_path / "corpus").exists()


# What is there


def test_cap3d_stays_out_beside_the_objects_that_it_is_made_of(tmp_path: Path) -> None:
    write_cap3d(tmp_path)

    def taken(**request: Any) -> list[str]:
        request_ = MixtureRequest(archives=tmp_path, **request)
        return [status.info.name for status in scan_sources(request_) if status.taken]

    assert taken() == ["objaverse-cap3d"]
    assert taken(sources=("objaverse-xl-cap3d",)) == ["objaverse-xl-cap3d"]
    write_objaverse(tmp_path)
    assert taken() == ["objaverse"]
    assert taken(sources=("objaverse-cap3d", "objaverse")) == ["objaverse-cap3d", "objaverse"]


def test_a_source_whose_files_are_not_all_there_is_not_taken(tmp_path: Path) -> None:
    for part in (1, 2, 4):
        (tmp_path / f"3D-FUTURE-model-part{part}.zip").touch()
    (status,) = (
        s for s in scan_sources(MixtureRequest(archives=tmp_path)) if s.info.name == "3d-future"
    )
    assert not status.taken
    assert status.missing == ("3D-FUTURE-model-part3.zip",)
    with pytest.raises(DataError, match=r"3D-FUTURE-model-part3\.zip missing; .*https://tianchi"):
        mixed(tmp_path, tmp_path / "corpus", sources=("3d-future",))


def test_folders_without_archives_are_one_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the mixture's archives; its plan lists"):
        mixed(tmp_path, tmp_path / "corpus")
    with pytest.raises(DataError, match="no such folder; give the one that holds the archives"):
        mixed(tmp_path / "absent", tmp_path / "corpus")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"sources": ("folder",)}, "folder is no source of the mixture; it has shapenetcore"),
        ({"sources": ("abbo",)}, "did you mean abo"),
        ({"take_tests": ("abo",)}, "abo has no test split .*; scanobjectnn, modelnet40 have one"),
        (
            {"take_tests": ("modelnet40",), "exclude_all_tests": True},
            "both taken in and excluded",
        ),
    ],
)
def test_what_a_mixture_cannot_have_is_refused(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MixtureRequest(archives=Path(), **request_)


def test_the_mixture_has_every_source_but_those_without_an_archive() -> None:
    assert len(mixture_sources()) == 13
