"""An encoder written for others: as a folder of safetensors, or as one ONNX file for programs without torch.

An ONNX file is compared with the encoder before it is kept.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import pointdistill
from pointdistill.data.files import write_aside
from pointdistill.engine.config import to_plain
from pointdistill.engine.devices import threads_for
from pointdistill.engine.exchange.encoders import (
    ONNX,
    check_free_for_encoder,
    load_encoder,
    locate_encoder,
    read_facts,
    save_encoder,
)
from pointdistill.engine.exchange.record import find_results, training_record
from pointdistill.errors import CheckpointError, ConfigError
from pointdistill.model.encoder import Encoder, EncoderOutput

if TYPE_CHECKING:
    import onnx


def export_encoder(source: Path | str, output: Path, *, working: Path | None = None) -> Path:
    """Copy the encoder of ``source`` to the folder ``output``, checked on the way; where it was found.

    What was measured with these weights goes with them, and how they came about.

    Args:
        source: as for ``load_encoder``.
        output: made if absent.
        working: where ``evaluate`` was run; the current folder by default.

    Raises:
        CheckpointError: if ``source`` holds no encoder or a damaged one.
        DataError: if ``output`` exists and is not an encoder folder.
    """
    stored = locate_encoder(source)
    check_free_for_encoder(output)
    encoder, facts = load_encoder(stored), read_facts(stored)
    results = find_results(encoder, stored, facts, working=working or Path())
    save_encoder(
        encoder,
        output,
        sources=facts.get("sources", []),
        training=training_record(stored, facts),
        results=[to_plain(result) for result in results],
    )
    return stored


TOLERANCE = 1e-4
"""Largest difference of any output from the encoder's own; float32 on a CPU comes to a few 1e-6."""

LARGEST_GIB = 2.0
"""Of one ONNX file, by its format; a large model has 1.2."""

_CHECKED_CLOUDS, _CANDIDATES = 3, 24
_ROUNDING = 3e-7
"""A few units in the last place of a coordinate in the unit sphere."""


@dataclass(frozen=True, slots=True)
class OnnxExport:
    """A file that was written. Sizes: B clouds (open), N points, P patches, D width."""

    path: Path
    source: Path
    """The encoder's folder, or its file."""

    points: int
    """N: each cloud has exactly so many."""

    patches: int
    """P."""

    width: int
    """D."""

    cls_token: bool
    """Whether there is an output ``cls``."""

    difference: float | None
    """Largest difference from the encoder's features in onnxruntime; None where that is not installed."""


def export_onnx(source: Path | str, output: Path, *, points: int | None = None) -> OnnxExport:
    """Write ``output/model.onnx``: raw points (B, N, 3) in, ``cls``, ``patches`` and ``centers`` out.

    Everything that ``encoder(points)`` does is in the graph: unit sphere, farthest point sampling, neighbours. The
    file's metadata hold the configuration and the licences of what the encoder saw.

    Args:
        source: as for ``load_encoder``.
        output: folder, made if absent; an earlier ``model.onnx`` in it is replaced.
        points: N; by default those of a view in pretraining.

    Raises:
        CheckpointError: if there is no encoder, or the graph does not compute what it does: no file is left then.
        ConfigError: if the package onnx is not installed, or a cloud of so many points has no patch.
        DataError: if ``output`` holds other files.
    """
    folder = locate_encoder(source)
    check_free_for_encoder(output)
    encoder = load_encoder(folder)
    count = encoder.config.points if points is None else points
    if count < encoder.config.patch_points:
        msg = f"points must be at least {encoder.config.patch_points}, one patch of this encoder, got {count}"
        raise ConfigError(msg)
    graphs = _graphs()
    model = graphs.encoder_model(encoder, count)
    _describe(model, read_facts(folder), count)
    with write_aside(output / ONNX) as aside:
        aside.write_bytes(_serialized(model, folder))
        difference = check_onnx(aside, encoder, count)
    return OnnxExport(
        path=output / ONNX,
        source=folder,
        points=count,
        patches=graphs.patch_count(encoder, count),
        width=encoder.config.width,
        cls_token=encoder.config.cls_token,
        difference=difference,
    )


