"""What ``quickstart`` costs, part by part, and what it gains from a second core.

The first run takes its parts one after another, and the processor time of each part is noted. The second one does
what does not depend on the pretraining in a process of its own. The script checks that both give the same numbers,
and computes from the first run how long the second takes at least: its two chains of parts run beside each other,
and two cores cannot give more than two seconds of processor time in a second. On a machine that does other work
these figures are the result; on a quiet one the wall times are.

Run: ``python benchmarks/quickstart.py``, which takes ten minutes, or with ``--share 0.1`` at a tenth of the size.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from pointdistill.data.benchmark_standins import ScanSizes
from pointdistill.engine.config.recipes import recipe
from pointdistill.engine.quickstart import QuickstartConfig, QuickstartResult, quickstart
from pointdistill.reporter import Reporter

MAIN_CHAIN = ("making", "pretraining", "measuring: pretrained", "writing")
"""Beginnings of the titles of parts that this process keeps; all others go to the second one."""


@dataclass
class Parts(Reporter):
    """Notes the processor time at which each part begins."""

    begun: list[tuple[str, float, float]] = field(default_factory=list)

    def progress(
        self, task: str, done: float, total: float | None = None, *, note: str = "", unit: str = ""
    ) -> None:
        """Note the part if it is a new one."""
        del done, total, note, unit
        if not self.begun or self.begun[-1][0] != task:
            self.begun.append((task, processor_seconds(), time.perf_counter()))

    def parts(self) -> list[tuple[str, float, float]]:
        """Title, processor seconds and wall seconds of each part."""
        ends = [*self.begun[1:], ("", processor_seconds(), time.perf_counter())]
        return [
            (title, busy - before, now - begun)
            for (title, before, begun), (_, busy, now) in zip(self.begun, ends, strict=True)
        ]


def processor_seconds() -> float:
    """Of this process, its threads, and the child processes that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def chain(title: str) -> bool:
    """Whether a part stays in this process."""
    return title.startswith(MAIN_CHAIN) and "stand-in" not in title


def run(config: QuickstartConfig, processes: int) -> tuple[QuickstartResult, Parts, float]:
    """The result, the parts, and the processor seconds of a run in a fresh folder."""
    reporter, before = Parts(), processor_seconds()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        result = quickstart(
            Path(folder, "quickstart"), config, processes=processes, reporter=reporter
        )
        os.chdir("/")
    return result, reporter, processor_seconds() - before


def main(share: float) -> None:
    """Run it both ways and print the parts."""
    full = QuickstartConfig()
    config = QuickstartConfig(
        shapes=max(64, round(share * full.shapes)),
        steps=max(4, round(share * recipe("tiny").steps)),
        sizes=ScanSizes(
            train=max(4, round(share * full.sizes.train)),
            test=max(2, round(share * full.sizes.test)),
        ),
        supervised_epochs=full.supervised_epochs,
    )
    alone, reporter, busy = run(config, 1)
    chains = {True: 0.0, False: 0.0}
    print("| part | processor, s | wall, s | in the second process |")
    print("| --- | --- | --- | --- |")
    for title, processor, wall in reporter.parts():
        chains[chain(title)] += processor
        print(f"| {title} | {processor:.1f} | {wall:.1f} | {'' if chain(title) else 'yes'} |")
    print(
        f"\none after another: {busy:.0f} s of processor time, {alone.total_seconds:.0f} s",
        flush=True,
    )
    least = max(*chains.values(), sum(chains.values()) / 2)
    print(f"chains: {chains[True]:.0f} and {chains[False]:.0f} s of processor time")
    print(f"on two cores at least {least:.0f} s, {least / sum(chains.values()):.2f} of their sum")
    beside, _, busy = run(config, 2)
    print(f"beside each other: {busy:.0f} s of processor time, {beside.total_seconds:.0f} s")
    print(f"same numbers: {beside.results == alone.results}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--share", type=float, default=1.0, help="share of the default sizes and steps"
    )
    main(parser.parse_args().share)
