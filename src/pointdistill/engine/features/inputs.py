"""How the clouds of a benchmark reach the network: how many points, how they are chosen, how they are augmented.

Sizes: B clouds per batch, N points per stored cloud, n clouds in a split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointdistill.data.benchmarks.registry import benchmark_specs, spec_titled
from pointdistill.errors import ConfigError
from pointdistill.model.config import AugmentConfig, EncoderConfig
from pointdistill.model.patches import farthest_points, gather_points
from pointdistill.model.random import KeyedRandom, sample_keys
from pointdistill.model.views import augment_points

Subsampling = Literal["uniform", "farthest"]

Cut = Literal["random", "contiguous"]
"""Which points of a cloud are kept: any of them, or those nearest to one of them."""

CUTS: tuple[Cut, ...] = ("random", "contiguous")
KEPT_SHARES = (0.75, 0.5, 0.25)
"""Shares of a test cloud's points that are kept to measure what features make of partial shapes."""

_STREAM = "evaluation"
_CUT_STREAM = "partial clouds"
_CUT_BATCH = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class ProtocolInput:
    """The published input of a benchmark, or that of an encoder which was pretrained on another density."""

    points: int
    """Points given to the encoder; of a cloud with fewer, all of them."""

    patches: int
    """Patches into which the encoder groups them."""

    subsampling: Subsampling
    """How the points are chosen from a larger cloud."""

    augment: AugmentConfig
    """How a protocol with augmentation changes training clouds, drawn anew each epoch."""

    def __post_init__(self) -> None:
        if self.subsampling not in ("uniform", "farthest"):
            msg = f"subsampling must be 'uniform' or 'farthest', got {self.subsampling!r}"
            raise ConfigError(msg)
        if not 1 <= self.patches <= self.points:
            msg = f"patches must lie between 1 and the {self.points} points, got {self.patches}"
            raise ConfigError(msg)


_PUBLISHED_DENSITY = (1024, 64)


def published_input(benchmark: str) -> ProtocolInput:
    """The published input of a benchmark, by its name in results.

    Raises:
        ConfigError: for a benchmark without a published protocol.
    """
    spec = spec_titled(benchmark)
    if spec is None:
        known = ", ".join(spec.title for spec in benchmark_specs())
        msg = f"no protocol for {benchmark!r}; there is one for {known}"
        raise ConfigError(msg)
    published = spec.input
    low, high = published.scale
    return ProtocolInput(
        points=published.points,
        patches=published.patches,
        subsampling=published.subsampling,
        augment=AugmentConfig(rotate_z=published.rotate_z, scale_low=low, scale_high=high),
    )


def protocol_input(benchmark: str, encoder: EncoderConfig) -> ProtocolInput:
    """The input on which an encoder is evaluated.

    An encoder pretrained on views of 1024 points in 64 patches gets the published input. Any other
    gets as many points and patches as its own views had, because features at a density never seen in
    pretraining would mostly measure the change of density.

    Raises:
        ConfigError: for a benchmark without a published protocol.
    """
    published = published_input(benchmark)
    if (encoder.points, encoder.patches) == _PUBLISHED_DENSITY:
        return published
    return replace(published, points=encoder.points, patches=encoder.patches)


def embedding_input(encoder: EncoderConfig) -> ProtocolInput:
    """The input on which an encoder embeds shapes: points and patches as in its own views, not augmented."""
    return ProtocolInput(
        points=encoder.points,
        patches=encoder.patches,
        subsampling="uniform",
        augment=AugmentConfig(rotate_z=False, scale_low=1.0, scale_high=1.0),
    )


def voting_input(inputs: ProtocolInput) -> ProtocolInput:
    """The input of a further vote on a test cloud: other points, scaled as in training but not rotated."""
    return replace(inputs, augment=replace(inputs.augment, rotate_z=False))


