"""From a benchmark and a corpus, or a run, to the list and to the line of warning; and the command's own part."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from pointdistill.cli import app, main
from pointdistill.cli.corpus import BenchmarkName
from pointdistill.cli.evaluate import leaks_command
from pointdistill.data.benchmark_standins import (
    MeshSizes,
    ScanSizes,
    make_modelnet40_stand_in,
    make_scanobjectnn_stand_in,
)
from pointdistill.data.benchmarks.modelnet40 import read_modelnet40
from pointdistill.data.benchmarks.registry import BENCHMARKS
from pointdistill.data.benchmarks.scanobjectnn import read_scanobjectnn
from pointdistill.data.corpus import open_corpus
from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.files.files import write_json
from pointdistill.data.leaks.candidates import FILE_NAME
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.engine.config.config import RUN_FORMAT
from pointdistill.engine.evaluation import leak_check as leaks
from pointdistill.engine.evaluation.leak_check import (
    LeakRequest,
    check_leaks,
    held_out_of,
    leak_warning,
)
from pointdistill.errors import CheckpointError, ConfigError, CorpusError
from tests.engine.recorder import Recorder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in archive, a corpus of its training shapes and one of all, and a run on each."""
    folder = tmp_path_factory.mktemp("leaks")
    archive = folder / "ModelNet40.zip"
    make_modelnet40_stand_in(archive, sizes=MeshSizes(train=1, test=1), workers=1)
    for name, with_test in (("clean", False), ("leaky", True)):
        source = open_source("modelnet40", SourceRequest(path=archive, include_test=with_test))
        build_corpus(source, folder / name, points=2048, workers=0)
        add_run(folder / f"run-{name}", folder / name)
    return folder


def add_run(run: Path, corpus: Path, *, content: str | None = None) -> None:
    """What of a run tells its corpus."""
    begun_with = {"path": str(corpus), "fingerprint": content or open_corpus(corpus).content}
    (run / "encoder").mkdir(parents=True)
    write_json(run / "config.json", {"format": RUN_FORMAT, "corpus": begun_with, "config": {}})


def quietly(request: LeakRequest) -> leaks.Checked:
    return check_leaks(request)


def test_names_typed_are_those_of_evaluate() -> None:
    assert tuple(BenchmarkName) == tuple(BENCHMARKS)


def test_all_test_shapes_of_a_leaky_corpus_are_found_by_id(made: Path) -> None:
    request = LeakRequest(
        benchmark="modelnet40", corpus=made / "leaky", data=made / "ModelNet40.zip", workers=1
    )
    ((split, report),) = quietly(request).reports
    assert split is None
    assert report.count("id") == report.test_shapes == len(report.leaks) > 10
    assert report.ids_met == ("modelnet40-stand-in",)
    assert all(leak.test_id == leak.corpus_id for leak in report.leaks)
    assert "/test/" in report.leaks[0].corpus_id


def test_without_ids_the_same_shapes_are_found_by_geometry(made: Path) -> None:
    """The archive's meshes are sampled once for the corpus and once for the benchmark."""
    benchmark = read_modelnet40(made / "ModelNet40.zip", points=1024, workers=1)
    shapes = replace(held_out_of(benchmark).some(6), ids=None)
    found = leaks.find_leaks(shapes, open_corpus(made / "leaky"), workers=1)
    named = [leak.corpus_id for leak in found.leaks]
    assert benchmark.test.ids is not None
    step = len(benchmark.test) / 6
    assert named == [benchmark.test.ids[int(k * step)] for k in range(6)]


def test_a_run_names_its_corpus(made: Path) -> None:
    recorder = Recorder()
    request = LeakRequest(
        benchmark="modelnet40",
        encoder=made / "run-leaky" / "encoder",
        data=made / "ModelNet40.zip",
        workers=1,
    )
    checked = check_leaks(request, recorder)
    assert checked.corpus == made / "leaky"
    assert str(made / "run-leaky") in recorder.said[0]


def test_a_warning_where_test_shapes_were_seen_and_none_where_not(made: Path) -> None:
    benchmark = read_modelnet40(made / "ModelNet40.zip", points=1024, workers=1)
    line = leak_warning(benchmark, "modelnet40", made / "run-leaky" / "encoder")
    count = len(benchmark.test)
    assert line is not None
    assert line.startswith(f"{count} of {count} test shapes were in the corpus this encoder saw")
    assert (
        f"`pointdistill leaks modelnet40` with the encoder {made / 'run-leaky' / 'encoder'} and the stand-in"
        in line
    )
    line = leak_warning(benchmark, "modelnet40", made / "run-leaky" / "encoder", leaks_command)
    assert line is not None
    assert (
        f"`pointdistill leaks modelnet40 --encoder {made / 'run-leaky' / 'encoder'} --stand-in`"
        in line
    )
    assert leak_warning(benchmark, "modelnet40", made / "run-clean") is None
    assert not (made / "clean" / FILE_NAME).exists(), "all ids met: nothing to compute"


def test_the_command_of_a_warning_can_be_pasted() -> None:
    request = LeakRequest(benchmark="scanobjectnn", encoder=Path("my run"))
    assert leaks_command(request) == "`pointdistill leaks scanobjectnn --encoder 'my run'`"


