"""A plan: everything to know of a run before it starts."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pointdistill.data.corpus import Corpus
from pointdistill.data.files.processes import usable_cores
from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.config.settings import RunOverrides, resolve_config
from pointdistill.engine.planning.trial import DoesNotFitError, Measurement, Trial, measure_steps
from pointdistill.engine.pretraining.cost import (
    IDLE_GIB,
    STORED_POINTS,
    Parameters,
    checkpoint_gib,
    encoder_gib,
    largest_batch,
    parameters,
    step_flops,
    step_gib,
)
from pointdistill.engine.pretraining.launch import find_corpus, fit_batch
from pointdistill.engine.pretraining.trainer import RunOptions
from pointdistill.engine.runtime.devices import GIB, memory_gib, pick_device, process_count
from pointdistill.errors import ConfigError, DataError
from pointdistill.reporter import SILENT, Reporter

# Time and memory of a step, from measured steps or, where those cost too much, from smaller ones.

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


TRIAL_SECONDS = 10.0
"""Of timed steps in a trial, unless a few of them take longer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run is, and what it takes."""

    config: PretrainConfig
    recipe: str
    """Name of the recipe the configuration started from."""

    remarks: tuple[str, ...]
    """What was chosen automatically, and what differs from the recipe."""

    corpus: Path | None
    shapes: int
    licences: tuple[tuple[str, str, int], ...]
    """Name, licence and shapes of every source of the corpus."""

    parameters: Parameters
    flops: float
    """Of a step."""

    device: str
    memory_gib: float
    """Of the device."""

    step: Estimate
    disk_gib: float
    """At most: the checkpoints kept, one being written, and the encoder."""

    free_gib: float
    """Of the disk that the run would be written to."""

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.config.total_steps(self.shapes)

    @property
    def hours(self) -> float | None:
        """Of the whole run; None where nothing was measured."""
        return None if self.step.seconds is None else self.steps * self.step.seconds / 3600

    @property
    def problems(self) -> list[tuple[str, str]]:
        """What would stop the run on this machine, each with the setting that would change it."""
        problems = []
        step_gib = self.step.gib
        if not self.step.fits or (step_gib is not None and step_gib > self.memory_gib):
            line = (
                f"a step of {self.config.batch_size} shapes does not fit into the memory of this device; "
                "choose a smaller batch"
            )
            problems.append((line, "batch_size"))
        if self.disk_gib > self.free_gib:
            line = (
                f"the checkpoints need {self.disk_gib:.1f} GiB and {self.free_gib:.1f} GiB are free here; "
                "free some, or put the run on another disk"
            )
            problems.append((line, "run"))
        return problems


def make_plan(
    overrides: RunOverrides,
    *,
    data: Path | None,
    shapes: int | None,
    options: RunOptions,
    measured: bool = True,
    reporter: Reporter = SILENT,
) -> Plan:
    """Plan the run that ``pretrain`` would make of the same settings.

    Args:
        overrides: what to compute.
        data: the corpus; by default the last one made in this folder.
        shapes: plan without a corpus, on so many synthetic shapes of the paper's size.
        options: how it would be carried out.
        measured: take a few real steps; otherwise memory is estimated by a formula, and no time is given.
        reporter: told what is being measured.

    Raises:
        ConfigError: for a setting or device that is not accepted, or several processes.
        DataError: if there is neither a corpus nor a number of shapes.
        PointDistillError: if no step could be measured.
    """
    if process_count() > 1:
        msg = f"plan is for one process, and {process_count()} were started together; start it without a launcher"
        raise ConfigError(msg)
    on_gpu = pick_device(options.device).type == "cuda"
    settings = resolve_config(overrides)
    corpus, remarks = None, []
    if shapes is None:
        corpus, where = _corpus(data)
        remarks += [where] if where else []
        shapes = len(corpus)
    config = settings.config
    if not settings.batch_size_chosen:
        config, why = fit_batch(config, shapes, options.device)
        remarks += why
    remarks += settings.remarks()
    config.total_steps(shapes)  # refuses a corpus that does not fill a batch
    trial = Trial(
        config=config,
        corpus=None if corpus is None else corpus.path,
        points=STORED_POINTS,
        device=options.device,
        precision=options.precision,
        seconds=TRIAL_SECONDS,
    )
    step = (
        estimate(trial, on_gpu=on_gpu, reporter=reporter)
        if measured
        else arithmetic(trial, on_gpu=on_gpu)
    )
    name, memory = _device(on_gpu=on_gpu)
    return Plan(
        config=config,
        recipe=settings.recipe,
        remarks=tuple(remarks),
        corpus=None if corpus is None else corpus.path,
        shapes=shapes,
        licences=() if corpus is None else _licences(corpus),
        parameters=parameters(config),
        flops=step_flops(config),
        device=name,
        memory_gib=memory,
        step=step,
        disk_gib=(options.keep + 1) * checkpoint_gib(config) + encoder_gib(config),
        free_gib=shutil.disk_usage(Path.cwd()).free / GIB,
    )


def _corpus(data: Path | None) -> tuple[Corpus, str | None]:
    """As for ``pretrain``; where there is none, the message says how to plan without one."""
    try:
        return find_corpus(data)
    except DataError as error:
        if data is not None:
            raise
        msg = f"{error}; or plan without one, for a number of shapes"
        raise DataError(msg, settings=("shapes",)) from error


def _licences(corpus: Corpus) -> tuple[tuple[str, str, int], ...]:
    return tuple((source.name, source.licence, source.kept) for source in corpus.sources)


def _device(*, on_gpu: bool) -> tuple[str, float]:
    """What the device calls itself, and its memory in GiB."""
    if on_gpu:
        gpu: Any = torch.cuda.get_device_properties(0)
        return gpu.name, gpu.total_memory / GIB
    name = platform.processor() or platform.machine()
    return f"{name} CPU, {usable_cores()} cores", memory_gib()
