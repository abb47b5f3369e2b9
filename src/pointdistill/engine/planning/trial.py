"""Measures a few real steps of a run in a separate process: seconds per step, and peak memory.

The process runs this module. It reads a trial as JSON on stdin, trains with the program's own loop in a temporary
folder, stops before anything is saved, and writes the measurement as JSON on stdout. It is separate so that its
peak memory is that of these steps alone, and because it may run out of memory.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pointdistill.data.corpus import open_corpus
from pointdistill.data.files.packed_tars import temporary_folder
from pointdistill.data.files.schema import from_plain, to_plain
from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.pretraining.pretrain import pretrain
from pointdistill.engine.pretraining.run_folder import TrainingCorpus
from pointdistill.engine.pretraining.trainer import RunOptions
from pointdistill.engine.runtime.devices import (
    GIB,
    out_of_memory,
    peak_resident_gib,
    pick_device,
    resident_gib,
)
from pointdistill.errors import PointDistillError
from pointdistill.reporter import StepRecord, TrainingReporter

WARM_STEPS = 2
"""Steps that are not timed: the optimiser allocates its moments, libraries choose their kernels."""

TIMED_STEPS = 30
LEAST_STEPS = 3
"""Fewest steps to time, however slow they are."""

ENDLESS = 10**6
"""Steps of the run: so many that it never reaches its end, where it would save."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What to measure."""

    config: PretrainConfig
    corpus: Path | None
    """None measures on synthetic shapes."""

    points: int
    """Points of a synthetic shape."""

    device: str
    precision: str
    seconds: float
    """After this many seconds no more steps are timed, once there are a few."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """What a trial measured."""

    batch_size: int
    seconds: float
    """Median wall time of a step, including reading and views."""

    gib: float | None
    """Peak memory: what torch reserved on a GPU, else what the process used; None if not known."""

    idle_gib: float
    """The part of ``gib`` that Python and its packages used before the run; 0 on a GPU."""

    steps: int
    """Steps that were timed."""


class DoesNotFitError(PointDistillError):
    """A trial ran out of memory."""


def measure_steps(trial: Trial) -> Measurement:
    """Train for a few steps in a new process.

    Raises:
        DoesNotFitError: if there was not enough memory.
        PointDistillError: if it could not train, with the process's own message.
    """
    settings = asdict(trial) | {
        "config": to_plain(trial.config),
        "corpus": None if trial.corpus is None else str(trial.corpus),
    }
    # The folder is made here and not by the trial, which may be killed before it could remove it.
    with temporary_folder() as folder:
        done = subprocess.run(
            # Without -P a random.py in the folder would be loaded instead of Python's.
            [sys.executable, "-P", "-m", "pointdistill.engine.planning.trial"],
            input=json.dumps(settings | {"run": str(folder / "run")}),
            capture_output=True,
            text=True,
            check=False,
        )
    return read_answer(done, trial)


def read_answer(done: subprocess.CompletedProcess[str], trial: Trial) -> Measurement:
    """The measurement in the last line of the process's output.

    Raises:
        DoesNotFitError: if it ran out of memory.
        PointDistillError: if it could not train.
    """
    lines = done.stdout.splitlines()
    answer = json.loads(lines[-1]) if lines and done.returncode == 0 else {}
    if "measured" in answer:
        return Measurement(**answer["measured"])
    # Linux kills a process that uses up the memory, which leaves no message.
    if "out_of_memory" in answer or done.returncode == -signal.SIGKILL:
        msg = (
            f"a step of {trial.config.batch_size} shapes does not fit into memory; choose a smaller batch "
            "or a smaller model"
        )
        raise DoesNotFitError(msg, settings=("batch_size", "size"))
    reason = answer.get("refused") or (done.stderr.strip().splitlines() or ["no message"])[-1]
    msg = f"no steps could be measured ({reason}); the plan can also be estimated without measuring"
    raise PointDistillError(msg, settings=("no_measure",))


class SyntheticCorpus:
    """Any number of shapes of random points; only a few are made, and repeated."""

    path = Path("synthetic")
    sources: tuple[Any, ...] = ()

    def __init__(self, shapes: int, points: int) -> None:
        rng = np.random.default_rng(0)
        self.shapes = shapes
        self.clouds = rng.standard_normal((8, points, 3), np.float32)

    def __len__(self) -> int:
        return self.shapes

    def points(self, index: int) -> NDArray[np.float32]:
        """(n, 3) float32."""
        return self.clouds[index % len(self.clouds)]


class _EnoughError(Exception):
    """Leaves the loop between two steps, without a checkpoint."""


class Watch(TrainingReporter):
    """Records when each step ended, and ends the run after enough of them."""

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.marks: list[tuple[int, float]] = []

    def step(self, record: StepRecord) -> None:
        """Record the time of a step; leaves the loop after the last one needed."""
        self.marks.append((record.step, time.perf_counter()))
        timed = record.step - WARM_STEPS
        spent = self.marks[-1][1] - self.marks[0][1]
        if timed >= TIMED_STEPS or (timed >= LEAST_STEPS and spent > self.budget):
            raise _EnoughError

    def seconds(self) -> list[float]:
        """Seconds per step between each two consecutive reports."""
        warm = [mark for mark in self.marks if mark[0] >= WARM_STEPS]
        pairs = itertools.pairwise(warm)
        return [(late - early) / (last - first) for (first, early), (last, late) in pairs]


def run_trial(trial: dict[str, Any]) -> dict[str, Any]:
    """Take the steps of a trial, and return the fields of its ``Measurement``.

    Args:
        trial: the fields of a ``Trial`` as plain values, and the folder of the ``run``.
    """
    config = from_plain(PretrainConfig, trial["config"])
    corpus: TrainingCorpus = (
        SyntheticCorpus(4 * config.batch_size, trial["points"])
        if trial["corpus"] is None
        else open_corpus(Path(trial["corpus"]))
    )
    on_gpu = pick_device(trial["device"]).type == "cuda"
    idle = 0.0 if on_gpu else (resident_gib() or 0.0)
    watch = Watch(trial["seconds"])
    options = RunOptions(
        device=trial["device"],
        precision=trial["precision"],
        save_every=ENDLESS,
        save_minutes=ENDLESS,
    )
    with contextlib.suppress(_EnoughError):
        pretrain(
            replace(config, steps=ENDLESS),
            corpus=corpus,
            run=Path(trial["run"]),
            options=options,
            reporter=watch,
        )
    return {
        "batch_size": config.batch_size,
        "seconds": statistics.median(watch.seconds()),
        "gib": peak_gib(on_gpu=on_gpu),
        "idle_gib": idle,
        "steps": watch.marks[-1][0] - WARM_STEPS,
    }


def peak_gib(*, on_gpu: bool) -> float | None:
    """Peak memory of this process; on a GPU all that torch reserved, including what it keeps for reuse."""
    return torch.cuda.max_memory_reserved() / GIB if on_gpu else peak_resident_gib()


def main() -> None:
    """Run the trial on stdin, and print one line of JSON."""
    answer: dict[str, Any]
    try:
        answer = {"measured": run_trial(json.load(sys.stdin))}
    except PointDistillError as error:
        answer = {"refused": str(error)}
    except Exception as error:
        if not out_of_memory(error):
            raise
        answer = {"out_of_memory": True}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
