"""The MLP-3 head on frozen features, and heads that are trained side by side."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pointdistill.engine.features import (
    HeadTraining,
    LinearHead,
    MlpHead,
    Samples,
    Score,
    train_heads,
)
from pointdistill.engine.features.probe_heads import Head, last_epoch_score, mean_logits, train_head
from pointdistill.model.classifier import NormedMlp

QUICK = HeadTraining(epochs=12, warmup_epochs=2, batch_size=8, peak_learning_rate=0.02)


def rings(n: int, *, seed: int) -> Samples:
    """Two classes that no plane parts: a disc, and a ring around it."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    angle = 6.283 * torch.rand(n, generator=generator)
    radius = labels * 2.0 + 0.2 + 0.3 * torch.rand(n, generator=generator)
    return Samples(torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), labels)


def head(kind: type[LinearHead] | type[MlpHead], *, seed: int = 0, width: int = 2) -> Head:
    return kind(width, 2, generator=torch.Generator().manual_seed(seed))


def test_mlp_has_three_layers_without_biases() -> None:
    """3D -> 256 -> 256 -> classes; BatchNorm has the only biases."""
    network = MlpHead(9, 4, generator=torch.Generator().manual_seed(0)).network
    linears = [part for part in network.modules() if isinstance(part, nn.Linear)]
    assert [tuple(part.weight.shape) for part in linears] == [(256, 9), (256, 256), (4, 256)]
    assert all(part.bias is None for part in linears)
    assert network.dropout == (0.5, 0.5)


def test_mlp_parts_what_no_plane_can() -> None:
    train, test = rings(80, seed=0), rings(60, seed=1)
    linear, mlp = train_heads(
        [head(LinearHead), head(MlpHead)],
        lambda _: train.features,
        train.labels,
        test,
        classes=2,
        settings=QUICK,
    )
    assert mlp.accuracy > 95.0
    assert linear.accuracy < 75.0


def test_a_head_does_not_depend_on_those_beside_it() -> None:
    train, test = rings(40, seed=0), rings(40, seed=1)

    def trained(*kinds: type[LinearHead] | type[MlpHead]) -> list[Tensor]:
        heads = [head(kind, seed=3) for kind in kinds]
        train_heads(heads, lambda _: train.features, train.labels, test, classes=2, settings=QUICK)
        return [each.logits(test.features) for each in heads]

    together = trained(LinearHead, MlpHead)
    assert torch.equal(trained(LinearHead)[0], together[0])
    assert torch.equal(trained(MlpHead)[0], together[1])


def test_features_of_an_epoch_are_asked_once_for_all_heads() -> None:
    train, asked = rings(20, seed=0), []

    def features(epoch: int) -> Tensor:
        asked.append(epoch)
        return train.features

    heads = [head(LinearHead), head(MlpHead)]
    train_heads(heads, features, train.labels, train, classes=2, settings=QUICK)
    assert asked == list(range(12))


def test_a_cloud_left_over_does_not_break_batch_norm() -> None:
    """Nine clouds in batches of eight: BatchNorm refuses to train on a single one."""
    features, targets = torch.randn(9, 2), torch.eye(2)[torch.arange(9) % 2]
    train_head(head(MlpHead), features, targets, epoch=0, settings=QUICK)


def test_mlp_logits_do_not_depend_on_the_batch() -> None:
    mlp, features = head(MlpHead), torch.randn(7, 2)
    train_head(mlp, features, torch.eye(2)[torch.arange(7) % 2], epoch=0, settings=QUICK)
    whole = mlp.logits(features)
    for size in (1, 3):
        parts = torch.cat([mlp.logits(part) for part in features.split(size)])
        torch.testing.assert_close(parts, whole, rtol=0.0, atol=1e-5)


class Fixed:
    """A head that has learned nothing and never will: its logits are its features."""

    generator = torch.Generator()

    def prepare(self, features: Tensor) -> Tensor:
        return features

    def step(self, inputs: Tensor, targets: Tensor, *, learning_rate: float, decay: float) -> None:
        pass

    def logits(self, features: Tensor) -> Tensor:
        return features


def test_votes_average_logits_and_leave_no_best_epoch() -> None:
    """Alone the first cloud is called 0; its second version is surer of 1 than the first is of 0."""
    test = Samples(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1]))
    options = {"train_labels": torch.tensor([0, 1]), "test": test, "classes": 2}

    def score(votes: list[Tensor]) -> tuple[float, float | None]:
        (found,) = train_heads(
            [Fixed()],
            lambda _: torch.eye(2),
            settings=QUICK,
            votes=votes,
            **options,  # type: ignore[arg-type]
        )
        return found.accuracy, found.best_accuracy

    assert score([]) == (50.0, 50.0)
    assert score([torch.tensor([[0.0, 3.0], [0.0, 1.0]])]) == (100.0, None)
    assert mean_logits([torch.tensor([[1.0]]), torch.tensor([[4.0]])]).item() == 2.5


def test_the_first_of_equally_good_epochs_is_the_best() -> None:
    epochs = [Score(accuracy=a, class_accuracy=a) for a in (10.0, 30.0, 30.0, 20.0)]
    last = last_epoch_score(epochs)
    assert (last.accuracy, last.best_accuracy, last.best_epoch) == (20.0, 30.0, 2)


def test_head_is_the_classifiers_own() -> None:
    """The same weights as a NormedMlp of the classifier, whose numbers golden files hold."""
    mlp = MlpHead(6, 3, generator=torch.Generator().manual_seed(0))
    same = NormedMlp(6, (256, 256), dropout=(0.5, 0.5), outputs=3)
    same.load_state_dict(mlp.network.state_dict())
    features = torch.randn(5, 6)
    torch.testing.assert_close(mlp.logits(features), same.eval()(features).detach())


@pytest.mark.parametrize("kind", [LinearHead, MlpHead])
def test_same_seed_same_head(kind: type[LinearHead] | type[MlpHead]) -> None:
    train = rings(30, seed=0)

    def trained(seed: int) -> Tensor:
        one = head(kind, seed=seed)
        train_heads([one], lambda _: train.features, train.labels, train, classes=2, settings=QUICK)
        return one.logits(train.features)

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))
