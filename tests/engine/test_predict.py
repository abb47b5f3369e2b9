"""Models on files: any batch, any format, axes, parts written and read back, bad files beside good ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from pointdistill import load_classifier, load_segmenter
from pointdistill.data.meshes import PointSet, read_mesh
from pointdistill.engine.finetuning import predict as module
from pointdistill.engine.finetuning.predict import (
    SegmentedFile,
    classify_files,
    plan_parts,
    segment_files,
    write_parts,
)
from pointdistill.errors import ConfigError, DataError
from pointdistill.reporter import Reporter
from tests.engine.test_models import PART_NAMES, classifier_folder, segmenter_folder


def cone(path: Path, *, up: str = "z") -> Path:
    """A cone, its tip up: told from itself lying down."""
    mesh = trimesh.creation.cone(0.5, 2.0)
    if up == "y":  # old z becomes y: the inverse of new (x, y, z) = old (z, x, y)
        mesh.vertices = mesh.vertices[:, [1, 2, 0]]
    path.parent.mkdir(parents=True, exist_ok=True)
    mesh.export(path)
    return path


class Counter(Reporter):
    """Remembers all progress."""

    def __init__(self) -> None:
        self.counted: list[tuple[str, float, float | None]] = []

    def progress(
        self, task: str, done: float, total: float | None = None, *, note: str = "", unit: str = ""
    ) -> None:
        self.counted.append((task, done, total))


def test_every_file_is_named_whatever_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = load_classifier(classifier_folder(tmp_path / "model"))
    files = [cone(tmp_path / f"{number}.obj") for number in range(5)]
    np.save(tmp_path / "cloud.npy", np.random.default_rng(0).normal(size=(40, 3)))
    files += [tmp_path / "cloud.npy", files[0]]
    reporter = Counter()
    together, failed = classify_files(classifier, files, reporter=reporter)
    assert not failed
    assert [file.source for file in together] == files[:-1]  # the one given twice is read once
    assert reporter.counted == [("classifying", done, 6) for done in range(1, 7)]
    monkeypatch.setattr(module, "BATCH", 2)
    in_pairs, _ = classify_files(classifier, files)
    for one, other in zip(together, in_pairs, strict=True):
        assert dict(one.probabilities) == pytest.approx(dict(other.probabilities), abs=1e-6)
        assert sum(dict(one.probabilities).values()) == pytest.approx(1.0)
        assert one.probabilities[0][1] == max(value for _, value in one.probabilities)


def test_bad_files_are_listed_and_good_ones_done(tmp_path: Path) -> None:
    (tmp_path / "bad.obj").write_text("nothing")
    files = [tmp_path / "bad.obj", cone(tmp_path / "good.obj"), tmp_path / "missing.ply"]
    classifier = load_classifier(classifier_folder(tmp_path / "c"))
    segmenter = load_segmenter(segmenter_folder(tmp_path / "s"))
    for done, failed in (
        classify_files(classifier, files),
        segment_files(segmenter, files, category="stick"),
    ):
        assert [file.source.name for file in done] == ["good.obj"]
        assert [failure.source.name for failure in failed] == ["bad.obj", "missing.ply"]
        assert "bad.obj: an OBJ file with 0 vertices" in failed[0].reason


def test_axes_are_those_of_the_file_the_option_or_the_training(tmp_path: Path) -> None:
    """The same cone lying, standing, and standing again once its axis is told."""
    classifier = load_classifier(classifier_folder(tmp_path / "model"))
    upright, lying = cone(tmp_path / "z" / "cone.ply"), cone(tmp_path / "y" / "cone.ply", up="y")
    declared = cone(tmp_path / "glb" / "cone.glb", up="y")  # glTF is y-up by its standard

    def said(path: Path, up: str | None = None) -> dict[str, float]:
        ((file,), _) = classify_files(classifier, [path], up=up)
        assert file.assumed_up == (path.suffix != ".glb")
        return dict(file.probabilities)

    assert said(lying, "y") == pytest.approx(said(upright), abs=1e-5)
    assert said(lying) != pytest.approx(said(upright), abs=1e-3)
    # Other triangles in another order, so other points of the same cone; and --up does not turn it again.
    assert said(declared) == said(declared, "x")
    with pytest.raises(ConfigError, match="up must be one of"):
        classify_files(classifier, [upright], up="w")


def test_parts_of_a_cloud_are_at_its_own_points(tmp_path: Path) -> None:
    segmenter = load_segmenter(segmenter_folder(tmp_path / "model"))
    points = np.random.default_rng(0).normal(size=(70, 3)).astype(np.float32)
    np.save(tmp_path / "cloud.npy", points)
    ((file,), _) = segment_files(segmenter, [tmp_path / "cloud.npy"], category="chair")
    assert np.array_equal(file.points, points)
    expected = segmenter(torch.from_numpy(points)[None], "chair").parts[0]
    assert file.parts.tolist() == expected.tolist()
    assert sum(file.shares(PART_NAMES).values()) == pytest.approx(1.0)
    assert set(file.shares(PART_NAMES)) <= {"back", "seat", "leg"}


def test_a_mesh_keeps_its_frame_and_is_turned_for_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART_POINTS", 200)
    segmenter = load_segmenter(segmenter_folder(tmp_path / "model"))
    lying = cone(tmp_path / "y" / "cone.ply", up="y")
    upright = cone(tmp_path / "z" / "cone.ply")
    ((turned,), _) = segment_files(segmenter, [lying], category="chair", up="y")
    ((straight,), _) = segment_files(segmenter, [upright], category="chair")
    assert turned.points.shape == (200, 3)
    np.testing.assert_allclose(turned.points[:, [2, 0, 1]], straight.points, atol=1e-6)
    assert np.mean(turned.parts == straight.parts) > 0.99


def segmented(path: Path) -> SegmentedFile:
    points = np.arange(120, dtype=np.float32).reshape(40, 3)
    return SegmentedFile(path, points, np.repeat([0, 4], 20), assumed_up=True)


def test_parts_are_written_as_ply_that_reads_back(tmp_path: Path) -> None:
    files = [segmented(tmp_path / "one.obj"), segmented(tmp_path / "sub" / "two.obj")]
    destination = plan_parts([file.source for file in files], tmp_path / "out")
    write_parts(files, PART_NAMES, destination)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.ply", "two.ply"]
    read = read_mesh(tmp_path / "out" / "two.ply")
    assert isinstance(read, PointSet)
    assert np.array_equal(read.points, files[1].points)
    content = (tmp_path / "out" / "one.ply").read_bytes()
    header, _, body = content.partition(b"end_header\n")
    assert b"comment part 4: leg" in header
    row = [("x", "<f4", 3), ("colour", "u1", 3), ("part", "<u2")]
    rows = np.frombuffer(body, dtype=row)
    assert rows["part"].tolist() == [0] * 20 + [4] * 20
    assert len(np.unique(rows["colour"], axis=0)) == 2


def test_parts_of_points_in_float64_are_written_without_loss(tmp_path: Path) -> None:
    """As those of a georeferenced scan are, where float32 has steps of half a metre."""
    points = np.arange(120).reshape(40, 3) / 1024 + 5_412_345
    file = SegmentedFile(tmp_path / "one.obj", points, np.repeat([0, 4], 20), assumed_up=True)
    write_parts([file], PART_NAMES, plan_parts([file.source], tmp_path / "out"))
    read = read_mesh(tmp_path / "out" / "one.ply")
    assert isinstance(read, PointSet)
    assert np.array_equal(read.points, points)


def test_parts_are_written_as_one_archive(tmp_path: Path) -> None:
    files = [segmented(tmp_path / "one.obj"), segmented(tmp_path / "two.obj")]
    destination = plan_parts([file.source for file in files], tmp_path / "all.npz")
    write_parts(files, PART_NAMES, destination)
    with np.load(tmp_path / "all.npz") as found:
        assert set(found) == {"one.points", "one.parts", "two.points", "two.parts", "part_names"}
        assert np.array_equal(found["two.parts"], files[1].parts)
        assert found["part_names"].tolist() == list(PART_NAMES)


@pytest.mark.parametrize(
    ("output", "files", "message"),
    [
        ("out.obj", 1, "written as .ply or .npz, not .obj"),
        ("out.npy", 1, "written as .ply or .npz, not .npy"),
        ("out.ply", 2, "2 inputs do not fit one .ply file"),
        ("file0.ply", 1, "is an input and would be overwritten"),
    ],
)
def test_outputs_that_do_not_fit_are_named(
    output: str, files: int, message: str, tmp_path: Path
) -> None:
    paths = [cone(tmp_path / f"file{number}.ply") for number in range(files)]
    with pytest.raises(ConfigError, match=message):
        plan_parts(paths, tmp_path / output)


def test_nothing_and_no_category_are_refused(tmp_path: Path) -> None:
    segmenter = load_segmenter(segmenter_folder(tmp_path / "model"))
    with pytest.raises(ConfigError, match="no files were named"):
        segment_files(segmenter, [], category="chair")
    with pytest.raises(ConfigError, match=r"needs the files' category; .* stick, chair"):
        segment_files(segmenter, ["x.obj"])
    with pytest.raises(DataError, match="no category 'sofa'"):
        segment_files(segmenter, ["x.obj"], category="sofa")
