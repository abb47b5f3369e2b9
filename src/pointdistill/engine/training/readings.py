"""Numbers of steps on their way from the device to the host, without making the device wait.

A GPU is told of its next step before the numbers of the last are asked for, so it never runs dry; a CPU has
nothing to overlap and is read at once. What is read is the same either way.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pointdistill.engine.schedules import Rates


@dataclass(frozen=True, slots=True)
class StepNumbers:
    """What a step leaves behind, its numbers still on the device."""

    step: int
    """Steps taken with it, from 1."""

    epoch: int
    rates: Rates
    terms: tuple[str, ...]
    """Which of ``values`` are terms of the loss."""

    values: Mapping[str, Tensor]
    """Scalars; the same on all processes."""

    fault: Exception | None = None
    """Why this process could not read its shapes."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The same on the host."""

    step: int
    epoch: int
    rates: Rates
    terms: tuple[str, ...]
    values: Mapping[str, float]
    fault: Exception | None

    @property
    def sound(self) -> bool:
        """Whether the step was taken: decided on the device, where it was."""
        return self.values["taken"] == 1.0


def steps_behind(device: torch.device) -> int:
    """How many steps a reading may lag behind the device."""
    return 1 if device.type == "cuda" else 0


class Readings:
    """Readings in order, each as soon as it can be had without waiting for the newest ``behind`` steps."""

    def __init__(self, behind: int) -> None:
        self.behind = behind
        self._sent: deque[tuple[StepNumbers, Tensor, torch.cuda.Event | None]] = deque()

    def send(self, numbers: StepNumbers) -> None:
        """Start the copy of a step's numbers to the host."""
        packed = torch.stack([value.detach().float() for value in numbers.values.values()])
        if packed.device.type != "cuda":
            self._sent.append((numbers, packed, None))
            return
        host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
        host.copy_(packed, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._sent.append((numbers, host, copied))

    def arrived(self, *, everything: bool = False) -> Iterator[Reading]:
        """Readings that are due; with ``everything``, all that were sent."""
        while len(self._sent) > (0 if everything else self.behind):
            numbers, host, copied = self._sent.popleft()
            if copied is not None:
                copied.synchronize()
            values = dict(zip(numbers.values, host.tolist(), strict=True))
            yield Reading(
                numbers.step, numbers.epoch, numbers.rates, numbers.terms, values, numbers.fault
            )

    def forget(self) -> None:
        """Drop what was sent: steps after one that was not taken."""
        self._sent.clear()


def describe_unsound(reading: Reading) -> str:
    """Which numbers of a step were not finite, for a message."""
    shown = {"loss": "loss", "gradient_norm": "gradient norm", "centers": "teacher's logits"}
    wrong = [
        f"{text} {reading.values[name]:.4g}"
        for name, text in shown.items()
        if not math.isfinite(reading.values[name])
    ]
    return ", ".join(wrong)
