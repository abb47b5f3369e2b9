"""Monitoring of a run: metrics on their way from the device, the rows that are logged, and collapse warnings.

The host queues a GPU's next step before it reads the numbers of the last one, so that the GPU never runs out of
work; on a CPU there is nothing to overlap, and numbers are read at once. The numbers are the same either way.
Sizes: Q prototypes.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torch import Tensor

from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.runtime.schedules import Rates
from pointdistill.errors import ConfigError, DataError

log = logging.getLogger("pointdistill")

COLLAPSED_BELOW = 0.1
"""Share of the largest entropy that a step can reach, below which the marginal counts as collapsed."""

UNIFORM_ABOVE = 0.99
"""Share of log Q above which posteriors count as uniform."""

IN_A_ROW = 3
"""Consecutive observations needed for a warning, since one odd batch is no collapse."""

UNIFORM_AT_FIRST = 0.3
"""Share of a run during which a uniform teacher causes no warning: untrained, it cannot tell shapes apart."""


@dataclass(slots=True)
class CollapseWatch:
    """Warns of each kind of collapse once, from the entropies of the teacher's posteriors in logged steps.

    Args:
        total: steps of the run.
        prototypes: Q.
        views: global views in a step, over all processes.
    """

    total: int
    prototypes: int
    views: int
    _consecutive: dict[str, int] = field(default_factory=dict)

    def warnings_after(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Warnings after step ``step``, from its logged ``values``; usually none."""
        warnings = []
        for kind in ("cls", "patch"):
            if f"{kind}_marginal_entropy" not in values:
                continue
            marginal = values[f"{kind}_marginal_entropy"]
            share = values[f"{kind}_posterior_share"]
            # A step has one CLS posterior per global view. A few of them cannot spread over many prototypes, so
            # their marginal is compared with the log of their number where that is below log Q. Patches are many.
            rows = self.views if kind == "cls" else self.prototypes
            reachable = math.log(min(self.prototypes, max(2, rows)))
            if self._is_first_alarm(f"{kind} marginal", marginal < COLLAPSED_BELOW * reachable):
                warnings.append(_collapsed(kind, step, marginal, marginal / reachable))
            old_enough = step > UNIFORM_AT_FIRST * self.total
            if self._is_first_alarm(f"{kind} posteriors", share > UNIFORM_ABOVE and old_enough):
                warnings.append(_uniform(kind, step, share))
        return warnings

    def _is_first_alarm(self, what: str, wrong: bool) -> bool:
        """True only once: the first time that ``wrong`` was true ``IN_A_ROW`` times in a row."""
        count = self._consecutive.get(what, 0)
        # A count that reached the limit stays there, which silences the alarm for the rest of the run.
        if count < IN_A_ROW:
            self._consecutive[what] = count + 1 if wrong else 0
            return self._consecutive[what] == IN_A_ROW
        return False


def _collapsed(kind: str, step: int, entropy: float, share: float) -> str:
    return (
        f"step {step}: collapse: the teacher puts nearly every {_CLASSIFIED[kind]} on the same prototypes "
        f"(marginal entropy {entropy:.2f} nats, {share:.0%} of the largest possible); start a new run with a "
        f"larger batch_size or a higher schedule.first_{kind}_temperature"
    )


def _uniform(kind: str, step: int, share: float) -> str:
    return (
        f"step {step}: the teacher's {kind} posteriors are uniform (entropy {share:.1%} of the largest possible), "
        f"so there is nothing to learn from them; start a new run with a lower schedule.first_{kind}_temperature, "
        "or with centers_from_first_batch"
    )


def change_after(warning: str, config: PretrainConfig) -> tuple[str, float] | None:
    """The setting that a warning of a collapse or of uniform posteriors advises to change, and a value to try."""
    named = re.search(r"schedule\.(first_(?:cls|patch)_temperature)", warning)
    if named is None:
        return None
    factor = 1.5 if f"higher {named[0]}" in warning else 0.7
    return named[0], float(f"{getattr(config.schedule, named[1]) * factor:.2g}")


