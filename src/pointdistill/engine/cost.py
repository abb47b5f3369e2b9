"""What a step will hold in memory, before it is taken."""

from __future__ import annotations

from pointdistill.engine.config import PretrainConfig
from pointdistill.model.views import CropConfig

GIB = 2**30
FLOAT32 = 4

# Floats kept for the backward pass, a token and block: the input and output of two norms, queries, keys and
# values, attention's output, and both sides of the GELU of a four times wider layer.
_BLOCK_WIDTHS = 2 * 2 + 3 + 1 + 2 * 4
# Logits, their log-softmax and its gradient, and the teacher's target.
_LOGIT_COPIES = 4


def step_gib(config: PretrainConfig, *, batch_size: int | None = None) -> float:
    """Rough GiB that the activations of one float32 training step take, weights and optimiser included."""
    shapes = batch_size or config.batch_size
    floats = shapes * (
        _embedding_floats(config) + _transformer_floats(config) + _head_floats(config)
    )
    width, depth = config.encoder.width, config.encoder.depth
    weights = 12 * width * width * depth
    # Student, its gradient and two moments; the teacher.
    return (floats + 5 * weights) * FLOAT32 / GIB


def largest_batch(config: PretrainConfig, gib: float) -> int:
    """The largest batch, at most the config's, whose step stays under ``gib``; at least 2."""
    sizes = range(config.batch_size, 1, -1)
    return next((size for size in sizes if step_gib(config, batch_size=size) <= gib), 2)


def _crops(config: PretrainConfig) -> list[CropConfig]:
    local = [config.local_crop] if config.mode.has_cls and config.local_crop is not None else []
    return [config.global_crop, *local]


def _embedding_floats(config: PretrainConfig) -> float:
    """Of the patch embedding: every layer's input and output, a point of every patch of every view."""
    encoder = config.encoder
    widths = 3 * sum(encoder.stage_one) + 4 * sum(encoder.stage_two) + 2 * encoder.width
    points = sum(crop.count * crop.patches * crop.patch_points for crop in _crops(config))
    return points * widths


def _transformer_floats(config: PretrainConfig) -> float:
    """Of all passes of the student's transformer and of the predictor, a shape."""
    encoder, crop = config.encoder, config.global_crop
    tokens = predicted = 0
    if config.mode.has_patches:
        hidden = config.masking.hidden_patches(crop.patches)
        rows = crop.count * config.masking.masks_per_view
        tokens += rows * (crop.patches - hidden + 1)
        predicted = rows * hidden
    if config.mode.has_cls:
        assert config.local_crop is not None
        whole = crop.count if not config.mode.has_patches else 1
        tokens += whole * (crop.patches + 1)
        tokens += config.local_crop.count * (config.local_crop.patches + 1)
    predictor = config.predictor
    return _BLOCK_WIDTHS * (
        tokens * encoder.width * encoder.depth + predicted * predictor.width * predictor.depth
    )


def _head_floats(config: PretrainConfig) -> float:
    """Of the patch head: hidden layers and logits of every predicted patch."""
    if not config.mode.has_patches:
        return 0.0
    crop = config.global_crop
    hidden = config.masking.hidden_patches(crop.patches)
    predicted = crop.count * config.masking.masks_per_view * hidden
    return predicted * (4 * config.head.hidden + _LOGIT_COPIES * config.head.prototypes)
