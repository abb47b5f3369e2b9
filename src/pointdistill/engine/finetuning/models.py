"""Trained classifiers and segmenters: prediction on raw points, and storage.

On disk a model is a folder with ``model.safetensors`` and ``config.json``; the configuration holds everything
needed to apply the model to a new file. Nothing is unpickled. Sizes: B clouds, N points per cloud, C classes, K
parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from pointdistill.data.files.files import read_json, write_json
from pointdistill.data.files.schema import from_plain, refusing_damage, short_repr, to_plain
from pointdistill.data.meshes.records import Axis
from pointdistill.data.meshes.sampling import check_axis
from pointdistill.engine.features.inputs import ProtocolInput, Subsampling, subsample
from pointdistill.engine.finetuning.classification import patchify_from_outermost
from pointdistill.engine.finetuning.epochs import device_of
from pointdistill.engine.finetuning.part_clouds import predict_parts
from pointdistill.engine.finetuning.predict import Classification, classify
from pointdistill.engine.finetuning.segmentation import segment
from pointdistill.engine.weights.encoders import (
    CONFIG,
    WEIGHTS,
    ModelFacts,
    check_sizes,
    fetch_model,
    least_tensors,
    load_exactly,
    looks_like_repository,
    read_tensors,
    write_tensors,
)
from pointdistill.errors import CheckpointError, ConfigError, DataError
from pointdistill.model.classifier import Classifier, ClassifierConfig
from pointdistill.model.config import MOST_POINTS, AugmentConfig, EncoderConfig
from pointdistill.model.encoder import Encoder
from pointdistill.model.patches import to_unit_sphere
from pointdistill.model.random import KeyedRandom, sample_keys
from pointdistill.model.segmenter import Segmenter, SegmenterConfig
from pointdistill.version import __version__

_STREAM = "model"

VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class InputSpec:
    """How a model's training clouds were prepared, so that others can be prepared the same way."""

    points: int
    """Points of a cloud that the network sees."""

    patches: int
    subsampling: str
    """How the points are chosen from a larger cloud: ``uniform`` or ``farthest``."""

    augment: AugmentConfig
    """Used only in training."""

    cloud_points: int
    """Points of a stored cloud, and so of a mesh that is sampled."""

    up: str
    """Up axis of files that do not state their own."""

    def __post_init__(self) -> None:
        for name in ("points", "patches", "cloud_points"):
            if not 1 <= getattr(self, name) <= MOST_POINTS:
                msg = f"input.{name} must lie in 1 to {MOST_POINTS:,}, got {getattr(self, name)}"
                raise ConfigError(msg)
        check_axis(self.up)
        self.protocol()

    @property
    def axis(self) -> Axis:
        """``up`` as a checked axis."""
        return check_axis(self.up)

    def protocol(self) -> ProtocolInput:
        """The part of it that decides what the network sees."""
        return ProtocolInput(
            points=self.points,
            patches=self.patches,
            subsampling=cast("Subsampling", self.subsampling),
            augment=self.augment,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierSpec:
    """Everything about a trained classifier except its weights."""

    encoder: EncoderConfig
    classifier: ClassifierConfig
    classes: tuple[str, ...]
    """Names, in the order of the logits."""

    input: InputSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmenterSpec:
    """Everything about a trained segmenter except its weights."""

    encoder: EncoderConfig
    segmenter: SegmenterConfig
    categories: tuple[str, ...]
    category_parts: tuple[tuple[int, ...], ...]
    """Part labels of each category, in the order of ``categories``."""

    part_names: tuple[str, ...]
    """Name of every part label."""

    input: InputSpec


Spec: TypeAlias = ClassifierSpec | SegmenterSpec


@dataclass(frozen=True, slots=True)
class ClassPrediction:
    """A classifier's output for B clouds."""

    logits: Tensor
    """(B, C), before softmax."""

    classes: tuple[str, ...]
    """C names."""

    @property
    def probabilities(self) -> Tensor:
        """(B, C), rows sum to 1."""
        return self.logits.softmax(-1)

    @property
    def names(self) -> tuple[str, ...]:
        """The most likely class of each cloud."""
        return tuple(self.classes[number] for number in self.logits.argmax(-1).tolist())

    def top(self, count: int) -> list[list[tuple[str, float]]]:
        """The ``count`` most likely classes of each cloud with their probabilities, the most likely first."""
        best = self.probabilities.topk(min(count, len(self.classes)), dim=-1)
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [[(self.classes[k], value) for k, value in zip(*row, strict=True)] for row in rows]


@dataclass(frozen=True, slots=True)
class PartPrediction:
    """A segmenter's output for B clouds."""

    parts: Tensor
    """(B, N) int64 part labels, each among those of the cloud's category."""

    logits: Tensor
    """(B, N, K), over the parts of all categories, before softmax."""

    part_names: tuple[str, ...]
    """K names."""


class TrainedClassifier:
    """A classifier with its class names and input specification; ``load_classifier`` returns one."""

    def __init__(
        self, model: Classifier, spec: ClassifierSpec, training: Mapping[str, Any] | None = None
    ) -> None:
        self.model = model.eval().requires_grad_(requires_grad=False)
        self.spec = spec
        self.training = dict(training or {})
        """Its record in ``config.json``: the data, the recipe, the seed."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""
        return self.spec.classes

    def to(self, device: torch.device | str) -> TrainedClassifier:
        """Move the model to a device, and return it."""
        self.model.to(device)
        return self

    @torch.inference_mode()
    def __call__(self, points: Tensor) -> ClassPrediction:
        """Classify raw clouds; a cloud's logits do not depend on the other clouds in the batch.

        Args:
            points: (B, N, 3) float, in any unit and position, z up. If N is larger than the model's input, a
                subset is chosen as in training.

        Raises:
            DataError: if the shape is not (B, N, 3), N is too small, or a coordinate is not finite.
        """
        encoder, inputs = self.spec.encoder, self.spec.input.protocol()
        points = _check_points(points, encoder, device_of(self.model))
        clouds = to_unit_sphere(_subsample_alike(points, inputs))
        patches = patchify_from_outermost(clouds, inputs, encoder.patch_points)
        return ClassPrediction(self.model(patches), self.spec.classes)

    def predict(self, shapes: Any, *, up: str | None = None) -> Classification:
        """Classify files, folders and arrays, as the ``predict`` command does.

        Args:
            shapes: a path, an array (N, 3) or (B, N, 3), a sequence of these, or a mapping from names to arrays.
            up: up axis of arrays, and of files that do not state their own; None for that of the training data.

        Raises:
            DataError: if a path is missing, or no shape can be used at all.
            ConfigError: if ``up`` is no axis.
        """
        return classify(self, shapes, up=up)


class TrainedSegmenter:
    """A segmenter with its categories, part names and input specification; ``load_segmenter`` returns one."""

    def __init__(self, model: Segmenter, spec: SegmenterSpec) -> None:
        self.model = model.eval().requires_grad_(requires_grad=False)
        self.spec = spec

    @property
    def categories(self) -> tuple[str, ...]:
        """Category names."""
        return self.spec.categories

    def to(self, device: torch.device | str) -> TrainedSegmenter:
        """Move the model to a device, and return it."""
        self.model.to(device)
        return self

    @torch.inference_mode()
    def __call__(self, points: Tensor, category: str | Sequence[str]) -> PartPrediction:
        """Assign a part to every point of raw clouds of known categories.

        Args:
            points: (B, N, 3) float, in any unit and position, z up. Every point gets a part; the patches are made
                of as many points as in training.
            category: one name for all clouds, or one for each.

        Raises:
            DataError: if the shape is not (B, N, 3), N is too small, a coordinate is not finite, or a category is
                unknown.
        """
        inputs, device = self.spec.input.protocol(), device_of(self.model)
        points = to_unit_sphere(_check_points(points, self.spec.encoder, device))
        names = [category] * len(points) if isinstance(category, str) else list(category)
        numbers = torch.tensor([self.category_index(name) for name in names], device=device)
        if len(numbers) != len(points):
            msg = f"expected one category, or one per cloud, got {len(names)} for {len(points)} clouds"
            raise DataError(msg)
        logits = segment(self.model, points, _subsample_alike(points, inputs), numbers, inputs)
        parts = predict_parts(logits, numbers, self.spec.category_parts)
        return PartPrediction(parts, logits, self.spec.part_names)

    def category_index(self, category: str) -> int:
        """The index of a category.

        Raises:
            DataError: if the segmenter does not know it; lists the known ones.
        """
        if category not in self.categories:
            known = ", ".join(self.categories)
            msg = f"this segmenter has no category {category!r}; it knows {known}"
            raise DataError(msg, settings=("category",))
        return self.categories.index(category)


def _subsample_alike(points: Tensor, inputs: ProtocolInput) -> Tensor:
    """The points that the network sees."""
    # All clouds share one random key, so that a cloud's result does not depend on its place in the batch.
    keys = sample_keys(seed=0, epoch=0, index=torch.zeros(len(points), dtype=torch.int64))
    random = KeyedRandom(keys.to(points.device), _STREAM)
    return subsample(points, inputs.points, inputs.subsampling, random)


def _check_points(points: Tensor, encoder: EncoderConfig, device: torch.device) -> Tensor:
    """The points as float32 on the model's device.

    Raises:
        DataError: if the shape is not (B, N, 3), N is too small, or a coordinate is not finite.
    """
    shape = tuple(points.shape)
    if len(shape) != 3 or shape[-1] != 3 or shape[1] < encoder.patch_points:
        msg = (
            f"expected points of shape (B, N, 3) with N of at least {encoder.patch_points}, got {shape}; "
            "add a batch axis with points[None], or sample the surface more densely"
        )
        raise DataError(msg)
    if not torch.isfinite(points).all():
        msg = "points hold NaN or infinite coordinates; remove them first"
        raise DataError(msg)
    return points.to(device, torch.float32)


_FORMATS: dict[object, type[Spec]] = {
    "pointdistill-classifier": ClassifierSpec,
    "pointdistill-segmenter": SegmenterSpec,
}


def load_classifier(path: Path | str) -> TrainedClassifier:
    """The classifier in a folder that ``finetune`` wrote, or in a Hub repository, on the CPU.

    ``classifier(points)`` takes (B, N, 3) raw points, z up, and returns logits, probabilities and class names.
    ``classifier.predict(shapes)`` takes files, folders and arrays.

    Args:
        path: the folder; or ``owner/name`` on the Hugging Face Hub, which is downloaded once.

    Raises:
        CheckpointError: if there is none, it is damaged, or its training is not finished.
    """
    model = load_model(path)
    if not isinstance(model, TrainedClassifier):
        msg = f"{path}: a segmenter, not a classifier; load it with load_segmenter"
        raise CheckpointError(msg)
    return model


def load_segmenter(path: Path | str) -> TrainedSegmenter:
    """The segmenter in a folder that ``finetune`` wrote, or in a Hub repository, on the CPU.

    ``segmenter(points, category)`` takes (B, N, 3) raw points, z up, and returns a part at every point.

    Args:
        path: the folder; or ``owner/name`` on the Hugging Face Hub, which is downloaded once.

    Raises:
        CheckpointError: if there is none, it is damaged, or its training is not finished.
    """
    model = load_model(path)
    if not isinstance(model, TrainedSegmenter):
        msg = f"{path}: a classifier, not a segmenter; load it with load_classifier"
        raise CheckpointError(msg)
    return model


def load_model(path: Path | str) -> TrainedClassifier | TrainedSegmenter:
    """The classifier or segmenter in a folder, or in a Hub repository.

    Raises:
        CheckpointError: as ``load_classifier``.
    """
    folder = model_folder(path)
    spec, facts = read_description(folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        msg = f"{folder}: the training of this model is not finished; resume it with `pointdistill finetune`"
        raise CheckpointError(msg, settings=("resume",))
    check_sizes(weights, lambda: {"": build_model(spec)}, least=spec_tensors(spec))
    model = build_model(spec)
    load_exactly(model, read_tensors(weights), weights)
    if isinstance(spec, ClassifierSpec):
        assert isinstance(model, Classifier)
        return TrainedClassifier(model, spec, facts.get("training"))
    assert isinstance(model, Segmenter)
    return TrainedSegmenter(model, spec)


def model_folder(path: Path | str) -> Path:
    """The folder of a model; one in a Hub repository is downloaded unless it is in the cache."""
    folder = Path(path)
    # If there is a folder `models`, `models/mine` is a misspelled path and must not start a download.
    if not folder.exists() and not folder.parent.is_dir() and looks_like_repository(str(path)):
        return fetch_model(str(path))
    return folder.parent if folder.name == WEIGHTS else folder


def spec_tensors(spec: Spec) -> int:
    """Fewest tensors that a model can have, without building it."""
    head = len(spec.classifier.hidden) if isinstance(spec, ClassifierSpec) else 0
    return least_tensors(spec.encoder) + head


def build_model(spec: Spec) -> Classifier | Segmenter:
    """A model of the architecture that ``spec`` describes; its weights have yet to be loaded."""
    encoder = Encoder(spec.encoder)
    if isinstance(spec, ClassifierSpec):
        return Classifier(encoder, spec.classifier)
    return Segmenter(encoder, spec.segmenter)


def save_weights(folder: Path, model: Classifier | Segmenter) -> None:
    """Write ``model.safetensors``; if that fails, an existing file is left unchanged."""
    state = model.state_dict()
    write_tensors(
        folder / WEIGHTS, {name: v.detach().cpu().contiguous() for name, v in state.items()}
    )


def write_description(folder: Path, spec: Spec, facts: Mapping[str, Any]) -> None:
    """Write ``config.json``: the model, and its licences, training and score (``facts``)."""
    name = next(name for name, kind in _FORMATS.items() if isinstance(spec, kind))
    head = {"format": name, "version": VERSION, "pointdistill": __version__}
    write_json(folder / CONFIG, {**head, "model": to_plain(spec), **facts})


def read_description(folder: Path) -> tuple[Spec, dict[str, Any]]:
    """The model that a folder describes, and the whole content of its ``config.json``.

    Raises:
        CheckpointError: if there is none, it is damaged, or of another format or a newer version.
    """
    path = folder / CONFIG
    if not path.is_file():
        msg = f"{folder}: no model here (no {CONFIG}); `pointdistill finetune` writes one"
        raise CheckpointError(msg)
    with refusing_damage(path, advice="train or copy the model again", error=CheckpointError):
        stored = read_json(path)
        kind = _FORMATS.get(stored.get("format")) if isinstance(stored, dict) else None
        if kind is None:
            msg = (
                f"{path}: neither a classifier nor a segmenter; `pointdistill finetune` trains one"
            )
            raise CheckpointError(msg)
        if stored.get("version") != VERSION:
            found = short_repr(stored.get("version"))
            msg = f"{path}: format version {found}, this program reads {VERSION}; update it"
            raise CheckpointError(msg)
        from_plain(ModelFacts, stored, partial=True)
        spec = from_plain(kind, stored.get("model", {}), where="model")
        _check_names(spec)
        return spec, stored


def _check_names(spec: Spec) -> None:
    """Check that there is one name for each of the model's classes, or categories and parts."""
    if isinstance(spec, ClassifierSpec):
        fits = len(spec.classes) == spec.classifier.classes
    else:
        counts = (spec.segmenter.categories, spec.segmenter.categories, spec.segmenter.parts)
        names = (len(spec.categories), len(spec.category_parts), len(spec.part_names))
        labels = {part for parts in spec.category_parts for part in parts}
        fits = counts == names and all(spec.category_parts) and labels <= set(range(counts[2]))
    if not fits:
        msg = "the names do not fit the model's outputs; the file was changed, train or copy the model again"
        raise CheckpointError(msg)
