"""Numbers of steps on their way from the device to the host, without making the device wait.

A GPU is told of its next step before the numbers of the last are asked for, so it never runs dry; a CPU has
nothing to overlap and is read at once. The numbers are the same either way.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torch import Tensor

from pointdistill.engine.runtime.schedules import Rates
from pointdistill.errors import ConfigError

# A warning when the teacher stops telling shapes apart, from the entropies of its posteriors.
#
# Sizes: K prototypes.

LOW = 0.1
"""Share of the entropy it could have below which the marginal counts as collapsed."""

HIGH = 0.99
"""Share of log K above which posteriors count as uniform."""

IN_A_ROW = 3
"""Observations in a row that must agree before anything is said: one odd batch is no collapse."""

UNIFORM_AT_FIRST = 0.3
"""Share of a run during which a teacher may be uniform, since untrained it cannot tell shapes apart."""


@dataclass(slots=True)
class CollapseWatch:
    """Looks at the entropies of logged steps and warns of each kind of collapse once.

    Args:
        total: steps of the run.
        prototypes: K.
        views: global views in a step, over all processes. Few views cannot spread over many prototypes, so the
            marginal of CLS posteriors is compared with the logarithm of their number, not with log K.
    """

    total: int
    prototypes: int
    views: int
    _agreeing: dict[str, int] = field(default_factory=dict)

    def look(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Warnings after step ``step``; mostly none."""
        said = []
        for kind in ("cls", "patch"):
            if f"{kind}_marginal_entropy" not in values:
                continue
            marginal = values[f"{kind}_marginal_entropy"]
            share = values[f"{kind}_posterior_share"]
            rows = self.views if kind == "cls" else self.prototypes
            reachable = math.log(min(self.prototypes, max(2, rows)))
            if self._is_first_alarm(f"{kind} marginal", marginal < LOW * reachable):
                said.append(_collapsed(kind, step, marginal, marginal / math.log(self.prototypes)))
            old_enough = step > UNIFORM_AT_FIRST * self.total
            if self._is_first_alarm(f"{kind} posteriors", share > HIGH and old_enough):
                said.append(_uniform(kind, step, share))
        return said

    def _is_first_alarm(self, what: str, wrong: bool) -> bool:
        """True once: when it has been wrong ``IN_A_ROW`` times in a row for the first time."""
        seen = self._agreeing.get(what, 0)
        if seen < IN_A_ROW:
            self._agreeing[what] = seen + 1 if wrong else 0
            return self._agreeing[what] == IN_A_ROW
        return False


def _collapsed(kind: str, step: int, entropy: float, share: float) -> str:
    return (
        f"step {step}: collapse: the teacher puts nearly every {_thing(kind)} on the same prototypes (marginal "
        f"entropy {entropy:.2f} nats, {share:.0%} of log K); start anew with a larger batch_size or a higher "
        f"schedule.first_{kind}_temperature"
    )


def _uniform(kind: str, step: int, share: float) -> str:
    return (
        f"step {step}: the teacher's {kind} posteriors are uniform (entropy {share:.1%} of log K), so there is "
        f"nothing to learn from them; start anew with a lower schedule.first_{kind}_temperature, or with "
        "centers_from_first_batch"
    )


def _thing(kind: str) -> str:
    return "shape" if kind == "cls" else "patch"


# The rows of a run: ``metrics.jsonl`` always, and Accelerate's trackers by name.

log = logging.getLogger("pointdistill")

