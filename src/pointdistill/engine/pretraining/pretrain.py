"""Pretraining: begin or resume a run, train, leave an encoder and everything needed to go on."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from pointdistill.engine.config.config import PretrainConfig, from_plain, to_plain
from pointdistill.engine.pretraining.monitor import check_trackers
from pointdistill.engine.pretraining.online_probe import RunProbe, open_labelled_set
from pointdistill.engine.pretraining.run_folder import (
    TRACKING,
    RunEnvironment,
    TrainingCorpus,
    begin_run,
    read_run_environment,
    resume_run,
)
from pointdistill.engine.pretraining.state import to_device
from pointdistill.engine.pretraining.step import make_views
from pointdistill.engine.pretraining.trainer import RunOptions, Trainer
from pointdistill.engine.runtime.devices import (
    build_accelerator,
    interruptible,
    pick_device,
    threads_for,
)
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


def pretrain(
    config: PretrainConfig,
    *,
    corpus: TrainingCorpus,
    run: Path,
    resume: bool = False,
    init_from: Path | None = None,
    options: RunOptions | None = None,
    reporter: TrainingReporter = SILENT_TRAINING,
) -> RunResult:
    """Train a student and its teacher; leave ``run/encoder`` and everything needed to go on.

    Ctrl-C and SIGTERM finish the step, save, and return with ``interrupted``. A loss or gradient that is not
    finite changes no weight, moment, centre or teacher. What a person should know meanwhile (a collapse, a
    checkpoint that could not be written) goes to the logger ``pointdistill``, a line each.

    Args:
        config: what is computed; of several processes the main one's, with the smallest batch of any. On resume
            the run's own is used instead.
        corpus: shapes to learn from, z up.
        run: folder of the run; made if absent.
        resume: go on from the newest whole checkpoint in ``run``.
        init_from: an encoder folder whose weights the student begins with.
        options: how it is executed.
        reporter: told of every step, on a GPU one step late; and at once of a signal, before the step is finished.

    Raises:
        ConfigError: if ``run`` holds another run, the corpus is too small for a batch, the processes cannot share
            one, or an option cannot be had.
        CheckpointError: if there is nothing to resume, the corpus is not the one that was begun with, or the last
            checkpoint cannot be written.
        DataError: if a shape has no points or one that is not finite, or the probe's set cannot be read.
        DivergenceError: if a loss or gradient is not finite; names the last good checkpoint.
    """
    options = options or RunOptions()
    check_trackers(options.track)
    before = read_run_environment(run) if resume else None
    precision = options.precision
    here = pick_device(options.device).type
    # A run keeps its precision, but a CPU may not have what was begun on a GPU; a GPU has both.
    if before is not None and precision == "auto" and here in ("cuda", before.device):
        precision = before.precision
    accelerator = build_accelerator(
        options.device, precision, track=options.track, project=run / TRACKING
    )
    now = RunEnvironment(device=accelerator.device.type, precision=accelerator.mixed_precision)
    main, processes = accelerator.is_main_process, accelerator.num_processes
    probe, spent = None, 0.0
    if resume:
        state, spent = resume_run(corpus, run, processes=processes, write=main)
        config = state.config
        if before not in (None, now) and main:
            log.warning("begun on %s, goes on on %s: numbers are rounded differently", before, now)
    else:
        config = _agreed(config, accelerator)
    if options.probe is not None and main:  # before anything is written
        labelled = open_labelled_set(options.probe, points=config.encoder.points)
        probe = RunProbe(labelled, accelerator.device)
    if not resume:
        state = begin_run(
            config,
            corpus,
            run,
            init_from=init_from,
            environment=now,
            processes=processes,
            write=main,
        )
    to_device(state, accelerator.device)
    with (
        interruptible(reporter.on_signal) as stopped,
        threads_for(state.config.encoder.width, accelerator.device),
    ):
        trainer = Trainer(state, corpus, accelerator, run, options, spent=spent, probe=probe)
        loss = trainer.train(reporter, stopped)
    return RunResult(run, state.step, trainer.total, state.step < trainer.total, loss)


def _agreed(config: PretrainConfig, accelerator: Accelerator) -> PretrainConfig:
    """The main process's configuration with the smallest batch of any: their machines may differ in memory."""
    if accelerator.num_processes == 1:
        return config
    everyone: list[dict[str, Any]] = gather_object([to_plain(config)])
    agreed = from_plain(PretrainConfig, everyone[0])
    smallest = min(one["batch_size"] for one in everyone)
    if smallest < agreed.batch_size and accelerator.is_main_process:
        log.warning(
            "batch: %d instead of %d, the most that every process has memory for",
            smallest,
            agreed.batch_size,
        )
    return replace(agreed, batch_size=smallest)
