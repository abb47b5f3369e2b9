"""The training loop that classifiers and segmenters share: order, schedule, noise, tests, saving and resuming.

The model and its data are a ``Task``, implemented in ``classification`` and ``segmentation``.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from pointdistill.data.files.files import disk_is_full
from pointdistill.engine.features.inputs import ProtocolInput
from pointdistill.engine.features.probe_heads import split_batches
from pointdistill.engine.finetuning.training_file import (
    Progress,
    TrainingFile,
    read_progress,
    write_progress,
)
from pointdistill.engine.runtime.devices import Products, gpu_products, threads_for
from pointdistill.engine.runtime.optimizer import build_optimizer
from pointdistill.errors import ConfigError, DivergenceError
from pointdistill.model.classifier import Classifier
from pointdistill.model.random import KeyedRandom, sample_keys
from pointdistill.model.segmenter import Segmenter

log = logging.getLogger("pointdistill")

STREAM = "supervised"
"""Prefix of the names of all random streams of supervised training."""


@dataclass(frozen=True, slots=True)
class Figures:
    """A model's accuracy or mIoU on the test split, in percent."""

    overall: float
    """Overall accuracy, or instance mIoU; the best epoch is the one where this is highest."""

    class_mean: float
    """Mean class accuracy, or class mIoU."""


@dataclass(frozen=True, slots=True)
class SelectedEpoch:
    """The epoch that was best on clouds held out of the training split; the last of several equally good ones."""

    # The last: small sets have many ties, and the later of two equal epochs has trained for longer.

    overall: float
    """Overall figure on the test split after it, in percent. Unlike that of the best epoch it is a result."""

    epoch: int
    """Counted from 1."""


class Schedule(Protocol):
    """Length, batch size and rates of a training; ``ClassifierRecipe`` and ``SegmenterRecipe`` are schedules."""

    @property
    def epochs(self) -> int:
        """Passes over the training data."""

    @property
    def batch_size(self) -> int:
        """Clouds per step."""

    @property
    def weight_decay(self) -> float:
        """Weight decay of every trained parameter."""

    @property
    def peak_learning_rate(self) -> float:
        """Highest learning rate, for the message about a loss that is not finite."""

    def frozen_steps(self, total: int) -> int:
        """How many of the first steps, of ``total``, leave the encoder unchanged."""

    def learning_rate(self, step: int, *, total: int) -> float:
        """Learning rate at optimiser step ``step``, from 0, of ``total``."""


class Task(Protocol):
    """A model together with its training and test data."""

    @property
    def model(self) -> Classifier | Segmenter:
        """The model, with its encoder, on the training device."""

    @property
    def count(self) -> int:
        """Number of training clouds."""

    @property
    def inputs(self) -> ProtocolInput:
        """How clouds are prepared for the model."""

    def loss(self, index: Tensor, *, epoch: int, noise: torch.Generator) -> Tensor:
        """Mean loss of a batch of training clouds in nats; a scalar with gradient.

        Args:
            index: (B,) int64, on the model's device.
            epoch: counted from 0; decides together with the index how a cloud is augmented.
            noise: random numbers for dropout and stochastic depth.
        """

    def measure(self) -> Figures:
        """The model's figures on the test split; restores the model's training mode."""

    def measure_held_out(self) -> float | None:
        """The overall figure on clouds held out of the training split; None if there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One epoch of training, for a progress report."""

    epoch: int
    """Counted from 1."""

    epochs: int
    loss: float
    """Mean over the training clouds of this epoch's batches, in nats."""

    accuracy: float
    """Overall accuracy, or instance mIoU of parts, on the test clouds after this epoch, in percent."""

    learning_rate: float
    """Learning rate of the epoch's last step."""

    clouds_per_second: float
    """Training clouds per second, without the time of the tests."""


@dataclass(frozen=True, slots=True)
class Trained:
    """The outcome of a training."""

    finished: bool
    """False if the training was stopped; its state is then in its training file."""

    epochs: int
    """Number of completed epochs."""

    last: Figures | None
    """Figures after the last completed epoch; None before the first."""

    best_overall: float
    """Highest overall figure of any epoch. It was chosen on the test split, so it is an upper bound, no result."""

    best_epoch: int
    """The first epoch that reached it, counted from 1."""

    selected: SelectedEpoch | None = None
    """The epoch chosen on clouds held out of the training split; None if there are none."""


