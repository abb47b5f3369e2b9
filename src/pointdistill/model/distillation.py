"""Asymmetric dual self-distillation: student, teacher and objective.

Sizes: B shapes, V global views, L local views, M masks per view, P patches, H hidden patches, Q prototypes, D
    width, S views that the student sees in one way.
Source: AsymDSD (arXiv 2506.21724); the numbers of a step are in docs/method.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pointdistill.model.config import (
    KOLEO_WEIGHT,
    EncoderConfig,
    HeadConfig,
    Mode,
    PredictorConfig,
    Temperatures,
)
from pointdistill.model.encoder import Encoder, Tokens
from pointdistill.model.heads import Predictor, ProjectionHead
from pointdistill.model.losses import (
    feature_regression,
    koleo,
    patch_cross_entropy,
    view_cross_entropy,
)
from pointdistill.model.masking import Masks
from pointdistill.model.patches import Patches, gather_points
from pointdistill.model.transformer import DepthDraws, Mlp

CENTER_MOMENTUM = 0.9


class Head(StrEnum):
    """The two projection heads, named after the tokens they are applied to."""

    CLS = "cls"
    PATCH = "patch"


class SeenAs(StrEnum):
    """How the student saw a view whose CLS token is compared with the teacher's."""

    LOCAL = "local"
    MASKED = "masked"
    """The visible patches of a global view under one mask."""

    WHOLE = "whole"
    """A global view, unmasked."""


@dataclass(frozen=True, slots=True)
class Views:
    """The input of a step, as patches."""

    global_views: Patches
    """(B, V, P, ...)."""

    local_views: Patches | None
    """(B, L, P', ...); None in MPM mode, and in a run without local views."""

    masks: Masks | None
    """B · V · M rows: shape, then view, then mask; None in CLS mode."""


class TeacherOutput(NamedTuple):
    """The teacher's output for the unmasked global views, without gradient."""

    logits: dict[Head, Tensor]
    """(B, V, Q) of the CLS head, (B · V, P, Q) of the patch head, for those heads that the mode has.

    Raw, and in the dtype that the teacher computes them in."""

    patch_features: Tensor
    """(B · V, P, D), after the final norm."""

    centers: dict[Head, Tensor] | None = None
    """(Q,) each head's centre, which is subtracted from its logits wherever they are read; None for none."""

    def centered_logits(self, head: Head) -> Tensor:
        """The logits of a head less its centre, in float32."""
        # Not kept: they are twice as large as the raw ones of bf16, and whoever compiles this subtracts while
        # reading.
        logits = self.logits[head].float()
        return logits if self.centers is None else logits - self.centers[head]


class ViewLogits(NamedTuple):
    """CLS logits of all views that the student saw in one way, and which teacher views to compare them with."""

    seen_as: SeenAs
    logits: Tensor  # (B, S, Q), before any temperature
    first_target: int  # index of the first of the teacher's global views to compare with


class ClsPredictions(NamedTuple):
    """The student's predictions from its CLS tokens."""

    views: tuple[ViewLogits, ...]
    features: Tensor  # (B, S, D) of all whole and masked global views, before the head; for KoLeo


class PatchPredictions(NamedTuple):
    """The student's predictions of hidden patches. R = B · V · M · H rows: every hidden patch of every mask."""

    logits: Tensor  # (R, Q), before any temperature
    features: Tensor  # (R, D), before the head
    target_index: Tensor  # (R,) int64, the index of each among the teacher's B · V · P patches


class Predictions(NamedTuple):
    """The student's predictions from CLS tokens and of hidden patches; the mode decides which ones there are."""

    # Named tuples at every level, because DDP and FSDP find the tensors inside them without a wrapper.

    cls: ClsPredictions | None
    patch: PatchPredictions | None


@dataclass(frozen=True, slots=True)
class Losses:
    """The loss of a step and its unweighted terms; scalars."""

    total: Tensor
    terms: dict[str, Tensor]


class Branch(nn.Module):
    """The part that student and teacher have in common: the encoder and the projection heads."""

    def __init__(self, mode: Mode, encoder: EncoderConfig, head: HeadConfig) -> None:
        super().__init__()
        self.encoder = Encoder(encoder)
        self.cls_head = ProjectionHead(encoder.width, head) if mode.has_cls else None
        self.patch_head = ProjectionHead(encoder.width, head) if mode.has_patches else None


