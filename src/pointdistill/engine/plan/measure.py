"""A few real steps of a run in a process of its own: seconds a step, and the most memory that it held.

The process (``trial``) trains with the program's own loop, in a folder that is thrown away, and stops before
anything is saved. It is one of its own because its peak is then that of these steps alone, and because it may run
out of memory.
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
    """After which no more steps are timed, once there are a few."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """What a trial came to."""

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
        PointDistillError: with what the process had to say, if it could not train.
    """
    given = asdict(trial) | {
        "config": to_plain(trial.config),
        "corpus": None if trial.corpus is None else str(trial.corpus),
    }
    with tempfile.TemporaryDirectory() as folder:  # of this process, which outlives the other
        done = subprocess.run(
            # Without -P a random.py in the folder would be loaded instead of Python's.
            [sys.executable, "-P", "-m", "pointdistill.engine.plan.trial"],
            input=json.dumps(given | {"run": str(Path(folder, "run"))}),
            capture_output=True,
            text=True,
            check=False,
        )
    return read_answer(done, trial)


def read_answer(done: subprocess.CompletedProcess[str], trial: Trial) -> Measurement:
    """What the process said, on its last line.

    Raises:
        DoesNotFitError: if it ran out of memory, or was ended by the system, which does that without a word.
        PointDistillError: if it could not train.
    """
    lines = done.stdout.splitlines()
    answer = json.loads(lines[-1]) if lines and done.returncode == 0 else {}
    if "measured" in answer:
        return Measurement(**answer["measured"])
    if "out_of_memory" in answer or done.returncode == -signal.SIGKILL:
        msg = (
            f"a step of {trial.config.batch_size} shapes does not fit into memory; give a smaller --batch-size, "
            "or a smaller size of model"
        )
        raise DoesNotFitError(msg)
    said = answer.get("refused") or (done.stderr.strip().splitlines() or ["no word"])[-1]
    msg = f"no steps could be measured ({said}); --no-measure estimates without any"
    raise PointDistillError(msg)
