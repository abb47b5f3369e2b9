"""A linear support vector machine, as scikit-learn makes it by default."""

from __future__ import annotations

import warnings

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from pointdistill.engine.evaluation.probe.samples import (
    Samples,
    Score,
    check_classes,
    score_predictions,
)


def svm_probe(train: Samples, test: Samples, *, seed: int) -> Score:
    """Fit ``LinearSVC`` with its defaults (squared hinge, C = 1, one class against the rest).

    A fit that stops at scikit-learn's limit of iterations is scored all the same and says so in the
    note: the published protocol is the defaults, and more iterations would be another protocol.

    Args:
        train: at least two classes.
        test: features of the same width.
        seed: order in which liblinear visits the clouds, where its solver draws one.
    """
    machine = LinearSVC(random_state=seed)
    check_classes(train)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        machine.fit(train.features.numpy(), train.labels.numpy())
    cut_short = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    note = f"the SVM stopped at {machine.max_iter} iterations, not converged" if cut_short else ""
    predicted = torch.from_numpy(machine.predict(test.features.numpy()))
    return score_predictions(predicted, test.labels, note=note)