class Student(Branch):
    """The trained branch, which also has the predictor and its mask token.

    Without a predictor (an ablation) the mask token replaces every hidden patch in the encoder's own input.
    """

    packs_passes = False
    """Whether the encoder computes all passes together: fewer and larger operations, which a GPU needs."""

    def __init__(
        self,
        mode: Mode,
        encoder: EncoderConfig,
        head: HeadConfig,
        predictor: PredictorConfig | None,
    ) -> None:
        super().__init__(mode, encoder, head)
        self.mode = mode
        self.predictor: Predictor | None = None
        self.mask_token: nn.Parameter | None = None
        if mode.has_patches and predictor is not None:
            self.predictor = Predictor(encoder.width, predictor)
        elif mode.has_patches:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.width))

    def keep_less(self, less: bool) -> None:
        """Whether parts of the student compute again in the backward pass what they else keep for it.

        The patch embedding does so, and in compiled code also the MLPs of heads and predictor.
        """
        self.encoder.patch_embedding.recompute = less
        for part in self.modules():
            if isinstance(part, ProjectionHead):
                part.recompute = less
        for part in self.predictor.modules() if self.predictor is not None else ():
            if isinstance(part, Mlp):
                part.recompute = less

    def draw_depth(
        self, views: Views, generator: torch.Generator
    ) -> dict[SeenAs, list[DepthDraws]]:
        """Stochastic depth of every pass, which ``forward`` takes."""
        # Drawn before the passes, since a compiled pass can hold no generator.
        return {
            seen_as: self.encoder.transformer.draw_depth(rows, generator)
            for seen_as, rows in self._rows(views).items()
        }

    def _rows(self, views: Views) -> dict[SeenAs, int]:
        """The passes of the encoder, and how many rows each has.

        Their order must not change, since stochastic depth is drawn pass by pass from one generator.
        """
        shapes, global_count = views.global_views.centers.shape[:2]
        rows = {}
        if self.cls_head is not None:
            if views.local_views is not None:
                rows[SeenAs.LOCAL] = shapes * views.local_views.centers.shape[1]
            # All global views in CLS mode, and the first one of each shape in dual mode.
            rows[SeenAs.WHOLE] = shapes if self.patch_head is not None else shapes * global_count
        if self.patch_head is not None and views.masks is not None:
            rows[SeenAs.MASKED] = len(views.masks.hidden_index)
        return rows

    def forward(
        self, views: Views, draws: Mapping[SeenAs, Sequence[DepthDraws]] | None = None
    ) -> Predictions:
        """All passes of the student; this is the call that DDP and FSDP wrap.

        Args:
            views: the views and masks.
            draws: what ``draw_depth`` returned; None if the rate of stochastic depth is 0.
        """
        # Each view is embedded once, and its tokens are selected for every pass that uses them.
        tokens = self.encoder.embed(views.global_views.flatten())
        versions = _repeated(tokens, views.masks)
        passes = self._passes(tokens, versions, views)
        none = [(None, None)] * len(self.encoder.transformer.blocks)
        encoded = self.encoder.encode_passes(
            list(passes.values()),
            [none if draws is None else draws[seen_as] for seen_as in passes],
            packed=self.packs_passes,
        )
        outputs = dict(zip(passes, encoded, strict=True))
        patch = None
        if SeenAs.MASKED in outputs:
            patch = self._patch_predictions(versions, views, *outputs[SeenAs.MASKED])
        shapes = len(views.global_views.centers)
        cls = {
            seen_as: features.unflatten(0, (shapes, -1))
            for seen_as, (features, _) in outputs.items()
            if features is not None
        }
        return Predictions(self._cls_predictions(cls), patch)

    def _passes(self, tokens: Tokens, versions: Tokens, views: Views) -> dict[SeenAs, Tokens]:
        """What the encoder sees in each pass; of the global ``tokens`` and their ``versions``, one per mask."""
        passes: dict[SeenAs, Tokens] = {}
        for seen_as, rows in self._rows(views).items():
            if seen_as is SeenAs.LOCAL and views.local_views is not None:
                passes[seen_as] = self.encoder.embed(views.local_views.flatten())
            elif seen_as is SeenAs.WHOLE:
                stride = len(tokens.features) // rows
                passes[seen_as] = Tokens(tokens.features[::stride], tokens.positions[::stride])
            elif views.masks is not None:
                passes[seen_as] = self._masked(versions, views.masks)
        return passes

    def _masked(self, versions: Tokens, masks: Masks) -> Tokens:
        """What the encoder sees of the views under masks: the visible patches, or all with the mask token."""
        if self.predictor is None:
            return self._with_mask_token(versions, masks)
        return versions.select(masks.visible_index)

    def _patch_predictions(
        self, versions: Tokens, views: Views, cls: Tensor | None, patches: Tensor
    ) -> PatchPredictions:
        """The predictions of hidden patches, from the encoder's output for the masked pass."""
        masks, head = views.masks, self.patch_head
        assert masks is not None
        assert head is not None
        if self.predictor is None:
            features = gather_points(patches, masks.hidden_index)
        else:
            memory = patches if cls is None else torch.cat([cls[:, None], patches], dim=1)
            hidden_positions = gather_points(versions.positions, masks.hidden_index)
            features = self.predictor(hidden_positions, memory)
        return PatchPredictions(
            head(features).flatten(0, 1),
            features.flatten(0, 1),
            _target_index(masks, views.global_views),
        )

    def _with_mask_token(self, versions: Tokens, masks: Masks) -> Tokens:
        """The tokens with the features of hidden patches replaced by the mask token; positions are unchanged."""
        place = masks.hidden_index[..., None].expand(-1, -1, versions.features.shape[-1])
        token = self.get_parameter("mask_token").to(versions.features.dtype).expand(place.shape)
        return Tokens(versions.features.scatter(1, place, token), versions.positions)

    def _cls_predictions(self, cls: Mapping[SeenAs, Tensor]) -> ClsPredictions | None:
        """The CLS predictions of all passes, in the order in which their losses are added up."""
        if self.cls_head is None:
            return None
        # Dual mode sees only view 0 whole, and compares it with the teacher's other views. CLS mode compares all
        # whole views with all of the teacher's, including the same view.
        first_target = 1 if SeenAs.MASKED in cls else 0
        order = [s for s in (SeenAs.LOCAL, SeenAs.MASKED, SeenAs.WHOLE) if s in cls]
        # All tokens at once: the head then normalises its prototypes once.
        logits = self.cls_head(torch.cat([cls[seen_as] for seen_as in order], dim=1))
        parts = logits.split([cls[seen_as].shape[1] for seen_as in order], dim=1)
        views = tuple(
            ViewLogits(seen_as, part, first_target if seen_as is SeenAs.WHOLE else 0)
            for seen_as, part in zip(order, parts, strict=True)
        )
        global_cls = [cls[seen_as] for seen_as in (SeenAs.WHOLE, SeenAs.MASKED) if seen_as in cls]
        return ClsPredictions(views, torch.cat(global_cls, dim=1))


