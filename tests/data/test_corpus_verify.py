"""Damage is found, and named as precisely as possible."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from pointdistill.data.corpus import open_corpus, verify_corpus
from pointdistill.data.corpus.inspect import find_damage
from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.errors import CorpusError
from tests.data.test_corpus import edit, some_rows, write_corpus

DOCS = Path(__file__).parents[2] / "docs" / "corpus-format.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve built-in shapes of 32 points in one shard."""
    source = open_source("builtin", SourceRequest(shapes=12, categories=("chair", "table")))
    return build_corpus(source, tmp_path / "corpus", points=32, workers=0).path


def flip_byte(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def place_of(path: Path, dataset: str) -> int:
    with h5py.File(path, "r") as file:
        return int(file[dataset].id.get_offset())


def test_a_whole_corpus_has_nothing_wrong(folder: Path) -> None:
    steps: list[tuple[int, int]] = []
    assert verify_corpus(folder, progress=lambda *step: steps.append(step)) == ()
    assert steps == [(1, 1)]


@pytest.mark.parametrize("row", [0, 5, 11])
@pytest.mark.parametrize("dataset", ["points", "center", "scale", "part"])
def test_one_flipped_bit_names_its_shape(folder: Path, dataset: str, row: int) -> None:
    shard = folder / "builtin-00000.h5"
    row_bytes = {"points": 32 * 6, "center": 12, "scale": 4, "part": 32}[dataset]
    flip_byte(shard, place_of(shard, dataset) + row * row_bytes)
    name = open_corpus(folder)[row].id
    assert verify_corpus(folder) == (
        f"builtin-00000.h5: shape {row} ({name}): does not match its checksum",
    )


def test_a_changed_label_and_a_changed_id_are_noticed(folder: Path) -> None:
    with h5py.File(folder / "builtin-00000.h5", "r+") as file:
        file["label"][2] = 1
        file["label"][3] = 7
    first, second = verify_corpus(folder)
    assert "shape 2 (chair/000002): does not match its checksum" in first
    assert "shape 3 (chair/000003): label 7 of 2" in second


def test_a_damaged_id_does_not_write_on_the_terminal(folder: Path) -> None:
    with h5py.File(folder / "builtin-00000.h5", "r+") as file:
        file["id"][2] = b"a\x1b[2J\nb"
    assert verify_corpus(folder) == (
        "builtin-00000.h5: shape 2 (a?[2J?b): does not match its checksum",
    )


def test_damaged_offsets_are_noticed(folder: Path) -> None:
    with h5py.File(folder / "builtin-00000.h5", "r+") as file:
        file["offsets"][4] = 1000
    assert verify_corpus(folder) == (
        "builtin-00000.h5: offsets are damaged, so no shape can be told from the next",
    )


def test_damage_outside_the_shapes_is_told_apart(folder: Path) -> None:
    shard = folder / "builtin-00000.h5"
    flip_byte(shard, place_of(shard, "label_names") + 1)
    (problem,) = verify_corpus(folder)
    assert problem == "builtin-00000.h5: changed since it was written, but no shape is affected"


def test_a_shape_swapped_for_another_is_noticed(tmp_path: Path, folder: Path) -> None:
    """A shard in itself whole, of another seed, under the first one's name and checksum."""
    source = open_source("builtin", SourceRequest(shapes=12, categories=("chair", "table")))
    other = build_corpus(source, tmp_path / "other", points=32, seed=1, workers=0).path
    shard = other / "builtin-00000.h5"
    (folder / shard.name).write_bytes(shard.read_bytes())
    stored = json.loads((folder / "corpus.json").read_text())
    stored["shards"] = json.loads((other / "corpus.json").read_text())["shards"]
    (folder / "corpus.json").write_text(json.dumps(stored))
    (problem,) = verify_corpus(folder)
    assert "the rows give content" in problem


def test_missing_short_and_garbled_shards_are_named(folder: Path) -> None:
    shard = folder / "builtin-00000.h5"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    assert "cut short" in verify_corpus(folder)[0]
    shard.write_bytes(bytes(len(content)))
    assert "damaged, none of its 12 shapes can be read" in verify_corpus(folder)[0]
    shard.unlink()
    assert "missing, with 12 shapes" in verify_corpus(folder)[0]


def test_values_that_are_not_finite_are_noticed_even_with_a_fitting_checksum(folder: Path) -> None:
    """Whoever writes a corpus with other code must not slip a NaN into training."""
    from pointdistill.data.corpus.shard import Quantised, row_digest

    with h5py.File(folder / "builtin-00000.h5", "r+") as file:
        file["scale"][0] = np.nan
        shape = Quantised(file["points"][:32], file["center"][0], np.float32(np.nan))
        part = file["part"][:32]
        digest = row_digest(
            shape, source="builtin", shape_id="chair/000000", label="chair", part=part
        )
        file["sha256"][0] = np.frombuffer(digest, np.uint8)
    assert "shape 0 (chair/000000): center or scale is not finite" in verify_corpus(folder)[0]


@pytest.mark.parametrize(
    ("dataset", "value", "problem"),
    [
        ("scale", np.float32(-1.0), "scale -1.0 is negative, which mirrors it"),
        ("center", np.float32(3e38), "its points lie beyond 1e+30"),
        ("points", np.int16(-32768), "a point lies outside its cube (below -32767)"),
    ],
)
def test_values_that_no_reader_expects_are_noticed(
    folder: Path, dataset: str, value: np.generic, problem: str
) -> None:
    from pointdistill.data.corpus.shard import Quantised, row_digest

    with h5py.File(folder / "builtin-00000.h5", "r+") as file:
        file[dataset][0] = value
        shape = Quantised(file["points"][:32], file["center"][0], file["scale"][0])
        digest = row_digest(
            shape, source="builtin", shape_id="chair/000000", label="chair", part=file["part"][:32]
        )
        file["sha256"][0] = np.frombuffer(digest, np.uint8)
    assert f"shape 0 (chair/000000): {problem}" in verify_corpus(folder)[0]


def test_a_dataset_of_another_shape_is_a_line_and_no_crash(folder: Path) -> None:
    shard = folder / "builtin-00000.h5"
    with h5py.File(shard, "r+") as file:
        few = file["center"][:5]
        del file["center"]
        file["center"] = few
    stored = json.loads((folder / "corpus.json").read_text())
    stored["shards"][0]["bytes"] = shard.stat().st_size
    (folder / "corpus.json").write_text(json.dumps(stored))
    assert verify_corpus(folder) == (
        "builtin-00000.h5: center is float32 (5, 3), expected f4 (12, 3), so no shape can be read",
    )


def test_a_manifest_that_lost_a_shard_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    rows = some_rows("a", 9)
    write_corpus(folder, [("a", rows[:3]), ("a", rows[3:])])
    stored = json.loads((folder / "corpus.json").read_text())
    edit(folder, {"shards": stored["shards"][:1], "shapes": 3})
    assert verify_corpus(folder) == ("corpus.json: counts 9 shapes of a, its shards hold 3",)


@pytest.mark.parametrize("shapes", [2**62, 8, -1, "nine", None])
def test_a_manifest_that_says_another_number_than_its_shards_is_refused(
    tmp_path: Path, shapes: object
) -> None:
    folder = tmp_path / "corpus"
    write_corpus(folder, [("a", some_rows("a", 9))])
    edit(folder, {"shapes": shapes})
    with pytest.raises(CorpusError, match=r"says .* shapes, and its shards 9"):
        verify_corpus(folder)


def test_damage_is_told_as_soon_as_it_is_found(tmp_path: Path) -> None:
    """The first of three shards is damaged: its line comes before the others are read."""
    folder = tmp_path / "corpus"
    rows = some_rows("a", 9)
    write_corpus(folder, [("a", rows[:3]), ("a", rows[3:6]), ("a", rows[6:])])
    flip_byte(folder / "a-00000.h5", place_of(folder / "a-00000.h5", "scale"))
    steps: list[int] = []
    problems = find_damage(folder, progress=lambda done, _: steps.append(done))
    assert next(problems) == "a-00000.h5: shape 0 (a/é00): does not match its checksum"
    assert steps == []
    assert list(problems) == []
    assert steps == [1, 2, 3]


def test_the_recipe_of_the_docs_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = open_source("builtin", SourceRequest(shapes=12, categories=("chair", "table")))
    corpus = open_corpus(build_corpus(source, tmp_path / "data/builtin", points=32, workers=0).path)
    recipe = DOCS.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(recipe, names)
    assert capsys.readouterr().out == "table/000001 table (32, 3)\n"
    assert np.allclose(names["xyz"], corpus.points(7), rtol=0, atol=1e-6)


def test_checksums_are_those_of_the_docs(folder: Path) -> None:
    """Computed here by the docs' words, with h5py alone."""
    whole = hashlib.sha256()
    with h5py.File(folder / "builtin-00000.h5", "r") as file:
        for row in range(12):
            start, stop = file["offsets"][row : row + 2]
            label = file["label_names"].asstr()[file["label"][row]]
            digest = hashlib.sha256()
            for text in ("builtin", file["id"].asstr()[row], label):
                digest.update(text.encode() + b"\0")
            for values in (
                file["center"][row],
                file["scale"][row],
                file["points"][start:stop],
                file["part"][start:stop],
            ):
                digest.update(values.tobytes())
            assert digest.digest() == file["sha256"][row].tobytes()
            whole.update(digest.digest())
    assert whole.hexdigest() == json.loads((folder / "corpus.json").read_text())["content"]
