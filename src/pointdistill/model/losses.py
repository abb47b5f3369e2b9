"""The terms of the loss.

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
    # Cross-entropy is bilinear, so the mean over all T × S pairs needs only the sums over T and over S.
    agreement = (teacher_probs.sum(1) * log_probs.sum(1)).sum()
    return -agreement / (len(teacher_probs) * teacher_probs.shape[1] * student_logits.shape[1])


def patch_cross_entropy(
    student_logits: Tensor,
    teacher_probs: Tensor,
    target_index: Tensor,
    *,
    student_temperature: float,
) -> Tensor:
    """Mean cross-entropy, in nats, of each predicted patch against the teacher's distribution for that patch.

    Args:
        student_logits: (R, K), before softmax, with a row for every hidden patch of every mask.
        teacher_probs: (T, K), with a row for every patch; rows sum to 1, and no gradient flows into it.
        target_index: (R,) int64, which patch each row predicts.
        student_temperature: positive; below 1 sharpens the prediction.
    """
    return indexed_cross_entropy(
        student_logits, teacher_probs, target_index, temperature=student_temperature
    )


def koleo(features: Tensor, everyone: Tensor | None = None, *, first: int = 0) -> Tensor:
    """Kozachenko-Leonenko regulariser, which keeps the features of different shapes apart.

    It is the mean of -log(distance to the nearest other shape + 1e-6), where crops are compared only with the
    crops at the same position of other shapes.

    Args:
        features: (B, S, D), S crops of each shape, of any length.
        everyone: (B', S, D) features of the shapes of all processes, these included; None for these alone.
        first: index in ``everyone`` of the first of these shapes.
    """
    ours = functional.normalize(features.float(), dim=-1, eps=1e-8).transpose(0, 1)  # (S, B, D)
    if everyone is None:
        others = ours
    else:
        others = functional.normalize(everyone.float(), dim=-1, eps=1e-8).transpose(0, 1)
    if others.shape[1] < 2:
        # A single shape has no neighbour; the result is still a function of the features, for autograd.
        return features.sum() * 0.0
    with torch.no_grad():
        cosine = ours @ others.transpose(1, 2)
        # Below any cosine, because a shape is not its own neighbour.
        cosine.diagonal(first, dim1=1, dim2=2).fill_(-2.0)
        nearest = cosine.argmax(-1)
    neighbours = others.gather(1, nearest[..., None].expand(-1, -1, others.shape[-1]))
    distance = functional.pairwise_distance(ours, neighbours, eps=KOLEO_EPS)
    return -(distance + KOLEO_EPS).log().mean()


def feature_regression(predicted: Tensor, target: Tensor) -> Tensor:
    """Smooth L1 distance (beta 2.0) between predicted and teacher features, averaged over all elements."""
    return functional.smooth_l1_loss(predicted.float(), target.float(), beta=SMOOTH_L1_BETA)
