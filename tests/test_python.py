"""The Python interface: the command's features for files and arrays, search, models, and docs/python.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import torch

import pointdistill
from pointdistill.engine.embedding.embed import EmbedRequest
from pointdistill.engine.embedding.embed import embed as embed_files
from pointdistill.engine.embedding.index import open_index
from pointdistill.engine.embedding.search import search_all
from pointdistill.engine.weights.encoders import load_encoder
from pointdistill.errors import CheckpointError, ConfigError, DataError
from tests.cli.typed import typed
from tests.engine.labelled import saved_encoder
from tests.engine.test_models import classifier_folder
from tests.engine.test_push import hub as hub

ROOT = Path(__file__).parents[1]
TETRAHEDRON = "OFF\n4 4 0\n0 0 0\n2 0 0\n0 1 0\n0 0 3\n3 0 2 1\n3 0 1 3\n3 0 3 2\n3 1 2 3\n"


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An encoder, and a folder with a mesh, clouds of two sizes in a sub-folder, and a file that is no mesh."""
    monkeypatch.chdir(tmp_path)
    saved_encoder(tmp_path / "encoder")
    rng = np.random.default_rng(0)
    folder = tmp_path / "my-meshes"
    (folder / "clouds").mkdir(parents=True)
    (folder / "chair.off").write_text(TETRAHEDRON)
    (folder / "broken.stl").write_text("no mesh")
    for number, count in enumerate((60, 9000, 9000)):
        np.save(folder / "clouds" / f"{number}.npy", rng.normal(size=(count, 3)) * [1, 2, 3])
    return folder


def test_a_folder_has_the_features_of_the_command(
    shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, _ = typed(capsys)("embed", "my-meshes", "--encoder", "encoder")
    assert code == 2  # one file is no mesh
    found = pointdistill.embed("my-meshes", encoder="encoder")
    with np.load("embedding.npz") as stored:
        assert found.names == tuple(stored["ids"])
        assert (found.features == stored["features"]).all()
    assert found.names == ("chair.off", "clouds/0.npy", "clouds/1.npy", "clouds/2.npy")
    ((name, reason),) = found.failed
    assert name == "broken.stl"
    assert "STL" in reason
    assert (len(found), found.assumed_up, found.left_out.line()) == (4, 4, "")


@pytest.mark.parametrize("kind", ["moments", "pooled", "cls", "patches", "points"])
def test_an_array_has_the_features_of_the_file_with_its_name(shapes: Path, kind: str) -> None:
    files = [shapes / "clouds" / f"{number}.npy" for number in range(3)]
    encoder = pointdistill.load_encoder("encoder")
    expected = pointdistill.embed(files, encoder=encoder, features=kind)
    arrays = {file.name: np.load(file) for file in files}
    found = pointdistill.embed(arrays, encoder=encoder, features=kind)
    assert found.names == tuple(arrays)
    np.testing.assert_allclose(found.features, expected.features, atol=1e-6)
    assert (found.offsets is None) == (kind in ("moments", "pooled", "cls"))
    if found.offsets is not None and expected.offsets is not None:
        assert (found.offsets == expected.offsets).all()
        assert found.positions is not None
        assert expected.positions is not None
        np.testing.assert_allclose(found.positions, expected.positions, atol=1e-6)
    assert found.assumed_up == 0


def test_an_array_without_a_name_has_the_same_features_anywhere(shapes: Path) -> None:
    encoder = pointdistill.load_encoder("encoder")
    first, second = (np.load(shapes / "clouds" / f"{number}.npy") for number in (1, 2))
    alone = encoder.encode(first)
    assert alone.shape == (1, 4 * encoder.config.width)
    tensor = torch.from_numpy(second).requires_grad_()
    rows = encoder.encode([tensor, shapes / "chair.off", first, "my-meshes/chair.off"])
    np.testing.assert_allclose(rows[2], alone[0], atol=1e-6)
    assert (rows[1] == rows[3]).all()  # a path that was given twice has two rows
    stacked = encoder.encode(np.stack([first, second]))
    np.testing.assert_allclose(stacked, rows[[2, 0]], atol=1e-6)
    turned = encoder.encode(first[:, [2, 0, 1]], up="x")  # old z is the new x
    np.testing.assert_allclose(turned[0], alone[0], atol=1e-5)


def test_encoding_leaves_the_mode_of_the_encoder(shapes: Path) -> None:
    encoder = pointdistill.load_encoder("encoder")
    evaluated = encoder.encode(shapes / "chair.off")
    encoder.train()
    assert (encoder.encode(shapes / "chair.off") == evaluated).all()
    assert encoder.training
    pointdistill.search(pointdistill.embed("my-meshes", encoder=encoder), shapes / "chair.off")
    assert encoder.training


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("my-meshes", r"^broken\.stl: expected text that begins with 'solid'"),
        ("nowhere.off", r"^nowhere\.off: no such file or folder; check its name$"),
        (np.zeros((50, 2)), r"^array 0: its points have the shape \(50, 2\), accepted is \(n, 3\)"),
        ([np.eye(3)] * 2, r"^array 0: a point cloud of 3 points, 32 are needed; use a denser scan"),
        ([1, 2], r"^expected paths, arrays \(N, 3\) or meshes, got int 1$"),
        (7, r"^expected paths, arrays \(N, 3\) or meshes, got int 7$"),
        ([], r"^no shapes were given"),
        ({}, r"^no shapes were given"),
    ],
)
def test_what_cannot_be_encoded_is_one_line(shapes: Path, given: object, line: str) -> None:
    encoder = pointdistill.load_encoder("encoder")
    with pytest.raises(DataError, match=line):
        encoder.encode(given)  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=r"^features must be moments, pooled or cls, got 'points'"
    ):
        encoder.encode(shapes / "chair.off", features="points")


