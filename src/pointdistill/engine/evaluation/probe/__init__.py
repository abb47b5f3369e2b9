"""Classifiers on frozen features: what a representation is worth, with nothing of it trained.

Every probe takes ``Samples`` and returns a ``Score``. Which pooled features each reads is decided
in ``pointdistill.engine.evaluation``.
"""

from pointdistill.engine.evaluation.probe.linear import LinearHead, linear_probe
from pointdistill.engine.evaluation.probe.logistic import logistic_probe
from pointdistill.engine.evaluation.probe.mlp import MlpHead
from pointdistill.engine.evaluation.probe.nearest import nearest_neighbour_probe
from pointdistill.engine.evaluation.probe.samples import Samples, Score, score_predictions
from pointdistill.engine.evaluation.probe.svm import svm_probe
from pointdistill.engine.evaluation.probe.training import HeadTraining, train_heads

__all__ = [
    "HeadTraining",
    "LinearHead",
    "MlpHead",
    "Samples",
    "Score",
    "linear_probe",
    "logistic_probe",
    "nearest_neighbour_probe",
    "score_predictions",
    "svm_probe",
    "train_heads",
]
