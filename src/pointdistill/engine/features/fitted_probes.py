"""Probes that are fitted once: nearest neighbours, logistic regression and SVM; and the records of all probes.

Every probe takes labelled features, ``Samples``, and returns a ``Score``. scikit-learn is loaded by those that fit
with it, since embedding and search import this module and would wait for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pointdistill.errors import ConfigError, DataError

Confusion = tuple[tuple[int, ...], ...]
"""Test clouds by true class (rows) and predicted class (columns)."""

MOST_CONFUSED = 256
"""Most classes for which the confusion matrix is kept; nobody can read a larger one."""

NEIGHBOURS = 5
"""Votes for each test cloud in the published protocol."""

_ROWS = 1024  # Test rows compared at once: 50 MB of similarities against 11,416 training clouds.

INVERSE_PENALTY = 0.1
"""scikit-learn's C, one value for every encoder and benchmark. Among 0.001 to 1 it was within one point
of the best in cross-validation on the stand-in's training clouds, both for random weights and for geometric
features; no test split was used."""

_MOST_ITERATIONS = 2000


@dataclass(frozen=True, slots=True)
class Samples:
    """Labelled feature vectors of one split, on the CPU.

    Sizes: n clouds, F numbers per feature vector.

    Raises:
        DataError: if features and labels do not fit, there are none, or a feature is not finite.
    """

    features: Tensor  # (n, F) float32
    labels: Tensor  # (n,) int64, from 0

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.labels.shape != self.features.shape[:1]:
            msg = (
                f"expected features (n, F) and labels (n,), got {tuple(self.features.shape)} "
                f"and {tuple(self.labels.shape)}"
            )
            raise DataError(msg)
        if len(self.labels) == 0:
            msg = "a probe needs at least one labelled cloud in each split, got none"
            raise DataError(msg)
        bad = int((~self.features.isfinite()).any(dim=1).sum())
        if bad:
            msg = (
                f"features of {bad} of {len(self.labels)} clouds are not finite; "
                "look for broken clouds, or for weights that diverged"
            )
            raise DataError(msg)


def check_classes(train: Samples) -> None:
    """Raise unless there are two classes to tell apart.

    Raises:
        DataError: naming the only class.
    """
    classes = train.labels.unique().tolist()
    if len(classes) < 2:
        msg = f"the training clouds are all of class {classes[0]}; a classifier needs at least 2 to tell apart"
        raise DataError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How well one probe did on the test split, in percent."""

    accuracy: float
    """Share of the test clouds classified correctly (OA); for a trained probe, after its last epoch."""

    class_accuracy: float
    """Mean share classified correctly, over the classes present in the test split."""

    best_accuracy: float | None = None
    """Highest OA after any epoch: chosen on the test split, so a bound and not a result."""

    best_epoch: int | None = None
    """The first epoch, counted from 1, that reached ``best_accuracy``."""

    selected_accuracy: float | None = None
    """OA after the epoch that was best on clouds held out of the training split; None if none were."""

    selected_epoch: int | None = None
    """That epoch, counted from 1; the last of several that were equally good."""

    note: str = ""
    """What a reader must know before trusting the figures; may be empty."""

    further: tuple[tuple[str, float], ...] = ()
    """Other figures of the same predictions by name, such as ``top-5``."""

    confusion: Confusion | None = field(default=None, repr=False)
    """None for more than ``MOST_CONFUSED`` classes."""


def score_predictions(predicted: Tensor, labels: Tensor, *, note: str = "") -> Score:
    """Overall and mean class accuracy of (n,) predicted classes against (n,) true ones."""
    classes = 1 + int(torch.maximum(predicted, labels).max())
    right = (predicted == labels).double()
    of_class = torch.bincount(labels, minlength=classes)
    hits = torch.bincount(labels, weights=right, minlength=classes)
    present = of_class > 0
    return Score(
        accuracy=100.0 * right.mean().item(),
        class_accuracy=100.0 * (hits[present] / of_class[present]).mean().item(),
        note=note,
        confusion=_confusion(predicted, labels, classes) if classes <= MOST_CONFUSED else None,
    )


def _confusion(predicted: Tensor, labels: Tensor, classes: int) -> Confusion:
    pairs = torch.bincount(labels * classes + predicted, minlength=classes**2)
    return tuple(map(tuple, pairs.view(classes, classes).tolist()))


def nearest_neighbour_probe(
    train: Samples, test: Samples, *, neighbours: int = NEIGHBOURS
) -> Score:
    """Classify each test cloud by a vote of its nearest training clouds.

    Similarity is the cosine; each neighbour has one vote, whatever its distance. Among classes with
    equally many votes, the one with the lowest number wins, as in the authors' code.

    Args:
        train: the voters; at least ``neighbours`` of them.
        test: features of the same width.
        neighbours: votes for each test cloud.

    Raises:
        ConfigError: if there are fewer training clouds than votes.
    """
    voters = normalize(train.features, dim=1)
    ranked = rank_classes(test.features, voters, train.labels, neighbours=neighbours)
    return score_predictions(ranked[:, 0], test.labels)


