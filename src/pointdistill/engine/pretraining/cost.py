"""Estimates what a run costs by arithmetic alone: parameters, memory, FLOPs and disk. ``planning`` measures.

Memory assumes a step in float32 without activation checkpointing, as in the paper; the estimates were compared
with measured steps of tiny and small on a CPU (``benchmarks/plan.py``). Sizes: D width, Q prototypes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch

from pointdistill.data.files.processes import usable_cores
from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.runtime.devices import GIB
from pointdistill.model.config import CropConfig
from pointdistill.model.distillation import Student, Teacher

CORE_FLOPS = 5e10
"""FLOPs per second of a CPU's core: steps of the small model were measured at 1e11 on two (docs/results.md)."""

FLOAT32 = 4

IDLE_GIB = 0.4
"""Memory of Python, torch and the libraries that a first step loads, on a CPU."""

STORED_POINTS = 16_384
"""Points of a stored shape if the corpus is not known (docs/method.md, section 1)."""

# Floats kept for the backward pass per token and block, in units of the width D: two layer norms with their inputs
# and intermediate results; queries, keys and values; the attention's output before and after its projection; input
# and output of the GELU, whose layer is four times as wide.
_BLOCK_WIDTHS = 2 * 3 + 3 + 2 + 2 * 4
# Copies of a logit that exist at the same time: the logit, its log-softmax, the gradient, and the teacher's
# target.
_LOGIT_COPIES = 4
# Bytes moved for each float of an activation, counted on the operations of a step (docs/results.md).
_COUNTED_BYTES = 15.5
# Floats per stored point and crop at the peak of cropping: rotated offsets, distances, random numbers.
_CROP_FLOATS = 16


@dataclass(frozen=True, slots=True)
class Parameters:
    """Numbers of parameters."""

    encoder: int
    student: int
    """All that are trained: encoder, heads and predictor."""

    teacher: int


def parameters(config: PretrainConfig) -> Parameters:
    """Count the parameters of a run's models."""
    # The real modules, on the meta device, so that the count cannot drift from the model and takes no memory.
    with torch.device("meta"):
        student = Student(config.mode, config.encoder, config.head, config.predictor)
        teacher = Teacher(config.mode, config.encoder, config.head)
    counts = (
        sum(p.numel() for p in module.parameters())
        for module in (student.encoder, student, teacher)
    )
    return Parameters(*counts)


def checkpoint_gib(config: PretrainConfig) -> float:
    """Size of one checkpoint: student, its two moments, and teacher, in float32."""
    counts = parameters(config)
    return FLOAT32 * (3 * counts.student + counts.teacher) / GIB


def encoder_gib(config: PretrainConfig) -> float:
    """Size of the teacher's encoder, which is saved beside the checkpoints."""
    return FLOAT32 * parameters(config).encoder / GIB


def step_gib(config: PretrainConfig, *, points: int = STORED_POINTS, bf16: bool = False) -> float:
    """Rough peak memory of a training step, weights and moments included.

    Args:
        config: the run, with its batch size.
        points: points of a stored shape, from which the views are cropped.
        bf16: activations are in bf16, and those of the patch embedding are computed again in the backward pass, as
            on a GPU; otherwise all are kept in float32.
    """
    counts = parameters(config)
    # Student, its gradient and two moments; the teacher.
    weights = 4 * counts.student + counts.teacher
    # The teacher's activations are not counted: they are freed before the student's passes begin.
    activations = _transformer_floats(config) + _head_floats(config)
    # Half a float each; the weights and their moments stay in float32.
    activations = activations / 2 if bf16 else activations + _embedding_floats(config)
    crops = max(crop.count for crop in _crops(config)) * points * _CROP_FLOATS
    return FLOAT32 * (weights + config.batch_size * (activations + crops)) / GIB


def cpu_seconds(config: PretrainConfig, shapes: int) -> float:
    """A rough estimate of a whole run's duration on this machine's CPU, without any step."""
    return config.total_steps(shapes) * step_flops(config) / (CORE_FLOPS * usable_cores())


def step_traffic(config: PretrainConfig) -> float:
    """Bytes that a step in bf16 reads from and writes to a GPU's memory; within 2 % of what was counted.

    Almost all are activations. What is kept for the backward pass is written, read several times and accompanied
    by gradients: 15.5 bytes for each of its floats, both for small (15.3) and for base (15.6).
    """
    activations = _embedding_floats(config) + _transformer_floats(config) + _head_floats(config)
    return _COUNTED_BYTES * config.batch_size * activations


def step_flops(config: PretrainConfig) -> float:
    """FLOPs of a step's matrix products: student forward and backward, teacher forward."""
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
    # A backward pass has two products for each of the forward pass: one for the inputs, one for the weights.
    return config.batch_size * (3.0 * student + teacher)


def largest_batch(config: PretrainConfig, gib: float, *, points: int = STORED_POINTS) -> int:
    """The largest batch, at most the config's, whose step stays under ``gib``; at least 2."""
    # Memory is a constant plus a share for each shape, so two sizes determine it for all.
    one, two = (step_gib(replace(config, batch_size=size), points=points) for size in (1, 2))
    fitting = int((gib - (2 * one - two)) / (two - one))
    return max(2, min(config.batch_size, fitting))


