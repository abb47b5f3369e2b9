"""Search: the nearest by cosine against a sort of everything, the right encoder, and pictures of what is found."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from safetensors.torch import load_file

from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.files.archive import _ZipArchive
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.engine.embedding import index as index_module
from pointdistill.engine.embedding import search as searching
from pointdistill.engine.embedding.comparison import nearest
from pointdistill.engine.embedding.embed import EmbedRequest, embed
from pointdistill.engine.embedding.file import stored_as
from pointdistill.engine.embedding.index import EmbeddedInput, Index, open_index
from pointdistill.engine.embedding.memory import measure_encoder
from pointdistill.engine.embedding.search import (
    _neighbours,
    draw_sheet,
    find_index,
    new_files,
    search,
    search_all,
)
from pointdistill.engine.features import statistics as statistics_module
from pointdistill.engine.features.statistics import RAW, Comparison, measure, space_among
from pointdistill.engine.weights.encoders import save_encoder
from pointdistill.errors import CheckpointError, ConfigError, DataError
from pointdistill.reporter import Reporter
from tests.engine.test_embedding import random_encoder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Boxes of growing height, half of them in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    save_encoder(random_encoder(), tmp_path / "encoder")
    for number in range(8):
        path = tmp_path / ("low" if number < 4 else "high") / f"{number}.obj"
        path.parent.mkdir(exist_ok=True)
        trimesh.creation.box((1, 2, 0.5 + number)).export(path)
    return tmp_path


def embedded(output: str = "out.npz", **changes: Any) -> Index:
    plain = EmbedRequest(
        paths=[Path("low"), Path("high")], output=Path(output), encoder="encoder", points=45
    )
    return open_index(embed(replace(plain, **changes)).output)


class Rows(Index):
    """Vectors in memory, in blocks of three."""

    def __init__(self, values: np.ndarray) -> None:
        info = {"format": index_module.FORMAT, "version": index_module.VERSION}
        super().__init__(Path("memory"), info)
        self.values = values

    def blocks(self, column: str) -> Any:
        yield from (self.values[first : first + 3] for first in range(0, len(self.values), 3))

    def statistics_arrays(self, width: int) -> dict[str, np.ndarray]:
        return {}


def test_nearest_is_what_a_sort_of_everything_gives() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(50, 4)).astype(np.float32)
    values[7] = values[30] * 2  # of one direction: a tie, the lower row first
    query = values[30] + 0.01
    cosine = values @ query / np.linalg.norm(values, axis=1) / np.linalg.norm(query)
    expected = np.argsort(-cosine.round(6), kind="stable")[:9]
    (found,) = nearest(Rows(values), query[None], 9)
    assert {row for row, _ in found[:2]} == {7, 30}
    assert [row for row, _ in found[2:]] == expected[2:].tolist()
    np.testing.assert_allclose([s for _, s in found], np.sort(cosine)[::-1][:9], atol=1e-6)
    assert len(nearest(Rows(values), query[None], 99)[0]) == 50
    both = nearest(Rows(values), np.stack([values[3], query]), 9)
    assert both[0][0] == (3, pytest.approx(1))
    assert [row for row, _ in both[1]] == [row for row, _ in found]


def test_no_similarity_is_above_one() -> None:
    """Rounding takes the cosine of a row with itself past 1."""
    values = np.random.default_rng(3).normal(size=(400, 48)).astype(np.float32)
    units = values / np.linalg.norm(values, axis=1, keepdims=True)
    assert (units * units).sum(axis=1).max() > 1
    found = nearest(Rows(values), values, 3)
    assert max(similarity for row in found for _, similarity in row) <= 1


def test_of_equal_rows_in_any_block_the_lower_ones_are_kept() -> None:
    values = np.array([[1, 0], [0, 1], [1, 1], [2, 0], [3, 0], [1, 1], [4, 0]], np.float32)
    (found,) = nearest(Rows(values), np.array([[1, 0]], np.float32), 3)
    assert [row for row, _ in found] == [0, 3, 4]
    (found,) = nearest(Rows(values), np.array([[1, 0]], np.float32), 5)
    assert [row for row, _ in found] == [0, 3, 4, 6, 2]


def test_a_row_of_zeros_is_like_nothing() -> None:
    values = np.zeros((2, 3), np.float32)
    values[1] = 1
    assert nearest(Rows(values), np.ones((1, 3), np.float32), 2) == [
        [(1, pytest.approx(1)), (0, 0.0)]
    ]


def made_features() -> tuple[np.ndarray, np.ndarray]:
    """Features (60, 8) as encoders make them, and their classes: what all share is large, two axes say nothing."""
    rng = np.random.default_rng(0)
    classes = np.arange(60) % 3
    values = rng.normal(size=(60, 8), scale=0.05)
    values[:, :3] += np.eye(3)[classes] * 0.6
    values[:, 3:5] += rng.normal(size=(60, 2)) * 3.0  # such as how a shape stands
    return (values + 10.0).astype(np.float32), classes


def test_whitened_features_find_the_class_where_raw_ones_find_the_noise() -> None:
    values, classes = made_features()
    statistics = measure([values], len(values))
    assert statistics is not None

    def right(comparison: Comparison) -> int:
        found = nearest(Rows(values), values, 2, comparison)
        return sum(classes[rows[1][0]] == classes[k] for k, rows in enumerate(found))

    assert right(RAW) < 40
    assert right(Comparison(statistics.whitened, "whitened")) > 55


def test_statistics_are_those_of_numpy_however_they_are_read() -> None:
    values, _ = made_features()
    one = measure([values], 60)
    many = measure((values[first : first + 7] for first in range(0, 60, 7)), 60)
    assert one is not None
    assert many is not None
    covariance = np.cov(values.T.astype(np.float64), bias=True)
    np.testing.assert_allclose(one.mean, values.mean(0), rtol=1e-6)
    assert one.mean_variance == pytest.approx(np.trace(covariance) / 8)
    rebuilt = (one.axes.T * one.variances) @ one.axes
    np.testing.assert_allclose(rebuilt, covariance, atol=3e-4 * one.mean_variance)
    np.testing.assert_allclose(many.whitened(values), one.whitened(values), atol=1e-4)
    assert (one.whitened(values).std(axis=0) <= 1).all()
    assert measure([values[:1].repeat(60, axis=0)], 60) is None
    assert measure([np.full((60, 8), np.nan, np.float32)], 60) is None


def test_of_very_many_shapes_every_nth_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    values, _ = made_features()
    monkeypatch.setattr(statistics_module, "MOST_SHAPES", 25)
    every_third = measure((values[first : first + 7] for first in range(0, 60, 7)), 60)
    assert every_third is not None
    assert every_third.shapes == 20
    np.testing.assert_allclose(every_third.mean, values[::3].mean(0), rtol=1e-6)


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_an_index_of_many_shapes_compares_in_its_own_space(folder: Path, ending: str) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    many = clouds_of_boxes(folder, 100)
    index = embedded(f"many.{ending}", paths=[many])
    (found,) = search_all([many / "07.npy"], index).results
    assert (found.neighbours[0].id, len(found.neighbours)) == ("07.npy", 10)
    # With the formula that docs/embedding.md gives.
    stored = index.statistics_arrays(48)
    features = np.concatenate(list(index.blocks("features")))
    ridge = 0.3 * stored["feature_mean_variance"]
    places = (features - stored["feature_mean"]) @ stored["feature_axes"].T
    places /= np.sqrt(stored["feature_variances"] + ridge)
    places /= np.linalg.norm(places, axis=1, keepdims=True)
    ids = np.concatenate(list(index.blocks("ids")))
    cosine = dict(zip(ids.tolist(), (places @ places[7]).tolist(), strict=True))
    for neighbour in found.neighbours:
        assert neighbour.similarity == pytest.approx(cosine[neighbour.id], abs=1e-4)
    assert found.neighbours[-1].similarity < 0.9  # raw cosines are all above


def clouds_of_boxes(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    many = folder / f"many-{count}"
    many.mkdir()
    for number in range(count):
        sides = rng.uniform(0.3, 1.0, 3)
        np.save(many / f"{number:02d}.npy", rng.uniform(size=(45, 3)).astype(np.float32) * sides)
    return many


@pytest.mark.parametrize(("kind", "width"), [("moments", 48), ("pooled", 36), ("cls", 12)])
def test_every_kind_of_a_whole_shape_is_searched(folder: Path, kind: str, width: int) -> None:
    index = embedded(f"{kind}.npz", paths=[clouds_of_boxes(folder, 30)], features=kind)
    assert next(index.blocks("features")).shape == (30, width)
    found = search_all([folder / "many-30/07.npy"], index)
    how = "whitened" if 2 * width <= 30 else "standardised"
    assert found.compared == f"features {how} over the index's 30 shapes"
    assert found.results[0].neighbours[0].id == "07.npy"


def test_an_embedding_of_an_earlier_version_is_measured_when_it_is_searched(folder: Path) -> None:
    many = clouds_of_boxes(folder, 100)
    index = embedded("new.npz", paths=[many], turns=1)
    with np.load("new.npz") as stored:
        kept = {name: stored[name] for name in stored.files if not name.startswith("feature_")}
    info = json.loads(str(kept["info"]))
    del info["turns"]
    np.savez("old.npz", **kept | {"info": np.array(json.dumps(info))})
    new, old = (search_all([many / "07.npy"], open_index(Path(f"{n}.npz"))) for n in ("new", "old"))
    assert new.compared == old.compared == "features whitened over the index's 100 shapes"
    assert [n.id for n in new.results[0].neighbours] == [n.id for n in old.results[0].neighbours]
    assert index.statistics(48) is not None


def test_what_an_index_is_compared_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder's axes if it has some that fit; else own ones, or deviations, or nothing."""
    eight = embedded("eight.npz")
    three = embedded("three.npz", paths=sorted(Path("high").iterdir())[:3])
    many = embedded("many.npz", paths=[clouds_of_boxes(folder, 30)])
    query = Path("high/5.obj")
    few = "; the index holds {} shapes"
    own = "features {} over the index's {} shapes"
    assert search_all([query], many).compared == own.format("standardised", 30)
    assert search_all([query], eight).compared == own.format("standardised", 8)
    assert search_all([query], three).compared == "raw features" + few.format(3)
    with monkeypatch.context() as fewer:
        fewer.setattr(statistics_module, "OWN_AXES_FROM", 0.5)
        assert search_all([query], many).compared == own.format("whitened", 30)
    measured = measure_encoder("encoder", Path("many-30"), points=45, draws=1, turns=1)
    assert (measured.path, measured.shapes) == (Path("encoder/feature_statistics.safetensors"), 30)
    found = search_all([query], three)
    encoders = "features whitened over 30 shapes, as measured with the encoder"
    assert found.compared == encoders + few.format(3)
    assert found.results[0].neighbours[0].id == "high/5.obj"
    assert search_all([query], many).compared == encoders + few.format(30)
    monkeypatch.setattr(statistics_module, "OWN_MEAN_FROM", 30)
    assert search_all([query], many).compared == encoders + ", about the index's mean"


