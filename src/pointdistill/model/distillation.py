"""Asymmetric dual self-distillation: student, teacher, objective; a step reads as the method does.

Sizes: B shapes, V global views, L local views, M masks a view, P patches, H hidden patches, K prototypes.
Source: AsymDSD (arXiv 2506.21724); the numbers of a step are in docs/method.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pointdistill.model.config import Mode as Mode
from pointdistill.model.config import Temperatures as Temperatures
from pointdistill.model.encoder import Encoder, EncoderConfig, Tokens
from pointdistill.model.heads import HeadConfig, ProjectionHead
from pointdistill.model.losses import (
    feature_regression,
    koleo,
    patch_cross_entropy,
    view_cross_entropy,
)
from pointdistill.model.masking import Masks
from pointdistill.model.patches import Patches, gather_points
from pointdistill.model.predictor import Predictor, PredictorConfig

CENTER_MOMENTUM = 0.9
KOLEO_WEIGHT = 0.01


@dataclass(frozen=True, slots=True)
class Views:
    """The input of a step, cut into patches."""

    global_views: Patches
    """(B, V, P, ...)."""

    local_views: Patches | None
    """(B, L, P', ...); None in MPM mode, and where a run has no local views."""

    masks: Masks | None
    """B · V · M rows; None in CLS mode."""

    masks_per_view: int
    """M."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What the teacher says of the unmasked global views. Logits are centred; nothing carries a gradient."""

    cls_logits: Tensor | None
    """(B, V, K)."""

    patch_logits: Tensor | None
    """(B · V, P, K)."""

    patch_features: Tensor
    """(B · V, P, D), after the final norm."""

    def recentered(self, teacher: Teacher, means: dict[str, Tensor]) -> Targets:
        """The same targets, centred on ``means`` instead of the teacher's running centres."""
        cls_logits, patch_logits = self.cls_logits, self.patch_logits
        if cls_logits is not None:
            cls_logits = cls_logits + teacher.cls_center - means["cls_center"]
        if patch_logits is not None:
            patch_logits = patch_logits + teacher.patch_center - means["patch_center"]
        return Targets(cls_logits, patch_logits, self.patch_features)


@dataclass(frozen=True, slots=True)
class Predictions:
    """What the student says. Logits are before any temperature."""

    masked_cls_logits: Tensor | None = None
    """(B, V · M, K)."""

    whole_cls_logits: Tensor | None = None
    """(B, 1 or V, K) of unmasked global views: view 0 in dual mode, all in CLS mode."""

    local_cls_logits: Tensor | None = None
    """(B, L, K)."""

    cls_features: Tensor | None = None
    """(B, crops, D) before the head, of all global versions; KoLeo reads these."""

    patch_logits: Tensor | None = None
    """(B · V · M, H, K)."""

    patch_features: Tensor | None = None
    """(B · V · M, H, D) before the head."""


@dataclass(frozen=True, slots=True)
class Losses:
    """One step's loss and its terms, unweighted; scalars."""

    total: Tensor
    terms: dict[str, Tensor]


class Branch(nn.Module):
    """What student and teacher have in common: the encoder and the projection heads."""

    def __init__(self, mode: Mode, encoder: EncoderConfig, head: HeadConfig) -> None:
        super().__init__()
        self.encoder = Encoder(encoder)
        self.cls_head = ProjectionHead(encoder.width, head) if mode.has_cls else None
        self.patch_head = ProjectionHead(encoder.width, head) if mode.has_patches else None


class Student(Branch):
    """The trained branch; the predictor and its mask token are its own.

    Without a predictor (an ablation) the mask token stands at every hidden place of the encoder's own input.
    """

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

    def forward(self, views: Views, generator: torch.Generator | None = None) -> Predictions:
        """All passes of the student; in DDP this is the one call that is wrapped."""
        shapes = len(views.global_views.centers)
        tokens = self.encoder.embed(views.global_views.flatten())  # embedded once a view
        if self.mode is Mode.MPM:
            return self._predict_masked(tokens, views, generator)[1]
        assert self.cls_head is not None
        local_logits = self._local_logits(views, generator)
        whole, _ = self.encoder.encode(self._unmasked(tokens, shapes), generator)
        assert whole is not None
        whole = whole.unflatten(0, (shapes, -1))
        if self.mode is Mode.CLS:
            return Predictions(
                whole_cls_logits=self.cls_head(whole),
                local_cls_logits=local_logits,
                cls_features=whole,
            )
        masked, patches = self._predict_masked(tokens, views, generator)
        assert masked is not None
        masked = masked.unflatten(0, (shapes, -1))
        return Predictions(
            masked_cls_logits=self.cls_head(masked),
            whole_cls_logits=self.cls_head(whole),
            local_cls_logits=local_logits,
            cls_features=torch.cat([whole, masked], dim=1),
            patch_logits=patches.patch_logits,
            patch_features=patches.patch_features,
        )

    def _local_logits(self, views: Views, generator: torch.Generator | None) -> Tensor | None:
        """CLS logits (B, L, K) of the local views; None where there are none."""
        if views.local_views is None:
            return None
        assert self.cls_head is not None
        tokens = self.encoder.embed(views.local_views.flatten())
        local, _ = self.encoder.encode(tokens, generator)
        assert local is not None
        return self.cls_head(local.unflatten(0, (len(views.local_views.centers), -1)))

    def _unmasked(self, tokens: Tokens, shapes: int) -> Tokens:
        """The global views that are also seen whole: all in CLS mode, each shape's first in dual mode."""
        if self.mode is Mode.CLS:
            return tokens
        views = len(tokens.features) // shapes
        return Tokens(tokens.features[::views], tokens.positions[::views])

    def _predict_masked(
        self, tokens: Tokens, views: Views, generator: torch.Generator | None
    ) -> tuple[Tensor | None, Predictions]:
        """CLS features (B · V · M, D) of the visible tokens, and predictions of the hidden patches."""
        assert self.patch_head is not None
        assert views.masks is not None
        versions = Tokens(
            tokens.features.repeat_interleave(views.masks_per_view, 0),
            tokens.positions.repeat_interleave(views.masks_per_view, 0),
        )
        if self.predictor is None:
            cls, patches = self.encoder.encode(self._blanked(versions, views.masks), generator)
            features = gather_points(patches, views.masks.hidden_index)
        else:
            cls, seen = self.encoder.encode(versions.select(views.masks.visible_index), generator)
            memory = seen if cls is None else torch.cat([cls[:, None], seen], dim=1)
            where = gather_points(versions.positions, views.masks.hidden_index)
            features = self.predictor(where, memory)
        return cls, Predictions(patch_logits=self.patch_head(features), patch_features=features)

    def _blanked(self, versions: Tokens, masks: Masks) -> Tokens:
        """All places of every version, the mask token at the hidden ones; positions as they are."""
        assert self.mask_token is not None
        place = masks.hidden_index[..., None].expand(-1, -1, versions.features.shape[-1])
        token = self.mask_token.to(versions.features.dtype).expand(place.shape)
        return Tokens(versions.features.scatter(1, place, token), versions.positions)


class Teacher(Branch):
    """The moving average of the student, with the running centres of its logits. Never gets a gradient."""

    cls_center: Tensor
    patch_center: Tensor

    def __init__(self, mode: Mode, encoder: EncoderConfig, head: HeadConfig) -> None:
        super().__init__(mode, encoder, head)
        self.register_buffer("cls_center", torch.zeros(head.prototypes))
        self.register_buffer("patch_center", torch.zeros(head.prototypes))
        self.requires_grad_(requires_grad=False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:  # noqa: ARG002 (the signature is PyTorch's)
        """Stay in evaluation mode: the teacher has no stochastic depth."""
        super().train(mode=False)
        return self

    @torch.no_grad()
    def forward(self, global_views: Patches) -> tuple[Targets, dict[str, Tensor]]:
        """Targets for all global views, unmasked, and the mean uncentred logits for ``update_centers``."""
        shapes = len(global_views.centers)
        cls, patches = self.encoder.encode(self.encoder.embed(global_views.flatten()))
        means: dict[str, Tensor] = {}
        cls_logits = patch_logits = None
        if self.cls_head is not None:
            assert cls is not None
            logits = self.cls_head(cls).float().unflatten(0, (shapes, -1))
            means["cls_center"] = logits.mean((0, 1))
            cls_logits = logits - self.cls_center
        if self.patch_head is not None:
            logits = self.patch_head(patches).float()
            means["patch_center"] = logits.mean((0, 1))
            patch_logits = logits - self.patch_center
        return Targets(cls_logits, patch_logits, patches), means

    @torch.no_grad()
    def update_centers(self, means: dict[str, Tensor], momentum: float = CENTER_MOMENTUM) -> None:
        """c ← momentum · c + (1 − momentum) · mean, after the targets of the step used the old c."""
        for name, mean in means.items():
            getattr(self, name).lerp_(mean, 1.0 - momentum)

    @torch.no_grad()
    def follow(self, student: Branch, momentum: float) -> None:
        """teacher ← momentum · teacher + (1 − momentum) · student, over encoder and heads."""
        theirs = dict(student.named_parameters())
        names, ours = zip(*self.named_parameters(), strict=True)
        torch._foreach_lerp_(list(ours), [theirs[name] for name in names], 1.0 - momentum)


def objective(
    mode: Mode,
    predictions: Predictions,
    targets: Targets,
    masks: Masks | None,
    temperatures: Temperatures,
    *,
    gather: Callable[[Tensor], tuple[Tensor, int]] | None = None,
) -> Losses:
    """The total loss of a step and its terms (section 5 of docs/method.md)."""
    terms: dict[str, Tensor] = {}
    weights: dict[str, float] = {}
    if mode.has_patches:
        terms |= _patch_terms(mode, predictions, targets, masks, temperatures)
        weights |= dict.fromkeys(terms, 1.0)
    if mode.has_cls:
        terms["cls"] = _cls_term(mode, predictions, targets, temperatures)
        assert predictions.cls_features is not None
        if gather is None:
            terms["koleo"] = koleo(predictions.cls_features)
        else:
            everyone, first = gather(predictions.cls_features)
            terms["koleo"] = koleo(predictions.cls_features, everyone, first=first)
        weights |= {"cls": 1.0, "koleo": KOLEO_WEIGHT}
    # Summed from the terms themselves: a zero made on the host would be sent to the device, and waited for.
    total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return Losses(total / sum(weights.values()), terms)


def _patch_terms(
    mode: Mode,
    predictions: Predictions,
    targets: Targets,
    masks: Masks | None,
    temperatures: Temperatures,
) -> dict[str, Tensor]:
    """The patch loss over every hidden patch of every mask; in MPM mode also the regression."""
    assert masks is not None
    assert predictions.patch_logits is not None
    assert predictions.patch_features is not None
    assert targets.patch_logits is not None
    probs = (targets.patch_logits / temperatures.patch_teacher).softmax(-1)
    rows, (views, patches) = len(masks.hidden_index), probs.shape[:2]
    view = torch.arange(rows, device=probs.device) // (rows // views)  # of each row of masks
    target_index = (masks.hidden_index + patches * view[:, None]).flatten()
    terms = {
        "patch": patch_cross_entropy(
            predictions.patch_logits.flatten(0, 1),
            probs.flatten(0, 1),
            target_index,
            student_temperature=temperatures.student,
        )
    }
    if mode is Mode.MPM:
        wanted = targets.patch_features.flatten(0, 1)[target_index]
        terms["regression"] = feature_regression(predictions.patch_features.flatten(0, 1), wanted)
    return terms


def _cls_term(
    mode: Mode, predictions: Predictions, targets: Targets, temperatures: Temperatures
) -> Tensor:
    """Mean of the CLS cross-entropies: local, masked global and view to view; in CLS mode local and global.

    Without local views their term is left out of the mean.
    """
    assert targets.cls_logits is not None
    assert predictions.whole_cls_logits is not None
    probs = (targets.cls_logits / temperatures.cls_teacher).softmax(-1)

    def against(logits: Tensor, teacher_probs: Tensor) -> Tensor:
        return view_cross_entropy(logits, teacher_probs, student_temperature=temperatures.student)

    terms = []
    if predictions.local_cls_logits is not None:
        terms.append(against(predictions.local_cls_logits, probs))
    if mode is Mode.CLS:
        terms.append(against(predictions.whole_cls_logits, probs))
    else:
        assert predictions.masked_cls_logits is not None
        terms.append(against(predictions.masked_cls_logits, probs))
        terms.append(against(predictions.whole_cls_logits, probs[:, 1:]))
    return torch.stack(terms).mean()