_CLASSIFIED = {"cls": "shape", "patch": "patch"}
"""What the teacher assigns to prototypes, by the head that does it."""

PACKAGES = {"comet_ml": "comet-ml", "dvclive": "dvclive"}
"""Packages of the trackers that Accelerate knows under another name than the package's."""


def check_trackers(names: Sequence[str]) -> None:
    """Check that every tracker exists and its package is installed.

    Raises:
        ConfigError: naming the nearest tracker, or the package to install.
    """
    available = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            near = difflib.get_close_matches(name, LOGGER_TYPE_TO_CLASS, n=1)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else "there are " + ", ".join(LOGGER_TYPE_TO_CLASS)
            )
            msg = f"no tracker {name!r}; {hint}"
            raise ConfigError(msg)
        if name not in available:
            package = PACKAGES.get(name, name)
            msg = (
                f"tracker {name!r} needs a package that is not installed; run `pip install {package}`, or leave "
                "it out: metrics.jsonl is always written"
            )
            raise ConfigError(msg)


class Journal:
    """Logs a run's rows to ``metrics.jsonl``, on the main process, and to Accelerate's trackers.

    A row that cannot be written because the disk is full is written together with the next one, so that no row is
    lost or cut short.
    """

    def __init__(self, path: Path, accelerator: Accelerator, settings: Mapping[str, Any]) -> None:
        """Log to ``path`` and to the accelerator's trackers, which are given the run's ``settings`` first.

        Raises:
            DataError: if ``path`` is a folder, or a pipe that opening would wait for.
        """
        if path.exists() and not path.is_file():
            msg = (
                f"{path}: is no regular file, so that no metrics can be written to it; move it away"
            )
            raise DataError(msg)
        self.path = path
        self.accelerator = accelerator
        self.tracks = bool(accelerator.log_with)
        self._waiting: list[str] = []
        self._warned = False
        if self.tracks:
            accelerator.init_trackers("pointdistill", config=_flat(settings))

    def write(self, row: Mapping[str, Any]) -> None:
        """Log a row; its ``step`` is the trackers' x axis."""
        if self.accelerator.is_main_process:
            self._waiting.append(json.dumps(row) + "\n")
            self._write_waiting()
        if self.tracks:
            numbers = {n: v for n, v in row.items() if n != "step" and isinstance(v, int | float)}
            self.accelerator.log(numbers, step=row["step"])

    def flush(self) -> None:
        """Flush the rows to disk; called before a checkpoint of the same steps is written."""
        if self.path.is_file():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        """Write the rows that could not be written before, and close the trackers."""
        if self._waiting:
            self._write_waiting()
        if self.tracks:
            for tracker in self.accelerator.trackers:
                tracker.finish()

    def _write_waiting(self) -> None:
        """Append the waiting rows, all of them or none."""
        begin = self.path.stat().st_size if self.path.is_file() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(self._waiting))
        except OSError as error:
            # A disk that fills up cuts a row in the middle. Truncating frees that part again, and keeps every line
            # of the file valid JSON. Training continues either way, since metrics are not worth stopping it for.
            if self.path.is_file():
                os.truncate(self.path, begin)
            if not self._warned:
                log.warning("%s: %s; rows will be written later", self.path, error.strerror)
            self._warned = True
        else:
            self._waiting.clear()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Settings as one table with dotted names. Trackers accept no nested tables, lists or None."""
    flat: dict[str, int | float | str | bool] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, int | float | str):
            flat[f"{prefix}{name}"] = value
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat


Number = TypeVar("Number", Tensor, float)


class StepOutcome(NamedTuple, Generic[Number]):
    """Scalars that decide how a run continues after a step; the same on all processes, and not logged."""

    applied: Number
    """1 if weights, teacher and centres were updated; 0 if the step was skipped."""

    stop: Number
    """Share of processes that want to stop."""

    save: Number
    """Share of processes that want a checkpoint."""

    unreadable: Number
    """Share of processes that could not read their shapes."""

    logit_sum: Number
    """Sum of the teacher's mean logits; not finite if any of them is not."""


