"""What a run costs by arithmetic alone: parameters, memory, operations, disk. ``plan`` measures.

Sizes: D width, W predictor width, K prototypes. Memory is that of the published way of a step (no checkpointing of
activations), in float32; it was set beside measured steps of tiny and small on a CPU (``benchmarks/plan.py``).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch

from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.runtime.devices import GIB
from pointdistill.model.config import CropConfig
from pointdistill.model.distillation import Student, Teacher

FLOAT32 = 4

IDLE_GIB = 0.4
"""Python, torch and what a first step loads, on a CPU."""

STORED_POINTS = 16_384
"""Points of a stored shape (docs/method.md, section 1), where the corpus is not known."""

# Floats kept for the backward pass, a token and block, in widths: two norms with their inputs and what they
# compute in between; queries, keys and values; attention's output, twice; both sides of the GELU of a four times
# wider layer.
_BLOCK_WIDTHS = 2 * 3 + 3 + 2 + 2 * 4
# Logits, their log-softmax and its gradient, and the teacher's target.
_LOGIT_COPIES = 4
# Floats of the widest moment of cropping, a stored point and crop: rotated offsets, distances, random numbers.
_CROP_FLOATS = 16


@dataclass(frozen=True, slots=True)
class Parameters:
    """How many there are."""

    encoder: int
    student: int
    """With its heads and predictor: what is trained."""

    teacher: int


def parameters(config: PretrainConfig) -> Parameters:
    """Counted on the model itself, without making its weights."""
    with torch.device("meta"):
        student = Student(config.mode, config.encoder, config.head, config.predictor)
        teacher = Teacher(config.mode, config.encoder, config.head)
    counts = (
        sum(p.numel() for p in module.parameters())
        for module in (student.encoder, student, teacher)
    )
    return Parameters(*counts)


def checkpoint_gib(config: PretrainConfig) -> float:
    """Of one checkpoint: student, its two moments, and teacher, in float32."""
    found = parameters(config)
    return FLOAT32 * (3 * found.student + found.teacher) / GIB


def encoder_gib(config: PretrainConfig) -> float:
    """Of the teacher's encoder, which stands beside the checkpoints."""
    return FLOAT32 * parameters(config).encoder / GIB


def step_gib(config: PretrainConfig, *, points: int = STORED_POINTS) -> float:
    """Rough GiB that a float32 training step holds at its widest moment, weights and moments included.

    Args:
        config: its batch size is the step's.
        points: points of a stored shape, of which the views are cut.
    """
    found = parameters(config)
    # Student, its gradient and two moments; the teacher.
    weights = 4 * found.student + found.teacher
    values = _embedding_floats(config) + _transformer_floats(config) + _head_floats(config)
    crops = max(crop.count for crop in _crops(config)) * points * _CROP_FLOATS
    return FLOAT32 * (weights + config.batch_size * (values + crops)) / GIB


def step_flops(config: PretrainConfig) -> float:
    """Operations of a step's matrix products: the student forward and backward, the teacher forward."""
    crop = config.global_crop
    teacher = _encoder_flops(config, [_Pass(crop.count, crop.patches)], [crop])
    teacher += (
        _head_flops(config)
        * crop.count
        * (crop.patches * config.mode.has_patches + config.mode.has_cls)
    )
    passes = _passes(config)
    student = _encoder_flops(config, passes, _crops(config)) + _predictor_flops(config)
    cls_tokens = sum(one.rows for one in passes) * config.mode.has_cls
    student += _head_flops(config) * (cls_tokens + _predicted(config))
    return config.batch_size * (3.0 * student + teacher)


def largest_batch(config: PretrainConfig, gib: float, *, points: int = STORED_POINTS) -> int:
    """The largest batch, at most the config's, whose step stays under ``gib``; at least 2."""
    one, two = (step_gib(replace(config, batch_size=size), points=points) for size in (1, 2))
    fitting = int((gib - (2 * one - two)) / (two - one))
    return max(2, min(config.batch_size, fitting))


@dataclass(frozen=True, slots=True)
class _Pass:
    """A pass of the encoder, of one shape: so many rows of so many patches each."""

    rows: int
    patches: int


