"""Mean and principal axes of features, and the space in which features of different shapes are compared.

Features of an encoder point in nearly one direction, because what all shapes share is larger than what tells
them apart. Here the mean is subtracted, and each principal axis is divided by its standard deviation, so that
no few axes decide alone. A ridge keeps axes that hold little but noise from counting as much as the others. The
axes are those of many other shapes, measured with the encoder, where there are such: they describe the encoder
and not the few shapes that are compared. docs/results.md has the measurement.

Sizes: n shapes, F the length of a feature vector, K principal axes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from pointdistill.data.files.schema import refusing_damage
from pointdistill.engine.weights.encoders import STATISTICS, read_tensors, write_tensors
from pointdistill.errors import CheckpointError, DataError
from pointdistill.reporter import plural

RIDGE = 0.3
"""Share of the mean variance that is added to the variance of each axis; chosen on the training half of the
Princeton Shape Benchmark."""

NEGLIGIBLE = 1e-3
"""Axes whose variance is below this share of the ridge are left out: they have no part in a similarity."""

MOST_SHAPES = 16_384
"""Most shapes that statistics are computed from, evenly spread over all."""

OWN_MEAN_FROM = 50
"""Fewest shapes whose own mean is better than that of the shapes that an encoder's statistics were measured on."""

OWN_AXES_FROM = 2
"""Fewest shapes for each feature whose own axes are better than features standardised one by one. Vectors of fewer
shapes than features are nearly at right angles once they are whitened, whatever the shapes."""

STANDARDISED_FROM = 4
"""Fewest shapes that say anything about a mean: that of fewer is largely the one shape that is looked for."""