def check_onnx(path: Path, encoder: Encoder, points: int) -> float | None:
    """Largest difference between a file's outputs and the encoder's, for one cloud and for several at once.

    None where onnxruntime, which has no types and is not needed otherwise, is not installed.

    Args:
        path: an ONNX file.
        encoder: on the CPU.
        points: N of the file's input.

    Raises:
        CheckpointError: if the file does not run, or differs by more than ``TOLERANCE``.
    """
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError:
        return None
    with threads_for(encoder.config.width, torch.device("cpu")), torch.inference_mode():
        clouds = _steady_clouds(encoder, points)
        worst = 0.0
        try:
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            for batch in (clouds[:1], clouds):
                found = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
                worst = max(
                    worst, _difference([torch.from_numpy(f) for f in found], encoder(batch))
                )
        except (
            Exception
        ) as error:  # onnxruntime's errors are of many kinds, none of them of a common class
            msg = f"the exported graph does not run in onnxruntime {onnxruntime.__version__} ({error}); report it"
            raise CheckpointError(msg) from error
    if not worst <= TOLERANCE:
        msg = (
            f"in onnxruntime {onnxruntime.__version__} the exported graph differs from the encoder by "
            f"{worst:.2g}; accepted is {TOLERANCE:g}, so no file was written; export to safetensors and report it"
        )
        raise CheckpointError(msg)
    return worst


def _steady_clouds(encoder: Encoder, points: int) -> Tensor:
    """(3, N, 3) clouds whose features do not hang on rounding.

    Where two points are equally far to the last digit, either may be the next centre, and both answers are right:
    such a cloud tells nothing. It is known by moving its points by as much as rounding does.
    """
    generator = torch.Generator().manual_seed(0)
    kept: list[Tensor] = []
    for _ in range(_CANDIDATES):
        cloud = torch.randn(1, points, 3, generator=generator)
        cloud = cloud / cloud.norm(dim=-1, keepdim=True) * torch.tensor([1.0, 0.6, 0.4])
        here = encoder(cloud)
        moved = [torch.randn(cloud.shape, generator=generator) * _ROUNDING for _ in range(3)]
        apart = [_difference(_outputs(encoder(cloud + move)), here) for move in moved]
        kept += [cloud] if max(apart) < TOLERANCE else []
        if len(kept) == _CHECKED_CLOUDS:
            return torch.cat(kept)
    msg = (
        f"the features of {_CANDIDATES - len(kept)} of {_CANDIDATES} clouds of {points} points change by more "
        f"than {TOLERANCE:g} when the last digits of the points do, so no other program can agree with them; "
        "export with fewer --points, or to safetensors"
    )
    raise CheckpointError(msg)


def _outputs(found: EncoderOutput) -> list[Tensor]:
    """The tensors in the order of the graph's outputs."""
    return [part for part in (found.cls, found.patches, found.centers) if part is not None]


def _difference(found: list[Tensor], expected: EncoderOutput) -> float:
    """Largest difference of any value; infinite where shapes differ, NaN where a value is."""
    wanted = _outputs(expected)
    if [part.shape for part in found] != [part.shape for part in wanted]:
        return float("inf")
    return max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))


def _graphs() -> ModuleType:
    """The module that needs the package onnx.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        from pointdistill.engine.exchange import onnx_graph
    except ImportError as error:
        if (error.name or "").split(".")[0] != "onnx":
            raise
        msg = "the format onnx needs a package that is not installed; pip install 'pointdistill[onnx]'"
        raise ConfigError(msg) from error
    return onnx_graph


def _serialized(model: onnx.ModelProto, source: Path) -> bytes:
    """The file's bytes.

    Raises:
        CheckpointError: if they are more than the format allows.
    """
    size = model.ByteSize() / 2**30
    if size >= LARGEST_GIB:
        msg = f"{source}: {size:.1f} GiB of weights; an ONNX file holds less than {LARGEST_GIB:g}; use safetensors"
        raise CheckpointError(msg)
    return model.SerializeToString()


def _describe(model: onnx.ModelProto, config: dict[str, Any], points: int) -> None:
    """Put into the file what the folder's ``config.json`` says, and what the graph expects."""
    from onnx import helper

    model.producer_name = "pointdistill"
    model.producer_version = pointdistill.__version__
    model.doc_string = (
        f"Encoder of 3-D shapes. Input: {points} raw points a cloud, any unit, within 30 radii of the origin, "
        "z up, all finite. "
        "Outputs: features of the whole cloud (cls), of its patches, and the patches' centres in the unit sphere."
    )
    entries = ("encoder", "sources", "training")
    described = {
        f"pointdistill.{n}": json.dumps(config.get(n), ensure_ascii=False) for n in entries
    }
    helper.set_model_props(model, described)
