"""The leak check: recall on planted test shapes, false alarms on clean ones, and what it costs.

A corpus of builtin shapes of 30 categories is built; 200 of its shapes are sampled anew, scaled, moved and turned
about z (planted), and as many other shapes of the same categories as asked for are made (clean). The threshold
stands in the code: it was set on the gaps of ``--calibrate``, which uses another seed. Prints Markdown.

Run: ``python benchmarks/leaks.py [--corpus 6000] [--clean 1000] [--workers 2] [--calibrate] [--speed]``
"""

from __future__ import annotations

import argparse
import platform
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.build import build_corpus
from pointdistill.data.builtin import CATEGORIES, make_shape, sample_shape
from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.leaks.candidates import Wanted, nearest_prints
from pointdistill.data.leaks.check import match_clouds
from pointdistill.data.leaks.fingerprint import SIZE, fingerprint
from pointdistill.data.leaks.store import Prints, corpus_prints
from pointdistill.data.leaks.surface import SAME_SURFACE, Survey, surface_gap
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.data.sources.base import shape_rng
from pointdistill.data.workers import ordered_map

MEASURED_SEED, CALIBRATION_SEED = 2, 1
TEST_POINTS = (1024, 2048)
THIRTY = CATEGORIES[::2] + CATEGORIES[1:6:2]


@dataclass(frozen=True)
class Test:
    """One test shape: number ``index`` of a category in the corpus of ``corpus_seed``, or none of any corpus."""

    category: str
    index: int
    corpus_seed: int | None
    points: int

    @property
    def id(self) -> str:
        return f"{self.category}/{self.index:06d}"

    def cloud(self) -> NDArray[np.float32]:
        """Another sample of the shape's surface, scaled, moved, and turned about z."""
        where = "clean" if self.corpus_seed is None else "builtin"
        rng = shape_rng(seed=self.corpus_seed or 0, source=where, shape_id=self.id)
        shape = make_shape(self.category, rng=rng)
        rng = shape_rng(seed=7, source=f"test of {where} {self.corpus_seed}", shape_id=self.id)
        points, _ = sample_shape(shape, self.points, rng=rng)
        angle = rng.uniform(0.0, 2.0 * np.pi)
        cosine, sine = np.cos(angle), np.sin(angle)
        turn = np.array(((cosine, -sine, 0.0), (sine, cosine, 0.0), (0.0, 0.0, 1.0)))
        scale = 10.0 ** rng.uniform(-2.0, 2.0)
        return ((points @ turn.T) * scale + rng.normal(size=3) * scale).astype(np.float32)


