"""``embed`` and ``search`` as they are typed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.meshes.formats.points import is_prose
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.data.sources.paths import ReadSettings, ReadShape, ShapeLocation
from pointdistill.engine.embedding import search as search_module
from pointdistill.engine.reports.pictures import SheetRow
from pointdistill.engine.weights.encoders import save_encoder
from tests.cli.typed import Run, typed
from tests.engine.test_embedding import random_encoder


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pointdistill", *arguments],
        cwd=cwd,
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_encoder(random_encoder(), tmp_path / "my encoder")
    (tmp_path / "meshes").mkdir()
    for number in range(3):
        trimesh.creation.box((1, 2, 1 + number)).export(tmp_path / "meshes" / f"{number}.obj")
    return tmp_path


def test_from_a_folder_to_an_embedding_and_a_search(folder: Path) -> None:
    named = ("embed", "meshes", "--encoder", "my encoder", "--output", "all.npz")
    done = command(*named, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (
        "note: z was taken as the up axis of 3 files without a stated one; use --up y"
        in done.stderr
    )
    assert done.stdout.splitlines() == [
        "all.npz: moments features of 3 shapes",
        "next: pointdistill search FILE all.npz",
    ]
    again = command(*named, cwd=folder)
    assert again.stdout.startswith("all.npz: moments features of 3 shapes, complete already")
    other = command(*named, "--seed", "1", cwd=folder)
    assert other.returncode == 2
    assert (
        "another seed; have it replaced, or choose another output file (--overwrite, --output, --seed)"
        in other.stderr
    )
    assert np.load(folder / "all.npz")["ids"].tolist() == ["0.obj", "1.obj", "2.obj"]
    found = command("search", "meshes/1.obj", "--count", "2", cwd=folder)
    assert found.returncode == 0, found.stderr
    assert "1.obj is the query itself (1.0000), and not counted" in found.stdout
    assert found.stdout.count("\t") > 5
    (folder / "my encoder").rename(folder / "moved")
    gone = command("search", "meshes/1.obj", cwd=folder)
    assert gone.returncode == 2
    assert "name its new path, or embed again (--encoder)" in gone.stderr
    assert (folder / "meshes__1-neighbours.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Type a command in the folder, in this process; exit code, output, errors."""
    monkeypatch.chdir(folder)
    return typed(capsys)


def test_several_queries_in_one_call(run: Run) -> None:
    code, _, _ = run("embed", "meshes", "--encoder", "my encoder", "-o", "all.npz")
    assert code == 0
    queries = ("meshes/0.obj", "meshes/2.obj")
    code, out, err = run("search", *queries, "all.npz")
    assert code == 0
    assert "similarity: cosine of raw features; the index holds 3 shapes" in err
    assert "note: queries do not state their up axis" in err
    tables = out.split("Nearest to ")[1:]
    assert [table.split()[0] for table in tables] == list(queries)
    assert "0.obj is the query itself (1.0000), and not counted" in tables[0]
    assert "2.obj is the query itself (1.0000), and not counted" in tables[1]
    assert out.endswith("picture: neighbours.png\n")
    with Image.open("neighbours.png") as picture:
        # Two rows of three cells: a query and its two neighbours.
        assert picture.width > 0.8 * picture.height
    # A folder or archive that was embedded here names the index too, and so does an option.
    by_folder = run("search", *queries, "meshes", "--up", "z", "--json")
    by_option = run("search", *queries, "--index", "all.npz", "--up", "z", "--json")
    assert by_folder == by_option
    found = json.loads(by_folder[1])
    assert [q["query"] for q in found["queries"]] == list(queries)
    assert [q["own"]["id"] for q in found["queries"]] == ["0.obj", "2.obj"]
    assert found["queries"][0]["own"]["similarity"] == pytest.approx(1)
    assert [len(q["neighbours"]) for q in found["queries"]] == [2, 2]
    assert found["queries"][0]["neighbours"][0]["similarity"] < 1


