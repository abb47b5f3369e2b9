"""Which draws of a shape's points are used, and batches of them turned into features, on a GPU or all CPU cores.

Sizes: B clouds, N points per cloud, P patches, D the encoder's width, m vectors per shape.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointdistill.data.meshes import check_axis
from pointdistill.data.sources.paths import ReadSettings
from pointdistill.engine.features.extract import frozen_copy, pool_moments, pool_tokens
from pointdistill.errors import ConfigError
from pointdistill.model.encoder import Encoder
from pointdistill.model.patches import to_unit_sphere
from pointdistill.model.segmenter import interpolate

FeatureKind: TypeAlias = Literal["moments", "pooled", "cls", "patches", "points"]
"""One vector per shape (CLS, mean, deviation and skew over the patches; CLS, mean and maximum; CLS alone), one per
patch, or one per point."""

DEFAULT_KIND: FeatureKind = "moments"

PER_SHAPE: tuple[FeatureKind, ...] = ("moments", "pooled", "cls")
"""Kinds with one vector per shape, which are averaged over draws."""

KINDS: tuple[FeatureKind, ...] = get_args(FeatureKind)

CPU_BATCH, GPU_BATCH = 16, 256
"""Default number of shapes per batch; affects features only by rounding. A chunk is one batch on a GPU."""

GPU_THREADS = 2
"""Batches under way on a GPU: while one is computed, the other is gathered and copied."""

MOST_DRAWS = 512
"""Most draws of all shapes of a batch in one forward pass, which bounds its memory."""

SPARSE_BELOW = 1024
SPARSE_POINTS, DENSE_POINTS = 8192, 4096
"""Points of all draws of a shape together: the first number if a draw has fewer than ``SPARSE_BELOW`` points.

Two draws of 256 points from one surface differ as much as two surfaces do, so several are averaged.
docs/results.md has the measurement."""

TURNS = 8
"""Most angles about z that draws are turned to by default. Views were turned at random in pretraining, which makes
features similar at all angles, but not equal: an average over angles hardly depends on how a shape stands."""


@dataclass(frozen=True, slots=True)
class ShapeFeatures:
    """An encoder's features of one shape, of one kind."""

    features: NDArray[np.float32]
    """(F,) for a whole shape, or (m, D) with one vector per patch or point."""

    positions: NDArray[np.float32] | None
    """(m, 3) patch centres or points, z up in the shape's own unit; None for a whole shape."""


def check_kind(kind: str, encoder: Encoder) -> FeatureKind:
    """The kind of features with this name.

    Raises:
        ConfigError: if there is none, or it needs a CLS token that the encoder does not have.
    """
    if kind not in KINDS:
        msg = f"features must be one of {', '.join(KINDS)}, got {kind!r}"
        raise ConfigError(msg, settings=("features",))
    if kind == "cls" and not encoder.config.cls_token:
        msg = (
            "this encoder has no CLS token (mode mpm), so there are no 'cls' features; use moments"
        )
        raise ConfigError(msg, settings=("features",))
    return kind


def feature_width(kind: FeatureKind, encoder: Encoder) -> int:
    """Length of one vector of a kind: D, 4D for moments, or 3D for pooled; D less without a CLS token."""
    over_patches = {"moments": 3, "pooled": 2}.get(kind)
    parts = 1 if over_patches is None else over_patches + encoder.config.cls_token
    return parts * encoder.config.width


@dataclass(frozen=True, slots=True)
class Draws:
    """Which draws of a shape's points its features are averaged over."""

    points: int
    """Of each draw."""

    each: int
    """Draws at each angle."""

    turns: int
    """Angles about z, equally spaced."""

    @property
    def count(self) -> int:
        """Number of draws."""
        return self.each * self.turns

    def plain(self) -> dict[str, int]:
        """As an embedding records it."""
        return {"points": self.points, "draws": self.each, "turns": self.turns}