def test_a_warning_by_geometry_is_bounded(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another benchmark's ids do not meet; a large corpus without fingerprints is not worked through."""
    benchmark = read_modelnet40(made / "ModelNet40.zip", points=1024, workers=1)
    unnamed = replace(benchmark, test=replace(benchmark.test, ids=None))
    (made / "leaky" / FILE_NAME).unlink(missing_ok=True)
    monkeypatch.setattr(leaks, "QUICK_CORPUS", 3)
    line = leak_warning(unnamed, "modelnet40", made / "run-leaky")
    assert line is not None
    assert "were not compared" in line
    monkeypatch.setattr(leaks, "QUICK_CORPUS", 5000)
    monkeypatch.setattr(leaks, "QUICK_TESTS", 3)
    line = leak_warning(unnamed, "modelnet40", made / "run-leaky")
    assert line is not None
    assert line.startswith(
        "3 of 3 test shapes were in the corpus this encoder saw (by geometry, of"
    )
    monkeypatch.setattr(leaks, "QUICK_CORPUS", 3)
    line = leak_warning(unnamed, "modelnet40", made / "run-leaky")
    assert line is not None, "its fingerprints are kept by now"
    assert line.startswith("3 of 3")


def test_what_an_encoder_saw_may_not_be_known(made: Path, tmp_path: Path) -> None:
    benchmark = read_modelnet40(made / "ModelNet40.zip", points=1024, workers=1)
    assert leak_warning(benchmark, "modelnet40", tmp_path) is None
    add_run(tmp_path / "run", made / "clean", content="another")
    line = leak_warning(benchmark, "modelnet40", tmp_path / "run")
    assert line is not None
    assert "not checked" in line
    request = LeakRequest(benchmark="modelnet40", encoder=tmp_path / "run")
    with pytest.raises(CorpusError, match="other shapes than when"):
        quietly(request)
    with pytest.raises(CheckpointError, match="lies in no run"):
        quietly(replace(request, encoder=tmp_path))
    with pytest.raises(CheckpointError, match="name a corpus"):
        quietly(replace(request, encoder=None, folder=tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": Path("run")}, "choose one of them"),
        ({"splits": ("OBJ-BG",)}, "it has one only"),
        ({"benchmark": "scanobjectnn", "splits": ("OBJ",)}, "OBJ-ONLY"),
        ({"benchmark": "modelnet10"}, "choose one of"),
        ({"stand_in": True, "data": Path("a.zip")}, "choose one of them"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], message: str) -> None:
    request = LeakRequest(benchmark="modelnet40", corpus=Path("corpus"))
    with pytest.raises(ConfigError, match=message):
        quietly(replace(request, **changes))  # type: ignore[arg-type]


def test_rows_of_scanobjectnn_are_ids(tmp_path: Path) -> None:
    """A scan is known by its split and row; the corpus's reader names it so too."""
    archive = tmp_path / "h5_files.zip"
    sizes = ScanSizes(train=1, test=1, copies=1)
    make_scanobjectnn_stand_in(archive, splits=("OBJ-BG",), sizes=sizes, workers=1)
    source = open_source("scanobjectnn", SourceRequest(path=archive, include_test=True))
    build_corpus(source, tmp_path / "corpus", workers=0)
    shapes = held_out_of(read_scanobjectnn(archive, "OBJ-BG"))
    found = leaks.find_leaks(shapes, open_corpus(tmp_path / "corpus"), geometry=False)
    assert [leak.corpus_id for leak in found.leaks] == [f"OBJ-BG/test/{k:05d}" for k in range(15)]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


def test_the_command_prints_a_table_or_json(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--corpus", str(made / "leaky"), "--data", str(made / "ModelNet40.zip"))
    assert run("leaks", "modelnet40", *options, "--workers", "1") == 0
    out = capsys.readouterr().out
    assert "test\ttest id\tfound by\tcorpus shape\tsource\tgap\n" in out
    named = f"--data {made / 'ModelNet40.zip'}"
    assert out.splitlines()[-1] == f"next: pointdistill evaluate modelnet40 {named}"
    assert run("leaks", "modelnet40", *options, "--workers", "1", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["version"]) == ("pointdistill-leaks", 1)
    rows = found["splits"][0]["leaks"]
    assert len(rows) == found["splits"][0]["test_shapes"]
    assert rows[0]["how"] == "id"
    assert rows[0]["gap"] is None


def test_options_do_not_grow_by_accident() -> None:
    command = typer.main.get_command(app).commands["leaks"]  # type: ignore[attr-defined]
    options = {name for p in command.params for name in p.opts if name.startswith("-")}
    assert options == {
        "--corpus", "--encoder", "--data", "--stand-in", "--split", "--json", "--workers",
        "--quiet", "-q",
    }  # fmt: skip


def test_wrong_input_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, named in (
        (("modelnet40",), "no run was made in this folder yet"),
        (("modelnet40", "--corpus", "nowhere"), "nowhere: no such corpus"),
        (("modelnet10", "--corpus", "nowhere"), "modelnet10"),
    ):
        assert run("leaks", *arguments) == 2
        said = capsys.readouterr().err
        assert named in said
        assert len(said.strip().splitlines()) == 1