ALIKE = 1e-6
"""Features that differ by less than this share of the largest are equal but for rounding."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureStatistics:
    """Mean and principal axes of the features of many shapes."""

    mean: Floats
    """(F,)."""

    axes: Floats
    """(K, F) orthonormal rows, the largest variance first; K may be 0."""

    variances: Floats
    """(K,) positive."""

    mean_variance: float
    """Mean of the variances of all F features, at least 0."""

    shapes: int
    """Number of shapes that were measured."""

    def whitened(self, features: Floats) -> Floats:
        """Features (n, F) in the space in which they are compared: (n, K)."""
        scales = 1.0 / np.sqrt(self.variances + RIDGE * self.mean_variance)
        # Scaled axes, so that the rows are passed over once.
        return (features - self.mean) @ (self.axes * scales[:, None]).T

    def about(self, mean: Floats) -> FeatureStatistics:
        """The same axes about another mean (F,)."""
        return replace(self, mean=mean)

    @property
    def checksum(self) -> str:
        """Hexadecimal SHA-256 of the axes and variances."""
        return hashlib.sha256(self.axes.tobytes() + self.variances.tobytes()).hexdigest()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As they are stored; `statistics_from` reads them."""
        return {
            "feature_mean": self.mean,
            "feature_axes": self.axes,
            "feature_variances": self.variances,
            "feature_mean_variance": np.array([self.mean_variance], np.float32),
            "feature_shapes": np.array([self.shapes], np.int64),
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """A space in which the cosine of two feature vectors says how similar two shapes are."""

    transform: Callable[[Floats], Floats]
    """Maps feature vectors (n, F) to that space, (n, K)."""

    name: str
    """In a few words."""


RAW = Comparison(lambda features: features, "raw features")


def choose_space(
    encoders: FeatureStatistics | None,
    shapes: int,
    width: int,
    *,
    mean: Callable[[], Floats | None],
    own: Callable[[], FeatureStatistics | None],
    rows: Callable[[], Floats],
    called: str,
) -> Comparison:
    """The space in which the features of some shapes are compared.

    The encoder's axes, about the shapes' own mean where there are enough of them. For an encoder without
    statistics: the shapes' own axes where there are enough for these, else each feature standardised.

    Args:
        encoders: statistics that came with the encoder, of these features; None if there are none.
        shapes: n.
        width: F.
        mean: computes the mean of the shapes' features; None if all are equal.
        own: measures the statistics of the shapes; None if all are equal.
        rows: reads their features, (n, F); only called where n is below 2 F.
        called: what the shapes are together, such as ``index``, for the name.
    """
    few = f"the {called} holds {plural(shapes, 'shape')}"
    if encoders is not None:
        of = f"features whitened over {plural(encoders.shapes, 'shape')}, as measured with the encoder"
        if shapes < OWN_MEAN_FROM:
            return Comparison(encoders.whitened, f"{of}; {few}")
        middle = mean()
        if middle is None:
            return Comparison(encoders.whitened, f"{of}; all shapes of the {called} are alike")
        return Comparison(encoders.about(middle).whitened, f"{of}, about the {called}'s mean")
    whose = f"over the {called}'s {plural(shapes, 'shape')}"
    raw = Comparison(RAW.transform, f"{RAW.name}; {few}")
    if shapes >= OWN_AXES_FROM * width:
        measured = own()
        return (
            raw if measured is None else Comparison(measured.whitened, f"features whitened {whose}")
        )
    like = rows()
    if shapes < STANDARDISED_FROM or mean_of([like]) is None:
        return raw
    scaled = standardiser(like)
    return Comparison(
        lambda features: scaled(features).astype(np.float32), f"features standardised {whose}"
    )


def space_among(known: Floats, encoders: FeatureStatistics | None) -> Comparison:
    """`choose_space` for a set whose features (n, F) are in memory."""
    return choose_space(
        encoders,
        *known.shape,
        mean=lambda: mean_of([known]),
        own=lambda: measure([known], len(known)),
        rows=lambda: known,
        called="set",
    )


def mean_of(blocks: Iterable[Floats]) -> Floats | None:
    """The mean (F,) of feature vectors, (b, F) each block; None if there are none, or all are equal."""
    count = 0
    for block in blocks:
        if not count and len(block):
            total = np.zeros(block.shape[1])
            low = high = block[0]
        if len(block):
            count += len(block)
            total += block.sum(axis=0, dtype=np.float64)
            low, high = np.minimum(low, block.min(axis=0)), np.maximum(high, block.max(axis=0))
    if not count or (high - low).max() <= ALIKE * max(np.abs(low).max(), np.abs(high).max()):
        return None
    return (total / count).astype(np.float32)


def standardiser(like: Floats) -> Callable[[Floats], NDArray[np.float64]]:
    """A function that puts features (n, F) about the mean of ``like`` (m, F), in units of its deviation.

    A feature that is constant in ``like`` becomes 0.
    """
    mean, deviation = like.mean(axis=0, dtype=np.float64), like.std(axis=0, dtype=np.float64)
    # A constant feature has rounding errors for a deviation; features of one shape agree to 1e-5.
    constant = deviation <= 1e-5 * np.abs(like).max(axis=0)
    scale = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, deviation))
    return lambda features: (features - mean) * scale


ARRAYS = (
    "feature_mean",
    "feature_axes",
    "feature_variances",
    "feature_mean_variance",
    "feature_shapes",
)
"""Names of the arrays that statistics are stored in."""


def statistics_from(
    arrays: Mapping[str, NDArray[Any]], *, width: int, path: Path
) -> FeatureStatistics:
    """Statistics from their stored arrays.

    Args:
        arrays: as ``FeatureStatistics.arrays`` returns them.
        width: F.
        path: for the message.

    Raises:
        DataError: if an array is missing, has another shape or type, or holds values that cannot be.
    """
    problem = _problem(arrays, width)
    if problem:
        msg = f"{path}: its feature statistics are damaged: {problem}; write it again"
        raise DataError(msg)
    return FeatureStatistics(
        mean=arrays["feature_mean"],
        axes=arrays["feature_axes"],
        variances=arrays["feature_variances"],
        mean_variance=float(arrays["feature_mean_variance"][0]),
        shapes=int(arrays["feature_shapes"][0]),
    )


def _problem(arrays: Mapping[str, NDArray[Any]], width: int) -> str | None:
    missing = [name for name in ARRAYS if name not in arrays]
    if missing:
        return f"no {missing[0]}"
    count = len(arrays["feature_variances"]) if arrays["feature_variances"].ndim == 1 else 0
    shapes = ((width,), (count, width), (count,), (1,), (1,))
    for name, shape in zip(ARRAYS, shapes, strict=True):
        array, dtype = arrays[name], np.int64 if name == "feature_shapes" else np.float32
        if array.shape != shape or array.dtype != dtype:
            return f"{name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}"
        if not np.isfinite(array).all():
            return f"{name} holds values that are not finite"
    for name in ("feature_variances", "feature_mean_variance", "feature_shapes"):
        if (arrays[name] <= 0).any():
            return f"{name} holds values that are not positive"
    return None


