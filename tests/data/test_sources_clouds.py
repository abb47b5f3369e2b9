"""Sources of clouds and of Objaverse: S3DIS, OmniObject3D, Cap3D's clouds, GLB files by an index."""

from __future__ import annotations

import gzip
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import trimesh

from pointdistill.data.sources import SourceRequest, open_source, scanned_objects
from pointdistill.errors import DataError
from tests.data.source_archives import (
    AS_IT_IS,
    FROM_Y_UP,
    WEDGE,
    WEDGE_FACES,
    box_cloud,
    build,
    h5_bytes,
    labels_of,
    ranges,
    refused,
    wedge_glb,
    write_zip,
)

ROOM = "Stanford3dDataset_v1.2/Area_5/office_19"


def coloured_rows(points: np.ndarray) -> list[bytes]:
    return [b"%.4f %.4f %.4f 185 187 103" % tuple(point) for point in points]


@pytest.fixture
def s3dis(tmp_path: Path) -> Path:
    """A ceiling with a control byte inside a colour, a chair of just enough points, a board of one too few."""
    ceiling = coloured_rows(box_cloud(3000))
    ceiling[2323] = ceiling[2323].replace(b" 103", b" 10\x103")
    members: dict[str, str | bytes] = {
        f"{ROOM}/Annotations/ceiling_1.txt": b"\n".join(ceiling) + b"\n \n",
        f"{ROOM}/Annotations/chair_12.txt": b"\r\n".join(coloured_rows(box_cloud(2048, seed=1))),
        f"{ROOM}/Annotations/board_1.txt": b"\n".join(coloured_rows(box_cloud(2047))),
        f"{ROOM}/Annotations/.DS_Store": b"x",
        f"{ROOM}/office_19.txt": b"\n".join(coloured_rows(box_cloud(5000))),
        "Stanford3dDataset_v1.2/Area_5/office_19_alignmentAngle.txt": b"0",
        f"__MACOSX/{ROOM}/Annotations/._chair_12.txt": b"x",
    }
    return write_zip(tmp_path / "Stanford3dDataset_v1.2.zip", members)


def test_s3dis_objects_are_cut_by_their_annotation(tmp_path: Path, s3dis: Path) -> None:
    corpus = build("s3dis", tmp_path / "corpus", path=s3dis, points=4096)
    assert corpus.ids() == ["Area_5/office_19/ceiling_1", "Area_5/office_19/chair_12"]
    assert labels_of(corpus) == ["ceiling", "chair"]
    assert corpus.sources[0].turned == "none"
    assert corpus.points(0).shape == (3000, 3), "the row with the control byte too"
    assert np.allclose(corpus.points(0), box_cloud(3000), atol=1e-3)
    assert np.allclose(corpus.points(1), box_cloud(2048, seed=1), atol=1e-3)
    causes = refused(corpus)
    assert set(causes) == {"Area_5/office_19/board_1"}
    assert "2,047 points, objects with at least 2,048" in causes["Area_5/office_19/board_1"]


def test_of_a_large_s3dis_object_a_random_subset_of_rows_is_read(
    tmp_path: Path, s3dis: Path
) -> None:
    """Each point is one of the object's own, none twice, in the file's order, whatever the worker."""
    source = open_source("s3dis", SourceRequest(path=s3dis))
    entry = next(entry for entry in source.entries() if entry.id.endswith("ceiling_1"))
    points = source.read(entry, 500, rng=np.random.default_rng(3)).points
    again = pickle.loads(pickle.dumps(source)).read(entry, 500, rng=np.random.default_rng(3)).points
    assert np.array_equal(points, again)
    near = np.abs(points[:, None] - box_cloud(3000)[None]).sum(axis=2).argmin(axis=1)
    assert (np.diff(near) > 0).all()
    assert len(points) == 500


# OmniObject3D


@pytest.fixture
def omniobject3d_zip(tmp_path: Path) -> Path:
    """Two categories with y up: old (x, y, z) = new (y, z, x), and two files that are damaged."""
    clouds = np.stack([box_cloud(300, seed=k)[:, [1, 2, 0]] for k in range(3)])
    members: dict[str, str | bytes] = {
        "16384/toy_animals_2.hdf5": h5_bytes(clouds[:2]),
        "16384/apple_1.hdf5": h5_bytes(clouds[2:]),
        "16384/pear_1.hdf5": h5_bytes(clouds)[:2000],
        "16384/fig_1.hdf5": h5_bytes(clouds[:2]),
        "16384/readme.txt": "x",
    }
    return write_zip(tmp_path / "OmniObject3D.zip", members)


