"""The training step, from views to updated weights.

Runs, benchmarks, and the tests against the authors' numbers all go through this one implementation.
Source: section 5 of docs/method.md. Sizes: Q prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.pretraining.checkpoints import TrainState
from pointdistill.engine.pretraining.execution import (
    CompiledOrPlain,
    Recorder,
    Recording,
    Replay,
    StepCompiler,
)
from pointdistill.engine.pretraining.loader import Batch
from pointdistill.engine.pretraining.monitor import DeviceMetrics, StepOutcome
from pointdistill.engine.runtime.devices import gather_rows, mean_over_processes
from pointdistill.engine.runtime.optimizer import (
    clip_gradients,
    guarded_step,
    move_towards,
    update_average,
)
from pointdistill.engine.runtime.schedules import Rates
from pointdistill.model.config import Temperatures
from pointdistill.model.distillation import (
    CENTER_MOMENTUM,
    Head,
    Losses,
    SeenAs,
    TeacherOutput,
    Views,
    objective,
)
from pointdistill.model.losses import PosteriorStats, posterior_stats
from pointdistill.model.masking import Masks, draw_masks
from pointdistill.model.random import KeyedRandom, sample_keys
from pointdistill.model.transformer import DepthDraws
from pointdistill.model.views import draw_views


def make_views(batch: Batch, config: PretrainConfig) -> Views:
    """The views and masks of a batch: a function of points, configuration, and (seed, epoch, shape index)."""
    return views_of(batch.points, batch.counts, batch.index, batch.epoch, config=config)


def views_of(
    points: Tensor, counts: Tensor, index: Tensor, epoch: int | Tensor, *, config: PretrainConfig
) -> Views:
    """``make_views`` of a batch's parts; compiled code needs the epoch as a tensor, since it changes."""
    # Each shape has a random stream of its own, so its views do not depend on the batch or the process it is in.
    random = KeyedRandom(sample_keys(seed=config.seed, epoch=epoch, index=index))
    global_views, _ = draw_views(
        points, counts, config.global_crop, random.child("global"), config.augment
    )
    local_views = masks = None
    if config.mode.has_cls and config.local_crop is not None:
        local_views, _ = draw_views(
            points, counts, config.local_crop, random.child("local"), config.augment
        )
    if config.mode.has_patches:
        hidden = config.masking.hidden_patches(global_views.centers.shape[-2])
        mask = draw_masks(global_views.centers, config.masking, random)
        masks = Masks.from_bool(mask.flatten(0, -2), hidden)
    return Views(global_views, local_views, masks)


class StopAndSaveFlags(NamedTuple):
    """Whether a process wants to stop, or to save, after a step. All processes do so as soon as one wants it."""

    stop: bool = False
    save: bool = False


class StepMessage(NamedTuple):
    """Everything that processes exchange about a step; every entry is averaged over them."""

    # One tensor is sent in all. Most entries are single numbers, for which a collective costs latency, not
    # bandwidth.
    loss: Tensor  # scalar
    terms: dict[str, Tensor]  # scalars, unweighted, by the name of the loss term
    logit_means: dict[Head, Tensor]  # (Q,) teacher's raw logits, averaged over all other axes
    posteriors: dict[Head, PosteriorStats]  # of the teacher; empty unless the step is watched
    unreadable: Tensor  # scalar, share of processes that could not read their shapes
    stop: Tensor  # scalar, share of processes that want to stop
    save: Tensor  # scalar, share of processes that want a checkpoint

    def averaged(self, accelerator: Accelerator) -> StepMessage:
        """The message with every entry averaged over all processes."""
        # A tuple of scalars, dictionaries and records flattens to the same order of tensors on every process,
        # since all of them are in the same mode and watch the same steps.
        tensors, layout = pytree.tree_flatten(self)
        message: StepMessage = pytree.tree_unflatten(
            mean_over_processes(accelerator, tensors), layout
        )
        return message


class StepInputs(NamedTuple):
    """All that differs from one step to the next, and that is not in the state.

    Tensors, in a step whose kernels are recorded, since it reads what it is given then from where it is.
    """

    views: Views
    draws: dict[SeenAs, list[DepthDraws]]
    learning_rate: float | Tensor
    teacher_share: float | Tensor  # 1 - momentum: of the student's weights in the teacher's
    temperatures: Temperatures
    unreadable: float | Tensor  # 1 if this process could not read its shapes


