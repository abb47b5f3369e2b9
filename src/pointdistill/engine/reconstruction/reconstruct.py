"""What an encoder's features hold, seen: hidden patches drawn from visible ones by a small decoder.

The same decoder is trained on the frozen features of the encoder and on those of random weights of the same size,
and both are compared with copying the nearest visible patch. Every finished decoder is kept, so that the same call
goes on after an interruption.
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
from pointdistill.data.files import read_json, sha256_of, write_aside, write_json
from pointdistill.data.workspace import last_corpus, last_run
from pointdistill.engine.config import from_plain, to_plain
from pointdistill.engine.devices import pick_device, threads_for
from pointdistill.engine.evaluation.results import Spread
from pointdistill.engine.exchange.encoders import (
    load_encoder,
    load_exactly,
    locate_encoder,
    read_tensors,
    weights_file,
    write_tensors,
)
from pointdistill.engine.exchange.record import encoder_line
from pointdistill.engine.interrupt import interruptible
from pointdistill.engine.reconstruction.decoder_training import (
    Guess,
    ReconstructConfig,
    Split,
    guess_by_copying,
    held_out_views,
    measure,
    new_decoder,
    predict,
    split_shapes,
    train_decoder,
)
from pointdistill.engine.reporting.pictures import FilledView, filled_views
from pointdistill.engine.reporting.tables import Table
from pointdistill.engine.training.run_folder import METRICS, RUN_CONFIG, corpus_fingerprint
from pointdistill.errors import CheckpointError, ConfigError, DataError
from pointdistill.model.encoder import Encoder, EncoderConfig
from pointdistill.model.initialize import initialize
from pointdistill.model.masking import MaskingConfig

SCALE = 1000.0
"""Tables show distances times this; ``results.json`` has them as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReconstructRequest:
    """What a user asked for; all of it may be left out."""

    encoder: Path | str | None = None
    """As for ``load_encoder``; the last run in ``folder`` by default."""

    data: Path | None = None
    """A corpus; the last one in ``folder`` by default."""

    steps: int | None = None
    seeds: int = 1
    """How many, from 0 on; each has its own split, weights and masks."""

    output: Path | None = None
    """In the run, or ``reconstruction/``, by default."""

    device: str = "auto"
    folder: Path = Path()
    """Where defaults are looked for."""


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What a call left behind."""

    output: Path
    outcomes: tuple[Outcome, ...]
    interrupted: bool

    def table(self) -> Table:
        """A row for each kind of features; distances times a thousand."""
        rows = []
        for kind in Features:
            values = [SCALE * o.chamfer for o in self.outcomes if o.features is kind]
            if values:
                rows.append((str(kind), str(Spread.of(values))))
        seeds = sorted({o.seed for o in self.outcomes})
        notes = [
            f"{MEASURE}. Smaller is better.",
            f"Seeds: {', '.join(map(str, seeds))}.",
            "Held-out shapes are new to the decoders. An encoder pretrained on this corpus has seen them, "
            "without labels.",
        ]
        return Table(
            "Hidden patches", ("features", "Chamfer distance x 1000"), tuple(rows), tuple(notes)
        )


def reconstruct(
    request: ReconstructRequest, *, say: Callable[[str], None], show: Show
) -> Reconstruction:
    """Train and compare decoders; write ``results.json`` after each, and ``reconstruction.png`` at the end.

    Ctrl-C stops between two steps: finished decoders stay, and the same call goes on with the next.

    Args:
        request: what to compare.
        say: told, a line at a time, what was chosen for the user.
        show: told after every step.

    Raises:
        CheckpointError: if there is no encoder.
        ConfigError: if a value is not accepted, or the output holds the results of something else.
        DataError: if there is no corpus, or one of a few shapes.
    """
    if request.seeds < 1:
        msg = f"seeds must be at least 1, got {request.seeds}"
        raise ConfigError(msg)
    device = pick_device(request.device)
    stored, corpus = _find_encoder(request, say), _corpus(request, say)
    encoder = load_encoder(stored).to(device)
    config = ReconstructConfig(masking=masking_of(stored, encoder.config))
    if request.steps is not None:
        config = replace(config, steps=request.steps)
    output = request.output or _output(request, stored)
    comparison = Comparison(stored, encoder, corpus, config, output)
    with interruptible() as stopped, threads_for(encoder.config.width, device):
        finished = all(comparison.run(seed, show, stopped) for seed in range(request.seeds))
        if finished:
            comparison.draw()
    return Reconstruction(output, tuple(comparison.outcomes), not finished)


def masking_of(stored: Path, encoder: EncoderConfig) -> MaskingConfig:
    """The masks of an encoder's pretraining, where it lies in its run; else the paper's.

    Its blocks are a tenth of 64 patches; of fewer, they are at least three.
    """
    described = stored.parent / RUN_CONFIG
    if (stored.parent / METRICS).is_file() and described.is_file():
        run = read_json(described)
        found = run.get("config", {}).get("masking") if isinstance(run, dict) else None
        if isinstance(found, dict):
            return replace(from_plain(MaskingConfig, found, where="masking"), masks_per_view=1)
    share = min(1.0, max(MaskingConfig().block_share, 3 / encoder.patches))
    return MaskingConfig(masks_per_view=1, block_share=share)


def _find_encoder(request: ReconstructRequest, say: Callable[[str], None]) -> Path:
    """Where the encoder asked for lies, or the last run's.

    Raises:
        CheckpointError: if there is neither.
    """
    source = request.encoder or last_run(folder=request.folder)
    if source is None:
        msg = (
            "no run was made in this folder yet; run `pointdistill pretrain`, "
            "or name an encoder with --encoder"
        )
        raise CheckpointError(msg)
    stored = locate_encoder(source)
    say(encoder_line(stored))
    return stored


def _corpus(request: ReconstructRequest, say: Callable[[str], None]) -> Corpus:
    path = request.data or last_corpus(folder=request.folder)
    if path is None:
        msg = (
            "no corpus was made in this folder yet; run `pointdistill prepare-data`, "
            "or name one with --data"
        )
        raise DataError(msg)
    corpus = open_corpus(path)
    say(f"corpus: {path}, {len(corpus):,} shapes")
    return corpus


def _output(request: ReconstructRequest, stored: Path) -> Path:
    """In the run where the encoder is a run's; in the working folder else."""
    in_run = (stored.parent / METRICS).is_file()
    return (stored.parent if in_run else request.folder) / "reconstruction"


