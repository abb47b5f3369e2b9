"""The classifier: an encoder, pooling of its tokens, and a head. Source: docs/method.md, section 7.

Sizes: B clouds, P patches, D the encoder's width, C classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointdistill.errors import ConfigError
from pointdistill.model.encoder import Encoder
from pointdistill.model.patches import Patches
from pointdistill.model.transformer import Block


class Pooling(StrEnum):
    """How the tokens of a cloud are pooled into one feature vector."""

    CLS_MEAN_MAX = "cls-mean-max"
    """CLS, mean and maximum of the patches, concatenated: 3D values, or 2D without a CLS token."""

    MEAN_MAX = "mean-max"
    """Mean and maximum over the patches and the CLS token together, concatenated: 2D values."""

    def width(self, encoder: Encoder) -> int:
        """Length of the pooled vector."""
        with_cls = self is Pooling.CLS_MEAN_MAX and encoder.config.cls_token
        return (3 if with_cls else 2) * encoder.config.width

    def __call__(self, cls: Tensor | None, patches: Tensor) -> Tensor:
        """(B, width) from (B, D) CLS features, or None, and (B, P, D) patch features."""
        if self is Pooling.CLS_MEAN_MAX:
            pooled = [patches.mean(1), patches.amax(1)]
            return torch.cat(pooled if cls is None else [cls, *pooled], dim=1)
        tokens = patches if cls is None else torch.cat([cls[:, None], patches], dim=1)
        return torch.cat([tokens.mean(1), tokens.amax(1)], dim=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierConfig:
    """The settings of a classifier besides its encoder's."""

    classes: int
    """C, at least 2."""

    pooling: Pooling = Pooling.CLS_MEAN_MAX

    hidden: tuple[int, ...] = (256, 256)
    """Widths of the head's hidden layers; an empty tuple makes the head linear, with a bias."""

    dropout: float = 0.5
    """Dropout rate after every hidden layer."""

    drop_path: float = 0.0
    """Stochastic depth rate of the encoder's last block; the rates rise linearly from 0 in the first block."""

    def __post_init__(self) -> None:
        if self.classes < 2:
            msg = f"a classifier needs at least 2 classes, got {self.classes}"
            raise ConfigError(msg)
        for name in ("dropout", "drop_path"):
            if not 0.0 <= getattr(self, name) < 1.0:
                msg = f"classifier.{name} must lie in [0, 1), got {getattr(self, name)!r}"
                raise ConfigError(msg)


class NormedMlp(nn.Module):
    """Linear layers over rows; each hidden one is followed by BatchNorm, GELU and dropout.

    Hidden layers have no bias, because BatchNorm has one. BatchNorm treats all leading axes together as the batch.
    """

    def __init__(
        self,
        width: int,
        hidden: Sequence[int],
        *,
        dropout: Sequence[float],
        outputs: int | None = None,
        bias: bool = False,
    ) -> None:
        """Build the layers.

        Args:
            width: width of the input rows.
            hidden: widths of the hidden layers.
            dropout: dropout rate after each of them.
            outputs: width of a final linear layer; None for no such layer.
            bias: whether the final layer has a bias.
        """
        super().__init__()
        inner = itertools.pairwise([width, *hidden])
        self.linears = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in inner)
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in hidden)
        self.dropout = tuple(dropout)
        if len(self.dropout) != len(self.norms):
            msg = f"expected {len(self.norms)} dropout rates, one per hidden layer, got {self.dropout}"
            raise ValueError(msg)
        if outputs is not None:
            self.linears.append(nn.Linear([width, *hidden][-1], outputs, bias=bias))

    @property
    def first_linear(self) -> nn.Linear:
        """The layer that reads the rows."""
        linear = self.linears[0]
        assert isinstance(linear, nn.Linear)
        return linear

    def forward(self, rows: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(..., outputs) from (..., width); ``generator`` is the source of dropout in training."""
        return self.after_first_linear(self.first_linear(rows), generator)

    def after_first_linear(self, rows: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The rest of ``forward``: (..., outputs) from what the first linear layer gives, (..., hidden).

        For callers who compute that layer in a cheaper way.
        """
        for place, norm in enumerate(self.norms):
            rows = norm(rows.flatten(0, -2)).view(rows.shape)
            rows = functional.gelu(rows)
            if self.training:
                rows = dropout(rows, self.dropout[place], generator)
            if place + 1 < len(self.linears):
                rows = self.linears[place + 1](rows)
        return rows


def dropout(rows: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Rows of any shape with a random share ``rate`` of the entries set to zero, the others divided by 1 - rate.

    A generator is required unless the rate is 0.
    """
    # PyTorch's own dropout can only draw from its global generator.
    if rate == 0.0:
        return rows
    assert generator is not None, "dropout in training needs a generator"
    mask = torch.rand(rows.shape, generator=generator, device=rows.device) >= rate
    return rows * mask / (1.0 - rate)


class Classifier(nn.Module):
    """Computes class logits from patches."""

    def __init__(self, encoder: Encoder, config: ClassifierConfig) -> None:
        """Put a head on ``encoder``, which becomes part of the classifier and is not copied."""
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.head = NormedMlp(
            config.pooling.width(encoder),
            config.hidden,
            dropout=[config.dropout] * len(config.hidden),
            outputs=config.classes,
            bias=not config.hidden,
        )
        ramp_stochastic_depth(encoder, config.drop_path)

    def features(self, patches: Patches, generator: torch.Generator | None = None) -> Tensor:
        """Pooled features (B, ``pooling.width``) of the patches of B clouds."""
        return self.config.pooling(
            *self.encoder.encode_tokens(self.encoder.embed(patches), generator)
        )

    def forward(self, patches: Patches, generator: torch.Generator | None = None) -> Tensor:
        """(B, C) logits.

        Args:
            patches: of clouds in their unit spheres.
            generator: source of stochastic depth and dropout; required in training unless all rates are 0.
        """
        return self.head(self.features(patches, generator), generator)


def ramp_stochastic_depth(encoder: Encoder, last: float) -> None:
    """Set the blocks' stochastic depth rates: 0 in the first, ``last`` in the last, linear in between."""
    blocks = list(encoder.transformer.blocks)
    for place, block in enumerate(blocks):
        assert isinstance(block, Block)
        block.depth.rate = last * place / max(1, len(blocks) - 1)


@torch.no_grad()
def initialize_uniform(head: nn.Module, *, generator: torch.Generator) -> None:
    """Draw weights from PyTorch's default distributions: linear ones U(-1, 1) / sqrt(inputs), embeddings N(0, 1).

    Norms become the identity.
    """
    for part in head.modules():
        if isinstance(part, nn.Linear):
            bound = 1.0 / math.sqrt(part.in_features)
            for parameter in part.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, generator=generator)
        elif isinstance(part, nn.BatchNorm1d | nn.LayerNorm):
            part.reset_parameters()