@dataclass(frozen=True, slots=True)
class _Pass:
    """A pass of the encoder, per shape: the number of rows (views or masked views), and of patches in a row."""

    rows: int
    patches: int


def _passes(config: PretrainConfig) -> list[_Pass]:
    """The student's passes, per shape."""
    mode, crop, passes = config.mode, config.global_crop, []
    if mode.has_patches:
        hidden = config.masking.hidden_patches(crop.patches)
        # With a predictor the encoder sees the visible patches only; without one, mask tokens in their places too.
        visible = crop.patches if config.predictor is None else crop.patches - hidden
        passes.append(_Pass(crop.count * config.masking.masks_per_view, visible))
    if mode.has_cls:
        # Dual mode passes only the first global view unmasked, CLS mode all of them.
        passes.append(_Pass(1 if mode.has_patches else crop.count, crop.patches))
        if config.local_crop is not None:
            passes.append(_Pass(config.local_crop.count, config.local_crop.patches))
    return passes


def _crops(config: PretrainConfig) -> list[CropConfig]:
    """The kinds of views of a shape."""
    local = config.local_crop if config.mode.has_cls else None
    return [config.global_crop] if local is None else [config.global_crop, local]


def _predicted(config: PretrainConfig) -> int:
    """Patches of one shape that the student predicts, over all masks."""
    if not config.mode.has_patches:
        return 0
    crop, masking = config.global_crop, config.masking
    return crop.count * masking.masks_per_view * masking.hidden_patches(crop.patches)


def _embedding_floats(config: PretrainConfig) -> float:
    """Activations of the patch embedding, per shape: inputs and outputs of its layers, at every point."""
    encoder = config.encoder
    widths = 3 * sum(encoder.stage_one) + 4 * sum(encoder.stage_two) + 2 * encoder.width
    points = sum(crop.count * crop.patches * crop.patch_points for crop in _crops(config))
    return points * widths


def _transformer_floats(config: PretrainConfig) -> float:
    """Activations of the predictor and of all passes of the student's transformer, per shape."""
    encoder, predictor = config.encoder, config.predictor
    tokens = sum(one.rows * (one.patches + encoder.cls_token) for one in _passes(config))
    floats = tokens * encoder.width * encoder.depth
    if predictor is not None:
        floats += _predicted(config) * predictor.width * predictor.depth
    return _BLOCK_WIDTHS * floats


def _head_floats(config: PretrainConfig) -> float:
    """Activations of the patch head, per shape: hidden layers and logits of every predicted patch."""
    return _predicted(config) * (4 * config.head.hidden + _LOGIT_COPIES * config.head.prototypes)


def _encoder_flops(config: PretrainConfig, passes: list[_Pass], crops: list[CropConfig]) -> float:
    """FLOPs of a forward pass per shape: the patches of ``crops`` are embedded, then go through ``passes``."""
    encoder = config.encoder
    one, two = (3, *encoder.stage_one), (encoder.stage_one[-1], *encoder.stage_two, encoder.width)
    per_point = 2 * sum(
        inner * outer for widths in (one, two) for inner, outer in itertools.pairwise(widths)
    )
    # The first layer of stage two takes a point's features and their maximum over the patch. The maximum's half is
    # computed once per patch and not once per point.
    per_patch = 2 * two[0] * two[1]
    patches = sum(crop.count * crop.patches for crop in crops)
    embedding = sum(crop.count * crop.patches * crop.patch_points for crop in crops) * per_point
    blocks = 0.0
    for one_pass in passes:
        tokens = one_pass.patches + encoder.cls_token
        # Four projections and an MLP of ratio 4 are 12 D² weights; attention scores and the weighted sum of values
        # are 2 D multiplications for each pair of tokens. A multiplication with its addition counts as 2 FLOPs.
        per_row = 2 * 12 * encoder.width**2 * tokens + 2 * 2 * encoder.width * tokens**2
        blocks += one_pass.rows * per_row * encoder.depth
    return embedding + patches * per_patch + blocks


def _predictor_flops(config: PretrainConfig) -> float:
    """FLOPs of a forward pass of the predictor, per shape."""
    predictor = config.predictor
    if predictor is None or not config.mode.has_patches:
        return 0.0
    width, queries = predictor.width, _predicted(config)
    masked = _passes(config)[0]
    memory = masked.rows * (masked.patches + config.encoder.cls_token)
    # Into the predictor's width and, for the queries, back.
    projections = 2 * config.encoder.width * width * (2 * queries + memory)
    # Of a query in cross-attention: its projection and the output's (2), and an MLP of ratio 4 (8); self-attention
    # among the queries has four projections more. Of a memory token: its key and its value.
    per_query = 2 * (2 + 8 + 4 * predictor.query_attention) * width**2
    pairs = queries * (memory + predictor.query_attention * queries) / masked.rows
    blocks = queries * per_query + memory * 2 * 2 * width**2 + 2 * 2 * width * pairs
    return projections + predictor.depth * blocks


def _head_flops(config: PretrainConfig) -> float:
    """FLOPs of one token through a projection head."""
    head = config.head
    widths = (config.encoder.width, head.hidden, head.hidden, head.bottleneck, head.prototypes)
    return 2.0 * sum(inner * outer for inner, outer in itertools.pairwise(widths))