RESULTS, PICTURE = "results.json", "reconstruction.png"
FORMAT = "pointdistill-reconstruction"
VERSION = 1
MEASURE = (
    "Chamfer distance of each hidden patch: mean squared distance from a predicted point to the nearest true "
    "one plus from a true point to the nearest predicted one; view in the unit sphere; mean over held-out shapes"
)
"""What the figures are, in words."""

DRAWN = 6
"""Held-out shapes in the picture, spread over the corpus."""


class Features(StrEnum):
    """What a guess is made from."""

    ENCODER = "encoder"
    RANDOM = "random weights"
    COPY = "nearest visible patch copied"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One guess measured under one seed."""

    features: Features
    seed: int
    chamfer: float
    """See ``MEASURE``."""

    train_shapes: int
    held_out_shapes: int


Show = Callable[[str, int, int, float], None]
"""Told what is being trained, steps done, steps in all, and the loss."""


class Comparison:
    """Decoders of one encoder on one corpus: trained, measured, kept."""

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
        self.outcomes = list(self._kept())

    def run(self, seed: int, show: Show, stopped: Callable[[], bool]) -> bool:
        """All guesses of a seed that are not there yet; False if it was stopped."""
        split = split_shapes(len(self.corpus), self.config, seed=seed)
        for kind in Features:
            if any((o.features, o.seed) == (kind, seed) for o in self.outcomes):
                continue
            guess = self._guess(kind, seed, split, show, stopped)
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
            self.outcomes.append(Outcome(kind, seed, chamfer, *sizes))
            write_json(
                self.output / RESULTS,
                self.described | {"outcomes": [asdict(o) for o in self.outcomes]},
            )
        return True

    def draw(self) -> None:
        """Write the picture: held-out shapes of seed 0, whole, seen, and filled in from both kinds of features."""
        split = split_shapes(len(self.corpus), self.config, seed=0)
        places = np.linspace(0, len(split.held_out) - 1, min(DRAWN, len(split.held_out)))
        views = held_out_views(
            self.corpus,
            split.held_out[places.round().astype(int)],
            self.encoder.config,
            self.config,
            seed=0,
            device=self.device,
        )
        guesses = [self._load(kind, 0)(views) for kind in (Features.ENCODER, Features.RANDOM)]
        everything = [views.target, *guesses]
        patches, visible = views.patches, views.masks.visible_index
        rows = torch.arange(len(visible), device=visible.device)[:, None]
        seen = patches.offsets[rows, visible] + views.visible_centers[:, :, None]
        hidden = [offsets + views.hidden_centers[:, :, None] for offsets in everything]
        drawn = [
            FilledView(
                seen=_points(seen[row]),
                hidden=_points(hidden[0][row]),
                guesses=tuple(_points(guess[row]) for guess in hidden[1:]),
            )
            for row in range(len(seen))
        ]
        with write_aside(self.output / PICTURE) as aside:
            aside.write_bytes(filled_views(drawn, titles=("pretrained features", "random weights")))

    def _guess(
        self, kind: Features, seed: int, split: Split, show: Show, stopped: Callable[[], bool]
    ) -> Guess | None:
        """A guess of a kind, trained and kept if it needs that; None if it was stopped."""
        if kind is Features.COPY:
            return guess_by_copying
        encoder = self._features(kind, seed)
        name = f"decoder, {kind}, seed {seed}"
        decoder = train_decoder(
            encoder,
            self.corpus,
            split.train,
            self.config,
            seed=seed,
            progress=lambda done, total, loss: show(name, done, total, loss),
            stopped=stopped,
        )
        if decoder is None:
            return None
        state = {n: value.contiguous().cpu() for n, value in decoder.state_dict().items()}
        write_tensors(self.output / _file(kind, seed), state)
        return lambda views: predict(decoder, encoder, views)

    def _load(self, kind: Features, seed: int) -> Guess:
        """A guess whose decoder is kept."""
        decoder = new_decoder(self.encoder.config)
        path = self.output / _file(kind, seed)
        load_exactly(decoder, read_tensors(path), path)
        decoder.to(self.device).requires_grad_(requires_grad=False)
        encoder = self._features(kind, seed)
        return lambda views: predict(decoder, encoder, views)

    def _features(self, kind: Features, seed: int) -> Encoder:
        """The encoder, or one of its size with random weights."""
        if kind is Features.ENCODER:
            return self.encoder
        fresh = Encoder(self.encoder.config)
        initialize(fresh, generator=torch.Generator().manual_seed(seed))
        return fresh.eval().requires_grad_(requires_grad=False).to(self.device)

    def _kept(self) -> Iterator[Outcome]:
        """What an earlier call finished.

        Raises:
            ConfigError: if the output holds the results of another encoder, corpus or length.
        """
        path = self.output / RESULTS
        if not path.is_file():
            return
        stored = read_json(path)
        # Paths may differ: a folder that was moved holds the same things.
        for name, part in (("encoder", "sha256"), ("corpus", "fingerprint"), ("settings", None)):
            expected = self.described[name] if part is None else self.described[name][part]
            found = stored.get(name) if isinstance(stored, dict) else None
            if part is not None:
                found = found.get(part) if isinstance(found, dict) else None
            if found != expected:
                msg = f"{path} was made with another {name}; choose another folder with --output, or remove it"
                raise ConfigError(msg)
        for row in stored["outcomes"]:
            yield Outcome(**row | {"features": Features(row["features"])})


def _points(patches: Tensor) -> NDArray[np.float32]:
    """(n, 3) points of (T, K, 3) patches."""
    return patches.flatten(0, 1).cpu().numpy()


def _file(kind: Features, seed: int) -> str:
    """The name of a kept decoder."""
    return f"decoder-{kind.name.lower()}-{seed}.safetensors"
