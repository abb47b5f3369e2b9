"""One benchmark's evaluation once everything is found: encoder, archive, settings, and where results are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch

from pointdistill.data.benchmarks.lvis import LvisShapes
from pointdistill.data.benchmarks.part_records import PartBenchmark
from pointdistill.data.benchmarks.records import Benchmark
from pointdistill.engine.evaluation.bench import Progress
from pointdistill.engine.evaluation.describe import EncoderDescriber
from pointdistill.engine.evaluation.forecast import Count, Say
from pointdistill.engine.evaluation.kept import KeptUnits
from pointdistill.engine.evaluation.plan import Evaluation
from pointdistill.engine.inputs import protocol_input
from pointdistill.model.encoder import Encoder

Labelled: TypeAlias = Benchmark | PartBenchmark | LvisShapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the evaluation of one benchmark works with."""

    encoder: Encoder
    folder: Path
    """Of the encoder."""

    name: str
    """What to call its features."""

    fingerprint: str
    """Of its weights."""

    published_model: str | None
    device: torch.device

    archive: Path
    corpus: Path | None
    """Of LVIS; None for the others."""

    splits: tuple[str | None, ...]
    protocols: tuple[str, ...]
    seeds: tuple[int, ...]
    epochs: int | None
    votes: int
    augmented_copies: int | None

    kept: KeptUnits
    warn: Callable[[Labelled], str | None]
    """What is to be said of test shapes that the encoder saw in pretraining; None where all is well."""

    say: Say
    progress: Progress
    on_signal: Callable[[], None] | None
    """Called at once when a signal asks a training to stop; see ``interruptible``."""

    def describer(self, benchmark: str) -> EncoderDescriber:
        """The encoder's features on a benchmark's input."""
        return EncoderDescriber(
            name=self.name,
            encoder=self.encoder,
            inputs=protocol_input(benchmark, self.encoder.config),
            device=self.device,
        )

    def evaluation(self, *, seeds: tuple[int, ...], repeated_over: str = "seeds") -> Evaluation:
        """Protocols and settings as asked for."""
        return Evaluation(
            protocols=self.protocols,
            seeds=seeds,
            augmented_copies=self.augmented_copies,
            epochs=self.epochs,
            votes=self.votes,
            repeated_over=repeated_over,
        )

    def announce(self, benchmark: Labelled, *, tested: Labelled | None = None) -> None:
        """Say what was read, and whether the encoder saw any of it, before anything is measured on it.

        ``tested`` has all that is tested on, where that is more than ``benchmark``.
        """
        parts = [benchmark.data_name]
        if isinstance(benchmark, LvisShapes):
            parts.append(f"{len(benchmark):,} shapes of {len(benchmark.classes):,} categories")
        else:
            parts += (
                [benchmark.split] if isinstance(benchmark, Benchmark) and benchmark.split else []
            )
            counts = f"{len(benchmark.train):,} training and {len(benchmark.test):,} test clouds"
            parts.append(counts)
        self.say(f"data: {', '.join([*parts, str(self.archive)])}")
        warning = self.warn(tested or benchmark)
        if warning is not None:
            self.say(f"warning: {warning}")

    def counting(self, task: str) -> Count:
        """A counter of one task, for functions that do not know which it is."""
        return lambda done, total: self.progress(task, done, total)
