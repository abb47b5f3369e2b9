"""Learning rate, momentum and temperature schedules, as pure functions of the optimiser step.

Source: section 6 of docs/method.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pointdistill.errors import ConfigError
from pointdistill.model.config import Temperatures


def linear(step: int, *, start: float, end: float, span: int) -> float:
    """Linear from ``start`` to ``end`` over ``span`` steps, then constant."""
    return start + (end - start) * step / span if step < span else end


def cosine(step: int, *, start: float, end: float, span: int) -> float:
    """Half a cosine from ``start`` to ``end`` over ``span`` steps, then constant."""
    progress = min(1.0, step / span) if span else 1.0
    return end + (start - end) * (1.0 + math.cos(math.pi * progress)) / 2.0


def warmup_cosine(
    step: int, *, first: float, peak: float, final: float, warmup: int, total: int
) -> float:
    """Linear from ``first`` to ``peak`` over ``warmup`` steps, then cosine to ``final`` at step ``total``."""
    if step < warmup:
        return linear(step, start=first, end=peak, span=warmup)
    return cosine(step - warmup, start=peak, end=final, span=total - warmup)


@dataclass(frozen=True, slots=True)
class Rates:
    """The values of all schedules at one step."""

    learning_rate: float
    teacher_momentum: float
    temperatures: Temperatures


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """The schedules of pretraining, in epochs; the defaults are the paper's."""

    first_learning_rate: float = 1e-7
    peak_learning_rate: float = 5e-4
    final_learning_rate: float = 1e-6
    warmup_epochs: float = 10.0
    """The learning rate rises linearly over these epochs, then follows a cosine to the end of the run."""

    first_momentum: float = 0.995
    final_momentum: float = 1.0
    """The teacher's momentum follows a cosine over the whole run."""

    first_cls_temperature: float = 0.04
    final_cls_temperature: float = 0.07
    first_patch_temperature: float = 0.05
    final_patch_temperature: float = 0.07
    temperature_epochs: float = 10.0
    """The teacher's temperatures change linearly over these epochs, then stay constant."""

    student_temperature: float = 0.1

    def __post_init__(self) -> None:
        for name in (
            "first_learning_rate",
            "peak_learning_rate",
            "final_learning_rate",
            "warmup_epochs",
            "temperature_epochs",
        ):
            if getattr(self, name) < 0.0:
                msg = f"schedule.{name} must not be negative, got {getattr(self, name)!r}"
                raise ConfigError(msg)
        for name in (
            "first_cls_temperature",
            "final_cls_temperature",
            "first_patch_temperature",
            "final_patch_temperature",
            "student_temperature",
        ):
            if getattr(self, name) <= 0.0:
                msg = f"schedule.{name} must be positive, got {getattr(self, name)!r}"
                raise ConfigError(msg)
        for name in ("first_momentum", "final_momentum"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                msg = f"schedule.{name} must lie in [0, 1], got {getattr(self, name)!r}"
                raise ConfigError(msg)

    def at(self, step: int, *, total: int, steps_per_epoch: float) -> Rates:
        """The values at optimiser step ``step`` (from 0) of ``total``."""
        ramp = round(self.temperature_epochs * steps_per_epoch)
        return Rates(
            learning_rate=warmup_cosine(
                step,
                first=self.first_learning_rate,
                peak=self.peak_learning_rate,
                final=self.final_learning_rate,
                warmup=min(round(self.warmup_epochs * steps_per_epoch), total),
                total=total,
            ),
            teacher_momentum=cosine(
                step, start=self.first_momentum, end=self.final_momentum, span=total
            ),
            temperatures=Temperatures(
                cls_teacher=linear(
                    step,
                    start=self.first_cls_temperature,
                    end=self.final_cls_temperature,
                    span=ramp,
                ),
                patch_teacher=linear(
                    step,
                    start=self.first_patch_temperature,
                    end=self.final_patch_temperature,
                    span=ramp,
                ),
                student=self.student_temperature,
            ),
        )


def two_stage(
    step: int,
    *,
    frozen_first: float,
    frozen_last: float,
    frozen_span: int,
    peak: float,
    final: float,
    warmup: int,
    total: int,
) -> float:
    """Linear decay while the encoder is frozen; then a warm-up from 0 to ``peak`` and a cosine to ``final``."""
    if step < frozen_span:
        return linear(step, start=frozen_first, end=frozen_last, span=frozen_span)
    return warmup_cosine(
        step - frozen_span,
        first=0.0,
        peak=peak,
        final=final,
        warmup=warmup,
        total=total - frozen_span,
    )
