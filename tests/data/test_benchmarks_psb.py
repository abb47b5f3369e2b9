"""The Princeton Shape Benchmark: its lists, both layouts, what is missing or damaged, and its download."""

from __future__ import annotations

import http.server
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pointdistill.cli import main
from pointdistill.data.benchmark_standins import HalfSizes, make_psb_stand_in
from pointdistill.data.benchmarks import psb
from pointdistill.data.benchmarks.psb import ShapeClass, parse_classification, read_psb
from pointdistill.data.benchmarks.registry import choose_splits, fetch_benchmark
from pointdistill.errors import ConfigError, DataError
from pointdistill.reporter import Reporter
from tests.data.local_server import serving

REAL = [
    path
    for folder in Path(__file__).parents
    for path in (folder / "data" / "psb_v1.zip", folder / "shared" / "real" / "psb_v1_train.zip")
    if path.exists()
]
"""The real archive, or its training half, where there is one."""

LIST = """PSB 1
5 6

furniture 0 0

chair furniture 3
7
205 5

leg 0 2\t12 13
leg chair 1
14
empty furniture 0
"""
TRIANGLE = b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"


def members(root: str, *, models: tuple[int, ...] = (5, 7, 12, 13, 14, 205)) -> dict[str, bytes]:
    meshes = {f"{root}db/{k // 100}/m{k}/m{k}.off": TRIANGLE for k in models}
    thumbnails = {f"{root}db/{k // 100}/m{k}/m{k}_info.txt": b"1 2 3\n" for k in models}
    return meshes | thumbnails | {f"{root}classification/v1/base/train.cla": LIST.encode()}


def make_zip(path: Path, content: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in content.items():
            archive.writestr(name, text)
    return path


def test_a_classification_with_any_white_space() -> None:
    assert parse_classification(LIST) == [
        ShapeClass("furniture", "0", ()),
        ShapeClass("chair", "furniture", (7, 205, 5)),
        ShapeClass("leg", "0", (12, 13)),
        ShapeClass("leg", "chair", (14,)),
        ShapeClass("empty", "furniture", ()),
    ]
    assert parse_classification(" ".join(LIST.split())) == parse_classification(LIST)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with ' ' in place of 'PSB 1'"),
        ("PSB 2 0 0", "begins with 'PSB 2'"),
        ("PSB 1 1 1 a 0 2 5", "has its end in place of a model of 'a'"),
        ("PSB 1 1 1 a 0 -1", "has '-1' in place of the number of models of 'a'"),
        ("PSB 1 1 1 a 0 9999999999999", "has '9999999999999' in place of"),
        ("PSB 1 1 2 a 0 1 5", "announces 1 classes with 2 models"),
        ("PSB 1 1 1 a 0 1 5 6", "announces 1 classes with 1 models"),
        ("PSB 1 2 2 a 0 1 5 a 0 1 6", r"has the class \('a', '0'\) twice"),
        ("PSB 1 2 2 a 0 1 5 b 0 1 5", "has the model 5 twice"),
    ],
)
def test_a_damaged_classification(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_classification(text)


@pytest.mark.parametrize("root", ["psb_v1/benchmark/", ""])
def test_both_layouts_packed_and_unpacked(tmp_path: Path, root: str) -> None:
    """Shapes in the order of the list; a class is its name and its parent."""
    path = make_zip(tmp_path / "psb_v1.zip", members(root))
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "unpacked")
    for place in (path, tmp_path / "unpacked"):
        shapes = read_psb(place, "train")
        assert [Path(name).stem for name in shapes.members] == [
            *("m7", "m205", "m5", "m12", "m13", "m14"),
        ]
        assert shapes.classes == ("chair", "leg", "chair/leg")
        assert shapes.labels.tolist() == [0, 0, 0, 1, 1, 2]
        assert (shapes.up, shapes.data_name, shapes.remarks) == ("y", psb.NAME, ())