def test_omniobject3d_gives_every_row_upright(tmp_path: Path, omniobject3d_zip: Path) -> None:
    corpus = build("omniobject3d", tmp_path / "corpus", path=omniobject3d_zip, points=300)
    assert corpus.ids() == ["apple_1/00000", "toy_animals_2/00000", "toy_animals_2/00001"]
    assert labels_of(corpus) == ["apple", "toy_animals", "toy_animals"]
    for k, seed in enumerate((2, 0, 1)):
        assert np.allclose(corpus.points(k), box_cloud(300, seed=seed), atol=1e-4)
    causes = refused(corpus)
    assert set(causes) == {"fig_1/00000", "pear_1/00000"}
    assert "expected 'data' of shape (1, 16384, 3), got (2, 300, 3)" in causes["fig_1/00000"]
    assert "damaged" in causes["pear_1/00000"]


def test_an_extracted_omniobject3d_gives_the_same(tmp_path: Path, omniobject3d_zip: Path) -> None:
    with zipfile.ZipFile(omniobject3d_zip) as archive:
        archive.extractall(tmp_path / "extracted")
    zipped = build("omniobject3d", tmp_path / "zipped", path=omniobject3d_zip, points=300)
    plain = build("omniobject3d", tmp_path / "plain", path=tmp_path / "extracted", points=300)
    assert plain.content == zipped.content


def test_listing_omniobject3d_opens_no_file(
    omniobject3d_zip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("a member was read")

    monkeypatch.setattr(scanned_objects, "read_member_at", forbidden)
    source = open_source("omniobject3d", SourceRequest(path=omniobject3d_zip))
    assert len(source.entries()) == 5


# Cap3D


def coloured_ply(points: np.ndarray) -> bytes:
    """Binary PLY with x, y, z and colours, as Cap3D's clouds."""
    header = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n"
        "property float x\nproperty float y\nproperty float z\n"
        "property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n"
    )
    kind = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])
    rows = np.zeros(len(points), kind)
    rows["xyz"], rows["rgb"] = points, 200
    return header.encode() + rows.tobytes()


@pytest.fixture
def cap3d(tmp_path: Path) -> Path:
    """Two zips of Objaverse 1.0, one of XL, and the index as a pickle that must not run."""
    folder = tmp_path / "cap3d"
    for number, uid in (("00", "b0"), ("09", "a9"), ("12", "c12")):
        members: dict[str, str | bytes] = {
            f"Cap3D_pcs/{uid}.ply": coloured_ply(box_cloud(100)),
            f"__MACOSX/Cap3D_pcs/._{uid}.ply": b"x",
        }
        write_zip(folder / f"compressed_pcs_{number}.zip", members)
    (folder / "compressed_files_info.pkl").write_bytes(
        b"cos\nsystem\n(S'touch %s'\ntR." % bytes(tmp_path / "ran")
    )
    return folder


def test_cap3d_clouds_are_taken_as_they_are_by_their_bare_uid(tmp_path: Path, cap3d: Path) -> None:
    corpus = build("objaverse-cap3d", tmp_path / "corpus", path=cap3d)
    assert corpus.ids() == ["a9", "b0"]
    assert not (tmp_path / "ran").exists()
    assert np.allclose(corpus.points(0), box_cloud(100), atol=1e-4)
    record = corpus.sources[0]
    assert (record.turned, record.archive) == (
        "none",
        "compressed_pcs_00.zip, compressed_pcs_09.zip",
    )
    beyond = build("objaverse-xl-cap3d", tmp_path / "xl", path=cap3d)
    assert beyond.ids() == ["c12"]


def test_one_zip_of_cap3d_is_a_source_of_the_part_it_belongs_to(
    tmp_path: Path, cap3d: Path
) -> None:
    one = cap3d / "compressed_pcs_09.zip"
    assert build("objaverse-cap3d", tmp_path / "corpus", path=one).ids() == ["a9"]
    with pytest.raises(DataError, match=r"objaverse-xl-cap3d is compressed_pcs_10\.zip to"):
        open_source("objaverse-xl-cap3d", SourceRequest(path=one))


