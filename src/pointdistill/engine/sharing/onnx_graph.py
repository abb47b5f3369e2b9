"""Encoders, classifiers and segmenters as ONNX graphs, from raw points on: the division into patches included.

The graph is written node by node, not traced. So farthest point sampling is one ``Loop`` instead of a copy of its
body for every patch, the number of clouds stays variable, and the graph does not depend on the version of torch.
``export`` compares its outputs with the model's before a file is saved.

Sizes: B clouds (any number), N points, P patches, K points per patch, D width, C classes (all fixed).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from pointdistill.engine.features.inputs import ProtocolInput
from pointdistill.engine.finetuning.part_clouds import CategoryParts
from pointdistill.model.classifier import Classifier, NormedMlp, Pooling
from pointdistill.model.encoder import Encoder
from pointdistill.model.segmenter import NEIGHBOURS, Segmenter
from pointdistill.model.transformer import Attention, Block, RMSNorm

OPSET = 17
"""Opset of 2022: old enough for embedded runtimes, new enough for every operator that is needed."""

IR_VERSION = 8
"""Version of the file format that belongs to this opset."""

INPUT, CATEGORY = "points", "category"
OUTPUTS = ("cls", "patches", "centers")


class Nodes:
    """Builds the nodes of a graph: each method adds one computation, and returns the name of its result."""

    def __init__(self, names: itertools.count[int] | None = None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        # The body of a loop is a graph of its own, but its names must differ from those of the enclosing graph.
        self._names = names or itertools.count()

    def body(self) -> Nodes:
        """A builder for the body of a loop, which may use all names of the enclosing graph."""
        return Nodes(self._names)

    def add(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add one node with one output."""
        output = name or self.new_name(kind)
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def new_name(self, kind: str) -> str:
        """A unique name for a value."""
        return f"{kind.lower()}_{next(self._names)}"

    def constant(self, value: np.ndarray | Tensor, name: str | None = None) -> str:
        """Add a stored value: a weight under its own name, or a number."""
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        name = name or self.new_name("constant")
        self.constants[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def number(self, value: float) -> str:
        """Add a float32 scalar."""
        return self.constant(np.array(value, np.float32))

    def counts(self, *values: int) -> str:
        """Add a row of int64: axes, sizes or indices."""
        return self.constant(np.array(values, np.int64))

    def sum(self, value: str, axis: int, *, keep: bool = False) -> str:
        """Sum over one axis."""
        return self.add("ReduceSum", value, self.counts(axis), keepdims=int(keep))

    def square(self, value: str) -> str:
        """Square each value."""
        return self.add("Mul", value, value)


def encoder_model(encoder: Encoder, points: int) -> onnx.ModelProto:
    """The graph of ``encoder(points)``, with the same patches and the same features.

    Input ``points`` (B, N, 3) float32; outputs ``cls`` (B, D), if the encoder has a CLS token, ``patches``
    (B, P, D) and ``centers`` (B, P, 3). Unlike the encoder, the graph does not check coordinates: if one is not
    finite, the features are not finite either.

    Args:
        encoder: on any device, in float32.
        points: N; a cloud of more than twice the points of a view in pretraining is first reduced to the farthest
            ones, as in the encoder.
    """
    config = encoder.config
    g = Nodes()
    cloud, size = _unit_sphere(g, INPUT), points
    if size > 2 * config.points:
        cloud = _unit_sphere(g, _gather(g, cloud, _farthest(g, cloud, config.points)))
        size = config.points
    patches = patch_count(encoder, points)
    _, states = _states(g, encoder, cloud, patches, centers_name=OUTPUTS[2])
    normed = _final_norm(g, encoder, states[-1])
    outputs = [(OUTPUTS[1], [patches, config.width]), (OUTPUTS[2], [patches, 3])]
    _patch_rows(g, encoder, normed, patches, name=OUTPUTS[1])
    if encoder.cls_token is not None:
        _cls_row(g, normed, name=OUTPUTS[0])
        outputs.insert(0, (OUTPUTS[0], [config.width]))
    return _model(g, points, outputs)


def classifier_model(classifier: Classifier, inputs: ProtocolInput) -> onnx.ModelProto:
    """The graph of a trained classifier: raw points (B, N, 3) in, ``logits`` and ``probabilities`` (B, C) out.

    Args:
        classifier: on any device, in float32; the graph computes what it does in evaluation mode.
        inputs: how many points the network sees, which is N, and how many patches.
    """
    encoder, g = classifier.encoder, Nodes()
    patches = min(inputs.patches, inputs.points)
    _, states = _states(g, encoder, _unit_sphere(g, INPUT), patches)
    tokens = _final_norm(g, encoder, states[-1])
    if classifier.config.pooling is Pooling.CLS_MEAN_MAX and encoder.cls_token is not None:
        rows = _patch_rows(g, encoder, tokens, patches)
        pooled = g.add("Concat", _cls_row(g, tokens), *_mean_and_max(g, rows), axis=1)
    else:
        pooled = g.add("Concat", *_mean_and_max(g, tokens), axis=1)
    logits = g.add("Identity", _normed_mlp(g, "head", classifier.head, pooled), name="logits")
    g.add("Softmax", logits, axis=-1, name="probabilities")
    classes = classifier.config.classes
    outputs = [("logits", [classes]), ("probabilities", [classes])]
    return _model(g, inputs.points, outputs, name="classifier")


def segmenter_model(
    segmenter: Segmenter, inputs: ProtocolInput, category_parts: CategoryParts
) -> onnx.ModelProto:
    """The graph of a trained segmenter: raw points (B, N, 3) and ``category`` (B,) int64 in.

    Out come ``logits`` (B, N, K), and ``parts`` (B, N) int64, the most likely part among those of the category.

    Args:
        segmenter: on any device, in float32; the graph computes what it does in evaluation mode.
        inputs: how many points the network sees, which is N, and how many patches.
        category_parts: part labels of every category.
    """
    encoder, config, g = segmenter.encoder, segmenter.config, Nodes()
    cloud, patches = _unit_sphere(g, INPUT), min(inputs.patches, inputs.points)
    centers, states = _states(g, encoder, cloud, patches)
    norm = segmenter.layer_norm
    scale, shift = g.constant(norm.weight, "layer_norm.weight"), g.constant(norm.bias)
    chosen = [
        g.add(
            "LayerNormalization",
            _patch_rows(g, encoder, states[layer - 1], patches),
            scale,
            shift,
            axis=-1,
            epsilon=norm.eps,
        )
        for layer in config.layers
    ]
    layers = g.add("Concat", *chosen, axis=2) if len(chosen) > 1 else chosen[0]
    # Interpolation and the first linear layer commute, as in the model: it is computed at the P centres.
    weights = segmenter.upsample.first_linear.weight.split([3, layers_width(segmenter)], dim=1)
    at_centers = _product(g, "upsample.linears.0.layers", weights[1], layers)
    first = g.add(
        "Add",
        _product(g, "upsample.linears.0.xyz", weights[0], cloud),
        _interpolate(g, at_centers, centers, cloud, min(NEIGHBOURS, patches)),
    )
    at_points = _normed_mlp(g, "upsample", segmenter.upsample, first, after_first=True)
    table = g.constant(segmenter.category_embedding.weight, "category_embedding.weight")
    summary = [g.add("Gather", table, CATEGORY, axis=0), *_mean_and_max(g, layers)]
    if encoder.cls_token is not None:
        summary.insert(1, _cls_row(g, _final_norm(g, encoder, states[-1])))
    weight = segmenter.head.first_linear.weight
    width = config.point_widths[-1]
    point_weight, shape_weight = weight.split([width, weight.shape[1] - width], dim=1)
    shape = _product(g, "head.linears.0.shape", shape_weight, g.add("Concat", *summary, axis=1))
    first = g.add(
        "Add",
        _product(g, "head.linears.0.point", point_weight, at_points),
        g.add("Unsqueeze", shape, g.counts(1)),
    )
    head = _normed_mlp(g, "head", segmenter.head, first, after_first=True)
    logits = g.add("Identity", head, name="logits")
    foreign = np.full((config.categories, config.parts), np.finfo(np.float32).min, np.float32)
    for row, parts in zip(foreign, category_parts, strict=True):
        row[list(parts)] = 0.0
    own = g.add("Gather", g.constant(foreign, "category_parts"), CATEGORY, axis=0)
    masked = g.add("Add", logits, g.add("Unsqueeze", own, g.counts(1)))
    g.add("ArgMax", masked, axis=2, keepdims=0, name="parts")
    return _model(
        g,
        inputs.points,
        [("logits", [inputs.points, config.parts]), ("parts", [inputs.points])],
        name="segmenter",
        with_category=True,
    )


def layers_width(segmenter: Segmenter) -> int:
    """L · D, the width of a patch's features from all the layers that a segmenter uses."""
    return len(segmenter.config.layers) * segmenter.encoder.config.width


def _states(
    g: Nodes, encoder: Encoder, cloud: str, patches: int, *, centers_name: str | None = None
) -> tuple[str, list[str]]:
    """The patch centres (B, P, 3) of a cloud in its unit sphere, and each block's raw output (B, T, D)."""
    centers = g.add("Identity", _gather(g, cloud, _farthest(g, cloud, patches)), name=centers_name)
    members = _gather(g, cloud, _nearest(g, cloud, centers, encoder.config.patch_points))
    offsets = g.add("Sub", members, g.add("Unsqueeze", centers, g.counts(2)))
    features = _embed_patches(g, encoder, offsets)
    positions = _layers(g, "position_embedding", encoder.position_embedding, centers)
    return centers, _transformer(g, encoder, features, positions)


def _final_norm(g: Nodes, encoder: Encoder, tokens: str) -> str:
    return _layer(g, "transformer.norm", encoder.transformer.norm, tokens)


def _cls_row(g: Nodes, tokens: str, *, name: str | None = None) -> str:
    return g.add("Gather", tokens, g.constant(np.array(0, np.int64)), axis=1, name=name)


def _patch_rows(
    g: Nodes, encoder: Encoder, tokens: str, patches: int, *, name: str | None = None
) -> str:
    """The tokens without that of the CLS."""
    if encoder.cls_token is None:
        return g.add("Identity", tokens, name=name)
    return g.add("Slice", tokens, g.counts(1), g.counts(1 + patches), g.counts(1), name=name)


def _mean_and_max(g: Nodes, rows: str) -> tuple[str, str]:
    """(B, D) twice, from (B, T, D)."""
    mean = g.add("ReduceMean", rows, axes=[1], keepdims=0)
    return mean, g.add("ReduceMax", rows, axes=[1], keepdims=0)


def _normed_mlp(
    g: Nodes, name: str, mlp: NormedMlp, value: str, *, after_first: bool = False
) -> str:
    """``model.classifier.NormedMlp`` in evaluation mode; ``after_first``: what comes after its first layer."""
    linears = list(mlp.linears)
    if not after_first:
        value = _layer(g, f"{name}.linears.0", linears[0], value)
    for number, norm in enumerate(mlp.norms):
        assert isinstance(norm, nn.BatchNorm1d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - norm.running_mean * scale
        scaled = g.add("Mul", value, g.constant(scale, f"{name}.norms.{number}.scale"))
        value = _gelu(g, g.add("Add", scaled, g.constant(shift, f"{name}.norms.{number}.shift")))
        if number + 1 < len(linears):
            value = _layer(g, f"{name}.linears.{number + 1}", linears[number + 1], value)
    return value


def _interpolate(g: Nodes, features: str, centers: str, points: str, count: int) -> str:
    """``model.segmenter.interpolate``: (B, N, F) from features (B, P, F) at the centres (B, P, 3)."""
    values, index = _nearest_with_squares(g, centers, points, count)  # (B, N, count)
    eps = g.number(float(np.finfo(np.float32).eps))
    closeness = g.add("Div", g.number(1.0), g.add("Add", values, eps))
    weights = g.add("Div", closeness, g.sum(closeness, 2, keep=True))
    near = _gather(g, features, index)  # (B, N, count, F)
    return g.sum(g.add("Mul", near, g.add("Unsqueeze", weights, g.counts(3))), 2)


def patch_count(encoder: Encoder, points: int) -> int:
    """P, the number of patches that ``encoder`` divides a cloud of N points into."""
    config = encoder.config
    size = config.points if points > 2 * config.points else points
    return min(size, max(1, round(size * config.patches / config.points)))


def _model(
    g: Nodes,
    points: int,
    outputs: Sequence[tuple[str, list[int]]],
    *,
    name: str = "encoder",
    with_category: bool = False,
) -> onnx.ModelProto:
    def value(name: str, sizes: list[int]) -> onnx.ValueInfoProto:
        whole = name in (CATEGORY, "parts")
        kind = TensorProto.INT64 if whole else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, ["batch", *sizes])

    graph = helper.make_graph(
        g.nodes,
        name,
        [value(INPUT, [points, 3]), *([value(CATEGORY, [])] if with_category else [])],
        [value(name, sizes) for name, sizes in outputs],
        list(g.constants.values()),
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )


def _unit_sphere(g: Nodes, points: str) -> str:
    """``model.patches.to_unit_sphere``; a cloud of one repeated point ends up at the origin."""
    centered = g.add("Sub", points, g.add("ReduceMean", points, axes=[1]))
    norms = g.sum(g.square(centered), 2, keep=True)
    radius = g.add("Sqrt", g.add("ReduceMax", norms, axes=[1]))
    has_size = g.add("Greater", radius, g.number(0.0))
    return g.add("Div", centered, g.add("Where", has_size, radius, g.number(1.0)))


def _farthest(g: Nodes, points: str, count: int) -> str:
    """``model.patches.farthest_points`` from the outermost point on: indices (B, count)."""
    from_origin = g.sum(g.square(points), 2)  # (B, N)
    start = g.add("ArgMax", from_origin, axis=1, keepdims=1)  # (B, 1)
    planes = g.add("Transpose", points, perm=[0, 2, 1])  # (B, 3, N)
    # Infinity in the shape (B, N), computed because the number of clouds is not known when the graph is built.
    infinite = g.add("Add", g.add("Mul", from_origin, g.number(0.0)), g.number(math.inf))

    # A step of the loop takes (number, condition, current point, distance of each point to the nearest chosen
    # one). Of its results, the condition and the next values of the last two are passed on; the current point is
    # collected.
    b = g.body()
    step, again, current, nearest = (b.new_name("step") for _ in range(4))
    center = b.add("GatherND", points, current, batch_dims=1)  # (B, 3)
    gap = b.sum(b.square(b.add("Sub", planes, b.add("Unsqueeze", center, b.counts(2)))), 1)
    nearer = b.add("Min", nearest, gap)
    following = b.add("ArgMax", nearer, axis=1, keepdims=1)
    results = [b.add("Identity", again), following, nearer, b.add("Identity", current)]

    body = helper.make_graph(
        b.nodes,
        "farthest_point",
        [
            helper.make_tensor_value_info(step, TensorProto.INT64, []),
            helper.make_tensor_value_info(again, TensorProto.BOOL, []),
            helper.make_tensor_value_info(current, TensorProto.INT64, ["batch", 1]),
            helper.make_tensor_value_info(nearest, TensorProto.FLOAT, ["batch", None]),
        ],
        [
            helper.make_tensor_value_info(results[0], TensorProto.BOOL, []),
            helper.make_tensor_value_info(results[1], TensorProto.INT64, ["batch", 1]),
            helper.make_tensor_value_info(results[2], TensorProto.FLOAT, ["batch", None]),
            helper.make_tensor_value_info(results[3], TensorProto.INT64, ["batch", 1]),
        ],
        list(b.constants.values()),
    )
    chosen = [g.new_name("chosen") for _ in range(3)]
    steps, yes = g.constant(np.array(count, np.int64)), g.constant(np.array(True))
    g.nodes.append(helper.make_node("Loop", [steps, yes, start, infinite], chosen, body=body))
    by_cloud = g.add("Transpose", chosen[2], perm=[1, 0, 2])  # from (count, B, 1)
    return g.add("Squeeze", by_cloud, g.counts(2))


def _nearest(g: Nodes, points: str, centers: str, count: int) -> str:
    """Indices (B, P, count) of the points nearest to each centre."""
    return _nearest_with_squares(g, points, centers, count)[1]


def _nearest_with_squares(g: Nodes, points: str, centers: str, count: int) -> tuple[str, str]:
    """Squared distances to, and indices of, the points nearest to each centre; both (B, P, count)."""
    # Distances are computed from differences of coordinates, as in the model. An expanded square rounds
    # differently, and would choose other points if two are almost equally far.
    squares = []
    for axis in range(3):
        index = g.counts(axis)
        center = g.add("Gather", centers, index, axis=2)  # (B, P, 1)
        point = g.add("Transpose", g.add("Gather", points, index, axis=2), perm=[0, 2, 1])
        squares.append(g.square(g.add("Sub", center, point)))  # (B, P, N)
    distance = g.add("Add", g.add("Add", squares[0], squares[1]), squares[2])
    values, index = g.new_name("distance"), g.new_name("member")
    g.nodes.append(
        helper.make_node(
            "TopK", [distance, g.counts(count)], [values, index], axis=2, largest=0, sorted=0
        )
    )
    return values, index


def _gather(g: Nodes, points: str, index: str) -> str:
    """Rows of points (B, N, 3) at indices (B, ...): (B, ..., 3)."""
    return g.add("GatherND", points, g.add("Unsqueeze", index, g.counts(-1)), batch_dims=1)


def _embed_patches(g: Nodes, encoder: Encoder, offsets: str) -> str:
    """``model.encoder.PatchEmbedding``, with the layer over [point, patch maximum] as two products, as there."""
    embedding, name = encoder.patch_embedding, "patch_embedding"
    local = _layers(g, f"{name}.stage_one", embedding.stage_one, offsets)
    summary = g.add("ReduceMax", local, axes=[2])  # (B, P, 1, hidden)
    mix = embedding.stage_two[0]
    assert isinstance(mix, nn.Linear)
    point_weight, patch_weight = mix.weight.chunk(2, dim=1)
    # These names must stay: they are in files that have been exported.
    mixed = g.add(
        "Add",
        _product(g, f"{name}.stage_two.0.of_point", point_weight, local),
        _product(g, f"{name}.stage_two.0.of_patch", patch_weight, summary, mix.bias),
    )
    rest = list(embedding.stage_two.named_children())[1:]
    for child, layer in rest:
        mixed = _layer(g, f"{name}.stage_two.{child}", layer, mixed)
    return g.add("ReduceMax", mixed, axes=[2], keepdims=0)


def _transformer(g: Nodes, encoder: Encoder, features: str, positions: str) -> list[str]:
    """Each block's raw output (B, T, D), with the CLS token in front, whose position embedding is zero."""
    if encoder.cls_token is not None:
        # Zeros as a product, because that has as many rows as there are clouds, which is not known here.
        row = g.add("Slice", positions, g.counts(0), g.counts(1), g.counts(1))
        zeros = g.add("Mul", row, g.number(0.0))
        cls = g.add("Add", zeros, g.constant(encoder.cls_token, "cls_token"))
        features = g.add("Concat", cls, features, axis=1)
        positions = g.add("Concat", zeros, positions, axis=1)
    tokens, states = features, []
    for number, block in enumerate(encoder.transformer.blocks):
        assert isinstance(block, Block)
        name = f"transformer.blocks.{number}"
        tokens = g.add("Add", tokens, positions)
        normed = _layer(g, f"{name}.attention.norm", block.attention.norm, tokens)
        mixed = _attention(g, f"{name}.attention.attention", block.attention.attention, normed)
        tokens = g.add("Add", tokens, mixed)
        normed = _layer(g, f"{name}.mlp.norm", block.mlp.norm, tokens)
        wide = _layer(g, f"{name}.mlp.mlp.expand", block.mlp.mlp.expand, normed)
        update = _layer(g, f"{name}.mlp.mlp.contract", block.mlp.mlp.contract, _gelu(g, wide))
        tokens = g.add("Add", tokens, update)
        states.append(tokens)
    return states


def _attention(g: Nodes, name: str, attention: Attention, tokens: str) -> str:
    """Multi-head self-attention of tokens (B, T, D)."""
    width, heads = attention.project.in_features, attention.heads
    split = g.counts(0, 0, heads, width // heads)
    parts = []
    for part, weight in zip(
        ("query", "key", "value"), attention.query_key_value.weight.chunk(3), strict=True
    ):
        projected = _product(g, f"{name}.{part}", weight, tokens)
        # The key is transposed for the product of queries and keys.
        order = [0, 2, 3, 1] if part == "key" else [0, 2, 1, 3]
        parts.append(g.add("Transpose", g.add("Reshape", projected, split), perm=order))
    query, key, value = parts
    scale = g.number((width // heads) ** -0.5)
    scores = g.add("MatMul", g.add("Mul", query, scale), key)
    mixed = g.add("MatMul", g.add("Softmax", scores, axis=-1), value)
    joined = g.add("Reshape", g.add("Transpose", mixed, perm=[0, 2, 1, 3]), g.counts(0, 0, width))
    return _layer(g, f"{name}.project", attention.project, joined)


def _layers(g: Nodes, name: str, layers: nn.Sequential, value: str) -> str:
    for child, layer in layers.named_children():
        value = _layer(g, f"{name}.{child}", layer, value)
    return value


def _layer(g: Nodes, name: str, layer: nn.Module, value: str) -> str:
    """One layer, whose weights keep their names in the encoder."""
    if isinstance(layer, nn.Linear):
        return _product(g, name, layer.weight, value, layer.bias)
    if isinstance(layer, RMSNorm):
        assert layer.eps is not None
        mean = g.add("ReduceMean", g.square(value), axes=[-1])
        size = g.add("Sqrt", g.add("Add", mean, g.number(layer.eps)))
        weight = g.constant(layer.weight, f"{name}.weight")
        return g.add("Mul", g.add("Div", value, size), weight)
    assert isinstance(layer, nn.GELU), f"{name} is a {type(layer).__name__}, which has no node here"
    return _gelu(g, value)


def _product(g: Nodes, name: str, weight: Tensor, value: str, bias: Tensor | None = None) -> str:
    """A linear layer, whose weight is stored transposed (inputs, outputs), as the product needs it."""
    product = g.add("MatMul", value, g.constant(weight.T, f"{name}.weight"))
    return product if bias is None else g.add("Add", product, g.constant(bias, f"{name}.bias"))


def _gelu(g: Nodes, value: str) -> str:
    """The exact GELU, with the error function, not its approximation by tanh."""
    gate = g.add("Erf", g.add("Mul", value, g.number(math.sqrt(0.5))))
    return g.add("Mul", g.add("Mul", value, g.number(0.5)), g.add("Add", gate, g.number(1.0)))
