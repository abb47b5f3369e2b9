"""Loss terms with values a reader can work out."""

from __future__ import annotations

import math

import pytest
import torch

from pointdistill.model.losses import (
    feature_regression,
    koleo,
    patch_cross_entropy,
    view_cross_entropy,
)


def test_uniform_predictions_cost_the_logarithm_of_the_prototypes() -> None:
    target = torch.tensor([[[0.25, 0.25, 0.25, 0.25]]])
    loss = view_cross_entropy(torch.zeros(1, 3, 4), target, student_temperature=0.1)
    assert loss.item() == pytest.approx(math.log(4))


def test_every_target_meets_every_prediction() -> None:
    """Against the double loop over targets and predictions."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, generator=generator)
    probs = torch.randn(2, 4, 5, generator=generator).softmax(-1)
    pairs = [
        -(probs[b, t] * (logits[b, s] / 0.1).log_softmax(-1)).sum()
        for b in range(2)
        for t in range(4)
        for s in range(3)
    ]
    loss = view_cross_entropy(logits, probs, student_temperature=0.1)
    torch.testing.assert_close(loss, torch.stack(pairs).mean())


def test_a_confident_right_answer_costs_little_and_a_wrong_one_the_gap() -> None:
    """Logits (1, 0) at temperature 0.1 are (10, 0): right costs e^-10, wrong costs 10 more."""
    logits = torch.tensor([[1.0, 0.0]])
    first = torch.tensor([0])
    right = patch_cross_entropy(logits, torch.tensor([[1.0, 0.0]]), first, student_temperature=0.1)
    wrong = patch_cross_entropy(logits, torch.tensor([[0.0, 1.0]]), first, student_temperature=0.1)
    assert right.item() == pytest.approx(math.exp(-10), rel=1e-2)
    assert (wrong - right).item() == pytest.approx(10.0, rel=1e-5)


def test_koleo_of_opposite_pairs() -> None:
    """Two shapes at opposite ends: distance 2, so -log 2 at each crop position."""
    features = torch.tensor([[[3.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, -5.0]]])
    assert koleo(features).item() == pytest.approx(-math.log(2.0), abs=1e-5)


def test_koleo_looks_for_neighbours_crop_by_crop() -> None:
    """Other crops of the same shape, and other crop positions, are not neighbours."""
    features = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))
    alone = torch.stack([koleo(features[:, s : s + 1]) for s in range(3)])
    torch.testing.assert_close(koleo(features), alone.mean())


def test_koleo_over_processes_equals_koleo_of_the_whole() -> None:
    """Two halves that each see everyone average to the loss of the whole batch."""
    features = torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(0))
    halves = [koleo(features[f : f + 3], features, first=f) for f in (0, 3)]
    torch.testing.assert_close(torch.stack(halves).mean(), koleo(features))


def test_koleo_of_a_single_shape_is_zero_with_a_gradient() -> None:
    features = torch.randn(1, 2, 4, requires_grad=True)
    loss = koleo(features)
    loss.backward()
    assert loss.item() == 0.0
    assert features.grad is not None


def test_identical_shapes_have_a_finite_gradient() -> None:
    features = torch.ones(3, 1, 4, requires_grad=True)
    koleo(features).backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize(("gap", "loss"), [(1.0, 0.25), (2.0, 1.0), (5.0, 4.0)])
def test_regression_is_quadratic_up_to_two_then_linear(gap: float, loss: float) -> None:
    """0.5 gap² / 2 below the beta of 2.0, gap - 1 above it."""
    assert feature_regression(torch.tensor([gap]), torch.zeros(1)).item() == pytest.approx(loss)