def test_the_encoders_axes_about_the_mean_of_the_index(folder: Path) -> None:
    """With the formula that docs/embedding.md gives."""
    index = embedded("sixty.npz", paths=[clouds_of_boxes(folder, 60)])
    (folder / "others").mkdir()
    measure_encoder("encoder", clouds_of_boxes(folder / "others", 40), points=45, draws=1, turns=1)
    (found,) = search_all([folder / "many-60/07.npy"], index).results
    axes = {n: v.numpy() for n, v in load_file("encoder/feature_statistics.safetensors").items()}
    features = np.concatenate(list(index.blocks("features")))
    ridge = 0.3 * axes["feature_mean_variance"]
    places = (features - features.mean(axis=0)) @ axes["feature_axes"].T
    places /= np.sqrt(axes["feature_variances"] + ridge)
    places /= np.linalg.norm(places, axis=1, keepdims=True)
    cosine = dict(
        zip(np.concatenate(list(index.blocks("ids"))).tolist(), places @ places[7], strict=True)
    )
    assert len(found.neighbours) == 10
    for neighbour in found.neighbours:
        assert neighbour.similarity == pytest.approx(cosine[neighbour.id], abs=1e-4)


def test_features_of_few_shapes_are_standardised_one_by_one(folder: Path) -> None:
    index = embedded("eight.npz")
    (found,) = search_all([Path("high/5.obj")], index, count=8).results
    features = np.concatenate(list(index.blocks("features"))).astype(np.float64)
    places = (features - features.mean(axis=0)) / features.std(axis=0)
    places /= np.linalg.norm(places, axis=1, keepdims=True)
    ids = np.concatenate(list(index.blocks("ids"))).tolist()
    own = places[ids.index("high/5.obj")]
    cosine = dict(zip(ids, places @ own, strict=True))
    assert len(found.neighbours) == 8
    for neighbour in found.neighbours:
        assert neighbour.similarity == pytest.approx(cosine[neighbour.id], abs=1e-4)


