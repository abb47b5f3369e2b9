"""Builds, and retries of their retryable shapes, killed with SIGKILL at random moments and begun again.

    python killed_builds.py FOLDER SEED WORKERS:BUILDS:RETRIES...

A test runs this in a process of its own. It loads everything once and forks, so that a killed build costs what
the build itself does. It prints when, in parts of the whole, and how many corpora came of it.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from odd_source import OddSource

from pointdistill.data.corpus_building import build_corpus, retry_corpus
from pointdistill.data.corpus_building import division as plan

SHAPES = 150
plan.SHARD_SHAPES = 40  # four shards

Work = Callable[[Path, int], object]
"""Makes a corpus, or goes on with it, with so many workers."""


class Killing:
    """One kind of work, killed at moments that are spread over the whole time that it takes."""

    def __init__(self, work: Work, begin: Callable[[], Path], end: dict[str, bytes]) -> None:
        """``begin`` makes ready for the work from its start on; ``end`` is what must come of it."""
        self._work, self._begin, self._end = work, begin, end
        self.killed: list[float] = []
        """How far into the work each kill was, of the seconds that it takes without."""

        self.ended = 0

    def kill(self, times: int, workers: int, chance: random.Random) -> None:
        """Kill it so many times; what comes of it in the end is what comes of it undisturbed."""
        corpus, whole = self._begin(), time.monotonic()
        self._finish(corpus, workers)
        whole = time.monotonic() - whole
        moments = [(k + chance.random()) / times for k in range(times)]
        corpus = self._begin()
        for part in chance.sample(moments, times):
            while not self._is_killed(corpus, workers, part * whole):
                self._see(corpus)
                corpus = self._begin()
                whole *= 0.9  # it took longer when it was measured
            self.killed.append(part)
        self._finish(corpus, 0)

    def _finish(self, corpus: Path, workers: int) -> None:
        assert not self._is_killed(corpus, workers, None)
        self._see(corpus)

    def _see(self, corpus: Path) -> None:
        assert files_of(corpus) == self._end, "other bytes"
        assert not (corpus / ".building").exists()
        self.ended += 1

    def _is_killed(self, corpus: Path, workers: int, moment: float | None) -> bool:
        """Do the work in a process that is killed after so many seconds; False if it was done before.

        This process itself builds nothing: what it forks must start afresh.
        """
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            try:
                self._work(corpus, workers)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        ended = 0
        while not ended:
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended and moment is not None and time.monotonic() - began >= moment:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.001)
        assert status in (0, signal.SIGKILL), "it failed"
        return status != 0


def files_of(corpus: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in corpus.iterdir() if path.is_file()}


def main(
    folder: Path, seed: int, kills: list[tuple[int, int, int]]
) -> dict[str, tuple[list[float], int]]:
    """Kill builds and retries; of each, the moments of the kills, and how many runs came to their end.

    ``kills``: number of workers, and how many builds and how many retries to kill with so many.
    """
    odd = dict.fromkeys(range(0, SHAPES, 15), "slow") | {9: "refuse"}
    odd |= {21: "one huge array", 93: "one huge array"}
    (folder / "well").mkdir()
    (folder / "well" / "healed").touch()
    sick, well = (OddSource(SHAPES, odd, folder / name) for name in ("sick", "well"))
    numbers = itertools.count()

    def new() -> Path:
        return folder / f"corpus {next(numbers)}"

    def copy_of_retryable() -> Path:
        return Path(shutil.copytree(retryable, new()))

    def build(corpus: Path, workers: int) -> object:
        return build_corpus(well, corpus, points=64, workers=workers)

    def retry(corpus: Path, workers: int) -> object:
        return retry_corpus([well], corpus, workers=workers)

    retryable, whole = folder / "retryable", folder / "whole"
    for source, corpus in ((sick, retryable), (well, whole)):
        build_corpus(source, corpus, points=64, workers=0)
    builds = Killing(build, new, files_of(whole))
    retries = Killing(retry, copy_of_retryable, files_of(whole))
    chance = random.Random(seed)
    for workers, build_kills, retry_kills in kills:
        for work, times in ((builds, build_kills), (retries, retry_kills)):
            if times:
                work.kill(times, workers, chance)
    return {"builds": (builds.killed, builds.ended), "retries": (retries.killed, retries.ended)}


if __name__ == "__main__":
    kills = [
        (int(workers), int(build_kills), int(retry_kills))
        for workers, build_kills, retry_kills in (word.split(":") for word in sys.argv[3:])
    ]
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), kills)))
