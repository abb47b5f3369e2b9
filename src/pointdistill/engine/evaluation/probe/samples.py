"""What goes into a probe and what comes out: labelled features, and accuracies."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pointdistill.errors import DataError

Confusion = tuple[tuple[int, ...], ...]
"""Test clouds by true class (rows) and predicted class (columns)."""

MOST_CONFUSED = 256
"""Classes up to which the confusions are kept: beyond, nobody can read them."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Labelled feature vectors of one split, on the CPU.

    Sizes: n clouds, F numbers a feature vector.

    Raises:
        DataError: if the two do not fit, there are none, or a feature is not finite.
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
    """Share of the test clouds named right (OA); of a trained probe, after its last epoch."""

    class_accuracy: float
    """Mean over the classes present in the test split of the share named right in each."""

    best_accuracy: float | None = None
    """Highest OA after any epoch: chosen on the test split, so a bound and not a result."""

    best_epoch: int | None = None
    """The first epoch, counted from 1, that reached ``best_accuracy``."""

    note: str = ""
    """What a reader must know before trusting the figures, or nothing."""

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
