"""The terms of the loss, and statistics of the teacher's posteriors.

Sizes: B shapes, T targets and S predictions per shape, R rows, Q prototypes, D width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

KOLEO_EPS = 1e-6
SMOOTH_L1_BETA = 2.0

ROWS_AT_ONCE = 8192
"""Rows of teacher logits whose probabilities are in memory at a time: 128 MiB at 4096 prototypes."""

_CHUNK_ON_CPU = 2**18
"""Logits per chunk: one MiB of float32, which fits into a core's own cache."""

_CHUNK_ON_GPU = 2**24
"""Logits per chunk: 64 MiB of float32, enough to keep the device busy."""


def view_cross_entropy(
    student_logits: Tensor, teacher_probs: Tensor, *, student_temperature: float | Tensor
) -> Tensor:
    """Mean cross-entropy, in nats, of every prediction of a shape against every target of the same shape.

    Args:
        student_logits: (B, S, Q), before softmax.
        teacher_probs: (B, T, Q), rows sum to 1; no gradient flows into it.
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
    student_temperature: float | Tensor,
) -> Tensor:
    """Mean cross-entropy, in nats, of each predicted patch against the teacher's distribution for that patch.

    The log-probabilities and the targets of all rows, each (R, Q), are never in memory as a whole: a compiler
    fuses the loss into one operation, and without one it is computed in chunks.

    Args:
        student_logits: (R, Q), before softmax, with a row for every hidden patch of every mask.
        teacher_probs: (T, Q), with a row for every patch; rows sum to 1, and no gradient flows into it.
        target_index: (R,) int64, the patch that each row predicts.
        student_temperature: positive; below 1 sharpens the prediction.
    """
    if torch.compiler.is_compiling():
        return plain_cross_entropy(student_logits, teacher_probs, target_index, student_temperature)
    return chunked_cross_entropy(student_logits, teacher_probs, target_index, student_temperature)


def plain_cross_entropy(
    student_logits: Tensor,
    teacher_probs: Tensor,
    target_index: Tensor,
    student_temperature: float | Tensor,
) -> Tensor:
    """``patch_cross_entropy`` as one expression, which makes several (R, Q) tensors unless it is compiled."""
    loss: Tensor = _FusableCrossEntropy.apply(  # type: ignore[no-untyped-call]
        student_logits.float() / student_temperature, teacher_probs, target_index
    )
    return loss


def chunked_cross_entropy(
    student_logits: Tensor,
    teacher_probs: Tensor,
    target_index: Tensor,
    student_temperature: float | Tensor,
) -> Tensor:
    """``patch_cross_entropy`` in chunks of rows, with a gradient written by hand; needs no compiler."""
    loss: Tensor = _IndexedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        student_logits, teacher_probs, target_index, student_temperature
    )
    return loss


def koleo(features: Tensor, all_features: Tensor | None = None, *, first: int = 0) -> Tensor:
    """Kozachenko-Leonenko regulariser, which keeps the features of different shapes apart.

    It is the mean of -log(distance to the nearest other shape + 1e-6). A view, whole or under a mask, is compared
    only with the views of other shapes that have the same index.

    Args:
        features: (B, S, D), S views of each shape; they need not be normalised.
        all_features: (B', S, D), those of all processes' shapes, including these; None for a single process.
        first: index in ``all_features`` of the first of these shapes.
    """
    ours = functional.normalize(features.float(), dim=-1, eps=1e-8).transpose(0, 1)  # (S, B, D)
    if all_features is None:
        others = ours
    else:
        others = functional.normalize(all_features.float(), dim=-1, eps=1e-8).transpose(0, 1)
    if others.shape[1] < 2:
        # A single shape has no neighbour. Autograd still needs a result that depends on the features.
        return features.sum() * 0.0
    with torch.no_grad():
        cosine = ours @ others.transpose(1, 2)
        # Lower than any cosine, so that a shape is not its own neighbour.
        cosine.diagonal(first, dim1=1, dim2=2).fill_(-2.0)
        nearest = cosine.argmax(-1)
    neighbours = others.gather(1, nearest[..., None].expand(-1, -1, others.shape[-1]))
    distance = functional.pairwise_distance(ours, neighbours, eps=KOLEO_EPS)
    return -(distance + KOLEO_EPS).log().mean()


def feature_regression(predicted: Tensor, target: Tensor) -> Tensor:
    """Smooth L1 distance (beta 2.0) between predicted and teacher features, averaged over all elements."""
    return functional.smooth_l1_loss(predicted.float(), target.float(), beta=SMOOTH_L1_BETA)


class PosteriorStats(NamedTuple):
    """How the teacher's posteriors (its softmax over the prototypes) are spread.

    Averaged over batches of the same size, both are the values of all batches together.
    """

    marginal: Tensor  # (Q,) mean of the posteriors
    posterior_entropy: Tensor  # scalar, nats: mean of the posteriors' entropies


@torch.no_grad()
def posterior_stats(logits: Tensor, temperature: float | Tensor) -> PosteriorStats:
    """Marginal and mean posterior entropy of centred teacher logits (..., Q) at ``temperature``."""
    rows = logits.flatten(0, -2)
    marginal = rows.new_zeros(rows.shape[1], dtype=torch.float32)
    entropy = rows.new_zeros((), dtype=torch.float32)
    for part in rows.split(ROWS_AT_ONCE):
        log_probs = (part.float() / temperature).log_softmax(-1)
        probs = log_probs.exp()
        marginal += probs.sum(0)
        entropy -= (probs * log_probs).sum()
    return PosteriorStats(marginal / len(rows), entropy / len(rows))


class _FusableCrossEntropy(torch.autograd.Function):
    """Cross-entropy for a compiler, whose gradient is computed number by number, without a sum over a row.

    Autograd's sums the targets of a row first. A kernel that reads a long row in two loops then writes all that it
    has summed, in float32, to read it again.

    It takes (R, Q) logits, (T, Q) probabilities and (R,) rows of these. The gradient is right only if each row of
    probabilities has the sum 1, as a softmax's has.
    """

    @staticmethod
    def forward(ctx: Any, scaled: Tensor, target_probs: Tensor, target_index: Tensor) -> Tensor:
        normalizers = scaled.logsumexp(-1, keepdim=True)
        ctx.save_for_backward(scaled, target_probs, target_index, normalizers)
        return (target_probs[target_index] * (normalizers - scaled)).sum(-1).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        scaled, target_probs, target_index, normalizers = ctx.saved_tensors
        excess = (scaled - normalizers).exp() - target_probs[target_index]
        return excess * (gradient / len(scaled)), None, None


class _IndexedCrossEntropy(torch.autograd.Function):
    """Cross-entropy that keeps one number per row for the backward pass: the log of the softmax's denominator."""

    # The backward pass computes the softmax again from it. Autograd would keep several (R, Q) tensors instead.

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target_probs: Tensor,
        target_index: Tensor,
        temperature: float | Tensor,
    ) -> Tensor:
        normalizers = []
        total = torch.zeros((), device=logits.device)
        for rows, index in _chunks(logits, target_index):
            scaled = rows.float() / temperature
            normalizers.append(scaled.logsumexp(-1))
            agreement = (scaled * target_probs[index]).sum()
            total += normalizers[-1].sum() - agreement
        ctx.save_for_backward(logits, target_probs, target_index, torch.cat(normalizers))
        ctx.temperature = temperature
        return total / len(logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        logits, target_probs, target_index, normalizers = ctx.saved_tensors
        factor = gradient / (ctx.temperature * len(logits))
        grad_logits = torch.empty_like(logits)
        chunks = zip(
            _chunks(logits, target_index),
            _chunks(grad_logits, normalizers),
            strict=True,
        )
        for (rows, index), (grad_rows, normalizer) in chunks:
            # d/dlogits = (softmax - target) / (temperature · R), the softmax from the forward pass's normalizers.
            excess = (rows.float() / ctx.temperature).sub_(normalizer[:, None]).exp_()
            grad_rows.copy_(excess.sub_(target_probs[index]).mul_(factor))
        return grad_logits, None, None, None


def _chunks(logits: Tensor, beside: Tensor) -> zip[tuple[Tensor, Tensor]]:
    """Chunks of the rows of ``logits`` (R, Q), each with the same rows of ``beside``."""
    logits_per_chunk = _CHUNK_ON_CPU if logits.device.type == "cpu" else _CHUNK_ON_GPU
    rows = max(1, logits_per_chunk // logits.shape[1])
    return zip(logits.split(rows), beside.split(rows), strict=True)
