"""Embeddings: the same features whatever the batch, the neighbours or a kill in between; files anyone can read."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pointdistill import load_encoder
from pointdistill.data.meshes.sample import named_rng
from pointdistill.data.sources import paths as shape_lists
from pointdistill.data.sources.paths import ReadSettings, ShapeLocation, read_shape
from pointdistill.engine.embedding import embed as embed_module
from pointdistill.engine.embedding import loop
from pointdistill.engine.embedding.compute import (
    GPU_THREADS,
    MOST_DRAWS,
    FeatureKind,
    FeatureMaker,
    GpuWay,
    inference_threads,
)
from pointdistill.engine.embedding.embed import EmbedRequest, embed
from pointdistill.engine.embedding.file import Chunk, WorkFolder
from pointdistill.engine.embedding.index import open_index
from pointdistill.engine.features.extract import frozen_copy
from pointdistill.engine.weights.encoders import save_encoder
from pointdistill.errors import CheckpointError, ConfigError, DataError
from pointdistill.model.config import EncoderConfig
from pointdistill.model.encoder import Encoder, EncoderOutput
from pointdistill.reporter import Reporter

MICRO = EncoderConfig(
    width=12,
    depth=2,
    heads=2,
    stage_one=(8, 8),
    stage_two=(8,),
    points=48,
    patches=8,
    patch_points=6,
)
COUNTS = (48, 60, 48, 200, 7, 48, 60, 48, 48, 90, 48)


class OnProgress(Reporter):
    """Calls a function with the number of shapes done."""

    def __init__(self, call: Callable[[float], object]) -> None:
        self._call = call

    def progress(
        self, task: str, done: float, total: float | None = None, *, note: str = "", unit: str = ""
    ) -> None:
        self._call(done)


def random_encoder(config: EncoderConfig = MICRO, seed: int = 0) -> Encoder:
    """Features of order one, so that 1e-5 means something."""
    torch.manual_seed(seed)
    encoder = Encoder(config).eval().requires_grad_(requires_grad=False)
    for name, weight in encoder.named_parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.3)
        elif "norm" in name:
            nn.init.normal_(weight, 1.0, 0.3)
    return encoder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An encoder, and clouds of many sizes; the one of 7 points has the fewest that may be."""
    monkeypatch.chdir(tmp_path)
    save_encoder(random_encoder(), tmp_path / "encoder")
    rng = np.random.default_rng(0)
    (tmp_path / "clouds").mkdir()
    for number, count in enumerate(COUNTS):
        # Fewer than 32 points are refused by the reader of any cloud.
        cloud = rng.normal(size=(max(count, 32), 3)) * [1, 2, 3] + number
        np.save(tmp_path / "clouds" / f"{number:02d}.npy", cloud.astype(np.float32))
    return tmp_path


def request(output: str = "out.npz", **changes: Any) -> EmbedRequest:
    plain = EmbedRequest(
        paths=[Path("clouds")], output=Path(output), encoder="encoder", points=100, draws=1, turns=1
    )
    return replace(plain, **changes)


def features(output: str = "out.npz", **changes: Any) -> NDArray[np.float32]:
    embed(request(output, **changes))
    with np.load(output) as stored:
        found: NDArray[np.float32] = stored["features"]
    return found


def vectors_of(out: EncoderOutput, kind: str = "moments") -> NDArray[np.float32]:
    """What `embed` is to give for each cloud of an encoder's output, computed by NumPy in double precision."""
    assert out.cls is not None
    patches = out.patches.double().numpy()
    parts = [out.cls.double().numpy(), patches.mean(1)]
    if kind == "pooled":
        parts += [patches.max(1)]
    else:
        central = patches - patches.mean(1, keepdims=True)
        parts += [patches.std(1), (central**3).mean(1) / patches.var(1)]
    return np.concatenate(parts, axis=1).astype(np.float32)


