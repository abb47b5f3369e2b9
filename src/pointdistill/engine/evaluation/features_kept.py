"""Features of a corpus's shapes, described once, in files of a few thousand rows; more than fits into memory.

Sizes: n shapes, F features, B shapes a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointdistill.data.files import write_aside
from pointdistill.engine.evaluation.describe import CountClouds, EncoderDescriber
from pointdistill.engine.features import Features, pool_batches
from pointdistill.engine.inputs import draw_clouds
from pointdistill.engine.training.loader import PointSource, made_ahead

ROWS = 4096
"""Shapes a file: 19 MB of the small encoder's features; what a kill can cost."""


@dataclass(frozen=True, slots=True)
class CorpusFeatures:
    """Features of some shapes of a corpus, as they are and augmented, described when they are first asked for."""

    folder: Path
    """Where they are kept; of this encoder, corpus and input alone."""

    describer: EncoderDescriber
    corpus: PointSource
    numbers: NDArray[np.int64]
    """(n,) int64, the shapes' numbers in the corpus."""

    @property
    def width(self) -> int:
        """F, of CLS, mean and maximum side by side."""
        config = self.describer.encoder.config
        return (3 if config.cls_token else 2) * config.width

    def unit_width(self) -> int:
        """Of those, the first that the nearest neighbours read: all but the maximum."""
        return self.width - self.describer.encoder.config.width

    def missing(self, copy: int | None) -> int:
        """Shapes whose features are not kept yet."""
        return sum(len(rows) for rows, path in self._parts(copy) if not path.exists())

    def describe(self, copy: int | None, count: CountClouds) -> None:
        """Describe what is missing of an augmented copy, or of the shapes as they are for None; file by file."""
        for rows, path in self._parts(copy):
            if not path.exists():
                features = self.of(rows, seed=0, epoch=copy, count=count).joined
                with write_aside(path) as aside:
                    np.save(aside, features.numpy())

    def stream(self) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Rows and their (rows, F) features as they are, a file at a time."""
        for rows, path in self._parts(None):
            yield rows, torch.from_numpy(np.load(path))

    def rows(self, wanted: NDArray[np.int64], copy: int | None) -> Tensor:
        """(len(wanted), F) features at ascending rows, of an augmented copy or as they are; must be described."""
        found = []
        for rows, path in self._parts(copy):
            here = wanted[(wanted >= rows[0]) & (wanted <= rows[-1])] - rows[0]
            if len(here):
                found.append(torch.from_numpy(np.load(path, mmap_mode="r")[here]))
        return torch.cat(found)

    def of(
        self, rows: NDArray[np.int64], *, seed: int, epoch: int | None, count: CountClouds
    ) -> Features:
        """Features of some rows, computed now."""
        describer = self.describer
        return pool_batches(
            describer.encoder,
            self._batches(rows, seed=seed, epoch=epoch),
            len(rows),
            patches=describer.inputs.patches,
            device=describer.device,
            progress=count,
        )

    def _batches(
        self, rows: NDArray[np.int64], *, seed: int, epoch: int | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Places within ``rows`` and their clouds; the next batch is read while this one is computed."""
        size = self.describer.batch_size
        starts = range(0, len(rows), size)

        def make(start: int) -> list[tuple[Tensor, Tensor]]:
            numbers = self.numbers[rows[start : start + size]]
            return list(self._draw(numbers, start, seed=seed, epoch=epoch))

        for batches in made_ahead(iter(starts), make):
            yield from batches

    def _draw(
        self, numbers: NDArray[np.int64], start: int, *, seed: int, epoch: int | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Shapes of a corpus by (B,) numbers; those with equally many points go together."""
        clouds = [self.corpus.points(int(number)) for number in numbers]
        order = sorted(range(len(clouds)), key=lambda place: len(clouds[place]))
        for _, group in groupby(order, key=lambda place: len(clouds[place])):
            places = list(group)
            points = torch.from_numpy(np.stack([clouds[place] for place in places]))
            device = torch.device(self.describer.device)
            index = torch.from_numpy(numbers[places]).to(device)
            drawn = draw_clouds(
                points.to(device), index, self.describer.inputs, seed=seed, epoch=epoch
            )
            yield torch.tensor(places) + start, drawn

    def _parts(self, copy: int | None) -> Iterator[tuple[NDArray[np.int64], Path]]:
        """Rows and file of every part."""
        name = "plain" if copy is None else f"copy-{copy}"
        for start in range(0, len(self.numbers), ROWS):
            rows = np.arange(start, min(start + ROWS, len(self.numbers)))
            yield rows, self.folder / f"{name}-{start:08d}.npy"
