"""Arithmetic of a run's cost, against torch's own count and the model itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.config.recipes import RECIPES, recipe
from pointdistill.engine.pretraining.checkpoints import new_state
from pointdistill.engine.pretraining.cost import (
    checkpoint_gib,
    encoder_gib,
    largest_batch,
    parameters,
    step_flops,
    step_gib,
)
from pointdistill.engine.runtime.devices import GIB
from pointdistill.model.config import CropConfig, Mode, Temperatures
from pointdistill.model.distillation import Views, objective
from pointdistill.model.masking import Masks
from pointdistill.model.patches import Patches
from tests.engine.conftest import micro_config


def random_views(config: PretrainConfig) -> Views:
    """Patches and masks of the right sizes, of nothing in particular."""

    def cut(crop: CropConfig) -> Patches:
        centers = torch.randn(config.batch_size, crop.count, crop.patches, 3)
        offsets = torch.randn(*centers.shape[:-1], crop.patch_points, 3)
        return Patches(centers, offsets)

    crop, local, masks = config.global_crop, None, None
    if config.mode.has_cls and config.local_crop is not None:
        local = cut(config.local_crop)
    if config.mode.has_patches:
        rows = config.batch_size * crop.count * config.masking.masks_per_view
        hidden = config.masking.hidden_patches(crop.patches)
        order = torch.rand(rows, crop.patches).argsort(-1)
        masks = Masks(order[:, :hidden], order[:, hidden:])
    return Views(cut(crop), local, masks)


@pytest.mark.parametrize(
    "name",
    [
        "tiny",
        "tiny-cls",
        "tiny-mpm",
        "tiny-mpm-query-attention",
        "tiny-mpm-no-predictor",
        "tiny-no-local-crops",
    ],
)
def test_operations_are_those_that_torch_counts(name: str) -> None:
    config = replace(RECIPES[name].config, batch_size=2)
    state, views = new_state(config), random_views(config)
    with FlopCounterMode(display=False) as counter:
        targets = state.teacher(views.global_views)
        temperatures = Temperatures(cls_teacher=0.04, patch_teacher=0.05)
        objective(state.student(views), targets, temperatures).total.backward()
    # Gradients with respect to the input points are not taken, and the CLS loss is a product of its own.
    assert step_flops(config) == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_parameters_and_checkpoints_are_the_models() -> None:
    state = new_state(micro_config())
    counts = parameters(state.config)
    student, teacher = (
        sum(p.numel() for p in module.parameters()) for module in (state.student, state.teacher)
    )
    assert (counts.student, counts.teacher) == (student, teacher)
    assert counts.encoder == sum(p.numel() for p in state.teacher.encoder.parameters())
    assert checkpoint_gib(state.config) == 4 * (3 * student + teacher) / GIB
    assert encoder_gib(state.config) == 4 * counts.encoder / GIB


def test_the_small_step_costs_about_what_was_published() -> None:
    """25.6 GiB in mixed precision at batch 128; float32 takes more, and memory grows with the batch."""
    small = recipe("small")
    assert 25.6 < step_gib(small) < 2 * 25.6
    half = step_gib(replace(small, batch_size=64))
    assert 0.5 * step_gib(small) < half < 0.52 * step_gib(small)


@pytest.mark.parametrize("mode", Mode)
def test_the_largest_batch_is_the_largest_that_fits(mode: Mode) -> None:
    config = recipe("small", mode)
    fitting = largest_batch(config, 8.0)
    gib = [step_gib(replace(config, batch_size=size)) for size in (fitting, fitting + 1)]
    assert gib[0] <= 8.0 < gib[1]
    assert largest_batch(config, 1000.0) == config.batch_size
    assert largest_batch(config, 0.001) == 2
