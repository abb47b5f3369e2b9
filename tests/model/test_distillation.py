"""Student and teacher: what follows what, what leaks where, and that no weight escapes initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from pointdistill.model.distillation import Mode, Student, Teacher
from pointdistill.model.encoder import Encoder
from pointdistill.model.heads import ProjectionHead
from pointdistill.model.initialize import initialize
from pointdistill.model.predictor import Predictor
from pointdistill.model.transformer import StochasticDepth
from tests.engine.conftest import micro_config

CONFIG = micro_config()


def student() -> Student:
    module = Student(Mode.DUAL, CONFIG.encoder, CONFIG.head, CONFIG.predictor)
    initialize(module, generator=torch.Generator().manual_seed(0))
    return module


BUILDERS: list[Callable[[], nn.Module]] = [
    lambda: Encoder(CONFIG.encoder),
    lambda: Predictor(12, CONFIG.predictor),
    lambda: ProjectionHead(12, CONFIG.head),
    student,
]


@pytest.mark.parametrize("build", BUILDERS)
def test_initialize_reaches_every_parameter(build: Callable[[], nn.Module]) -> None:
    """Poison all weights, initialise, and look for survivors."""
    module = build()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(math.nan)
    initialize(module, generator=torch.Generator().manual_seed(0))
    assert [name for name, p in module.named_parameters() if p.isnan().any()] == []


def test_initial_weights_have_the_stated_distributions() -> None:
    weights = dict(student().named_parameters())
    assert weights[
        "encoder.transformer.blocks.0.mlp.mlp.expand.weight"
    ].std().item() == pytest.approx(0.02, rel=0.1)
    assert (weights["encoder.transformer.norm.weight"] == 1).all()
    assert (weights["cls_head.mlp.0.bias"] == 0).all()
    direction = weights["cls_head.prototypes.direction"]
    assert direction.abs().max() <= 8**-0.5  # PyTorch's default: uniform within 1 / sqrt(inputs)
    torch.testing.assert_close(
        weights["cls_head.prototypes.magnitude"], direction.norm(dim=1, keepdim=True)
    )


@pytest.mark.parametrize(("momentum", "share"), [(1.0, 0.0), (0.75, 0.25), (0.0, 1.0)])
def test_teacher_moves_its_share_towards_the_student(momentum: float, share: float) -> None:
    one = student()
    teacher = Teacher(Mode.DUAL, CONFIG.encoder, CONFIG.head)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.zero_()
    teacher.follow(one, momentum)
    theirs = dict(one.named_parameters())
    for name, value in teacher.named_parameters():
        torch.testing.assert_close(value, share * theirs[name])


@pytest.mark.parametrize(
    ("momentum", "expected"),
    [(0.0, [1.0, 2.0]), (0.5, [0.5, 1.0]), (1.0, [0.0, 0.0])],
)
def test_centers_follow_the_mean(momentum: float, expected: list[float]) -> None:
    """From zero, one update moves (1 - momentum) of the way to the batch mean."""
    teacher = Teacher(Mode.DUAL, CONFIG.encoder, CONFIG.head)
    mean = torch.tensor([1.0, 2.0] * 8)
    teacher.update_centers({"cls_center": mean}, momentum)
    assert teacher.cls_center[:2].tolist() == expected
    assert teacher.patch_center.abs().max() == 0


def test_teacher_stays_in_evaluation_mode_and_gets_no_gradient() -> None:
    teacher = Teacher(Mode.DUAL, CONFIG.encoder, CONFIG.head).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_hidden_places_do_not_see_each_other() -> None:
    """Another hidden patch elsewhere changes nothing for the rest: no shape of the mask leaks."""
    predictor = student().predictor
    assert predictor is not None
    memory, places = torch.randn(1, 4, 12), torch.randn(1, 3, 12)
    moved = places.clone()
    moved[0, 2] = torch.randn(12)
    before, after = predictor(places, memory), predictor(moved, memory)
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2], after[:, 2])


@pytest.mark.parametrize("rate", [0.05, 0.25])
def test_stochastic_depth_keeps_the_mean(rate: float) -> None:
    """Both ways, by subset and by factor: a branch that adds 1 adds 1 on average."""

    class One(nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(tokens)

    depth = StochasticDepth(rate).train()
    generator = torch.Generator().manual_seed(0)
    rows = depth(torch.zeros(4000, 1, 1), One(), generator)
    assert rows.mean().item() == pytest.approx(1.0, abs=0.03)
    passed = rows[rows > 0]
    torch.testing.assert_close(passed, torch.full_like(passed, 1 / (1 - rate)))
    assert (depth.eval()(torch.zeros(2, 1, 1), One(), None) == 1).all()