def _repeated(tokens: Tokens, masks: Masks | None) -> Tokens:
    """The tokens (B · V, ...) of every global view once for each of its masks: (B · V · M, ...)."""
    if masks is None:
        return tokens
    masks_per_view = len(masks.hidden_index) // len(tokens.features)
    return Tokens(
        tokens.features.repeat_interleave(masks_per_view, 0),
        tokens.positions.repeat_interleave(masks_per_view, 0),
    )


def _target_index(masks: Masks, global_views: Patches) -> Tensor:
    """Indices (B · V · M · H,) of all masks' hidden patches among the B · V · P patches of global views."""
    hidden = masks.hidden_index
    views, patches = global_views.centers.flatten(0, 1).shape[:2]
    view = torch.arange(len(hidden), device=hidden.device) // (len(hidden) // views)  # of each mask
    return (hidden + patches * view[:, None]).flatten()


class Teacher(Branch):
    """The moving average of the student, with the running centres of its logits; it has no gradients."""

    cls_center: Tensor
    patch_center: Tensor

    def __init__(self, mode: Mode, encoder: EncoderConfig, head: HeadConfig) -> None:
        super().__init__(mode, encoder, head)
        self.register_buffer("cls_center", torch.zeros(head.prototypes))
        self.register_buffer("patch_center", torch.zeros(head.prototypes))
        self.requires_grad_(requires_grad=False)
        self.eval()

    @property
    def centers(self) -> dict[Head, Tensor]:
        """(Q,) running centre of each head's logits; the buffers themselves."""
        return {Head.CLS: self.cls_center, Head.PATCH: self.patch_center}

    def train(self, mode: bool = True) -> Teacher:  # noqa: ARG002 (the signature is PyTorch's)
        """Stay in evaluation mode, since the teacher has no stochastic depth."""
        super().train(mode=False)
        return self

    @torch.no_grad()
    def forward(self, global_views: Patches) -> TeacherOutput:
        """Raw logits and patch features of all global views, unmasked."""
        shapes = len(global_views.centers)
        cls, patches = self.encoder.encode_tokens(self.encoder.embed(global_views.flatten()))
        logits = {}
        if self.cls_head is not None and cls is not None:
            logits[Head.CLS] = self.cls_head(cls).unflatten(0, (shapes, -1))
        if self.patch_head is not None:
            logits[Head.PATCH] = self.patch_head(patches)
        return TeacherOutput(logits, patches)

    @torch.no_grad()
    def copy_weights(self, student: Branch) -> None:
        """Copy the weights of the student's encoder and heads, at the start of a run."""
        students = dict(student.named_parameters())
        for name, parameter in self.named_parameters():
            parameter.copy_(students[name])


