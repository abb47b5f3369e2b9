"""Sources of meshes in archives with the real ones' layouts: ShapeNetCore, 3D-FUTURE, ABO, Toys4K, GSO."""

from __future__ import annotations

import errno
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.corpus import open_corpus
from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.files.files import sha256_of
from pointdistill.data.sources import SourceRequest, open_source, source_info
from pointdistill.data.sources.mesh_archives import SYNSETS
from pointdistill.errors import DataError
from tests.data.source_archives import (
    AS_IT_IS,
    FROM_Y_UP,
    WEDGE,
    build,
    labels_of,
    ranges,
    refused,
    wedge_glb,
    wedge_obj,
    write_zip,
)

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.fixture
def shapenetcore(tmp_path: Path) -> Path:
    """Two synsets, one that is none of the 55, and all that lies beside a mesh."""
    root = "ShapeNetCore.v2"
    members: dict[str, str | bytes] = {
        f"{root}/taxonomy.json": "[]",
        f"{root}/03001627/a1/models/model_normalized.obj": wedge_obj(),
        f"{root}/03001627/a1/models/model_normalized.json": "{}",
        f"{root}/03001627/a1/models/model_normalized.mtl": "newmtl x",
        f"{root}/03001627/a1/models/model_normalized.surface.binvox": b"#binvox 1",
        f"{root}/03001627/a1/images/texture0.jpg": b"x",
        f"{root}/02691156/b2/models/model_normalized.obj": wedge_obj(2 * WEDGE),
        f"{root}/99999999/c3/models/model_normalized.obj": wedge_obj(),
        f"__MACOSX/{root}/03001627/a1/models/._model_normalized.obj": "x",
    }
    return write_zip(tmp_path / "ShapeNetCore.v2.zip", members)


def test_shapenetcore_is_upright_with_its_55_labels(tmp_path: Path, shapenetcore: Path) -> None:
    corpus = build("shapenetcore", tmp_path / "corpus", path=shapenetcore)
    assert corpus.ids() == ["02691156/b2", "03001627/a1"]
    assert labels_of(corpus) == ["airplane", "chair"]
    assert len(corpus.label_names) == len(set(SYNSETS.values())) == 55
    assert ranges(corpus.points(1)) == FROM_Y_UP
    record = corpus.sources[0]
    assert (record.turned, record.archive) == ("zxy", "ShapeNetCore.v2.zip")
    assert "non-commercial" in record.licence
    assert refused(corpus) == {}


def test_a_folder_that_holds_the_archive_or_what_was_in_it_gives_the_same(
    tmp_path: Path, shapenetcore: Path
) -> None:
    with zipfile.ZipFile(shapenetcore) as archive:
        archive.extractall(tmp_path / "extracted")
    named = build("shapenetcore", tmp_path / "named", path=shapenetcore)
    corpus = build("shapenetcore", tmp_path / "found", path=shapenetcore.parent)
    plain = build("shapenetcore", tmp_path / "plain", path=tmp_path / "extracted")
    assert corpus.content == named.content == plain.content
    assert corpus.sources == named.sources


def test_shapes_that_cannot_be_read_cost_themselves_alone(
    tmp_path: Path, shapenetcore: Path
) -> None:
    with zipfile.ZipFile(shapenetcore, "a") as archive:
        for shape, content in {
            "cut": wedge_obj()[:60],
            "empty": "",
            "no vertices": "g a\ng b\n",
            "pointer": POINTER,
        }.items():
            archive.writestr(f"x/04379243/{shape}/models/model_normalized.obj", content)
    corpus = build("shapenetcore", tmp_path / "corpus", path=shapenetcore)
    causes = refused(corpus)
    assert len(corpus) == 2
    assert set(causes) == {
        f"04379243/{name}" for name in ("cut", "empty", "no vertices", "pointer")
    }
    assert "run `git lfs pull`" in causes["04379243/pointer"]


def test_listing_reads_no_member_and_a_worker_holds_no_list(
    shapenetcore: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source("shapenetcore", SourceRequest(path=shapenetcore))

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a member was opened")

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "open", forbidden)
        entries = source.entries()
    worker = pickle.loads(pickle.dumps(source))
    with pytest.raises(AssertionError, match="a worker only reads and never lists"):
        worker.entries()
    monkeypatch.setattr(zipfile, "ZipFile", forbidden)
    ours = source.read(entries[0], 64, rng=np.random.default_rng(0)).points
    theirs = worker.read(entries[0], 64, rng=np.random.default_rng(0)).points
    assert np.array_equal(ours, theirs)


