"""Files, folders, archives and corpora as one list: ids, order, and points that depend on the shape alone."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import trimesh

from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.meshes import sample_surface
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.data.sources.paths import (
    ReadSettings,
    ReadShape,
    ShapeList,
    list_shapes,
    read_shape,
)
from pointdistill.errors import DataError

SETTINGS = ReadSettings(points=100, seed=3)


def box(path: Path, *, height: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    trimesh.creation.box((1, 2, height)).export(path)
    return path


def read_all(shapes: ShapeList, settings: ReadSettings = SETTINGS) -> dict[str, ReadShape]:
    found = {}
    for index in range(len(shapes)):
        number, place = shapes[index]
        shape = read_shape(place, settings)
        found[shapes.shape_id(number, shape.name)] = shape
    return found


def points_of(shape: ReadShape) -> np.ndarray:
    assert shape.points is not None, shape.reason
    return shape.points


def test_a_folder_is_sorted_and_leaves_out_what_is_hidden_and_the_output(tmp_path: Path) -> None:
    for name in ("b/2.obj", "a.obj", ".cache/3.obj", "b/.work/4.obj", "__MACOSX/5.obj"):
        box(tmp_path / name)
    (tmp_path / "notes.md").write_text("no shape")
    (tmp_path / "out.npz").write_bytes(b"an output of this program")
    shapes = list_shapes([tmp_path], leave_out=tmp_path / "b" / ".." / "out.npz")
    assert list(read_all(shapes)) == ["a.obj", "b/2.obj"]


def test_several_sources_put_their_names_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one/a.obj", "two/a.obj", "c.obj"):
        box(Path(name))
    shapes = read_all(list_shapes([Path("one"), Path("two"), Path("c.obj"), Path("one/../one")]))
    assert list(shapes) == ["one/a.obj", "two/a.obj", "c.obj"]


def test_points_are_those_of_sample_whatever_holds_the_file(tmp_path: Path) -> None:
    file = box(tmp_path / "in" / "deep" / "box.obj")
    with zipfile.ZipFile(tmp_path / "boxes.zip", "w") as archive:
        archive.write(file, "elsewhere/box.obj")
    expected = sample_surface(file, 100, 3, up="y")
    settings = ReadSettings(points=100, seed=3, up="y")
    for path in (file, tmp_path / "in", tmp_path / "boxes.zip"):
        (shape,) = read_all(list_shapes([path]), settings).values()
        np.testing.assert_array_equal(points_of(shape), expected)
        assert shape.assumed_up


def test_a_cloud_gives_what_it_has_and_too_few_are_refused(tmp_path: Path) -> None:
    cloud = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    np.save(tmp_path / "all.npy", cloud)
    (shape,) = read_all(list_shapes([tmp_path])).values()
    np.testing.assert_array_equal(points_of(shape), cloud)
    few = ReadSettings(points=100, seed=3, minimum=41)
    (shape,) = read_all(list_shapes([tmp_path]), few).values()
    assert shape.points is None
    assert shape.reason == "40 points, 41 are needed; use a denser scan"


def test_a_corpus_row_depends_on_seed_and_id_alone(tmp_path: Path) -> None:
    for count in (4, 6):
        source = open_source("builtin", SourceRequest(shapes=count, categories=["bed", "mug"]))
        build_corpus(source, tmp_path / str(count), points=300, workers=0)
    few, more = (read_all(list_shapes([tmp_path / str(count)])) for count in (4, 6))
    assert few.keys() < more.keys()
    for name, shape in few.items():
        assert len(points_of(shape)) == 100
        np.testing.assert_array_equal(points_of(shape), points_of(more[name]))


def test_a_gltf_in_a_zip_finds_its_own_buffers_and_no_others(tmp_path: Path) -> None:
    files = trimesh.exchange.gltf.export_gltf(trimesh.Scene(trimesh.creation.box((1, 2, 3))))
    buffers = [name for name in files if name.endswith(".bin")]
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"folder/{name}", content)
    (shape,) = read_all(list_shapes([tmp_path / "good.zip"])).values()
    assert np.ptp(points_of(shape), axis=0).max() == pytest.approx(3, abs=0.2)
    assert not shape.assumed_up

    outside = tmp_path / "secret.bin"
    outside.write_bytes(b"\0" * 10_000)
    document = json.loads(files["model.gltf"])
    document["buffers"][0]["uri"] = f"../../../..{outside}"
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("model.gltf", json.dumps(document))
        archive.writestr("secret.bin", files[buffers[0]])
    (shape,) = read_all(list_shapes([tmp_path / "bad.zip"])).values()
    assert "is not a file in its folder" in shape.reason


@pytest.mark.parametrize(
    "names",
    [["a", "a/b"], ["n" * 300], ["member.gltf/a"]],
    ids=["file and folder", "too long", "under the document itself"],
)
def test_a_gltf_whose_buffers_cannot_be_files_is_refused_alone(
    tmp_path: Path, names: list[str]
) -> None:
    document = {
        "asset": {"version": "2.0"},
        "buffers": [{"uri": n, "byteLength": 1} for n in names],
    }
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive:
        archive.writestr("bad.gltf", json.dumps(document))
        archive.write(box(tmp_path / "good.obj"), "good.obj")
        for name in names:
            archive.writestr(name, b"x")
    bad, good = read_all(list_shapes([tmp_path / "odd.zip"])).values()
    assert bad.points is None
    assert "cannot be unpacked" in bad.reason
    assert len(points_of(good)) == 100


def test_what_held_many_shapes_and_is_gone_is_no_reason_of_one(tmp_path: Path) -> None:
    box(tmp_path / "in" / "box.obj")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.write(tmp_path / "in" / "box.obj", "box.obj")
    places = [list_shapes([tmp_path / name])[0][1] for name in ("in", "in.zip")]
    for place in places:
        assert read_shape(place, SETTINGS).points is not None
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.write(tmp_path / "in" / "box.obj", "another.obj")
    with pytest.raises(DataError, match=r"in.zip: lost box.obj meanwhile; put the archive back"):
        read_shape(places[1], SETTINGS)
    (tmp_path / "in.zip").unlink()
    (tmp_path / "in").rename(tmp_path / "elsewhere")
    for place in places:
        with pytest.raises(DataError, match="is gone; put it back and go on"):
            read_shape(place, SETTINGS)


def test_what_cannot_be_read_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.obj").write_text("v 0 0 0\nv 1 0 0\nl 1 2\n")
    content = io.BytesIO()
    np.save(content, np.array([{}], object), allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(content.getvalue())
    (tmp_path / "a.docx").write_text("no shape")
    named = [tmp_path / name for name in ("broken.obj", "absent.obj", "pickle.npy", "a.docx")]
    reasons = [shape.reason for shape in read_all(list_shapes(named)).values()]
    assert "2 vertices and no faces" in reasons[0]
    assert "No such file" in reasons[1]
    assert "pickled objects, which are never opened" in reasons[2]
    assert "are not read" in reasons[3]
    assert not any("\n" in reason for reason in reasons)


def test_nothing_to_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing was named"):
        list_shapes([])
    with pytest.raises(DataError, match="holds no mesh or point cloud"):
        list_shapes([tmp_path])
    with pytest.raises(DataError, match="no such file or folder"):
        list_shapes([tmp_path / "absent.zip"])
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../evil.obj", "v 0 0 0")
    with pytest.raises(DataError, match="leads out of the archive"):
        list_shapes([tmp_path / "evil.zip"])


def test_the_stamp_changes_with_the_files(tmp_path: Path) -> None:
    box(tmp_path / "a.obj")
    before = list_shapes([tmp_path]).stamp()
    assert list_shapes([tmp_path]).stamp() == before
    box(tmp_path / "a.obj", height=12.5)
    assert list_shapes([tmp_path]).stamp() != before