def measure(blocks: Iterable[Floats], count: int) -> FeatureStatistics | None:
    """Statistics of feature vectors, in memory that does not grow with their number.

    Args:
        blocks: (b, F) each, of any b; read once.
        count: number of vectors in all of them.

    Returns:
        None if there is no vector, all are equal, or a value is not finite.
    """
    stride = -(-count // MOST_SHAPES) or 1
    shapes, origin = 0, None
    for block in _every(blocks, stride):
        if origin is None:
            # About a vector near the mean: sums of squares about 0 would lose the digits that differ.
            origin = block.mean(axis=0, dtype=np.float64)
            total, products = np.zeros_like(origin), np.zeros((len(origin), len(origin)))
        centred = block - origin
        shapes += len(block)
        total += centred.sum(axis=0)
        products += centred.T @ centred
    if origin is None:
        return None
    offset = total / shapes
    covariance = products / shapes - np.outer(offset, offset)
    mean = (origin + offset).astype(np.float32)
    mean_variance = float(np.trace(covariance)) / len(mean)
    # Also false for NaN. Vectors that differ by rounding alone have no axes.
    if not mean_variance > 1e-12 * float(np.square(origin).mean()):
        return None
    variances, axes = np.linalg.eigh(covariance)
    kept = np.flatnonzero(variances > NEGLIGIBLE * RIDGE * mean_variance)[::-1]
    return FeatureStatistics(
        mean=mean,
        axes=np.ascontiguousarray(axes[:, kept].T, np.float32),
        variances=variances[kept].astype(np.float32),
        mean_variance=mean_variance,
        shapes=shapes,
    )


def _every(blocks: Iterable[Floats], stride: int) -> Iterator[Floats]:
    """Rows 0, stride, 2 stride and so on of all blocks together."""
    first = 0
    for block in blocks:
        chosen = block[-first % stride :: stride]
        first += len(block)
        if len(chosen):
            yield chosen


def write_statistics(
    folder: Path, statistics: FeatureStatistics, *, made_with: Mapping[str, str]
) -> Path:
    """Write an encoder's own statistics into its folder.

    Args:
        folder: the encoder's.
        statistics: of features of this encoder.
        made_with: ``encoder_sha256``, ``features`` (the kind), ``points``, ``draws`` and ``turns``.
    """
    path = folder / STATISTICS
    tensors = {name: torch.from_numpy(value) for name, value in statistics.arrays().items()}
    write_tensors(path, tensors, made_with)
    return path


def read_statistics(
    stored: Path, *, encoder_sha256: str, features: str, points: int, width: int
) -> tuple[FeatureStatistics | None, str]:
    """An encoder's own statistics, if they are of these features.

    Args:
        stored: the encoder's folder, or its weights file, which has none.
        encoder_sha256: the encoder's checksum.
        features: the kind of features to compare.
        points: of each draw; features of denser draws have another mean. Other numbers of draws are accepted.
        width: F.

    Returns:
        The statistics, or None; and why they are not used, empty if there are none.
    """
    path = stored / STATISTICS
    if not path.is_file():
        return None, ""
    try:
        made_with = _header(path)
        if made_with.get("encoder_sha256") != encoder_sha256:
            return None, f"{path} is not used: it was measured on another encoder"
        for name, wanted in (("features", features), ("points", str(points))):
            if made_with.get(name) != wanted:
                return (
                    None,
                    f"{path} is not used: its {name} are {made_with.get(name)}, not {wanted}; "
                    "measure this encoder again",
                )
        arrays = {name: value.numpy() for name, value in read_tensors(path).items()}
        return statistics_from(arrays, width=width, path=path), ""
    except (CheckpointError, DataError, TypeError) as error:
        return None, f"not used: {error}"


def _header(path: Path) -> dict[str, str]:
    with (
        refusing_damage(path, advice="measure them again", error=CheckpointError),
        safe_open(path, "pt") as file,
    ):
        return file.metadata() or {}