@dataclass(frozen=True, slots=True)
class DeviceMetrics:
    """The metrics of a step, still on the device."""

    step: int
    """Number of the step, from 1."""

    epoch: int
    rates: Rates
    terms: tuple[str, ...]
    """Names of the ``logged`` values that are terms of the loss."""

    logged: Mapping[str, Tensor]
    """Scalars to log, by name; the same on all processes."""

    outcome: StepOutcome[Tensor]
    read_error: Exception | None = None
    """Why this process could not read its shapes."""


@dataclass(frozen=True, slots=True)
class HostMetrics:
    """The metrics of a step as numbers on the host; fields as in ``DeviceMetrics``."""

    step: int
    epoch: int
    rates: Rates
    terms: tuple[str, ...]
    logged: Mapping[str, float]
    outcome: StepOutcome[float]
    read_error: Exception | None

    @property
    def step_applied(self) -> bool:
        """Whether the step updated the state, as decided on the device."""
        return self.outcome.applied == 1.0


def steps_behind(device: torch.device) -> int:
    """How many steps may be queued on the device before the host reads the oldest one's metrics."""
    # One is enough to keep a GPU busy, and with more the host would learn later of a step that was not applied.
    return 1 if device.type == "cuda" else 0


class MetricsQueue:
    """Metrics of steps in order, each read without waiting for the newest ``behind`` steps."""

    def __init__(self, behind: int) -> None:
        self.behind = behind
        self._sent: deque[tuple[DeviceMetrics, Tensor, torch.cuda.Event | None]] = deque()

    def send(self, metrics: DeviceMetrics) -> None:
        """Start to copy a step's numbers to the host."""
        values = (*metrics.outcome, *metrics.logged.values())
        # Packed, so that a step costs one copy to the host and not one for each number.
        packed = torch.stack([value.detach().float() for value in values])
        if packed.device.type != "cuda":
            self._sent.append((metrics, packed, None))
            return
        # A copy to ordinary memory would block the host until everything queued before it is done. To page-locked
        # memory it is queued like a kernel, and the event behind it says when the numbers are there.
        host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
        host.copy_(packed, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._sent.append((metrics, host, copied))

    def arrived(self, *, everything: bool = False) -> Iterator[HostMetrics]:
        """Metrics that can be read now; with ``everything``, those of all steps sent so far."""
        while len(self._sent) > (0 if everything else self.behind):
            metrics, host, copied = self._sent.popleft()
            if copied is not None:
                copied.synchronize()
            # Floats of the host from here on: nothing that a caller does with them can make it wait for the
            # device.
            numbers = host.tolist()
            outcome = StepOutcome(*numbers[: len(metrics.outcome)])
            logged = dict(zip(metrics.logged, numbers[len(metrics.outcome) :], strict=True))
            yield HostMetrics(
                metrics.step,
                metrics.epoch,
                metrics.rates,
                metrics.terms,
                logged,
                outcome,
                metrics.read_error,
            )

    def discard(self) -> None:
        """Drop the metrics of steps that followed one that was not applied."""
        self._sent.clear()


def why_not_applied(metrics: HostMetrics) -> str:
    """Why a step was not applied, for a message."""
    if metrics.outcome.unreadable > 0.0:
        return "another process could not read its shapes"
    numbers = {
        "loss": metrics.logged["loss"],
        "gradient norm": metrics.logged["gradient_norm"],
        "teacher's logits": metrics.outcome.logit_sum,
    }
    return ", ".join(f"{n} {v:.4g}" for n, v in numbers.items() if not math.isfinite(v))
