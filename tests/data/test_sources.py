"""The sources: what they list, which way is up, what they record, what they refuse."""

from __future__ import annotations

import importlib
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import trimesh

from pointdistill.data.benchmarks.scanobjectnn import CLASSES
from pointdistill.data.corpus import verify_corpus
from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.sources import SOURCES, SourceRequest, open_source, source_info
from pointdistill.data.synthetic_shapes import CATEGORIES, PART_NAMES
from pointdistill.engine.weights.licences import Terms, terms_of
from pointdistill.errors import ConfigError, DataError
from tests.data.source_archives import (
    WEDGE,
    WEDGE_FACES,
    build,
    h5_bytes,
    ranges,
    refused,
    wedge_off,
    write_zip,
)


def test_every_row_of_the_table_names_a_module_that_opens() -> None:
    for info in SOURCES:
        assert callable(getattr(importlib.import_module(info.module), info.opener))
        if info.archive is not None:
            with pytest.raises(DataError, match=info.name):
                open_source(info.name, SourceRequest())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bultin", "did you mean builtin"),
        ("xyz", "choose one of builtin, folder"),
        ("/", "for your own files choose the source folder"),
    ],
)
def test_an_unknown_source_is_told_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source_info(name)


@pytest.mark.parametrize(
    ("name", "request_", "message"),
    [
        (
            "builtin",
            {"up": "y"},
            "up='y' has no meaning for builtin; its options are: categories, procedural, shapes",
        ),
        ("builtin", {"path": Path("x")}, "reads no file, got 'x'"),
        ("builtin", {"shapes": 0}, "shapes must be at least 1, got 0"),
        ("builtin", {"procedural": 1.5}, "procedural must be a share from 0 to 1, got 1.5"),
        ("builtin", {"procedural": float("nan")}, "a share from 0 to 1, got nan"),
        (
            "builtin",
            {"procedural": 1.0, "categories": ["chair"]},
            "procedural 1 leaves no shapes for categories",
        ),
        ("builtin", {"categories": ["char"]}, "no built-in category 'char'; did you mean chair"),
        ("folder", {"include_test": True}, "include_test=True has no meaning for folder"),
        ("modelnet40", {"shapes": 3}, "shapes=3 has no meaning for modelnet40"),
    ],
)
def test_options_that_a_source_does_not_have_are_refused(
    name: str, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_source(name, SourceRequest(**request_))


def test_the_table_agrees_with_what_a_model_card_makes_of_the_licences() -> None:
    allowed = {True: Terms.OPEN, False: Terms.NON_COMMERCIAL, None: Terms.UNKNOWN}
    for info in SOURCES:
        assert terms_of(info.licence)[0] is allowed[info.commercial], info.name
    assert sum(info.commercial is False for info in SOURCES) == 7


def test_the_mixture_has_as_many_shapes_as_its_rows_sum_to() -> None:
    """Objaverse 1.0 as GLB, and neither of the test splits."""
    left_out = {"objaverse-cap3d", "objaverse-xl-cap3d"}
    assert sum(info.official or 0 for info in SOURCES if info.name not in left_out) == 928_284


@pytest.mark.parametrize("name", [info.name for info in SOURCES if info.archive])
def test_an_absent_archive_says_where_it_comes_from(name: str, tmp_path: Path) -> None:
    info = source_info(name)
    with pytest.raises(DataError, match="no such file or folder") as caught:
        open_source(name, SourceRequest(path=tmp_path / "absent"))
    assert info.origin in str(caught.value)
    assert str(info.archive) in str(caught.value)


# builtin


def test_builtin_takes_turns_with_its_categories(tmp_path: Path) -> None:
    count = len(CATEGORIES) + 3
    corpus = build("builtin", tmp_path / "corpus", shapes=count, points=64)
    assert corpus.label_names == CATEGORIES
    assert np.bincount(corpus.labels(), minlength=len(CATEGORIES)).tolist() == [2, 2, 2] + [1] * (
        len(CATEGORIES) - 3
    )
    first = corpus[0]
    assert first.id == f"{CATEGORIES[0]}/000000"
    assert first.part is not None
    assert first.part.max() < len(PART_NAMES[CATEGORIES[0]])
    record = corpus.sources[0]
    assert {k: tuple(v) for k, v in record.part_names.items()} == PART_NAMES
    assert "CC0" in record.licence


def test_builtin_shapes_are_the_same_in_a_larger_corpus(tmp_path: Path) -> None:
    few = build("builtin", tmp_path / "few", shapes=4, categories=("table", "chair"), points=64)
    many = build("builtin", tmp_path / "many", shapes=8, categories=("chair", "table"), points=64)
    assert few.ids() == ["chair/000000", "chair/000001", "table/000000", "table/000001"]
    assert np.array_equal(few.points(3), many.points(many.ids().index("table/000001")))
    assert not np.array_equal(many.points(0), many.points(1))


def test_a_share_of_the_builtin_shapes_has_no_category(tmp_path: Path) -> None:
    """Three in ten, evenly between; the others are those of a corpus without them."""
    plain = build("builtin", tmp_path / "plain", shapes=7, points=64)
    mixed = build("builtin", tmp_path / "mixed", shapes=10, procedural=0.3, points=64)
    source = open_source("builtin", SourceRequest(shapes=10, procedural=0.3))
    build_corpus(source, tmp_path / "again", points=64, workers=2)
    without = [row for row in range(10) if mixed.labels()[row] == -1]
    assert [mixed.ids()[row] for row in without] == [f"procedural/{k:06d}" for k in range(3)]
    assert mixed.label_names == CATEGORIES
    others = [row for row in range(10) if row not in without]
    assert [mixed.ids()[row] for row in others] == plain.ids()
    for row, same in zip(others, range(7), strict=True):
        assert np.array_equal(mixed.points(row), plain.points(same))
    assert mixed[without[0]].part is None or (mixed[without[0]].part == 255).all()
    assert mixed.sources[0].settings == {"shapes": 10, "procedural": 0.3}
    assert plain.sources[0].settings == {"shapes": 7}
    for file in sorted((tmp_path / "mixed").iterdir()):
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    assert verify_corpus(tmp_path / "mixed") == ()


def test_a_corpus_can_be_procedural_alone(tmp_path: Path) -> None:
    corpus = build("builtin", tmp_path / "corpus", shapes=4, procedural=1.0, points=64)
    more = build("builtin", tmp_path / "more", shapes=9, procedural=0.5, points=64)
    assert corpus.label_names == ()
    assert corpus.labels().tolist() == [-1] * 4
    assert corpus[0].part is None
    for k in range(4):
        row = more.ids().index(f"procedural/{k:06d}")
        assert np.array_equal(more.points(row), corpus.points(k))


# folder


def test_a_folder_is_turned_upright_and_labelled_by_its_sub_folders(tmp_path: Path) -> None:
    """GLB is y-up by its standard, and so turned: new (x, y, z) = old (z, x, y)."""
    files = tmp_path / "mine"
    (files / "wedges" / "more").mkdir(parents=True)
    (files / "clouds").mkdir()
    (files / "wedges" / "a.off").write_text(wedge_off())
    (files / "wedges" / "more" / "A.OFF").write_text(wedge_off(2 * WEDGE))
    (files / "b.glb").write_bytes(trimesh.Trimesh(WEDGE, WEDGE_FACES).export(file_type="glb"))
    cloud = np.random.default_rng(0).uniform(size=(40, 3)) * [1, 2, 3]
    np.savetxt(files / "clouds" / "c.xyz", cloud)
    (files / "wedges" / "._a.off").write_text("litter")
    (files / ".hidden").mkdir()
    (files / ".hidden" / "d.off").write_text(wedge_off())
    (files / "__MACOSX").mkdir()
    (files / "__MACOSX" / "e.off").write_text(wedge_off())
    (files / "readme.md").write_text("not a shape")

    corpus = build("folder", tmp_path / "corpus", path=files)
    assert corpus.ids() == ["b.glb", "clouds/c.xyz", "wedges/a.off", "wedges/more/A.OFF"]
    assert refused(corpus) == {}, "litter is no shape"
    assert corpus.label_names == ("clouds", "wedges")
    assert corpus.labels().tolist() == [-1, 0, 1, 1]
    assert ranges(corpus.points(0)) == [[0, 3], [0, 1], [0, 2]]
    assert ranges(corpus.points(2)) == [[0, 1], [0, 2], [0, 3]]
    assert np.allclose(corpus.points(1), cloud, atol=1e-4), "a cloud is taken as it is"
    assert verify_corpus(tmp_path / "corpus") == ()


def test_up_is_for_files_that_do_not_state_theirs(tmp_path: Path) -> None:
    files = tmp_path / "mine"
    files.mkdir()
    (files / "a.off").write_text(wedge_off())
    (files / "b.glb").write_bytes(trimesh.Trimesh(WEDGE, WEDGE_FACES).export(file_type="glb"))
    corpus = build("folder", tmp_path / "corpus", path=files, up="y")
    for k in range(2):
        assert ranges(corpus.points(k)) == [[0, 3], [0, 1], [0, 2]]
    with pytest.raises(ConfigError, match="up must be one of"):
        open_source("folder", SourceRequest(path=files, up="up"))


def test_a_folders_checksum_notices_a_change_of_the_same_size(tmp_path: Path) -> None:
    (tmp_path / "a.off").write_text(wedge_off())
    before = open_source("folder", SourceRequest(path=tmp_path)).facts
    assert open_source("folder", SourceRequest(path=tmp_path)).facts == before
    (tmp_path / "a.off").write_text(wedge_off().replace("3", "4", 1))
    assert open_source("folder", SourceRequest(path=tmp_path)).facts != before


def test_bad_files_are_refused_by_names_that_are_the_same_everywhere(tmp_path: Path) -> None:
    files = tmp_path / "mine"
    files.mkdir()
    (files / "good.off").write_text(wedge_off())
    (files / "empty.obj").touch()
    (files / "short.ply").write_text("ply\nformat ascii 1.0\nelement vertex 9\n")
    (files / "pointer.glb").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    causes = refused(build("folder", tmp_path / "corpus", path=files))
    assert list(causes) == ["empty.obj", "pointer.glb", "short.ply"]
    assert "fetch it with `git lfs pull`" in causes["pointer.glb"]
    assert str(tmp_path) not in (tmp_path / "corpus" / "corpus.json").read_text()


def test_names_that_are_not_text_become_ids_that_are(tmp_path: Path) -> None:
    files = tmp_path / "mine"
    files.mkdir()
    try:
        Path(str(files) + "/\udcff\n.off").write_text(wedge_off())
    except (OSError, UnicodeError):
        pytest.skip("this file system refuses such names")
    corpus = build("folder", tmp_path / "corpus", path=files)
    assert corpus.ids() == ["\\xff\\n.off"]


def test_a_folder_without_shapes_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no mesh or point cloud; files that end in obj, off"):
        open_source("folder", SourceRequest(path=tmp_path))
    (tmp_path / "a.off").write_text(wedge_off())
    with pytest.raises(DataError, match="is a file; give the folder"):
        open_source("folder", SourceRequest(path=tmp_path / "a.off"))


def test_real_meshes_all_arrive_upright_and_broken_ones_are_all_refused(
    tmp_path: Path, shared_dir: Path
) -> None:
    """``suzanne.obj`` (no stated axis, y up) and ``monkey.glb`` are the same object."""
    corpus = build("folder", tmp_path / "corpus", path=shared_dir / "meshes", points=512, up="y")
    lines = (tmp_path / "corpus" / "refused.jsonl").read_text().splitlines()
    refused = {json.loads(line)["id"] for line in lines}
    bad = {f"bad/{file.name}" for file in (shared_dir / "meshes" / "bad").iterdir()}
    # Its good triangle is read; a face of two corners has no area, and is left out and counted.
    assert bad - refused == {"bad/notenoughindices.obj"}
    assert not any(name.startswith(("good/", "draco/")) for name in refused)
    shapes = {shape.id: shape.points for shape in corpus}
    for name in ("good/suzanne.obj", "good/monkey.glb"):
        # Of 512 points none need lie at the tips of the ears.
        share = np.ptp(shapes[name], axis=0) / [1.703, 2.734, 1.969]
        assert (share > 0.93).all()
        assert (share < 1.001).all()


# modelnet40


@pytest.fixture
def modelnet40(tmp_path: Path) -> Path:
    """An archive with the quirks of the real one."""
    members = {
        "ModelNet40/chair/train/chair_0001.off": wedge_off(),
        "ModelNet40/chair/train/chair_0002.off": wedge_off(glued=True),
        "ModelNet40/airplane/train/airplane_0001.off": wedge_off(2 * WEDGE),
        "ModelNet40/chair/test/chair_0890.off": wedge_off(),
        "ModelNet40/.DS_Store": "x",
        "ModelNet40/chair/.DS_Store": "x",
        "__MACOSX/ModelNet40/chair/train/._chair_0001.off": "x",
    }
    return write_zip(tmp_path / "ModelNet40.zip", members)


def test_modelnet40_takes_the_training_split_upright(tmp_path: Path, modelnet40: Path) -> None:
    corpus = build("modelnet40", tmp_path / "corpus", path=modelnet40)
    assert corpus.ids() == [
        "airplane/train/airplane_0001",
        "chair/train/chair_0001",
        "chair/train/chair_0002",
    ]
    assert corpus.label_names == ("airplane", "chair")
    assert corpus.labels().tolist() == [0, 1, 1]
    assert ranges(corpus.points(1)) == ranges(corpus.points(2)) == [[0, 1], [0, 2], [0, 3]]
    record = corpus.sources[0]
    assert (record.name, record.stand_in, record.archive) == ("modelnet40", False, "ModelNet40.zip")
    assert record.settings == {"splits": ["train"]}


def test_modelnet40s_test_split_comes_in_on_request_only(tmp_path: Path, modelnet40: Path) -> None:
    corpus = build("modelnet40", tmp_path / "corpus", path=modelnet40, include_test=True)
    assert "chair/test/chair_0890" in corpus.ids()
    assert corpus.sources[0].settings["splits"] == ["train", "test"]


def test_an_extracted_archive_gives_the_same_shapes(tmp_path: Path, modelnet40: Path) -> None:
    with zipfile.ZipFile(modelnet40) as archive:
        archive.extractall(tmp_path / "extracted")
    zipped = build("modelnet40", tmp_path / "zipped", path=modelnet40)
    plain = build("modelnet40", tmp_path / "plain", path=tmp_path / "extracted")
    assert plain.content == zipped.content


def test_a_stand_in_is_recorded_as_one(tmp_path: Path, modelnet40: Path) -> None:
    with zipfile.ZipFile(modelnet40, "a") as archive:
        archive.writestr("ModelNet40/STAND-IN.json", "{}")
    record = build("modelnet40", tmp_path / "corpus", path=modelnet40).sources[0]
    assert (record.name, record.stand_in) == ("modelnet40-stand-in", True)
    assert "CC0" in record.licence
    assert (tmp_path / "corpus" / "modelnet40-stand-in-00000.h5").is_file()


def test_a_damaged_mesh_costs_itself_alone(tmp_path: Path, modelnet40: Path) -> None:
    with zipfile.ZipFile(modelnet40, "a") as archive:
        archive.writestr("ModelNet40/chair/train/chair_0003.off", wedge_off()[:40])
    corpus = build("modelnet40", tmp_path / "corpus", path=modelnet40)
    assert len(corpus) == 3
    (line,) = (tmp_path / "corpus" / "refused.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "chair/train/chair_0003"
    assert "/tmp" not in line


def test_a_member_that_leads_out_of_the_archive_costs_itself_alone(
    tmp_path: Path, modelnet40: Path
) -> None:
    with zipfile.ZipFile(modelnet40, "a") as archive:
        archive.writestr("../../chair/train/evil.off", wedge_off())
    corpus = build("modelnet40", tmp_path / "corpus", path=modelnet40)
    assert len(corpus) == 3
    assert refused(corpus) == {
        "../../chair/train/evil.off": "the name '../../chair/train/evil.off' leads out of the "
        "archive; fetch it from its own site"
    }
    assert not list(tmp_path.parent.rglob("evil.off"))


def test_another_form_of_modelnet40_is_told_apart(tmp_path: Path) -> None:
    path = write_zip(
        tmp_path / "x.zip", {"modelnet40_normal_resampled/chair/chair_0001.txt": "1 2 3"}
    )
    with pytest.raises(DataError, match=r"holds no <class>/train/<name>\.off"):
        open_source("modelnet40", SourceRequest(path=path))


# scanobjectnn


def h5_claiming(shape: tuple[int, ...], kind: str = "f4") -> bytes:
    """A small file whose chunked, never written points claim any size."""
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file.create_dataset("data", shape, kind, chunks=(1, *shape[1:]))
        file["label"] = np.zeros(2, np.int64)
    return memory.getvalue()


@pytest.fixture
def scans() -> np.ndarray:
    """(5, 64, 3), z up, extents near 1, 2, 3 from 0 on."""
    return np.random.default_rng(0).uniform(size=(5, 64, 3)) * [1, 2, 3]


@pytest.fixture
def scanobjectnn(tmp_path: Path, scans: np.ndarray) -> Path:
    """Three training sets and a test set, y up as in the real archive: old (x, y, z) = new (y, z, x)."""
    old = scans[..., [1, 2, 0]]
    members = {
        "h5_files/main_split/training_objectdataset.h5": h5_bytes(old[:2], np.array([4, 0])),
        "h5_files/main_split/test_objectdataset.h5": h5_bytes(old[4:], np.array([14])),
        "h5_files/main_split_nobg/training_objectdataset.h5": h5_bytes(old[2:3], np.array([9])),
        "h5_files/main_split/training_objectdataset_augmentedrot_scale75.h5": h5_bytes(
            old[3:4], np.array([1])
        ),
    }
    return write_zip(tmp_path / "h5_files.zip", members)


def test_scanobjectnn_takes_its_training_sets_as_they_are_turned_upright(
    tmp_path: Path, scanobjectnn: Path, scans: np.ndarray
) -> None:
    corpus = build("scanobjectnn", tmp_path / "corpus", path=scanobjectnn)
    assert corpus.ids() == [
        "OBJ-BG/train/00000",
        "OBJ-BG/train/00001",
        "OBJ-ONLY/train/00000",
        "PB-T50-RS/train/00000",
    ]
    assert corpus.label_names == CLASSES
    assert [CLASSES[k] for k in corpus.labels()] == ["chair", "bag", "table", "bin"]
    for k in range(4):
        assert np.allclose(corpus.points(k), scans[k], atol=1e-4)
    assert corpus.sources[0].turned == "zxy"


def test_scanobjectnns_test_set_comes_in_on_request_only(
    tmp_path: Path, scanobjectnn: Path, scans: np.ndarray
) -> None:
    corpus = build("scanobjectnn", tmp_path / "corpus", path=scanobjectnn, include_test=True)
    assert corpus.ids()[0] == "OBJ-BG/test/00000"
    assert np.allclose(corpus.points(0), scans[4], atol=1e-4)


def test_a_scan_that_is_not_finite_costs_itself_alone(tmp_path: Path, scans: np.ndarray) -> None:
    scans[1, 3, 0] = np.inf
    content = h5_bytes(scans, np.arange(5))
    path = write_zip(tmp_path / "h5.zip", {"x/main_split/training_objectdataset.h5": content})
    corpus = build("scanobjectnn", tmp_path / "corpus", path=path)
    assert [shape_id[-1] for shape_id in corpus.ids()] == ["0", "2", "3", "4"]
    assert "1 of 64 points are not finite" in (tmp_path / "corpus" / "refused.jsonl").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (h5_claiming((1_000_000, 2048, 3)), r"'data' claims 24,576,000,000 bytes"),
        (h5_claiming((2, 64, 3), "S4"), "'data' holds values of type .S4, not numbers"),
        (h5_bytes(np.zeros((2, 64, 3)), np.array([0, 15])), "labels from 0 to 15"),
        (h5_bytes(np.zeros((2, 64, 3)), np.array([0])), r"\(2, 64, 3\) with 1 labels"),
        (h5_bytes(np.zeros((2, 64)), np.array([0, 1])), r"\(2, 64\) with 2 labels"),
        (h5_bytes(np.zeros((2, 64, 3)), np.array([0, 1]))[:900], "damaged"),
        (b"not HDF5", "damaged"),
    ],
)
def test_a_damaged_set_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = write_zip(tmp_path / "h5.zip", {"main_split/training_objectdataset.h5": content})
    with pytest.raises(DataError, match=message) as caught:
        build("scanobjectnn", tmp_path / "corpus", path=path)
    assert "\n" not in str(caught.value)


def test_an_archive_without_the_sets_says_what_it_lacks(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "h5.zip", {"readme.txt": "x"})
    with pytest.raises(DataError, match=r"holds no main_split/training_objectdataset\.h5"):
        open_source("scanobjectnn", SourceRequest(path=path))


@pytest.mark.parametrize("name", ["modelnet40", "scanobjectnn"])
def test_a_source_in_use_can_be_sent_to_a_worker(name: str, request: pytest.FixtureRequest) -> None:
    """Its open archive stays behind; the copy opens its own."""
    source = open_source(name, SourceRequest(path=request.getfixturevalue(name)))
    entry = source.entries()[0]
    ours = source.read(entry, 64, rng=np.random.default_rng(0))
    copy = pickle.loads(pickle.dumps(source))
    theirs = copy.read(entry, 64, rng=np.random.default_rng(0))
    assert np.array_equal(ours.points, theirs.points)
