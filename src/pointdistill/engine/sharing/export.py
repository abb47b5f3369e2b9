"""Exports an encoder as a safetensors folder, and encoders, classifiers and segmenters as ONNX files.

Programs without torch run those. An ONNX file is saved only if its outputs agree with the model's.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pointdistill.data.files.files import hold_output, write_aside
from pointdistill.data.files.schema import to_plain
from pointdistill.engine.evaluation.store import find_results
from pointdistill.engine.finetuning.models import (
    TrainedClassifier,
    TrainedSegmenter,
    load_model,
    model_folder,
    read_description,
)
from pointdistill.engine.pretraining.run_folder import training_record
from pointdistill.engine.runtime.devices import threads_for
from pointdistill.engine.weights.encoders import (
    ONNX,
    STATISTICS,
    check_free_for_encoder,
    load_encoder,
    locate_encoder,
    read_facts,
    save_encoder,
)
from pointdistill.errors import CheckpointError, ConfigError
from pointdistill.model.encoder import Encoder, EncoderOutput
from pointdistill.version import __version__

if TYPE_CHECKING:
    import onnx

TOLERANCE = 1e-4
"""Largest accepted difference from the encoder's own outputs; on a CPU it is a few 1e-6 in float32."""

LARGEST_GIB = 2.0
"""Largest ONNX file that the format allows; the large model's has 1.2 GiB."""

_INPUT = ", any unit, within 30 radii of the origin, z up, all finite."
_FACTS = ("encoder", "sources", "training")
_CHECKED_CLOUDS, _CANDIDATES = 3, 24
_ROUNDING = 3e-7
"""A few units in the last place of a coordinate in the unit sphere."""


def export_encoder(
    source: Path | str, output: Path, *, working: Path | None = None, half: bool = False
) -> Path:
    """Copy the encoder of ``source`` to the folder ``output``, with its scores and its training record.

    The weights are loaded, and so checked. Returns the path they were found at.

    Args:
        source: as for ``load_encoder``.
        output: created if absent.
        working: the folder that ``evaluate`` was run in; by default the current one.
        half: store the weights in float16. Rounding makes it another encoder, so that only scores that were
            measured after it are taken along.

    Raises:
        CheckpointError: if ``source`` holds no encoder or a damaged one, or a weight is too large for float16.
        DataError: if ``output`` exists and is not an encoder folder.
    """
    stored = locate_encoder(source)
    check_free_for_encoder(output)
    encoder, facts = load_encoder(stored), read_facts(stored)
    if half:
        encoder = encoder.half().float()
    results = find_results(encoder, stored, facts, working=working or Path())
    with hold_output(output):
        save_encoder(
            encoder,
            output,
            sources=facts.get("sources", []),
            training=training_record(stored, facts),
            results=[to_plain(result) for result in results],
            half=half,
        )
        copy_statistics(stored, output)
    return stored


def copy_statistics(stored: Path, folder: Path) -> None:
    """Copy an encoder's feature statistics; without any, those of an earlier encoder in ``folder`` are removed."""
    source, target = stored / STATISTICS, folder / STATISTICS
    if source.is_file() and not (target.exists() and source.samefile(target)):
        with write_aside(target) as aside:
            shutil.copyfile(source, aside)
    elif not source.is_file():
        target.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class OnnxExport:
    """A written ONNX file. Sizes: B clouds (any number), N points, P patches, D width."""

    path: Path
    source: Path
    """The model's folder, or its file."""

    kind: str
    """``encoder``, ``classifier`` or ``segmenter``."""

    points: int
    """N, fixed in the file."""

    patches: int
    """P."""

    signature: str
    """Inputs and outputs of the graph, each with its shape, in a line."""

    difference: float | None
    """Largest difference from the model's own outputs in onnxruntime; None if that is not installed."""


