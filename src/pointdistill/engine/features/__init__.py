"""How clouds become features, and probes: classifiers that measure how good frozen features are.

Which of the features a probe reads is decided in ``pointdistill.engine.evaluation.protocols``.
"""

from pointdistill.engine.features.fitted_probes import (
    Confusion,
    Samples,
    Score,
    cross_validate,
    logistic_probe,
    nearest_neighbour_probe,
    rank_classes,
    score_predictions,
    svm_probe,
    svm_scores,
)
from pointdistill.engine.features.probe_heads import (
    Head,
    HeadTraining,
    LinearHead,
    MlpHead,
    linear_probe,
    mean_logits,
    smooth_targets,
    train_head,
    train_heads,
)

__all__ = [
    "Confusion",
    "Head",
    "HeadTraining",
    "LinearHead",
    "MlpHead",
    "Samples",
    "Score",
    "cross_validate",
    "linear_probe",
    "logistic_probe",
    "mean_logits",
    "nearest_neighbour_probe",
    "rank_classes",
    "score_predictions",
    "smooth_targets",
    "svm_probe",
    "svm_scores",
    "train_head",
    "train_heads",
]