class StepOutputs(NamedTuple):
    """What a step computed; its changes are in the state."""

    losses: Losses
    targets: TeacherOutput
    means: dict[Head, Tensor]
    norm: Tensor


CLOSE_ENOUGH = 0.01
"""How far, relatively, loss and gradient norm may be from those of the step as it was before it was recorded: bf16
and sums in another order differ by less."""


class TrainingStep:
    """Takes the steps of a run on one process, without ever making the host wait for the device.

    Whether a step may change anything is decided on the device: ``all_finite`` is 1 until, on any process, a loss,
    a gradient or a mean of the teacher's logits is not finite, or shapes could not be read; then it stays 0.
    Weights, moments, teacher and centres change only while it is 1, so it does no harm that the host learns of a
    bad step later than the device.
    """

    def __init__(
        self,
        state: TrainState,
        student: nn.Module,
        accelerator: Accelerator,
        compiler: StepCompiler | None = None,
    ) -> None:
        """Prepare to train.

        Args:
            state: what the steps update.
            student: the state's student as ``prepare_student`` returned it.
            accelerator: this process's device and its connection to the others.
            compiler: compiles student, teacher and objective; None to run them as plain PyTorch.
        """
        self.compiler = compiler or StepCompiler()
        self.compiler.module(state.student)
        self.compiler.module(state.teacher)
        self.compiled_objective = (
            self.compiler.function(objective) if self.compiler.active else None
        )
        self._move = CompiledOrPlain(
            move_towards,
            self.compiler.function(move_towards) if self.compiler.active else None,
            "the teacher's average is",
        )
        self.state = state
        self.student = student
        self.accelerator = accelerator
        self.all_finite = torch.ones((), device=accelerator.device)
        self._replay = Replay(self.compiler.recorder, "step's")

    def __call__(
        self,
        batch: Batch,
        views: Views,
        rates: Rates,
        *,
        watch: bool = False,
        stop_and_save_flags: StopAndSaveFlags = StopAndSaveFlags(),  # noqa: B008 (it is immutable)
    ) -> DeviceMetrics:
        """Take one step, in the order of the method.

        Args:
            batch: the shapes; only their epoch and read error are used here.
            views: the views and masks made of them.
            rates: the schedules' values for this step.
            watch: also compute the entropies of the teacher's posteriors.
            stop_and_save_flags: whether this process wants to stop or save after the step.
        """
        outputs = self._replayed(batch, views, rates)
        replayed = outputs is not None
        if outputs is None:
            inputs = self._inputs(batch, views, rates)
            outputs = self.compiler.first_time(
                lambda: self._gradients(inputs), undo=self.state.optimizer.zero_grad
            )
        # Everything that the processes must agree on travels in one message, after the backward pass and before
        # anything is changed. What is replayed belongs to a single process, and has changed the state already.
        message = self._message(outputs, rates, watch, batch, stop_and_save_flags)
        if not replayed:
            self._apply(inputs, message.loss, message.logit_means, outputs.norm, message.unreadable)
        self.state.step += 1
        return self._metrics(batch, rates, message, outputs.norm)

    def _inputs(
        self, batch: Batch, views: Views, rates: Rates, *, recorded: bool = False
    ) -> StepInputs:
        """The inputs of the next step; ``recorded`` if its kernels are, which read numbers on the device."""
        device = self.accelerator.device

        def number(value: float, *, compiled: bool = False) -> float | Tensor:
            if recorded:
                return torch.full((), value, device=device)
            return self.compiler.number(value, device) if compiled else value

        return StepInputs(
            views,
            self.state.student.draw_depth(views, self._generator()),
            learning_rate=number(rates.learning_rate),
            teacher_share=number(1.0 - rates.teacher_momentum),
            temperatures=Temperatures(
                *(number(value, compiled=True) for value in astuple(rates.temperatures))
            ),
            unreadable=number(float(batch.read_error is not None)),
        )

    def _replayed(self, batch: Batch, views: Views, rates: Rates) -> StepOutputs | None:
        """Take the step by its recorded kernels; None, with nothing done, if it has to be taken without."""
        if self.compiler.recorder is None:
            return None
        # The step that takes the first centres is a run's first, which is never recorded.
        outputs: StepOutputs | None = self._replay(
            lambda: self._inputs(batch, views, rates, recorded=True),
            self._recorded,
            undo=self.state.optimizer.zero_grad,
        )
        if outputs is None:
            return None
        # Copies, since the next step's numbers take the place of these before a caller may have read them. Not of
        # the targets, which are large and read at once.
        kept = pytree.tree_map(torch.clone, (outputs.losses.total, outputs.losses.terms))
        means = {head: mean.clone() for head, mean in outputs.means.items()}
        return outputs._replace(losses=Losses(*kept), means=means, norm=outputs.norm.clone())

    def _recorded(self, inputs: StepInputs, recorder: Recorder) -> Recording:
        """The recording of a step.

        Raises:
            ValueError: if it computes other numbers than the step itself.
        """

        def take(inputs: StepInputs) -> StepOutputs:
            outputs = self._gradients(inputs)
            self._apply(
                inputs, outputs.losses.total, outputs.means, outputs.norm, inputs.unreadable
            )
            return outputs

        # Both computations of the check are told that the shapes could not be read, so neither changes anything.
        trial = inputs._replace(unreadable=torch.ones_like(self.all_finite))
        before = self.all_finite.clone()
        try:
            expected = _key_numbers(recorder.warm(lambda: take(trial)))
            recording = Recording(take, trial, recorder)
            found = _key_numbers(recording(trial))
        finally:
            self.all_finite.copy_(before)
        if not np.allclose(found, expected, rtol=CLOSE_ENOUGH, equal_nan=True):
            msg = f"recorded, they compute {found} instead of {expected} (loss, gradient norm)"
            raise ValueError(msg)
        return recording

    def _gradients(self, inputs: StepInputs) -> StepOutputs:
        """Compute the losses and the student's gradients, clipped."""
        state = self.state
        with self.accelerator.autocast():
            targets, means = self._targets(inputs.views)
            predictions = self.student(inputs.views, inputs.draws)
        gathered = None
        if predictions.cls is not None and self.accelerator.num_processes > 1:
            gathered = gather_rows(self.accelerator, predictions.cls.features)
        losses = (self.compiled_objective or objective)(
            predictions,
            targets,
            inputs.temperatures,
            koleo_weight=state.config.koleo_weight,
            gathered=gathered,
        )
        # The logits are the largest tensors of a step. Their gradients take their place only if nothing else holds
        # them during the backward pass.
        del predictions, gathered
        # A process that could not read its shapes computes on placeholders all the same, because the others wait
        # for it in every collective, the gradients' among them.
        losses.total.backward()
        terms = {name: value.detach() for name, value in losses.terms.items()}
        norm = clip_gradients(self.student.parameters(), state.config.clip_norm)
        return StepOutputs(Losses(losses.total.detach(), terms), targets, means, norm)

    def _targets(self, views: Views) -> tuple[TeacherOutput, dict[Head, Tensor]]:
        """The teacher's output with its centres, and each head's mean raw logits (Q,) on this process."""
        # Targets are centred on the moving average that the steps before left, not on this step's own mean. Only
        # the first step of a run with ``centers_from_first_batch`` has no such average yet, and uses its own
        # batch's mean over all processes.
        raw = self.state.teacher(views.global_views)
        means = {
            head: logits.mean((0, 1), dtype=torch.float32) for head, logits in raw.logits.items()
        }
        # Copies, since a recorded step moves the centres before the posteriors are looked at.
        centers = {head: self.state.teacher.centers[head].clone() for head in means}
        if self._takes_first_centers():
            averaged = mean_over_processes(self.accelerator, list(means.values()))
            centers = dict(zip(means, averaged, strict=True))
        return raw._replace(centers=centers), means

    def _takes_first_centers(self) -> bool:
        return self.state.config.centers_from_first_batch and self.state.step == 0

    def _generator(self) -> torch.Generator:
        """Random numbers for stochastic depth in one step on one process."""
        # Derived from seed, step and process alone, so that a resumed run draws what an uninterrupted one would
        # have drawn, and no generator has to be part of a checkpoint.
        parts = (self.state.config.seed, self.state.step, self.accelerator.process_index)
        seed = int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
        return torch.Generator(self.accelerator.device).manual_seed(seed)

    def _message(
        self,
        outputs: StepOutputs,
        rates: Rates,
        watch: bool,
        batch: Batch,
        flags: StopAndSaveFlags,
    ) -> StepMessage:
        def flag(value: bool) -> Tensor:
            # ``torch.full`` fills on the device. ``torch.tensor`` would copy a number from the host, and wait for
            # it.
            return torch.full((), float(value), device=self.accelerator.device)

        return StepMessage(
            loss=outputs.losses.total,
            terms=outputs.losses.terms,
            logit_means=outputs.means,
            posteriors=_posteriors(outputs.targets, rates) if watch else {},
            unreadable=flag(batch.read_error is not None),
            stop=flag(flags.stop),
            save=flag(flags.save),
        ).averaged(self.accelerator)

    def _apply(
        self,
        inputs: StepInputs,
        loss: Tensor,
        means: Mapping[Head, Tensor],
        norm: Tensor,
        unreadable: float | Tensor,
    ) -> None:
        """Update student, teacher and centres, each only while ``all_finite`` is 1.

        Sets that to 0 if this step must not be applied; the decision is the same on all processes.
        """
        # The same everywhere, because it looks only at numbers that are averaged over processes: one process's NaN
        # makes the average NaN. The gradients' norm is of gradients that DDP or FSDP has averaged already.
        finite = torch.isfinite(loss) & torch.isfinite(norm) & (unreadable == 0)
        for mean in means.values():
            # Those of visible patches reach no loss, but they do reach the centres.
            finite &= torch.isfinite(mean).all()
        self.all_finite.mul_(finite)
        state, applied = self.state, self.all_finite
        guarded_step(state.optimizer, inputs.learning_rate, applied)
        # After the optimiser, since the teacher averages the student's updated weights.
        share = applied * inputs.teacher_share
        with self.compiler.running():
            update_average(state.teacher, state.student, share, move=self._move)
        momentum = 0.0 if self._takes_first_centers() else CENTER_MOMENTUM
        for head, mean in means.items():
            center = state.teacher.centers[head]
            # Selected, not multiplied by ``applied``: 0 · NaN is NaN.
            center.lerp_(torch.where(applied.bool(), mean, center), 1.0 - momentum)

    def _metrics(
        self, batch: Batch, rates: Rates, message: StepMessage, norm: Tensor
    ) -> DeviceMetrics:
        outcome = StepOutcome(
            # A copy, because the next step may change the original before the host has read it.
            applied=self.all_finite.clone(),
            stop=message.stop,
            save=message.save,
            unreadable=message.unreadable,
            logit_sum=torch.stack([mean.sum() for mean in message.logit_means.values()]).sum(),
        )
        logged = {"loss": message.loss, **message.terms, **entropies(message.posteriors)}
        return DeviceMetrics(
            step=self.state.step,
            epoch=batch.epoch,
            rates=rates,
            terms=tuple(message.terms),
            logged=logged | {"gradient_norm": norm},
            outcome=outcome,
            read_error=batch.read_error,
        )