def test_missing_models_are_counted_and_a_class_without_any_is_left_out(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", members("psb_v1/benchmark/", models=(5, 12, 13)))
    shapes = read_psb(path, "train")
    assert shapes.classes == ("chair", "leg")
    assert shapes.data_name == f"{psb.NAME} (3 of 6 models)"
    assert shapes.remarks == ("3 of the 6 models are not in the archive: m7, m205, m14",)


def test_archives_that_are_not_the_benchmark(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such archive.*prepare-data psb"):
        read_psb(tmp_path / "none.zip", "train")
    whole = make_zip(tmp_path / "whole.zip", members(""))
    with pytest.raises(DataError, match=r"has no classification/v1/base/test\.cla"):
        read_psb(whole, "test")
    twice = make_zip(tmp_path / "twice.zip", members("") | {"old/db/0/m5/m5.off": TRIANGLE})
    with pytest.raises(DataError, match=r"holds m5 twice \(db/0/m5/m5.off, old/db"):
        read_psb(twice, "train")
    listed = make_zip(tmp_path / "listed.zip", members("", models=()))
    with pytest.raises(DataError, match="none of the 6 models of the train half; get the whole"):
        read_psb(listed, "train")
    cut = make_zip(
        tmp_path / "cut.zip", members("") | {"classification/v1/base/train.cla": b"PSB 1 3"}
    )
    with pytest.raises(DataError, match=r"cut.zip: classification.*its end.*fetch the archive"):
        read_psb(cut, "train")


def test_the_training_half_unless_the_test_half_is_named() -> None:
    assert choose_splits("psb", ()) == ("train",)
    assert choose_splits("psb", ("test",)) == ("test",)
    assert choose_splits("psb", ("test", "train")) == ("train", "test")
    with pytest.raises(ConfigError, match="choose from train, test"):
        choose_splits("psb", ("both",))


def test_the_stand_in_has_the_archive_s_layout(tmp_path: Path) -> None:
    sizes = HalfSizes(classes=("chair", "bottle"), train=2, test=1)
    for name in ("one.zip", "two.zip"):
        make_psb_stand_in(tmp_path / name, sizes=sizes, workers=1)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    train, test = (read_psb(tmp_path / "one.zip", half) for half in ("train", "test"))
    assert (train.classes, train.labels.tolist()) == (("chair", "bottle"), [0, 0, 1, 1])
    assert len(test) == 2
    assert not set(train.members) & set(test.members)
    assert train.stand_in
    assert train.data_name == f"{psb.NAME} stand-in"


@pytest.mark.skipif(not REAL, reason="the real archive is not here")
def test_the_real_training_half() -> None:
    shapes = read_psb(REAL[0], "train")
    sizes = np.bincount(shapes.labels)
    assert (len(shapes), len(shapes.classes)) in ((904, 90), (907, 90))
    assert (sizes >= 10).sum() == 41
    assert sizes[sizes >= 10].sum() >= 635


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A local site that drops its first connection half-way; the ranges of the requests."""
    content = make_zip(tmp_path / "source.zip", members("")).read_bytes()
    ranges: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            start = int(asked.removeprefix("bytes=").rstrip("-") or 0)
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("ETag", '"1"')
            if asked:
                span = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self.send_header("Content-Range", span)
            self.end_headers()
            self.wfile.write(content[start:] if ranges else content[: len(content) // 2])
            ranges.append(asked)

    monkeypatch.setattr("pointdistill.data.files.web._FIRST_PAUSE_SECONDS", 0.0)
    with serving(Handler) as address:
        spec = replace(psb.SPEC, address=f"{address}/benchmark/psb_v1.zip")
        monkeypatch.setattr(psb, "SPEC", spec)
        yield ranges


class Lines(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str, *_: str) -> None:
        self.said.append(line)


def test_it_is_fetched_once_and_resumed(
    tmp_path: Path, site: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    reporter = Lines()
    path = fetch_benchmark("psb", folder=tmp_path, reporter=reporter)
    assert path == tmp_path / "data" / "psb_v1.zip"
    assert path.read_bytes() == (tmp_path / "source.zip").read_bytes()
    assert site[0] == ""
    assert site[1].startswith("bytes=")
    assert "use them to measure, and do not pass them on" in reporter.said[0]
    assert "its site promises no checksum; every member is whole" in reporter.said[1]
    with pytest.raises(SystemExit) as stop:
        main(["prepare-data", "psb", "--fetch", "--archive", str(path.parent)])
    out, err = capsys.readouterr()
    assert (stop.value.code, len(site)) == (0, 2)
    assert f"{path} is there already" in err
    assert out == f"next: pointdistill evaluate psb --data {path}\n"


def test_without_a_network_no_folder_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pointdistill.data.files.web._FIRST_PAUSE_SECONDS", 0.0)
    nobody = replace(psb.SPEC, address="http://127.0.0.1:9/psb_v1.zip")
    monkeypatch.setattr(psb, "SPEC", nobody)
    Path("old").mkdir()
    for folder in ((), ("--archive", "new/folder"), ("--archive", "old/new")):
        with pytest.raises(SystemExit) as stop:
            main(["prepare-data", "psb", "--fetch", *folder])
        assert stop.value.code == 2
        assert nobody.address in capsys.readouterr().err.splitlines()[-1]
        assert [path.name for path in tmp_path.rglob("*")] == ["old"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no corpus is made of it; --fetch downloads it, and `pointdistill evaluate psb`"),
        (("--fetch", "--shapes", "3"), "--shapes has no meaning for psb"),
        (("--fetch", "--archive", __file__), "is a file; give the folder that the archive goes to"),
    ],
)
def test_it_is_no_source_of_a_corpus(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["prepare-data", "psb", *words])
    err = capsys.readouterr().err
    assert (stop.value.code, err.count("\n")) == (2, 1)
    assert message in err


def test_an_archive_behind_a_form_is_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="scanobjectnn cannot be downloaded by a program"):
        fetch_benchmark("scanobjectnn", folder=tmp_path)