def train_epochs(
    task: Task,
    schedule: Schedule,
    *,
    seed: int,
    epochs: int | None = None,
    report: Callable[[EpochRecord], None] | None = None,
    file: TrainingFile | None = None,
    products: Products = "tf32",
) -> Trained:
    """Train for all epochs, and test after each of them.

    On a CPU the same seed gives the same weights, whether the training was interrupted or not. Everything random
    depends only on the seed and the step, or on (seed, epoch, index), so a training file holds no random state.

    Args:
        task: its model is trained in place, and left in evaluation mode.
        schedule: learning rate, frozen steps, batch size and weight decay.
        seed: seed of the order of clouds, dropout and stochastic depth.
        epochs: overrides the schedule's, which is shortened in proportion.
        report: called after every epoch.
        file: where to save the training state; if the file exists, training resumes from it.
        products: how a GPU multiplies matrices. What TF32 changes is far less than what the order of clouds does.

    Raises:
        ConfigError: if ``epochs`` is below 1.
        CheckpointError: if ``file`` exists and does not fit the model, or was written with other settings.
        DivergenceError: if a loss is not finite; detected at the end of an epoch and before anything is saved.
    """
    if epochs is not None and epochs < 1:
        msg = f"epochs must be at least 1, got {epochs}"
        raise ConfigError(msg)
    loop = _Loop(task, schedule, seed, epochs or schedule.epochs, report, file)
    with (
        threads_for(task.model.encoder.config.width, loop.device),
        gpu_products(products, loop.device),
    ):
        return loop.run()


