"""The space in which the features of an embedding are compared, and the rows that are most similar in it.

Sizes: n shapes, F the length of a vector, b rows of a block, q queries, K numbers that are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointdistill.engine.embedding.compute import DEFAULT_KIND, default_draws, feature_width
from pointdistill.engine.embedding.index import Index
from pointdistill.engine.features.statistics import (
    RAW,
    Comparison,
    FeatureStatistics,
    choose_space,
    mean_of,
    measure,
    read_statistics,
)
from pointdistill.engine.weights.encoders import encoder_checksum, locate_encoder
from pointdistill.errors import DataError
from pointdistill.model.encoder import Encoder
from pointdistill.reporter import SILENT, Reporter

Features = NDArray[np.float32]


def choose_comparison(
    index: Index, encoder: Encoder, origin: Path | str | None, *, reporter: Reporter = SILENT
) -> Comparison:
    """The space in which an embedding's features are compared, see `choose_space`.

    Args:
        index: an embedding with one vector per shape.
        encoder: the encoder that made it.
        origin: where that encoder is; None if it is only in memory, without statistics of its own.
        reporter: receives a line if the encoder has statistics that do not fit.

    Raises:
        DataError: if statistics in the embedding are damaged, or its features have another length.
    """
    width = feature_width(index.facts.features, encoder)
    statistics, problem = (
        (None, "")
        if origin is None
        else read_statistics(
            locate_encoder(origin),
            encoder_sha256=index.facts.encoder_sha256,
            features=index.facts.features,
            points=index.facts.chosen_draws.points,
            width=width,
        )
    )
    if problem:
        reporter.say(problem)
    return choose_space(
        statistics,
        index.shapes(),
        width,
        mean=lambda: _own_mean(index, width),
        own=lambda: _own_statistics(index, width),
        rows=lambda: np.concatenate(
            [np.empty((0, width), np.float32), *_finite_blocks(index, width)]
        ),
        called="index",
    )


def default_statistics(stored: Path, encoder: Encoder) -> tuple[FeatureStatistics | None, str]:
    """`read_statistics` of the features that ``embed`` writes by default.

    Args:
        stored: the encoder's folder, or its weights file.
        encoder: as it was loaded from there.
    """
    return read_statistics(
        stored,
        encoder_sha256=encoder_checksum(encoder),
        features=DEFAULT_KIND,
        points=default_draws(encoder).points,
        width=feature_width(DEFAULT_KIND, encoder),
    )


def _own_mean(index: Index, width: int) -> Features | None:
    """That of the features; None if all are equal, of which an embedding holds no statistics."""
    stored = index.statistics(width)
    return mean_of(_finite_blocks(index, width)) if stored is None else stored.mean


def _own_statistics(index: Index, width: int) -> FeatureStatistics | None:
    """Those that the embedding holds; one of an earlier version holds none, and is measured here."""
    return index.statistics(width) or measure(_finite_blocks(index, width), index.shapes())


def nearest(
    index: Index, queries: Features, count: int, comparison: Comparison = RAW
) -> list[list[tuple[int, float]]]:
    """For each of ``queries`` (q, F), the ``count`` most similar rows of the embedding, with their cosines.

    The most similar comes first; of rows with the same cosine, the lower one.

    Raises:
        DataError: if the embedding's vectors have another length.
    """
    units, _ = _unit_rows(comparison.transform(queries))
    rows = [np.empty(0, np.int64) for _ in queries]
    best = [np.empty(0, np.float32) for _ in queries]
    first = 0
    for block in _feature_blocks(index, queries.shape[1]):
        with np.errstate(over="ignore", invalid="ignore"):
            scaled, lengths = _unit_rows(comparison.transform(block))
        # A feature that is not finite reaches the length of its row, whatever the comparison: no pass of its own.
        _check_finite(index, lengths)
        for k, cosine in enumerate(units @ scaled.T):
            # Of equal rows the lower one is kept, so a full list takes only what is above its last. Few rows of a
            # block are: they alone are sorted.
            full = len(best[k]) == count
            above = np.flatnonzero(cosine > best[k][-1]) if full else np.arange(len(cosine))
            together = np.concatenate([best[k], cosine[above]])
            order = np.argsort(-together, kind="stable")[:count]
            rows[k] = np.concatenate([rows[k], first + above])[order]
            best[k] = together[order]
        first += len(block)
    # Rounding takes a cosine past 1; it is cut only here, where it no longer decides the order.
    cut = [np.clip(cosines, -1.0, 1.0) for cosines in best]
    return [list(zip(r.tolist(), c.tolist(), strict=True)) for r, c in zip(rows, cut, strict=True)]


def _unit_rows(values: Features) -> tuple[Features, Features]:
    """Rows scaled to length 1, and their lengths (n, 1); rows of zeros stay."""
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    scaled: Features = values / np.maximum(lengths, 1e-12)
    return scaled, lengths


def _finite_blocks(index: Index, width: int) -> Iterator[Features]:
    """The features (b, F) of an embedding, none of which is infinite or not a number.

    Raises:
        DataError: if F is not ``width``, or a feature is not finite.
    """
    for block in _feature_blocks(index, width):
        with np.errstate(over="ignore", invalid="ignore"):
            _check_finite(index, np.linalg.norm(block, axis=1))
        yield block


def _check_finite(index: Index, lengths: Features) -> None:
    """Raise DataError unless all lengths of feature vectors are finite."""
    if not np.isfinite(lengths).all():
        msg = f"{index.path}: features that are not finite; embed again"
        raise DataError(msg)


def _feature_blocks(index: Index, width: int) -> Iterator[Features]:
    """The features (b, F) of an embedding, float32 however they are stored.

    Raises:
        DataError: if F is not ``width``.
    """
    for block in index.blocks("features"):
        if block.ndim != 2 or block.shape[1] != width:
            msg = (
                f"{index.path}: features of shape {block.shape}, expected (n, {width}); embed again"
            )
            raise DataError(msg)
        yield block.astype(np.float32, copy=False)
