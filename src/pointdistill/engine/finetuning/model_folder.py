"""Classifiers and segmenters on disk: ``model.safetensors`` and ``config.json``. No pickle, no network.

The configuration holds all that is needed to use the model on a file that it has never seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pointdistill
from pointdistill.data.files import read_json, write_json
from pointdistill.engine.config import from_plain, to_plain
from pointdistill.engine.exchange.weights import (
    CONFIG,
    WEIGHTS,
    load_exactly,
    read_tensors,
    write_tensors,
)
from pointdistill.engine.finetuning.models import (
    ClassifierSpec,
    SegmenterSpec,
    Spec,
    TrainedClassifier,
    TrainedSegmenter,
)
from pointdistill.errors import CheckpointError, PointDistillError
from pointdistill.model.classifier import Classifier
from pointdistill.model.encoder import Encoder
from pointdistill.model.segmenter import Segmenter

VERSION = 1

_FORMATS: dict[object, type[Spec]] = {
    "pointdistill-classifier": ClassifierSpec,
    "pointdistill-segmenter": SegmenterSpec,
}


def load_classifier(path: Path | str) -> TrainedClassifier:
    """The classifier in a folder that ``finetune`` wrote, on the CPU.

    ``classifier(points)`` takes (B, N, 3) raw points, z up, and returns logits, probabilities and class names.

    Raises:
        CheckpointError: if there is none, it is damaged, or its training is not finished.
    """
    model = load_model(path)
    if not isinstance(model, TrainedClassifier):
        msg = f"{path}: a segmenter, not a classifier; load it with load_segmenter"
        raise CheckpointError(msg)
    return model


def load_segmenter(path: Path | str) -> TrainedSegmenter:
    """The segmenter in a folder that ``finetune`` wrote, on the CPU.

    ``segmenter(points, category)`` takes (B, N, 3) raw points, z up, and returns a part at every point.

    Raises:
        CheckpointError: if there is none, it is damaged, or its training is not finished.
    """
    model = load_model(path)
    if not isinstance(model, TrainedSegmenter):
        msg = f"{path}: a classifier, not a segmenter; load it with load_classifier"
        raise CheckpointError(msg)
    return model


def load_model(path: Path | str) -> TrainedClassifier | TrainedSegmenter:
    """Whichever of the two a folder holds; errors are those of ``load_classifier``."""
    folder = Path(path)
    if folder.name == WEIGHTS:
        folder = folder.parent
    spec, _ = read_description(folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        hint = f"go on with `pointdistill finetune --resume --output {folder}`"
        msg = f"{folder}: the training of this model is not finished; {hint}"
        raise CheckpointError(msg)
    model = build_model(spec)
    load_exactly(model, read_tensors(weights), weights)
    if isinstance(spec, ClassifierSpec):
        assert isinstance(model, Classifier)
        return TrainedClassifier(model, spec)
    assert isinstance(model, Segmenter)
    return TrainedSegmenter(model, spec)


def build_model(spec: Spec) -> Classifier | Segmenter:
    """A model of this architecture, its weights yet to be loaded."""
    encoder = Encoder(spec.encoder)
    if isinstance(spec, ClassifierSpec):
        return Classifier(encoder, spec.classifier)
    return Segmenter(encoder, spec.segmenter)


def save_weights(folder: Path, model: Classifier | Segmenter) -> None:
    """Write ``model.safetensors``, whole or not at all."""
    state = model.state_dict()
    write_tensors(
        folder / WEIGHTS, {name: v.detach().cpu().contiguous() for name, v in state.items()}
    )


def write_description(folder: Path, spec: Spec, facts: Mapping[str, Any]) -> None:
    """Write ``config.json``: the model, and what there is to tell of it (``facts``)."""
    name = next(name for name, kind in _FORMATS.items() if isinstance(spec, kind))
    head = {"format": name, "version": VERSION, "pointdistill": pointdistill.__version__}
    write_json(folder / CONFIG, {**head, "model": to_plain(spec), **facts})


def read_description(folder: Path) -> tuple[Spec, dict[str, Any]]:
    """The model that a folder describes, and all of its ``config.json``.

    Raises:
        CheckpointError: if there is none, it is damaged, or of another format or a newer version.
    """
    path = folder / CONFIG
    if not path.is_file():
        msg = f"{folder}: no model here (no {CONFIG}); `pointdistill finetune` writes one"
        raise CheckpointError(msg)
    try:
        found = read_json(path)
        kind = _FORMATS.get(found.get("format")) if isinstance(found, dict) else None
        if kind is None:
            msg = f"{path}: neither a classifier nor a segmenter; `pointdistill finetune` makes one of an encoder"
            raise CheckpointError(msg)
        if found.get("version") != VERSION:
            msg = f"{path}: format version {found.get('version')!r}, this program reads {VERSION}; update it"
            raise CheckpointError(msg)
        return _checked_names(from_plain(kind, found.get("model", {}), where="model")), found
    except CheckpointError:
        raise
    except PointDistillError as error:
        msg = f"{path}: {error}"
        raise CheckpointError(msg) from error


def _checked_names(spec: Spec) -> Spec:
    """The spec, if it has a name for everything that the model tells apart."""
    if isinstance(spec, ClassifierSpec):
        fits = len(spec.classes) == spec.classifier.classes
    else:
        counts = (spec.segmenter.categories, spec.segmenter.categories, spec.segmenter.parts)
        named = (len(spec.categories), len(spec.category_parts), len(spec.part_names))
        labels = {part for parts in spec.category_parts for part in parts}
        fits = counts == named and all(spec.category_parts) and labels <= set(range(counts[2]))
    if not fits:
        msg = "the names do not fit the model's outputs; the file was changed, train or copy the model again"
        raise CheckpointError(msg)
    return spec
