"""A corpus of a million clouds of 64 points: opening, listing and warm random reads, compared with a thousand.

Memory is that of a fresh process on Linux. Two numbers are given: the growth of its peak (``VmHWM`` of ``/proc``),
which includes pages of mapped files that the system may drop at any time, and the growth of its private memory
afterwards (``RssAnon``).
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from made_corpus import make_corpus
from pointdistill.data.corpus import open_corpus

FEW, POINTS, READS = 1_000, 64, 2_000

STEPS = """
import json, sys, time
import numpy as np
from pointdistill.data.corpus import open_corpus
from pointdistill.data.corpus.inspect import inspect_corpus

def mebibytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(name))

steps = {
    "opened": lambda: globals().update(corpus=open_corpus(sys.argv[1])),
    "1,000 random reads": lambda: [corpus.points(k) for k in order[:1000]],
    "`labels()`": lambda: corpus.labels(),
    "`ids()`": lambda: corpus.ids(),
    "`inspect`": lambda: inspect_corpus(sys.argv[1]),
}
order = np.random.default_rng(0).integers(int(sys.argv[2]), size=1000).tolist()
for name in sys.argv[3:]:
    peak, own, began = mebibytes("VmHWM"), mebibytes("RssAnon"), time.perf_counter()
    kept = steps[name]()
    seconds = time.perf_counter() - began
    print(json.dumps([name, seconds, mebibytes("VmHWM") - peak, mebibytes("RssAnon") - own]))
    del kept
"""


def measure_scale(*, shapes: int, rounds: int) -> None:
    """Print the time and memory that a large corpus takes, and its random reads compared with a small one's."""
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small", Path(folder) / "large"
        make_corpus(small, shapes=FEW, points=POINTS, seed=0)
        began = time.perf_counter()
        make_corpus(large, shapes=shapes, points=POINTS, seed=0)
        size = sum(file.stat().st_size for file in large.iterdir()) / 1e6
        print(
            f"\n{shapes:,} clouds of {POINTS} points, {size:.0f} MB in {len(list(large.iterdir())) - 1} shards, "
            f"written in {time.perf_counter() - began:.0f} s\n"
        )
        print("| step in a fresh process | seconds | peak, MiB more | of its own, MiB more |")
        print("| --- | --- | --- | --- |")
        one_process = ("opened", "1,000 random reads", "`labels()`", "`ids()`")
        for names in (one_process, ("`inspect`",)):
            for name, seconds, peak, own in steps(large, shapes, names):
                print(f"| {name} | {seconds:.3f} | {peak:.1f} | {own:.1f} |")
        compare_reads(small, large, rounds=rounds)


def steps(
    corpus: Path, shapes: int, names: tuple[str, ...]
) -> list[tuple[str, float, float, float]]:
    """Name, seconds, and growth of peak and private memory in MiB, of steps in one fresh process."""
    told = subprocess.run(
        [sys.executable, "-c", STEPS, str(corpus), str(shapes), *names],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [json.loads(line) for line in told.splitlines()]


def compare_reads(small: Path, large: Path, *, rounds: int) -> None:
    """Random reads of two corpora in alternating rounds, after every shape of both has been read once."""
    corpora = {path: open_corpus(path) for path in (small, large)}
    rng = np.random.default_rng(1)
    for corpus in corpora.values():
        for index in rng.permutation(len(corpus)).tolist():
            corpus.points(index)
    gc.collect()
    taken: dict[Path, list[float]] = {path: [] for path in corpora}
    for turn in range(rounds):
        for path in (small, large) if turn % 2 else (large, small):
            order = rng.integers(len(corpora[path]), size=READS).tolist()
            taken[path].append(microseconds(corpora[path].points, order))
    ratio = statistics.median(b / a for a, b in zip(taken[small], taken[large], strict=True))
    print("\n| a random read, warm | microseconds |\n| --- | --- |")
    for path in corpora:
        print(f"| of {len(corpora[path]):,} clouds | {statistics.median(taken[path]):.2f} |")
    print(f"| **ratio, median of {rounds} alternating rounds (bar 1.5x)** | **{ratio:.2f}x** |")


def microseconds(read: Callable[[int], object], order: list[int]) -> float:
    """Microseconds per read. The first tenth of the order is not timed: it warms the caches."""
    untimed = len(order) // 10
    for index in order[:untimed]:
        read(index)
    began = time.perf_counter()
    for index in order[untimed:]:
        read(index)
    return (time.perf_counter() - began) / (len(order) - untimed) * 1e6