def export_onnx(source: Path | str, output: Path, *, points: int | None = None) -> OnnxExport:
    """Write ``output/model.onnx``: raw points (B, N, 3) in, ``cls``, ``patches`` and ``centers`` out.

    Everything that ``encoder(points)`` does is in the graph: unit sphere, farthest point sampling, neighbours. The
    file's metadata holds the configuration and the licences of the data that the encoder was trained on.

    Args:
        source: as for ``load_encoder``.
        output: folder, created if absent; an existing ``model.onnx`` in it is replaced.
        points: N; by default that of a view in pretraining.

    Raises:
        CheckpointError: if there is no encoder, or the graph's outputs differ from the encoder's; no file is
            saved.
        ConfigError: if the package onnx is not installed, or ``points`` are too few for a patch.
        DataError: if ``output`` holds other files.
    """
    stored = locate_encoder(source)
    check_free_for_encoder(output)
    encoder = load_encoder(stored)
    count = encoder.config.points if points is None else points
    if count < encoder.config.patch_points:
        msg = f"points must be at least {encoder.config.patch_points}, one patch of this encoder, got {count}"
        raise ConfigError(msg, settings=("points",))
    onnx_graph = _import_onnx_graph()
    model = onnx_graph.encoder_model(encoder, count)
    described = (
        f"Encoder of 3-D shapes. Input: {count} raw points per cloud{_INPUT} "
        "Outputs: features of the whole cloud (cls), of its patches, and the patches' centres in the unit sphere."
    )
    facts = read_facts(stored)
    _describe(model, described, {name: facts.get(name) for name in _FACTS})
    with hold_output(output), write_aside(output / ONNX) as aside:
        aside.write_bytes(_serialize(model, stored))
        difference = check_onnx(aside, lambda clouds: _outputs(encoder(clouds)), count, encoder)
    patches, width = onnx_graph.patch_count(encoder, count), encoder.config.width
    cls = f"cls (B, {width}), " if encoder.config.cls_token else ""
    return OnnxExport(
        path=output / ONNX,
        source=stored,
        kind="encoder",
        points=count,
        patches=patches,
        signature=f"points (B, {count}, 3) float32, raw -> {cls}patches (B, {patches}, {width}), "
        f"centers (B, {patches}, 3)",
        difference=difference,
    )


def export_model_onnx(source: Path | str, output: Path) -> OnnxExport:
    """Write a classifier or segmenter as ``output/model.onnx``; everything from the raw points on is in the graph.

    A classifier takes ``points`` (B, N, 3) and gives ``logits`` and ``probabilities`` (B, C). A segmenter takes
    ``category`` (B,) int64 too, and gives ``logits`` (B, N, K) and ``parts`` (B, N). N is the number of points
    that the network sees. The file's metadata holds the names of classes, or of categories and parts.

    Args:
        source: as for ``load_classifier``.
        output: folder, created if absent; an existing ``model.onnx`` in it is replaced.

    Raises:
        CheckpointError: if there is no model, or the graph's outputs differ from its own; no file is saved.
        ConfigError: if the package onnx is not installed.
        DataError: if ``output`` holds other files.
    """
    trained = load_model(source)
    check_free_for_encoder(output)
    onnx_graph = _import_onnx_graph()
    spec, inputs = trained.spec, trained.spec.input.protocol()
    points, patches = inputs.points, min(inputs.patches, inputs.points)
    batch = f"points (B, {points}, 3) float32, raw"
    described = f"Input: {points} raw points per cloud{_INPUT}"
    names: dict[str, Any]
    category: int | None = None
    if isinstance(trained, TrainedClassifier):
        kind, classes = "classifier", len(trained.classes)
        model = onnx_graph.classifier_model(trained.model, inputs)
        signature = f"{batch} -> logits (B, {classes}), probabilities (B, {classes})"
        names = {"classes": trained.classes}
        described = f"Classifier of 3-D shapes. {described} Output: a probability for each class."
        reference = _class_outputs(trained)
    else:
        kind, category = "segmenter", len(trained.categories) - 1
        model = onnx_graph.segmenter_model(trained.model, inputs, trained.spec.category_parts)
        parts = len(trained.spec.part_names)
        signature = (
            f"{batch}, category (B) int64 -> logits (B, {points}, {parts}), parts (B, {points})"
        )
        names = {
            "categories": trained.categories,
            "category_parts": trained.spec.category_parts,
            "part_names": trained.spec.part_names,
        }
        described = f"Segmenter of 3-D shapes. {described} Output: a part for each point."
        reference = _part_outputs(trained, trained.categories[category])
    encoder = trained.model.encoder
    _, facts = read_description(model_folder(source))
    recorded = {name: facts.get(name) for name in ("sources", "training", "score")}
    _describe(model, described, {"model": to_plain(spec)} | names | recorded)
    with hold_output(output), write_aside(output / ONNX) as aside:
        aside.write_bytes(_serialize(model, Path(source)))
        difference = check_onnx(aside, reference, points, encoder, category=category)
    return OnnxExport(
        path=output / ONNX,
        source=Path(source),
        kind=kind,
        points=points,
        patches=patches,
        signature=signature,
        difference=difference,
    )


def _class_outputs(classifier: TrainedClassifier) -> Callable[[Tensor], list[Tensor]]:
    def outputs(clouds: Tensor) -> list[Tensor]:
        prediction = classifier(clouds)
        return [prediction.logits, prediction.probabilities]

    return outputs


def _part_outputs(segmenter: TrainedSegmenter, category: str) -> Callable[[Tensor], list[Tensor]]:
    # The logits alone: where two parts are equally likely to the last digit, either is right.
    return lambda clouds: [segmenter(clouds, category).logits]