# Objaverse as GLB


def scene(*geometries: object) -> bytes:
    return bytes(trimesh.Scene(list(geometries)).export(file_type="glb"))


@pytest.fixture
def objaverse(tmp_path: Path) -> Path:
    """Surfaces, a scene with lines beside one, point sets, a file that is not there, paths that lead out."""
    folder = tmp_path / "objaverse" / "hf-objaverse-v1"
    wedge = trimesh.Trimesh(WEDGE, WEDGE_FACES)
    line = trimesh.load_path(np.array([[0.0, 0, 0], [9, 9, 9]]))
    few = np.concatenate([box_cloud(2000), box_cloud(2000)])
    files = {
        "mesh": wedge_glb(),
        "lined": scene(wedge, line),
        "only-lines": scene(line),
        "cloud": scene(trimesh.PointCloud(box_cloud(3000))),
        "repeated": scene(trimesh.PointCloud(few)),
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "cut": wedge_glb()[:-100],
    }
    paths = {uid: f"glbs/000-023/{uid}.glb" for uid in files}
    (folder / "glbs" / "000-023").mkdir(parents=True)
    for uid, content in files.items():
        (folder / paths[uid]).write_bytes(content)
    (folder / "glbs" / "000-023" / "unlisted.glb").write_bytes(wedge_glb())
    (tmp_path / "secret.glb").write_bytes(wedge_glb())
    paths |= {"absent": "glbs/000-023/absent.glb", "evil": "../../secret.glb"}
    (folder / "object-paths.json.gz").write_bytes(gzip.compress(json.dumps(paths).encode()))
    return folder


def test_objaverse_scenes_are_upright_with_enough_distinct_points(
    tmp_path: Path, objaverse: Path
) -> None:
    corpus = build("objaverse", tmp_path / "corpus", path=objaverse)
    assert corpus.ids() == ["cloud", "lined", "mesh"]
    assert [ranges(corpus.points(k)) for k in range(3)] == [FROM_Y_UP] * 3
    assert [len(corpus.points(k)) for k in range(3)] == [256] * 3
    causes = refused(corpus)
    assert set(causes) == {"cut", "evil", "only-lines", "pointer", "repeated"}
    assert "2,000 distinct points, shapes with at least 2,048" in causes["repeated"]
    assert "leads out of the archive" in causes["evil"]


def test_the_same_shapes_are_kept_whatever_the_points(tmp_path: Path, objaverse: Path) -> None:
    few = build("objaverse", tmp_path / "few", path=objaverse, points=64)
    many = build("objaverse", tmp_path / "many", path=objaverse, points=4096)
    assert few.ids() == many.ids()
    assert len(many.points(0)) == 3000, "a cloud gives what it has"


def test_objaverse_is_found_by_its_index_and_checked_by_names_and_sizes(objaverse: Path) -> None:
    by_folder = open_source("objaverse", SourceRequest(path=objaverse))
    for path in (objaverse.parent, objaverse / "object-paths.json.gz"):
        assert open_source("objaverse", SourceRequest(path=path)).facts == by_folder.facts
    with (objaverse / "glbs/000-023/mesh.glb").open("ab") as file:
        file.write(b"x")
    assert open_source("objaverse", SourceRequest(path=objaverse)).facts != by_folder.facts


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, r"holds no object-paths\.json\.gz"),
        (b"x", "not a table of uids and paths"),
        (gzip.compress(b"[1]", mtime=0), "expected a JSON table of uid to path"),
        (gzip.compress(b"{}", mtime=0), "holds none of the files of its index"),
        (gzip.compress(b"{}", mtime=0)[:-4], "not a table of uids and paths"),
    ],
)
def test_a_damaged_index_is_one_line(objaverse: Path, index: bytes | None, message: str) -> None:
    (objaverse / "object-paths.json.gz").unlink()
    if index is not None:
        (objaverse / "object-paths.json.gz").write_bytes(index)
    with pytest.raises(DataError, match=message):
        open_source("objaverse", SourceRequest(path=objaverse))


def test_the_ranges_tell_a_mirror_image() -> None:
    """Swapping y and z, as usual readers do, would not pass as either frame."""
    assert ranges(WEDGE[:, [0, 2, 1]]) not in (AS_IT_IS, FROM_Y_UP)