def rank_classes(
    rows: Tensor, voters: Tensor, labels: Tensor, *, neighbours: int = NEIGHBOURS
) -> Tensor:
    """The classes of each row's neighbours, sorted by votes; of a tie, the lowest number is first.

    Sizes: b rows, n voters, F features, k neighbours.

    Args:
        rows: (b, F), of any length.
        voters: (n, F), rows of length 1.
        labels: (n,) int64 of the voters.
        neighbours: k.

    Returns:
        (b, k) int64 classes, padded with -1.

    Raises:
        ConfigError: if there are fewer voters than votes.
    """
    if not 1 <= neighbours <= len(labels):
        msg = (
            f"neighbours must lie between 1 and the {len(labels)} training clouds, got {neighbours}"
        )
        raise ConfigError(msg)
    classes = 1 + int(labels.max())
    ranked = []
    for some in normalize(rows, dim=1).split(_ROWS):
        nearest = (some @ voters.T).topk(neighbours, dim=1, sorted=True).indices
        ranked.append(_rank(labels[nearest], classes))
    return torch.cat(ranked)


def _rank(named: Tensor, classes: int) -> Tensor:
    """The distinct classes of each row of (b, k) by votes, those with equally many by number; padded with -1."""
    same = named[:, :, None] == named[:, None, :]
    repeated = same.tril(-1).any(dim=2)
    # One number to sort by: a vote is worth more than any class number, and repetitions go last.
    worth = torch.where(repeated, -1, same.sum(dim=2) * classes - named)
    order = worth.argsort(dim=1, descending=True)
    return named.masked_fill(repeated, -1).gather(1, order)


def logistic_probe(train: Samples, test: Samples) -> Score:
    """Fit a multinomial logistic regression on features scaled to mean 0 and deviation 1.

    Not a published protocol. It complements the linear probe and the SVM, which depend on the scale of the
    features, and random weights get that wrong. Solver L-BFGS, L2 penalty, C = 0.1; the scale is that of the
    training split. Nothing in it is random.

    Args:
        train: at least two classes.
        test: features of the same width.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(C=INVERSE_PENALTY, max_iter=_MOST_ITERATIONS)
    pipeline = make_pipeline(StandardScaler(), regression)
    check_classes(train)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        pipeline.fit(train.features.double().numpy(), train.labels.numpy())
    cut_short = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    note = (
        f"the regression stopped at {_MOST_ITERATIONS} iterations, not converged"
        if cut_short
        else ""
    )
    predicted = torch.from_numpy(pipeline.predict(test.features.double().numpy()))
    return score_predictions(predicted, test.labels, note=note)


def svm_probe(train: Samples, test: Samples, *, seed: int) -> Score:
    """Fit ``LinearSVC`` with its defaults (squared hinge, C = 1, one class against the rest).

    A fit that stops at scikit-learn's limit of iterations is scored all the same, with a note: the published
    protocol uses the defaults, so more iterations would be another protocol.

    Args:
        train: at least two classes.
        test: features of the same width.
        seed: order in which liblinear visits the clouds, where its solver draws one.
    """
    return svm_scores(train, [test], seed=seed)[0]


def svm_scores(train: Samples, tests: Sequence[Samples], *, seed: int) -> list[Score]:
    """Fit the SVM of ``svm_probe`` once, and score it on several sets."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    machine = LinearSVC(random_state=seed)
    check_classes(train)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        machine.fit(train.features.numpy(), train.labels.numpy())
    cut_short = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    note = f"the SVM stopped at {machine.max_iter} iterations, not converged" if cut_short else ""
    return [
        score_predictions(
            torch.from_numpy(machine.predict(test.features.numpy())), test.labels, note=note
        )
        for test in tests
    ]


def cross_validate(
    probe: Callable[[Samples, Samples], Score],
    samples: Samples,
    *,
    folds: int,
    seed: int,
    tested: Callable[[int], object] = lambda _: None,
) -> Score:
    """Test a probe on each fold in turn, fitted on the others; folds have equal shares of every class.

    Args:
        probe: called with the training and the test samples of a fold.
        samples: at least two classes, with at least ``folds`` clouds each.
        folds: number of folds, at least 2.
        seed: of the division; the same for the same labels.
        tested: called after each fold with the number of folds so far.

    Returns:
        Accuracies averaged over the folds, every note once, and the sum of the confusion matrices.
    """
    from sklearn.model_selection import StratifiedKFold

    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    labels = samples.labels.numpy()
    scores: list[Score] = []
    for train, test in split.split(labels, labels):
        known = Samples(samples.features[train], samples.labels[train])
        scores.append(probe(known, Samples(samples.features[test], samples.labels[test])))
        tested(len(scores))
    # Every fold has all classes, so either all matrices were kept or none.
    matrices = [np.array(score.confusion) for score in scores if score.confusion is not None]
    return Score(
        accuracy=float(np.mean([score.accuracy for score in scores])),
        class_accuracy=float(np.mean([score.class_accuracy for score in scores])),
        note="; ".join(dict.fromkeys(score.note for score in scores if score.note)),
        confusion=tuple(map(tuple, np.sum(matrices, axis=0).tolist())) if matrices else None,
    )
