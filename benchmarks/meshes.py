"""From mesh files to clouds of 16,384 points: shapes per second and core, compared with a plain trimesh loop.

The plain loop is what a user writes first: ``trimesh.load`` with its defaults, ``to_geometry`` for scenes,
``trimesh.sample.sample_surface``. Both run in one process on one thread, alternating file by file, from the page
cache. Times are processor time, and a ratio is the median of the rounds' ratios. The script first checks, by area,
that both read the same surface. The files are those of ``mesh_files.py`` and, if that folder is beside the
checkout, the meshes in ``shared/meshes/good``. Then one worker is compared with two: ``build_corpus`` on a folder
with many copies of the smaller files.

Run: ``python benchmarks/meshes.py``, or with ``--quick`` to see whether it works.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
import trimesh.sample

from mesh_files import FACES, write_files
from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.meshes import Surface, read_mesh, sample_surface, surface_area
from pointdistill.data.sources import SourceRequest, open_source

POINTS = 16_384
FORMATS = (".obj", ".off", ".glb", ".stl", ".ply")
GOOD = Path(__file__).parents[2] / "shared" / "meshes" / "good"
LARGE = 1_000_000
ROUNDS, LARGE_ROUNDS = 9, 3
COPIES, BUILDS = 30, 3


@dataclass(frozen=True, slots=True)
class Timing:
    """Processor time in seconds for one file, per round."""

    path: Path
    ours: list[float]
    plain: list[float]

    @property
    def group(self) -> str:
        """The file's format and whether it has textures."""
        ending = self.path.suffix[1:].upper()
        return f"{ending}, four textures" if self.path.stem.startswith("textured") else ending

    @property
    def ratio(self) -> float:
        return statistics.median(b / a for a, b in zip(self.ours, self.plain, strict=True))


def load_plainly(path: Path) -> trimesh.Trimesh:
    loaded = trimesh.load(path)
    return loaded.to_geometry() if isinstance(loaded, trimesh.Scene) else loaded


def sample_plainly(path: Path) -> np.ndarray:
    points: np.ndarray = trimesh.sample.sample_surface(load_plainly(path), POINTS, seed=0)[0]
    return points


def seconds(function: Callable[[Path], object], path: Path) -> float:
    begun = time.process_time()
    function(path)
    return time.process_time() - begun


def check_same(path: Path) -> None:
    """Check that both read the same area; quads that are not flat may be cut along either diagonal."""
    shape, area = read_mesh(path), load_plainly(path).area
    assert isinstance(shape, Surface)
    assert math.isclose(surface_area(shape), area, rel_tol=5e-3), f"{path}: another surface"


def measure(path: Path, rounds: int) -> Timing:
    check_same(path)
    timing = Timing(path, [], [])
    contenders = [
        (timing.ours, lambda path: sample_surface(path, POINTS, seed=0)),
        (timing.plain, sample_plainly),
    ]
    for turn in range(rounds):
        for taken, function in contenders if turn % 2 else contenders[::-1]:
            taken.append(seconds(function, path))
    return timing


def mean(values: list[float]) -> float:
    """Geometric mean: a file counts by its ratio, not by its size."""
    return math.exp(statistics.fmean(map(math.log, values)))


def report(timings: list[Timing]) -> None:
    print("| format | files | shapes/s | plain loop | ratio | worst file |")
    print("| --- | --- | --- | --- | --- | --- |")
    for group in dict.fromkeys(timing.group for timing in timings):
        rows = [timing for timing in timings if timing.group == group]
        ours, plain = (
            mean([1 / statistics.median(taken) for taken in kept])
            for kept in ([row.ours for row in rows], [row.plain for row in rows])
        )
        worst = min(rows, key=lambda row: row.ratio)
        print(
            f"| {group} | {len(rows)} | {ours:.1f} | {plain:.1f} | "
            f"**{mean([row.ratio for row in rows]):.2f}** | {worst.path.name} {worst.ratio:.2f} |"
        )
    print("\nShapes a second and core, and their ratios, are geometric means over the files.\n")
    print("| file | KB | milliseconds | plain loop | ratio |\n| --- | --- | --- | --- | --- |")
    for row in timings:
        ours, plain = (1e3 * statistics.median(taken) for taken in (row.ours, row.plain))
        size = row.path.stat().st_size / 1e3
        print(f"| {row.path.name} | {size:,.0f} | {ours:.1f} | {plain:.1f} | {row.ratio:.2f} |")


def build_seconds(folder: Path, output: Path, workers: int) -> float:
    source = open_source("folder", SourceRequest(path=folder))
    begun = time.perf_counter()
    built = build_corpus(source, output, points=POINTS, seed=0, workers=workers)
    taken = time.perf_counter() - begun
    assert not built.refused
    return taken


def compare_workers(files: list[Path], folder: Path, copies: int, rounds: int) -> None:
    """Print wall-clock times of whole builds, including the start of the processes."""
    meshes = folder / "meshes"
    for copy in range(copies):
        for path in files:
            place = meshes / f"{copy}" / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
    taken: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds):
        for workers in taken if turn % 2 else reversed(taken):
            taken[workers].append(build_seconds(meshes, folder / f"{turn}-{workers}", workers))
    shapes = copies * len(files)
    one, two = (shapes / statistics.median(times) for times in taken.values())
    ratio = statistics.median(a / b for a, b in zip(*taken.values(), strict=True))
    print(f"\nbuild_corpus, {shapes} shapes: one worker {one:.1f} shapes/s, two {two:.1f}", end="")
    print(f", ratio {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small files, one round: no figures")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_files(folder, FACES[:1] if quick else FACES)
        files += sorted(GOOD.iterdir()) if GOOD.is_dir() else []
        files = [path for path in files if path.suffix.lower() in FORMATS]
        files.sort(key=lambda path: (FORMATS.index(path.suffix.lower()), path.stat().st_size))
        print(
            f"{platform.machine()}, one thread, trimesh {trimesh.__version__}, numpy {np.__version__}, "
            f"{POINTS} points of each shape\n"
        )
        small = [path for path in files if path.stat().st_size < LARGE]
        rounds = {path: ROUNDS if path in small else LARGE_ROUNDS for path in files}
        timings = [measure(path, 1 if quick else rounds[path]) for path in files]
        report(sorted(timings, key=lambda row: (FORMATS.index(row.path.suffix.lower()), row.group)))
        compare_workers(small, folder, 1 if quick else COPIES, 1 if quick else BUILDS)


if __name__ == "__main__":
    main()
