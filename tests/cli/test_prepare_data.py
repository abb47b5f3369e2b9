"""``pointdistill prepare-data`` as it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pointdistill.data.corpus import open_corpus
from pointdistill.data.corpus_building import prepare
from pointdistill.data.files.workspace import last_corpus
from pointdistill.data.sources import SOURCES
from tests.cli.typed import Run, typed
from tests.data.source_archives import wedge_obj, write_zip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Type a command in an empty folder; its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    return typed(capsys, "prepare-data")


def test_it_makes_builtin_shapes_and_says_what_comes_next(run: Run) -> None:
    code, out, _ = run("--shapes", "20", "--points", "64", "--workers", "0")
    assert code == 0
    assert "data/builtin is complete: 20 shapes of builtin" in out
    assert "next: pointdistill pretrain --size tiny" in out
    assert last_corpus() == Path("data/builtin")
    assert len(open_corpus("data/builtin")) == 20
    code, out, _ = run("--shapes", "20", "--points", "64")
    assert (code, "was complete already" in out) == (0, True)


def test_without_an_argument_it_says_what_is_made_where_and_how_to_choose(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "prepare_corpus", stop)
    code, out, err = run()
    assert (code, out) == (130, "")
    assert err.splitlines()[0] == (
        "note: making 10,000 builtin shapes in data/builtin; --shapes makes fewer, "
        "`pointdistill prepare-data folder --input YOUR_FILES` takes your own"
    )
    assert "making" not in run("--shapes", "8")[2]


def test_a_share_of_builtin_shapes_can_be_procedural(run: Run) -> None:
    small = ("--shapes", "8", "--points", "64", "--workers", "0")
    code, out, _ = run(*small, "--procedural", "0.5")
    assert (code, "8 shapes of builtin" in out) == (0, True)
    assert sum(name.startswith("procedural/") for name in open_corpus("data/builtin").ids()) == 4
    code, _, err = run(*small)
    assert (code, "procedural" in err, err.count("\n")) == (2, True, 1)
    code, _, err = run(*small, "--procedural", "2")
    assert (code, "procedural must be a share from 0 to 1" in err) == (2, True)


def test_a_cluster_that_is_not_there_is_one_line_and_exit_code_2(run: Run) -> None:
    pytest.importorskip("distributed")
    small = ("--shapes", "20", "--points", "64")
    code, _, err = run(*small, "--cluster", "here")
    assert code == 2
    assert err.startswith("error: here: missing port number")
    assert err.count("\n") == 1
    code, _, err = run(*small, "--cluster", "tcp://here:8786", "--workers", "2")
    assert (code, "--workers has no meaning for --cluster" in err) == (2, True)


def test_other_settings_are_one_line_and_exit_code_2(run: Run) -> None:
    run("--shapes", "20", "--points", "64", "--workers", "0")
    code, out, err = run("--shapes", "21", "--points", "64")
    assert (code, out) == (2, "")
    assert "20 then, 21 now" in err
    assert err.count("\n") == 1


def test_refused_files_are_listed_and_counted(run: Run) -> None:
    files = Path("mine")
    files.mkdir()
    (files / "good.xyz").write_text("".join(f"{k} {k * k} 1\n" for k in range(40)))
    for k in range(5):
        (files / f"bad{k}.off").touch()
    code, out, err = run("folder", "--input", "mine", "--points", "64", "--workers", "0")
    assert code == 0
    assert "data/mine is complete: 1 shape of folder" in out
    assert "refused: bad0.off" in err
    assert "5 of 6 shapes were refused; all are listed in data/mine/refused.jsonl" in err
    assert "files that state no up axis were taken as z up" in err
    for k in range(4):
        (files / f"bad{k}.off").unlink()
    code, _, err = run("folder", "--input", "mine", "--points", "64", "--output", "data/one")
    assert code == 0
    assert "1 of 2 shapes was refused; all are listed in data/one/refused.jsonl" in err


@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_files_hold_besides_their_shapes_is_one_line(run: Run, workers: str) -> None:
    """Also after a resume, since finished pieces keep it; a complete corpus is not read again."""
    files = Path("mine")
    files.mkdir()
    for k in range(5):
        (files / f"{k}.obj").write_text(wedge_obj() + ("f 1 2\n" * k))
    cloud = "".join(f"{k} {k * k} 1\n" for k in range(40))
    (files / "scan.xyz").write_text(cloud + "nan nan nan\n")
    typed = ("folder", "--input", "mine", "--points", "64", "--workers", workers, "--up", "y")
    code, _, err = run(*typed)
    assert code == 0
    said = "left out of 5 files: 10 faces of one or two corners, 1 point without finite coordinates"
    assert [line for line in err.splitlines() if line.startswith("left out")] == [
        f"{said} (1.obj, 2.obj, 3.obj and 2 more)"
    ]
    code, _, err = run(*typed)
    assert (code, "left out" in err) == (0, False)


def test_files_that_changed_are_told_from_settings(run: Run) -> None:
    Path("mine").mkdir()
    named = ("folder", "--input", "mine", "--points", "64", "--workers", "0", "--up", "Y")
    cloud = "".join(f"{k} {k * k} 1\n" for k in range(40))
    Path("mine/a.xyz").write_text(cloud)
    assert run(*named)[0] == 0
    Path("mine/chairs").mkdir()
    Path("mine/chairs/b.xyz").write_text(cloud)
    code, out, err = run(*named)
    assert code == 0
    assert "data/mine: the folder has changed; shapes: 1 new, 1 unchanged" in err
    assert "data/mine is complete: 2 shapes of folder" in out
    Path("mine/a.xyz").unlink()
    code, _, err = run(*named)
    assert code == 2
    assert "data/mine: 1 of its shapes have no file in the folder any more, such as 'a.xyz'" in err
    assert err.endswith("(--drop-removed, --output)\n")
    code, out, err = run(*named, "--drop-removed")
    assert (code, "shapes: 1 removed, 1 unchanged" in err) == (0, True)
    assert "data/mine is complete: 1 shape of folder" in out
    Path("data/mine/files.sha256").unlink()
    Path("mine/c.xyz").write_text(cloud)
    code, _, err = run(*named)
    assert "data/mine: the source's files have changed since this corpus was made" in err
    assert "choose another output folder, or remove this one (--output)" in err
    assert "made with other settings (points: 64 then, 65 now" in run(*named[:4], "65")[2]


def test_an_archive_becomes_a_corpus_and_a_difference_to_the_whole_is_said(run: Run) -> None:
    mesh = "ShapeNetCore.v2/03001627/a1/models/model_normalized.obj"
    write_zip(Path("ShapeNetCore.v2.zip"), {mesh: wedge_obj()})
    code, out, err = run(
        "shapenetcore", "--archive", "ShapeNetCore.v2.zip", "--points", "64", "--workers", "0"
    )
    assert code == 0
    assert "data/shapenetcore is complete: 1 shape of shapenetcore" in out
    assert "1 shape kept and 0 refused; the whole of shapenetcore gives 52,470" in err
    assert open_corpus("data/shapenetcore").ids() == ["03001627/a1"]


def test_the_help_names_every_source(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert [info.name for info in SOURCES if info.name not in "".join(out.split())] == []


@pytest.mark.parametrize("name", [info.name for info in SOURCES if info.archive])
def test_an_absent_archive_is_one_line_that_says_where_it_comes_from(run: Run, name: str) -> None:
    info = next(info for info in SOURCES if info.name == name)
    code, _, err = run(name, "--archive", "absent")
    assert code == 2
    assert err.count("\n") == 1
    assert f"give {info.archive}, from {info.origin}" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["modelnet40"],
            "modelnet40 needs the path of its data; give ModelNet40.zip, from https://",
        ),
        (["scanobjectnn", "--archive", "no.zip"], "no.zip: no such file or folder"),
        (["buitlin"], "did you mean builtin"),
        (["--points", "8"], "--points"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(run: Run, words: list[str], message: str) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_ctrl_c_says_that_the_same_command_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pointdistill.data.corpus_building.prepare.build_source", interrupted)
    code, _, err = run("--shapes", "20")
    assert code == 130
    assert "the same command goes on" in err
