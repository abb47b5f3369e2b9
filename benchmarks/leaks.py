"""The leak check: recall on planted test shapes, false alarms on clean ones, and what it costs.

A corpus of builtin shapes of 30 categories is built. 200 of its shapes are resampled, scaled, moved and turned
about z (planted), and ``--clean`` shapes of the same categories are made from another seed (clean). Each is
compared with the whole corpus. The thresholds are constants in the code; they were set on the output of
``--calibrate``, which uses other seeds.

Builtin shapes with few parameters sometimes coincide, for example two boxes of nearly the same proportions. So two
numbers are counted: clean shapes that are flagged, and those of them whose surface truly differs from the corpus
shape's. To decide this, both shapes are made again, sampled with 65,536 points each, and registered. They differ
if more than 1 % of either surface is farther from the other than 0.03 of its root mean square radius. This is half
the distance between neighbours among 1,024 points; two samples of one surface reach 0.02. Prints Markdown.

Run: ``python benchmarks/leaks.py [--corpus 6000] [--clean 1000] [--workers 2] [--calibrate] [--speed]``
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree
from threadpoolctl import threadpool_limits

from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.files.processes import ordered_map
from pointdistill.data.leaks.candidates import (
    POINTS,
    SIZE,
    Fingerprints,
    Queries,
    centred,
    corpus_fingerprints,
    fingerprint,
    nearest_candidates,
    subsample,
)
from pointdistill.data.leaks.find import Match, likely, match_clouds
from pointdistill.data.leaks.registration import (
    LIKELY,
    SAME_SURFACE,
    PhaseMatcher,
    SurfaceSamples,
    align,
    nearest_distances,
    pattern,
    surface_gap,
)
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.data.sources.base import source_shape_rng
from pointdistill.data.synthetic_shapes import CATEGORIES, make_shape, sample_shape

MEASURED_SEED, CLEAN_SEED = 7, 8
CALIBRATION_SEED, CALIBRATION_CLEAN_SEED = 1, 4
TEST_POINTS = (1024, 2048)
THIRTY = CATEGORIES[::2] + CATEGORIES[1:6:2]
BLOCK = 60
DENSE = 65_536
TOLERANCE, BEYOND_IT = 0.03, 0.01


@dataclass(frozen=True)
class Test:
    """One test shape: number ``index`` of a category among the builtin shapes of a seed."""

    category: str
    index: int
    seed: int
    points: int

    @property
    def id(self) -> str:
        return f"{self.category}/{self.index:06d}"

    def surface(self, count: int, *, rng: np.random.Generator) -> NDArray[np.float32]:
        """Another sample of the shape, (count, 3), in the frame of its corpus."""
        made = source_shape_rng(seed=self.seed, source="builtin", shape_id=self.id)
        return sample_shape(make_shape(self.category, rng=made), count, rng=rng)[0]

    def cloud(self) -> NDArray[np.float32]:
        """Another sample of the shape, scaled, moved, and turned about z."""
        rng = source_shape_rng(seed=7, source=f"test of {self.seed}", shape_id=self.id)
        points = self.surface(self.points, rng=rng)
        angle = rng.uniform(0.0, 2.0 * np.pi)
        cosine, sine = np.cos(angle), np.sin(angle)
        turn = np.array(((cosine, -sine, 0.0), (sine, cosine, 0.0), (0.0, 0.0, 1.0)))
        scale = 10.0 ** rng.uniform(-2.0, 2.0)
        return ((points @ turn.T) * scale + rng.normal(size=3) * scale).astype(np.float32)


def planted_tests(count: int, seed: int, of_each: int) -> list[Test]:
    """Spread over the categories and the corpus's shapes of each, with alternating counts of points."""
    return [
        Test(THIRTY[k % 30], (k // 30) * 7 % of_each, seed, TEST_POINTS[(k // 30) % 2])
        for k in range(count)
    ]


def clean_tests(count: int, seed: int) -> list[Test]:
    return [Test(THIRTY[k % 30], k // 30, seed, TEST_POINTS[(k // 30) % 2]) for k in range(count)]


@dataclass(frozen=True)
class Task:
    """Some test shapes to search for in a corpus whose fingerprints are stored."""

    corpus: Corpus
    tests: list[Test]


def matches(task: Task) -> list[Match | None]:
    return match_clouds([test.cloud() for test in task.tests], task.corpus, workers=1)


def lowest(task: Task) -> list[tuple[float, float]]:
    """For each test shape: its lowest gap to any candidate, and its lowest distance by phases."""
    clouds = [test.cloud() for test in task.tests]
    found = nearest_candidates(corpus_fingerprints(task.corpus, workers=1), Queries.of(clouds))
    # As in the check.
    with threadpool_limits(1, user_api="blas"):
        return [
            nearest_of(cloud, few, task.corpus) for cloud, few in zip(clouds, found, strict=True)
        ]


def to_its_own(task: Task) -> list[tuple[float, float]]:
    """For each planted test shape: gap and distance by phases to the shape that it is a sample of."""
    numbers = {name: number for number, name in enumerate(task.corpus.ids())}
    with threadpool_limits(1, user_api="blas"):
        return [
            nearest_of(test.cloud(), np.array([numbers[test.id]]), task.corpus)
            for test in task.tests
        ]


def nearest_of(
    cloud: NDArray[np.float32], candidates: NDArray[np.int64], corpus: Corpus
) -> tuple[float, float]:
    matcher, test = PhaseMatcher(cloud), SurfaceSamples(cloud)
    gaps, apart = [np.inf], [np.inf]
    for index in candidates.tolist():
        points = corpus.points(index)
        apart.append(matcher.poses(pattern(points), min(len(points), POINTS))[0][0])
    for index, poses in likely(matcher, candidates, corpus):
        gaps.append(surface_gap(test, SurfaceSamples(corpus.points(index)), poses))
    return min(gaps), min(apart)


def over_all(work, corpus: Corpus, tests: list[Test], workers: int) -> list:
    """The results of ``work`` for each test; prints progress to stderr."""
    blocks = [Task(corpus, tests[first : first + BLOCK]) for first in range(0, len(tests), BLOCK)]
    found: list = []
    began = time.perf_counter()
    for block in ordered_map(work, blocks, workers=workers):
        found.extend(block)
        spent = time.perf_counter() - began
        print(f"\r{len(found):,} of {len(tests):,}, {spent:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    return found


def calibrate(corpus: Corpus, planted: int, clean: int, workers: int) -> None:
    """Print what the thresholds were set on. Low gaps of clean shapes are near-duplicates."""
    print(f"\nThresholds in the code: gap {SAME_SURFACE}, distance by phases {LIKELY:.0f}")
    print(
        "\n| tests | points | count | what | lowest | 2nd | 3rd | median | 3rd highest | 2nd | highest |"
    )
    print("| --- |" + " --- |" * 10)
    for name, work, tests in (
        ("planted", to_its_own, planted_tests(planted, CALIBRATION_SEED, len(corpus) // 30)),
        ("clean", lowest, clean_tests(clean, CALIBRATION_CLEAN_SEED)),
    ):
        found = np.array(over_all(work, corpus, tests, workers))
        for points in TEST_POINTS:
            these = found[[test.points == points for test in tests]]
            for what, values in (("gap", np.sort(these[:, 0])), ("phases", np.sort(these[:, 1]))):
                shown = [f"{values[p]:.3f}" for p in (0, 1, 2, len(values) // 2, -3, -2, -1)]
                print("| " + " | ".join((name, str(points), str(len(values)), what, *shown)) + " |")


def measure(corpus: Corpus, planted: int, clean: int, workers: int) -> None:
    """Print recall and false alarms of the check."""
    names = corpus.ids()
    tests = planted_tests(planted, MEASURED_SEED, len(corpus) // 30)
    found = over_all(matches, corpus, tests, workers)
    right = sum(
        match is not None and names[match.corpus_index] == test.id
        for test, match in zip(tests, found, strict=True)
    )
    missed = [test for test, match in zip(tests, found, strict=True) if match is None]
    began = time.perf_counter()
    others = clean_tests(clean, CLEAN_SEED)
    alarms = over_all(matches, corpus, others, workers)
    spent = time.perf_counter() - began
    flagged = [(t, m, names[m.corpus_index]) for t, m in zip(others, alarms, strict=True) if m]
    apart = [true_distance(test, twin_of(name)) for test, _, name in flagged]
    false = sum(distance > TOLERANCE for distance in apart)
    print("\n| | found | of | share | 95 % bound |\n| --- | --- | --- | --- | --- |")
    print(row("planted test shapes flagged (recall)", planted - len(missed), planted, low=True))
    print(row("… with the very shape named", right, planted, low=True))
    print(row("clean test shapes flagged, each against the whole corpus", len(flagged), clean))
    print(row("… whose surface truly differs: false alarms", false, clean))
    print(
        row(
            "wrong pairs, of all clean test shapes with all corpus shapes",
            false,
            clean * len(corpus),
        )
    )
    for test in missed:
        print(f"\nMissed: {test.id} ({test.points} points)")
    for (test, match, name), distance in zip(flagged, apart, strict=True):
        print(
            f"\nFlagged: {test.id} of seed {test.seed} ({test.points} points) as {name}, gap {match.gap:.3f}; "
            f"all but 1 % of the surfaces within {distance:.3f} of the radius"
        )
    print(
        f"\nTime: {1e3 * spent / clean:.0f} ms a clean test shape, made and compared, {workers} workers"
    )


def twin_of(name: str) -> Test:
    category, index = name.split("/")
    return Test(category, int(index), MEASURED_SEED, DENSE)


def true_distance(test: Test, twin: Test) -> float:
    """Distance within which all but 1 % of two registered surfaces lie, in units of the radius."""
    rng = np.random.default_rng(0)
    mine, other = (centred(shape.surface(DENSE, rng=rng)) for shape in (test, twin))
    tree, probes = KDTree(other), subsample(mine, 2048)
    reached = []
    for _, start in PhaseMatcher(mine).poses(pattern(other), POINTS):
        pose = align(probes, tree, start, steps=30)
        there = nearest_distances(tree, pose.apply(mine))
        back = nearest_distances(KDTree(pose.apply(mine)), other)
        reached.append(max(np.quantile(far, 1.0 - BEYOND_IT) for far in (there, back)))
    return float(min(reached))


def row(name: str, found: int, of: int, *, low: bool = False) -> str:
    """A table row with the exact one-sided 95 % bound (Clopper and Pearson); 3 / n if nothing was found."""
    from scipy.stats import beta

    if low:
        bound = beta.ppf(0.05, found, of - found + 1) if found else 0.0
        return f"| {name} | {found:,} | {of:,} | {found / of:.2%} | at least {bound:.2%} |"
    bound = beta.ppf(0.95, found + 1, of - found) if found < of else 1.0
    return f"| {name} | {found:,} | {of:,} | {found / of:.2e} | at most {bound:.1e} |"


def speed(corpus: Corpus, rows: int = 100_000, tests: int = 2468) -> None:
    """Print fingerprints per second, and time (seconds of one core) and memory of the search."""
    clouds = [corpus.points(k) for k in range(0, len(corpus), max(1, len(corpus) // 200))]
    fingerprint(clouds[0])  # the first call loads modules and data
    began = time.process_time()
    for cloud in clouds:
        fingerprint(cloud)
    each = (time.process_time() - began) / len(clouds)
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(rows, SIZE)) * 0.1).astype(np.float16)
    prints = Fingerprints(values, np.full(rows, 4096, np.uint16))
    some = Queries.of([clouds[k % len(clouds)][:1024] for k in range(tests)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    nearest_candidates(prints, some)
    spent = time.process_time() - began
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    mega = (values.nbytes + prints.points.nbytes) / rows
    print("\n| cost, one process | |\n| --- | --- |")
    print(f"| fingerprints a second, shapes of 16,384 points | {1 / each:,.0f} |")
    print(f"| fingerprints of a million shapes, in memory and on disk | {mega:.0f} MB |")
    print(
        f"| search of {tests:,} test shapes in {rows:,} fingerprints | {spent:.1f} core seconds |"
    )
    print(f"| … in a million, by the same speed | {spent * 1e6 / rows:.0f} core seconds |")
    print(f"| working memory of that search, whatever the corpus | {more:.0f} MB |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=int, default=6000, help="shapes in the corpus")
    parser.add_argument("--planted", type=int, default=200)
    parser.add_argument("--clean", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--folder", type=Path, help="keeps the corpus there for another run")
    given = parser.parse_args()
    seed = CALIBRATION_SEED if given.calibrate else MEASURED_SEED
    print(
        f"{platform.processor() or platform.machine()}, {given.corpus:,} builtin shapes, seed {seed}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)) / f"corpus-{given.corpus}-{seed}"
        source = open_source("builtin", SourceRequest(shapes=given.corpus, categories=THIRTY))
        build_corpus(source, folder, seed=seed, workers=given.workers)
        corpus = open_corpus(folder)
        began = time.perf_counter()
        corpus_fingerprints(corpus, workers=given.workers)
        print(f"\nFingerprints of the corpus: {time.perf_counter() - began:.1f} s")
        if given.speed:
            with threadpool_limits(1, user_api="blas"):
                speed(corpus)
        else:
            work = calibrate if given.calibrate else measure
            work(corpus, given.planted, given.clean, given.workers)


if __name__ == "__main__":
    main()
