"""One optimiser step of one process: views, losses, and an update that a number that is not finite cannot reach.

Source: section 5 of docs/method.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pointdistill.engine.config import PretrainConfig
from pointdistill.engine.devices import gather_rows, mean_over_processes
from pointdistill.engine.optimizer import clip_gradients, guarded_step
from pointdistill.engine.schedules import Rates
from pointdistill.engine.training.collapse import entropies, sum_up_targets
from pointdistill.engine.training.loader import Batch
from pointdistill.engine.training.readings import StepNumbers
from pointdistill.engine.training.sharding import local_shards
from pointdistill.engine.training.state import TrainState
from pointdistill.model.distillation import (
    CENTER_MOMENTUM,
    Branch,
    Losses,
    Predictions,
    Targets,
    Teacher,
    Views,
    objective,
)
from pointdistill.model.masking import Masks, draw_masks
from pointdistill.model.random import KeyedRandom, sample_keys
from pointdistill.model.views import draw_views


def make_views(batch: Batch, config: PretrainConfig) -> Views:
    """The views and masks of a batch: a pure function of (seed, epoch, shape index)."""
    keys = sample_keys(seed=config.seed, epoch=batch.epoch, index=batch.index)
    random = KeyedRandom(keys)
    seen, _ = draw_views(
        batch.points, batch.counts, config.global_crop, random.child("global"), config.augment
    )
    local = masks = None
    if config.mode.has_cls and config.local_crop is not None:
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


class Stepper:
    """Takes the steps of a run on one process.

    Whether a step is taken is decided where it is computed: ``alive`` is 1 on the device until a loss, a gradient
    or a mean of the teacher's logits is not finite on any process, and 0 from then on. Everything that changes
    (weights, moments, teacher, centres) changes only while it is 1, so the host may learn of it later.
    """

    def __init__(
        self,
        state: TrainState,
        student: nn.Module,
        accelerator: Accelerator,
        *,
        total: int,
        per_epoch: int,
    ) -> None:
        """Train ``state`` through ``student``, which is its student as ``prepare_student`` returned it."""
        self.state = state
        self.student = student
        self.accelerator = accelerator
        self.total = total
        self.per_epoch = per_epoch
        self.alive = torch.ones((), device=accelerator.device)

    def __call__(
        self, batch: Batch, views: Views, *, watch: bool, votes: Mapping[str, bool]
    ) -> StepNumbers:
        """One step; reads as the method does. Nothing here waits for the device.

        Args:
            batch: the shapes, for their epoch and their fault.
            views: made of them.
            watch: also take the entropies of what the teacher said.
            votes: answers of this process; ``values`` will hold the share of processes that said yes.
        """
        state, config = self.state, self.state.config
        rates = config.schedule.at(state.step, total=self.total, steps_per_epoch=self.per_epoch)
        with self.accelerator.autocast():
            targets, means = state.teacher(views.global_views)
            if self._is_first_with_centers():
                means = mean_over_processes(self.accelerator, means)
                targets = targets.recentered(state.teacher, means)
            predictions = self._predict(views)
        losses = objective(
            config.mode,
            predictions,
            targets,
            views.masks,
            rates.temperatures,
            gather=gather_rows(self.accelerator),
        )
        total = losses.total if batch.fault is None else losses.total * math.nan
        total.backward()
        norm = clip_gradients(self.student.parameters(), config.clip_norm)

        shared = self._shared(total, losses, means, targets if watch else None, rates, votes)
        self._decide(shared["loss"], norm, [shared[name] for name in means])
        self._update(rates, {name: shared[name] for name in means})
        state.step += 1
        values = {name: value for name, value in shared.items() if value.ndim == 0}
        values |= entropies(shared) | {"gradient_norm": norm, "taken": self.alive.clone()}
        values["centers"] = torch.stack([shared[name].sum() for name in means]).sum()
        return StepNumbers(state.step, batch.epoch, rates, tuple(losses.terms), values, batch.fault)

    def _is_first_with_centers(self) -> bool:
        return self.state.config.centers_from_first_batch and self.state.step == 0

    def _predict(self, views: Views) -> Predictions:
        generator = step_generator(
            self.accelerator.device,
            self.state.config.seed,
            self.state.step,
            self.accelerator.process_index,
        )
        return Predictions(**self.student(views, generator))

    def _shared(
        self,
        total: Tensor,
        losses: Losses,
        means: Mapping[str, Tensor],
        watched: Targets | None,
        rates: Rates,
        votes: Mapping[str, bool],
    ) -> dict[str, Tensor]:
        """All that is averaged over processes, in one message."""
        device = self.accelerator.device
        mine = (
            {"loss": total.detach()} | {n: v.detach() for n, v in losses.terms.items()} | {**means}
        )
        if watched is not None:
            mine |= sum_up_targets(watched, rates.temperatures)
        # Filled on the device: a tensor made from a host's number would be copied there.
        mine |= {n: torch.full((), float(v), device=device) for n, v in votes.items()}
        return mean_over_processes(self.accelerator, mine)

    def _decide(self, loss: Tensor, norm: Tensor, means: list[Tensor]) -> None:
        """Whether this step and every later one may change anything; the same on all processes."""
        sound = torch.isfinite(loss) & torch.isfinite(norm)
        for mean in means:
            sound &= torch.isfinite(mean).all()
        self.alive.mul_(sound)

    def _update(self, rates: Rates, means: dict[str, Tensor]) -> None:
        """Optimiser, teacher, centres, each only while ``alive``."""
        state, alive = self.state, self.alive
        guarded_step(state.optimizer, rates.learning_rate, alive)
        follow(state.teacher, state.student, alive * (1.0 - rates.teacher_momentum))
        kept = {
            name: torch.where(alive.bool(), mean, getattr(state.teacher, name))
            for name, mean in means.items()
        }
        momentum = 0.0 if self._is_first_with_centers() else CENTER_MOMENTUM
        state.teacher.update_centers(kept, momentum=momentum)


@torch.no_grad()
def follow(teacher: Teacher, student: Branch, share: Tensor) -> None:
    """teacher ← teacher + share · (student − teacher), over encoder and heads.

    ``Teacher.follow`` with a weight that only the device knows; 0 leaves every bit as it is.
    """
    theirs = local_shards(student)
    ours = local_shards(teacher)
    difference = torch._foreach_sub([theirs[name] for name in ours], list(ours.values()))
    torch._foreach_mul_(difference, share)
    torch._foreach_add_(list(ours.values()), difference)
