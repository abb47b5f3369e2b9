"""Pretraining: begin or resume a run, train, leave an encoder and everything needed to go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pointdistill.engine.config import PretrainConfig
from pointdistill.engine.devices import build_accelerator, threads_for
from pointdistill.engine.interrupt import interruptible
from pointdistill.engine.training.journal import check_trackers
from pointdistill.engine.training.run_folder import TRACKING, TrainingCorpus, begin_run, resume_run
from pointdistill.engine.training.run_options import RunOptions
from pointdistill.engine.training.run_probe import RunProbe, open_labelled_set
from pointdistill.engine.training.state import to_device
from pointdistill.engine.training.step import make_views
from pointdistill.engine.training.trainer import StepRecord, Trainer

__all__ = ["RunOptions", "RunResult", "StepRecord", "make_views", "pretrain"]


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
    report: Callable[[StepRecord], None] | None = None,
    on_signal: Callable[[], None] | None = None,
) -> RunResult:
    """Train a student and its teacher; leave ``run/encoder`` and everything needed to go on.

    Ctrl-C and SIGTERM finish the step, save, and return with ``interrupted``. A loss or gradient that is not
    finite changes no weight, moment, centre or teacher. What a person should know meanwhile (a collapse, a
    checkpoint that could not be written) goes to the logger ``pointdistill``, a line each.

    Args:
        config: what is computed. On resume the run's own configuration is used instead.
        corpus: shapes to learn from, z up.
        run: folder of the run; made if absent.
        resume: go on from the newest whole checkpoint in ``run``.
        init_from: an encoder folder whose weights the student begins with.
        options: how it is carried out.
        report: called after every step; on a GPU, one step late.
        on_signal: called at once when a signal asks to stop, before the step is finished.

    Raises:
        ConfigError: if ``run`` holds another run, the corpus is too small for a batch, or an option cannot be had.
        CheckpointError: if there is nothing to resume, the corpus is not the one that was begun with, or the last
            checkpoint cannot be written.
        DataError: if a shape has no points or one that is not finite, or the probe's set cannot be read.
        DivergenceError: if a loss or gradient is not finite; names the last good checkpoint.
    """
    options = options or RunOptions()
    check_trackers(options.track)
    accelerator = build_accelerator(
        options.device, options.precision, track=options.track, project=run / TRACKING
    )
    main = accelerator.is_main_process
    probe, spent = None, 0.0
    if resume:
        state, spent = resume_run(corpus, run, write=main)
        config = state.config
    if options.probe is not None and main:  # before anything is written
        labelled = open_labelled_set(options.probe, points=config.encoder.points)
        probe = RunProbe(labelled, accelerator.device)
    if not resume:
        state = begin_run(config, corpus, run, init_from=init_from, write=main)
    to_device(state, accelerator.device)
    with (
        interruptible(on_signal) as stopped,
        threads_for(state.config.encoder.width, accelerator.device),
    ):
        trainer = Trainer(state, corpus, accelerator, run, options, spent=spent, probe=probe)
        loss = trainer.train(report or _ignore, stopped)
    return RunResult(run, state.step, trainer.total, state.step < trainer.total, loss)


def _ignore(_record: StepRecord) -> None:
    """Nobody asked."""