def planted_tests(count: int, seed: int, of_each: int) -> list[Test]:
    """Spread over the categories, and over the corpus's shapes of each; counts of points take turns."""
    return [
        Test(THIRTY[k % 30], (k // 30) * 7 % of_each, seed, TEST_POINTS[(k // 30) % 2])
        for k in range(count)
    ]


def clean_tests(count: int, first: int) -> list[Test]:
    return [
        Test(THIRTY[k % 30], first + k // 30, None, TEST_POINTS[(k // 30) % 2])
        for k in range(count)
    ]


def make_clouds(tests: list[Test], workers: int) -> list[NDArray[np.float32]]:
    return list(ordered_map(Test.cloud, tests, workers=workers))


def lowest_gap(task: tuple[Corpus, NDArray[np.float32], NDArray[np.int64]]) -> float:
    """Of a cloud to all its candidates; infinite without any."""
    corpus, cloud, candidates = task
    test = Survey(cloud)
    gaps = [surface_gap(test, Survey(corpus.points(int(index)))) for index in candidates]
    return min(gaps, default=np.inf)


def calibrate(corpus: Corpus, planted: int, clean: int, workers: int) -> None:
    """The gaps from which the threshold was set; smaller ones of clean shapes are the near-duplicates."""
    prints = corpus_prints(corpus, workers=workers)
    of_each = len(corpus) // 30
    rows = []
    for name, tests in (
        ("planted", planted_tests(planted, CALIBRATION_SEED, of_each)),
        ("clean", clean_tests(clean, 1_000_000)),
    ):
        clouds = make_clouds(tests, workers)
        found = nearest_prints(prints, Wanted.of(clouds))
        numbers = {name: number for number, name in enumerate(corpus.ids())}
        if name == "planted":
            missed = sum(numbers[t.id] not in f.tolist() for t, f in zip(tests, found, strict=True))
            print(f"\nPlanted shapes that are not among their own candidates: {missed}")
            found = [np.array([numbers[test.id]]) for test in tests]
        tasks = [(corpus, *pair) for pair in zip(clouds, found, strict=True)]
        gaps = np.array(list(ordered_map(lowest_gap, tasks, workers=workers)))
        for points in TEST_POINTS:
            some = np.sort(gaps[[test.points == points for test in tests]])
            places = (0, 1, 2, len(some) // 2, -3, -2, -1)
            rows.append((name, points, len(some), *(f"{some[p]:.3f}" for p in places)))
        order = np.argsort(gaps)
        extreme = order[-6:] if name == "planted" else order[:6]
        print(
            name,
            "nearest the threshold:",
            [(tests[k].id, tests[k].points, round(float(gaps[k]), 3)) for k in extreme],
        )
    print(
        "\n| tests | points | count | lowest | 2nd | 3rd | median | 3rd highest | 2nd | highest |"
    )
    print("| --- |" + " --- |" * 9)
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print(f"\nThreshold in the code: {SAME_SURFACE}")


def measure(corpus: Corpus, planted: int, clean: int, workers: int) -> None:
    """Recall and false alarms of the check itself."""
    of_each = len(corpus) // 30
    numbers = {name: number for number, name in enumerate(corpus.ids())}
    tests = planted_tests(planted, MEASURED_SEED, of_each)
    began = time.perf_counter()
    found = match_clouds(make_clouds(tests, workers), corpus, workers=workers)
    right = [
        m is not None and m.corpus_index == numbers[t.id] for t, m in zip(tests, found, strict=True)
    ]
    flagged = [m is not None for m in found]
    spent = time.perf_counter() - began
    began = time.perf_counter()
    other = clean_tests(clean, 0)
    alarms = match_clouds(make_clouds(other, workers), corpus, workers=workers)
    wrong = [(t, m) for t, m in zip(other, alarms, strict=True) if m is not None]
    spent_clean = time.perf_counter() - began
    pairs = clean * len(corpus)
    print("\n| | found | of | share | 95 % bound |\n| --- | --- | --- | --- | --- |")
    print(row("planted test shapes flagged (recall)", sum(flagged), planted, low=True))
    print(row("… with the very shape named", sum(right), planted, low=True))
    print(
        row("clean test shapes wrongly flagged, each against the whole corpus", len(wrong), clean)
    )
    print(
        row(
            "wrong pairs, of clean test shapes with corpus shapes of their category",
            len(wrong),
            clean * of_each,
        )
    )
    print(row("wrong pairs, of all clean test shapes with all corpus shapes", len(wrong), pairs))
    for test, match in wrong:
        print(
            f"\nWrongly flagged: {test.id} ({test.points} points), gap {match.gap:.3f} "
            f"to {corpus[match.corpus_index].id}"
        )
    print(f"\nTime: planted {spent:.0f} s, clean {spent_clean:.0f} s, with {workers} workers")


def row(name: str, found: int, of: int, *, low: bool = False) -> str:
    """A line with the exact one-sided 95 % bound (Clopper and Pearson); 3 / n where nothing was found."""
    from scipy.stats import beta

    if low:
        bound = beta.ppf(0.05, found, of - found + 1) if found else 0.0
        return f"| {name} | {found:,} | {of:,} | {found / of:.2%} | at least {bound:.2%} |"
    bound = beta.ppf(0.95, found + 1, of - found) if found < of else 1.0
    return f"| {name} | {found:,} | {of:,} | {found / of:.2e} | at most {bound:.1e} |"


def speed(corpus: Corpus, rows: int = 100_000, tests: int = 2468) -> None:
    """Fingerprints a second, and time and memory of the search, in seconds of one core."""
    clouds = [corpus.points(k) for k in range(0, len(corpus), max(1, len(corpus) // 200))]
    fingerprint(clouds[0])  # the first call loads what the others find in place
    began = time.process_time()
    for cloud in clouds:
        fingerprint(cloud)
    each = (time.process_time() - began) / len(clouds)
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(rows, SIZE)) * 0.1).astype(np.float16)
    prints = Prints(values, np.full(rows, 4096, np.uint16))
    some = Wanted.of([clouds[k % len(clouds)][:1024] for k in range(tests)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    nearest_prints(prints, some)
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
        corpus_prints(corpus, workers=given.workers)
        print(f"\nFingerprints of the corpus: {time.perf_counter() - began:.1f} s")
        if given.speed:
            speed(corpus)
        else:
            work = calibrate if given.calibrate else measure
            work(corpus, given.planted, given.clean, given.workers)


if __name__ == "__main__":
    main()