def check_onnx(
    path: Path,
    reference: Callable[[Tensor], list[Tensor]],
    points: int,
    encoder: Encoder,
    *,
    category: int | None = None,
) -> float | None:
    """Largest difference between a file's outputs and the model's, for a single cloud and for a batch.

    Returns None if onnxruntime is not installed; it is optional.

    Args:
        path: an ONNX file.
        reference: the model's outputs for clouds (B, N, 3), in the order of the graph's; those that it lacks are
            not compared.
        points: N of the file's input.
        encoder: the model's, on the CPU.
        category: of all clouds, for a graph that has such an input.

    Raises:
        CheckpointError: if the file does not run, or differs by more than ``TOLERANCE``.
    """
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError:
        return None
    with threads_for(encoder.config.width, torch.device("cpu")), torch.inference_mode():
        clouds = _stable_clouds(reference, points)
        worst = 0.0
        try:
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            for batch in (clouds[:1], clouds):
                feed = {"points": batch.numpy()}
                if category is not None:
                    feed["category"] = np.full(len(batch), category)
                expected = reference(batch)
                arrays = session.run(None, feed)[: len(expected)]
                outputs = [torch.from_numpy(array) for array in arrays]
                worst = max(worst, _difference(outputs, expected))
        except Exception as error:  # onnxruntime's errors have no common base class
            msg = f"the exported graph does not run in onnxruntime {onnxruntime.__version__} ({error}); report it"
            raise CheckpointError(msg) from error
    if not worst <= TOLERANCE:
        msg = (
            f"in onnxruntime {onnxruntime.__version__} the exported graph differs from the model by "
            f"{worst:.2g}; accepted is {TOLERANCE:g}, so no file was written; export to safetensors and report it"
        )
        raise CheckpointError(msg)
    return worst


def _stable_clouds(reference: Callable[[Tensor], list[Tensor]], points: int) -> Tensor:
    """Clouds (3, N, 3) whose outputs do not depend on rounding."""
    # If two points are equally far to the last digit, either may be the next centre, and both results are right.
    # Such a cloud cannot tell a wrong graph from a right one. It is recognised by moving its points as much as
    # rounding could change them.
    generator = torch.Generator().manual_seed(0)
    stable: list[Tensor] = []
    for _ in range(_CANDIDATES):
        cloud = torch.randn(1, points, 3, generator=generator)
        cloud = cloud / cloud.norm(dim=-1, keepdim=True) * torch.tensor([1.0, 0.6, 0.4])
        unmoved = reference(cloud)
        moved = [torch.randn(cloud.shape, generator=generator) * _ROUNDING for _ in range(3)]
        changes = [_difference(reference(cloud + move), unmoved) for move in moved]
        stable += [cloud] if max(changes) < TOLERANCE else []
        if len(stable) == _CHECKED_CLOUDS:
            return torch.cat(stable)
    msg = (
        f"the outputs for {_CANDIDATES - len(stable)} of {_CANDIDATES} clouds of {points} points change by more "
        f"than {TOLERANCE:g} when the last digits of the points do, so no other program can agree with them; "
        "export for fewer points, or to safetensors"
    )
    raise CheckpointError(msg, settings=("points",))


def _outputs(output: EncoderOutput) -> list[Tensor]:
    """The tensors in the order of the graph's outputs."""
    return [part for part in (output.cls, output.patches, output.centers) if part is not None]


def _difference(outputs: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference between two values; infinite if shapes differ, NaN if a value is NaN."""
    if [part.shape for part in outputs] != [part.shape for part in expected]:
        return float("inf")
    pairs = zip(outputs, expected, strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def _import_onnx_graph() -> ModuleType:
    """The module that needs the optional package onnx.

    Raises:
        ConfigError: if onnx is not installed.
    """
    try:
        from pointdistill.engine.sharing import onnx_graph
    except ImportError as error:
        if (error.name or "").split(".")[0] != "onnx":
            raise
        msg = "ONNX needs a package that is not installed; pip install 'pointdistill[onnx]'"
        raise ConfigError(msg) from error
    return onnx_graph


def _serialize(model: onnx.ModelProto, source: Path) -> bytes:
    """The content of the file.

    Raises:
        CheckpointError: if it is larger than the format allows.
    """
    size = model.ByteSize() / 2**30
    if size >= LARGEST_GIB:
        msg = f"{source}: {size:.1f} GiB of weights; an ONNX file holds less than {LARGEST_GIB:g}; use safetensors"
        raise CheckpointError(msg)
    return model.SerializeToString()


def _describe(model: onnx.ModelProto, described: str, entries: Mapping[str, Any]) -> None:
    """Add metadata: a description of the graph, and entries as JSON, each under ``pointdistill.`` and its name."""
    from onnx import helper

    model.producer_name = "pointdistill"
    model.producer_version = __version__
    model.doc_string = described
    metadata = {f"pointdistill.{n}": json.dumps(v, ensure_ascii=False) for n, v in entries.items()}
    helper.set_model_props(model, metadata)
