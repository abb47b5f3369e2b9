"""A decoder that reconstructs the points of hidden patches from features of visible ones, and its training.

It is trained on frozen features, and its error measured on held-out shapes. Views and masks depend only on (seed,
epoch, shape index).

Sizes: B shapes, R rows (a view under a mask), P patches, of which S are visible and H hidden, K points per patch,
D encoder width, W decoder width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pointdistill.engine.pretraining.loader import Batch, PointSource, epoch_order, read_batch
from pointdistill.engine.runtime.optimizer import build_optimizer, clip_gradients
from pointdistill.engine.runtime.schedules import warmup_cosine
from pointdistill.errors import ConfigError, DataError
from pointdistill.model.config import AugmentConfig, CropConfig, EncoderConfig, MaskingConfig
from pointdistill.model.encoder import Encoder
from pointdistill.model.heads import PredictorBlock
from pointdistill.model.initialize import initialize
from pointdistill.model.masking import Masks, draw_masks
from pointdistill.model.patches import Patches, gather_points
from pointdistill.model.random import KeyedRandom, sample_keys
from pointdistill.model.transformer import RMSNorm
from pointdistill.model.views import draw_views

PLACE_HIDDEN = 64
"""Width of the hidden layer that embeds a patch's centre."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """Sizes of a decoder, small enough that what it reconstructs must come from the features."""

    width: int
    """W."""

    heads: int
    """Attention heads; divides ``width``."""

    depth: int = 2
    """Blocks of cross-attention and MLP."""

    def __post_init__(self) -> None:
        if self.depth < 1 or self.heads < 1 or self.width < 1 or self.width % self.heads:
            msg = f"decoder needs at least one block and heads that divide its width, got {self}"
            raise ConfigError(msg)


class PatchDecoder(nn.Module):
    """A query for each hidden patch, made from its position, attends to the features of the visible patches.

    Queries do not attend to each other, because their positions together would reveal the shape without any
    features.
    """

    def __init__(self, encoder_width: int, patch_points: int, config: DecoderConfig) -> None:
        super().__init__()
        self.patch_points = patch_points
        self.narrow = nn.Linear(encoder_width, config.width)
        self.place = nn.Sequential(
            nn.Linear(3, PLACE_HIDDEN), nn.GELU(), nn.Linear(PLACE_HIDDEN, config.width)
        )
        self.blocks = nn.ModuleList(
            PredictorBlock(config.width, config.heads, query_attention=False)
            for _ in range(config.depth)
        )
        self.norm = RMSNorm(config.width)
        self.draw = nn.Linear(config.width, 3 * patch_points)

    def forward(
        self,
        cls: Tensor | None,
        features: Tensor,
        visible_centers: Tensor,
        hidden_centers: Tensor,
    ) -> Tensor:
        """(R, H, K, 3) points of the hidden patches, relative to their centres.

        Args:
            cls: (R, D) of the CLS token, or None.
            features: (R, S, D) of the visible patches.
            visible_centers: (R, S, 3) in the view's unit sphere.
            hidden_centers: (R, H, 3).
        """
        memory = self.narrow(features) + self.place(visible_centers)
        if cls is not None:
            memory = torch.cat([self.narrow(cls)[:, None], memory], dim=1)
        queries = self.place(hidden_centers)
        for block in self.blocks:
            queries = block(queries, memory)
        return self.draw(self.norm(queries)).unflatten(-1, (self.patch_points, 3))


def chamfer_distance(predicted: Tensor, target: Tensor) -> Tensor:
    """Symmetric squared Chamfer distance (...) between points (..., K, 3) and (..., L, 3).

    It is the mean squared distance from a predicted point to the nearest target point, plus that from a target
    point to the nearest predicted point, in the square of the points' unit.
    """
    squared = (predicted.unsqueeze(-2) - target.unsqueeze(-3)).square().sum(-1)  # (..., K, L)
    return squared.amin(-1).mean(-1) + squared.amin(-2).mean(-1)


def copied_patches(patches: Patches, visible_index: Tensor, hidden_index: Tensor) -> Tensor:
    """Predictions (R, H, K, 3) without learning: each hidden patch is a copy of the visible patch nearest to it.

    Args:
        patches: all P patches of each of R views.
        visible_index: (R, S).
        hidden_index: (R, H).
    """
    visible = gather_points(patches.centers, visible_index)
    hidden = gather_points(patches.centers, hidden_index)
    nearest = torch.cdist(hidden, visible).argmin(-1)  # (R, H), indices into the visible patches
    source = visible_index.gather(1, nearest)
    rows = torch.arange(len(source), device=source.device)[:, None]
    return patches.offsets[rows, source]


