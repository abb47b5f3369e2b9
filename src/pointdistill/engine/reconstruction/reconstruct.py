"""Shows what an encoder's features contain: a small decoder reconstructs hidden patches from visible ones.

The same decoder is trained on the frozen features of the encoder, and on those of an encoder of the same size with
random weights; both are compared with copying the nearest visible patch. Finished decoders are saved, so that the
same call continues after an interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.files.files import hold_output, read_json, sha256_of, write_aside, write_json
from pointdistill.data.files.schema import from_plain, refusing_damage, to_plain
from pointdistill.data.files.workspace import last_corpus
from pointdistill.engine.evaluation.results import Spread
from pointdistill.engine.pretraining.run_folder import (
    METRICS,
    RUN_CONFIG,
    choose_encoder,
    corpus_fingerprint,
    read_run_config,
)
from pointdistill.engine.reconstruction.decoder import (
    MaskedViews,
    ReconstructConfig,
    Split,
    chamfer_distance,
    guess_by_copying,
    held_out_views,
    measure,
    new_decoder,
    predict_patches,
    split_shapes,
    train_decoder,
)
from pointdistill.engine.reports.pictures import FilledView, filled_views
from pointdistill.engine.reports.tables import Table
from pointdistill.engine.runtime.devices import interruptible, pick_device, threads_for
from pointdistill.engine.weights.encoders import (
    load_encoder,
    load_exactly,
    read_tensors,
    weights_file,
    write_tensors,
)
from pointdistill.errors import CheckpointError, ConfigError, DataError
from pointdistill.model.config import EncoderConfig, MaskingConfig
from pointdistill.model.encoder import Encoder
from pointdistill.model.initialize import initialize
from pointdistill.reporter import SILENT, Reporter, plural

RESULTS, PICTURE = "results.json", "reconstruction.png"
FORMAT = "pointdistill-reconstruction"
VERSION = 1
MEASURE = (
    "Chamfer distance of each hidden patch: mean squared distance from a predicted point to the nearest true "
    "one plus from a true point to the nearest predicted one; view in the unit sphere; mean over held-out shapes"
)
"""Definition of the figures, for tables and for ``results.json``."""

DRAWN = 6
"""Number of held-out shapes in the picture, spread over the corpus."""

SCALE = 1000.0
"""Tables show distances multiplied by this; ``results.json`` has the plain ones."""


class FeatureSource(StrEnum):
    """What the hidden patches are predicted from."""

    ENCODER = "encoder"
    RANDOM = "random weights"
    COPY = "nearest visible patch copied"


@dataclass(frozen=True, slots=True)
class DecoderScore:
    """How well the hidden patches were predicted from one source of features with one seed."""

    features: FeatureSource
    seed: int
    chamfer: float
    """See ``MEASURE``."""

    train_shapes: int
    held_out_shapes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ReconstructRequest:
    """What to compare, and where to write it; every setting has a default."""

    encoder: Path | str | None = None
    """As for ``load_encoder``; by default the last run in ``folder``, or else the program's own encoder."""

    data: Path | None = None
    """A corpus; by default the last one in ``folder``."""

    steps: int | None = None
    seeds: int = 1
    """Number of seeds, counted from 0; each has its own split, weights and masks."""

    output: Path | None = None
    """A folder; by default ``reconstruction/`` in the run, or in ``folder`` if the encoder is not in a run."""

    device: str = "auto"
    folder: Path = Path()
    """Where to look for defaults."""


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """The outcome of ``reconstruct``."""

    output: Path
    outcomes: tuple[DecoderScore, ...]
    interrupted: bool

    def table(self) -> Table:
        """A row for each source of features, with distances multiplied by 1000."""
        rows = []
        for kind in FeatureSource:
            values = [SCALE * score.chamfer for score in self.outcomes if score.features is kind]
            if values:
                rows.append((str(kind), str(Spread.of(values))))
        seeds = sorted({score.seed for score in self.outcomes})
        notes = [
            f"{MEASURE}. Smaller is better.",
            f"Seeds: {', '.join(map(str, seeds))}.",
            "Held-out shapes are new to the decoders. An encoder pretrained on this corpus has seen them, "
            "without labels.",
        ]
        return Table(
            "Hidden patches", ("features", "Chamfer distance x 1000"), tuple(rows), tuple(notes)
        )


