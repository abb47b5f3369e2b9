"""Features of clouds from a frozen encoder, pooled as the evaluation protocols need them.

Sizes: n clouds, N points a cloud, P patches, D the encoder's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from pointdistill.engine.features.inputs import ProtocolInput, cloud_batches
from pointdistill.engine.runtime.devices import threads_for
from pointdistill.errors import DataError

if TYPE_CHECKING:
    from pointdistill.model.encoder import Encoder

BATCH_SIZE = 64
"""Clouds a forward pass; changes speed and memory, but not the features."""


@dataclass(frozen=True, slots=True)
class Features:
    """Pooled features of n clouds, on the CPU."""

    cls: Tensor | None
    """(n, D) features of the CLS token; None for an encoder without one."""

    mean: Tensor
    """(n, D) mean over the patches."""

    max: Tensor
    """(n, D) maximum over the patches."""

    @property
    def joined(self) -> Tensor:
        """CLS, mean and maximum side by side, (n, 3D), or (n, 2D) without a CLS token.

        Used by the linear probe and by the logistic regression.
        """
        return torch.cat(self._parts(self.mean, self.max), dim=1)

    @property
    def unit(self) -> Tensor:
        """CLS and mean side by side, rows of length 1: (n, 2D), or (n, D) without a CLS token.

        Used by the nearest neighbours and by the SVM.
        """
        return normalize(torch.cat(self._parts(self.mean), dim=1), dim=1)

    def _parts(self, *pooled: Tensor) -> list[Tensor]:
        return [*pooled] if self.cls is None else [self.cls, *pooled]


def extract_features(
    encoder: Encoder,
    points: NDArray[np.float32],
    *,
    inputs: ProtocolInput,
    seed: int,
    epoch: int | None = None,
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> Features:
    """Features of clouds from a frozen encoder.

    Each cloud's features depend only on the seed, the epoch and its index, whatever the batch size (up to
    rounding). The encoder is moved to ``device`` and left in the mode it was in.

    Args:
        encoder: only its ``forward`` is called; no gradient is computed.
        points: (n, N, 3) float32, any unit and place, z up.
        inputs: points and patches a cloud, how the points are chosen, and the augmentation.
        seed: of the subsets and of the augmentation.
        epoch: augment as in this training epoch, from 0; None for no augmentation.
        batch_size: clouds a forward pass.
        device: where to compute; the features come back to the CPU.
        progress: called after each batch with the number of clouds in it.

    Raises:
        DataError: if there are no clouds, or the encoder refuses them.
    """
    if len(points) == 0:
        msg = (
            "no clouds to take features of; expected points of shape (n, N, 3) with n of at least 1"
        )
        raise DataError(msg)
    batches = cloud_batches(
        points,
        inputs,
        seed=seed,
        epoch=epoch,
        batch_size=batch_size,
        device=torch.device(device),
    )
    return pool_batches(
        encoder, batches, len(points), patches=inputs.patches, device=device, progress=progress
    )


def pool_batches(
    encoder: Encoder,
    batches: Iterable[tuple[slice | Tensor, Tensor]],
    count: int,
    *,
    patches: int,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> Features:
    """Features of ``count`` clouds that come in batches.

    Args:
        encoder: moved to ``device`` and left in the mode it was in.
        batches: rows of the result, and the (B, N, 3) clouds whose features belong there, on ``device``.
        count: rows in all; each must come exactly once.
        patches: patches a cloud; a cloud of fewer points is cut into one patch a point.
        device: where to compute.
        progress: called after each batch with the number of clouds in it.
    """
    width, device = encoder.config.width, torch.device(device)
    cls = torch.empty(count, width) if encoder.config.cls_token else None
    mean, largest = torch.empty(count, width), torch.empty(count, width)
    was_training = encoder.training
    encoder.to(device).eval()
    try:
        with torch.inference_mode(), threads_for(width, device):
            for rows, clouds in batches:
                output = encoder(clouds, patches=min(patches, clouds.shape[1]))
                if cls is not None and output.cls is not None:
                    cls[rows] = output.cls.cpu()
                mean[rows] = output.patches.mean(dim=1).cpu()
                largest[rows] = output.patches.amax(dim=1).cpu()
                if progress is not None:
                    progress(len(clouds))
    finally:
        encoder.train(was_training)
    return Features(cls=cls, mean=mean, max=largest)
