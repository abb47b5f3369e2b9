"""A training step compared with the usual implementation, and what each difference contributes.

The usual implementation is what a competent user writes in eager PyTorch: patches embedded once per view, visible
tokens only, ``nn.MultiheadAttention`` without weights, the teacher under ``no_grad``. Each row of the table
replaces one more part with ours. All variants train their own copies of one initial model on the same views, in
turn, and their losses must agree. On a CPU the last two rows repeat the first and the last with freed memory kept,
as in training.

Every variant is the production step, ``TrainingStep``, with some parts replaced; the last one is unchanged.

Run: ``python benchmarks/step.py [--size small] [--batch 8] [--threads 2] [--rounds 5] [--device cpu]``
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pointdistill.engine.config.recipes import recipe
from pointdistill.engine.pretraining import step as step_module
from pointdistill.engine.pretraining.checkpoints import TrainState, new_state, to_device
from pointdistill.engine.pretraining.execution import prepare_student
from pointdistill.engine.pretraining.loader import Batch
from pointdistill.engine.pretraining.step import TrainingStep, make_views
from pointdistill.engine.runtime.devices import build_accelerator, keep_freed_memory
from pointdistill.engine.runtime.schedules import Rates
from pointdistill.model import distillation
from pointdistill.model.distillation import Views
from pointdistill.model.encoder import PatchEmbedding
from pointdistill.model.transformer import NORM_EPS, Attention, Layout, RMSNorm

POINTS = 16_384
MOMENTUM = 0.995
LEARNING_RATE = 1e-4


def usual_embedding(self: PatchEmbedding, offsets: Tensor) -> Tensor:
    """Patch embedding that concatenates features and their maximum, and multiplies the whole."""
    local = self.stage_one(offsets)
    summary = local.amax(-2, keepdim=True).expand_as(local)
    return self.stage_two(torch.cat([local, summary], -1)).amax(-2)


def usual_attention(
    self: Attention, queries: Tensor, memory: Tensor | None = None, *, layout: Layout | None = None
) -> Tensor:
    """What ``nn.MultiheadAttention(batch_first=True, need_weights=False)`` calls."""
    assert layout is None
    query = queries.transpose(0, 1)
    other = query if memory is None else memory.transpose(0, 1)
    mixed, _ = functional.multi_head_attention_forward(
        query,
        other,
        other,
        queries.shape[-1],
        self.heads,
        self.query_key_value.weight,
        None,
        None,
        None,
        False,
        0.0,
        self.project.weight,
        None,
        need_weights=False,
    )
    return mixed.transpose(0, 1)


def usual_norm(self: RMSNorm, x: Tensor) -> Tensor:
    return functional.rms_norm(x, self.normalized_shape, self.weight, NORM_EPS)


def usual_loss(
    student_logits: Tensor,
    teacher_probs: Tensor,
    target_index: Tensor,
    *,
    student_temperature: float,
) -> Tensor:
    log_probs = (student_logits.float() / student_temperature).log_softmax(-1)
    return -(teacher_probs[target_index] * log_probs).sum(-1).mean()


@torch.no_grad()
def usual_average(average: nn.Module, module: nn.Module, share: Tensor, **_: object) -> None:
    theirs = dict(module.named_parameters())
    for name, ours in average.named_parameters():
        ours.add_((theirs[name] - ours) * share)


def usual_optimizer_step(
    optimizer: torch.optim.AdamW, learning_rate: float, _applied: Tensor
) -> None:
    """Clip and step without a check: a value that is not finite would reach the weights."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@contextlib.contextmanager
def usual_update() -> Iterator[None]:
    with (
        patch.object(step_module, "update_average", usual_average),
        patch.object(step_module, "guarded_step", usual_optimizer_step),
    ):
        yield


