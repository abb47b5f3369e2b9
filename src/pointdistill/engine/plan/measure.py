"""A few real steps of a run in a separate process: seconds a step, and peak memory.

The process (``trial``) trains with the program's own loop, in a temporary folder, and stops before anything is
saved. It is separate so that its peak memory is that of these steps alone, and because it may run out of memory.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from pointdistill.engine.config import PretrainConfig, to_plain
from pointdistill.errors import PointDistillError


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
    """Once a few steps are timed, no more are after this many seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """What a trial measured."""

    batch_size: int
    seconds: float
    """Median wall time of a step, with reading and views."""

    gib: float | None
    """Peak memory: on a GPU what torch reserved there, else what the process held; None if not known."""

    idle_gib: float
    """The part of ``gib`` that Python and its packages held before the run; 0 on a GPU."""

    steps: int
    """Steps that were timed."""


class DoesNotFitError(PointDistillError):
    """A trial ran out of memory."""


def measure_steps(trial: Trial) -> Measurement:
    """Train for a few steps in a new process.

    Raises:
        DoesNotFitError: if there was not enough memory.
        PointDistillError: with the process's own message, if it could not train.
    """
    settings = asdict(trial) | {
        "config": to_plain(trial.config),
        "corpus": None if trial.corpus is None else str(trial.corpus),
    }
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # made here, since this process outlives the other
        done = subprocess.run(
            # Without -P a random.py in the folder would be loaded instead of Python's.
            [sys.executable, "-P", "-m", "pointdistill.engine.plan.trial"],
            input=json.dumps(settings | {"run": str(Path(folder, "run"))}),
            capture_output=True,
            text=True,
            check=False,
        )
    return read_answer(done, trial)


def read_answer(done: subprocess.CompletedProcess[str], trial: Trial) -> Measurement:
    """The measurement on the last line that the process printed.

    Raises:
        DoesNotFitError: if it ran out of memory, or the system killed it, which leaves no message.
        PointDistillError: if it could not train.
    """
    lines = done.stdout.splitlines()
    answer = json.loads(lines[-1]) if lines and done.returncode == 0 else {}
    if "measured" in answer:
        return Measurement(**answer["measured"])
    if "out_of_memory" in answer or done.returncode == -signal.SIGKILL:
        msg = (
            f"a step of {trial.config.batch_size} shapes does not fit into memory; choose a smaller batch "
            "or a smaller model"
        )
        raise DoesNotFitError(msg, settings=("batch_size", "size"))
    reason = answer.get("refused") or (done.stderr.strip().splitlines() or ["no message"])[-1]
    msg = f"no steps could be measured ({reason}); the plan can also be estimated without measuring"
    raise PointDistillError(msg, settings=("no_measure",))
