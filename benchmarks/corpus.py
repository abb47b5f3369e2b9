"""Random reads of whole shapes from a corpus to (n, 3) float32, warm, against Zarr and a raw memory map.

- **Zarr** (version 2): one float32 array per shape in a group of a `DirectoryStore`, with one uncompressed chunk
  each. A shape is looked up by name, as one of a million would be, and, for comparison, read from an array kept
  open.
- **Memory map**: the same int16 points of all shapes, concatenated; offsets, scales and centres in memory; the map
  seen as a plain array. There are three implementations, and the fastest at each size is the one to beat. Two more
  rows are not comparable reads: a conversion to float32 only, which leaves every shape on the unit cube, and the
  map with this package's own arithmetic, which shows the overhead of a corpus.

All methods give the same bits. Rounds alternate; figures are medians, and ratios are medians of the rounds'
ratios.

Run: ``python benchmarks/corpus.py``. It also measures a corpus of a million clouds (`corpus_scale.py`). This takes
two to three minutes and 0.5 GB in a temporary folder; ``--quick`` takes less. Zarr 2 is in the extra ``bench``.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from corpus_scale import measure_scale, microseconds
from made_corpus import make_corpus
from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.corpus.shard import LEVELS, read_block, restore

ROUNDS = 21
READS = 200
SIZES = {16_384: 400, 2_048: 2_000, 1_024: 4_000}
"""Shapes by their number of points: data beyond a core's own cache, within a machine's memory."""

OURS = "`corpus.points(i)`"
BY_NAME = "Zarr, array looked up"
KEPT_OPEN = "Zarr, array kept open"
ONLY_CONVERTED = "memory map, to float32 only"
OWN_ARITHMETIC = "memory map, `shard.restore`"
MEMORY_MAPS = (
    "memory map, one expression",
    "memory map, in place",
    "memory map, in place, axis by axis",
)

Read = Callable[[int], NDArray[np.float32]]


@dataclass(frozen=True)
class RawMap:
    """Points of all shapes in one memory-mapped file; offsets, scales and centres in memory."""

    steps: NDArray[np.int16]
    offsets: list[int]
    scale: list[np.float32]
    """Of one step."""

    center: NDArray[np.float32]
    half_side: list[np.float32]

    def one_expression(self, index: int) -> NDArray[np.float32]:
        steps = self.steps[self.offsets[index] : self.offsets[index + 1]]
        return steps.astype(np.float32) * self.scale[index] + self.center[index]

    def in_place(self, index: int) -> NDArray[np.float32]:
        points = self.steps[self.offsets[index] : self.offsets[index + 1]].astype(np.float32)
        points *= self.scale[index]
        points += self.center[index]
        return points

    def by_axis(self, index: int) -> NDArray[np.float32]:
        points = self.steps[self.offsets[index] : self.offsets[index + 1]].astype(np.float32)
        points *= self.scale[index]
        for axis, center in enumerate(self.center[index]):
            points[:, axis] += center
        return points

    def restored(self, index: int) -> NDArray[np.float32]:
        steps = self.steps[self.offsets[index] : self.offsets[index + 1]]
        return restore(steps, self.center[index].tobytes(), float(self.half_side[index]))

    def only_converted(self, index: int) -> NDArray[np.float32]:
        return self.steps[self.offsets[index] : self.offsets[index + 1]].astype(np.float32)


def main(*, quick: bool) -> None:
    print(
        f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, "
        f"zarr {zarr.__version__}; one thread\n"
    )
    sizes = {points: shapes // 20 for points, shapes in SIZES.items()} if quick else SIZES
    found = {}
    for points, shapes in sizes.items():
        with tempfile.TemporaryDirectory() as folder:
            ways = make_ways(Path(folder), shapes=shapes, points=points)
            found[points] = alternate(ways, shapes, rounds=3 if quick else ROUNDS)
    print_reads(found)
    measure_scale(shapes=20_000 if quick else 1_000_000, rounds=5 if quick else 101)


def make_ways(folder: Path, *, shapes: int, points: int) -> dict[str, Read]:
    """All methods to read the same shapes. Each has read all shapes once, and they agree bit for bit."""
    make_corpus(folder / "corpus", shapes=shapes, points=points, seed=0)
    corpus = open_corpus(folder / "corpus")
    raw = make_raw(folder / "raw.npy", corpus)
    group = make_zarr(folder / "zarr", corpus)
    names = list(group.array_keys())
    arrays = [group[name] for name in names]
    ways: dict[str, Read] = {
        OURS: corpus.points,
        BY_NAME: lambda index: group[names[index]][:],
        KEPT_OPEN: lambda index: arrays[index][:],
        ONLY_CONVERTED: raw.only_converted,
        OWN_ARITHMETIC: raw.restored,
    }
    ways |= zip(MEMORY_MAPS, (raw.one_expression, raw.in_place, raw.by_axis), strict=True)
    for index in range(shapes):
        expected = corpus.points(index)
        for name, read in ways.items():
            same = np.array_equal(read(index), expected)
            assert same or name == ONLY_CONVERTED, f"{name} reads shape {index} otherwise"
    return ways


def make_raw(path: Path, corpus: Corpus) -> RawMap:
    """The corpus's own int16 points in one file."""
    blocks = [read_block(corpus.path / shard.file) for shard in corpus.manifest.shards]
    np.save(path, np.concatenate([block.points for block in blocks]))
    counts = np.concatenate([np.diff(block.offsets) for block in blocks])
    scale = np.concatenate([block.scale for block in blocks])
    return RawMap(
        steps=np.load(path, mmap_mode="r").view(np.ndarray),
        offsets=[0, *np.cumsum(counts).tolist()],
        scale=list(scale / np.float32(LEVELS)),
        center=np.concatenate([block.center for block in blocks]),
        half_side=list(scale),
    )


