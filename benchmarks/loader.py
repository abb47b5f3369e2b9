"""From a corpus on disk to batches, on one thread: microseconds of processor time a shape, and three other ways.

The loader hands points over as they are stored (int16), and they become float32 on the device. Beside it: the same
with the conversion on this CPU; float32 batches from ``corpus.points``, as the loader read them before; a copy of
the same bytes alone (``pread`` of each shape's points into the batch); and what a competent user writes for these
shards, a random read of each shape's rows with h5py, its scale and centre applied in float32, ``np.stack``.
The script checks that all give the same (B, N, 3) batches. The corpus is in the page cache. Processor time and not
wall time, so that other work on the machine hardly matters; medians over alternating rounds.

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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.corpus.shard import LEVELS
from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.engine.pretraining.loader import (
    AnyBatch,
    StoredBatch,
    batches,
    epoch_order,
    read_batch,
)
from pointdistill.engine.runtime.devices import keep_freed_memory

SHAPES, POINTS, BATCH, ROUNDS = 512, 16_384, 32, 7


def ours(corpus: Corpus, epoch: int) -> Iterator[Tensor]:
    """The batches of one epoch of a run, as they are handed over."""
    for batch in handed_over(corpus, epoch):
        assert isinstance(batch, StoredBatch)
        yield batch.levels


def handed_over(corpus: Corpus, epoch: int) -> Iterator[AnyBatch]:
    """What the loader gives to the device."""
    per_epoch = len(corpus) // BATCH
    first = epoch * per_epoch
    return batches(corpus, batch_size=BATCH, seed=0, first=first, last=first + per_epoch)


def restored(corpus: Corpus, epoch: int) -> Iterator[Tensor]:
    """The same, and turned into float32 on this CPU."""
    for batch in handed_over(corpus, epoch):
        yield batch.to(torch.device("cpu")).points


def before(corpus: Corpus, epoch: int) -> Iterator[Tensor]:
    """float32 points of each shape, copied into the batch, in a thread as in the loader."""
    order = epoch_order(len(corpus), seed=0, epoch=epoch)
    starts = range(0, len(order) - BATCH + 1, BATCH)
    with ThreadPoolExecutor(1) as thread:
        parts = (order[first : first + BATCH] for first in starts)
        for batch in thread.map(lambda index: read_batch(corpus, index, epoch), parts):
            yield batch.points


def copied(corpus: Corpus, files: list[h5py.File], epoch: int) -> Iterator[Tensor]:
    """The bytes of each shape's points in a batch, with every offset known beforehand."""
    ends = np.cumsum([record.shapes for record in corpus.manifest.shards])
    offsets = [file["offsets"][:] for file in files]
    places = [file["points"].id.get_offset() for file in files]
    opened = [(corpus.path / record.file).open("rb") for record in corpus.manifest.shards]
    order = epoch_order(len(corpus), seed=0, epoch=epoch)
    for begin in range(0, len(order) - BATCH + 1, BATCH):
        levels = torch.empty(BATCH, POINTS, 3, dtype=torch.int16)
        for row, number in zip(levels.numpy(), order[begin : begin + BATCH], strict=True):
            shard = int(np.searchsorted(ends, number, side="right"))
            start = int(offsets[shard][number - (ends[shard - 1] if shard else 0)])
            content = os.pread(opened[shard].fileno(), row.nbytes, places[shard] + 6 * start)
            row[:] = np.frombuffer(content, "<i2").reshape(-1, 3)
        yield levels
    for file in opened:
        file.close()


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
    """Processor time of one pass over the corpus."""
    began = time.process_time()
    for _ in run():
        pass
    return time.process_time() - began


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # as in a training on a CPU; on a GPU page-locked memory is kept too
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus"
        source = open_source("builtin", SourceRequest(shapes=SHAPES))
        build_corpus(source, path, points=POINTS, seed=0)
        corpus = open_corpus(path)
        files = [
            h5py.File(path / record.file, "r", locking=False) for record in corpus.manifest.shards
        ]
        ways: dict[str, Callable[[int], Iterator[Tensor]]] = {
            "loader: as stored, int16": lambda epoch: ours(corpus, epoch),
            "copy of the same bytes alone": lambda epoch: copied(corpus, files, epoch),
            "loader, and float32 on this CPU": lambda epoch: restored(corpus, epoch),
            "float32 of each shape, as before": lambda epoch: before(corpus, epoch),
            "h5py a shape, np.stack": lambda epoch: theirs(corpus, files, epoch),
        }
        for mine, earlier, other in zip(
            restored(corpus, 0), before(corpus, 0), theirs(corpus, files, 0), strict=True
        ):
            assert torch.equal(mine, earlier)
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
        for mine, other in zip(ours(corpus, 0), copied(corpus, files, 0), strict=True):
            assert torch.equal(mine, other)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for epoch in range(1, ROUNDS + 1):
            for name, way in ways.items():
                times[name].append(seconds(lambda way=way, epoch=epoch: way(epoch)))
        for file in files:
            file.close()
    shapes = SHAPES // BATCH * BATCH
    print(
        f"{platform.machine()}, one thread, {SHAPES} shapes of {POINTS} points, batches of {BATCH}, "
        f"median of {ROUNDS}"
    )
    print("| way | processor time a shape, µs |\n| --- | --- |")
    for name, kept in times.items():
        print(f"| {name} | {1e6 * statistics.median(kept) / shapes:.1f} |")


if __name__ == "__main__":
    main()
