"""Two ways to turn clouds into feature vectors, both measured by the same probes.

Sizes: n clouds, N points a cloud.
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

from pointdistill.engine.evaluation.geometry import GEOMETRY_WIDTH, geometric_features
from pointdistill.engine.features import BATCH_SIZE, extract_features
from pointdistill.engine.inputs import ProtocolInput, cloud_batches, voting_input

if TYPE_CHECKING:
    from pointdistill.model.encoder import Encoder


class ProbeFeatures(Protocol):
    """Features of n clouds in the two forms that the protocols read, on the CPU."""

    @property
    def joined(self) -> Tensor:
        """(n, F) for the linear probe and the logistic regression."""

    @property
    def unit(self) -> Tensor:
        """(n, G), rows of length 1, for the nearest neighbours and the SVM."""


@dataclass(frozen=True, slots=True)
class PlainFeatures:
    """``ProbeFeatures`` of numbers that are read as they are."""

    joined: Tensor
    unit: Tensor


class FeatureExtractor(Protocol):
    """Turns clouds into feature vectors."""

    @property
    def name(self) -> str:
        """What to call the features in results."""

    @property
    def inputs(self) -> ProtocolInput:
        """Which points are read."""

    @property
    def has_patches(self) -> bool:
        """Whether the features come from patches."""

    def voting(self) -> FeatureExtractor:
        """The same features, but every epoch is a vote on test clouds; see ``voting_input``."""

    def __call__(
        self,
        points: NDArray[np.float32],
        *,
        seed: int,
        epoch: int | None,
        count: Callable[[int], None],
    ) -> ProbeFeatures:
        """Features of (n, N, 3) clouds, augmented as in ``epoch`` or as they are for None.

        ``count`` is told after each batch how many clouds it held.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderFeatures:
    """Features of a frozen encoder."""

    name: str
    encoder: Encoder
    inputs: ProtocolInput
    device: torch.device | str = "cpu"
    batch_size: int = BATCH_SIZE

    @property
    def has_patches(self) -> bool:
        """An encoder reads patches."""
        return True

    def voting(self) -> EncoderFeatures:
        """Other points of each cloud, scaled, never rotated."""
        return replace(self, inputs=voting_input(self.inputs))

    def __call__(
        self,
        points: NDArray[np.float32],
        *,
        seed: int,
        epoch: int | None,
        count: Callable[[int], None],
    ) -> ProbeFeatures:
        """Pooled tokens of (n, N, 3) clouds."""
        return extract_features(
            self.encoder,
            points,
            inputs=self.inputs,
            seed=seed,
            epoch=epoch,
            batch_size=self.batch_size,
            device=self.device,
            progress=count,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GeometricFeatures:
    """Hand-made geometric features: the same numbers in both forms."""

    inputs: ProtocolInput
    name: str = "geometric features"

    @property
    def has_patches(self) -> bool:
        """Only points are read."""
        return False

    def voting(self) -> GeometricFeatures:
        """Other points of each cloud, scaled, never rotated."""
        return replace(self, inputs=voting_input(self.inputs))

    def __call__(
        self,
        points: NDArray[np.float32],
        *,
        seed: int,
        epoch: int | None,
        count: Callable[[int], None],
    ) -> ProbeFeatures:
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
        return PlainFeatures(joined=numbers, unit=normalize(numbers, dim=1))
