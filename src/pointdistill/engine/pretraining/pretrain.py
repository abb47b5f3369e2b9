"""Pretraining: start or resume a run, train it, and save an encoder with everything needed to continue."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from pointdistill.data.files.files import check_folders_can_be_renamed, hold_folder
from pointdistill.data.files.schema import from_plain, to_plain
from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.pretraining.checkpoints import to_device
from pointdistill.engine.pretraining.monitor import check_trackers
from pointdistill.engine.pretraining.online_probe import (
    RunProbe,
    check_labelled_set,
    open_labelled_set,
)
from pointdistill.engine.pretraining.run_folder import (
    ENCODER,
    TRACKING,
    RunEnvironment,
    TrainingCorpus,
    begin_run,
    read_run_environment,
    resume_run,
    warnings_of,
)
from pointdistill.engine.pretraining.step import make_views
from pointdistill.engine.pretraining.trainer import RunOptions, Trainer
from pointdistill.engine.runtime.devices import (
    build_accelerator,
    interruptible,
    is_main_process,
    pick_device,
    process_count,
    threads_for,
)
from pointdistill.engine.weights.encoders import read_facts
from pointdistill.errors import CheckpointError, ConfigError
from pointdistill.reporter import SILENT_TRAINING, TrainingReporter

__all__ = ["RunOptions", "RunResult", "make_views", "pretrain"]


log = logging.getLogger("pointdistill")


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a call to ``pretrain`` ended."""

    run: Path
    step: int
    total: int
    interrupted: bool
    loss: float
    warnings: tuple[str, ...] = ()
    """What the whole run warned of, such as a collapse."""


def pretrain(
    config: PretrainConfig,
    *,
    corpus: TrainingCorpus,
    run: Path,
    resume: bool = False,
    init_from: Path | str | None = None,
    options: RunOptions | None = None,
    reporter: TrainingReporter = SILENT_TRAINING,
    held: bool = False,
) -> RunResult:
    """Train a student and its teacher, and save ``run/encoder`` and everything needed to continue.

    Ctrl-C and SIGTERM finish the step, save, and return with ``interrupted`` set. A loss or gradient that is not
    finite changes no weight, moment, centre or teacher. Warnings during the run (a collapse, a checkpoint that
    could not be written) go to the logger ``pointdistill``, one line each.

    Args:
        config: what to compute. With several processes, the main process's configuration is used, with the
            smallest batch size of any process. When resuming, the run's own configuration is used instead.
        corpus: shapes to learn from, z up.
        run: folder of the run; created if absent.
        resume: continue from the newest intact checkpoint in ``run``.
        init_from: the encoder with the student's initial weights, as for ``load_encoder``.
        options: how the run is executed.
        reporter: receives every step, on a GPU one step late; and a signal at once, before the step is finished.
        held: whether the caller keeps other processes out of ``run`` already, by `hold_run`.

    Raises:
        ConfigError: if ``run`` holds another run, another process is training it, the corpus is too small for a
            batch, the batch cannot be divided among the processes, or an option is not available on this machine.
        CheckpointError: if there is nothing to resume, the corpus is not the one the run was started with, or the
            last checkpoint cannot be written.
        DataError: if a shape has no points or coordinates that are not finite, or the probe's labelled set cannot
            be read.
        DivergenceError: if a loss or gradient is not finite; names the last good checkpoint.
    """
    options = options or RunOptions()
    check_options(options)
    recorded = read_run_environment(run) if resume else None
    with nullcontext() if held else hold_run(run):
        if run.is_dir() and is_main_process():
            # Before hours of training, not at the first checkpoint.
            check_folders_can_be_renamed(run)
        return _pretrain(
            config,
            corpus=corpus,
            run=run,
            resume=resume,
            init_from=init_from,
            options=options,
            reporter=reporter,
            recorded=recorded,
        )


def check_options(options: RunOptions) -> None:
    """Check all of the options that can be checked at once, without a corpus and a model.

    Raises:
        ConfigError: for a tracker that there is not, or a model to be split in a single process.
        DataError: if the probe's labelled set is not there.
    """
    check_trackers(options.track)
    if options.sharding == "fsdp" and process_count() == 1:
        msg = (
            "sharding 'fsdp' splits a model over several processes, but there is only one; start several with "
            "torchrun, or leave it out"
        )
        raise ConfigError(msg)
    if options.probe is not None:
        check_labelled_set(options.probe)