PACKAGES = {"comet_ml": "comet-ml", "dvclive": "dvclive"}
"""Where a tracker's package is not called as it is."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise unless every tracker exists and its package is installed.

    Raises:
        ConfigError: with the nearest name, or with the package to install.
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
    """Where the rows of a run go; written by one process of several.

    A row that a full disk refuses is kept and written with the next, so that no row is lost or cut short.
    """

    def __init__(self, path: Path, accelerator: Accelerator, settings: Mapping[str, Any]) -> None:
        """Rows go to ``path`` and to the trackers that the accelerator was made with, under ``settings``."""
        self.path = path
        self.accelerator = accelerator
        self.tracks = bool(accelerator.log_with)
        self._waiting: list[str] = []
        self._warned = False
        if self.tracks:
            accelerator.init_trackers("pointdistill", config=_flat(settings))

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row; ``step`` is its place on the trackers' axis."""
        if self.accelerator.is_main_process:
            self._waiting.append(json.dumps(row) + "\n")
            self._write_waiting()
        if self.tracks:
            numbers = {n: v for n, v in row.items() if n != "step" and isinstance(v, int | float)}
            self.accelerator.log(numbers, step=row["step"])

    def flush(self) -> None:
        """Put the rows on the disk, before a checkpoint that counts on them."""
        if self.path.is_file():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        """Write what a full disk refused, and let the trackers finish."""
        if self._waiting:
            self._write_waiting()
        if self.tracks:
            for tracker in self.accelerator.trackers:
                tracker.finish()

    def _write_waiting(self) -> None:
        """Append what waits, whole or not at all."""
        begin = self.path.stat().st_size if self.path.is_file() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(self._waiting))
        except OSError as error:
            if self.path.is_file():
                os.truncate(self.path, begin)
            if not self._warned:
                log.warning("%s: %s; its rows are kept for later", self.path, error.strerror)
            self._warned = True
        else:
            self._waiting.clear()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Settings under dotted names, as trackers take them."""
    found: dict[str, int | float | str | bool] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, int | float | str):
            found[f"{prefix}{name}"] = value
        else:
            found[f"{prefix}{name}"] = str(value)
    return found


Number = TypeVar("Number", Tensor, float)


class StepOutcome(NamedTuple, Generic[Number]):
    """What decides how a run goes on after a step; scalars, the same on all processes, none of them logged."""

    applied: Number
    """1 where weights, teacher and centres were changed; 0 where the step was called off."""

    stop: Number
    """Share of processes that want to stop."""

    save: Number
    """Share of processes that want a checkpoint."""

    unreadable: Number
    """Share of processes that could not read their shapes."""

    logit_sum: Number
    """Of the teacher's mean logits: not finite where one of them is not."""


@dataclass(frozen=True, slots=True)
class DeviceMetrics:
    """What a step leaves behind, its numbers still on the device."""

    step: int
    """Steps taken with it, from 1."""

    epoch: int
    rates: Rates
    terms: tuple[str, ...]
    """Which of ``logged`` are terms of the loss."""

    logged: Mapping[str, Tensor]
    """Scalars for the journal, by name; the same on all processes."""

    outcome: StepOutcome[Tensor]
    read_error: Exception | None = None
    """Why this process could not read its shapes."""


@dataclass(frozen=True, slots=True)
class HostMetrics:
    """The same on the host."""

    step: int
    epoch: int
    rates: Rates
    terms: tuple[str, ...]
    logged: Mapping[str, float]
    outcome: StepOutcome[float]
    read_error: Exception | None

    @property
    def step_applied(self) -> bool:
        """Whether the step changed anything: decided on the device, where it was computed."""
        return self.outcome.applied == 1.0


def steps_behind(device: torch.device) -> int:
    """How many steps the host may lag behind the device."""
    return 1 if device.type == "cuda" else 0


class MetricsQueue:
    """Metrics in order, each as soon as it can be had without waiting for the newest ``behind`` steps."""

    def __init__(self, behind: int) -> None:
        self.behind = behind
        self._sent: deque[tuple[DeviceMetrics, Tensor, torch.cuda.Event | None]] = deque()

    def send(self, metrics: DeviceMetrics) -> None:
        """Start the copy of a step's numbers to the host."""
        values = (*metrics.outcome, *metrics.logged.values())
        packed = torch.stack([value.detach().float() for value in values])
        if packed.device.type != "cuda":
            self._sent.append((metrics, packed, None))
            return
        # Page-locked memory, or the copy would make the host wait for all that is queued before it.
        host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
        host.copy_(packed, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._sent.append((metrics, host, copied))

    def arrived(self, *, everything: bool = False) -> Iterator[HostMetrics]:
        """Metrics that are due; with ``everything``, all that were sent."""
        while len(self._sent) > (0 if everything else self.behind):
            metrics, host, copied = self._sent.popleft()
            if copied is not None:
                copied.synchronize()
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
        """Drop what was sent: steps after one that was called off."""
        self._sent.clear()


def why_not_applied(metrics: HostMetrics) -> str:
    """What called a step off, for a message."""
    if metrics.outcome.unreadable > 0.0:
        return "another process could not read its shapes"
    numbers = {
        "loss": metrics.logged["loss"],
        "gradient norm": metrics.logged["gradient_norm"],
        "teacher's logits": metrics.outcome.logit_sum,
    }
    return ", ".join(f"{n} {v:.4g}" for n, v in numbers.items() if not math.isfinite(v))
