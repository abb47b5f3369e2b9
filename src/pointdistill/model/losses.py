"""The loss terms: small functions whose names say logits or probabilities.

Sizes: B shapes, T targets and S predictions a shape, K prototypes, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pointdistill.model.fused import indexed_cross_entropy

KOLEO_EPS = 1e-6
SMOOTH_L1_BETA = 2.0


def view_cross_entropy(
    student_logits: Tensor, teacher_probs: Tensor, *, student_temperature: float
) -> Tensor:
    """Mean cross-entropy, in nats, of every prediction of a shape against every target of it.

    Args:
        student_logits: (B, S, K), before softmax.
        teacher_probs: (B, T, K), rows sum to 1; no gradient flows into it.
        student_temperature: positive; below 1 sharpens the prediction.
    """
    log_probs = (student_logits.float() / student_temperature).log_softmax(dim=-1)
    # The mean over all T × S pairs needs only the sums over T and over S.
    agreement = (teacher_probs.sum(1) * log_probs.sum(1)).sum()
    return -agreement / (len(teacher_probs) * teacher_probs.shape[1] * student_logits.shape[1])


def patch_cross_entropy(
    student_logits: Tensor,
    teacher_probs: Tensor,
    target_index: Tensor,
    *,
    student_temperature: float,
) -> Tensor:
    """Mean cross-entropy, in nats, of each predicted patch against the teacher's word on the same patch.

    Args:
        student_logits: (R, K), before softmax, a row for every hidden patch of every mask.
        teacher_probs: (T, K), a row for every patch, rows sum to 1; no gradient flows into it.
        target_index: (R,) int64, which patch each row predicts.
        student_temperature: positive; below 1 sharpens the prediction.
    """
    return indexed_cross_entropy(
        student_logits, teacher_probs, target_index, temperature=student_temperature
    )


def koleo(features: Tensor, everyone: Tensor | None = None, *, first: int = 0) -> Tensor:
    """Kozachenko-Leonenko regulariser: keeps the shapes of a batch apart.

    For each crop position by itself, −log(distance to the nearest other shape + 1e-6), averaged.

    Args:
        features: (B, S, D), S crops a shape; normalised here.
        everyone: (B', S, D) the shapes of all processes, ours among them; ours alone when None.
        first: index of our first shape in ``everyone``.
    """
    ours = functional.normalize(features.float(), dim=-1, eps=1e-8).transpose(0, 1)  # (S, B, D)
    if everyone is None:
        others = ours
    else:
        others = functional.normalize(everyone.float(), dim=-1, eps=1e-8).transpose(0, 1)
    if others.shape[1] < 2:
        return features.sum() * 0.0  # One shape alone has no neighbour to keep away from.
    with torch.no_grad():
        cosine = ours @ others.transpose(1, 2)
        cosine.diagonal(first, dim1=1, dim2=2).fill_(-2.0)  # oneself: below any cosine
        nearest = cosine.argmax(-1)
    neighbours = others.gather(1, nearest[..., None].expand(-1, -1, others.shape[-1]))
    distance = functional.pairwise_distance(ours, neighbours, eps=KOLEO_EPS)
    return -(distance + KOLEO_EPS).log().mean()


def feature_regression(predicted: Tensor, target: Tensor) -> Tensor:
    """Smooth L1 (beta 2.0) between predicted and teacher features, the plain mean over elements."""
    return functional.smooth_l1_loss(predicted.float(), target.float(), beta=SMOOTH_L1_BETA)
