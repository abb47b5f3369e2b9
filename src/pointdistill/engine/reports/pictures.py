"""Pictures for reports as PNG: loss curves, clouds, masked patches, neighbours.

Backgrounds are transparent and lines mid-grey, so that a picture is readable on a light and a dark page.
Sizes: N points per cloud, P patches.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_rgba_array
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pointdistill.errors import DataError

LOSS_TERMS = ("loss", "patch", "cls", "koleo", "regression")
"""The total and its terms, by their names in a run's metrics."""

COLUMNS = 6
"""Clouds per row, unless a row has a meaning."""

_INK = "#7d8590"
_VISIBLE, _MASKED = "#2f81f7", "#d9822b"
_HEIGHTS: Colormap = LinearSegmentedColormap.from_list("height", ["#3b6fd4", "#23a094", "#e0a030"])
_LINES = ("#2f81f7", "#d9822b", "#2da44e", "#bf5fd6", "#d1495b", "#8a6d3b")
_DPI = 110
_CELL_INCHES = 1.7
_AZIMUTH, _ELEVATION = math.radians(35.0), math.radians(20.0)


def loss_curves(rows: Sequence[Mapping[str, float]], *, terms: Sequence[str] = LOSS_TERMS) -> bytes:
    """Draw loss terms over the steps of a run, each raw (pale) and as a running mean.

    Args:
        rows: one per logged step, with ``step`` and the terms, as in a run's ``metrics.jsonl``.
        terms: which keys to draw, in this order; those that no row has are left out.

    Raises:
        DataError: if there are no rows, or none has a term.
    """
    drawn = [name for name in terms if any(name in row for row in rows)]
    if not drawn:
        msg = f"none of {', '.join(terms)} is in the {len(rows)} rows; give a run's metrics"
        raise DataError(msg)
    figure, axes = _figure(1, len(drawn), width=3.4, height=2.5)
    for axis, name, color in zip(axes, drawn, cycle(_LINES), strict=False):
        steps = np.array([row["step"] for row in rows if name in row])
        values = np.array([row[name] for row in rows if name in row])
        axis.plot(steps, values, color=color, alpha=0.3, linewidth=0.8)
        axis.plot(steps, _running_mean(values), color=color, linewidth=1.6)
        axis.set_title(_title(name), color=_INK, fontsize=9, parse_math=False)
        axis.set_xlabel("step", color=_INK, fontsize=8)
        axis.grid(color=_INK, alpha=0.2, linewidth=0.5)
        axis.tick_params(colors=_INK, labelsize=7)
        for spine in axis.spines.values():
            spine.set_color(_INK)
            spine.set_alpha(0.4)
    return _png(figure)


def _title(term: str) -> str:
    return term if term == "loss" else f"{term} loss"


def clouds(
    shapes: Sequence[NDArray[np.floating]],
    *,
    titles: Sequence[str] = (),
    columns: int = COLUMNS,
    up_axis: bool = False,
) -> bytes:
    """Draw clouds side by side, viewed from the front and slightly above, coloured by height.

    Args:
        shapes: (N, 3) each, z up, any unit; N may differ, and 0 leaves a cell blank.
        titles: one per shape, of one or two lines; or none.
        columns: clouds per row.
        up_axis: draw an arrow along z beside each.
    """
    return _grid(
        [(shape, _HEIGHTS(_share(shape[:, 2]))) for shape in shapes],
        titles=titles,
        columns=columns,
        up_axis=up_axis,
    )


def masked_patches(
    views: Sequence[tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.bool_]]],
    *,
    titles: Sequence[str] = (),
    columns: int = COLUMNS,
) -> bytes:
    """Draw what a student sees of each view (blue) and what it must predict (orange).

    Each point takes the colour of the patch whose centre is nearest to it.

    Args:
        views: points (N, 3), patch centres (P, 3) in the same unit, and mask (P,), true = masked.
        titles: one per view, or none.
        columns: views per row.
    """
    drawn = []
    for points, centers, mask in views:
        gaps = np.linalg.norm(points[:, None] - centers[None], axis=2)
        hidden = mask[gaps.argmin(axis=1)]
        drawn.append((points, np.where(hidden, _MASKED, _VISIBLE)))
    return _grid(drawn, titles=titles, columns=columns)


def neighbour_rows(
    rows: Sequence[Sequence[NDArray[np.floating]]], *, titles: Sequence[Sequence[str]] = ()
) -> bytes:
    """Draw one row per query: the query first, then its neighbours, the nearest first.

    Args:
        rows: clouds (N, 3), the same number in each row.
        titles: such as class names, in the same arrangement, or none.
    """
    flat = [cloud for row in rows for cloud in row]
    names = [title for row in titles for title in row]
    return clouds(flat, titles=names, columns=len(rows[0]) if rows else 1)


@dataclass(frozen=True, slots=True)
class FilledView:
    """One view with predictions of its hidden patches; all points in the same frame."""

    seen: NDArray[np.floating]
    """(n, 3) points of the visible patches."""

    hidden: NDArray[np.floating]
    """(m, 3) true points of the hidden patches."""

    guesses: tuple[NDArray[np.floating], ...]
    """(m, 3) predicted points of the hidden patches, once per model."""