def choose_draws(
    encoder: Encoder, kind: FeatureKind, *, points: int | None, draws: int | None, turns: int | None
) -> Draws:
    """The draws of each shape; what is None is chosen.

    Raises:
        ConfigError: if a number is not accepted.
    """
    fewest = encoder.config.patch_points
    if points is not None and points < fewest:
        msg = f"points must be at least {fewest} for this encoder (one patch), got {points}"
        raise ConfigError(msg, settings=("points",))
    averaged = kind in PER_SHAPE
    for name, value in (("draws", draws), ("turns", turns)):
        if value is not None and value < 1:
            msg = f"{name} must be at least 1, got {value}"
            raise ConfigError(msg, settings=(name,))
        if not averaged and value not in (None, 1):
            msg = (
                f"{kind} features are of one draw, got {name} {value}; only features of a whole shape "
                f"({', '.join(PER_SHAPE)}) are averaged"
            )
            raise ConfigError(msg, settings=(name,))
    size = points or encoder.config.points
    together = SPARSE_POINTS if size < SPARSE_BELOW else DENSE_POINTS
    count = max(1, together // size) if averaged else 1
    turns = turns or min(TURNS, count)
    return Draws(size, draws or max(1, count // turns), turns)


def default_draws(encoder: Encoder) -> Draws:
    """Those of features of the default kind, where a user chooses none."""
    return choose_draws(encoder, DEFAULT_KIND, points=None, draws=None, turns=None)


def read_settings(encoder: Encoder, draws: Draws, *, seed: int, up: str) -> ReadSettings:
    """How shapes are read for these draws of their points.

    Raises:
        ConfigError: if ``up`` is not an axis.
    """
    return ReadSettings(
        points=draws.points * draws.count,
        seed=seed,
        up=check_axis(up),
        minimum=encoder.config.patch_points,
        shuffled=draws.count > 1,
    )


class DeviceWay:
    """How a thread's batches reach the device and their features come back: on a CPU they are there already."""

    @contextmanager
    def used(self) -> Iterator[None]:
        """The context in which a batch is computed."""
        yield

    def upload(self, clouds: Sequence[NDArray[np.float32]]) -> Tensor:
        """Clouds with the same number of points, (B, N, 3) on the device."""
        return torch.from_numpy(np.stack(clouds))

    def download(self, *values: Tensor) -> list[list[NDArray[np.float32]]]:
        """The rows of each tensor."""
        return [list(value.numpy()) for value in values]


class GpuWay(DeviceWay):
    """A thread's own stream of a GPU, with page-locked memory that is used again for each batch.

    The GPU reads page-locked memory by itself, so the host need not wait for a copy, and the copies of one
    thread's batch run beside the kernels of another's, which are on another stream.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        """``cuda`` is torch's module; replaced in tests."""
        self._device, self._cuda = device, cuda
        self._stream = cuda.Stream(device)
        self._memory: dict[int, Tensor] = {}

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within it the thread's work goes to its stream."""
        with self._cuda.stream(self._stream):
            yield

    def upload(self, clouds: Sequence[NDArray[np.float32]]) -> Tensor:
        """Clouds (B, N, 3), whose copy to the device has begun."""
        # Free to be written: the batch before has been downloaded, which waits for all that the stream had to do.
        locked = self._locked(0, (len(clouds), *clouds[0].shape))
        for row, cloud in zip(locked.numpy(), clouds, strict=True):
            row[...] = cloud
        return locked.to(self._device, non_blocking=True)

    def download(self, *values: Tensor) -> list[list[NDArray[np.float32]]]:
        """The rows of each tensor, when they have been computed and copied."""
        locked = [self._locked(k, value.shape) for k, value in enumerate(values, start=1)]
        for memory, value in zip(locked, values, strict=True):
            memory.copy_(value, non_blocking=True)
        self._stream.synchronize()  # other threads go on meanwhile
        return [list(memory.numpy().copy()) for memory in locked]

    def _locked(self, which: int, shape: Sequence[int]) -> Tensor:
        """Page-locked memory of a shape; to lock it takes long, so it is kept and only ever grows."""
        size = math.prod(shape)
        kept = self._memory.get(which)
        if kept is None or len(kept) < size:
            kept = self._memory[which] = torch.empty(size, pin_memory=self._cuda.is_available())
        return kept[:size].view(*shape)


class FeatureMaker:
    """Computes one kind of features with an encoder on a device."""

    def __init__(
        self,
        encoder: Encoder,
        kind: FeatureKind,
        device: torch.device,
        *,
        points: int,
        turns: int = 1,
    ) -> None:
        """Move ``encoder`` to ``device``; on a CPU a faster copy of it is used.

        Args:
            encoder: any encoder.
            kind: already checked against the encoder.
            device: where to compute.
            points: points per draw; a larger cloud is divided into draws, whose features are averaged if
                they are of the whole shape.
            turns: angles about z, equally spaced from 0 on. Draws take them in turn, and there are as many draws
                for each. Only 1 for patches and points.
        """
        self.kind = kind
        self.points = points
        self.turns = turns
        self.device = device
        self.original = encoder
        """The encoder as it can be saved."""

        encoder = encoder.to(device).eval()
        self.encoder = frozen_copy(encoder) if device.type == "cpu" else encoder
        self.way: Callable[[], DeviceWay] = DeviceWay
        """Makes the way of a thread to the device."""

        if device.type == "cuda":
            self.way = functools.partial(GpuWay, device)
        self._ways = threading.local()

    def __call__(self, clouds: Sequence[NDArray[np.float32]]) -> list[ShapeFeatures]:
        """Features of clouds with the same number of points, each (N, 3), z up."""
        if not hasattr(self._ways, "own"):
            self._ways.own = self.way()
        way: DeviceWay = self._ways.own
        with torch.inference_mode(), way.used():
            points = way.upload(clouds)
            if self.kind in PER_SHAPE:
                (rows,) = way.download(self._shape_features(points))
                return [ShapeFeatures(row, None) for row in rows]
            output = self.encoder(points)
            if self.kind == "patches":
                features, middles = way.download(output.patches, output.centers)
                pairs = zip(middles, clouds, strict=True)
                positions = [_own_unit(centers, cloud) for centers, cloud in pairs]
            else:
                unit = to_unit_sphere(points)
                (features,) = way.download(interpolate(output.patches, output.centers, unit))
                positions = list(clouds)
        return [ShapeFeatures(f, p) for f, p in zip(features, positions, strict=True)]

    def _shape_features(self, points: Tensor) -> Tensor:
        """Features (B, F) of clouds (B, N, 3), averaged over the draws."""
        # The points are in random order, so consecutive rows are a random draw. The draws start at evenly spread
        # rows, so every point is in one of them; they overlap unless N is a multiple of ``points``.
        spare = max(0, points.shape[1] - self.points)
        covering = 1 + -(-spare // self.points)
        draws = self.turns * -(-covering // self.turns)
        if draws > 1:
            starts = [spare * draw // (draws - 1) for draw in range(draws)]
            points = torch.stack([points[:, s : s + self.points] for s in starts], dim=1)
        else:
            points = points[:, None]
        if self.turns > 1:
            points = _turned(to_unit_sphere(points), self.turns)
        parts = points.flatten(0, 1).split(MOST_DRAWS)
        features = torch.cat([self._vectors(part) for part in parts])
        return features.unflatten(0, (-1, draws)).mean(dim=1) if draws > 1 else features

    def _vectors(self, clouds: Tensor) -> Tensor:
        output = self.encoder(clouds)
        if self.kind == "cls":
            assert output.cls is not None, "the kind was checked against the encoder"
            return output.cls
        return pool_moments(output) if self.kind == "moments" else pool_tokens(output)


def _turned(draws: Tensor, turns: int) -> Tensor:
    """Draws (B, R, n, 3) about the origin, draw k turned about z by (k mod turns) / turns of a full turn."""
    # Products of single numbers, not of matrices: their bits do not depend on how many clouds are turned at once.
    angles = [2 * math.pi * (k % turns) / turns for k in range(draws.shape[1])]
    cosine, sine = (
        torch.tensor([turn(a) for a in angles]).to(draws.device)[:, None]
        for turn in (math.cos, math.sin)
    )
    x, y, z = draws.unbind(-1)
    return torch.stack([x * cosine - y * sine, x * sine + y * cosine, z], dim=-1)


def _own_unit(centers: NDArray[np.float32], cloud: NDArray[np.float32]) -> NDArray[np.float32]:
    """Centres (P, 3) in a cloud's unit sphere, moved back to the cloud's own unit and position."""
    mean = cloud.mean(axis=0, dtype=np.float64)
    radius = np.sqrt(np.square(cloud - mean).sum(axis=1).max())
    own: NDArray[np.float32] = (centers * (radius or 1.0) + mean).astype(np.float32)
    return own


class InferenceThreads:
    """Computes forward passes in background threads."""

    def __init__(self, maker: FeatureMaker, pool: ThreadPoolExecutor, threads: int) -> None:
        self.maker = maker
        self.threads = threads
        self._pool = pool

    def submit(self, clouds: Sequence[NDArray[np.float32]]) -> Future[list[ShapeFeatures]]:
        """Compute a batch of clouds with the same number of points as soon as a thread is free."""
        return self._pool.submit(self.maker, clouds)


@contextmanager
def inference_threads(maker: FeatureMaker) -> Iterator[InferenceThreads]:
    """Threads that compute features, for the duration of the block."""
    # On a CPU each core gets a thread that computes whole batches alone: cores that shared one batch would wait
    # for each other at the end of every operation.
    before = torch.get_num_threads()
    threads = before if maker.device.type == "cpu" else GPU_THREADS
    if threads > 1:
        torch.set_num_threads(1)  # inherited by threads that start from now on
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield InferenceThreads(maker, pool, threads)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
