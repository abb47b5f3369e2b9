"""Pretraining: the loop, the run folder, interruption and resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pointdistill.engine.config import PretrainConfig
from pointdistill.engine.devices import (
    any_process,
    build_accelerator,
    gather_rows,
    mean_over_processes,
    threads_for,
)
from pointdistill.engine.interrupt import interruptible
from pointdistill.engine.loader import Batch, batches, made_ahead
from pointdistill.engine.optimizer import clip_gradients
from pointdistill.engine.run_folder import (
    CHECKPOINTS,
    ENCODER,
    TrainingCorpus,
    append_metrics,
    begin_run,
    resume_run,
    save_teacher,
)
from pointdistill.engine.schedules import Rates
from pointdistill.engine.state import TrainState, list_checkpoints, save_state, to_device
from pointdistill.errors import ConfigError, DivergenceError
from pointdistill.model.distillation import Views, objective
from pointdistill.model.masking import Masks, draw_masks
from pointdistill.model.random import KeyedRandom, sample_keys
from pointdistill.model.views import draw_views


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one optimiser step is reported as."""

    step: int
    """Steps taken, from 1."""

    total: int
    epoch: int
    batch_size: int
    loss: float
    terms: dict[str, float]
    gradient_norm: float
    learning_rate: float
    shapes_per_second: float


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a call to ``pretrain`` ended."""

    run: Path
    step: int
    total: int
    interrupted: bool
    loss: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """What does not change the numbers of a run, only how it is carried out."""

    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""

    precision: str = "auto"
    """``auto`` (bf16 on a GPU, float32 on a CPU), ``no`` or ``bf16``."""

    save_every: int = 500
    """Steps between checkpoints."""

    save_minutes: float = 10.0
    """Minutes after which a checkpoint is due whatever the steps."""

    log_every: int = 10
    """Steps between rows of ``metrics.jsonl``; the first and the last are always written."""

    stop_at: int | None = None
    """Save and return after this step, as if interrupted."""


def pretrain(
    config: PretrainConfig,
    *,
    corpus: TrainingCorpus,
    run: Path,
    resume: bool = False,
    init_from: Path | None = None,
    options: RunOptions | None = None,
    report: Callable[[StepRecord], None] | None = None,
) -> RunResult:
    """Train a student and its teacher; leave ``run/encoder`` and everything needed to go on.

    Ctrl-C and SIGTERM finish the step, save, and return with ``interrupted``. The loss and the gradient are
    checked before every step: weights never see a value that is not finite.

    Args:
        config: what is computed. On resume the run's own configuration is used instead.
        corpus: shapes to learn from, z up.
        run: folder of the run; made if absent.
        resume: go on from the newest whole checkpoint in ``run``.
        init_from: an encoder folder whose weights the student begins with.
        options: how it is carried out.
        report: called after every step.

    Raises:
        ConfigError: if ``run`` holds another run, or the corpus is too small for a batch.
        CheckpointError: if there is nothing to resume, or the corpus is not the one that was begun with.
        DivergenceError: if a loss or gradient is not finite; names the last good checkpoint.
    """
    options = options or RunOptions()
    accelerator = build_accelerator(options.device, options.precision)
    if resume:
        state, spent = resume_run(corpus, run, write=accelerator.is_main_process)
    else:
        state = begin_run(
            config, corpus, run, init_from=init_from, write=accelerator.is_main_process
        )
        spent = 0.0
    total = state.config.total_steps(len(corpus))
    to_device(state, accelerator.device)
    with interruptible() as stopped, threads_for(state.config.encoder.width, accelerator.device):
        trainer = _Trainer(state, corpus, accelerator, run, options, total, spent)
        loss = trainer.train(report, stopped)
    done = state.step >= total
    if accelerator.is_main_process:
        trainer.save()
    return RunResult(run, state.step, total, not done, loss)


def make_views(batch: Batch, config: PretrainConfig) -> Views:
    """The views and masks of a batch: a pure function of (seed, epoch, shape index)."""
    keys = sample_keys(seed=config.seed, epoch=batch.epoch, index=batch.index)
    random = KeyedRandom(keys)
    seen, _ = draw_views(
        batch.points, batch.counts, config.global_crop, random.child("global"), config.augment
    )
    local = masks = None
    if config.mode.has_cls:
        assert config.local_crop is not None
        local, _ = draw_views(
            batch.points, batch.counts, config.local_crop, random.child("local"), config.augment
        )
    if config.mode.has_patches:
        hidden = config.masking.hidden_patches(seen.centers.shape[-2])
        mask = draw_masks(seen.centers, config.masking, random)
        masks = Masks.from_bool(mask.flatten(0, -2), hidden)
    return Views(seen, local, masks, config.masking.masks_per_view)


def step_generator(device: torch.device, *parts: int) -> torch.Generator:
    """The random numbers of one step on one process (stochastic depth): seeded by ``parts`` alone."""
    seed = int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
    generator = torch.Generator(device)
    generator.manual_seed(seed)
    return generator


class _Trainer:
    """One process's part in a run."""

    def __init__(
        self,
        state: TrainState,
        corpus: TrainingCorpus,
        accelerator: Accelerator,
        run: Path,
        options: RunOptions,
        total: int,
        spent: float,
    ) -> None:
        processes = accelerator.num_processes
        if state.config.batch_size % processes:
            msg = f"batch_size {state.config.batch_size} must be a multiple of the {processes} processes"
            raise ConfigError(msg)
        self.state = state
        self.corpus = corpus
        self.accelerator = accelerator
        self.run = run
        self.options = options
        self.total = total
        self.spent = spent
        self.per_epoch = state.config.steps_per_epoch(len(corpus))
        self.saved_at = time.monotonic()
        self.student: nn.Module = accelerator.prepare_model(state.student)

    def train(
        self, report: Callable[[StepRecord], None] | None, stopped: Callable[[], bool]
    ) -> float:
        """Steps until the run's end, ``stop_at``, or a signal; the last step's loss."""
        last = min(self.total, self.options.stop_at or self.total)
        source = batches(
            self.corpus,
            batch_size=self.state.config.batch_size,
            seed=self.state.config.seed,
            first=self.state.step,
            last=last,
            part=self.accelerator.process_index,
            parts=self.accelerator.num_processes,
        )
        loss = math.nan
        began = time.perf_counter()
        for batch, views in self._with_views(source):
            record = self._step(batch, views, began)
            self.spent += time.perf_counter() - began
            began = time.perf_counter()
            loss = record.loss
            self._log(record, last)
            if report is not None:
                report(record)
            if any_process(self.accelerator, stopped()):
                break
            if self._time_to_save() and self.state.step < last:
                self.save()
        return loss

    def _with_views(self, source: Iterator[Batch]) -> Iterator[tuple[Batch, Views]]:
        """Each batch and its views: made on the GPU in their turn, on a CPU one step ahead."""
        device, config = self.accelerator.device, self.state.config

        def make(batch: Batch) -> tuple[Batch, Views]:
            moved = batch.to(device)
            return moved, make_views(moved, config)

        return made_ahead(source, make) if device.type == "cpu" else map(make, source)

    def _step(self, batch: Batch, views: Views, began: float) -> StepRecord:
        """One optimiser step; reads as section 5 of docs/method.md."""
        state, config = self.state, self.state.config
        rates = config.schedule.at(state.step, total=self.total, steps_per_epoch=self.per_epoch)
        generator = step_generator(
            self.accelerator.device, config.seed, state.step, self.accelerator.process_index
        )

        with self.accelerator.autocast():
            targets, means = state.teacher(views.global_views)
            means = {n: mean_over_processes(self.accelerator, v) for n, v in means.items()}
            if config.centers_from_first_batch and state.step == 0:
                targets = targets.recentered(state.teacher, means)
            predictions = self.student(views, generator)
        losses = objective(
            config.mode,
            predictions,
            targets,
            views.masks,
            rates.temperatures,
            gather=gather_rows(self.accelerator),
        )

        self.accelerator.backward(losses.total)
        norm = clip_gradients(self.student.parameters(), config.clip_norm)
        loss = mean_over_processes(self.accelerator, losses.total.detach())
        terms = {n: mean_over_processes(self.accelerator, v) for n, v in losses.terms.items()}
        self._refuse_nonfinite(loss, norm)
        self._update(rates, means)
        return StepRecord(
            step=state.step,
            total=self.total,
            epoch=batch.epoch,
            batch_size=config.batch_size,
            loss=loss.item(),
            terms={name: value.item() for name, value in terms.items()},
            gradient_norm=norm.item(),
            learning_rate=rates.learning_rate,
            shapes_per_second=config.batch_size / (time.perf_counter() - began),
        )

    def _update(self, rates: Rates, means: dict[str, Tensor]) -> None:
        """Optimiser, teacher, centres, clock."""
        state = self.state
        for group in state.optimizer.param_groups:
            group["lr"] = rates.learning_rate
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.teacher.follow(state.student, rates.teacher_momentum)
        first = state.config.centers_from_first_batch and state.step == 0
        state.teacher.update_centers(means, **({"momentum": 0.0} if first else {}))
        state.step += 1

    def _refuse_nonfinite(self, loss: Tensor, norm: Tensor) -> None:
        if torch.isfinite(loss) and torch.isfinite(norm):
            return
        saved = list_checkpoints(self.run / CHECKPOINTS)
        msg = (
            f"step {self.state.step + 1}: loss {loss.item():.4g}, gradient norm {norm.item():.4g}; the weights "
            f"were not changed. Last good checkpoint: {saved[-1] if saved else 'none yet'}; check the corpus "
            "with open_corpus and verify_corpus, or lower the learning rate"
        )
        raise DivergenceError(msg)

    def _log(self, record: StepRecord, last: int) -> None:
        every = self.options.log_every
        wanted = record.step % every == 0 or record.step in (1, last)
        if not (wanted and self.accelerator.is_main_process):
            return
        row = {
            "step": record.step,
            "epoch": record.epoch,
            "loss": record.loss,
            **record.terms,
            "gradient_norm": record.gradient_norm,
            "learning_rate": record.learning_rate,
            "shapes_per_second": round(record.shapes_per_second, 2),
            "seconds": round(self.spent, 3),
        }
        append_metrics(self.run, row)

    def _time_to_save(self) -> bool:
        """Every so many steps, and where steps are slow every so many minutes."""
        waited = time.monotonic() - self.saved_at
        return (
            self.state.step % self.options.save_every == 0
            or waited > 60 * self.options.save_minutes
        )

    def save(self) -> None:
        """Write a checkpoint of this step, and the teacher's encoder beside the checkpoints."""
        self.saved_at = time.monotonic()
        if not self.accelerator.is_main_process:
            return
        save_teacher(self.state, self.run / ENCODER, self.corpus)
        folder = self.run / CHECKPOINTS
        save_state(self.state, folder, {"seconds": self.spent})