USUAL = {
    "patch embedding": lambda: patch.object(PatchEmbedding, "forward", usual_embedding),
    "attention": lambda: patch.object(Attention, "forward", usual_attention),
    "norm": lambda: patch.object(RMSNorm, "forward", usual_norm),
    "patch loss": lambda: patch.object(distillation, "patch_cross_entropy", usual_loss),
    "optimiser and teacher": usual_update,
}
"""What is replaced, in the order of the ladder."""


@dataclass
class Way:
    """A step with some parts in the usual implementation, and its own copy of the model."""

    label: str
    usual: tuple[str, ...]
    state: TrainState
    step: TrainingStep
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @contextlib.contextmanager
    def written(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for part in self.usual:
                stack.enter_context(USUAL[part]())
            yield

    def take(self, batch: Batch, views: Views) -> None:
        """Run and time one step."""
        device = self.step.accelerator.device
        temperatures = self.state.config.schedule.at(0, total=100, steps_per_epoch=10).temperatures
        rates = Rates(LEARNING_RATE, MOMENTUM, temperatures)
        synchronize(device)
        began = time.perf_counter()
        with self.written():
            metrics = self.step(batch, views, rates)
        synchronize(device)
        self.seconds.append(time.perf_counter() - began)
        self.losses.append(metrics.logged["loss"].item())


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ladder(size: str, device: torch.device) -> list[Way]:
    """All variants, from the usual implementation to ours, one part at a time."""
    accelerator = build_accelerator(device.type, "auto")
    parts = list(USUAL)
    ways = []
    for done in range(len(parts) + 1):
        state = new_state(recipe(size))
        if "optimiser and teacher" in parts[done:]:
            state.optimizer = torch.optim.AdamW(state.student.parameters(), weight_decay=0.05)
        to_device(state, device)
        step = TrainingStep(state, prepare_student(state, accelerator, "none"), accelerator)
        state.student.packs_passes = False  # the usual attention knows rows of one length only
        label = "the usual way" if done == 0 else f"+ our {parts[done - 1]}"
        ways.append(Way(label, tuple(parts[done:]), state, step))
    return ways


def run_rounds(ways: list[Way], batch: Batch, views: Views, rounds: int) -> None:
    """One round to warm up, then all variants in turn, so that slow changes of the machine affect all of them."""
    for _ in range(rounds + 1):
        for way in ways:
            way.take(batch, views)
    for way in ways:
        del way.seconds[:-rounds]


def show(ways: list[Way], baseline: float, note: str = "") -> None:
    for way in ways:
        median = statistics.median(way.seconds)
        ratio = baseline / median
        print(f"| {way.label}{note} | {median:.3f} | {ratio:.2f} | {way.losses[0]:.6f} |")


def check_losses(ways: list[Way]) -> None:
    """Check that all variants have the same loss in every step, and so the same updates before it."""
    on_gpu = next(ways[0].state.student.parameters()).device.type == "cuda"
    for way in ways[1:]:
        np.testing.assert_allclose(way.losses, ways[0].losses, rtol=1e-2 if on_gpu else 2e-5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="small")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    points = np.random.default_rng(0).normal(size=(given.batch, POINTS, 3)).astype(np.float32)
    counts, index = torch.full((given.batch,), POINTS), torch.arange(given.batch)
    batch = Batch(torch.from_numpy(points), counts, index, 0).to(device)
    views = make_views(batch, recipe(given.size))
    ways = ladder(given.size, device)
    run_rounds(ways, batch, views, given.rounds)
    check_losses(ways)
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    print(
        f"{where}, {given.threads} threads, torch {torch.__version__}, {given.size}, dual, batch {given.batch}, "
        f"median of {given.rounds}, views not counted"
    )
    print("| step | seconds | times as fast | first loss |\n| --- | --- | --- | --- |")
    baseline = statistics.median(ways[0].seconds)
    show(ways, baseline)
    if device.type == "cpu" and keep_freed_memory():
        ends = [ways[0], ways[-1]]
        ends[1].label = "all ours"
        run_rounds(ends, batch, views, given.rounds)
        check_losses(ends)
        show(ends, baseline, ", freed memory kept")


if __name__ == "__main__":
    main()