def _passes(config: PretrainConfig) -> list[_Pass]:
    """The student's, of one shape."""
    mode, crop, passes = config.mode, config.global_crop, []
    if mode.has_patches:
        hidden = config.masking.hidden_patches(crop.patches)
        seen = crop.patches if config.predictor is None else crop.patches - hidden
        passes.append(_Pass(crop.count * config.masking.masks_per_view, seen))
    if mode.has_cls:
        passes.append(_Pass(1 if mode.has_patches else crop.count, crop.patches))
        if config.local_crop is not None:
            passes.append(_Pass(config.local_crop.count, config.local_crop.patches))
    return passes


def _crops(config: PretrainConfig) -> list[CropConfig]:
    """The kinds of views that a shape is seen in."""
    local = config.local_crop if config.mode.has_cls else None
    return [config.global_crop] if local is None else [config.global_crop, local]


def _predicted(config: PretrainConfig) -> int:
    """Patches of one shape that the student predicts, over all masks."""
    if not config.mode.has_patches:
        return 0
    crop, masking = config.global_crop, config.masking
    return crop.count * masking.masks_per_view * masking.hidden_patches(crop.patches)


def _embedding_floats(config: PretrainConfig) -> float:
    """Of the patch embedding: every layer's input and output, a point of every patch of every view."""
    encoder = config.encoder
    widths = 3 * sum(encoder.stage_one) + 4 * sum(encoder.stage_two) + 2 * encoder.width
    points = sum(crop.count * crop.patches * crop.patch_points for crop in _crops(config))
    return points * widths


def _transformer_floats(config: PretrainConfig) -> float:
    """Of all passes of the student's transformer and of the predictor, a shape."""
    encoder, predictor = config.encoder, config.predictor
    tokens = sum(one.rows * (one.patches + encoder.cls_token) for one in _passes(config))
    floats = tokens * encoder.width * encoder.depth
    if predictor is not None:
        floats += _predicted(config) * predictor.width * predictor.depth
    return _BLOCK_WIDTHS * floats


def _head_floats(config: PretrainConfig) -> float:
    """Of the patch head: hidden layers and logits of every predicted patch."""
    return _predicted(config) * (4 * config.head.hidden + _LOGIT_COPIES * config.head.prototypes)


def _encoder_flops(config: PretrainConfig, passes: list[_Pass], crops: list[CropConfig]) -> float:
    """Forward, of one shape: the patches of ``crops`` embedded once, then ``passes`` of the transformer."""
    encoder = config.encoder
    one, two = (3, *encoder.stage_one), (encoder.stage_one[-1], *encoder.stage_two, encoder.width)
    a_point = 2 * sum(
        inner * outer for widths in (one, two) for inner, outer in itertools.pairwise(widths)
    )
    a_patch = 2 * two[0] * two[1]  # the maximum's half of the first layer of stage two
    patches = sum(crop.count * crop.patches for crop in crops)
    embedding = sum(crop.count * crop.patches * crop.patch_points for crop in crops) * a_point
    blocks = 0.0
    for one_pass in passes:
        tokens = one_pass.patches + encoder.cls_token
        # Four projections and an MLP of ratio 4: 12 D² weights; scores and their mixture: 2 D a pair of tokens.
        a_row = 2 * 12 * encoder.width**2 * tokens + 2 * 2 * encoder.width * tokens**2
        blocks += one_pass.rows * a_row * encoder.depth
    return embedding + patches * a_patch + blocks


def _predictor_flops(config: PretrainConfig) -> float:
    """Forward, of one shape."""
    predictor = config.predictor
    if predictor is None or not config.mode.has_patches:
        return 0.0
    width, queries = predictor.width, _predicted(config)
    seen = _passes(config)[0]
    memory = seen.rows * (seen.patches + config.encoder.cls_token)
    projections = 2 * config.encoder.width * width * (2 * queries + memory)
    a_query = 2 * (2 + 8 + 4 * predictor.query_attention) * width**2
    pairs = queries * (memory + predictor.query_attention * queries) / seen.rows
    blocks = queries * a_query + memory * 2 * 2 * width**2 + 2 * 2 * width * pairs
    return projections + predictor.depth * blocks


def _head_flops(config: PretrainConfig) -> float:
    """Of one token through a projection head."""
    head = config.head
    widths = (config.encoder.width, head.hidden, head.hidden, head.bottleneck, head.prototypes)
    return 2.0 * sum(inner * outer for inner, outer in itertools.pairwise(widths))
