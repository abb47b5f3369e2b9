"""The plan of a run before it starts: its steps, memory, time and disk, and what would keep it from running.

Time and memory of a step come from measured steps or, if those would take too long, from smaller batches.
"""

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
from pointdistill.engine.planning.cards import Card, Estimate, estimate_on_card, find_card
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

LONGEST_SECONDS = 60.0
"""Longest expected trial on a CPU; steps of a larger batch are extrapolated instead."""

CPU_FLOPS = 1e10
"""A low estimate of a CPU's FLOPs per second; decides only which batch size is tried."""

TRIAL_STEPS = 5
"""Fewest steps of a trial."""

MEMORY_SHARE = 0.7
"""Largest share of the machine's memory that a trial on a CPU should take."""

SMALLEST_BATCH = 4
"""The last batch size to try if larger ones do not fit."""

TRIAL_SECONDS = 10.0
"""Length of a trial's timed steps, unless the fewest steps take longer."""


def estimate(
    trial: Trial,
    *,
    on_gpu: bool,
    reporter: Reporter = SILENT,
    measure: Callable[[Trial], Measurement] = measure_steps,
) -> Estimate:
    """Measure steps of the run's batch if they are affordable; else measure two smaller batches and extrapolate.

    Args:
        trial: what to measure, with the batch size of the run.
        on_gpu: whether its device is a GPU.
        reporter: receives a line before each measurement.
        measure: performs a trial.

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
    """An estimate without any step: memory in float32 by the formula in ``cost``, and no time."""
    gib = step_gib(trial.config, points=trial.points) + (0.0 if on_gpu else IDLE_GIB)
    return Estimate(None, _with_snapshot(trial, gib, on_gpu=on_gpu), "arithmetic for float32")


def affordable_batch(trial: Trial) -> int:
    """The largest batch, at most the run's own, with which a CPU should finish a trial within a minute."""
    config = trial.config
    flops_per_shape = step_flops(config) / config.batch_size
    in_time = int(LONGEST_SECONDS * CPU_FLOPS / TRIAL_STEPS / flops_per_shape)
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
    """The first measurement that does not run out of memory, of ``size``, half of it, and so on."""
    while True:
        try:
            return attempt(size)
        except DoesNotFitError:
            if size <= SMALLEST_BATCH:
                raise
            size = max(SMALLEST_BATCH, size // 2)


def _with_snapshot(trial: Trial, gib: float | None, *, on_gpu: bool) -> float | None:
    """Memory with the copy of the training state that is made for a checkpoint."""
    # The copy is in host memory while it is written, which counts on a CPU and does not on a GPU.
    return gib if gib is None or on_gpu else gib + checkpoint_gib(trial.config)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A run and the resources it needs."""

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
    """FLOPs of a step."""

    device: str
    memory_gib: float
    """Memory of the device."""

    step: Estimate
    disk_gib: float
    """The most disk space that the run needs: checkpoints, another one being written, and the encoder."""

    free_gib: float | None
    """Free space on the disk that the run would be written to; None for a GPU that is elsewhere."""

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.total_steps(self.shapes)

    @property
    def hours(self) -> float | None:
        """Duration of the whole run; None if nothing was measured."""
        return None if self.step.seconds is None else self.steps * self.step.seconds / 3600

    @property
    def problems(self) -> list[tuple[str, str]]:
        """What would keep the run from finishing on this machine, each with the setting that would help."""
        problems = []
        step_gib = self.step.gib
        if not self.step.fits or (step_gib is not None and step_gib > self.memory_gib):
            line = (
                f"a step of {self.config.batch_size} shapes does not fit into the memory of this device; "
                "choose a smaller batch"
            )
            problems.append((line, "batch_size"))
        if self.free_gib is not None and self.disk_gib > self.free_gib:
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
    gpu: str | None = None,
    gpus: int = 1,
    reporter: Reporter = SILENT,
) -> Plan:
    """Plan the run that ``pretrain`` would start with the same settings.

    Args:
        overrides: the run's settings.
        data: the corpus; by default the last one made in this folder.
        shapes: plan without a corpus, for this number of synthetic shapes of the paper's size.
        options: how the run would be executed.
        measured: take a few real steps; otherwise memory is estimated by a formula, and no time is given.
        gpu: plan for a GPU of this name, which need not be here, from its data sheet; nothing is measured then.
        gpus: how many of them share the batch.
        reporter: receives a line before each measurement.

    Raises:
        ConfigError: for a setting, device or name of a GPU that is not accepted, or several processes.
        DataError: if there is neither a corpus nor a number of shapes.
        PointDistillError: if no step could be measured.
    """
    _check_single_process()
    card = _card(gpu, gpus, options)
    on_gpu = card is not None or pick_device(options.device).type == "cuda"
    settings = resolve_config(overrides)
    corpus, remarks = None, []
    if shapes is None:
        corpus, corpus_remark = _corpus(data)
        remarks += [corpus_remark] if corpus_remark else []
        shapes = len(corpus)
    config = settings.config
    if not settings.batch_size_chosen:
        device = options.device if card is None else None
        config, batch_remarks = fit_batch(config, shapes, device, processes=gpus)
        remarks += batch_remarks
    remarks += settings.remarks()
    config.total_steps(shapes)  # refuses a corpus that does not fill a batch
    if config.batch_size % gpus:
        msg = f"the batch size must be a multiple of the {gpus} GPUs, got {config.batch_size}"
        raise ConfigError(msg, settings=("batch_size", "gpus"))
    trial = _trial(config, corpus, options)
    if card is not None:
        bf16 = options.precision != "no"
        step = estimate_on_card(config, card, count=gpus, points=trial.points, bf16=bf16)
        several = f"{gpus} GPUs, each a " if gpus > 1 else ""
        name, memory = f"{several}{card.title}, which need not be here", card.memory_gib
    else:
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
        free_gib=shutil.disk_usage(Path.cwd()).free / GIB if card is None else None,
    )


def _card(gpu: str | None, gpus: int, options: RunOptions) -> Card | None:
    """The GPU that is planned for, if it is named."""
    if gpu is None:
        if gpus != 1:
            msg = f"a plan for {gpus} GPUs needs the name of the GPU"
            raise ConfigError(msg, settings=("gpu",))
        return None
    if options.device != "auto":
        msg = f"a plan for a named GPU is for no device of this machine, got {options.device!r} too"
        raise ConfigError(msg, settings=("device", "gpu"))
    return find_card(gpu)


def _check_single_process() -> None:
    # The trial's own process would inherit the launcher's variables, and wait for the others.
    if process_count() > 1:
        msg = f"plan is for one process, but {process_count()} were started; start it without a launcher"
        raise ConfigError(msg)


def _trial(config: PretrainConfig, corpus: Corpus | None, options: RunOptions) -> Trial:
    return Trial(
        config=config,
        corpus=None if corpus is None else corpus.path,
        points=STORED_POINTS,
        device=options.device,
        precision=options.precision,
        seconds=TRIAL_SECONDS,
    )


def _corpus(data: Path | None) -> tuple[Corpus, str | None]:
    """The corpus that ``pretrain`` would use; if there is none, the error says how to plan without one."""
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
    """The device's name, and its memory in GiB."""
    if on_gpu:
        gpu: Any = torch.cuda.get_device_properties(0)
        return gpu.name, gpu.total_memory / GIB
    name = platform.processor() or platform.machine()
    return f"{name} CPU, {usable_cores()} cores", memory_gib()
