"""Turns a user's overrides into a run that can start: defaults, checks, and remarks on what was chosen."""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.files.schema import from_plain, refusing_damage
from pointdistill.data.files.workspace import last_corpus, last_run, remember_run
from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.config.recipes import SIZES
from pointdistill.engine.config.settings import RunOverrides, resolve_config
from pointdistill.engine.pretraining.cost import largest_batch, step_gib
from pointdistill.engine.pretraining.pretrain import RunResult, pretrain
from pointdistill.engine.pretraining.run_folder import RUN_CONFIG, read_run_config
from pointdistill.engine.pretraining.trainer import RunOptions
from pointdistill.engine.runtime.devices import (
    is_main_process,
    memory_gib,
    pick_device,
    process_count,
)
from pointdistill.errors import CheckpointError, ConfigError, DataError
from pointdistill.reporter import SILENT_TRAINING, StepRecord, TrainingReporter

LEAST_SHARE = 0.1
"""A run that sees a smaller share than this of the shapes of a tiny run causes a warning that it is too short."""

MEMORY_SHARE = 0.4
"""Share of the machine's memory that a step on a CPU may take if the user gave no batch size."""


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A run that is ready to start or to be resumed."""

    config: PretrainConfig
    corpus: Corpus
    run: Path
    resume: bool
    init_from: Path | None
    remarks: tuple[str, ...]
    """One line for each choice that was made for the user."""


def prepare_run(
    overrides: RunOverrides,
    *,
    data: Path | None,
    run: Path | None = None,
    init_from: Path | None = None,
    device: str = "auto",
) -> PreparedRun:
    """Prepare a new run with these overrides; each choice made for the user gets a remark.

    Raises:
        ConfigError: for a setting that is not accepted, a batch that cannot be divided among the processes, or
            several processes without a ``run`` folder given.
        DataError: if there is no corpus to train on.
    """
    pick_device(device)  # refuses a missing device before anything else takes time
    settings = resolve_config(overrides)
    config, remarks = settings.config, []
    corpus, corpus_remark = find_corpus(data)
    if corpus_remark:
        remarks.append(corpus_remark)
    if not settings.batch_size_chosen:
        config, batch_remarks = fit_batch(config, len(corpus), device, processes=process_count())
        remarks += batch_remarks
    config.check_batch(len(corpus), process_count())
    if run is None:
        # Each process would look for the first free folder by itself, and they could find different ones.
        if process_count() > 1:
            msg = f"{process_count()} processes were started together; name the run folder that they share"
            raise ConfigError(msg, settings=("run",))
        remarks.append(f"run: {(run := _next_run(config))}")
    remarks += settings.remarks()
    remarks += undertraining_warning(config, len(corpus))
    return PreparedRun(config, corpus, run, False, init_from, tuple(remarks))


def find_corpus(data: Path | None) -> tuple[Corpus, str | None]:
    """The corpus in ``data``; without it the last one made in the current folder, with a remark that names it.

    Raises:
        DataError: if there is none.
    """
    if data is not None:
        return open_corpus(data), None
    last = last_corpus()
    if last is None:
        msg = "no corpus was made in this folder yet; run `pointdistill prepare-data`, or name one"
        raise DataError(msg, settings=("data",))
    return open_corpus(last), f"corpus: {last} (the last one made in this folder)"


def prepare_resumed_run(
    overrides: RunOverrides, *, data: Path | None, run: Path | None
) -> PreparedRun:
    """Prepare to resume ``run``, or the last run made in the current folder, with its own configuration.

    Raises:
        CheckpointError: if there is no run.
        ConfigError: if there are overrides, since a run keeps the settings it was started with.
    """
    remarks = []
    overridden = tuple(dict.fromkeys(name for name, _ in overrides.items()))
    if overridden:
        msg = "a run is resumed with the settings it began with; leave out changes to them, or start a new run"
        raise ConfigError(msg, settings=overridden)
    if run is None:
        run = last_run()
        if run is None:
            msg = "no run was made in this folder yet; name one, or start a new one"
            raise CheckpointError(msg, settings=("run", "resume"))
        remarks.append(f"run: {run} (the last one made in this folder)")
    described = read_run_config(run)
    corpus = open_corpus(data or Path(described["corpus"]["path"]))
    with refusing_damage(run / RUN_CONFIG, error=CheckpointError):
        config = from_plain(PretrainConfig, described["config"], where="config")
    return PreparedRun(config, corpus, run, True, None, tuple(remarks))


def execute(
    prepared: PreparedRun,
    options: RunOptions,
    reporter: TrainingReporter = SILENT_TRAINING,
) -> RunResult:
    """Train a prepared run."""
    return pretrain(
        prepared.config,
        corpus=prepared.corpus,
        run=prepared.run,
        resume=prepared.resume,
        init_from=prepared.init_from,
        options=options,
        reporter=_RemembersRun(prepared.run, reporter),
    )


class _RemembersRun(TrainingReporter):
    """Forwards everything, and with the first step records the run as the last one made in the current folder."""

    # Not before the first step: a run that is refused must not become the one that other commands take by default.

    def __init__(self, run: Path, reporter: TrainingReporter) -> None:
        self.run: Path | None = run
        self.reporter = reporter

    def step(self, record: StepRecord) -> None:
        """Record the run once, on the main process."""
        if self.run is not None and is_main_process():
            remember_run(self.run)
        self.run = None
        self.reporter.step(record)

    def on_signal(self) -> None:
        """Forward the signal."""
        self.reporter.on_signal()


def announce(prepared: PreparedRun) -> list[str]:
    """Lines that summarise the run before it starts."""
    config, shapes = prepared.config, len(prepared.corpus)
    total = config.total_steps(shapes)
    lines = [
        f"{config.name}, {config.mode} mode, seed {config.seed}: {total:,} steps of "
        f"{config.batch_size} of {shapes:,} shapes ({total * config.batch_size / shapes:.1f} epochs)"
    ]
    return [*prepared.remarks, *lines]


def undertraining_warning(config: PretrainConfig, shapes: int) -> list[str]:
    """A warning if a run is too short to learn anything, compared with the smallest recipe; else nothing."""
    tiny = SIZES["tiny"]()
    # The tiny recipe counts steps, not epochs, so the size of its corpus does not matter here.
    usual = tiny.total_steps(tiny.batch_size) * tiny.batch_size
    shown = config.total_steps(shapes) * config.batch_size
    if shapes <= config.batch_size:
        return [
            f"warning: {shapes} shapes are one batch, so every step sees them all: too few to learn from; "
            "`pointdistill prepare-data builtin` makes thousands"
        ]
    if shown < LEAST_SHARE * usual:
        return [
            f"warning: this run sees {shown:,} shapes, the tiny recipe's {usual:,}: too few to learn from; "
            "give it more steps"
        ]
    return []


def fit_batch(
    config: PretrainConfig, shapes: int, device: str, *, processes: int = 1
) -> tuple[PretrainConfig, list[str]]:
    """Shrink a recipe's batch to what corpus, number of processes and, on a CPU, memory allow; with remarks."""
    remarks = []

    def shareable(size: int) -> int:
        """The largest multiple of the number of processes up to ``size``, but at least one shape for each."""
        return max(1, processes, size - size % processes)

    together = f", and {processes} processes can share" if processes > 1 else ""
    if shapes < config.batch_size:
        largest = shareable(shapes)
        remarks.append(
            f"batch: {largest} instead of {config.batch_size}, all the corpus has{together}"
        )
        config = replace(config, batch_size=largest)
    elif config.batch_size % processes:
        largest = shareable(config.batch_size)
        remarks.append(
            f"batch: {largest} instead of {config.batch_size}, a multiple of the {processes} processes"
        )
        config = replace(config, batch_size=largest)
    # On a GPU too large a batch fails at once with a clear error. On a CPU the machine would start to swap, or the
    # system would kill the process without a message, so there the batch is fitted by arithmetic.
    if pick_device(device).type == "cpu":
        allowed = MEMORY_SHARE * memory_gib()
        if step_gib(config) > allowed:
            fitting = shareable(largest_batch(config, allowed))
            remarks.append(
                f"batch: {fitting} instead of the recipe's {config.batch_size}, whose step would take about "
                f"{step_gib(config):.0f} GiB of this CPU's memory; results will differ from the paper's "
                f"(a batch size given by you is not changed, not even {config.batch_size})"
            )
            config = replace(config, batch_size=fitting)
    return config, remarks


def _next_run(config: PretrainConfig) -> Path:
    """Make the first free ``runs/<name>-<mode>-<number>``; without the mode if the name contains it already."""
    named = str(config.mode) in config.name.split("-")
    name = config.name if named else f"{config.name}-{config.mode}"
    Path("runs").mkdir(exist_ok=True)
    for number in itertools.count(1):
        path = Path("runs") / f"{name}-{number}"
        # Made in the same instant as it is found to be free, so that two runs begun together do not share it.
        with suppress(FileExistsError):
            path.mkdir()
            break
    return path
