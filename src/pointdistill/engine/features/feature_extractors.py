"""Two ways to turn clouds into feature vectors, both measured by the same probes.

Sizes: n clouds of N points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from pointdistill.engine.features.extract import BATCH_SIZE, extract_features, unit_features
from pointdistill.engine.features.inputs import ProtocolInput, cloud_batches, voting_input
from pointdistill.engine.runtime.devices import Products
from pointdistill.model.patches import to_unit_sphere

if TYPE_CHECKING:
    from pointdistill.model.encoder import Encoder

# Hand-made descriptions of a cloud: the baseline to compare learned features with.
#
# All of them are invariant to rotation about z, translation and scale, so the numbers describe a shape and not its
# pose. Sizes: B clouds of N points.

HEIGHT_BINS, AXIS_BINS, RADIUS_BINS, DISTANCE_BINS = 10, 8, 8, 16
PROFILE_BINS = (6, 4)
"""Height by distance from the vertical axis: the shape's silhouette if it were turned on a lathe."""

SUMMARY_NUMBERS = 11
GEOMETRY_WIDTH = (
    SUMMARY_NUMBERS
    + HEIGHT_BINS
    + AXIS_BINS
    + RADIUS_BINS
    + DISTANCE_BINS
    + PROFILE_BINS[0] * PROFILE_BINS[1]
)
"""Numbers per cloud."""

_PAIRS = 4096


def geometric_features(points: Tensor, *, seed: int) -> Tensor:
    """Seventy-seven numbers between 0 and 1 (up to rounding) for each cloud.

    In this order: the 11 summary numbers of ``_summary``, then shares of the points by height (10
    bins), by distance from the vertical axis (8), by distance from the centroid (8), shares of
    random pairs of points by their distance (16: the D2 shape distribution of Osada et al., 2002),
    and shares of the points by height and distance from the axis together (6 x 4).

    Args:
        points: (B, N, 3) float32, z up.
        seed: which pairs of positions are measured, the same for every cloud.

    Returns:
        (B, 77) float32 on the device of ``points``.
    """
    sphere = to_unit_sphere(points)
    height = (sphere[..., 2] + 1.0) / 2.0
    from_axis = sphere[..., :2].norm(dim=-1)
    from_center = sphere.norm(dim=-1)
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randint(points.shape[1], (2, _PAIRS), generator=generator).to(
        points.device
    )
    # Two points of the unit sphere are at most 2 apart.
    gaps = (sphere[:, first] - sphere[:, second]).norm(dim=-1) / 2.0
    profile = _bins(height, PROFILE_BINS[0]) * PROFILE_BINS[1] + _bins(from_axis, PROFILE_BINS[1])
    return torch.cat(
        [
            _summary(sphere),
            _shares(_bins(height, HEIGHT_BINS), HEIGHT_BINS),
            _shares(_bins(from_axis, AXIS_BINS), AXIS_BINS),
            _shares(_bins(from_center, RADIUS_BINS), RADIUS_BINS),
            _shares(_bins(gaps, DISTANCE_BINS), DISTANCE_BINS),
            _shares(profile, PROFILE_BINS[0] * PROFILE_BINS[1]),
        ],
        dim=1,
    )


def _summary(sphere: Tensor) -> Tensor:
    """Eleven numbers of (B, N, 3) clouds in their unit spheres: (B, 11).

    The deviations along the three principal axes of space and along the two of the ground plane;
    how upright the longest and the shortest axis of space are; the extents along the axes of the
    ground plane and along z; and the mean distance from the centroid.
    """
    spread, axes = torch.linalg.eigh(_covariance(sphere))
    ground_spread, ground_axes = torch.linalg.eigh(_covariance(sphere[..., :2]))
    ground = sphere[..., :2] @ ground_axes
    extents = torch.cat([_extent(ground), _extent(sphere[..., 2:])], dim=1) / 2.0
    return torch.cat(
        [
            spread.clamp_min(0.0).sqrt(),
            ground_spread.clamp_min(0.0).sqrt(),
            axes[:, 2, [0, 2]].abs(),
            extents,
            sphere.norm(dim=-1).mean(dim=1, keepdim=True),
        ],
        dim=1,
    )


def _covariance(points: Tensor) -> Tensor:
    """(B, d, d) of centred (B, N, d) points."""
    return points.transpose(1, 2) @ points / points.shape[1]