def objective(
    predictions: Predictions,
    targets: TeacherOutput,
    temperatures: Temperatures,
    *,
    koleo_weight: float = KOLEO_WEIGHT,
    gathered: tuple[Tensor, int] | None = None,
) -> Losses:
    """The total loss of a step and its terms (section 5 of docs/method.md).

    Args:
        predictions: the student's predictions, which decide which terms there are.
        targets: the teacher's output, with the centres of its logits.
        temperatures: the temperatures of this step.
        koleo_weight: weight of KoLeo in the total, which is a weighted mean; the other terms have weight 1.
        gathered: the student's global CLS features of all processes, and the index of our first row among them;
            None for one process.
    """
    terms: dict[str, Tensor] = {}
    if predictions.patch is not None:
        terms["patch"] = _patch_term(predictions.patch, targets, temperatures)
        if predictions.cls is None:
            # In MPM mode the student also regresses the teacher's features.
            features = targets.patch_features.flatten(0, 1)[predictions.patch.target_index]
            terms["regression"] = feature_regression(predictions.patch.features, features)
    if predictions.cls is not None:
        terms["cls"] = _cls_term(predictions.cls, targets, temperatures)
        features = predictions.cls.features
        all_features, first = (None, 0) if gathered is None else gathered
        terms["koleo"] = koleo(features, all_features, first=first)
    weights = {name: koleo_weight if name == "koleo" else 1.0 for name in terms}
    # Stacked and summed, not added to 0.0: a number made on the host would be copied to the device, and waited
    # for.
    total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return Losses(total / sum(weights.values()), terms)


def _patch_term(
    patch: PatchPredictions, targets: TeacherOutput, temperatures: Temperatures
) -> Tensor:
    """Cross-entropy of every hidden patch of every mask against the teacher's posterior of the same patch."""
    probs = (targets.centered_logits(Head.PATCH) / temperatures.patch_teacher).softmax(-1)
    return patch_cross_entropy(
        patch.logits,
        probs.flatten(0, 1),
        patch.target_index,
        student_temperature=temperatures.student,
    )


def _cls_term(cls: ClsPredictions, targets: TeacherOutput, temperatures: Temperatures) -> Tensor:
    """Mean of the cross-entropies of local, masked and whole views, with the same weight for each kind."""
    probs = (targets.centered_logits(Head.CLS) / temperatures.cls_teacher).softmax(-1)
    terms = [
        view_cross_entropy(
            view.logits, probs[:, view.first_target :], student_temperature=temperatures.student
        )
        for view in cls.views
    ]
    return torch.stack(terms).mean()
