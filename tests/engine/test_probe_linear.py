"""The linear probe: its schedule, its hand-written optimiser, what it reports."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from pointdistill.engine.features import HeadTraining, LinearHead, Samples, linear_probe
from pointdistill.errors import ConfigError

QUICK = HeadTraining(epochs=12, warmup_epochs=2, batch_size=8, peak_learning_rate=0.05)


def corners(n: int, *, seed: int) -> Samples:
    """Three classes around three corners of a cube, far apart."""
    labels = torch.arange(n) % 3
    noise = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    return Samples(4.0 * torch.eye(3)[labels] + 0.3 * noise, labels)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.0),  # the first step of the warm-up moves nothing
        (50, 2.5e-4),  # half of the warm-up: 10 epochs of 10 steps
        (100, 5e-4),
        (800, (5e-4 + 1e-7) / 2),  # half of the 1,400 steps after it
        (1500, 1e-7),
    ],
)
def test_published_learning_rate(step: int, rate: float) -> None:
    assert HeadTraining().learning_rate(step, steps_per_epoch=10) == pytest.approx(rate, rel=1e-12)


def test_rate_falls_after_the_warm_up() -> None:
    rates = [HeadTraining().learning_rate(step, steps_per_epoch=1) for step in range(10, 151)]
    assert all(later < earlier for earlier, later in pairwise(rates))


def test_head_steps_as_autograd_and_torch_adamw_do() -> None:
    """Twenty steps of the written-out update against nn.Linear, cross_entropy and AdamW."""
    generator = torch.Generator().manual_seed(0)
    head = LinearHead(6, 4, generator=generator)
    reference = nn.Linear(6, 4)
    with torch.no_grad():
        reference.weight.copy_(head.weight[:-1].T)
        reference.bias.copy_(head.weight[-1])
    optimizer = torch.optim.AdamW(reference.parameters(), weight_decay=0.05)
    for step in range(20):
        features = torch.randn(7, 6, generator=generator)
        labels = torch.randint(4, (7,), generator=generator)
        rate = 0.01 * (step + 1)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        nn.functional.cross_entropy(reference(features), labels, label_smoothing=0.2).backward()
        optimizer.step()
        targets = 0.8 * nn.functional.one_hot(labels, 4) + 0.05
        head.step(head.prepare(features), targets, learning_rate=rate, decay=0.05)
    torch.testing.assert_close(head.weight[:-1].T, reference.weight.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.weight[-1], reference.bias.detach(), rtol=1e-4, atol=1e-5)
    features = torch.randn(5, 6, generator=generator)
    torch.testing.assert_close(
        head.logits(features), reference(features).detach(), rtol=1e-4, atol=1e-4
    )


def test_initial_weights_fill_the_range_of_a_linear_layer() -> None:
    weight = LinearHead(100, 500, generator=torch.Generator().manual_seed(0)).weight
    assert weight.shape == (101, 500)
    assert weight.abs().max() <= 0.1
    assert weight.std() == pytest.approx(0.1 / 3**0.5, rel=0.02)


def test_separable_classes_are_learned_from_every_epochs_own_features() -> None:
    train, asked = corners(40, seed=0), []

    def features(epoch: int) -> Tensor:
        asked.append(epoch)
        return train.features

    score = linear_probe(
        features, train.labels, corners(30, seed=1), seed=0, classes=3, settings=QUICK
    )
    assert asked == list(range(12))
    assert score.accuracy == score.class_accuracy == score.best_accuracy == 100.0


def test_the_last_epoch_is_the_result_and_the_best_is_beside_it() -> None:
    """From epoch 6 on the features are turned round, so what was learned is unlearned."""
    train, test = corners(60, seed=0), corners(30, seed=1)
    score = linear_probe(
        lambda epoch: train.features if epoch < 5 else -train.features,
        train.labels,
        test,
        seed=0,
        classes=3,
        settings=HeadTraining(epochs=40, warmup_epochs=1, batch_size=8, peak_learning_rate=0.05),
    )
    assert score.best_accuracy == 100.0
    assert score.best_epoch is not None
    assert score.best_epoch <= 6
    assert score.accuracy < 50.0


def test_same_seed_same_score_another_seed_another_run() -> None:
    labels = torch.randint(3, (90,), generator=torch.Generator().manual_seed(0))
    noise = torch.randn(90, 5, generator=torch.Generator().manual_seed(1))
    test = Samples(noise[:60], labels[:60])

    def run(seed: int) -> float:
        return linear_probe(
            lambda _: noise[60:], labels[60:], test, seed=seed, classes=3, settings=QUICK
        ).accuracy

    assert run(0) == run(0)
    assert len({run(seed) for seed in range(6)}) > 1


def test_a_last_smaller_batch_is_used() -> None:
    """Nine clouds in batches of eight: the ninth alone holds class 2."""
    features, labels = torch.eye(3)[[0, 1] * 4 + [2]], torch.tensor([0, 1] * 4 + [2])
    settings = HeadTraining(epochs=80, warmup_epochs=1, batch_size=8, peak_learning_rate=0.05)
    test = Samples(features, labels)
    score = linear_probe(lambda _: features, labels, test, seed=0, classes=3, settings=settings)
    assert score.accuracy == 100.0


def test_a_shortened_run_keeps_the_schedules_proportions() -> None:
    short = HeadTraining().shortened(30)
    assert (short.epochs, short.warmup_epochs) == (30, 2)
    assert short.learning_rate(2, steps_per_epoch=1) == 5e-4
    assert HeadTraining().shortened(None) == HeadTraining()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "got 0, 32 and 10"),
        ({"batch_size": 0}, "got 150, 0 and 10"),
        ({"label_smoothing": 1.0}, r"must lie in \[0, 1\), got 1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HeadTraining(**change)  # type: ignore[arg-type]