def make_zarr(path: Path, corpus: Corpus) -> zarr.Group:
    """A group with one array per shape, opened for reading."""
    group = zarr.open_group(zarr.DirectoryStore(str(path)), mode="w")
    for index in range(len(corpus)):
        points = corpus.points(index)
        group.create_dataset(f"{index:06d}", data=points, chunks=points.shape, compressor=None)
    return zarr.open_group(zarr.DirectoryStore(str(path)), mode="r")


def alternate(ways: Mapping[str, Read], shapes: int, *, rounds: int) -> dict[str, list[float]]:
    """Microseconds per read of each method in each round.

    Each method reads in its own order. Otherwise methods that share a file would find in a core's cache what the
    previous one has read.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    rng = np.random.default_rng(0)
    for turn in range(rounds):
        for name in list(ways) if turn % 2 else list(ways)[::-1]:
            order = rng.integers(shapes, size=READS).tolist()
            taken[name].append(microseconds(ways[name], order))
    return taken


def print_reads(found: Mapping[int, Mapping[str, list[float]]]) -> None:
    """Print microseconds per read, and the ratio to ours, by method and number of points."""
    print(f"| a random read of | {' | '.join(f'{points:,} points' for points in found)} |")
    print(f"| --- |{' --- |' * len(found)}")
    for name in next(iter(found.values())):
        cells = [
            f"{statistics.median(taken[name]):.1f} µs"
            + ("" if name == OURS else f", {times(taken, name):.2f}x")
            for taken in found.values()
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    bars = {
        "speed against Zarr, array looked up (bar 25x)": lambda taken: times(taken, BY_NAME),
        "speed against the fastest memory map (bar 0.8x)": lambda taken: min(
            times(taken, name) for name in MEMORY_MAPS
        ),
    }
    for name, bar in bars.items():
        print(
            f"| **{name}** | {' | '.join(f'**{bar(taken):.2f}x**' for taken in found.values())} |"
        )


def times(taken: Mapping[str, list[float]], name: str) -> float:
    """Ratio of the times to ours: the median of the rounds' ratios."""
    return statistics.median(
        other / ours for other, ours in zip(taken[name], taken[OURS], strict=True)
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    main(quick=parser.parse_args().quick)