def reconstruct(request: ReconstructRequest, *, reporter: Reporter = SILENT) -> Reconstruction:
    """Train and compare decoders; write ``results.json`` after each, and ``reconstruction.png`` at the end.

    Ctrl-C stops between two steps: finished decoders are kept, and the same call continues with the next one.

    Args:
        request: what to compare.
        reporter: receives lines with the encoder and the corpus, and the progress of each decoder.

    Raises:
        CheckpointError: if there is no encoder.
        ConfigError: if a value is not accepted, or the output holds the results of something else.
        DataError: if there is no corpus, or it holds too few shapes.
    """
    if request.seeds < 1:
        msg = f"seeds must be at least 1, got {request.seeds}"
        raise ConfigError(msg, settings=("seeds",))
    device = pick_device(request.device)
    stored = choose_encoder(request.encoder, folder=request.folder, reporter=reporter)
    corpus = _open_corpus(request, reporter)
    encoder = load_encoder(stored).to(device)
    config = ReconstructConfig(masking=pretraining_masking(stored, encoder.config))
    if request.steps is not None:
        config = replace(config, steps=request.steps)
    output = request.output or _output(request, stored)
    with (
        hold_output(output),
        interruptible() as stopped,
        threads_for(encoder.config.width, device),
    ):
        comparison = Comparison(stored, encoder, corpus, config, output)
        finished = all(comparison.run(seed, reporter, stopped) for seed in range(request.seeds))
        if finished:
            comparison.draw()
    return Reconstruction(output, tuple(comparison.outcomes), not finished)


def pretraining_masking(stored: Path, encoder: EncoderConfig) -> MaskingConfig:
    """How patches were masked in an encoder's pretraining, with one mask per view.

    If the encoder is not in its run, this is the paper's masking with blocks of at least three patches; the
    paper's tenth of the patches would be fewer in small encoders.
    """
    described = stored.parent / RUN_CONFIG
    if (stored.parent / METRICS).is_file() and described.is_file():
        run = read_run_config(stored.parent)
        with refusing_damage(described, error=CheckpointError):
            masking = from_plain(MaskingConfig, run["config"].get("masking", {}), where="masking")
            return replace(masking, masks_per_view=1)
    share = min(1.0, max(MaskingConfig().block_share, 3 / encoder.patches))
    return MaskingConfig(masks_per_view=1, block_share=share)


def _open_corpus(request: ReconstructRequest, reporter: Reporter) -> Corpus:
    path = request.data or last_corpus(folder=request.folder)
    if path is None:
        msg = "no corpus was made in this folder yet; run `pointdistill prepare-data`, or name one"
        raise DataError(msg, settings=("data",))
    corpus = open_corpus(path)
    reporter.say(f"corpus: {path}, {plural(len(corpus), 'shape')}")
    return corpus


def _output(request: ReconstructRequest, stored: Path) -> Path:
    in_run = (stored.parent / METRICS).is_file()
    return (stored.parent if in_run else request.folder) / "reconstruction"