@pytest.mark.parametrize("cls_token", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_frozen_copy_is_the_same_function(cls_token: bool, bias: bool) -> None:
    config = replace(MICRO, cls_token=cls_token, embedding_bias=bias, stage_two=(8, 10))
    encoder = random_encoder(config)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    points = torch.randn(5, 130, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = encoder(points), frozen_copy(encoder)(points)
        again = encoder(points)
    torch.testing.assert_close(found.patches, expected.patches, rtol=0, atol=1e-5)
    assert (found.cls is None) == (not cls_token)
    if cls_token:
        torch.testing.assert_close(found.cls, expected.cls, rtol=0, atol=1e-5)
    assert torch.equal(again.patches, expected.patches)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("kind", ["moments", "pooled"])
def test_features_are_the_encoders_own(folder: Path, kind: str) -> None:
    found = features(features=kind)
    encoder = load_encoder("encoder")
    for row, file in zip(found, sorted(Path("clouds").iterdir()), strict=True):
        cloud = np.load(file)
        if len(cloud) <= 100:
            with torch.inference_mode():
                out = encoder(torch.from_numpy(cloud)[None])
            np.testing.assert_allclose(row, vectors_of(out, kind)[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["moments", "pooled", "points"])
def test_neither_batch_nor_neighbours_matter(folder: Path, kind: str) -> None:
    expected = features(features=kind)
    for size in (1, 3, 64):
        found = features(f"batch-{size}.npz", features=kind, batch_size=size)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    alone = features("alone.npz", features=kind, paths=[Path("clouds/03.npy")])
    offsets = np.load("out.npz")["offsets"] if kind == "points" else np.arange(len(COUNTS) + 1)
    np.testing.assert_allclose(alone, expected[offsets[3] : offsets[4]], rtol=0, atol=1e-5)


def test_the_seed_matters_where_points_are_drawn_and_only_there(folder: Path) -> None:
    one, other = features(), features("other.npz", seed=1)
    changed = np.abs(one - other).max(axis=1) > 1e-5
    assert changed.tolist() == [count > 100 for count in COUNTS]


def test_draws_are_averaged_as_far_as_the_points_go(folder: Path) -> None:
    """Runs of 16 of the shuffled cloud: 48 points are three, 32 are two, and 200 give 48 of themselves."""
    found = features(points=16, draws=3)
    encoder = load_encoder("encoder")
    for number, draws in ((0, 3), (4, 2)):
        cloud = np.load(f"clouds/{number:02d}.npy")
        order = named_rng(0, f"{number:02d}.npy").permutation(len(cloud))
        rows = cloud[order].reshape(draws, 16, 3)
        with torch.inference_mode():
            out = encoder(torch.from_numpy(rows))
        np.testing.assert_allclose(found[number], vectors_of(out).mean(0), atol=1e-5)
    # An encoder of fewer than 1,024 points averages by itself, of as many as have 8,192 together.
    embed(request("default.npz", points=None, draws=None, turns=None))
    info = open_index(Path("default.npz")).info
    assert (info["turns"], info["draws"]) == (8, 8192 // 48 // 8)


def about_z(cloud: NDArray[np.float32], degrees: float) -> NDArray[np.float32]:
    angle = np.radians(degrees)
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = [[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]
    return (cloud @ np.transpose(turn)).astype(np.float32)


def test_draws_are_turned_to_equally_spaced_angles(folder: Path) -> None:
    """A cloud of one draw is seen from all angles; a larger one has a draw of its own at each."""
    found = features(points=48, turns=4)
    encoder = load_encoder("encoder")

    def expected(clouds: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        with torch.inference_mode():
            out = encoder(torch.from_numpy(np.stack(clouds)))
        return vectors_of(out).mean(0)

    one = np.load("clouds/00.npy")
    one = one[named_rng(0, "00.npy").permutation(len(one))]
    np.testing.assert_allclose(
        found[0], expected([about_z(one, 90 * k) for k in range(4)]), atol=1e-4
    )
    # 192 of the 200 points: rows 0 to 47 as they are, 48 to 95 turned by 90 degrees, and so on.
    rng = named_rng(0, "03.npy")
    cloud = np.load("clouds/03.npy")
    cloud = rng.permutation(cloud[np.sort(rng.choice(200, 192, replace=False, shuffle=False))])
    draws = [about_z(cloud[48 * k : 48 * (k + 1)], 90 * k) for k in range(4)]
    np.testing.assert_allclose(found[3], expected(draws), atol=1e-4)


def test_features_averaged_over_turns_do_not_depend_on_how_a_shape_stands(folder: Path) -> None:
    """By a quarter turn, which is among the four; one angle alone tells them apart."""
    cloud = np.load("clouds/00.npy")
    changed = {}
    for turns in (1, 4):
        maker = FeatureMaker(
            random_encoder(), "moments", torch.device("cpu"), points=48, turns=turns
        )
        plain, turned = maker([cloud, about_z(cloud, 90)])
        changed[turns] = np.abs(plain.features - turned.features).max()
    assert changed[4] < 1e-4
    assert changed[1] > 1e-2


@pytest.mark.parametrize("count", [17, 40, 47])
def test_every_point_of_a_cloud_is_in_a_draw(folder: Path, count: int) -> None:
    """Moving any one point changes the features, though the draws of 16 do not come out even."""
    cloud = np.load("clouds/00.npy")[:count]
    # Sorted, as exporters write clouds: without a shuffle each draw would be a slice.
    cloud = cloud[cloud[:, 2].argsort()]
    maker = FeatureMaker(random_encoder(), "pooled", torch.device("cpu"), points=16)
    moved = np.repeat(cloud[None], count, axis=0)
    moved[np.arange(count), np.arange(count)] += np.float32(0.5)
    (plain,) = maker([cloud])
    for other in maker(list(moved)):
        assert np.abs(other.features - plain.features).max() > 1e-4


def test_the_order_in_a_file_is_not_that_of_the_draws(folder: Path) -> None:
    """A cloud sorted by z: every draw reaches over nearly all of it."""
    cloud = np.load("clouds/03.npy")
    np.save("sorted.npy", cloud[cloud[:, 2].argsort()])
    plain = ReadSettings(points=200, seed=0)
    location = ShapeLocation("file", str(Path("sorted.npy").resolve()), "sorted.npy", 0)
    kept, shuffled = (
        read_shape(location, s).points for s in (plain, replace(plain, shuffled=True))
    )
    assert kept is not None
    assert shuffled is not None
    assert (np.diff(kept[:, 2]) >= 0).all()
    np.testing.assert_array_equal(shuffled[shuffled[:, 2].argsort()], kept)
    heights = shuffled[:, 2].reshape(4, 50)
    assert (np.ptp(heights, axis=1) > 0.5 * np.ptp(kept[:, 2])).all()


def test_an_archive_that_is_gone_stops_the_work_and_it_goes_on_when_it_is_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_module, "CHUNK_SHAPES", 3)
    archive = Path(shutil.make_archive("clouds", "zip", "clouds"))
    expected = features("whole.npz", paths=[archive])

    def take_away(done: float) -> None:
        if archive.exists():
            archive.rename("elsewhere.zip")

    asked = request(paths=[archive], batch_size=1, workers=0)
    with pytest.raises(DataError, match=r"clouds.zip: is gone; put it back and go on"):
        embed(asked, reporter=OnProgress(take_away))
    assert not Path("out.npz").exists()
    assert Path(".out.npz.work").exists()
    Path("elsewhere.zip").rename(archive)
    report = embed(asked)
    assert (report.shapes, report.failed, report.was_complete) == (len(COUNTS), (), False)
    np.testing.assert_allclose(np.load("out.npz")["features"], expected, rtol=0, atol=1e-5)


def test_patches_and_points_have_positions(folder: Path) -> None:
    embed(request(features="patches"))
    embed(request("points.npz", features="points"))
    patches, points = np.load("out.npz"), np.load("points.npz")
    sizes = [min(max(count, 32), 100) for count in COUNTS]
    assert np.diff(points["offsets"]).tolist() == sizes
    # 8 patches of 48 points: one for six. A view of more than 96 points is thinned to 48.
    counts = [8 if size > 96 else round(size / 6) for size in sizes]
    assert np.diff(patches["offsets"]).tolist() == counts
    cloud = np.load("clouds/01.npy")
    np.testing.assert_array_equal(points["positions"][48 : 48 + 60], cloud)
    centers = patches["positions"][8 : 8 + 10]
    gaps = np.linalg.norm(centers[:, None] - cloud[None], axis=2).min(axis=1)
    assert gaps.max() < 1e-4
    # At a patch's centre a point has that patch's features all but alone.
    at = np.linalg.norm(centers[0] - cloud, axis=1).argmin()
    np.testing.assert_allclose(points["features"][48 + at], patches["features"][8], atol=1e-3)


def test_parquet_holds_what_npz_holds(folder: Path) -> None:
    pytest.importorskip("pyarrow")
    for kind in ("cls", "patches"):
        embed(request(f"{kind}.npz", features=kind))
        embed(request(f"{kind}.parquet", features=kind))
    plain, columns = open_index(Path("cls.npz")), open_index(Path("cls.parquet"))
    assert columns.info == plain.info
    for name in ("ids", "sources", "rows", "features"):
        one, other = (np.concatenate(list(index.blocks(name))) for index in (plain, columns))
        np.testing.assert_array_equal(other, one)
    import pyarrow.parquet

    table = pyarrow.parquet.read_table("patches.parquet")
    stored = np.load("patches.npz")
    rows = table["features"].to_pylist()
    assert [len(row) for row in rows] == np.diff(stored["offsets"]).tolist()
    np.testing.assert_array_equal(np.concatenate(rows).astype(np.float32), stored["features"])
    places = np.concatenate(table["positions"].to_pylist()).astype(np.float32)
    np.testing.assert_array_equal(places, stored["positions"])


def test_two_at_once_do_not_mix(folder: Path) -> None:
    """The second would go on with the first one's chunks, and the first would join the second one's."""
    pytest.importorskip("fcntl")
    refused: list[str] = []

    def begin_another(done: float) -> None:
        if done == 4:
            with pytest.raises(DataError) as caught:
                embed(request(seed=1))
            refused.append(str(caught.value))

    report = embed(request(batch_size=1), reporter=OnProgress(begin_another))
    assert refused == [
        "out.npz: another process is writing it; wait for that one, or choose another output file"
    ]
    assert report.shapes == len(COUNTS)
    assert not list(folder.glob(".*.lock"))


def test_stopped_and_called_again_it_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = features("whole.npz")
    monkeypatch.setattr(embed_module, "CHUNK_SHAPES", 3)

    def stop_at_four(done: float) -> None:
        if done == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    report = embed(request(batch_size=1), reporter=OnProgress(stop_at_four))
    assert report.interrupted
    assert 0 < report.shapes < len(COUNTS)
    assert not Path("out.npz").exists()
    read: list[str] = []
    original = shape_lists.read_shape

    def counted(location: Any, settings: Any) -> Any:
        read.append(location.name)
        return original(location, settings)

    monkeypatch.setattr(shape_lists, "read_shape", counted)
    np.testing.assert_allclose(features(), expected, rtol=0, atol=1e-5)
    assert len(read) == len(COUNTS) - report.shapes
    assert sorted(path.name for path in folder.iterdir() if path.name.endswith(".work")) == []
    # Complete: nothing is read again, and the same report comes back.
    read.clear()
    assert embed(request()).was_complete
    assert read == []


def test_killed_at_any_moment_it_goes_on_to_the_same_file(folder: Path) -> None:
    code = (
        "from tests.engine.test_embedding import OnProgress, embed_module, request, time;"
        "embed_module.CHUNK_SHAPES = 1; slow = OnProgress(lambda done: time.sleep(0.05));"
        "embed_module.embed(request(batch_size=1, workers=0), reporter=slow)"
    )
    root = Path(__file__).parent.parent.parent
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}"}
    started = subprocess.Popen([sys.executable, "-c", code], env=environment)
    chunks = folder / ".out.npz.work"
    while not list(chunks.glob("chunk-*")):
        assert started.poll() is None
        time.sleep(0.02)
    started.kill()
    started.wait()
    left = len(list(chunks.glob("chunk-*")))
    assert 0 < left < len(COUNTS)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    np.testing.assert_allclose(np.load("out.npz")["features"], features("whole.npz"), atol=1e-5)


def test_the_size_of_a_chunk_changes_no_byte_and_no_batch_is_larger_than_a_forward_pass_may_be(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 64 draws a shape, 1,024 draws are 16 shapes, which is a batch on a CPU; a batch goes in two passes."""
    passes: list[int] = []
    chunks: list[int] = []
    compute, save = FeatureMaker._vectors, WorkFolder.save

    def counted(maker: FeatureMaker, clouds: torch.Tensor) -> torch.Tensor:
        passes.append(len(clouds))
        return compute(maker, clouds)

    def noted(work: WorkFolder, number: int, chunk: Chunk) -> None:
        chunks.append(chunk.size)
        save(work, number, chunk)

    monkeypatch.setattr(FeatureMaker, "_vectors", counted)
    monkeypatch.setattr(WorkFolder, "save", noted)
    rng = np.random.default_rng(0)
    for number in range(40):
        np.save(folder / "clouds" / f"{number:02d}.npy", rng.normal(size=(4000, 3)))
    written = []
    for draws, expected in ((1024, [16, 16, 8]), (1, [16, 16, 8]), (2048, [32, 8]), (4096, [40])):
        monkeypatch.setattr(embed_module, "CHUNK_CLOUDS", draws)
        embed(request(f"{draws}.npz", points=48, draws=8, turns=8, workers=0))
        assert chunks == expected
        # 40 shapes of 64 draws: whatever the chunk, two batches of 16 and one of 8.
        assert passes == [MOST_DRAWS] * 5
        written.append(Path(f"{draws}.npz").read_bytes())
        chunks.clear()
        passes.clear()
    assert set(written) == {written[0]}


def test_few_chunks_are_in_memory_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a shape a chunk and a batch: one more than wait for the threads, and not all eleven."""
    monkeypatch.setattr(embed_module, "CHUNK_SHAPES", 1)
    before = torch.get_num_threads()
    threads = min(before, 2)
    open_chunks = []
    collect = loop.EmbeddingLoop._collect

    def noted(working: loop.EmbeddingLoop) -> None:
        open_chunks.append(len(working._unfinished))
        collect(working)

    monkeypatch.setattr(loop.EmbeddingLoop, "_collect", noted)
    torch.set_num_threads(threads)
    try:
        embed(request(batch_size=1))
    finally:
        torch.set_num_threads(before)
    assert len(open_chunks) == len(COUNTS)
    assert max(open_chunks) <= 2 * threads + 1


def test_another_request_does_not_take_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed(request())
    with pytest.raises(
        DataError, match=r"out.npz: exists, and differs .*: another seed; have it replaced"
    ) as caught:
        embed(request(seed=1))
    assert caught.value.settings == ("overwrite", "output", "seed")
    Path("out.npz").write_bytes(b"something else")
    with pytest.raises(DataError, match="not readable as an embedding"):
        embed(request())
    monkeypatch.setattr(loop.EmbeddingLoop, "run", lambda *_, **__: None)
    monkeypatch.setattr(embed_module, "_finish", lambda *_: None)
    embed(request("new.npz", seed=2))
    embed(request("new.npz"))  # a work folder without a finished chunk is in nobody's way
    Path(".new.npz.work/chunk-000000.npz").touch()
    with pytest.raises(
        DataError, match=r"an unfinished embedding, .*: another kind of features; finish it"
    ):
        embed(request("new.npz", features="cls"))


def test_bad_files_are_listed_and_the_others_done(folder: Path) -> None:
    Path("clouds/bad.npy").write_bytes(b"no array")
    Path("clouds/tiny.xyz").write_text("0 0 0\n1 1 1\n")
    report = embed(request(workers=1))
    assert [name for name, _ in report.failed] == ["bad.npy", "tiny.xyz"]
    assert report.shapes == len(COUNTS)
    assert report.assumed_up == len(COUNTS)
    stored = np.load("out.npz")
    assert len(stored["ids"]) == len(stored["features"]) == len(COUNTS)
    info = json.loads(str(stored["info"]))
    assert [name for name, _ in info["failed"]] == ["bad.npy", "tiny.xyz"]


def test_what_is_refused_leaves_no_work_folder(folder: Path) -> None:
    with pytest.raises(DataError, match=r"^cloud: no such file or folder; check its name"):
        embed(request(paths=[Path("cloud")], device="none", encoder="absent"))
    with pytest.raises(ConfigError, match="device must be one of"):
        embed(request(device="none", encoder="absent"))
    with pytest.raises(CheckpointError, match="absent: no encoder here"):
        embed(request(encoder="absent"))
    assert not list(folder.glob(".*work"))


def test_nothing_usable_writes_nothing(folder: Path) -> None:
    Path("bad.npy").write_bytes(b"no array")
    report = embed(request(paths=[Path("bad.npy")]))
    assert report.shapes == 0
    assert not Path("out.npz").exists()


def end_at_the_third(settings: Any, task: Any, step: Callable[[int], None]) -> Any:
    """A reading process that dies at one file, as a reader written in C might."""
    for number, location in enumerate(task.locations):
        step(number)
        if location.name == "02.npy" and number not in task.refused:
            os._exit(3)
    return _READ(settings, task, lambda number: None)


_READ = shape_lists.read_task


def test_a_file_that_kills_its_reader_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # Where workers find this module.
    monkeypatch.setattr(loop, "read_task", end_at_the_third)
    ((name, reason),) = embed(request(workers=1)).failed
    assert name == "02.npy"
    assert "the process that read it ended (exit code 3)" in reason


def test_settings_that_are_not_accepted(folder: Path) -> None:
    save_encoder(random_encoder(replace(MICRO, cls_token=False)), Path("mpm"))
    cases = [
        (
            {"features": "cls", "encoder": "mpm"},
            "this encoder has no CLS token .mode mpm., .*; use moments",
        ),
        (
            {"features": "all"},
            "features must be one of moments, pooled, cls, patches, points, got 'all'",
        ),
        ({"draws": 0}, "draws must be at least 1, got 0"),
        ({"draws": 2, "features": "points"}, "points features are of one draw, got draws 2"),
        ({"turns": 4, "features": "patches"}, "patches features are of one draw, got turns 4"),
        ({"turns": 0}, "turns must be at least 1, got 0"),
        ({"points": 5}, "points must be at least 6 for this encoder"),
        ({"output": Path("out.csv")}, "must end in .npz or .parquet, got 'out.csv'"),
        ({"up": "w"}, "up must be one of"),
        ({"batch_size": 0}, "the batch size must be at least 1"),
    ]
    for changes, message in cases:
        with pytest.raises(ConfigError, match=message):
            embed(request(**changes))
    assert features("mpm.npz", encoder="mpm").shape == (len(COUNTS), 3 * MICRO.width)


def test_the_checksum_is_of_the_weights_not_of_the_file(folder: Path) -> None:
    save_encoder(load_encoder("encoder"), Path("copy"), training={"recipe": "another note"})
    first, second = (
        embed(request(f"{name}.npz", encoder=name)).output for name in ("encoder", "copy")
    )
    assert open_index(first).info["encoder_sha256"] == open_index(second).info["encoder_sha256"]
    save_encoder(random_encoder(seed=1), Path("other"))
    third = open_index(embed(request("other.npz", encoder="other")).output)
    assert third.info["encoder_sha256"] != open_index(first).info["encoder_sha256"]


def test_one_thread_or_two_give_the_same() -> None:
    maker = FeatureMaker(random_encoder(), "pooled", torch.device("cpu"), points=60)
    clouds = [np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)] * 3
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with inference_threads(maker) as background:
                found.append(background.submit(clouds).result()[2].features)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found[0], found[1])


class StandInCuda:
    """What `GpuWay` uses of ``torch.cuda``, on a CPU: each stream waits until all streams have work."""

    def __init__(self, streams: int) -> None:
        self.all_busy = threading.Barrier(streams, timeout=60)
        self.waits: list[int] = []

    def Stream(self, device: torch.device) -> StandInCuda:  # noqa: N802 - torch's name
        assert device.type == "cpu"
        return self

    def stream(self, stream: StandInCuda) -> Any:
        assert stream is self
        return contextlib.nullcontext()

    def synchronize(self) -> None:
        self.waits.append(threading.get_ident())
        self.all_busy.wait()

    def is_available(self) -> bool:
        return False


@pytest.mark.parametrize("kind", ["moments", "pooled", "patches", "points"])
def test_batches_on_a_gpu_overlap_and_keep_their_rows(kind: FeatureKind) -> None:
    """On a stand-in: two batches are under way at once, of sizes that share memory, with the features of a CPU."""
    cpu = torch.device("cpu")
    rng = np.random.default_rng(0)
    plain, staged = (FeatureMaker(random_encoder(), kind, cpu, points=60) for _ in range(2))
    cuda = StandInCuda(2)
    staged.way = lambda: GpuWay(cpu, cuda)
    clouds = [rng.normal(size=(count, 60, 3)).astype(np.float32) for count in (5, 2, 3, 6)]
    before = torch.get_num_threads()
    torch.set_num_threads(GPU_THREADS)
    try:
        with inference_threads(staged) as background:
            waiting = [background.submit(list(batch)) for batch in clouds]
            found = [future.result() for future in waiting]
    finally:
        torch.set_num_threads(before)
    assert len(cuda.waits) == 4
    assert len(set(cuda.waits)) == GPU_THREADS
    for batch, shapes in zip(clouds, found, strict=True):
        for expected, shape in zip(plain(list(batch)), shapes, strict=True):
            # Not to the bit: products of another batch size, on several threads, are added in another order.
            np.testing.assert_allclose(shape.features, expected.features, rtol=1e-4, atol=1e-5)
            if expected.positions is not None:
                np.testing.assert_array_equal(shape.positions, expected.positions)
