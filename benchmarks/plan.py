"""Predictions of ``plan`` compared with runs of ``pretrain``: seconds per step, and peak memory.

Each run is first planned from synthetic shapes. It then runs completely, in a separate process, on a corpus of
builtin shapes of the same size, with one checkpoint on the way and one at the end. Peak memory is the process's
resident memory on a CPU, and the memory that torch allocated on a GPU. A ratio of 1 is an exact prediction.

Run: ``python benchmarks/plan.py``, or with cases such as ``tiny-dual-32 small-mpm-8``
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.engine.config.settings import RunOverrides
from pointdistill.engine.planning import Plan, make_plan
from pointdistill.engine.pretraining.cost import STORED_POINTS
from pointdistill.engine.pretraining.launch import prepare_run
from pointdistill.engine.pretraining.pretrain import pretrain
from pointdistill.engine.pretraining.trainer import RunOptions
from pointdistill.engine.runtime.devices import GIB, peak_resident_gib
from pointdistill.reporter import StepRecord, TrainingReporter

CASES = [f"tiny-{mode}-32" for mode in ("dual", "cls", "mpm")]
CASES += [f"small-{mode}-{batch}" for mode in ("dual", "cls", "mpm") for batch in (4, 8)]
SHAPES = 128
STEPS = {"tiny": 40, "small": 10}
WARM = 3


@dataclass(frozen=True, slots=True)
class Taken:
    """Time and memory of a real run."""

    seconds: float
    gib: float


def real_run(size: str, mode: str, batch: int, corpus: Path, run: Path) -> Taken:
    """A complete run in this process, measured."""
    steps = STEPS[size]
    asked = RunOverrides(size=size, mode=mode, batch_size=batch, steps=steps)
    with prepare_run(asked, data=corpus, run=run) as prepared:
        pass
    times: list[float] = []

    class Times(TrainingReporter):
        def step(self, record: StepRecord) -> None:  # noqa: ARG002
            times.append(time.perf_counter())

    pretrain(
        prepared.config,
        corpus=prepared.corpus,
        run=run,
        options=RunOptions(save_every=steps // 2),
        reporter=Times(),
    )
    pace = statistics.median(late - early for early, late in itertools.pairwise(times[WARM:]))
    gib = (
        torch.cuda.max_memory_allocated() / GIB
        if torch.cuda.is_available()
        else peak_resident_gib()
    )
    assert gib is not None, "this system does not say what a process held"
    return Taken(pace, gib)


def taken(case: str, corpus: Path, run: Path) -> Taken:
    """``real_run`` in a separate process."""
    words = [sys.executable, __file__, case, "--corpus", str(corpus), "--run", str(run)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return Taken(**json.loads(done.stdout.splitlines()[-1]))


def planned(size: str, mode: str, batch: int) -> Plan:
    """The plan of a run, without its corpus."""
    asked = RunOverrides(size=size, mode=mode, batch_size=batch, steps=STEPS[size])
    return make_plan(asked, data=None, shapes=SHAPES, options=RunOptions())


def compare(cases: list[str]) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| run | GiB planned | GiB taken | ratio | s a step planned | taken | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        source = open_source("builtin", SourceRequest(shapes=SHAPES))
        build_corpus(source, corpus, points=STORED_POINTS, seed=0, workers=None)
        for case in cases:
            size, mode, batch = case.split("-")
            step = planned(size, mode, int(batch)).step
            real = taken(case, corpus, Path(folder) / case)
            assert step.seconds is not None
            assert step.gib is not None
            print(
                f"| {case} | {step.gib:.2f} | {real.gib:.2f} | {step.gib / real.gib:.2f} "
                f"| {step.seconds:.3f} | {real.seconds:.3f} | {step.seconds / real.seconds:.2f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="plan against pretrain")
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}", default=CASES)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run is None:
        compare(given.cases)
        return
    size, mode, batch = given.cases[0].split("-")
    print(json.dumps(asdict(real_run(size, mode, int(batch), given.corpus, given.run))))


if __name__ == "__main__":
    main()
