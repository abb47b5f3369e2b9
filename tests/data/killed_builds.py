"""Builds, and retries of their quarantine, killed with SIGKILL at random moments and begun again.

    python killed_builds.py FOLDER SEED WORKERS:KILLS...

A test runs this in a process of its own. It loads everything once and forks, so that a killed build costs what
the build itself does. What is left in FOLDER/WORKERS/corpus is a corpus whose quarantine was read again.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from odd_source import OddSource

from pointdistill.data.build import build_corpus, retry_corpus

SHAPES = 160


def source(scratch: Path) -> OddSource:
    """Slow ones keep a build busy for long enough; the last two are in quarantine until ``healed`` is there."""
    odd = {**dict.fromkeys(range(0, SHAPES, 4), "slow"), 9: "refuse"}
    return OddSource(SHAPES, {**odd, 21: "one huge array", 77: "one huge array"}, scratch)


def kill_often(folder: Path, workers: int, wanted: int, chance: random.Random) -> None:
    """Build and retry until there were ``wanted`` kills, half of them in builds and the rest in retries.

    It begins from the start again where these were over too soon.
    """
    corpus, made, killed = folder / "corpus", source(folder), 0

    def build(workers: int) -> None:
        build_corpus(made, corpus, points=64, workers=workers)

    def retry(workers: int) -> None:
        retry_corpus([made], corpus, workers=workers)

    while True:
        folder.mkdir(parents=True)
        for work, most in ((build, wanted // 2), (retry, wanted)):
            while killed < most and is_killed(work, workers, corpus, chance):
                killed += 1
            # On without workers, whose start takes longer than all the rest.
            assert not is_killed(work, 0, corpus, None)
            (folder / "healed").touch()
        if killed == wanted:
            return
        shutil.rmtree(folder)


def is_killed(
    work: Callable[[int], None], workers: int, corpus: Path, chance: random.Random | None
) -> bool:
    """Do ``work`` in a process that is killed a random while after it got on; False if it was done before.

    None as ``chance`` lets it finish. This process itself builds nothing: what it forks must start afresh.
    """
    before = marks(corpus)
    child = os.fork()
    if child == 0:
        try:
            work(workers)
            os._exit(0)
        finally:
            os._exit(1)
    killing = 0.0
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status in (0, signal.SIGKILL), "a build failed"
            return status != 0
        if chance is not None and not killing and marks(corpus) != before:
            killing = time.monotonic() + 0.12 * chance.random() ** 2
        if killing and time.monotonic() >= killing:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def marks(corpus: Path) -> set[str]:
    """What is marked as finished."""
    marked = re.compile(r"(piece|shard|corpus).*\.json")
    return {name for _, _, names in os.walk(corpus) for name in names if marked.fullmatch(name)}


if __name__ == "__main__":
    chance = random.Random(int(sys.argv[2]))
    for word in sys.argv[3:]:
        workers, kills = map(int, word.split(":"))
        kill_often(Path(sys.argv[1], str(workers)), workers, kills, chance)