def filled_views(views: Sequence[FilledView], *, titles: Sequence[str]) -> bytes:
    """Draw one row per view: the whole view, its visible part (blue), and each prediction of the rest (orange).

    Args:
        views: with one prediction for each title.
        titles: titles of the predictions.
    """
    drawn, frames = [], []
    for view in views:
        nothing = view.hidden[:0]
        frame = np.concatenate([view.seen, view.hidden, *view.guesses])
        for added in (view.hidden, nothing, *view.guesses):
            colors = [_VISIBLE] * len(view.seen) + [_MASKED] * len(added)
            drawn.append((np.concatenate([view.seen, added]), np.array(colors)))
            frames.append(frame)
    names = ["shape", "seen", *titles] * len(views)
    return _grid(drawn, titles=names, columns=2 + len(titles), frames=frames)


def _grid(
    drawn: Sequence[tuple[NDArray[np.floating], NDArray[np.generic]]],
    *,
    titles: Sequence[str],
    columns: int,
    frames: Sequence[NDArray[np.floating]] | None = None,
    up_axis: bool = False,
) -> bytes:
    """Draw clouds with a colour per point, in rows of ``columns``; each, or its frame, fills its cell."""
    if not drawn:
        msg = "no clouds to draw; expected at least one of shape (N, 3)"
        raise DataError(msg)
    columns = min(columns, len(drawn))
    lines = math.ceil(len(drawn) / columns)
    title_lines = max((title.count("\n") + 1 for title in titles), default=0)
    height = _CELL_INCHES + (0.1 + 0.15 * title_lines if titles else 0.0)
    figure, axes = _figure(lines, columns, width=_CELL_INCHES, height=height)
    for index, axis in enumerate(axes):
        axis.set_axis_off()
        if index < len(drawn) and len(drawn[index][0]):
            points, colors = drawn[index]
            _draw_cloud(axis, points, colors, points if frames is None else frames[index])
            if up_axis:
                _draw_up(axis)
        if index < len(titles):
            # Names of files may have a $, which would begin a formula.
            axis.set_title(titles[index], color=_INK, fontsize=8, pad=2, parse_math=False)
    return _png(figure)


def _draw_cloud(
    axis: Axes,
    points: NDArray[np.floating],
    colors: NDArray[np.generic],
    frame: NDArray[np.floating],
) -> None:
    """Draw a cloud in parallel projection, scaled to its frame; far points first, smaller and paler."""
    bounds = frame @ _camera().T
    middle = (bounds.max(axis=0) + bounds.min(axis=0)) / 2.0
    # The whole cell is used, whatever the cloud's extent along the line of sight.
    extent = max(float(np.abs(bounds[:, :2] - middle[:2]).max()), 1e-12)
    right, up, near = ((points @ _camera().T - middle) / extent).T
    order = np.argsort(near)
    depth = _share(near)[order]
    rgba = to_rgba_array(colors)[order]
    rgba[:, 3] = 0.35 + 0.65 * depth
    size = 10.0 * math.sqrt(256 / max(len(points), 256))
    axis.scatter(
        right[order],
        up[order],
        c=rgba,
        s=size * (0.5 + 0.5 * depth),
        linewidths=0,
    )
    axis.set_xlim(-1.04, 1.04)
    axis.set_ylim(-1.04, 1.04)
    axis.set_aspect("equal")


def _draw_up(axis: Axes) -> None:
    """Draw an arrow along z in the lower left corner; in parallel projection z is upright everywhere."""
    arrow = {"arrowstyle": "->", "color": _INK, "linewidth": 1.0}
    axis.annotate("", xy=(-0.98, -0.62), xytext=(-0.98, -1.0), arrowprops=arrow)
    axis.annotate("z", xy=(-0.92, -0.7), color=_INK, fontsize=7)


def _camera() -> NDArray[np.float64]:
    """Rows: the directions to the right, up, and towards the viewer, z up in the world."""
    sin_a, cos_a = math.sin(_AZIMUTH), math.cos(_AZIMUTH)
    sin_e, cos_e = math.sin(_ELEVATION), math.cos(_ELEVATION)
    near = [cos_a * cos_e, sin_a * cos_e, sin_e]
    right = [-sin_a, cos_a, 0.0]
    up = [-cos_a * sin_e, -sin_a * sin_e, cos_e]
    return np.array([right, up, near])


def _share(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Values shifted and scaled to [0, 1]; all 0 if they are equal."""
    if not len(values):
        return values
    low, high = values.min(), values.max()
    return (values - low) / max(float(high - low), 1e-12)


def _running_mean(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean over a fortieth of the run on each side, less at the ends."""
    reach = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    place = np.arange(len(values))
    first, last = np.maximum(place - reach, 0), np.minimum(place + reach + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _figure(lines: int, columns: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A transparent figure, made without pyplot's global state, and its axes row by row."""
    size = (width * columns, height * lines)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.subplots(lines, columns, squeeze=False)
    flat = [axis for row in axes for axis in row]
    for axis in flat:
        axis.patch.set_alpha(0.0)
    return figure, flat


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The font lacks the characters of some scripts, and draws boxes instead.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        # Without the library's version in the file, the same picture gives the same bytes.
        figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