def test_a_shape_is_the_same_whatever_lies_beside_it(tmp_path: Path, shapenetcore: Path) -> None:
    before = build("shapenetcore", tmp_path / "before", path=shapenetcore)
    with zipfile.ZipFile(shapenetcore, "a") as archive:
        archive.writestr("x/02691156/a0/models/model_normalized.obj", wedge_obj())
    after = build("shapenetcore", tmp_path / "after", path=shapenetcore)
    assert after.ids() == ["02691156/a0", *before.ids()]
    assert np.array_equal(after.points(2), before.points(1))


def test_two_workers_give_what_none_gives(tmp_path: Path, shapenetcore: Path) -> None:
    alone = build("shapenetcore", tmp_path / "alone", path=shapenetcore)
    source = open_source("shapenetcore", SourceRequest(path=shapenetcore))
    report = build_corpus(source, tmp_path / "two", points=256, workers=2)
    assert open_corpus(report.path).content == alone.content


# 3D-FUTURE


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder with the four parts; the table of categories is in the first."""
    table = [
        {"model_id": "a", "super-category": "Chair", "category": "Dining Chair"},
        {"model_id": "b", "super-category": "Others", "category": None},
        {"model_id": "c", "super-category": "Bed", "category": "King-size Bed"},
    ]
    for number, shape in enumerate("abcd", 1):
        root = f"3D-FUTURE-model-part{number}"
        members: dict[str, str | bytes] = {
            f"{root}/{shape}/normalized_model.obj": wedge_obj(),
            f"{root}/{shape}/raw_model.obj": wedge_obj(9 * WEDGE),
            f"{root}/{shape}/texture.png": b"x",
            f"__MACOSX/{root}/{shape}/._normalized_model.obj": "x",
        }
        if number == 1:
            members[f"{root}/model_info.json"] = json.dumps(table)
        write_zip(tmp_path / "parts" / f"{root}.zip", members)
    return tmp_path / "parts"


def test_the_four_parts_of_3d_future_are_one_source(tmp_path: Path, parts: Path) -> None:
    corpus = build("3d-future", tmp_path / "corpus", path=parts)
    assert corpus.ids() == ["a", "b", "c", "d"]
    assert labels_of(corpus) == ["Dining Chair", "Other", "King-size Bed", None]
    assert [ranges(corpus.points(k)) for k in range(4)] == [FROM_Y_UP] * 4
    by_one = build("3d-future", tmp_path / "again", path=parts / "3D-FUTURE-model-part3.zip")
    assert by_one.content == corpus.content


def test_a_missing_part_of_3d_future_is_named(parts: Path) -> None:
    (parts / "3D-FUTURE-model-part2.zip").unlink()
    with pytest.raises(DataError, match=r"3D-FUTURE-model-part2\.zip missing; .*from https://"):
        open_source("3d-future", SourceRequest(path=parts))


@pytest.mark.parametrize(
    ("table", "message"),
    [("{", "model_info.json is damaged"), ('[{"model_id": "a"}]', "is damaged"), (None, "part 1")],
)
def test_a_table_that_is_damaged_or_missing_is_one_line(
    parts: Path, table: str | None, message: str
) -> None:
    first: dict[str, str | bytes] = {"3D-FUTURE-model-part1/a/normalized_model.obj": wedge_obj()}
    if table is not None:
        first["3D-FUTURE-model-part1/model_info.json"] = table
    write_zip(parts / "3D-FUTURE-model-part1.zip", first)
    with pytest.raises(DataError, match=message):
        open_source("3d-future", SourceRequest(path=parts))


# ABO


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize(("ending", "workers"), [(".tar", 0), (".tgz", 0), (".tar.gz", 2)])
def test_abo_is_read_out_of_its_tar_upright(ending: str, workers: int, tmp_path: Path) -> None:
    members = {
        "3dmodels/original/0/B07B4MJZN0.glb": wedge_glb(),
        "3dmodels/original/H/B07B4MKHGH.glb": wedge_glb()[:-40],
        "3dmodels/simplified/0/B07B4MJZN0.glb": wedge_glb(),
        "3dmodels/metadata/3dmodels.csv.gz": b"x",
        "3dmodels/original/H/._B07B4MKHGH.glb": b"x",
        "3dmodels/README.md": b"x",
    }
    path = write_tar(tmp_path / f"abo-3dmodels{ending}", members)
    source = open_source("abo", SourceRequest(path=path))
    corpus = open_corpus(
        build_corpus(source, tmp_path / "corpus", points=256, workers=workers).path
    )
    assert corpus.sources[0].archive_sha256 == sha256_of(path)
    assert corpus.ids() == ["B07B4MJZN0"]
    assert set(refused(corpus)) == {"B07B4MKHGH"}
    assert ranges(corpus.points(0)) == FROM_Y_UP
    assert corpus.sources[0].licence == "CC BY-NC 4.0"


def test_a_tar_whose_names_lead_out_writes_nothing_outside(tmp_path: Path) -> None:
    members = {
        "3dmodels/original/0/A.glb": wedge_glb(),
        "../../original/0/B.glb": wedge_glb(),
        "/original/0/C.glb": wedge_glb(),
    }
    corpus = build("abo", tmp_path / "corpus", path=write_tar(tmp_path / "abo.tar", members))
    assert corpus.ids() == ["A"]
    assert set(refused(corpus)) == {"../../original/0/B.glb", "/original/0/C.glb"}


# Toys4K


def test_toys4k_is_labelled_by_its_classes(tmp_path: Path) -> None:
    members: dict[str, str | bytes] = {
        "toys4k_obj_files/dog/dog_000/mesh.obj": wedge_obj(),
        "toys4k_obj_files/dog/dog_000/mesh.mtl": "x",
        "toys4k_obj_files/car/car_001/mesh.obj": wedge_obj(),
        "toys4k_obj_files/car/car_001/wheel.obj": wedge_obj(),
        "__MACOSX/toys4k_obj_files/car/car_001/._mesh.obj": "x",
    }
    path = write_zip(tmp_path / "toys4k_obj_files.zip", members)
    corpus = build("toys4k", tmp_path / "corpus", path=path)
    assert corpus.ids() == ["car/car_001/mesh", "car/car_001/wheel", "dog/dog_000/mesh"]
    assert labels_of(corpus) == ["car", "car", "dog"]
    assert ranges(corpus.points(2)) == FROM_Y_UP


# Google Scanned Objects


@pytest.fixture
def scanned(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    members: dict[str, str | bytes] = {
        "meshes/model.obj": wedge_obj(),
        "meshes/model.mtl": "x",
        "materials/textures/texture.png": b"x",
        "model.sdf": "<sdf/>",
    }
    write_zip(folder / "Cole_Hardware_Mug.zip", members)
    write_zip(folder / "No_Mesh.zip", {"model.sdf": "<sdf/>"})
    whole = write_zip(folder / "Cut.zip", members).read_bytes()
    (folder / "Cut.zip").write_bytes(whole[: len(whole) // 2])
    (folder / "Pointer.zip").write_text(POINTER)
    (folder / "._Cole_Hardware_Mug.zip").write_text("x")
    (folder / "readme.txt").write_text("x")
    return folder


def test_google_scanned_objects_are_taken_as_they_are(tmp_path: Path, scanned: Path) -> None:
    corpus = build("google-scanned-objects", tmp_path / "corpus", path=scanned)
    assert corpus.ids() == ["Cole_Hardware_Mug"]
    assert ranges(corpus.points(0)) == AS_IT_IS
    assert corpus.sources[0].turned == "none"
    causes = refused(corpus)
    assert set(causes) == {"Cut", "No_Mesh", "Pointer"}
    assert "ends early" in causes["Cut"]
    assert "meshes/model.obj" in causes["No_Mesh"]
    assert "git lfs pull" in causes["Pointer"]


def test_a_zip_that_vanishes_stops_the_build_and_is_not_refused(scanned: Path) -> None:
    source = open_source("google-scanned-objects", SourceRequest(path=scanned))
    entry = source.entries()[0]
    (scanned / entry.where).unlink()
    with pytest.raises(OSError, match="was there when it was listed and is gone") as caught:
        source.read(entry, 64, rng=np.random.default_rng(0))
    assert caught.value.errno == errno.ESTALE


def test_google_scanned_objects_are_a_folder_and_no_single_zip(
    tmp_path: Path, scanned: Path
) -> None:
    for path in (scanned / "Cole_Hardware_Mug.zip", tmp_path):
        with pytest.raises(DataError, match=r"is no folder of <name>\.zip"):
            open_source("google-scanned-objects", SourceRequest(path=path))
    scanned.rename(tmp_path / "google-scanned-objects")
    source = open_source("google-scanned-objects", SourceRequest(path=tmp_path))
    assert len(source.entries()) == 4


@pytest.mark.parametrize(
    "name", ["shapenetcore", "3d-future", "abo", "toys4k", "s3dis", "modelnet40"]
)
def test_an_archive_of_something_else_says_what_was_expected(name: str, tmp_path: Path) -> None:
    members: dict[str, str | bytes] = {"model_info.json": "[]", "photo.jpg": b"x"}
    files = source_info(name).files
    for file in files:
        write_zip(tmp_path / Path(file).with_suffix(".zip"), members)
    with pytest.raises(DataError, match=r"holds no .*<.*get .* from https?://"):
        open_source(name, SourceRequest(path=tmp_path / Path(files[0]).with_suffix(".zip")))