FEWEST_SHAPES = 10
"""Smallest corpus from which shapes can be held out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReconstructConfig:
    """All settings that decide the figures of a comparison, besides the encoder and the corpus."""

    steps: int = 1000
    """Optimiser steps of each decoder."""

    batch_size: int = 32
    """Shapes per step; at most the number of training shapes."""

    learning_rate: float = 2e-3
    """Peak learning rate; linear warm-up over a twentieth of the steps, then cosine to zero."""

    weight_decay: float = 0.05
    clip_norm: float = 1.0

    held_out_share: float = 0.1
    """Share of the corpus's shapes that no decoder is trained on."""

    most_held_out: int = 512
    """Largest number of these shapes."""

    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """As in the encoder's pretraining, with one mask per view."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            msg = f"steps and batch_size must be at least 1, got {self.steps} and {self.batch_size}"
            raise ConfigError(msg)


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of the shapes for training and for measuring decoders."""

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MaskedViews:
    """The patches of B shapes, and which of them the encoder sees."""

    patches: Patches
    """(B, P, ...)."""

    masks: Masks
    """Indices of hidden (B, H) and visible (B, S) patches."""

    @property
    def target(self) -> Tensor:
        """(B, H, K, 3) points of the hidden patches, relative to their centres."""
        return _take_rows(self.patches.offsets, self.masks.hidden_index)

    @property
    def hidden_centers(self) -> Tensor:
        """(B, H, 3)."""
        return gather_points(self.patches.centers, self.masks.hidden_index)

    @property
    def visible_centers(self) -> Tensor:
        """(B, S, 3)."""
        return gather_points(self.patches.centers, self.masks.visible_index)


def split_shapes(shapes: int, config: ReconstructConfig, *, seed: int) -> Split:
    """Hold out a random share of a corpus.

    Raises:
        DataError: if there are too few to split.
    """
    if shapes < FEWEST_SHAPES:
        msg = f"the corpus holds {shapes} shapes; at least {FEWEST_SHAPES} are needed to hold some out"
        raise DataError(msg, settings=("data",))
    order = np.random.default_rng(np.random.SeedSequence((seed, shapes))).permutation(shapes)
    count = min(config.most_held_out, max(1, round(config.held_out_share * shapes)))
    return Split(train=np.sort(order[count:]), held_out=np.sort(order[:count]))


