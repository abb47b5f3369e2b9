"""Nearest neighbours, SVM, logistic regression, and the scores that all probes share."""

from __future__ import annotations

import warnings

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC
from torch import Tensor

from pointdistill.engine.features import (
    Samples,
    logistic_probe,
    nearest_neighbour_probe,
    rank_classes,
    score_predictions,
    svm_probe,
)
from pointdistill.errors import ConfigError, DataError


def at_angles(degrees: list[float], labels: list[int]) -> Samples:
    """Unit vectors of the plane: their cosine similarity is the cosine of the angle between them."""
    radians = torch.tensor(degrees).deg2rad()
    return Samples(torch.stack([radians.cos(), radians.sin()], dim=1), torch.tensor(labels))


def blobs(*, seed: int, n: int = 200, classes: int = 4, spread: float = 1.0) -> Samples:
    """Overlapping clouds around fixed centres in eight dimensions."""
    centers = torch.randn(classes, 8, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    noise = torch.randn(n, 8, generator=generator)
    return Samples(centers[labels] + spread * noise, labels)


def test_score_is_in_percent_over_clouds_and_over_classes() -> None:
    """Three of four right; class 0 has 2 of 3, class 1 has 1 of 1."""
    score = score_predictions(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1]))
    assert score.accuracy == 75.0
    assert score.class_accuracy == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert score.best_accuracy is None


def test_confusions_are_true_by_predicted() -> None:
    score = score_predictions(torch.tensor([0, 2, 1, 1]), torch.tensor([0, 0, 0, 1]))
    assert score.confusion == ((1, 1, 1), (0, 1, 0), (0, 0, 0))
    many = torch.arange(300)
    assert score_predictions(many, many).confusion is None


def test_votes_are_ranked_by_number_then_by_the_lowest_class() -> None:
    """Neighbours at 1 to 5 degrees name 4, 2, 1, 1, 2: two votes each for 1 and 2."""
    train = at_angles([1, 2, 3, 4, 5, 180], [4, 2, 1, 1, 2, 0])
    ranked = rank_classes(at_angles([0], [0]).features, train.features, train.labels)
    assert ranked.tolist() == [[1, 2, 4, -1, -1]]


def test_a_class_without_test_clouds_does_not_count() -> None:
    score = score_predictions(torch.tensor([2, 2]), torch.tensor([2, 2]))
    assert score.class_accuracy == 100.0


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), r"got \(3, 2\) and \(2,\)"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "at least one"),
        (
            torch.tensor([[0.0], [torch.nan]]),
            torch.zeros(2, dtype=torch.int64),
            "1 of 2 clouds are not finite",
        ),
    ],
)
def test_samples_refuse_what_no_probe_can_use(
    features: Tensor, labels: Tensor, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Samples(features, labels)


def test_the_majority_of_the_nearest_wins_over_the_nearest() -> None:
    train = at_angles([0, 10, 20, 90, 100], [0, 1, 1, 0, 0])
    score = nearest_neighbour_probe(train, at_angles([0], [1]), neighbours=3)
    assert score.accuracy == 100.0


@pytest.mark.parametrize(
    ("labels", "winner"),
    [
        ([4, 3, 2, 1, 0], 0),  # five single votes
        ([4, 1, 2, 2, 1], 1),  # two votes each for 1 and 2
        ([4, 2, 1, 1, 2], 1),  # the same, with 2 nearer
        ([3, 0, 0, 1, 2], 0),  # no tie: two votes beat the nearest one
    ],
)
def test_equal_votes_go_to_the_lowest_class(labels: list[int], winner: int) -> None:
    train = at_angles([1, 2, 3, 4, 5, 180, 180], [*labels, 3, 3])
    assert nearest_neighbour_probe(train, at_angles([0], [winner])).accuracy == 100.0


def test_length_does_not_matter_to_the_cosine() -> None:
    """A far shorter vector in the same direction is nearer than a like one at an angle."""
    train = Samples(torch.tensor([[0.01, 0.0], [1.0, 1.0]]), torch.tensor([0, 1]))
    test = Samples(torch.tensor([[5.0, 0.1]]), torch.tensor([0]))
    assert nearest_neighbour_probe(train, test, neighbours=1).accuracy == 100.0


def test_single_neighbour_agrees_with_scikit_learn() -> None:
    train, test = blobs(seed=0), blobs(seed=1)
    reference = KNeighborsClassifier(n_neighbors=1, metric="cosine", algorithm="brute")
    reference.fit(train.features.numpy(), train.labels.numpy())
    expected = 100.0 * reference.score(test.features.numpy(), test.labels.numpy())
    score = nearest_neighbour_probe(train, test, neighbours=1)
    assert score.accuracy == pytest.approx(expected)
    assert 50.0 < expected < 100.0


def test_more_votes_than_training_clouds_are_refused() -> None:
    train = at_angles([0, 1, 2], [0, 1, 2])
    with pytest.raises(ConfigError, match="between 1 and the 3 training clouds, got 5"):
        nearest_neighbour_probe(train, train)


def test_svm_is_scikit_learns_own_with_its_defaults() -> None:
    train, test = blobs(seed=0), blobs(seed=1)
    reference = LinearSVC(random_state=3).fit(train.features.numpy(), train.labels.numpy())
    expected = 100.0 * reference.score(test.features.numpy(), test.labels.numpy())
    score = svm_probe(train, test, seed=3)
    assert score.accuracy == pytest.approx(expected)
    assert score.note == ""


def test_an_svm_that_was_cut_short_says_so() -> None:
    """The same large vectors under both labels, more numbers than clouds: the dual solver gives up."""
    generator = torch.Generator().manual_seed(0)
    features = (100.0 * torch.randn(10, 30, generator=generator)).repeat(2, 1)
    train = Samples(features, torch.arange(20) // 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = svm_probe(train, train, seed=0)
    assert score.note == "the SVM stopped at 1000 iterations, not converged"


def test_logistic_regression_is_blind_to_scale_and_place() -> None:
    train, test = blobs(seed=0), blobs(seed=1)
    scale = 10.0 ** torch.arange(-3.0, 5.0)

    def moved(samples: Samples) -> Samples:
        return Samples(samples.features * scale + 3.0 * scale, samples.labels)

    plain = logistic_probe(train, test)
    assert logistic_probe(moved(train), moved(test)) == plain
    assert 50.0 < plain.accuracy < 100.0
    assert plain.note == ""


def test_scale_matters_to_the_svm_which_is_why_both_are_shown() -> None:
    train, test = blobs(seed=0), blobs(seed=1)
    tiny = Samples(train.features * 1e-3, train.labels), Samples(test.features * 1e-3, test.labels)
    assert svm_probe(*tiny, seed=0).accuracy < svm_probe(train, test, seed=0).accuracy
