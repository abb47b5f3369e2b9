"""Features of clouds from a frozen encoder, pooled as the evaluation protocols need them, and a faster copy of it.

The copy is arranged for inference on a CPU: the same function, with fewer and smaller passes over memory. Four
things differ, which autograd would not allow or training not gain from. The patch embedding handles a few patches
at a time, so that what lies between two matrix products stays in a core's cache. Norms and GELUs work in place. A
norm's scale is folded into the matrix that follows it. Residuals are added by the matrix product itself.
``benchmarks/embed.py`` measures each.

Sizes: n clouds, N points per cloud, B clouds per batch, P patches, K points a patch, T tokens, D the encoder's
width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import normalize

from pointdistill.engine.features.inputs import ProtocolInput, cloud_batches, random_start
from pointdistill.engine.runtime.devices import Products, gpu_products, threads_for
from pointdistill.errors import DataError
from pointdistill.model.encoder import Encoder, PatchEmbedding
from pointdistill.model.patches import to_unit_sphere
from pointdistill.model.segmenter import interpolate
from pointdistill.model.transformer import NORM_EPS, Block, RMSNorm, Transformer

if TYPE_CHECKING:
    from pointdistill.model.config import EncoderConfig
    from pointdistill.model.encoder import EncoderOutput

BATCH_SIZE = 64
"""Clouds per forward pass; affects speed and memory, but not the features."""

SMALLEST_VARIANCE = 1e-9
"""Added to a variance that something is divided by."""


def pool_tokens(output: EncoderOutput) -> Tensor:
    """One feature vector for each of B clouds: CLS token, mean and maximum over the patches, side by side.

    Returns:
        (B, 3D), or (B, 2D) for an encoder without a CLS token. The maximum comes last, where ``drop_maximum`` cuts
        it off.
    """
    patches = output.patches
    pooled = [patches.mean(dim=1), patches.amax(dim=1)]
    return torch.cat(pooled if output.cls is None else [output.cls, *pooled], dim=1)


def pool_moments(output: EncoderOutput) -> Tensor:
    """One feature vector for each of B clouds: CLS token, mean, deviation and skew over the patches, side by side.

    The deviation is the standard one, and the skew the third central moment over the variance, in the unit of the
    features. With them real shapes are told apart better than with the maximum, see docs/results.md. A mean and a
    deviation side by side are the statistics pooling of Snyder et al. (Interspeech 2017).

    Args:
        output: in float32; half precision has no room for a third moment.

    Returns:
        (B, 4D), or (B, 3D) for an encoder without a CLS token.
    """
    mean = output.patches.mean(dim=1)
    central = output.patches - mean[:, None]
    squares = central.square()
    variance = squares.mean(dim=1)
    # A feature that is the same in all patches has no skew; the constant is far below any other variance.
    skew = (squares * central).mean(dim=1) / (variance + SMALLEST_VARIANCE)
    moments = [mean, variance.sqrt(), skew]
    return torch.cat(moments if output.cls is None else [output.cls, *moments], dim=1)


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


CACHED_VALUES = 2**19
"""Values of the patch embedding's widest layer at a time: 2 MiB of float32, which a core's own cache holds."""


def frozen_copy(encoder: Encoder) -> Encoder:
    """A copy of ``encoder`` for calls under ``torch.inference_mode()`` on a CPU; features agree to rounding.

    It holds a second set of weights. Its layers are not those of a checkpoint, so it cannot be saved or trained.
    """
    frozen = copy.copy(encoder)
    # copy.copy shares the dictionary of submodules: without one of its own, the original would be changed here.
    frozen._modules = dict(encoder._modules)
    frozen.patch_embedding = FrozenPatchEmbedding(encoder.patch_embedding)  # type: ignore[assignment]
    frozen.transformer = FrozenTransformer(encoder.transformer)  # type: ignore[assignment]
    return frozen.eval()


class FrozenPatchEmbedding(nn.Module):
    """The patch embedding, a few patches at a time."""

    def __init__(self, embedding: PatchEmbedding) -> None:
        super().__init__()
        mix = embedding.stage_two[0]
        assert isinstance(mix, nn.Linear)
        self.stage_one = list(embedding.stage_one)
        self.rest = list(embedding.stage_two)[1:]
        halves = mix.weight.chunk(2, dim=1)
        self.point_weight, self.patch_weight = (half.contiguous() for half in halves)
        self.bias = mix.bias
        layers = (*self.stage_one, mix, *self.rest)
        self.widest = max(x.out_features for x in layers if isinstance(x, nn.Linear))
        last = layers[-1]
        assert isinstance(last, nn.Linear)
        self.width = last.out_features

    def forward(self, offsets: Tensor) -> Tensor:
        """(B, P, D) from (B, P, K, 3)."""
        patches = offsets.flatten(0, -3)
        features = offsets.new_empty(len(patches), self.width)
        at_once = max(1, CACHED_VALUES // (patches.shape[1] * self.widest))
        for first in range(0, len(patches), at_once):
            part = slice(first, first + at_once)
            features[part] = self._embed(patches[part])
        return features.unflatten(0, offsets.shape[:-2])

    def _embed(self, offsets: Tensor) -> Tensor:
        """(R, D) of (R, K, 3) patches."""
        local = _run(self.stage_one, offsets)
        summary = functional.linear(local.amax(-2), self.patch_weight, self.bias)
        mixed = functional.linear(local, self.point_weight).add_(summary.unsqueeze(-2))
        return _run(self.rest, mixed).amax(-2)


class FrozenTransformer(nn.Module):
    """The transformer, its norms folded into the weights after them."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.blocks = [_FrozenBlock(block) for block in transformer.blocks]  # type: ignore[arg-type]
        self.norm = transformer.norm

    def forward(
        self, tokens: Tensor, positions: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """(B, T, D) normed features; ``generator`` is accepted for the interface of `Transformer` and not used."""
        del generator
        tokens = tokens.clone()  # the blocks work in place, and the caller's tensor is the caller's
        for block in self.blocks:
            block.update_(tokens, positions)
        return _unit_(tokens).mul_(self.norm.weight)


class _FrozenBlock:
    """A block's weights as right-hand matrices (inner, outer), ready for ``addmm``."""

    def __init__(self, block: Block) -> None:
        attention, mlp = block.attention, block.mlp
        qkv = attention.attention.query_key_value.weight * attention.norm.weight
        self.query_key_value = qkv.T.contiguous()
        self.project = attention.attention.project.weight.T
        self.expand = (mlp.mlp.expand.weight * mlp.norm.weight).T.contiguous()
        self.contract = mlp.mlp.contract.weight.T
        self.heads = attention.attention.heads

    def update_(self, tokens: Tensor, positions: Tensor) -> None:
        """Turn (B, T, D) contiguous ``tokens`` into the block's output, in place."""
        # A view of the tokens: the two addmm_ below add the residuals where the tokens lie.
        rows = tokens.add_(positions).flatten(0, 1)
        packed = (rows * _inverse_rms(rows)) @ self.query_key_value
        split = packed.view(*tokens.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(split[0], split[1], split[2])
        rows.addmm_(mixed.transpose(1, 2).reshape(rows.shape), self.project)
        hidden = (rows * _inverse_rms(rows)) @ self.expand
        rows.addmm_(torch.ops.aten.gelu_(hidden), self.contract)


def _run(layers: list[nn.Module], rows: Tensor) -> Tensor:
    """Linear layers, norms and GELUs in turn; what a linear layer returned is changed in place."""
    for layer in layers:
        if isinstance(layer, RMSNorm):
            rows = _unit_(rows).mul_(layer.weight)
        elif isinstance(layer, nn.GELU):
            rows = torch.ops.aten.gelu_(rows)
        else:
            rows = layer(rows)
    return rows


def _unit_(rows: Tensor) -> Tensor:
    """Divide each row by its root mean square, in place."""
    return rows.mul_(_inverse_rms(rows))


def _inverse_rms(rows: Tensor) -> Tensor:
    """(..., 1) from (..., D). Through the vector norm, which reads the rows once and writes no square of them."""
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return norm.square_().div_(rows.shape[-1]).add_(NORM_EPS).rsqrt_()
