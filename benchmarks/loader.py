"""From a corpus on disk to batches, on one thread: shapes per second, compared with HDF5 read shape by shape.

The baseline is what a competent user writes for the same shards: a random read of each shape's rows with h5py, its
scale and centre applied in float32, ``np.stack``, one tensor. The script checks that both give the same (B, N, 3)
batches. The corpus is in the page cache for both. The ratio is the median over alternating rounds.

Run: ``python benchmarks/loader.py``
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.corpus.shard import LEVELS
from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.engine.pretraining.loader import batches, epoch_order

SHAPES, POINTS, BATCH, ROUNDS = 512, 16_384, 32, 7


def ours(corpus: Corpus, epoch: int) -> Iterator[Tensor]:
    """The batches of one epoch of a run."""
    per_epoch = len(corpus) // BATCH
    first = epoch * per_epoch
    for batch in batches(corpus, batch_size=BATCH, seed=0, first=first, last=first + per_epoch):
        yield batch.points


def theirs(corpus: Corpus, files: list[h5py.File], epoch: int) -> Iterator[Tensor]:
    """The same by hand: one read per shape, then ``np.stack``."""
    ends = np.cumsum([record.shapes for record in corpus.manifest.shards])
    order = epoch_order(len(corpus), seed=0, epoch=epoch)
    for begin in range(0, len(order) - BATCH + 1, BATCH):
        clouds = []
        for number in order[begin : begin + BATCH]:
            shard = int(np.searchsorted(ends, number, side="right"))
            row = int(number - (ends[shard - 1] if shard else 0))
            file = files[shard]
            start, stop = file["offsets"][row], file["offsets"][row + 1]
            scale = np.float32(file["scale"][row] / LEVELS)
            clouds.append(file["points"][start:stop] * scale + file["center"][row])
        yield torch.from_numpy(np.stack(clouds))


def seconds(run: Callable[[], Iterator[Tensor]]) -> float:
    """Duration of one pass over the corpus."""
    began = time.perf_counter()
    for _ in run():
        pass
    return time.perf_counter() - began


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus"
        source = open_source("builtin", SourceRequest(shapes=SHAPES))
        build_corpus(source, path, points=POINTS, seed=0)
        corpus = open_corpus(path)
        files = [h5py.File(path / record.file, "r") for record in corpus.manifest.shards]
        for mine, other in zip(ours(corpus, 0), theirs(corpus, files, 0), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
        times: tuple[list[float], list[float]] = ([], [])
        for epoch in range(1, ROUNDS + 1):
            times[0].append(seconds(lambda epoch=epoch: ours(corpus, epoch)))
            times[1].append(seconds(lambda epoch=epoch: theirs(corpus, files, epoch)))
        for file in files:
            file.close()
    mine, other = (statistics.median(kept) for kept in times)
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    shapes = SHAPES // BATCH * BATCH
    print(
        f"{platform.machine()}, one thread, {SHAPES} shapes of {POINTS} points, batches of {BATCH}, "
        f"median of {ROUNDS}"
    )
    print("| way | shapes/s |\n| --- | --- |")
    print(f"| loader | {shapes / mine:,.0f} |")
    print(f"| h5py a shape, np.stack | {shapes / other:,.0f} |")
    print(f"\nratio {ratio:.2f}")


if __name__ == "__main__":
    main()