def hold_run(run: Path) -> AbstractContextManager[None]:
    """Keep other processes out of a run, except those that were started together with this one."""
    busy = ConfigError(
        f"{run}: another process is training this run; wait for it, or choose another folder",
        settings=("run",),
    )
    return hold_folder(run, busy) if is_main_process() else nullcontext()


def _pretrain(
    config: PretrainConfig,
    *,
    corpus: TrainingCorpus,
    run: Path,
    resume: bool,
    init_from: Path | str | None,
    options: RunOptions,
    reporter: TrainingReporter,
    recorded: RunEnvironment | None,
) -> RunResult:
    """Train as `pretrain` does, in a run that this process holds; a resumed one was begun as ``recorded``."""
    accelerator = build_accelerator(
        options.device, _precision(options, recorded), track=options.track, project=run / TRACKING
    )
    environment = RunEnvironment(
        device=accelerator.device.type, precision=accelerator.mixed_precision
    )
    main, processes = accelerator.is_main_process, accelerator.num_processes
    spent, warnings = 0.0, []
    if resume:
        state, spent = resume_run(corpus, run, processes=processes, write=main)
        with suppress(CheckpointError):
            warnings = warnings_of(read_facts(run / ENCODER).get("training"))
        config = state.config
        if main:
            _warn_of_other_rounding(recorded, environment)
    else:
        config = _agreed(config, accelerator)
    # Opened before a new run writes anything, so that a mistyped name leaves no half-made run folder behind.
    probe = _open_probe(options, config, accelerator)
    if not resume:
        state = begin_run(
            config, corpus, run, init_from=init_from, environment=environment, processes=processes, write=main
        )  # fmt: skip
    to_device(state, accelerator.device)
    width = state.config.encoder.width
    with interruptible(reporter.on_signal) as stopped, threads_for(width, accelerator.device):
        trainer = Trainer(
            state, corpus, accelerator, run, options, spent=spent, probe=probe, warnings=warnings
        )
        loss = trainer.train(reporter, stopped)
    stopped_early = state.step < trainer.total
    return RunResult(run, state.step, trainer.total, stopped_early, loss, tuple(trainer.warnings))


def _precision(options: RunOptions, recorded: RunEnvironment | None) -> str:
    """The precision to ask Accelerate for: ``auto`` on resume means the one the run was started in."""
    device = pick_device(options.device).type
    # A GPU can do both precisions. A CPU may not be able to do the bf16 of a run that was started on a GPU, so
    # there the recorded precision counts only if the run was started on a CPU too.
    if recorded is not None and options.precision == "auto" and device in ("cuda", recorded.device):
        return recorded.precision
    return options.precision


def _warn_of_other_rounding(recorded: RunEnvironment | None, environment: RunEnvironment) -> None:
    # Not an error: resuming on another device is useful, but the run is then no longer reproducible bit for bit.
    if recorded not in (None, environment):
        msg = "started on %s, resumed on %s: numbers will be rounded differently"
        log.warning(msg, recorded, environment)


def _open_probe(
    options: RunOptions, config: PretrainConfig, accelerator: Accelerator
) -> RunProbe | None:
    """The online probe, on the main process alone: the others would compute the same accuracy again."""
    if options.probe is None or not accelerator.is_main_process:
        return None
    labelled = open_labelled_set(options.probe, points=config.encoder.points)
    return RunProbe(labelled, accelerator.device)


def _agreed(config: PretrainConfig, accelerator: Accelerator) -> PretrainConfig:
    """The main process's configuration, with the smallest batch size of any process."""
    if accelerator.num_processes == 1:
        return config
    # Each process fitted its batch to its own machine, and machines may differ in memory. All must compute the
    # same number of steps, and every one of them must have room for its share.
    everyone: list[dict[str, Any]] = gather_object([to_plain(config)])
    agreed = from_plain(PretrainConfig, everyone[0])
    smallest = min(one["batch_size"] for one in everyone)
    if smallest < agreed.batch_size and accelerator.is_main_process:
        log.warning(
            "batch: %d instead of %d, the largest that fits into every process's memory",
            smallest,
            agreed.batch_size,
        )
    return replace(agreed, batch_size=smallest)
