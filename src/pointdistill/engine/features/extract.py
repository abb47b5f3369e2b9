"""Features of clouds from a frozen encoder, pooled as the evaluation protocols need them.

Sizes: n clouds, N points per cloud, P patches, D the encoder's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from pointdistill.engine.features.inputs import ProtocolInput, cloud_batches, random_start
from pointdistill.engine.runtime.devices import Products, gpu_products, threads_for
from pointdistill.errors import DataError
from pointdistill.model.patches import to_unit_sphere
from pointdistill.model.segmenter import interpolate

if TYPE_CHECKING:
    from pointdistill.model.config import EncoderConfig
    from pointdistill.model.encoder import Encoder, EncoderOutput

BATCH_SIZE = 64
"""Clouds per forward pass; affects speed and memory, but not the features."""


def pool_tokens(output: EncoderOutput) -> Tensor:
    """One feature vector for each of B clouds: CLS token, mean and maximum over the patches, side by side.

    Returns:
        (B, 3D), or (B, 2D) for an encoder without a CLS token. The maximum comes last, where ``drop_maximum`` cuts
        it off.
    """
    patches = output.patches
    pooled = [patches.mean(dim=1), patches.amax(dim=1)]
    return torch.cat(pooled if output.cls is None else [output.cls, *pooled], dim=1)


def feature_width(config: EncoderConfig) -> int:
    """F, the length of the vectors that ``pool_tokens`` makes."""
    return (3 if config.cls_token else 2) * config.width


def drop_maximum(features: Tensor, encoder: Encoder) -> Tensor:
    """CLS token and mean alone, of (n, F) features from ``pool_tokens``; a view of them."""
    return features[:, : -encoder.config.width]


def unit_features(features: Tensor, encoder: Encoder) -> Tensor:
    """CLS token and mean alone, of (n, F) features from ``pool_tokens``, as rows of length 1.

    The nearest neighbours and the SVM read these, because they compare angles.
    """
    return normalize(drop_maximum(features, encoder), dim=1)


def extract_features(
    encoder: Encoder,
    points: NDArray[np.float32],
    *,
    inputs: ProtocolInput,
    seed: int,
    epoch: int | None = None,
    training: bool = False,
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = "cpu",
    products: Products = "float32",
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Features of clouds from a frozen encoder, pooled by ``pool_tokens``: (n, F) float32, on the CPU.

    A cloud's features depend only on the seed, the epoch and its index, and not on the batch size (up to
    rounding). The encoder is moved to ``device`` and left in the mode it was in.

    Args:
        encoder: only its ``forward`` is called; no gradient is computed.
        points: (n, N, 3) float32 in any unit and place, z up.
        inputs: points and patches per cloud, how the points are chosen, and the augmentation.
        seed: of the subsets and of the augmentation.
        epoch: augment as in this training epoch, from 0; None for no augmentation.
        training: start farthest point sampling at a random point of each augmented cloud, as for a head's training
            clouds. Otherwise it starts at the outermost point, as for test clouds.
        batch_size: clouds per forward pass.
        device: where to compute; the features are returned on the CPU.
        products: how a GPU multiplies matrices.
        progress: called after each batch with the number of clouds in it.

    Raises:
        DataError: if there are no clouds, or the encoder cannot take them.
    """
    if len(points) == 0:
        msg = (
            "no clouds to take features of; expected points of shape (n, N, 3) with n of at least 1"
        )
        raise DataError(msg)
    drawn = cloud_batches(
        points,
        inputs,
        seed=seed,
        epoch=epoch,
        batch_size=batch_size,
        device=torch.device(device),
    )

    def start(rows: slice, clouds: Tensor) -> Tensor | None:
        if epoch is None or not training:
            return None
        index = torch.arange(rows.start, rows.stop, device=clouds.device)
        return random_start(clouds, index, seed=seed, epoch=epoch)

    batches = ((rows, clouds, start(rows, clouds)) for rows, clouds in drawn)
    with gpu_products(products, torch.device(device)):
        return pool_batches(
            encoder, batches, len(points), patches=inputs.patches, device=device, progress=progress
        )


def pool_batches(
    encoder: Encoder,
    batches: Iterable[tuple[slice | Tensor, Tensor, Tensor | None]],
    count: int,
    *,
    patches: int,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Features of ``count`` clouds that come in batches: (count, F) float32 from ``pool_tokens``, on the CPU.

    Args:
        encoder: moved to ``device`` and left in the mode it was in.
        batches: rows of the result, the (B, N, 3) clouds whose features belong there, on ``device``, and the (B,)
            points at which farthest point sampling starts; None for the outermost ones.
        count: number of rows; each must occur exactly once.
        patches: patches per cloud; a cloud with fewer points gets one patch per point.
        device: where to compute.
        progress: called after each batch with the number of clouds in it.
    """
    config, device = encoder.config, torch.device(device)
    features = torch.empty(count, feature_width(config))
    was_training = encoder.training
    encoder.to(device).eval()
    try:
        with torch.inference_mode(), threads_for(config.width, device):
            for rows, clouds, start in batches:
                output = encoder(clouds, patches=min(patches, clouds.shape[1]), start=start)
                features[rows] = pool_tokens(output).cpu()
                if progress is not None:
                    progress(len(clouds))
    finally:
        encoder.train(was_training)
    return features


def feature_colors(
    encoder: Encoder, points: Tensor, *, device: torch.device | str = "cpu"
) -> NDArray[np.float32]:
    """Colours of points by the features around them, the same for all clouds: (B, N, 3) RGB in [0, 1].

    The first three principal components of the patch features of all B clouds together, cut off at the 2nd and
    98th percentile, and interpolated to the points. The encoder sees the first points, as many as in pretraining.

    Args:
        encoder: in evaluation mode; moved to ``device``.
        points: (B, N, 3) raw points in random order, z up.
        device: where to compute.
    """
    seen = points[:, : encoder.config.points]
    device = torch.device(device)
    encoder.to(device)
    with torch.inference_mode(), threads_for(encoder.config.width, device):
        patches = min(encoder.config.patches, seen.shape[1])
        output = encoder(seen.to(device), patches=patches)
        features = output.patches.float().cpu()
        flat = features.flatten(0, 1).double()
        flat = flat - flat.mean(dim=0)
        _, _, axes = torch.linalg.svd(flat, full_matrices=False)
        axes = axes[:3]
        # A component's sign is arbitrary: the side with the larger number is made the bright one.
        largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
        values = (flat @ (axes * largest.sign()).T).float()
        low, high = (values.quantile(share, dim=0) for share in (0.02, 0.98))
        # Neither black nor white, which a page may have behind them.
        values = 0.15 + 0.75 * ((values - low) / (high - low).clamp_min(1e-12)).clamp(0.0, 1.0)
        shaped = values.unflatten(0, features.shape[:2])
        colors = interpolate(shaped, output.centers.float().cpu(), to_unit_sphere(seen))
        colors = interpolate(colors, seen, points)
    return colors.clamp(0.0, 1.0).numpy()