def test_an_embedding_in_memory_is_searched_like_the_file(shapes: Path) -> None:
    embed_files(EmbedRequest(paths=[shapes], output=Path("index.npz"), encoder="encoder"))
    query = shapes / "clouds" / "1.npy"
    expected = search_all([query], open_index(Path("index.npz")), count=3, others_only=True)
    found = pointdistill.embed(shapes, encoder="encoder")
    for index in (found, "index.npz"):
        report = pointdistill.search(index, query, count=3)
        assert report.compared == expected.compared
        near, known = report.results[0].neighbours, expected.results[0].neighbours
        assert [(one.id, one.location) for one in near] == [(one.id, one.location) for one in known]
        own, same = report.results[0].own, expected.results[0].own
        assert own is not None
        assert same is not None
        assert (own.id, own.location) == (same.id, same.location)
        assert own.id == "clouds/1.npy"
        assert own.id not in [one.id for one in near]
        ours, theirs = ([one.similarity for one in found] for found in (near, known))
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    clouds = {"a": np.load(query), "b": np.load(shapes / "clouds" / "2.npy")}
    memory = pointdistill.embed(clouds, encoder="encoder")
    report = pointdistill.search(memory, [clouds["b"], shapes])
    assert [str(result.path) for result in report.results][:2] == [
        "array 0",
        str(shapes / "chair.off"),
    ]
    assert report.results[0].neighbours[0].location is None
    (result,) = pointdistill.search(memory, {"b": clouds["b"]}).results
    assert result.neighbours[0].id == "b"
    assert result.neighbours[0].similarity == pytest.approx(1, abs=1e-5)
    assert [path.name for path, _ in report.failed] == ["broken.stl"]


def test_another_encoder_is_refused(shapes: Path) -> None:
    index = pointdistill.embed(shapes, encoder="encoder")
    other = pointdistill.load_encoder("encoder")
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    with pytest.raises(CheckpointError, match=r"made by another encoder .* than encoder "):
        pointdistill.search(index, shapes / "chair.off", encoder=other)
    with pytest.raises(DataError, match=r"^.*broken\.stl: expected text"):
        pointdistill.search(index, shapes / "broken.stl")


def test_a_saved_encoder_keeps_its_record_while_it_is_what_was_loaded(shapes: Path) -> None:
    encoder = pointdistill.load_encoder("encoder")
    assert encoder.save_pretrained("same") == Path("same")
    stored = json.loads(Path("same/config.json").read_text())
    assert stored["sources"] == [{"name": "made up", "licence": "CC0", "shapes": 3}]
    assert stored["training"] == {"name": "tiny"}
    with torch.no_grad():
        next(encoder.parameters()).mul_(2)
    encoder.save_pretrained("changed")
    again = pointdistill.load_encoder("changed")
    assert torch.equal(next(again.parameters()), next(encoder.parameters()))
    stored = json.loads(Path("changed/config.json").read_text())
    assert stored["sources"] == [{"name": "made up", "licence": "CC0", "shapes": 3}]
    assert stored["training"]["before"] == {"name": "tiny"}
    with pytest.raises(DataError, match="holds other files"):
        encoder.save_pretrained(shapes)


