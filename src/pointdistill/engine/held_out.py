"""The test shapes of every benchmark in one form, with the ids that a corpus of the same data has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.benchmarks import (
    FEWSHOT_SETTINGS,
    FOLDS,
    Benchmark,
    LvisShapes,
    PartBenchmark,
    read_lvis,
    read_modelnet40,
    read_modelnet_fewshot,
    read_scanobjectnn,
    read_shapenetpart,
)
from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.leaks import HeldOut

Labelled: TypeAlias = Benchmark | PartBenchmark | LvisShapes
Count = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _CorpusClouds(Sequence[NDArray[np.float32]]):
    """Shapes of a corpus, read when they are asked for."""

    corpus: Corpus
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, number: int) -> NDArray[np.float32]: ...
    @overload
    def __getitem__(self, number: slice) -> _CorpusClouds: ...
    def __getitem__(self, number: int | slice) -> NDArray[np.float32] | _CorpusClouds:
        if isinstance(number, slice):
            return _CorpusClouds(self.corpus, self.indices[number])
        return self.corpus.points(int(self.indices[number]))


def read_held_out(
    name: str, archive: Path, split: str | None, *, corpus: Path | None, count: Count
) -> HeldOut:
    """Read the test shapes of a split; of few-shot, those of all its folds one after the other.

    Args:
        name: one of ``BENCHMARKS``.
        archive: its data.
        split: one of its splits.
        corpus: for LVIS, whose annotation names shapes of it.
        count: told how far the reading is.

    Raises:
        DataError: if the data is absent or damaged.
    """
    if name == "scanobjectnn" and split is not None:
        return held_out_of(read_scanobjectnn(archive, split))
    if name == "fewshot":
        return _all_folds(archive, split, count)
    if name == "shapenetpart":
        return held_out_of(read_shapenetpart(archive, progress=count))
    if name == "lvis" and corpus is not None:
        return held_out_of(read_lvis(archive, open_corpus(corpus)))
    return held_out_of(read_modelnet40(archive, progress=count))


def held_out_of(benchmark: Labelled) -> HeldOut:
    """The test shapes of a benchmark that has been read; of LVIS all shapes, since every draw tests on most."""
    if isinstance(benchmark, LvisShapes):
        names = benchmark.corpus.ids()
        return HeldOut(
            benchmark="Objaverse-LVIS",
            clouds=_CorpusClouds(benchmark.corpus, benchmark.indices),
            ids=tuple(names[index] for index in benchmark.indices),
            checksum=benchmark.corpus.content,
            stand_in=benchmark.stand_in,
        )
    ids = benchmark.test.ids
    if ids is None and isinstance(benchmark, Benchmark) and benchmark.name == "ScanObjectNN":
        # The corpus reader names clouds by their rows too.
        ids = tuple(f"{benchmark.split}/test/{row:05d}" for row in range(len(benchmark.test)))
    return HeldOut(
        benchmark=benchmark.name,
        clouds=tuple(benchmark.test.points),
        ids=ids,
        checksum=benchmark.checksum,
        stand_in=benchmark.stand_in,
    )


def _all_folds(archive: Path, split: str | None, count: Count) -> HeldOut:
    way, shot = next((w, s) for w, s in FEWSHOT_SETTINGS if f"{w}w{s}s" == split)
    folds = []
    for fold in range(FOLDS):
        folds.append(held_out_of(read_modelnet_fewshot(archive, way=way, shot=shot, fold=fold)))
        count(fold + 1, FOLDS)
    return HeldOut(
        benchmark=folds[0].benchmark,
        clouds=[cloud for fold in folds for cloud in fold.clouds],
        ids=None,
        checksum=folds[0].checksum,
        stand_in=folds[0].stand_in,
    )
