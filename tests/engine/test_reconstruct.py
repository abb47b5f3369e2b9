"""Hidden patches drawn from visible ones: what is held out, what is measured, and how it goes on after a stop."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pointdistill.data.corpus_building import BuildSettings
from pointdistill.data.corpus_building.prepare import prepare_corpus
from pointdistill.data.files.files import hold_output
from pointdistill.data.sources import SourceRequest
from pointdistill.engine.config.recipes import SIZES
from pointdistill.engine.pretraining.loader import read_batch
from pointdistill.engine.reconstruction.decoder import (
    PatchDecoder,
    ReconstructConfig,
    decoder_config,
    guess_by_copying,
    masked_views,
    measure,
    predict_patches,
    split_shapes,
    train_decoder,
)
from pointdistill.engine.reconstruction.reconstruct import (
    FeatureSource,
    ReconstructRequest,
    pretraining_masking,
    reconstruct,
)
from pointdistill.engine.weights.encoders import save_encoder
from pointdistill.errors import CheckpointError, ConfigError, DataError
from pointdistill.model.config import MaskingConfig
from pointdistill.model.encoder import Encoder
from pointdistill.model.initialize import initialize
from pointdistill.reporter import Reporter
from tests.engine.conftest import MemoryCorpus, micro_config

MICRO = micro_config().encoder
CONFIG = ReconstructConfig(steps=30, batch_size=8, masking=MaskingConfig(masks_per_view=1))
CPU = torch.device("cpu")


def micro_encoder() -> Encoder:
    encoder = Encoder(MICRO)
    initialize(encoder, generator=torch.Generator().manual_seed(0))
    return encoder.eval().requires_grad_(requires_grad=False)


@pytest.fixture
def spheres() -> MemoryCorpus:
    """Hollow ones: where a patch lies says exactly what it looks like."""
    rng = np.random.default_rng(0)
    points = [rng.normal(size=(120, 3)) for _ in range(24)]
    return MemoryCorpus(
        [(p / np.linalg.norm(p, axis=1, keepdims=True)).astype(np.float32) for p in points]
    )


def trained_on(corpus: MemoryCorpus, config: ReconstructConfig, *, seed: int = 0) -> PatchDecoder:
    made = train_decoder(
        micro_encoder(),
        corpus,
        np.arange(20),
        config,
        seed=seed,
        progress=lambda *_: None,
        stopped=lambda: False,
    )
    assert made is not None
    return made


@pytest.mark.parametrize(("shapes", "held_out"), [(10, 1), (200, 20), (20_000, 512)])
def test_a_share_is_held_out_by_the_seed(shapes: int, held_out: int) -> None:
    split = split_shapes(shapes, CONFIG, seed=3)
    assert len(split.held_out) == held_out
    assert sorted([*split.train, *split.held_out]) == list(range(shapes))
    assert split.held_out.tolist() == split_shapes(shapes, CONFIG, seed=3).held_out.tolist()
    assert split.held_out.tolist() != split_shapes(shapes, CONFIG, seed=6).held_out.tolist()


def test_a_view_depends_on_seed_epoch_and_shape_alone(spheres: MemoryCorpus) -> None:
    """Not on the batch it falls into; a held-out view is as stored, and normalised."""
    together = masked_views(
        read_batch(spheres, [4, 7, 9], 2), MICRO, CONFIG.masking, seed=1, augment=True
    )
    alone = masked_views(read_batch(spheres, [7], 2), MICRO, CONFIG.masking, seed=1, augment=True)
    assert torch.equal(together.masks.hidden_index[1:2], alone.masks.hidden_index)
    torch.testing.assert_close(together.target[1:2], alone.target)
    later = masked_views(read_batch(spheres, [7], 3), MICRO, CONFIG.masking, seed=1, augment=True)
    assert not torch.equal(later.patches.centers, alone.patches.centers)
    stored = masked_views(read_batch(spheres, [7], 2), MICRO, CONFIG.masking, seed=1, augment=False)
    sphere = torch.from_numpy(spheres.points(7))
    # Up to the shift and scale that put 48 of its 120 points into their own unit sphere.
    radii = torch.linalg.vector_norm(stored.patches.centers, dim=-1)
    assert radii.max() <= 1 + 1e-5
    assert radii.min() > 0.6
    assert len(sphere) > MICRO.points


def test_what_is_hidden_is_not_seen(spheres: MemoryCorpus) -> None:
    """Six of eight patches are hidden; moving their points changes no prediction."""
    views = masked_views(
        read_batch(spheres, [0, 1], 0), MICRO, CONFIG.masking, seed=0, augment=False
    )
    hidden, visible = views.masks.hidden_index, views.masks.visible_index
    assert (hidden.shape, visible.shape) == ((2, 6), (2, 2))
    assert views.target.shape == (2, 6, 6, 3)
    decoder = trained_on(spheres, replace(CONFIG, steps=3))
    before = predict_patches(decoder, micro_encoder(), views)
    moved = views.patches.offsets.clone()
    moved[torch.arange(2)[:, None], hidden] += 1.0
    after = predict_patches(
        decoder, micro_encoder(), replace(views, patches=replace(views.patches, offsets=moved))
    )
    assert torch.equal(before, after)
    moved[torch.arange(2)[:, None], visible] += 1.0
    seen = predict_patches(
        decoder, micro_encoder(), replace(views, patches=replace(views.patches, offsets=moved))
    )
    assert not torch.equal(before, seen)


def test_training_is_deterministic(spheres: MemoryCorpus) -> None:
    short = replace(CONFIG, steps=3)
    first, again, other = (trained_on(spheres, short, seed=s).draw.weight for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_decoder_learns_what_copying_cannot_know(spheres: MemoryCorpus) -> None:
    """On a sphere a patch is tilted as its place says: another patch, copied, is tilted otherwise."""
    decoder = trained_on(spheres, replace(CONFIG, steps=100, learning_rate=1e-2))
    held_out = np.arange(20, 24)
    encoder = micro_encoder()
    learned, copied = (
        measure(guess, spheres, held_out, MICRO, CONFIG, seed=0, device=CPU)
        for guess in (lambda views: predict_patches(decoder, encoder, views), guess_by_copying)
    )
    assert learned < 0.6 * copied


def test_the_measure_is_the_mean_over_shapes(spheres: MemoryCorpus) -> None:
    """Whatever the batch size; and a perfect guess is at zero."""
    held_out = np.array([1, 5, 6, 11, 12])
    whole = measure(guess_by_copying, spheres, held_out, MICRO, CONFIG, seed=0, device=CPU)
    parts = replace(CONFIG, batch_size=2)
    assert measure(
        guess_by_copying, spheres, held_out, MICRO, parts, seed=0, device=CPU
    ) == pytest.approx(whole, rel=1e-6)
    each = [
        measure(guess_by_copying, spheres, held_out[i : i + 1], MICRO, CONFIG, seed=0, device=CPU)
        for i in range(5)
    ]
    assert np.mean(each) == pytest.approx(whole, rel=1e-6)
    assert measure(lambda v: v.target, spheres, held_out, MICRO, CONFIG, seed=0, device=CPU) == 0.0


@pytest.mark.parametrize(
    ("size", "width", "heads"), [("tiny", 64, 4), ("small", 192, 3), ("base", 192, 3)]
)
def test_decoders_are_no_wider_than_the_small_predictor(size: str, width: int, heads: int) -> None:
    found = decoder_config(SIZES[size]().encoder)
    assert (found.width, found.heads) == (width, heads)


def test_masks_are_those_of_the_run(tmp_path: Path) -> None:
    assert pretraining_masking(tmp_path / "alone", SIZES["small"]().encoder).blocks(64) == (4, 6)
    assert pretraining_masking(tmp_path / "alone", SIZES["tiny"]().encoder).blocks(16)[1] == 3
    stored = {
        "format": "pointdistill-run",
        "corpus": {"path": "c", "fingerprint": "0"},
        "config": {"masking": {"ratio": 0.8, "masks_per_view": 8}},
    }
    (tmp_path / "config.json").write_text(json.dumps(stored))
    (tmp_path / "metrics.jsonl").touch()
    found = pretraining_masking(tmp_path / "encoder", SIZES["small"]().encoder)
    assert (found.ratio, found.masks_per_view) == (0.8, 1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare_corpus(
            "builtin",
            SourceRequest(shapes=24),
            output=folder / "c",
            settings=BuildSettings(points=80, workers=1),
        )
    return folder / "c"


def request(tmp_path: Path, corpus: Path, **changes: object) -> ReconstructRequest:
    if not (tmp_path / "encoder").exists():
        save_encoder(micro_encoder(), tmp_path / "encoder")
    asked = ReconstructRequest(
        encoder=tmp_path / "encoder", data=corpus, steps=4, output=tmp_path / "out", device="cpu"
    )
    return replace(asked, **changes)  # type: ignore[arg-type]


class OnProgress(Reporter):
    """Calls a function with each task and the steps done."""

    def __init__(self, call: Callable[[str, float], object]) -> None:
        self._call = call

    def progress(
        self, task: str, done: float, total: float | None = None, *, note: str = "", unit: str = ""
    ) -> None:
        self._call(task, done)


def test_the_whole_comparison(tmp_path: Path, corpus: Path) -> None:
    asked = request(tmp_path, corpus, seeds=2)
    made = reconstruct(asked)
    assert [(o.features, o.seed) for o in made.outcomes] == [
        (f, s) for s in (0, 1) for f in FeatureSource
    ]
    assert all((o.train_shapes, o.held_out_shapes) == (22, 2) for o in made.outcomes)
    assert (tmp_path / "out" / "reconstruction.png").read_bytes().startswith(b"\x89PNG")
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["chamfer"] for row in stored["outcomes"]] == [o.chamfer for o in made.outcomes]
    assert "squared" in stored["measure"]
    rows = {row[0]: row[1] for row in made.table().rows}
    copied = [1000 * o.chamfer for o in made.outcomes if o.features is FeatureSource.COPY]
    assert rows["nearest visible patch copied"].startswith(f"{np.mean(copied):.2f} ±")


def test_a_second_comparison_in_one_folder_is_refused(tmp_path: Path, corpus: Path) -> None:
    asked = request(tmp_path, corpus)
    with (
        hold_output(tmp_path / "out"),
        pytest.raises(DataError, match="out: another process is writing there"),
    ):
        reconstruct(asked)
    assert not (tmp_path / "out").exists()


def test_a_file_by_itself_is_an_encoder(tmp_path: Path, corpus: Path) -> None:
    save_encoder(micro_encoder(), tmp_path / "folder")
    alone = (tmp_path / "folder" / "model.safetensors").rename(tmp_path / "alone.safetensors")
    from_file = reconstruct(request(tmp_path, corpus, encoder=alone))
    from_folder = reconstruct(request(tmp_path, corpus, output=tmp_path / "other"))
    assert from_file.outcomes == from_folder.outcomes


def test_ctrl_c_keeps_what_is_done_and_the_same_call_goes_on(tmp_path: Path, corpus: Path) -> None:
    trained: list[str] = []

    def interrupt(what: str, done: float) -> None:
        trained.append(what)
        if "random" in what and done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    stopped = reconstruct(request(tmp_path, corpus), reporter=OnProgress(interrupt))
    assert stopped.interrupted
    assert [o.features for o in stopped.outcomes] == [FeatureSource.ENCODER]
    assert not (tmp_path / "out" / "reconstruction.png").exists()
    trained.clear()
    after = reconstruct(
        request(tmp_path, corpus), reporter=OnProgress(lambda what, _: trained.append(what))
    )
    assert not after.interrupted
    assert {"random" in what for what in trained} == {True}
    whole = request(tmp_path, corpus, output=tmp_path / "whole")
    assert reconstruct(whole).outcomes == after.outcomes
    pictures = [(tmp_path / name / "reconstruction.png").read_bytes() for name in ("out", "whole")]
    assert pictures[0] == pictures[1]


def test_results_of_something_else_are_not_mixed_in(tmp_path: Path, corpus: Path) -> None:
    reconstruct(request(tmp_path, corpus))
    with pytest.raises(ConfigError, match="made with other settings; choose another output folder"):
        reconstruct(request(tmp_path, corpus, steps=5))
    other = micro_encoder()
    with torch.no_grad():
        other.transformer.norm.weight.add_(1.0)
    save_encoder(other, tmp_path / "encoder")
    with pytest.raises(ConfigError, match="made with another encoder"):
        reconstruct(request(tmp_path, corpus))


@pytest.mark.usefixtures("no_bundled_encoder")
def test_what_is_missing(tmp_path: Path, corpus: Path) -> None:
    nothing = ReconstructRequest(folder=tmp_path)
    with pytest.raises(CheckpointError, match="no run was made in this folder yet"):
        reconstruct(nothing)
    with pytest.raises(DataError, match="no corpus was made in this folder yet"):
        reconstruct(request(tmp_path, corpus, data=None, folder=tmp_path))
    with pytest.raises(DataError, match="the corpus holds 9 shapes; at least 10"):
        split_shapes(9, CONFIG, seed=0)
    with pytest.raises(ConfigError, match="seeds must be at least 1"):
        reconstruct(request(tmp_path, corpus, seeds=0))
