"""The decoders of one comparison: trained, measured, kept, and what they draw.

Every finished decoder is on disk, so that a later call goes on where one was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointdistill.data.corpus import Corpus
from pointdistill.data.files import read_json, sha256_of, write_aside, write_json
from pointdistill.engine.config import to_plain
from pointdistill.engine.exchange.weights import (
    load_exactly,
    read_tensors,
    weights_file,
    write_tensors,
)
from pointdistill.engine.reconstruction.reconstruct_decoder import (
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
from pointdistill.engine.training.run_folder import corpus_fingerprint
from pointdistill.errors import ConfigError
from pointdistill.model.encoder import Encoder
from pointdistill.model.initialize import initialize

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