def _key_numbers(outputs: StepOutputs) -> tuple[float, float]:
    """Loss and gradient norm, for which the host waits."""
    return outputs.losses.total.item(), outputs.norm.item()


def _posteriors(targets: TeacherOutput, rates: Rates) -> dict[Head, PosteriorStats]:
    temperatures = {
        Head.CLS: rates.temperatures.cls_teacher,
        Head.PATCH: rates.temperatures.patch_teacher,
    }
    return {
        head: posterior_stats(targets.centered_logits(head), temperatures[head])
        for head in targets.logits
    }


def entropies(posteriors: Mapping[Head, PosteriorStats]) -> dict[str, Tensor]:
    """Entropies of the marginal and of the posteriors as scalars to log, in nats and as shares of log Q."""
    values = {
        f"{head}_posterior_entropy": stats.posterior_entropy for head, stats in posteriors.items()
    }
    for head, stats in posteriors.items():
        largest = math.log(len(stats.marginal))
        # ``stats`` are averaged over processes already. The entropy of the averaged marginal is what counts: the
        # average of the processes' entropies would be lower, since each sees only a part of the batch.
        marginal = torch.special.entr(stats.marginal).sum()
        values[f"{head}_marginal_entropy"] = marginal
        values[f"{head}_marginal_share"] = marginal / largest
        values[f"{head}_posterior_share"] = stats.posterior_entropy / largest
    return values
