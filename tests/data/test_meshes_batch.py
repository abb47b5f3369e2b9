"""Many files: each with its own randomness, bad files listed, complete outputs where they were requested."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pointdistill.data.meshes import PointSet, read_mesh, sample_files, sample_surface
from pointdistill.data.meshes.records import LeftOut
from pointdistill.errors import ConfigError, DataError
from tests.cli.typed import typed

FIXTURES = Path(__file__).parent / "meshes"
GOOD = [FIXTURES / name for name in ("nested.glb", "blue_cube.dae", "cake.gltf", "multibody.stl")]


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "zero.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    return path


def test_a_mixed_batch_does_the_good_and_lists_the_bad(bad: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    gone = tmp_path / "gone.ply"
    report = sample_files(
        [GOOD[0], bad, GOOD[1], gone], points=64, seed=0, output=tmp_path / "out",
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert [file.source for file in report.sampled] == GOOD[:2]
    assert [file.output.name for file in report.sampled] == ["nested.npy", "blue_cube.npy"]
    assert [file.declared_up for file in report.sampled] == ["y", "z"]
    assert [file.source for file in report.failed] == [bad, gone]
    assert "1 of 1 triangles are degenerate" in report.failed[0].reason
    assert "No such file" in report.failed[1].reason
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "blue_cube.npy",
        "nested.npy",
    ]


def test_a_folder_stands_for_every_shape_below_it(tmp_path: Path) -> None:
    """Two of one stem get longer names; hidden files, other files and the output itself are left out."""
    for name in ("a.off", "deep/a.off", "deep/b.xyz", ".hidden.off", "notes.md"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = "\n".join(f"{k % 5} {k % 7} {k % 11}" for k in range(40))
        faces = "OFF\n4 2 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n"
        path.write_text(rows if path.suffix == ".xyz" else faces)
    folder = tmp_path / "in"
    for again in (False, True):  # the second time, the first output lies in the folder
        report = sample_files([folder], points=32, seed=0, output=folder / "out", overwrite=again)
        assert [file.source for file in report.sampled] == [
            folder / "a.off",
            folder / "deep" / "a.off",
            folder / "deep" / "b.xyz",
        ]
    assert report.failed == ()
    names = [file.output.name for file in report.sampled]
    assert names == ["in__a.off.npy", "deep__a.off.npy", "b.npy"]
    alone = sample_surface(folder / "deep" / "b.xyz", 32, seed=0)
    assert (np.load(report.sampled[2].output) == alone).all()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no mesh or point cloud; files that end in obj"):
        sample_files([tmp_path / "empty"], points=32, seed=0, output=tmp_path / "out")


def test_points_depend_on_seed_and_name_alone(tmp_path: Path) -> None:
    """Other files, their order, the folder and the way of writing change nothing."""
    sample_files(GOOD, points=64, seed=3, output=tmp_path / "a")
    sample_files([*GOOD[::-1], FIXTURES / "monkey.glb"], points=64, seed=3, output=tmp_path / "b")
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in GOOD:
        alone = np.load(tmp_path / "a" / f"{path.stem}.npy")
        assert alone.dtype == np.float32
        assert (alone == np.load(tmp_path / "b" / f"{path.stem}.npy")).all()
        assert (alone == sample_surface(shutil.copy(path, moved), 64, seed=3)).all()


def test_two_files_do_not_share_their_randomness(tmp_path: Path) -> None:
    for name in ("a.glb", "b.glb"):
        shutil.copy(FIXTURES / "nested.glb", tmp_path / name)
    one, other = (sample_surface(tmp_path / name, 64, seed=0) for name in ("a.glb", "b.glb"))
    assert not (one == other).all(axis=1).any()


def test_an_archive_holds_every_input_and_has_the_same_bytes_again(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        report = sample_files(GOOD, points=64, seed=3, output=tmp_path / name)
        assert {file.output for file in report.sampled} == {tmp_path / name}
    with np.load(tmp_path / "a.npz") as archive:
        assert sorted(archive) == ["blue_cube", "cake", "multibody", "nested"]
        assert (archive["cake"] == sample_surface(FIXTURES / "cake.gltf", 64, seed=3)).all()
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_an_archive_of_nothing_is_not_written(bad: Path, tmp_path: Path) -> None:
    report = sample_files([bad], points=64, seed=0, output=tmp_path / "a.npz")
    assert len(report.failed) == 1
    assert not (tmp_path / "a.npz").exists()


@pytest.mark.parametrize("suffix", ["npy", "ply", "xyz", "pcd"])
def test_every_form_reads_back_as_the_same_points(suffix: str, tmp_path: Path) -> None:
    expected = sample_surface(GOOD[0], 64, seed=1)
    sample_files([GOOD[0]], points=64, seed=1, output=tmp_path / f"one.{suffix}")
    sample_files(GOOD[:2], points=64, seed=1, output=tmp_path / "all", cloud_format=suffix)
    for path in (tmp_path / f"one.{suffix}", tmp_path / "all" / f"nested.{suffix}"):
        cloud = read_mesh(path)
        assert isinstance(cloud, PointSet)
        assert (cloud.points.astype(np.float32) == expected).all()


def test_inputs_of_one_name_get_longer_names(tmp_path: Path) -> None:
    names = ["a/Chair.glb", "b/chair.glb", "a/chair.stl", "a/table.glb"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(
            FIXTURES / ("multibody.stl" if name.endswith("stl") else "nested.glb"), tmp_path / name
        )
    report = sample_files(
        [tmp_path / name for name in names], points=32, seed=0, output=tmp_path / "out"
    )
    written = [file.output.name for file in report.sampled]
    assert written == ["a__Chair.glb.npy", "b__chair.glb.npy", "chair.stl.npy", "table.npy"]


def test_a_file_that_is_given_twice_is_sampled_once(tmp_path: Path) -> None:
    (tmp_path / "link.glb").symlink_to(GOOD[0])
    paths = [GOOD[0], tmp_path / "link.glb", GOOD[0].parent / "." / GOOD[0].name]
    report = sample_files(paths, points=32, seed=0, output=tmp_path / "out")
    assert [file.source for file in report.sampled] == [GOOD[0]]


def test_repair_is_counted(tmp_path: Path) -> None:
    report = sample_files(
        [FIXTURES / "notenoughindices.obj"], points=32, seed=0, output=tmp_path / "out", repair=True
    )
    assert [file.dropped for file in report.sampled] == [1]


@pytest.mark.parametrize(
    ("output", "more", "message"),
    [
        ("a.ply", {}, "2 inputs do not fit one .ply file; name a folder or a .npz archive"),
        ("a.obj", {}, "points are not written as .obj"),
        ("file", {}, "is a file; name a folder"),
        ("folder.npz", {}, "is a folder; name a file"),
        ("out", {"cloud_format": "obj"}, "the format must be one of npy, ply, xyz, pcd, got 'obj'"),
        ("a.npz", {"cloud_format": "ply"}, "format ply contradicts the output"),
        ("out", {"points": 0}, "at least 1, got 0"),
        ("out", {"up": "north"}, "up must be one of"),
    ],
)
def test_an_output_that_does_not_fit_is_refused_before_work(
    output: str, more: dict[str, object], message: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ConfigError, match=message):
        sample_files(GOOD[:2], **{"points": 32, "seed": 0, "output": tmp_path / output, **more})  # type: ignore[arg-type]


def test_no_input_and_an_input_in_the_place_of_its_output_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file to sample"):
        sample_files([], points=32, seed=0, output=tmp_path / "out")
    cloud = tmp_path / "cloud.ply"
    shutil.copy(FIXTURES / "points_emptyface.ply", cloud)
    with pytest.raises(ConfigError, match="is an input and would be overwritten"):
        sample_files([cloud], points=32, seed=0, output=tmp_path, cloud_format="ply")


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        sample_files(GOOD[:1], points=32, seed=0, output=tmp_path / "file" / "out")


def test_an_interrupted_batch_leaves_whole_files_alone(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    for output in ("out", "a.npz"):
        with pytest.raises(KeyboardInterrupt):
            sample_files(GOOD, points=32, seed=0, output=tmp_path / output, progress=stop)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "blue_cube.npy",
        "nested.npy",
        "out",
    ]


def run_sample(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `pointdistill sample`."""
    from pointdistill.cli import app

    result = CliRunner().invoke(app, ["sample", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_exits_2_and_lists_what_was_bad(bad: Path, tmp_path: Path) -> None:
    code, out, err = run_sample(
        GOOD[0], bad, "--points", 64, "--seed", 5, "--output", tmp_path / "out"
    )
    assert code == 2
    assert "sampled 1 file, 64 points each" in out
    lines = err.strip().splitlines()
    assert [line for line in lines if str(bad) in line] == [lines[0]]
    assert lines[-1] == "1 of 2 files was not sampled"
    assert (np.load(tmp_path / "out/nested.npy") == sample_surface(GOOD[0], 64, seed=5)).all()


def test_the_command_exits_0_and_says_what_repair_dropped(tmp_path: Path) -> None:
    path = FIXTURES / "notenoughindices.obj"
    code, out, err = run_sample(
        path, "--points", 64, "--repair", "--output", tmp_path / "a.ply", "--up", "y"
    )
    assert (code, err) == (0, "")
    assert f"{path}: dropped 1 faces" in out
    cloud = read_mesh(tmp_path / "a.ply")
    assert isinstance(cloud, PointSet)
    # The triangle stands on edge in the plane z = 500, with x and y up to 1000 and 500: zxy.
    assert np.ptp(cloud.points, axis=0) == pytest.approx((0, 1000, 500), rel=0.3)


@pytest.mark.parametrize("output", ["out", "out.npz"])
def test_the_command_replaces_output_only_if_it_is_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    """Refused before anything is read or written, also if only some of the files are there."""
    place = tmp_path / output
    files = [str(path) for path in GOOD]
    sample = typed(capsys, "sample", "--points", "64", "--output", str(place))
    assert sample(*files[:2])[0] == 0
    written = sorted(place.iterdir()) if place.is_dir() else [place]
    before = {path: path.read_bytes() for path in written}
    code, out, err = sample(*files, "--seed", "1")
    assert (code, out) == (2, "")
    whose = f"{place / GOOD[0].stem}.npy and 1 more exist" if output == "out" else f"{place} exists"
    advice = "have what is there replaced, or name another output (--overwrite, --output)"
    assert err.strip() == f"error: {whose}; {advice}"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.np?")} == before
    code, out, _ = sample(*files, "--seed", "1", "--overwrite")
    assert (code, f"sampled {len(files)} files" in out) == (0, True)
    assert all(path.read_bytes() != content for path, content in before.items())


def test_what_was_left_out_of_many_files_is_one_line() -> None:
    """Counts add up by kind, the first three names stay, and files with nothing left out do not count."""
    one = LeftOut({"modifiers": 2}, 1, ("a.3mf",))
    two = LeftOut({"modifiers": 1, "support objects": 1200}, 1, ("b.3mf",))
    many = sum([one, LeftOut(), two, one, one], start=LeftOut())
    assert (
        many.line()
        == "left out of 4 files: 7 modifiers, 1,200 support objects (a.3mf, b.3mf, a.3mf and 1 more)"
    )
    assert one.line() == "left out of 1 file: 2 modifiers (a.3mf)"
    assert LeftOut().line() == ""