class Comparison:
    """The decoders for one encoder on one corpus; those of an earlier call are read from the output folder."""

    def __init__(
        self,
        stored: Path,
        encoder: Encoder,
        corpus: Corpus,
        config: ReconstructConfig,
        output: Path,
    ) -> None:
        self.encoder = encoder
        self.corpus = corpus
        self.config = config
        self.output = output
        self.device = encoder.transformer.norm.weight.device
        self.described: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "measure": MEASURE,
            "encoder": {"path": str(stored), "sha256": sha256_of(weights_file(stored))},
            "corpus": {"path": str(corpus.path), "fingerprint": corpus_fingerprint(corpus)},
            "settings": to_plain(config),
        }
        self.outcomes = list(self._read_outcomes())

    def run(self, seed: int, reporter: Reporter, stopped: Callable[[], bool]) -> bool:
        """Train and measure what a seed still lacks; returns False if it was stopped."""
        split = split_shapes(len(self.corpus), self.config, seed=seed)
        for kind in FeatureSource:
            if any((score.features, score.seed) == (kind, seed) for score in self.outcomes):
                continue
            guess = self._train(kind, seed, split, reporter, stopped)
            if guess is None:
                return False
            chamfer = measure(
                guess,
                self.corpus,
                split.held_out,
                self.encoder.config,
                self.config,
                seed=seed,
                device=self.device,
            )
            sizes = (len(split.train), len(split.held_out))
            self.outcomes.append(DecoderScore(kind, seed, chamfer, *sizes))
            write_json(
                self.output / RESULTS,
                self.described | {"outcomes": [asdict(score) for score in self.outcomes]},
            )
        return True

    def draw(self) -> None:
        """Draw held-out shapes of seed 0: whole, visible parts, and reconstructed from both kinds of features."""
        split = split_shapes(len(self.corpus), self.config, seed=0)
        drawn = np.linspace(0, len(split.held_out) - 1, min(DRAWN, len(split.held_out)))
        views = held_out_views(
            self.corpus,
            split.held_out[drawn.round().astype(int)],
            self.encoder.config,
            self.config,
            seed=0,
            device=self.device,
        )
        guesses = [
            self._load(kind, 0)(views) for kind in (FeatureSource.ENCODER, FeatureSource.RANDOM)
        ]
        versions = [views.target, *guesses]
        patches, visible = views.patches, views.masks.visible_index
        rows = torch.arange(len(visible), device=visible.device)[:, None]
        seen = patches.offsets[rows, visible] + views.visible_centers[:, :, None]
        hidden = [offsets + views.hidden_centers[:, :, None] for offsets in versions]
        # Of each view the mean over its hidden patches, as in the table.
        distances = [chamfer_distance(guess, views.target).mean(dim=1) for guess in guesses]
        filled = [
            FilledView(
                seen=_points(seen[row]),
                hidden=_points(hidden[0][row]),
                guesses=tuple(_points(guess[row]) for guess in hidden[1:]),
                distances=tuple(SCALE * float(distance[row]) for distance in distances),
            )
            for row in range(len(seen))
        ]
        with write_aside(self.output / PICTURE) as aside:
            aside.write_bytes(
                filled_views(
                    filled,
                    titles=("pretrained", "random weights"),
                    note="Below each prediction: Chamfer distance x 1000, the mean over the hidden patches of "
                    "this view; smaller is better, the smaller one is bold. Held-out shapes, seed 0.",
                )
            )

    def _train(
        self,
        kind: FeatureSource,
        seed: int,
        split: Split,
        reporter: Reporter,
        stopped: Callable[[], bool],
    ) -> Callable[[MaskedViews], Tensor] | None:
        """Train and save the decoder for one source of features; returns its prediction, or None if stopped."""
        if kind is FeatureSource.COPY:
            return guess_by_copying
        encoder = self._encoder_of(kind, seed)
        task = f"decoder, {kind}, seed {seed}"

        def progress(done: int, total: int, distance: float) -> None:
            reporter.progress(task, done, total, note=f"distance {distance:.4f}")

        decoder = train_decoder(
            encoder,
            self.corpus,
            split.train,
            self.config,
            seed=seed,
            progress=progress,
            stopped=stopped,
        )
        if decoder is None:
            return None
        state = {n: value.contiguous().cpu() for n, value in decoder.state_dict().items()}
        write_tensors(self.output / _decoder_file(kind, seed), state)
        return lambda views: predict_patches(decoder, encoder, views)

    def _load(self, kind: FeatureSource, seed: int) -> Callable[[MaskedViews], Tensor]:
        """The prediction of a decoder that was trained before."""
        decoder = new_decoder(self.encoder.config)
        path = self.output / _decoder_file(kind, seed)
        load_exactly(decoder, read_tensors(path), path)
        decoder.to(self.device).requires_grad_(requires_grad=False)
        encoder = self._encoder_of(kind, seed)
        return lambda views: predict_patches(decoder, encoder, views)

    def _encoder_of(self, kind: FeatureSource, seed: int) -> Encoder:
        if kind is FeatureSource.ENCODER:
            return self.encoder
        fresh = Encoder(self.encoder.config)
        initialize(fresh, generator=torch.Generator().manual_seed(seed))
        return fresh.eval().requires_grad_(requires_grad=False).to(self.device)

    def _read_outcomes(self) -> Iterator[DecoderScore]:
        """The scores that an earlier call wrote.

        Raises:
            ConfigError: if the output holds the results of another encoder or corpus, or of other settings.
        """
        path = self.output / RESULTS
        if not path.is_file():
            return
        stored = read_json(path)
        # Paths may differ, since a folder that was moved has the same content.
        for name, part in (("encoder", "sha256"), ("corpus", "fingerprint"), ("settings", None)):
            expected = self.described[name] if part is None else self.described[name][part]
            actual = stored.get(name) if isinstance(stored, dict) else None
            if part is not None:
                actual = actual.get(part) if isinstance(actual, dict) else None
            if actual != expected:
                other = "other settings" if name == "settings" else f"another {name}"
                msg = f"{path} was made with {other}; choose another output folder, or remove it"
                raise ConfigError(msg, settings=("output",))
        with refusing_damage(path, advice="remove it, and it is measured again"):
            scores = [from_plain(DecoderScore, row, where="outcomes") for row in stored["outcomes"]]
        yield from scores


def _points(patches: Tensor) -> NDArray[np.float32]:
    """The points (n, 3) of patches (T, K, 3)."""
    return patches.flatten(0, 1).cpu().numpy()


def _decoder_file(kind: FeatureSource, seed: int) -> str:
    return f"decoder-{kind.name.lower()}-{seed}.safetensors"
