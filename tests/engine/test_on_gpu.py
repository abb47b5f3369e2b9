"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from pointdistill.engine.config.recipes import recipe
from pointdistill.engine.pretraining.checkpoints import new_state, to_device
from pointdistill.engine.pretraining.execution import prepare_student
from pointdistill.engine.pretraining.loader import Batch
from pointdistill.engine.pretraining.step import TrainingStep, make_views
from pointdistill.engine.pretraining.trainer import RunOptions
from pointdistill.engine.runtime.devices import build_accelerator
from pointdistill.model.config import Mode

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SHAPES = 8


def make_batch(device: str) -> Batch:
    points = np.random.default_rng(0).normal(size=(SHAPES, 4096, 3)).astype(np.float32)
    counts, index = torch.full((SHAPES,), 4096), torch.arange(SHAPES)
    return Batch(torch.from_numpy(points), counts, index, 0).to(torch.device(device))


@contextlib.contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Within the block, whatever makes the host wait for the device raises an error."""
    with warnings.catch_warnings():
        # PyTorch calls this mode a prototype, in a warning, whenever it is set.
        warnings.filterwarnings("ignore", message=".*[Ss]ynchronization debug mode")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("mode", list(Mode))
def test_a_step_never_waits_for_the_device(mode: Mode) -> None:
    config = replace(recipe("tiny", mode), batch_size=SHAPES)
    accelerator = build_accelerator("cuda", "bf16")
    state = new_state(config)
    to_device(state, accelerator.device)
    student = prepare_student(state, accelerator, RunOptions().sharding)
    step = TrainingStep(state, student, accelerator)
    rates = config.schedule.at(0, total=100, steps_per_epoch=10)
    batch = make_batch("cuda")
    step(batch, make_views(batch, config), rates, watch=True)
    with waiting_is_an_error():  # from the second step on, since the first sets up libraries
        metrics = step(batch, make_views(batch, config), rates)
    assert torch.isfinite(metrics.logged["loss"])


def test_views_are_those_of_a_cpu() -> None:
    """The same points in the same patches, but where rounding decides between two neighbours."""
    config = recipe("tiny")
    ours, theirs = (make_views(make_batch(d), config).global_views for d in ("cpu", "cuda"))
    same = (ours.centers - theirs.centers.cpu()).abs().amax(-1) < 1e-4
    assert same.float().mean() > 0.98
