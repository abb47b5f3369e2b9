"""Search: the nearest by cosine against a sort of everything, the right encoder, and pictures of what is found."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.engine.embedding import file as file_module
from pointdistill.engine.embedding.embed import EmbedRequest, embed
from pointdistill.engine.embedding.file import Index, open_index
from pointdistill.engine.embedding.search import draw_sheet, find_index, nearest, search
from pointdistill.engine.weights.encoders import save_encoder
from pointdistill.errors import CheckpointError, ConfigError, DataError
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
        info = {"format": file_module.FORMAT, "version": file_module.VERSION}
        super().__init__(Path("memory"), info)
        self.values = values

    def blocks(self, column: str) -> Any:
        yield from (self.values[first : first + 3] for first in range(0, len(self.values), 3))


def test_nearest_is_what_a_sort_of_everything_gives() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(50, 4)).astype(np.float32)
    values[7] = values[30] * 2  # of one direction: a tie, the lower row first
    query = values[30] + 0.01
    cosine = values @ query / np.linalg.norm(values, axis=1) / np.linalg.norm(query)
    expected = np.argsort(-cosine.round(6), kind="stable")[:9]
    found = nearest(Rows(values), query, 9)
    assert {row for row, _ in found[:2]} == {7, 30}
    assert [row for row, _ in found[2:]] == expected[2:].tolist()
    np.testing.assert_allclose([s for _, s in found], np.sort(cosine)[::-1][:9], atol=1e-6)
    assert len(nearest(Rows(values), query, 99)) == 50


def test_a_row_of_zeros_is_like_nothing() -> None:
    values = np.zeros((2, 3), np.float32)
    values[1] = 1
    assert nearest(Rows(values), np.ones(3, np.float32), 2) == [(1, pytest.approx(1)), (0, 0.0)]


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
    gone = draw_sheet(Path("sheet.png"), Path("low/1.obj"), everything)
    assert gone == ["high/6.obj"]
    assert Path("sheet.png").read_bytes().startswith(b"\x89PNG")


def test_blocks_do_not_change_what_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = embedded()
    whole = {name: np.concatenate(list(index.blocks(name))) for name in ("ids", "features")}
    monkeypatch.setattr(file_module, "BLOCK_BYTES", 200)
    blocks = list(index.blocks("features"))
    assert len(blocks) == 8
    np.testing.assert_array_equal(np.concatenate(blocks), whole["features"])
    assert index.pick("ids", [6, 0, 6]) == [whole["ids"][6], whole["ids"][0], whole["ids"][6]]


def test_a_corpus_is_found_by_its_folder_and_drawn_by_its_rows(folder: Path) -> None:
    source = open_source("builtin", SourceRequest(shapes=6, categories=["bed", "mug"]))
    build_corpus(source, folder / "corpus", points=100, workers=0)
    embedded("corpus.npz", paths=[Path("corpus")])
    assert find_index(Path("corpus")) == find_index(None) == Path("corpus.npz")
    found = search(Path("low/1.obj"), open_index(find_index(Path("corpus"))), count=6)
    assert sorted(n.id for n in found.neighbours)[0] == "bed/000000"
    assert draw_sheet(Path("sheet.png"), Path("low/1.obj"), found) == []
    # Another corpus at its place: its rows hold other shapes.
    shutil.rmtree("corpus")
    source = open_source("builtin", SourceRequest(shapes=6, categories=["lamp"]))
    build_corpus(source, folder / "corpus", points=100, workers=0)
    assert len(draw_sheet(Path("sheet.png"), Path("low/1.obj"), found)) == 6


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
    assert draw_sheet(Path("sheet.png"), query, found) == []
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
    assert draw_sheet(Path("sheet.png"), Path("low/1.obj"), found) == []


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
    assert draw_sheet(Path("sheet.png"), Path("low/1.obj"), found) == []
    assert embedded().info == index.info, "it is still the same embedding"


def test_a_strangers_embedding_fetches_nothing_unasked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def fetch(repository: str) -> Path:
        fetched.append(repository)
        return folder / "encoder"

    monkeypatch.setattr("pointdistill.engine.weights.encoders.fetch_encoder", fetch)
    index = embedded()
    index.info["encoder"] = "mallory/shapes"
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
    with pytest.raises(DataError, match="search needs one: embed the shapes with pooled features"):
        search(Path("low/1.obj"), embedded("patches.npz", features="patches"))
    np.savez("plain.npz", features=np.ones((2, 3)))
    with pytest.raises(DataError, match=r"plain\.npz: not an embedding"):
        open_index(Path("plain.npz"))
    content = Path("out.npz").read_bytes()
    Path("cut.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cut\.npz: not readable as an embedding"):
        open_index(Path("cut.npz"))