def _extent(points: Tensor) -> Tensor:
    """(B, d) side lengths of the bounding boxes of (B, N, d) points."""
    return points.amax(dim=1) - points.amin(dim=1)


def _bins(values: Tensor, count: int) -> Tensor:
    """Int64 bins of equal width for values in [0, 1]; 1 falls into the last."""
    return (values * count).long().clamp_(0, count - 1)


def _shares(bins: Tensor, count: int) -> Tensor:
    """(B, count) share of the entries of (B, N) ``bins`` in each bin."""
    shares = torch.zeros(len(bins), count, device=bins.device)
    ones = torch.full(bins.shape, 1.0 / bins.shape[1], device=bins.device)
    return shares.scatter_add_(1, bins, ones)


class FeatureExtractor(Protocol):
    """Turns clouds into feature vectors."""

    @property
    def name(self) -> str:
        """Name of the features in results."""

    @property
    def inputs(self) -> ProtocolInput:
        """Which points are read, and how."""

    @property
    def has_patches(self) -> bool:
        """Whether the features come from patches."""

    def voting(self) -> FeatureExtractor:
        """The same features, with each epoch a vote on test clouds; see ``voting_input``."""

    def __call__(
        self,
        points: NDArray[np.float32],
        *,
        seed: int,
        epoch: int | None,
        count: Callable[[int], None],
    ) -> Tensor:
        """(n, F) features of (n, N, 3) clouds, augmented as in ``epoch`` or as they are for None; on the CPU.

        The heads and the logistic regression read them whole. ``count`` is told after each batch how many clouds
        it held.
        """

    def unit(self, features: Tensor) -> Tensor:
        """(n, G) rows of length 1, for the nearest neighbours and the SVM, which compare angles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderFeatures:
    """Features of a frozen encoder."""

    name: str
    encoder: Encoder
    inputs: ProtocolInput
    device: torch.device | str = "cpu"
    batch_size: int = BATCH_SIZE

    augmented_products: Products = "tf32"
    """How a GPU multiplies matrices for augmented clouds, of which there are 150 sets; float32 for all others.
    TF32 moves features by far less than other points of the same clouds do (docs/results.md)."""

    training: bool = True
    """Whether augmented clouds are a head's training clouds, and not votes on test clouds."""

    @property
    def has_patches(self) -> bool:
        """An encoder reads patches."""
        return True

    def voting(self) -> EncoderFeatures:
        """Other points of each cloud, scaled but not rotated."""
        return replace(self, inputs=voting_input(self.inputs), training=False)

    def __call__(
        self,
        points: NDArray[np.float32],
        *,
        seed: int,
        epoch: int | None,
        count: Callable[[int], None],
    ) -> Tensor:
        """Pooled tokens of (n, N, 3) clouds: CLS, mean and maximum."""
        return extract_features(
            self.encoder,
            points,
            inputs=self.inputs,
            seed=seed,
            epoch=epoch,
            training=self.training,
            batch_size=self.batch_size,
            device=self.device,
            products="float32" if epoch is None else self.augmented_products,
            progress=count,
        )

    def unit(self, features: Tensor) -> Tensor:
        """CLS and mean alone."""
        return unit_features(features, self.encoder)


@dataclass(frozen=True, kw_only=True, slots=True)
class GeometricFeatures:
    """Hand-made geometric features."""

    inputs: ProtocolInput
    name: str = "geometric features"

    @property
    def has_patches(self) -> bool:
        """Only points are read."""
        return False

    def voting(self) -> GeometricFeatures:
        """Other points of each cloud, scaled but not rotated."""
        return replace(self, inputs=voting_input(self.inputs))

    def __call__(
        self,
        points: NDArray[np.float32],
        *,
        seed: int,
        epoch: int | None,
        count: Callable[[int], None],
    ) -> Tensor:
        """Extents and histograms of (n, N, 3) clouds."""
        numbers = torch.empty(len(points), GEOMETRY_WIDTH)
        for rows, clouds in cloud_batches(
            points,
            self.inputs,
            seed=seed,
            epoch=epoch,
            batch_size=BATCH_SIZE,
            device=torch.device("cpu"),
        ):
            numbers[rows] = geometric_features(clouds, seed=seed)
            count(len(clouds))
        return numbers

    def unit(self, features: Tensor) -> Tensor:
        """All of the numbers."""
        return normalize(features, dim=1)