@dataclass
class _Loop:
    """One call of ``train_epochs``: its arguments, and the state that changes from step to step."""

    task: Task
    schedule: Schedule
    seed: int
    epochs: int
    report: Callable[[EpochRecord], None] | None
    file: TrainingFile | None
    progress: Progress = field(init=False)

    def __post_init__(self) -> None:
        model = self.task.model.requires_grad_(requires_grad=True)
        self.device = device_of(model)
        self.optimizer = build_optimizer(
            model, learning_rate=0.0, weight_decay=self.schedule.weight_decay
        )
        batches = split_batches(torch.arange(self.task.count), self.schedule.batch_size)
        self.per_epoch, self.clouds_per_epoch = len(batches), sum(map(len, batches))
        self.total = self.epochs * self.per_epoch
        self.frozen = self.schedule.frozen_steps(self.total)
        self.noise = torch.Generator(self.device)
        self.progress = Progress(loss_sum=torch.zeros((), device=self.device))
        # A fingerprint of everything that decides the result, so that a training is not resumed with other
        # settings. All parts are frozen dataclasses of numbers and names, so equal settings have equal reprs.
        settings = (self.schedule, self.task.inputs, self.seed, self.epochs, self.task.count)
        self.settings = hashlib.sha256(repr(settings).encode()).hexdigest()
        if self.file is not None and self.file.path.exists():
            read_progress(
                self.file.path, self.progress, model, self.optimizer, settings=self.settings
            )

    def run(self) -> Trained:
        """Train the remaining epochs."""
        finished = True
        while finished and self.progress.step < self.total:
            epoch, first = divmod(self.progress.step, self.per_epoch)
            finished = self._run_epoch(epoch, first)
        self.task.model.eval()
        done = self.progress.step // self.per_epoch
        return Trained(
            finished=finished,
            epochs=done,
            last=Figures(self.progress.overall, self.progress.class_mean) if done else None,
            best_overall=self.progress.best_overall,
            best_epoch=self.progress.best_epoch,
            selected=self._selected(),
        )

    def _run_epoch(self, epoch: int, first: int) -> bool:
        """Train one epoch from its ``first`` step on; returns False if it was stopped."""
        began, clouds = time.perf_counter(), 0
        # Sorting random keys shuffles the clouds on the device, the same on any device and after a resume.
        order = sample_keys(
            seed=self.seed, epoch=epoch, index=torch.arange(self.task.count, device=self.device)
        ).argsort()
        for index in split_batches(order, self.schedule.batch_size)[first:]:
            self._step(index, epoch)
            clouds += len(index)
            if self.progress.step % self.per_epoch and not self._save_if_due(epoch):
                return False
        self._finish_epoch(epoch, clouds / (time.perf_counter() - began))
        return self._save_if_due(epoch)

    def _step(self, index: Tensor, epoch: int) -> None:
        """Take one optimiser step on the clouds at ``index`` (B,)."""
        model, step = self.task.model, self.progress.step
        trains_encoder = step >= self.frozen
        # A frozen encoder is in evaluation mode, and so without stochastic depth.
        model.train().encoder.train(trains_encoder)
        # The optimiser skips parameters without a gradient, so a frozen encoder is not decayed either.
        model.encoder.requires_grad_(requires_grad=trains_encoder)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(step, total=self.total)
        # Reseeded at every step, so that a resumed training needs no generator state.
        self.noise.manual_seed(_random_number(self.seed, "noise", step))
        loss = self.task.loss(index, epoch=epoch, noise=self.noise)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        # Summed on the device: reading the loss of every step would make the host wait for a GPU.
        self.progress.loss_sum += len(index) * loss.detach()
        self.progress.step += 1

    def _finish_epoch(self, epoch: int, speed: float) -> None:
        """Test the model, update the best epoch, and report."""
        loss = self._finite_loss(epoch) / self.clouds_per_epoch
        self.progress.loss_sum.zero_()
        figures = self.task.measure()
        self.progress.overall, self.progress.class_mean = figures.overall, figures.class_mean
        if figures.overall > self.progress.best_overall:
            self.progress.best_overall, self.progress.best_epoch = figures.overall, epoch + 1
        held_out = self.task.measure_held_out()
        if held_out is not None and held_out >= self.progress.held_out_best:
            self.progress.held_out_best = held_out
            self.progress.selected_overall = figures.overall
            self.progress.selected_epoch = epoch + 1
        if self.report is not None:
            record = EpochRecord(
                epoch=epoch + 1,
                epochs=self.epochs,
                loss=loss,
                accuracy=figures.overall,
                learning_rate=self.optimizer.param_groups[0]["lr"],
                clouds_per_second=speed,
            )
            self.report(record)

    def _selected(self) -> SelectedEpoch | None:
        if not self.progress.selected_epoch:
            return None
        return SelectedEpoch(self.progress.selected_overall, self.progress.selected_epoch)

    def _finite_loss(self, epoch: int) -> float:
        """The sum of the losses of this epoch so far.

        Raises:
            DivergenceError: if it is not finite.
        """
        loss = self.progress.loss_sum.item()
        if not math.isfinite(loss):
            msg = (
                f"epoch {epoch + 1} of {self.epochs}: the loss is {loss}; lower the recipe's "
                f"peak_learning_rate ({self.schedule.peak_learning_rate}), or look for damaged clouds"
            )
            raise DivergenceError(msg)
        return loss

    def _save_if_due(self, epoch: int) -> bool:
        """Save the training if that is due or a stop was requested; returns False in the latter case."""
        if self.file is None:
            return True
        stopping = self.file.stop() and self.progress.step < self.total
        if stopping or self.file.is_due():
            # Raises before weights that diverged replace good ones on disk.
            self._finite_loss(epoch)
            try:
                write_progress(
                    self.file.path,
                    self.progress,
                    self.task.model,
                    self.optimizer,
                    settings=self.settings,
                )
            except OSError as error:
                if stopping or not disk_is_full(error):
                    raise
                msg = "%s: no space left on the disk; training continues, and is saved later"
                log.warning(msg, self.file.path)
            self.file.written()
        return not stopping


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's weights."""
    return next(module.parameters()).device


def weights_generator(seed: int) -> torch.Generator:
    """The generator that draws a model's new weights, on the CPU."""
    return torch.Generator().manual_seed(_random_number(seed, "weights", 0))


def _random_number(seed: int, purpose: str, index: int) -> int:
    """64 random bits, independent for each seed, purpose and index."""
    keys = sample_keys(seed=seed, epoch=0, index=torch.tensor([index]))
    return int(KeyedRandom(keys, STREAM).bits(purpose))