def test_an_encoder_is_pushed_with_its_card(
    hub: typing.Any, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = pointdistill.load_encoder("encoder")
    assert encoder.push_to_hub("jane/shapes", private=True) == f"{hub.address}/jane/shapes"
    assert sorted(hub.uploads.files) == ["README.md", "config.json", "model.safetensors"]
    assert b"made up" in hub.uploads.files["README.md"]
    Path("down").mkdir()
    for name, content in hub.uploads.files.items():
        Path("down", name).write_bytes(content)
    assert torch.equal(
        next(pointdistill.load_encoder("down").parameters()), next(encoder.parameters())
    )
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(CheckpointError, match=r"no Hugging Face token .*set HF_TOKEN$"):
        encoder.push_to_hub("jane/shapes")
    assert sorted(path.name for path in Path().iterdir()) == ["down", "encoder", "my-meshes"]


def test_a_classifier_from_the_hub_names_files_and_arrays(
    shapes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = classifier_folder(shapes.parent / "model")
    asked: list[str] = []

    def download(repository: str, **_: object) -> str:
        asked.append(repository)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    classifier = pointdistill.load_classifier("jane/chairs")
    assert asked == ["jane/chairs"]
    cloud = np.load(shapes / "clouds" / "1.npy")
    found = classifier.predict([cloud, shapes, shapes / "chair.off"])
    assert len(found) == 6
    assert [Path(name).name for name in found.names] == [
        "array 0",
        "chair.off",
        "0.npy",
        "1.npy",
        "2.npy",
        "chair.off",
    ]
    assert found.probabilities.shape == (6, len(found.classes))
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-5)
    assert found.labels == tuple(found.classes[k] for k in found.probabilities.argmax(1))
    assert [Path(name).name for name, _ in found.failed] == ["broken.stl"]
    code, out, _ = typed(capsys)("predict", "jane/chairs", "my-meshes", "--json")
    assert code == 2
    by_file = {row["file"]: row["probabilities"] for row in json.loads(out)["files"]}
    own = dict(zip(found.classes, found.probabilities[1].tolist(), strict=True))
    assert by_file["my-meshes/chair.off"] == pytest.approx(own, abs=1e-6)
    named = classifier.predict({"1.npy": cloud})
    np.testing.assert_allclose(named.probabilities[0], found.probabilities[3], atol=1e-6)
    with pytest.raises(DataError, match=r"^nowhere\.off: no such file"):
        classifier.predict("nowhere.off")


def test_the_loaded_encoder_is_the_stored_one(shapes: Path) -> None:
    found, expected = pointdistill.load_encoder("encoder"), load_encoder("encoder")
    assert not found.training
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, weight in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight)
    assert not any(weight.requires_grad for weight in found.parameters())
    assert not any(weight.is_meta for weight in (*found.parameters(), *found.buffers()))


def test_the_package_tells_its_names_without_loading_torch() -> None:
    assert set(pointdistill.__all__) <= set(dir(pointdistill))
    for name in pointdistill.__all__:
        assert getattr(pointdistill, name) is not None
    # An editor reads the same names from the imports that are made for it alone.
    text = (ROOT / "src" / "pointdistill" / "__init__.py").read_text(encoding="utf-8")
    hinted = re.findall(r"^    from pointdistill\.\S+ import (.*)$", text, flags=re.MULTILINE)
    names = {name for line in hinted for name in line.split(", ")}
    assert names == {*pointdistill.__all__} - {"__version__"}
    for name in ("embed", "search", "load_encoder", "load_classifier", "sample_surface"):
        hints = getattr(pointdistill, name).__annotations__
        assert "return" in hints
    assert (ROOT / "src" / "pointdistill" / "py.typed").exists()
    code = "import time; t = time.perf_counter(); import pointdistill, sys; dir(pointdistill); "
    code += "print(time.perf_counter() - t, 'torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *loaded = done.stdout.split()
    assert loaded == ["False", "False"]
    assert float(seconds) < 0.5


def test_the_page_runs_as_written(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of docs/python.md but the upload, in one program."""
    (shapes / "broken.stl").unlink()
    classifier_folder(shapes.parent / "models" / "mine")
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) > 8
    names: dict[str, typing.Any] = {}
    torch.manual_seed(0)
    for block in blocks:
        if "push_to_hub" not in block:
            exec(compile(block, "docs/python.md", "exec"), names)
    assert names["features"].shape == (2, 384)
    assert len(names["answers"].labels) == 5
    trained = json.loads(Path("continued/config.json").read_text())
    assert "changed" in trained["training"]
    assert torch.isfinite(names["loss"])
