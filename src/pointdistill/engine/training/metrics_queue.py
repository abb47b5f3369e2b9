"""Numbers of steps on their way from the device to the host, without making the device wait.

A GPU is told of its next step before the numbers of the last are asked for, so it never runs dry; a CPU has
nothing to overlap and is read at once. The numbers are the same either way.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from pointdistill.engine.schedules import Rates

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
