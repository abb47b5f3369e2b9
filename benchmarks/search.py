"""Searching millions of made-up vectors: peak memory and seconds of ``search`` in a process of its own.

The index is written by the program's own writer from vectors that are made on the way, float16 of width 192:
normal noise about one of 1,000 centres, 65,536 vectors that are repeated with another offset. The encoder has
random weights, so what is found means nothing; time and memory do not depend on it. An index of a thousandth is
searched too: its time and memory are those of the program itself, which loads torch and the encoder.

Run: ``python benchmarks/search.py``, or with ``--shapes 10000000 --folder FOLDER`` for another number of vectors,
and a folder with room for 400 bytes of each. The index is removed at the end.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pointdistill.engine.config.recipes import recipe
from pointdistill.engine.embedding.file import FORMAT, VERSION, WorkFolder, write_output
from pointdistill.engine.weights.encoders import encoder_checksum, save_encoder
from pointdistill.model.encoder import Encoder

WIDTH, CENTRES, BLOCK = 192, 1000, 65_536


class MadeChunks(WorkFolder):
    """Chunks of vectors that are made when they are read, the same each time."""

    def __init__(self, shapes: int) -> None:
        self.shapes = shapes
        rng = np.random.default_rng(0)
        centres = rng.standard_normal((CENTRES, WIDTH), np.float32)
        block = rng.standard_normal((min(BLOCK, shapes), WIDTH), np.float32)
        self.block = block + centres[rng.integers(CENTRES, size=len(block))]

    def columns(self, *names: str) -> Iterator[dict[str, NDArray[Any]]]:
        """For each chunk in turn, those of the named columns that it has."""
        for first in range(0, self.shapes, BLOCK):
            numbers = np.arange(first, min(first + BLOCK, self.shapes))
            columns: dict[str, NDArray[Any]] = {}
            if "features" in names:
                offset = np.random.default_rng((1, first)).standard_normal(WIDTH, np.float32)
                columns["features"] = self.block[: len(numbers)] + offset
            if "ids" in names:
                digits = numbers[:, None] // 10 ** np.arange(7, -1, -1) % 10 + ord("0")
                columns["ids"] = digits.astype(np.uint32).view("<U8")[:, 0]
            if "sources" in names:
                columns["sources"] = np.zeros(len(numbers), np.int32)
            if "rows" in names:
                columns["rows"] = numbers
            if "counts" in names:
                columns["counts"] = np.ones(len(numbers), np.int64)
            yield columns


def make_encoder(folder: Path) -> Encoder:
    """An encoder of width 192 with random weights."""
    torch.manual_seed(0)
    encoder = Encoder(replace(recipe("tiny").encoder, width=WIDTH)).eval()
    for weight in encoder.parameters():
        if weight.ndim > 1:
            nn.init.trunc_normal_(weight, std=0.05)
    save_encoder(encoder, folder)
    return encoder


def make_index(path: Path, encoder: Encoder, shapes: int) -> float:
    """Write the index; returns the seconds."""
    begun = time.perf_counter()
    info = {
        "format": FORMAT,
        "version": VERSION,
        "features": "cls",
        "width": WIDTH,
        "dtype": "float16",
        "encoder": "./encoder",
        "encoder_sha256": encoder_checksum(encoder),
        "points": encoder.config.points,
        "draws": 1,
        "turns": 1,
        "seed": 0,
        "up": "z",
        "inputs": [{"kind": "folder", "path": "./made", "given": "made"}],
        "shapes": shapes,
        "assumed_up": 0,
        "failed": [],
    }
    write_output(MadeChunks(shapes), path, info, width=WIDTH)
    return time.perf_counter() - begun


def searched(query: Path, index: Path) -> tuple[float, float, float]:
    """Seconds, seconds of processor time, and peak MiB of the command in a process of its own."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "pointdistill", "search", str(query), str(index), "--json"]
    nothing = os.open(os.devnull, os.O_WRONLY)
    child = os.posix_spawn(
        sys.executable, command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, nothing, 1)]
    )
    _, status, used = os.wait4(child, 0)
    os.close(nothing)
    if status:
        msg = f"{' '.join(command)} failed"
        raise RuntimeError(msg)
    return time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main(shapes: int, folder: Path) -> None:
    """Make the indexes, search them, and print a table."""
    encoder = make_encoder(folder / "encoder")
    query = folder / "query.npy"
    np.save(query, np.random.default_rng(0).normal(size=(4096, 3)).astype(np.float32))
    print(f"{platform.machine()}, torch {torch.__version__}, numpy {np.__version__}")
    print("| vectors | file, GB | made in s | search, s | processor, s | peak, MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for count in (shapes // 1000, shapes):
        index = folder / f"made-{count}.npz"
        try:
            made = make_index(index, encoder, count)
            size = index.stat().st_size / 1e9
            whole, busy, peak = searched(query, index)
            figures = f"{size:.2f} | {made:.0f} | {whole:.1f} | {busy:.1f} | {peak:.0f}"
            print(f"| {count:,} | {figures} |", flush=True)
        finally:
            index.unlink(missing_ok=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=int, default=1_000_000)
    parser.add_argument(
        "--folder", type=Path, help="where the index is made; a temporary one by default"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        main(given.shapes, Path(temporary))
