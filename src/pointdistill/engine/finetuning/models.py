"""Trained classifiers and segmenters: what they are, and what they say of raw points.

Sizes: B clouds, N points a cloud, C classes, K parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import Tensor

from pointdistill.data.meshes.records import Axis
from pointdistill.data.meshes.sampling import check_axis
from pointdistill.engine.finetuning.epochs import device_of
from pointdistill.engine.finetuning.part_iou import predict_parts
from pointdistill.engine.finetuning.segmenter_task import segment
from pointdistill.engine.finetuning.supervised import cut_from_outermost
from pointdistill.engine.inputs import ProtocolInput, Subsampling, subsample
from pointdistill.errors import DataError
from pointdistill.model.classifier import Classifier, ClassifierConfig
from pointdistill.model.encoder import EncoderConfig
from pointdistill.model.patches import to_unit_sphere
from pointdistill.model.random import KeyedRandom, sample_keys
from pointdistill.model.segmenter import Segmenter, SegmenterConfig
from pointdistill.model.views import AugmentConfig

_STREAM = "model"


@dataclass(frozen=True, kw_only=True, slots=True)
class InputSpec:
    """The clouds a model was trained on, so that those it is asked about can be made alike."""

    points: int
    """Given to the network."""

    patches: int
    subsampling: str
    """How the points are chosen from a larger cloud: ``uniform`` or ``farthest``."""

    augment: AugmentConfig
    """In training alone."""

    cloud_points: int
    """Points of a stored cloud: what a mesh is sampled at."""

    up: str
    """Up axis of files that do not state their own."""

    def __post_init__(self) -> None:
        check_axis(self.up)
        self.protocol()

    @property
    def axis(self) -> Axis:
        """``up``, checked."""
        return check_axis(self.up)

    def protocol(self) -> ProtocolInput:
        """The same for the functions that feed the network."""
        return ProtocolInput(
            points=self.points,
            patches=self.patches,
            subsampling=cast("Subsampling", self.subsampling),
            augment=self.augment,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierSpec:
    """Everything that decides what a trained classifier is, but its weights."""

    encoder: EncoderConfig
    classifier: ClassifierConfig
    classes: tuple[str, ...]
    """Names, in the order of the logits."""

    input: InputSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmenterSpec:
    """Everything that decides what a trained segmenter is, but its weights."""

    encoder: EncoderConfig
    segmenter: SegmenterConfig
    categories: tuple[str, ...]
    category_parts: tuple[tuple[int, ...], ...]
    """Part labels of each category in turn."""

    part_names: tuple[str, ...]
    """Of every part label."""

    input: InputSpec


Spec: TypeAlias = ClassifierSpec | SegmenterSpec


@dataclass(frozen=True, slots=True)
class ClassPrediction:
    """What a classifier says of B clouds."""

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
        """The likeliest class of each cloud."""
        return tuple(self.classes[number] for number in self.logits.argmax(-1).tolist())

    def top(self, count: int) -> list[list[tuple[str, float]]]:
        """Of each cloud the ``count`` likeliest classes with their probabilities, likeliest first."""
        best = self.probabilities.topk(min(count, len(self.classes)), dim=-1)
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [[(self.classes[k], value) for k, value in zip(*row, strict=True)] for row in rows]


@dataclass(frozen=True, slots=True)
class PartPrediction:
    """What a segmenter says of B clouds."""

    parts: Tensor
    """(B, N) int64 part labels, each one of the cloud's category's own."""

    logits: Tensor
    """(B, N, K) of all parts of all categories."""

    part_names: tuple[str, ...]
    """K names."""


class TrainedClassifier:
    """A classifier with its class names and its input; see ``model_folder.load_classifier``."""

    def __init__(self, model: Classifier, spec: ClassifierSpec) -> None:
        self.model = model.eval().requires_grad_(requires_grad=False)
        self.spec = spec

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""
        return self.spec.classes

    def to(self, device: torch.device | str) -> TrainedClassifier:
        """Move it, and return it."""
        self.model.to(device)
        return self

    @torch.inference_mode()
    def __call__(self, points: Tensor) -> ClassPrediction:
        """Class logits of raw clouds; what is said of one does not depend on the others of the batch.

        Args:
            points: (B, N, 3) float, any unit and place, z up. More than the model's input are thinned as in
                training.

        Raises:
            DataError: if the shape is another, points are too few, or a coordinate is not finite.
        """
        encoder, inputs = self.spec.encoder, self.spec.input.protocol()
        points = _checked(points, encoder, device_of(self.model))
        clouds = to_unit_sphere(_thinned(points, inputs))
        patches = cut_from_outermost(clouds, inputs, encoder.patch_points)
        return ClassPrediction(self.model(patches), self.spec.classes)


class TrainedSegmenter:
    """A segmenter with its categories, part names and input; see ``model_folder.load_segmenter``."""

    def __init__(self, model: Segmenter, spec: SegmenterSpec) -> None:
        self.model = model.eval().requires_grad_(requires_grad=False)
        self.spec = spec

    @property
    def categories(self) -> tuple[str, ...]:
        """Category names."""
        return self.spec.categories

    def to(self, device: torch.device | str) -> TrainedSegmenter:
        """Move it, and return it."""
        self.model.to(device)
        return self

    @torch.inference_mode()
    def __call__(self, points: Tensor, category: str | Sequence[str]) -> PartPrediction:
        """A part at every point of raw clouds, each cloud's category being known.

        Args:
            points: (B, N, 3) float, any unit and place, z up. Every point gets a part; patches are cut from
                as many as in training.
            category: of all clouds, or one name a cloud.

        Raises:
            DataError: if the shape is another, points are too few, a coordinate is not finite, or a category is
                unknown.
        """
        inputs, device = self.spec.input.protocol(), device_of(self.model)
        points = to_unit_sphere(_checked(points, self.spec.encoder, device))
        names = [category] * len(points) if isinstance(category, str) else list(category)
        numbers = torch.tensor([self.number_of(name) for name in names], device=device)
        if len(numbers) != len(points):
            msg = (
                f"expected one category, or one a cloud, got {len(names)} for {len(points)} clouds"
            )
            raise DataError(msg)
        logits = segment(self.model, points, _thinned(points, inputs), numbers, inputs)
        parts = predict_parts(logits, numbers, self.spec.category_parts)
        return PartPrediction(parts, logits, self.spec.part_names)

    def number_of(self, category: str) -> int:
        """The number of a category.

        Raises:
            DataError: if it has no such category; names those it has.
        """
        if category not in self.categories:
            known = ", ".join(self.categories)
            msg = f"this segmenter has no category {category!r}; it knows {known}"
            raise DataError(msg)
        return self.categories.index(category)


def _thinned(points: Tensor, inputs: ProtocolInput) -> Tensor:
    """The points given to the network, chosen alike in every cloud, so that no cloud depends on its batch."""
    keys = sample_keys(seed=0, epoch=0, index=torch.zeros(len(points), dtype=torch.int64))
    random = KeyedRandom(keys.to(points.device), _STREAM)
    return subsample(points, inputs.points, inputs.subsampling, random)


def _checked(points: Tensor, encoder: EncoderConfig, device: torch.device) -> Tensor:
    """(B, N, 3) float32 points on the model's device.

    Raises:
        DataError: if they cannot be used.
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
