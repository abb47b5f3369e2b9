"""``duplicates`` as it is typed: turned and scaled copies are found, similar shapes are not."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import trimesh

from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.leaks import duplicates as duplicates_module
from pointdistill.data.leaks.candidates import FILE_NAME, Fingerprints
from pointdistill.data.meshes.read import FORMATS, UNREAD_SUFFIXES
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.data.sources.paths import list_shapes
from tests.cli.typed import Run, typed

NOTE = "note: z is taken as the up axis of files that state none; --up sets another\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    return typed(capsys)


def bracket(length: float = 2.0) -> trimesh.Trimesh:
    """An L of two boards and a rod; without a symmetry about z."""
    parts = [
        trimesh.creation.box((length, 1.0, 0.2)),
        trimesh.creation.box((0.2, 1.0, 1.5)).apply_translation((length / 2, 0.0, 0.7)),
        trimesh.creation.cylinder(0.15, 1.2).apply_translation((-length / 3, 0.25, 0.6)),
    ]
    return trimesh.util.concatenate(parts)


def moved(mesh: trimesh.Trimesh, degrees: float, scale: float) -> trimesh.Trimesh:
    turned = mesh.copy().apply_transform(
        trimesh.transformations.rotation_matrix(np.radians(degrees), (0, 0, 1))
    )
    return turned.apply_scale(scale).apply_translation((3.0, -1.0, 5.0))


def write_shapes(folder: Path) -> None:
    """A bracket three times, a cone twice, a longer bracket, a mirrored one, and two files that are no shapes."""
    (folder / "old").mkdir(parents=True)
    bracket().export(folder / "bracket.obj")
    moved(bracket(), 130.0, 40.0).export(folder / "old" / "part-7.stl")
    # Another mesh of the same surface.
    moved(bracket().subdivide().subdivide(), 77.0, 0.01).export(folder / "z.ply")
    bracket(2.3).export(folder / "longer.obj")
    bracket().apply_transform(np.diag((1.0, -1.0, 1.0, 1.0))).export(folder / "mirrored.obj")
    trimesh.creation.cone(1.0, 2.0).export(folder / "cone.off")
    moved(trimesh.creation.cone(1.0, 2.0), 11.0, 0.5).export(folder / "old" / "cone-copy.off")
    (folder / "broken.ply").write_text("no mesh")
    (folder / "old" / "empty.obj").write_text("v 0 0 0\n")


def test_turned_and_scaled_copies_are_found_and_similar_shapes_are_not(run: Run) -> None:
    write_shapes(Path("parts"))
    code, out, err = run("duplicates", "parts", "--output", "groups.json")
    assert code == 2
    assert "3 of 7 shapes repeat another one; groups of the same shape: 2" in out
    assert "1\tbracket.obj\t" in out
    assert "error: parts/broken.ply: " in err
    assert "error: parts/old/empty.obj: " in err
    assert "2 of 9 files were not compared" in err
    stored = json.loads(Path("groups.json").read_text())
    assert [[d["id"] for d in group] for group in stored["groups"]] == [
        ["bracket.obj", "old/part-7.stl", "z.ply"],
        ["cone.off", "old/cone-copy.off"],
    ]
    assert [d["gap"] for group in stored["groups"] for d in group[:1]] == [None, None]
    assert all(0.8 < d["gap"] < 1.12 for group in stored["groups"] for d in group[1:])
    assert [shape["id"] for shape in stored["refused"]] == ["broken.ply", "old/empty.obj"]
    scales = [d["scale"] for group in stored["groups"] for d in group]
    assert scales == [
        *(None, pytest.approx(40.0, rel=0.02), pytest.approx(0.01, rel=0.02)),
        *(None, pytest.approx(0.5, rel=0.02)),
    ]


def test_copies_in_another_size_are_kept_apart_if_asked(run: Run) -> None:
    """Three sizes, each twice: one group of six, or three of two. Sizes that differ by 6 % are not the same."""
    folder = Path("screws")
    folder.mkdir()
    for number, scale in enumerate((1.0, 2.0, 1.06, 2.0, 1.0, 1.06)):
        moved(bracket(), 60.0 * number, scale).export(folder / f"{number}.stl")
    code, out, _ = run("duplicates", "screws")
    assert code == 0
    assert "5 of 6 shapes repeat another one; groups of the same shape: 1" in out
    rows = [line.split("\t") for line in out.splitlines() if "\t" in line][1:]
    assert [row[1] for row in rows] == [f"{number}.stl" for number in range(6)]
    assert rows[0][3] == ""
    shown = [float(row[3]) for row in rows[1:]]
    assert shown == pytest.approx([2.0, 1.06, 2.0, 1.0, 1.06], rel=0.02)
    code, out, _ = run("duplicates", "screws", "--same-size", "--json")
    assert code == 0
    groups = json.loads(out)["groups"]
    assert [[d["id"] for d in group] for group in groups] == [
        ["0.stl", "4.stl"],
        ["1.stl", "3.stl"],
        ["2.stl", "5.stl"],
    ]
    assert all(d["scale"] == pytest.approx(1.0, rel=0.02) for g in groups for d in g[1:])


def test_a_corpus_keeps_its_fingerprints_and_a_table_can_be_read(run: Run) -> None:
    write_shapes(Path("parts"))
    source = open_source("folder", SourceRequest(path=Path("parts")))
    build_corpus(source, Path("corpus"), points=2048, workers=0)
    code, out, err = run("duplicates", "corpus", "-o", "groups.csv")
    assert (code, err) == (0, "")
    assert out.endswith("of the same shape: 2\nwritten: groups.csv\n")
    assert Path("corpus", FILE_NAME).is_file()
    with Path("groups.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["group", "shape", "gap", "scale"]
    assert [row[:2] for row in rows[1:]] == [
        ["1", "bracket.obj"],
        ["1", "old/part-7.stl"],
        ["1", "z.ply"],
        ["2", "cone.off"],
        ["2", "old/cone-copy.off"],
    ]


def test_a_folder_without_duplicates_and_paths_that_are_refused(run: Run) -> None:
    Path("parts").mkdir()
    bracket().export("parts/a.obj")
    bracket(2.3).export("parts/b.obj")
    assert run("duplicates", "parts") == (0, "parts: no duplicates among 2 shapes\n", NOTE)
    code, _, err = run("duplicates", "parts", "--output", "groups.txt")
    assert (code, err) == (
        2,
        "error: the output must end in .csv or .json, got 'groups.txt' (--output)\n",
    )
    code, _, err = run("duplicates", "absent")
    assert (code, err) == (2, "error: absent: no such file or folder; check its name\n")
    code, _, err = run("duplicates", "parts", "--up", "w")
    assert code == 2
    assert err.startswith("error: up must be one of")


def test_text_files_and_formats_that_are_not_read_are_told_alike(run: Run) -> None:
    """By `duplicates`, `sample`, `embed` and `prepare-data`; neither changes the exit code."""
    folder = Path("cad")
    folder.mkdir()
    bracket().export(folder / "a.obj")
    bracket(2.3).export(folder / "b.obj")
    (folder / "notes.txt").write_text("The bracket is the old one.\n")
    (folder / "parts.csv").write_text("name,material\nbracket,steel\nrod,brass\n")
    for name in ("part.SLDPRT", "drawing.dwg", "c.dwg", ".hidden.dwg"):
        (folder / name).write_bytes(b"native")
    unread = "not read: 2 .dwg, 1 .sldprt; export them as STEP or STL\n"
    named = "left out: 2 text files without points ({0}notes.txt, {0}parts.csv)\n"
    code, out, err = run("duplicates", "cad")
    assert (code, out) == (0, "cad: no duplicates among 2 shapes\n")
    assert err == NOTE + named.format("") + unread
    code, out, err = run("sample", "cad", "-o", "sampled", "--points", "64")
    assert (code, err) == (0, named.format("cad/") + unread)
    assert sorted(path.name for path in Path("sampled").iterdir()) == ["a.npy", "b.npy"]
    words = ("folder", "--input", "cad", "--points", "64", "--workers", "0")
    code, out, err = run("prepare-data", *words)
    assert (code, "is complete: 2 shapes of folder" in out) == (0, True)
    assert err.startswith(named.format("") + unread)
    assert "refused" not in err
    shapes = list_shapes([folder])
    assert "".join(f"{line}\n" for line in shapes.not_shapes()) == named.format("cad/") + unread
    assert len(shapes) == 2
    assert not UNREAD_SUFFIXES & FORMATS.keys()
    for path in folder.glob("*.obj"):
        path.unlink()
    for words in (("sample", "cad", "-o", "s"), ("duplicates", "cad"), ("embed", "cad")):
        code, _, err = run(*words)
        assert (code, err.endswith(f"are read; {unread}")) == (2, True), err


def test_every_member_of_a_large_group_is_linked_to_an_earlier_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 fingerprints all alike, of which 128 are kept for each: later ones never crowd out all earlier."""
    count = 300
    clouds = np.random.default_rng(0).normal(size=(count, 64, 3)).astype(np.float32)

    class Clouds:
        def __len__(self) -> int:
            return count

        def points(self, index: int) -> np.ndarray:
            return clouds[0]

    prints = Fingerprints(np.zeros((count, 168), np.float16), np.full(count, 64, np.uint16))
    monkeypatch.setattr(
        duplicates_module.Queries,
        "of",
        lambda rows: duplicates_module.Queries(
            np.zeros((n := len(list(rows)), 168), np.float32),
            np.zeros((n, 168, 4), np.float32),
            np.full(n, 64),
        ),
    )
    found = duplicates_module._earlier_candidates(Clouds(), prints, lambda done, total: None)
    assert sorted(found) == list(range(1, count))
    assert all((near < shape).all() and len(near) <= 128 for shape, near in found.items())


def test_an_interrupted_search_leaves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shapes(Path("parts"))
    monkeypatch.setenv("TMPDIR", str(Path.cwd()))
    monkeypatch.setattr("tempfile.tempdir", None)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(duplicates_module, "first_matches", interrupt)
    code, _, err = run("duplicates", "parts", "--output", "groups.json")
    assert code == 130
    assert err.startswith(f"{NOTE}stopped, nothing was written")
    assert [path.name for path in Path().iterdir()] == ["parts"]