def decoder_config(encoder: EncoderConfig) -> DecoderConfig:
    """A decoder no wider than the small model's predictor, with heads as wide as the encoder's."""
    head_width = encoder.width // encoder.heads
    heads = max(1, min(encoder.heads, 192 // head_width))
    return DecoderConfig(width=heads * head_width, heads=heads)


def new_decoder(encoder: EncoderConfig) -> PatchDecoder:
    """A decoder for an encoder, whose weights have yet to be initialised or loaded."""
    return PatchDecoder(encoder.width, encoder.patch_points, decoder_config(encoder))


def masked_views(
    batch: Batch, encoder: EncoderConfig, masking: MaskingConfig, *, seed: int, augment: bool
) -> MaskedViews:
    """A view of each whole shape, with one mask; depends only on (seed, epoch, shape index).

    Args:
        batch: raw shapes, on the device.
        encoder: decides the number of points and patches.
        masking: how the hidden patches are chosen.
        seed: seed of the views and masks.
        augment: rotate and scale as in pretraining; otherwise shapes are used as they are stored.
    """
    keys = sample_keys(seed=seed, epoch=batch.epoch, index=batch.index)
    random = KeyedRandom(keys, "reconstruct")
    whole = CropConfig(
        count=1,
        share_low=1.0,
        share_high=1.0,
        points=encoder.points,
        patches=encoder.patches,
        patch_points=encoder.patch_points,
    )
    as_stored = AugmentConfig(rotate_z=False, scale_low=1.0, scale_high=1.0)
    patches, _ = draw_views(
        batch.points, batch.counts, whole, random, AugmentConfig() if augment else as_stored
    )
    mask = draw_masks(patches.centers, masking, random)[:, 0, 0]
    hidden = masking.hidden_patches(encoder.patches)
    only_view = Patches(patches.centers[:, 0], patches.offsets[:, 0])
    return MaskedViews(only_view, Masks.from_bool(mask, hidden))


def predict_patches(decoder: PatchDecoder, encoder: Encoder, views: MaskedViews) -> Tensor:
    """Points (B, H, K, 3) of the hidden patches; the encoder sees only the visible ones, and has no gradient."""
    with torch.no_grad():
        visible = views.masks.visible_index
        seen = Patches(views.visible_centers, _take_rows(views.patches.offsets, visible))
        cls, features = encoder.encode_tokens(encoder.embed(seen))
    return decoder(cls, features, views.visible_centers, views.hidden_centers)


def train_decoder(
    encoder: Encoder,
    corpus: PointSource,
    train: NDArray[np.int64],
    config: ReconstructConfig,
    *,
    seed: int,
    progress: Callable[[int, int, float], None],
    stopped: Callable[[], bool],
) -> PatchDecoder | None:
    """Train a decoder on an encoder's frozen features; returns None if it was stopped before its last step.

    Args:
        encoder: in evaluation mode, on the device to use.
        corpus: shapes by index.
        train: (n,) indices of the shapes to train on.
        config: number of steps, and rates.
        seed: seed of the decoder's weights, the order, the views and the masks.
        progress: called after every step with the steps done, the steps in all, and the loss.
        stopped: called after every step; True ends the training.
    """
    device = encoder.transformer.norm.weight.device
    decoder = new_decoder(encoder.config)
    initialize(decoder, generator=torch.Generator().manual_seed(seed))
    decoder.to(device)
    optimizer = build_optimizer(
        decoder, learning_rate=config.learning_rate, weight_decay=config.weight_decay
    )
    size = min(config.batch_size, len(train))
    for step in range(config.steps):
        batch = _training_batch(corpus, train, step, size, seed=seed).to(device)
        views = masked_views(batch, encoder.config, config.masking, seed=seed, augment=True)
        loss = chamfer_distance(predict_patches(decoder, encoder, views), views.target).mean()
        loss.backward()
        clip_gradients(decoder.parameters(), config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, config)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress(step + 1, config.steps, loss.item())
        if stopped() and step + 1 < config.steps:
            return None
    return decoder.eval().requires_grad_(requires_grad=False)


def _training_batch(
    corpus: PointSource, train: NDArray[np.int64], step: int, size: int, *, seed: int
) -> Batch:
    """The shapes of a step; the last partial batch of an epoch is dropped."""
    epoch, batch = divmod(step, len(train) // size)
    order = epoch_order(len(train), seed=seed, epoch=epoch)
    return read_batch(corpus, train[order[batch * size : (batch + 1) * size]], epoch)


def _learning_rate(step: int, config: ReconstructConfig) -> float:
    warmup = config.steps // 20
    peak = config.learning_rate
    return warmup_cosine(
        step + 1, total=config.steps + 1, warmup=warmup, first=0.0, peak=peak, final=0.0
    )


def held_out_views(
    corpus: PointSource,
    index: NDArray[np.int64],
    encoder: EncoderConfig,
    config: ReconstructConfig,
    *,
    seed: int,
    device: torch.device,
) -> MaskedViews:
    """Views of the shapes at ``index`` (n,), not augmented; the same for all decoders with the same seed."""
    batch = read_batch(corpus, index, epoch=0).to(device)
    return masked_views(batch, encoder, config.masking, seed=seed, augment=False)


def guess_by_copying(views: MaskedViews) -> Tensor:
    """The prediction without a decoder: each hidden patch is a copy of the nearest visible one."""
    return copied_patches(views.patches, views.masks.visible_index, views.masks.hidden_index)


@torch.no_grad()
def measure(
    guess: Callable[[MaskedViews], Tensor],
    corpus: PointSource,
    held_out: NDArray[np.int64],
    encoder: EncoderConfig,
    config: ReconstructConfig,
    *,
    seed: int,
    device: torch.device,
) -> float:
    """Mean Chamfer distance over the hidden patches of held-out shapes.

    ``guess`` predicts the points (B, H, K, 3) of the hidden patches of views.
    """
    total = 0.0
    for first in range(0, len(held_out), config.batch_size):
        index = held_out[first : first + config.batch_size]
        views = held_out_views(corpus, index, encoder, config, seed=seed, device=device)
        total += float(chamfer_distance(guess(views), views.target).double().mean(1).sum())
    return total / len(held_out)


def _take_rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows (B, T, ...) of values (B, P, ...) at indices (B, T)."""
    return values[torch.arange(len(index), device=index.device)[:, None], index]
