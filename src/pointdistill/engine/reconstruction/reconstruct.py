"""What an encoder's features hold, seen: hidden patches drawn from visible ones by a small decoder.

The same decoder is trained on the frozen features of the encoder and on those of random weights of the same size,
and both are compared with copying the nearest visible patch. Every finished decoder is kept, so that the same call
goes on after an interruption.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.files import read_json
from pointdistill.data.workspace import given_or_last_run, last_corpus
from pointdistill.engine.config import from_plain
from pointdistill.engine.devices import pick_device, threads_for
from pointdistill.engine.evaluation.results import Spread
from pointdistill.engine.exchange.unfinished import encoder_line
from pointdistill.engine.exchange.weights import load_encoder, locate_encoder
from pointdistill.engine.interrupt import interruptible
from pointdistill.engine.reconstruction.reconstruct_comparison import (
    MEASURE,
    Comparison,
    Features,
    Outcome,
    Show,
)
from pointdistill.engine.reconstruction.reconstruct_decoder import ReconstructConfig
from pointdistill.engine.reporting.tables import Table
from pointdistill.engine.training.run_folder import METRICS, RUN_CONFIG
from pointdistill.errors import ConfigError, DataError
from pointdistill.model.encoder import EncoderConfig
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
    stored = locate_encoder(given_or_last_run(request.encoder, folder=request.folder))
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