def of_width(width: int, shapes: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(size=(shapes, width)).astype(np.float32)


@pytest.mark.parametrize(
    ("shapes", "encoders", "name"),
    [
        (3, False, "raw features; the set holds 3 shapes"),
        (4, False, "features standardised over the set's 4 shapes"),
        (11, False, "features standardised over the set's 11 shapes"),
        (12, False, "features whitened over the set's 12 shapes"),
        (
            1,
            True,
            "features whitened over 90 shapes, as measured with the encoder; the set holds 1 shape",
        ),
        (
            49,
            True,
            "features whitened over 90 shapes, as measured with the encoder; the set holds 49 shapes",
        ),
        (
            50,
            True,
            "features whitened over 90 shapes, as measured with the encoder, about the set's mean",
        ),
    ],
)
def test_how_many_shapes_are_needed_for_which_space(shapes: int, encoders: bool, name: str) -> None:
    statistics = measure([of_width(6, 90)], 90) if encoders else None
    assert space_among(of_width(6, shapes), statistics).name == name


def test_shapes_that_are_all_alike_are_not_put_about_their_mean() -> None:
    alike = np.ones((60, 6), np.float32)
    assert space_among(alike, None).name == "raw features; the set holds 60 shapes"
    space = space_among(alike, measure([of_width(6, 90)], 90))
    assert space.name.endswith("; all shapes of the set are alike")
    assert np.linalg.norm(space.transform(alike)[0]) > 0.1


def test_what_is_constant_but_for_rounding_has_no_deviation() -> None:
    features = of_width(6, 10)
    features[:, 0] = 1.0 + 3e-7 * np.sign(features[:, 0])
    assert np.ptp(space_among(features, None).transform(features)[:, 0]) == 0.0


def test_an_archive_that_an_index_names_is_read_for_a_member_of_the_querys_size_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member that is gone, a folder in the archive's place and another size are other shapes, and no error."""
    with zipfile.ZipFile("all.zip", "w") as archive:
        for path in sorted(Path("high").iterdir()):
            archive.write(path, path.name)
    index = embedded("zipped.npz", paths=[Path("all.zip")])
    query = Path("high/5.obj")

    def own() -> str | None:
        found = search_all([query], index, others_only=True).results[0].own
        return found and found.id

    assert own() == "5.obj"
    read: list[str] = []
    kept = _ZipArchive.read
    monkeypatch.setattr(
        _ZipArchive, "read", lambda self, name: (read.append(name), kept(self, name))[1]
    )
    query.write_text(query.read_text() + "# longer\n")
    assert (own(), read) == (None, [])
    with zipfile.ZipFile("all.zip", "w") as archive:
        archive.writestr("another.obj", query.read_text())
    assert (own(), read) == (None, [])
    Path("all.zip").unlink()
    Path("all.zip").mkdir()
    os.mkfifo("all.zip/5.obj")
    assert own() is None


def test_statistics_that_do_not_fit_are_left_out_with_a_line(folder: Path) -> None:
    measure_encoder("encoder", clouds_of_boxes(folder, 20), points=45, draws=1, turns=1)
    query, said = Path("low/1.obj"), Lines()
    save_encoder(random_encoder(seed=1), Path("other"))
    path = Path("encoder/feature_statistics.safetensors")
    shutil.copy(path, "other")
    for index, reason in (
        (embedded("cls.npz", features="cls"), "is not used: its features are moments, not cls"),
        (embedded("sparse.npz", points=20), "is not used: its points are 45, not 20"),
        (embedded("other.npz", encoder="other"), "is not used: it was measured on another encoder"),
    ):
        compared = search_all([query], index, reporter=said).compared
        assert compared == "features standardised over the index's 8 shapes"
        assert reason in said.lines[-1]
    index = embedded("whole.npz")
    path.write_bytes(path.read_bytes()[:200])
    assert search_all([query], index, reporter=said).compared.startswith("features standardised")
    assert "damaged (" in said.lines[-1]


class Lines(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str, *settings: str) -> None:
        self.lines.append(line)


def test_damaged_statistics_are_one_line(folder: Path) -> None:
    many = clouds_of_boxes(folder, 100)
    embedded("whole.npz", paths=[many])
    with np.load("whole.npz") as stored:
        whole = {name: stored[name] for name in stored.files}
    broken = {
        "feature_mean holds values that are not finite": {
            "feature_mean": np.full(48, np.nan, np.float32)
        },
        r"feature_mean is float32 \(47,\), expected float32 \(48,\)": {
            "feature_mean": whole["feature_mean"][1:]
        },
        "feature_variances holds values that are not positive": {
            "feature_variances": -whole["feature_variances"]
        },
        r"feature_axes is an array of float32, shape \(99, 48\)": {
            "feature_axes": np.ones((99, 48), np.float32)
        },
    }
    for message, arrays in broken.items():
        np.savez("broken.npz", **whole | arrays)
        with pytest.raises(DataError, match=rf"broken.npz: .*{message}"):
            search_all([many / "07.npy"], open_index(Path("broken.npz")))


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_a_file_finds_itself(folder: Path, ending: str) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    index = embedded(f"out.{ending}")
    found = search(Path("high/5.obj"), index, count=3)
    assert found.neighbours[0].id == "high/5.obj"
    assert found.neighbours[0].similarity == pytest.approx(1, abs=1e-6)
    assert len({n.id for n in found.neighbours}) == 3
    Path("high/6.obj").unlink()
    everything = search(Path("low/1.obj"), index, count=8)
    not_drawn = draw_sheet(Path("sheet.png"), [everything])
    assert list(not_drawn) == ["high/6.obj"]
    assert "no such file" in not_drawn["high/6.obj"].lower()
    assert Path("sheet.png").read_bytes().startswith(b"\x89PNG")


def test_blocks_do_not_change_what_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = embedded()
    whole = {name: np.concatenate(list(index.blocks(name))) for name in ("ids", "features")}
    monkeypatch.setattr(index_module, "BLOCK_BYTES", 200)
    blocks = list(index.blocks("features"))
    assert len(blocks) == 8
    np.testing.assert_array_equal(np.concatenate(blocks), whole["features"])
    assert index.pick("ids", [6, 0, 6]) == [whole["ids"][6], whole["ids"][0], whole["ids"][6]]


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_half_the_space_finds_the_same(folder: Path, ending: str) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    whole, half = embedded(f"out.{ending}"), embedded(f"half.{ending}", dtype="float16")
    first, second = (np.concatenate(list(index.blocks("features"))) for index in (whole, half))
    assert (first.dtype, second.dtype) == (np.float32, np.float16)
    np.testing.assert_array_equal(second, first.astype(np.float16))
    one, other = (search(Path("low/2.obj"), index, count=3).neighbours for index in (whole, half))
    assert [n.id for n in one] == [n.id for n in other]
    assert [n.similarity for n in one] == pytest.approx([n.similarity for n in other], abs=2e-3)
    with pytest.raises(
        DataError, match=rf"half\.{ending}: exists, .*: another type of stored features"
    ):
        embedded(f"half.{ending}")
    with pytest.raises(ConfigError, match="dtype must be one of float32, float16, got 'int8'"):
        embedded(f"other.{ending}", dtype="int8")


def test_a_feature_too_large_for_half_the_space_is_one_line() -> None:
    assert stored_as("<f2", np.array([65504, np.inf], np.float32)).tolist() == [65504, np.inf]
    with pytest.raises(DataError, match=r"a feature of 7e.04 is too large for float16"):
        stored_as("<f2", np.array([1, -70000], np.float32))


def test_arrays_can_be_mapped_where_they_lie(folder: Path) -> None:
    path = embedded(dtype="float16").path
    features = np.load(path)["features"]
    place = path.read_bytes().index(features.tobytes())
    assert place % 64 == 0
    mapped = np.memmap(path, "<f2", "r", place, features.shape)
    np.testing.assert_array_equal(mapped, features)


def test_rows_are_read_where_they_lie(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only ids, which are compressed, are read from their beginning on."""
    index = embedded()
    rows = np.load(index.path)["rows"]
    monkeypatch.setattr(type(index), "blocks", lambda *_: pytest.fail("all is read"))
    assert index.pick("rows", [6, 0, 6]) == [rows[6], rows[0], rows[6]]


def test_an_index_that_is_cut_short_or_changed_meanwhile_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = embedded()
    content = index.path.read_bytes()
    place = content.index(np.load(index.path)["features"].tobytes())
    index.path.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    with pytest.raises(DataError, match=r"out\.npz: .*(its checksum is another|Bad CRC-32)"):
        list(index.blocks("features"))
    index.path.write_bytes(content)
    monkeypatch.setattr(index_module, "BLOCK_BYTES", 200)
    blocks = index.blocks("features")
    next(blocks)
    with index.path.open("r+b") as file:
        file.truncate(place + 500)
    with pytest.raises(DataError, match=r"out\.npz: .*features ends 6 rows early"):
        list(blocks)


def test_a_corpus_is_found_by_its_folder_and_drawn_by_its_rows(folder: Path) -> None:
    source = open_source("builtin", SourceRequest(shapes=6, categories=["bed", "mug"]))
    build_corpus(source, folder / "corpus", points=100, workers=0)
    embedded("corpus.npz", paths=[Path("corpus")])
    assert find_index(Path("corpus")) == find_index(None) == Path("corpus.npz")
    found = search(Path("low/1.obj"), open_index(find_index(Path("corpus"))), count=6)
    assert sorted(n.id for n in found.neighbours)[0] == "bed/000000"
    assert draw_sheet(Path("sheet.png"), [found]) == {}
    # Another corpus at its place: its rows hold other shapes.
    shutil.rmtree("corpus")
    source = open_source("builtin", SourceRequest(shapes=6, categories=["lamp"]))
    build_corpus(source, folder / "corpus", points=100, workers=0)
    not_drawn = draw_sheet(Path("sheet.png"), [found])
    assert len(not_drawn) == 6
    assert set(not_drawn.values()) == {"is no longer where it was embedded from"}


def test_only_the_encoder_that_made_it_may_ask(folder: Path) -> None:
    index = embedded()
    save_encoder(random_encoder(seed=1), Path("other"))
    with pytest.raises(
        CheckpointError, match=r"out.npz: made by another encoder .*name the encoder"
    ) as caught:
        search(Path("low/1.obj"), index, encoder="other")
    assert caught.value.settings == ("encoder",)
    shutil.move("encoder", "moved")
    with pytest.raises(CheckpointError, match="name its new path, or embed again"):
        search(Path("low/1.obj"), index)
    found = search(Path("low/1.obj"), index, encoder="moved")
    assert found.neighbours[0].id == "low/1.obj"


def test_names_with_signs_of_formulas_and_of_terminals_are_drawn(folder: Path) -> None:
    for number, name in enumerate(("$x^$", "a\nb$", "\x1b[31m$\\frac{$", "\u202e椅子")):
        Path(f"low/{number}.obj").rename(Path("low", f"{name}.obj"))
    query = Path("low/$x^$.obj")
    found = search(query, embedded(), count=8)
    assert draw_sheet(Path("sheet.png"), [found]) == {}
    assert Path("sheet.png").read_bytes().startswith(b"\x89PNG")


def test_an_embedding_names_no_folder_of_this_machine_and_may_be_moved(folder: Path) -> None:
    request = EmbedRequest(
        paths=[folder / "low", folder / "high/5.obj"],
        output=folder / "out" / "a.npz",
        encoder=folder / "encoder",
        points=45,
    )
    index = open_index(embed(request).output)
    assert str(folder) not in json.dumps(index.info)
    assert index.info["encoder"] == "../encoder"
    assert [entry["path"] for entry in index.info["inputs"]] == ["../low", "../high/5.obj"]
    assert embed(request).was_complete
    moved = folder.with_name(f"{folder.name}-moved")
    folder.rename(moved)
    os.chdir(moved)
    found = search(moved / "low/1.obj", open_index(moved / "out/a.npz"), count=5)
    assert found.neighbours[0].id == "low/1.obj"
    assert draw_sheet(Path("sheet.png"), [found]) == {}


def test_an_embedding_of_an_earlier_version_has_absolute_paths(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absolute(base: Path, path: Path) -> str:
        return str(path.resolve())

    with monkeypatch.context() as patched:
        patched.setattr("pointdistill.engine.embedding.embed.path_from", absolute)
        index = embedded()
    assert index.info["encoder"] == str(folder / "encoder")
    found = search(Path("low/1.obj"), index, count=5)
    assert draw_sheet(Path("sheet.png"), [found]) == {}
    assert embedded().info == index.info, "it is still the same embedding"


def test_a_strangers_embedding_has_no_folder_listed_but_the_one_it_is_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[Path] = []
    real = searching.open_archive

    def listing(path: Path, *, absent: str) -> Any:
        listed.append(path)
        return real(path, absent=absent)

    monkeypatch.setattr(searching, "open_archive", listing)
    index = embedded()
    Path("low/new.obj").write_bytes(Path("low/1.obj").read_bytes())
    assert searching.new_files(index) == 1
    assert listed == [folder / "low", folder / "high"]
    for elsewhere in ("/", ".."):
        for entry in index.info["inputs"]:
            entry["path"] = elsewhere
        vars(index).pop("facts")
        assert searching.new_files(index) == 0
    assert len(listed) == 2


def test_a_strangers_embedding_fetches_nothing_unasked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def fetch(repository: str, **_: object) -> Path:
        fetched.append(repository)
        return folder / "encoder"

    monkeypatch.setattr("pointdistill.engine.weights.encoders.fetch_model", fetch)
    index = embedded()
    index.info["encoder"] = "mallory/shapes"
    vars(index).pop("facts")  # it was checked before it was changed
    with pytest.raises(CheckpointError, match="names mallory/shapes on the Hugging Face Hub") as no:
        search(Path("low/1.obj"), index)
    assert no.value.settings == ("encoder",)
    assert fetched == []
    search(Path("low/1.obj"), index, may_fetch=lambda name: name == "mallory/shapes")
    search(Path("low/1.obj"), index, encoder="mallory/shapes")
    assert fetched
    assert set(fetched) == {"mallory/shapes"}


def test_what_cannot_be_searched_is_one_line(folder: Path) -> None:
    with pytest.raises(DataError, match="no embedding was made in this folder yet"):
        find_index(None)
    with pytest.raises(DataError, match="low: not embedded yet; run `pointdistill embed`"):
        find_index(Path("low"))
    index = embedded()
    with pytest.raises(ConfigError, match="the count must be at least 1"):
        search(Path("low/1.obj"), index, count=0)
    with pytest.raises(DataError, match=r"^absent.obj: no such file or folder"):
        search(Path("absent.obj"), index, encoder="absent")
    with pytest.raises(DataError, match="search needs one: embed the shapes with moments features"):
        search(Path("low/1.obj"), embedded("patches.npz", features="patches"))
    np.savez("plain.npz", features=np.ones((2, 3)))
    with pytest.raises(DataError, match=r"plain\.npz: not an embedding"):
        open_index(Path("plain.npz"))
    content = Path("out.npz").read_bytes()
    Path("cut.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cut\.npz: damaged .*not readable as an embedding"):
        open_index(Path("cut.npz"))


def lying(path: Path, column: str, **header: Any) -> Path:
    """The embedding with another header of one column."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    stream = io.BytesIO(members[f"{column}.npy"])
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    stated = {"descr": dtype.str, "fortran_order": False, "shape": shape} | header
    text = f"{stated!r}\n".encode()
    changed = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + stream.read()
    out = path.with_name("lying.npz")
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in (members | {f"{column}.npy": changed}).items():
            archive.writestr(name, content)
    return out


@pytest.mark.parametrize(
    ("column", "header", "message"),
    [
        ("features", {"shape": (-1, 12)}, r"an array of float32, shape \(-1, 12\)"),
        ("features", {"shape": (8, 2**40)}, "features is an array of float32"),
        ("features", {"shape": (2**40, 12)}, "features has 1,099,511,627,776 rows for 8 shapes"),
        ("features", {"descr": "|O"}, "an array of object"),
        ("ids", {"descr": "<U100000000"}, "ids claims 3,200,000,000 bytes"),
        ("sources", {"descr": "<f4"}, "sources is an array of float32"),
        ("info", {"descr": "<U100000000"}, "info is an array of <U100000000"),
    ],
)
def test_a_header_that_lies_is_refused_before_anything_is_read(
    folder: Path, column: str, header: dict[str, Any], message: str
) -> None:
    """Minus one row made the search go on for ever."""
    path = lying(embedded().path, column, **header)
    with pytest.raises(DataError, match=rf"lying\.npz: .*{message}"):
        open_index(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("code", [0x7FFFFFFF, 0x110000, 0xD800, 0])
def test_ids_that_are_no_text_are_one_line(folder: Path, code: int, compression: int) -> None:
    """NumPy takes any number for a character; such a name, or one with a zero byte, is no part of a path."""
    path = embedded().path
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    ids = np.load(path)["ids"]
    codes = ids.view(np.uint32).reshape(len(ids), -1).copy()
    codes[:, 1] = code
    stream = io.BytesIO()
    np.save(stream, codes.view(ids.dtype).reshape(-1))
    out = path.with_name("odd.npz")
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in (members | {"ids.npy": stream.getvalue()}).items():
            archive.writestr(name, content)
    index = open_index(out)
    with pytest.raises(DataError, match=r"odd\.npz: damaged"):
        _neighbours(index, [(0, 1.0), (3, 0.5)])
    if code:
        with pytest.raises(DataError, match=r"odd\.npz: damaged .*utf-32"):
            list(index.blocks("ids"))


def test_only_folders_that_were_embedded_here_are_looked_into(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's embedding may name the whole disk, and each of its folders many times."""
    index = embedded()
    inputs = tuple(
        EmbeddedInput(kind="folder", path=path, given=str(number))
        for number, path in enumerate([str(tmp_path), "/"] * 100)
    )
    index.__dict__["facts"] = replace(index.facts, inputs=inputs)

    def walk(path: Path, **_: object) -> None:
        pytest.fail(f"{path} was looked into")

    monkeypatch.setattr("pointdistill.engine.embedding.search.open_archive", walk)
    assert new_files(index) == 0


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_features_that_are_not_finite_are_one_line(kind: str) -> None:
    values = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    known = measure([values], len(values))
    assert known is not None
    values[16, 1] = float(kind)
    for comparison in (RAW, Comparison(known.whitened, "whitened")):
        with pytest.raises(DataError, match="memory: features that are not finite"):
            nearest(Rows(values), np.ones((1, 2), np.float32), 2, comparison)
