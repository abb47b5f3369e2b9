"""Time and memory of a step, from measured steps or, where those cost too much, from smaller ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pointdistill.engine.cost import (
    IDLE_GIB,
    checkpoint_gib,
    largest_batch,
    step_flops,
    step_gib,
)
from pointdistill.engine.machine import memory_gib
from pointdistill.engine.plan.measure import DoesNotFitError, Measurement, Trial, measure_steps
from pointdistill.reporter import SILENT, Reporter

LONGEST_SECONDS = 60.0
"""Longest expected trial on a CPU; steps of a larger batch are extrapolated instead."""

CPU_FLOPS = 1e10
"""Operations a second to expect of a CPU, on the low side; only decides which batch is tried."""

TRIAL_STEPS = 5
"""Fewest steps of a trial."""

MEMORY_SHARE = 0.7
"""Largest share of the machine's memory that a trial on a CPU should take."""

SMALLEST_BATCH = 4
"""Tried last, where larger ones do not fit."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a step takes."""

    seconds: float | None
    """Wall time; None where nothing was measured."""

    gib: float | None
    """Peak memory: of the GPU, or of the process on a CPU; None where the system does not say."""

    basis: str
    """Where the two come from, for people."""

    fits: bool = True
    """False where a step of this batch was tried, and did not fit into memory."""


def estimate(
    trial: Trial,
    *,
    on_gpu: bool,
    reporter: Reporter = SILENT,
    measure: Callable[[Trial], Measurement] = measure_steps,
) -> Estimate:
    """Measure steps of the trial's batch where that is affordable; else of two smaller ones, and extrapolate.

    Args:
        trial: what to measure; its batch size is that of the run.
        on_gpu: whether its device is one.
        reporter: told what is being measured.
        measure: takes the steps of a trial.

    Raises:
        DoesNotFitError: if not even a step of a few shapes fits.
    """

    def attempt(size: int) -> Measurement:
        reporter.say(f"measuring steps of {size} shapes ...")
        return measure(replace(trial, config=replace(trial.config, batch_size=size)))

    batch_size = trial.config.batch_size
    first = batch_size if on_gpu else affordable_batch(trial)
    larger = _first_that_fits(first, attempt)
    fits = larger.batch_size == first
    if larger.batch_size == batch_size:
        basis = f"median of {larger.steps} real steps of {batch_size} shapes"
        return Estimate(larger.seconds, _with_snapshot(trial, larger.gib, on_gpu=on_gpu), basis)
    smaller = attempt(larger.batch_size // 2)
    seconds, gib = extrapolate(smaller, larger, batch_size)
    basis = f"extrapolated from real steps of {smaller.batch_size} and {larger.batch_size} shapes"
    return Estimate(seconds, _with_snapshot(trial, gib, on_gpu=on_gpu), basis, fits)


def arithmetic(trial: Trial, *, on_gpu: bool) -> Estimate:
    """Without a single step: memory by ``cost``'s formula, for float32."""
    gib = step_gib(trial.config, points=trial.points) + (0.0 if on_gpu else IDLE_GIB)
    return Estimate(None, _with_snapshot(trial, gib, on_gpu=on_gpu), "arithmetic for float32")


def affordable_batch(trial: Trial) -> int:
    """The largest batch, at most the run's own, of which a CPU should manage a trial within a minute."""
    config = trial.config
    a_shape = step_flops(config) / config.batch_size
    in_time = int(LONGEST_SECONDS * CPU_FLOPS / TRIAL_STEPS / a_shape)
    in_memory = largest_batch(config, MEMORY_SHARE * memory_gib(), points=trial.points)
    return min(config.batch_size, max(SMALLEST_BATCH, min(in_time, in_memory)))


def extrapolate(
    smaller: Measurement, larger: Measurement, batch_size: int
) -> tuple[float, float | None]:
    """(seconds, GiB) of a step of ``batch_size`` shapes, on the line through two measurements."""
    ahead = (batch_size - larger.batch_size) / (larger.batch_size - smaller.batch_size)
    seconds = larger.seconds + ahead * (larger.seconds - smaller.seconds)
    if smaller.gib is None or larger.gib is None:
        return seconds, None
    return seconds, larger.gib + ahead * (larger.gib - smaller.gib)


def _first_that_fits(size: int, attempt: Callable[[int], Measurement]) -> Measurement:
    """The measurement of the first of ``size``, half of it, and so on, that does not run out of memory."""
    while True:
        try:
            return attempt(size)
        except DoesNotFitError:
            if size <= SMALLEST_BATCH:
                raise
            size = max(SMALLEST_BATCH, size // 2)


def _with_snapshot(trial: Trial, gib: float | None, *, on_gpu: bool) -> float | None:
    """On a CPU, a copy of everything that a checkpoint holds: it is written while training goes on."""
    return gib if gib is None or on_gpu else gib + checkpoint_gib(trial.config)