def cloud_batches(
    points: NDArray[np.float32],
    inputs: ProtocolInput,
    *,
    seed: int,
    epoch: int | None,
    batch_size: int,
    device: torch.device,
) -> Iterator[tuple[slice, Tensor]]:
    """Clouds in order, subsampled and, in a training epoch, augmented.

    A cloud's draws depend only on the seed, the epoch and its index, never on the batches.

    Args:
        points: (n, N, 3) float32, z up.
        inputs: how many points, and how they are chosen and augmented.
        seed: of the subsets and of the augmentation.
        epoch: whose augmentation to apply, from 0; None for the clouds as they are.
        batch_size: clouds at once.
        device: where to compute and return the batches.

    Yields:
        The rows of ``points`` that a batch holds, and the batch, (B, min(N, inputs.points), 3)
        float32.
    """
    for first in range(0, len(points), batch_size):
        rows = slice(first, min(first + batch_size, len(points)))
        index = torch.arange(rows.start, rows.stop, device=device)
        clouds = torch.from_numpy(points[rows]).to(device)
        yield rows, draw_clouds(clouds, index, inputs, seed=seed, epoch=epoch)


def draw_clouds(
    clouds: Tensor, index: Tensor, inputs: ProtocolInput, *, seed: int, epoch: int | None
) -> Tensor:
    """(B, min(N, inputs.points), 3) of (B, N, 3) stored clouds: subsampled and, in a training epoch, augmented.

    ``index`` (B,) int64 numbers the clouds in their split; with the seed and the epoch it decides every draw.
    """
    keys = sample_keys(seed=seed, epoch=0 if epoch is None else epoch + 1, index=index)
    random = KeyedRandom(keys, _STREAM)
    clouds = subsample(clouds, inputs.points, inputs.subsampling, random)
    if epoch is None:
        return clouds
    return augment_points(clouds[:, None], inputs.augment, random)[:, 0]


def random_start(clouds: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
    """(B,) int64 positions in (B, N, 3) training clouds at which farthest point sampling of patches starts.

    Like the draws of ``draw_clouds`` they depend only on the seed, the epoch and the ``index`` (B,) of a cloud.
    """
    keys = sample_keys(seed=seed, epoch=epoch + 1, index=index)
    return KeyedRandom(keys, _STREAM).integers(
        "first centre", torch.full_like(index, clouds.shape[1])
    )


def subsample(points: Tensor, count: int, how: Subsampling, random: KeyedRandom) -> Tensor:
    """``count`` points of each of (B, N, 3) clouds: (B, min(N, count), 3).

    ``uniform`` draws them without replacement; ``farthest`` spreads them from a random first one. A
    cloud of at most ``count`` points is returned unchanged.
    """
    size = points.shape[1]
    if size <= count:
        return points
    if how == "uniform":
        # With 64 random bits per point ties practically never occur, so any selection gives the same subset.
        index = random.bits("subset", (size,)).topk(count, dim=1, largest=False).indices
    else:
        start = random.integers("start", torch.full((len(points),), size, device=points.device))
        index = farthest_points(points, count, start=start)
    return gather_points(points, index)


def partial_clouds(
    points: NDArray[np.float32], inputs: ProtocolInput, *, seed: int, cut: Cut, share: float
) -> NDArray[np.float32]:
    """What is left of test clouds of which a share of the points is kept: (n, M, 3) float32.

    The points are those that the encoder would be given of the whole cloud, so that a share means as much on dense
    clouds as on sparse ones; M is that share of their number, rounded, and at least 1. A smaller share of the same
    cut is part of a larger one.

    Args:
        points: (n, N, 3) float32, z up.
        inputs: how many points the encoder is given, and how they are chosen.
        seed: of the choice of points and of the cut; a cloud's cut depends on it and on the cloud's index alone.
        cut: ``random`` keeps points drawn without replacement, which thins the surface; ``contiguous`` keeps the
            points nearest to a random one of them, which loses the rest of the shape.
        share: of the points to keep, above 0 and at most 1.
    """
    parts = []
    for rows, clouds in cloud_batches(
        points, inputs, seed=seed, epoch=None, batch_size=_CUT_BATCH, device=torch.device("cpu")
    ):
        size = clouds.shape[1]
        index = torch.arange(rows.start, rows.stop)
        random = KeyedRandom(sample_keys(seed=seed, epoch=0, index=index), _CUT_STREAM)
        if cut == "random":
            order = random.bits("order", (size,)).argsort(dim=1)
        else:
            anchor = random.integers("anchor", torch.full((len(clouds),), size))
            middle = gather_points(clouds, anchor[:, None])
            order = (clouds - middle).square().sum(dim=-1).argsort(dim=1, stable=True)
        kept = max(1, round(share * size))
        parts.append(gather_points(clouds, order[:, :kept]))
    return torch.cat(parts).numpy()
