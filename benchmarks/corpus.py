"""Random reads of whole shapes from a corpus, warm, against a raw memory map of the same int16 points.

Run: ``python benchmarks/corpus.py``
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pointdistill.data.build import build_corpus
from pointdistill.data.corpus import open_corpus
from pointdistill.data.sources import SourceRequest, open_source

SHAPES, POINTS, READS, ROUNDS = 400, 16_384, 400, 7


def microseconds(read: Callable[[int], object], order: list[int]) -> float:
    """Median over rounds of the mean time of a read."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for index in order:
            read(index)
        rounds.append((time.perf_counter() - began) / len(order) * 1e6)
    return statistics.median(rounds)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = open_source("builtin", SourceRequest(shapes=SHAPES))
        build_corpus(source, Path(folder) / "corpus", points=POINTS, seed=0)
        corpus = open_corpus(Path(folder) / "corpus")
        raw = np.lib.format.open_memmap(
            Path(folder) / "raw.npy", "w+", np.int16, (SHAPES, POINTS, 3)
        )
        scale = np.empty((SHAPES, 1), np.float32)
        center = np.empty((SHAPES, 3), np.float32)
        for index in range(SHAPES):
            points = corpus.points(index)
            center[index] = (points.max(0) + points.min(0)) / 2
            scale[index] = np.ptp(points, axis=0).max() / 2 / 32767
            raw[index] = np.round((points - center[index]) / scale[index])
        order = np.random.default_rng(0).integers(SHAPES, size=READS).tolist()
        ways = {
            "corpus.points(i)": corpus.points,
            "memory map, center and scale applied": lambda i: raw[i] * scale[i] + center[i],
            "memory map, turned to float32 only": lambda i: raw[i].astype(np.float32),
        }
        print(f"{platform.machine()}, {SHAPES} shapes of {POINTS} points, median of {ROUNDS}")
        print("| way | microseconds a shape |\n| --- | --- |")
        for name, read in ways.items():
            print(f"| {name} | {microseconds(read, order):.0f} |")


if __name__ == "__main__":
    main()