def test_queries_of_one_name_are_told_apart(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a picture of its own; in one picture, the rows of those called alike have their folders."""
    run("embed", "meshes", "--encoder", "my encoder", "-o", "all.npz")
    for number in range(2):
        Path(f"{number}").mkdir()
        Path(f"meshes/{number}.obj").rename(f"{number}/chair.obj")
    pictures = [run("search", f"{n}/chair.obj", "all.npz")[1].split()[-1] for n in (0, 1)]
    assert pictures == ["0__chair-neighbours.png", "1__chair-neighbours.png"]
    assert Path(pictures[0]).read_bytes() != Path(pictures[1]).read_bytes()
    whole = str(Path("1/chair.obj").resolve())
    with monkeypatch.context() as inside:
        inside.chdir("0")
        for query, picture in (("../1/chair.obj", "up__1__chair"), (whole, "1__chair")):
            assert f"picture: {picture}-neighbours.png\n" in run("search", query, "../all.npz")[1]
    long = "x" * 240
    shutil.copy(whole, f"{long}.obj")
    picture = run("search", f"{long}.obj", "all.npz")[1].split()[-1]
    assert picture.startswith("x" * 200 + "-")
    assert Path(picture).exists()
    rows: list[SheetRow] = []
    monkeypatch.setattr(
        "pointdistill.engine.embedding.search.search_sheet",
        lambda drawn, **_: rows.extend(drawn) or b"",
    )
    run("search", "0/chair.obj", "1/chair.obj", "meshes/2.obj", "all.npz")
    assert [row.query.name for row in rows] == ["0/chair.obj", "1/chair.obj", "2.obj"]


def test_a_picture_does_not_replace_what_it_was_made_of(run: Run) -> None:
    """A link called like the picture that leads to the query."""
    run("embed", "meshes", "--encoder", "my encoder", "-o", "all.npz")
    before = Path("meshes/0.obj").read_bytes()
    Path("sheet.png").symlink_to("meshes/0.obj")
    code, _, err = run("search", "meshes/0.obj", "all.npz", "--sheet", "sheet.png")
    assert code == 2
    assert "sheet.png is or leads to an input, which would be overwritten" in err
    assert Path("meshes/0.obj").read_bytes() == before


def test_an_error_names_options_that_the_command_has(run: Run) -> None:
    """What cannot be written to is the sheet here; elsewhere it is the output."""
    run("embed", "meshes", "--encoder", "my encoder", "-o", "all.npz")
    Path("sheet.png").mkdir()
    code, _, err = run("search", "meshes/0.obj", "all.npz", "--sheet", "sheet.png")
    assert code == 2
    assert err.strip().endswith("not replaced; choose another output (--sheet)")
    code, _, err = run("embed", "meshes", "--encoder", "my encoder", "-o", "sheet.png")
    assert err.strip().endswith("(--output)")


@pytest.mark.skipif(
    not Path("/proc/self").is_dir(), reason="a folder that even root cannot write to"
)
def test_a_sheet_that_cannot_be_written_is_named_after_the_answers(run: Run) -> None:
    run("embed", "meshes", "--encoder", "my encoder", "-o", "all.npz")
    code, out, err = run("search", "meshes/0.obj", "all.npz", "--sheet", "/proc/found.png")
    assert (code, "Nearest to meshes/0.obj" in out) == (2, True)
    message = "error: /proc/found.png: cannot be written (No such file or directory)"
    assert err.splitlines()[-1] == f"{message}; name another sheet (--sheet)"


def test_a_neighbour_that_cannot_be_read_is_named_and_the_others_are_drawn(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sheet can be written; what cannot be read is the file of a shape, or the disk that it is on."""
    run("embed", "meshes", "--encoder", "my encoder", "-o", "all.npz")
    Path("meshes/2.obj").write_text("v 0 0\n")
    read = search_module.read_shape

    def from_a_bad_disk(location: ShapeLocation, settings: ReadSettings) -> ReadShape:
        if location.name == "1.obj":
            raise OSError(errno.EIO, os.strerror(errno.EIO), "meshes/1.obj")
        return read(location, settings)

    monkeypatch.setattr(search_module, "read_shape", from_a_bad_disk)
    code, _, err = run("search", "meshes/0.obj", "all.npz", "--sheet", "found.png")
    assert code == 0
    said = sorted(line for line in err.splitlines() if line.startswith("note: not drawn: "))
    cause = "meshes/1.obj: cannot be read (Input/output error)"
    assert said[0] == f"note: not drawn: 1.obj: {cause}"
    assert said[1].startswith("note: not drawn: 2.obj: ")
    assert "cannot be written" not in err
    assert Path("found.png").is_file()


def test_an_index_among_the_queries_is_refused_and_a_cloud_of_that_ending_is_not(run: Run) -> None:
    run("embed", "meshes", "--encoder", "my encoder", "-o", "all.npz")
    code, out, err = run("search", "all.npz", "meshes/1.obj")
    assert (code, out) == (2, "")
    assert "all.npz is an index that `embed` wrote, no shape; put it last" in err
    np.savez("cloud.npz", points=np.random.default_rng(0).normal(size=(500, 3)))
    code, out, err = run("search", "cloud.npz", "meshes/1.obj")
    assert code == 0, err
    assert "Nearest to cloud.npz in all.npz\n" in out


def test_a_query_that_cannot_be_read_does_not_keep_the_others(run: Run) -> None:
    run("embed", "meshes", "--encoder", "my encoder", "-o", "all.npz")
    Path("broken.ply").write_text("no mesh")
    code, out, err = run("search", "broken.ply", "meshes/1.obj", "--sheet", "found.png")
    assert code == 2
    assert "1.obj is the query itself (1.0000), and not counted" in out
    assert "error: broken.ply: " in err
    assert Path("found.png").is_file()
    code, out, err = run("search", "broken.ply")
    assert (code, out) == (2, "")
    assert "error: broken.ply: " in err
    # One that is not there is listed too, unless there is no other, or it may be what was to be searched.
    asked = (
        "search",
        "meshes/1.obj",
        "meshes/00.obj",
        "broken.ply",
        "--index",
        "all.npz",
        "--json",
    )
    code, out, err = run(*asked)
    assert code == 2
    absent = "no such file or folder; check its name"
    near = f"{absent}; did you mean 'meshes/0.obj'?"
    assert f"error: meshes/00.obj: {near}\n" in err
    told = json.loads(out)
    assert [query["query"] for query in told["queries"]] == ["meshes/1.obj"]
    assert [query["query"] for query in told["failed"]] == ["broken.ply", "meshes/00.obj"]
    assert told["failed"][1]["reason"] == near
    code, out, err = run("search", "a.obj", "b.obj", "all.npz")
    assert (code, out, err) == (2, "", f"error: a.obj: {absent}\n")
    for index in (("mesh",), ("--index", "mesh")):
        code, out, err = run("search", "meshes/1.obj", *index)
        assert (code, out) == (2, "")
        assert err.startswith("error: mesh: no such file or folder")


def test_exported_statistics_serve_small_embeddings(run: Run) -> None:
    source = open_source("builtin", SourceRequest(shapes=12, procedural=1.0))
    build_corpus(source, Path("shapes"), points=512, workers=0)
    exported = ("export", "encoder", "--encoder", "my encoder")
    code, out, _ = run(*exported, "--corpus", "shapes")
    assert code == 0
    assert "encoder/feature_statistics.safetensors: feature statistics of 12 shapes" in out
    run("embed", "meshes", "--encoder", "encoder", "-o", "all.npz")
    code, out, err = run("search", "meshes/1.obj")
    assert code == 0
    assert "cosine of features whitened over 12 shapes, as measured with the encoder" in err
    assert "1.obj is the query itself (1.0000), and not counted" in out
    # A copy keeps them, and an encoder without them takes them from nobody.
    run("export", "copy", "--encoder", "encoder")
    assert Path("copy/feature_statistics.safetensors").is_file()
    run("export", "copy", "--encoder", "my encoder", "--overwrite")
    assert not Path("copy/feature_statistics.safetensors").exists()
    code, _, err = run(*exported, "--corpus", "shapes", "--format", "onnx")
    assert code == 2
    assert "--corpus shapes belongs to --format safetensors" in err


def test_the_turns_of_an_embedding_are_recorded_and_used_for_the_query(run: Run) -> None:
    run("embed", "meshes", "--encoder", "my encoder", "--turns", "3", "--draws", "2")
    info = json.loads(str(np.load("embedding.npz")["info"]))
    assert (info["turns"], info["draws"]) == (3, 2)
    code, out, _ = run("search", "meshes/1.obj")
    assert (code, "1.obj is the query itself (1.0000), and not counted" in out) == (0, True)
    code, _, err = run("embed", "meshes", "--encoder", "my encoder", "--turns", "4", "--draws", "2")
    assert code == 2
    assert "another number of turns; have it replaced" in err
    code, _, err = run(
        "embed",
        "meshes",
        "--encoder",
        "my encoder",
        "--turns",
        "2",
        "--features",
        "points",
        "-o",
        "p.npz",
    )
    assert code == 2
    assert (
        "error: points features are of one draw, got turns 2; only features of a whole shape" in err
    )
    assert err.endswith("(--turns)\n")


def test_a_compressed_tar_gives_what_its_folder_does(run: Run) -> None:
    with tarfile.open("meshes.tar.gz", "w:gz") as archive:
        for path in sorted(Path("meshes").iterdir(), reverse=True):
            archive.add(path, path.name)
    kept = ("--encoder", "my encoder", "--output")
    assert run("embed", "meshes", *kept, "folder.npz")[0] == 0
    assert run("embed", "meshes.tar.gz", *kept, "tar.npz")[0] == 0
    from_folder, from_tar = np.load("folder.npz"), np.load("tar.npz")
    assert from_folder["ids"].tolist() == from_tar["ids"].tolist()
    assert from_folder["features"].tobytes() == from_tar["features"].tobytes()
    Path("not.tgz").write_bytes(Path("meshes.tar.gz").read_bytes()[:-200])
    code, _, err = run("embed", "not.tgz", *kept, "other.npz")
    assert code == 2
    assert err.count("\n") == 1 + err.count("encoder:")
    assert "not.tgz: a compressed tar that is damaged or ends early" in err


def test_what_files_hold_besides_their_shapes_is_one_line(run: Run) -> None:
    for number in (0, 2):
        with (Path("meshes") / f"{number}.obj").open("a") as file:
            file.write("f 1 2\n")
    code, _, err = run("embed", "meshes", "--encoder", "my encoder", "--up", "z")
    assert code == 0
    assert "left out of 2 files: 2 faces of one or two corners (0.obj, 2.obj)\n" in err


def test_bad_files_end_with_exit_code_two_and_no_traceback(folder: Path) -> None:
    (folder / "meshes" / "broken.ply").write_text("no mesh")
    done = command("embed", "meshes", "--encoder", "my encoder", "--up", "y", cwd=folder)
    assert done.returncode == 2
    assert "error: meshes/broken.ply: " in done.stderr
    assert "1 of 4 shapes was not embedded; embedding.npz lists it\n" in done.stderr
    assert "embedding.npz: moments features of 3 shapes" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_readme_among_meshes_is_left_out_and_listed(run: Run) -> None:
    Path("meshes/readme.txt").write_text(
        "Made in 2024.\nAsk me.\nOf 1 2 3 people.\n" + "Words.\n" * 3
    )
    code, out, err = run("embed", "meshes", "-o", "some.npz", "--device", "cpu")
    assert code == 0
    assert "left out: 1 text file without points (meshes/readme.txt)" in err
    assert "some.npz: moments features of 3 shapes" in out
    code, out, err = run("search", "meshes", "some.npz", "--device", "cpu")
    assert code == 0
    assert err.count("left out: 1 text file without points (meshes/readme.txt)\n") == 1
    assert out.count("Nearest to ") == 3
    # A table that is cut short is no prose, and is still refused.
    Path("meshes/cloud.txt").write_text("0 0 0\n1 1\n")
    code, _, err = run("embed", "meshes", "-o", "more.npz", "--device", "cpu")
    assert code == 2
    assert "error: meshes/cloud.txt: " in err


@pytest.mark.parametrize("name", ["all.zip", "all.tar", "all.tgz"])
def test_text_in_an_archive_is_read_as_in_a_folder(run: Run, name: str) -> None:
    """Rows of points are a shape, words are left out and listed, and what is neither is refused."""
    np.savetxt("meshes/cloud.txt", np.random.default_rng(0).normal(size=(64, 3)))
    Path("meshes/readme.txt").write_text("Made in 2024.\nAsk me.\n" + "Words.\n" * 3)
    pack(Path("meshes"), Path(name))
    code, out, err = run("embed", name, "-o", "packed.npz", "--device", "cpu")
    assert code == 0
    assert f"left out: 1 text file without points ({name}/readme.txt)\n" in err
    assert "packed.npz: moments features of 4 shapes" in out
    _, _, err = run("embed", "meshes", "-o", "plain.npz", "--device", "cpu")
    with np.load("plain.npz") as plain, np.load("packed.npz") as packed:
        assert packed["ids"].tolist() == plain["ids"].tolist()
        np.testing.assert_array_equal(packed["features"], plain["features"])
    Path("meshes/short.txt").write_text("0 0 0\n1 1\n")
    Path("meshes/pointer.txt").write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")
    pack(Path("meshes"), Path(name))
    code, _, err = run("embed", name, "-o", "more.npz", "--device", "cpu")
    assert code == 2
    assert f"error: {name}/short.txt: " in err
    assert "pointer.txt is a Git-LFS pointer in place of the file; run `git lfs pull`" in err


def pack(folder: Path, archive: Path) -> None:
    """Make a zip or tar of the files in a folder."""
    files = sorted(folder.iterdir())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for file in files:
                packed.write(file, file.name)
        return
    with tarfile.open(archive, "w:gz" if archive.suffix == ".tgz" else "w") as tar:
        for file in files:
            tar.add(file, file.name)


def test_what_repairs_a_mesh_is_named_as_it_is_typed(run: Run) -> None:
    """`sample` has the option itself; `embed` and `duplicates` say which command has it."""
    text = trimesh.creation.box().export(file_type="obj")
    Path("meshes/bad.obj").write_text(f"{text}\nv nan 0 0\nf 1 2 9\n")
    other = "correct the file, or have `pointdistill sample FILE --repair --output NEW.ply` leave"
    for command, place in (
        (("embed", "meshes", "--encoder", "my encoder"), "meshes/bad.obj"),
        (("embed", "meshes/bad.obj", "--encoder", "my encoder", "-o", "one.npz"), "meshes/bad.obj"),
        (("duplicates", "meshes"), "meshes/bad.obj"),
    ):
        code, _, err = run(*command)
        assert code == 2
        assert f"error: {place}: " in err
        assert other in err
    code, _, err = run("sample", "meshes", "--output", "points")
    assert code == 2
    assert "error: meshes/bad.obj: " in err
    assert "correct the file, or leave them out with --repair\n" in err
    code, out, _ = run("sample", "meshes/bad.obj", "--repair", "--output", "new.ply")
    assert (code, "dropped" in out) == (0, True)


def test_a_file_that_is_missing_is_said_before_an_option_that_is(run: Run) -> None:
    code, out, err = run("sample", "meshes/00.obj")
    assert (code, out) == (2, "")
    assert err == (
        "error: meshes/00.obj: no such file or folder; check its name; did you mean 'meshes/0.obj'?\n"
    )
    assert "--output" in run("sample", "meshes/0.obj")[2]
    # Beside one that is there, it is one of the files that cannot be used.
    code, out, err = run("sample", "meshes/0.obj", "nope.stl", "--output", "points")
    assert (code, "sampled 1 file" in out, "error: nope.stl: " in err) == (2, True, True)


def test_a_folder_that_grew_is_embedded_again(run: Run) -> None:
    """What differs is said in words, and --overwrite replaces the output; a stranger's file stays."""
    kept = ("--encoder", "my encoder")
    assert run("embed", "meshes", *kept)[0] == 0
    trimesh.creation.box((1, 3, 5)).export("meshes/3.obj")
    before = Path("embedding.npz").read_bytes()
    code, _, err = run("embed", "meshes", *kept)
    assert code == 2
    assert "differs from what was asked for: the folder has 1 new file; have it replaced" in err
    assert err.endswith("(--overwrite, --output)\n")
    save_encoder(random_encoder(seed=1), Path("other"))
    code, _, err = run("embed", "meshes", "--encoder", "other", "--up", "y")
    assert "asked for: another encoder, another up axis, the folder has 1 new file;" in err
    assert err.endswith("(--overwrite, --output, --up)\n")
    assert Path("embedding.npz").read_bytes() == before
    assert run("embed", "meshes", *kept, "--overwrite")[0] == 0
    assert np.load("embedding.npz")["ids"].tolist() == [f"{number}.obj" for number in range(4)]
    assert "complete already" in run("embed", "meshes", *kept, "--overwrite")[1]
    Path("meshes/0.obj").unlink()
    assert "asked for: the folder has 1 file less;" in run("embed", "meshes", *kept)[2]
    assert "asked for: other inputs;" in run("embed", "meshes/1.obj", *kept)[2]
    np.savez("embedding.npz", points=np.zeros((9, 3)))
    before = Path("embedding.npz").read_bytes()
    assert run("embed", "meshes", *kept, "--overwrite")[0] == 2
    assert Path("embedding.npz").read_bytes() == before


def test_an_index_that_is_older_than_its_folder_says_so(run: Run) -> None:
    """By the names of the files; a readme and another index among them are no shapes."""
    kept = ("--encoder", "my encoder", "--up", "z")
    run("embed", "meshes", *kept, "--output", "meshes/all.npz")
    run("embed", "meshes", *kept, "--output", "meshes/first.npz")
    Path("meshes/readme.txt").write_text(
        "Made in 2024.\nAsk me.\nOf 1 2 3 people.\n" + "Words.\n" * 3
    )
    search = ("search", "meshes/1.obj", "meshes/all.npz", "--json")
    code, _, err = run(*search)
    assert (code, "older" in err) == (0, False)
    for number in (7, 8):
        trimesh.creation.box().export(f"meshes/{number}.obj")
        line = f"the index is older than the folder: {number - 6} file"
        assert line in run(*search)[2]
    # Of an index that was carried off, the folder is not here.
    Path("other").mkdir()
    Path("meshes/all.npz").rename("other/all.npz")
    assert "older" not in run("search", "meshes/1.obj", "other/all.npz", "--json")[2]


def test_an_embedding_that_is_gone_is_named_and_so_is_the_newest_other(run: Run) -> None:
    kept = ("--encoder", "my encoder", "--up", "z")
    for name in ("embedding.npz", "two.npz", "one.npz"):
        run("embed", "meshes", *kept, "-o", name)
    Path("one.npz").unlink()
    code, _, err = run("search", "meshes/1.obj")
    assert code == 2
    assert err == (
        "error: one.npz, the last embedding made in this folder, is gone; name two.npz, the newest other one, "
        "or name the file where it is now (--index)\n"
    )
    assert "one.npz, made of meshes, is gone" in run("search", "meshes/1.obj", "meshes")[2]
    Path("two.npz").unlink()
    Path("embedding.npz").unlink()
    assert "is gone; run `pointdistill embed` again or" in run("search", "meshes/1.obj")[2]


def test_a_query_of_the_index_does_not_count(run: Run) -> None:
    """Known by its path, or else by its bytes; a copy beside it is a neighbour like any other."""
    Path("meshes/copy.obj").write_bytes(Path("meshes/1.obj").read_bytes())
    Path("mine.obj").write_bytes(Path("meshes/2.obj").read_bytes())
    trimesh.creation.box((1, 1, 9)).export("other.obj")
    assert run("embed", "meshes", "--encoder", "my encoder", "--up", "z")[0] == 0
    queries = ("meshes/1.obj", "mine.obj", "other.obj")
    code, out, _ = run("search", *queries, "--index", "embedding.npz", "--count", "2", "--json")
    assert code == 0
    first, second, third = json.loads(out)["queries"]
    assert (first["own"]["id"], first["neighbours"][0]["id"]) == ("1.obj", "copy.obj")
    assert (second["own"]["id"], third["own"]) == ("2.obj", None)
    assert [len(query["neighbours"]) for query in (first, second, third)] == [2, 2, 2]
    assert "2.obj" not in [one["id"] for one in second["neighbours"]]
    with zipfile.ZipFile("all.zip", "w") as archive:
        for path in sorted(Path("meshes").glob("?.obj")):
            archive.write(path, path.name)
    zipped = ("embed", "all.zip", "--encoder", "my encoder", "--up", "z", "-o", "zipped.npz")
    assert run(*zipped)[0] == 0
    out = run("search", "mine.obj", "--index", "zipped.npz", "--json")[1]
    assert json.loads(out)["queries"][0]["own"]["id"] == "2.obj"
    out = run("search", "other.obj", "--index", "zipped.npz", "--json")[1]
    assert json.loads(out)["queries"][0]["own"] is None


@pytest.mark.parametrize(
    "row",
    ['"0.{0}","0.{1}","1.0"', "{0}. {1}. 3.", "[0.{0}, 0.{1}, 1]", "0.{0}D+00 0.{1}D+00 1.0D0"],
)
def test_rows_of_numbers_in_any_dress_are_no_prose(tmp_path: Path, row: str) -> None:
    path = tmp_path / "cloud.txt"
    path.write_text("".join(row.format(k % 7, k % 5) + "\n" for k in range(100)))
    assert not is_prose(path)
    path.write_text("These parts were scanned in 2019,\nat 3 places, by 12 people.\n")
    assert is_prose(path)


def test_a_folder_whose_name_is_not_utf8(run: Run) -> None:
    folder = Path(os.fsdecode(b"caf\xe9"))
    try:
        Path("meshes").rename(folder)
    except OSError:
        pytest.skip("this file system has names of Unicode only")
    kept = ("--encoder", "my encoder", "--up", "z")
    assert run("embed", str(folder), *kept, "-o", "odd.npz")[0] == 0
    assert "complete already" in run("embed", str(folder), *kept, "-o", "odd.npz")[1]
    code, out, _ = run("search", str(folder / "0.obj"), str(folder), "--json")
    assert code == 0
    assert json.loads(out)["queries"][0]["own"]["id"] == "0.obj"


def test_neighbours_are_drawn_with_the_up_axis_of_the_embedding(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query with another one is turned by itself alone."""
    run("embed", "meshes", "--encoder", "my encoder", "--up", "z", "-o", "all.npz")
    read: list[tuple[str, str | None]] = []
    original = search_module.read_shape

    def noted(location: ShapeLocation, settings: ReadSettings) -> ReadShape:
        read.append((Path(location.path).name, settings.up))
        return original(location, settings)

    monkeypatch.setattr(search_module, "read_shape", noted)
    assert run("search", "meshes/0.obj", "all.npz", "--up", "y")[0] == 0
    assert read[0][1] == "y"
    assert [up for _, up in read[1:]] == ["z", "z"]


def test_a_complete_embedding_is_the_last_one_again(run: Run) -> None:
    kept = ("--encoder", "my encoder", "--up", "z")
    for output in ("a.npz", "b.npz", "a.npz"):
        assert run("embed", "meshes", *kept, "-o", output)[0] == 0
    assert "in a.npz" in run("search", "meshes/0.obj")[1]
