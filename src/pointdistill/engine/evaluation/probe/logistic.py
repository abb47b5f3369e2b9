"""Logistic regression on standardised features: a probe blind to the features' scale."""

from __future__ import annotations

import warnings

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pointdistill.engine.evaluation.probe.samples import (
    Samples,
    Score,
    check_classes,
    score_predictions,
)

INVERSE_PENALTY = 0.1
"""scikit-learn's C, one value for every encoder and benchmark. Of 0.001 to 1 it was within a point of
the best in cross-validation on the stand-in's training clouds, for random weights and for geometric
features; no test split was looked at."""

_ITERATIONS = 2000


def logistic_probe(train: Samples, test: Samples) -> Score:
    """Fit a multinomial logistic regression on features scaled to mean 0 and deviation 1.

    Not a published protocol. It stands beside the linear probe and the SVM because those two depend
    on the scale of the features, which random weights get wrong. Solver L-BFGS, L2 penalty, C =
    0.1; the scale is the training split's. There is nothing random in it.

    Args:
        train: at least two classes.
        test: features of the same width.
    """
    regression = LogisticRegression(C=INVERSE_PENALTY, max_iter=_ITERATIONS)
    pipeline = make_pipeline(StandardScaler(), regression)
    check_classes(train)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        pipeline.fit(train.features.double().numpy(), train.labels.numpy())
    cut_short = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    note = f"the regression stopped at {_ITERATIONS} iterations, not converged" if cut_short else ""
    predicted = torch.from_numpy(pipeline.predict(test.features.double().numpy()))
    return score_predictions(predicted, test.labels, note=note)
