"""A plan: everything to know of a run before it starts."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pointdistill.data.corpus import Corpus
from pointdistill.data.workers import usable_cores
from pointdistill.engine.config import PretrainConfig
from pointdistill.engine.cost import (
    STORED_POINTS,
    Parameters,
    checkpoint_gib,
    encoder_gib,
    parameters,
    step_flops,
)
from pointdistill.engine.devices import pick_device, process_count
from pointdistill.engine.machine import GIB, memory_gib
from pointdistill.engine.plan.estimate import Estimate, arithmetic, estimate
from pointdistill.engine.plan.measure import Trial
from pointdistill.engine.settings import RunOverrides, resolve_config
from pointdistill.engine.training.launch import find_corpus, fit_batch
from pointdistill.engine.training.run_options import RunOptions
from pointdistill.errors import ConfigError, DataError
from pointdistill.reporter import SILENT, Reporter

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
