"""Pictures as PNG: learning curves and single clouds for pages; sheets of clouds as files of their own.

What goes into a page has a transparent background and mid-grey lines, and its captions are the page's text. A
sheet has a background, captions, a bar of a round length and an arrow along z, so that it can be read alone.
Sizes: N points per cloud, P patches.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pointdistill.errors import DataError, one_line

LOSS_TERMS = ("loss", "patch", "cls", "koleo", "regression")
"""The total and its terms, by their names in a run's metrics."""

COLUMNS = 6
"""Clouds per row of a contact sheet."""

LINES = ("#2f81f7", "#d9822b", "#2da44e", "#bf5fd6", "#d1495b", "#8a6d3b")
"""Colours of lines and bars, readable on a light and a dark page."""

MOST_NEIGHBOURS = 100
"""Most neighbours of one query on a search sheet; more would make a picture that no viewer opens."""

_NEIGHBOUR_COLUMNS = 5
_INK = "#7d8590"
_VISIBLE, _MASKED = "#2f81f7", "#d9822b"
_HEIGHTS: Colormap = LinearSegmentedColormap.from_list("height", ["#3b6fd4", "#23a094", "#e0a030"])
_DPI = 130
_TILE_INCHES = 1.7
_AZIMUTH, _ELEVATION = math.radians(35.0), math.radians(20.0)

# Settings of a user's own matplotlibrc (LaTeX, a dark style, other fonts) must not change a picture or stop it.
_OWN_SETTINGS = (
    "backend",
    "interactive",
    "toolbar",
    "timezone",
    "webagg",
    "tk.",
    "savefig.directory",
)
_PLAIN = {
    name: value
    for name, value in mpl.rcParamsDefault.items()
    if not name.startswith(_OWN_SETTINGS) and name not in ("docstring.hardcopy", "date.epoch")
}

Colors = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of a sheet."""

    page: str
    ink: str
    soft: str
    card: str
    """Behind what is set apart, and the empty part of a bar."""

    accent: str


LIGHT = Theme("#ffffff", "#1f2328", "#59636e", "#eef1f4", "#2f6fb7")
DARK = Theme("#0d1117", "#e6edf3", "#9198a1", "#1f262e", "#4493f8")


def run_curves(
    runs: Sequence[Sequence[Mapping[str, float]]], term: str, *, of: str = "", smooth: bool = True
) -> bytes:
    """Draw one term over the steps of one or several runs, each in its colour of `LINES`.

    Args:
        runs: per run its logged rows, with ``step`` and terms, as in ``metrics.jsonl``.
        term: which key to draw; rows without it are left out, and values that no axis can have.
        of: the unit of the values, written at the axis.
        smooth: draw the values pale and a running mean above them; otherwise the values, with a dot each.

    Raises:
        DataError: if no row has the term.
    """
    if not any(term in row for rows in runs for row in rows):
        msg = f"{term} is in none of the {sum(map(len, runs))} rows; give a run's metrics"
        raise DataError(msg)
    with mpl.rc_context(_PLAIN):
        figure = Figure(figsize=(3.4, 2.3), dpi=_DPI, layout="constrained")
        figure.patch.set_alpha(0.0)
        axis = figure.subplots()
        axis.patch.set_alpha(0.0)
        for number, rows in enumerate(runs):
            color = LINES[number % len(LINES)]
            drawn = [row for row in rows if abs(row.get(term, np.inf)) < 1e30]
            steps = np.array([row["step"] for row in drawn])
            values = np.array([row[term] for row in drawn], np.float64)
            if smooth:
                axis.plot(steps, values, color=color, alpha=0.3, linewidth=0.8)
                axis.plot(steps, _running_mean(values), color=color, linewidth=1.8)
            else:
                axis.plot(steps, values, color=color, linewidth=1.8, marker="o", markersize=4)
        axis.set_xlabel("step", color=_INK, fontsize=9)
        axis.set_ylabel(of, color=_INK, fontsize=9)
        axis.grid(color=_INK, alpha=0.2, linewidth=0.5)
        axis.tick_params(colors=_INK, labelsize=9)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for spine in axis.spines.values():
            spine.set(color=_INK, alpha=0.4)
        return _png(figure)


def cloud_tile(points: NDArray[np.floating], colors: Colors | None = None) -> bytes:
    """Draw one cloud, viewed from the front and slightly above, on a transparent square.

    Args:
        points: (N, 3), z up, any unit.
        colors: one per point, as names or RGB in [0, 1]; by default they are heights.
    """
    if not len(points):
        msg = "no points to draw; expected a cloud of shape (N, 3)"
        raise DataError(msg)
    with mpl.rc_context(_PLAIN):
        sheet = _Sheet(_TILE_INCHES, _TILE_INCHES, None)
        sheet.cloud(points, colors, left=0.0, top=0.0, side=_TILE_INCHES)
        return _png(sheet.figure)


def masked_tile(
    points: NDArray[np.floating], centers: NDArray[np.floating], mask: NDArray[np.bool_]
) -> bytes:
    """Draw what a student sees of a view (blue) and what it must predict (orange), as `cloud_tile`.

    Each point (N, 3) takes the colour of the patch whose centre (P, 3) is nearest to it; ``mask`` (P,) is true
    where a patch is masked.
    """
    gaps = np.linalg.norm(points[:, None] - centers[None], axis=2)
    hidden = mask[gaps.argmin(axis=1)]
    return cloud_tile(points, np.where(hidden, _MASKED, _VISIBLE))


@dataclass(frozen=True, kw_only=True, slots=True)
class SheetShape:
    """One shape of a sheet."""

    points: NDArray[np.floating]
    """(N, 3), z up."""

    name: str
    """Shown in at most two lines."""

    title: str = ""
    """A line in bold above the name, such as a label."""

    similarity: float | None = None
    """Drawn as a bar, from 0 to 1."""

    colors: Colors | None = None
    """One per point; by default they are heights."""


def contact_sheet(shapes: Sequence[SheetShape], *, note: str, theme: Theme = LIGHT) -> bytes:
    """Draw shapes in rows of six, each with a bar of a round length and an arrow along z.

    ``note`` is a line below them, such as what unit the bars are in.
    """
    _require(shapes)
    columns = min(COLUMNS, len(shapes))
    lines = math.ceil(len(shapes) / columns)
    height = _cell_height(shapes)
    with mpl.rc_context(_PLAIN):
        sheet = _Sheet(_MARGIN * 2 + columns * _CELL, 2 * _MARGIN + lines * height + 0.2, theme)
        for number, shape in enumerate(shapes):
            line, column = divmod(number, columns)
            sheet.shape(shape, _MARGIN + column * _CELL, _MARGIN + line * height)
        sheet.text(note, _MARGIN, _MARGIN + lines * height + 0.1, soft=True, width=columns)
        return _png(sheet.figure)


@dataclass(frozen=True, slots=True)
class SheetRow:
    """A query and the shapes nearest to it, the nearest first."""

    query: SheetShape
    neighbours: tuple[SheetShape, ...]


def search_sheet(rows: Sequence[SheetRow], *, note: str, theme: Theme = LIGHT) -> bytes:
    """Draw queries, each on a ground of its own, and to the right of each the shapes nearest to it.

    The neighbours of a single query fill as many rows of five as they need; of several queries each has one row.

    Args:
        rows: at least one.
        note: what the similarity is, in a line below.
        theme: colours.
    """
    _require([row.query for row in rows])
    most = max(1, *(len(row.neighbours) for row in rows))
    columns = min(most, _NEIGHBOUR_COLUMNS) if len(rows) == 1 else most
    height = _cell_height([shape for row in rows for shape in (row.query, *row.neighbours)])
    gap = 0.3
    tops = np.cumsum([0, *(max(1, math.ceil(len(row.neighbours) / columns)) for row in rows)])
    with mpl.rc_context(_PLAIN):
        width, header, footer = 2 * _MARGIN + (1 + columns) * _CELL + gap, 0.3, 0.25
        sheet = _Sheet(width, 2 * _MARGIN + header + float(tops[-1]) * height + footer, theme)
        first = _MARGIN + _CELL + gap
        sheet.text("query", _MARGIN + 0.08, _MARGIN + 0.08, bold=True)
        sheet.text("nearest shapes, the nearest first", first + 0.08, _MARGIN + 0.08, bold=True)
        for row, place in zip(rows, tops[:-1], strict=True):
            top = _MARGIN + header + float(place) * height
            sheet.ground(_MARGIN, top - 0.04, _CELL, height - 0.06)
            sheet.shape(row.query, _MARGIN, top)
            for number, neighbour in enumerate(row.neighbours):
                line, column = divmod(number, columns)
                sheet.shape(neighbour, first + column * _CELL, top + line * height)
        foot = _MARGIN + header + float(tops[-1]) * height + 0.1
        sheet.text(note, _MARGIN, foot, soft=True, width=columns + 1)
        return _png(sheet.figure)


@dataclass(frozen=True, slots=True)
class FilledView:
    """One view with predictions of its hidden patches; all points in the same frame."""

    seen: NDArray[np.floating]
    """(n, 3) points of the visible patches."""

    hidden: NDArray[np.floating]
    """(m, 3) true points of the hidden patches."""

    guesses: tuple[NDArray[np.floating], ...]
    """(m, 3) predicted points of the hidden patches, once per model."""

    distances: tuple[float, ...]
    """Chamfer distance of each prediction, as it is to be shown."""


def filled_views(
    views: Sequence[FilledView], *, titles: Sequence[str], note: str, theme: Theme = LIGHT
) -> bytes:
    """Draw one row per view: what is visible, the whole view, and each prediction of the rest with its distance.

    Args:
        views: with one prediction for each title.
        titles: titles of the predictions.
        note: what the distance is, in a line below.
        theme: colours.
    """
    _require(views)
    names = ["seen", "true", *titles]
    side, line, top = _CELL, _CELL + 0.3, _MARGIN + 0.62
    with mpl.rc_context(_PLAIN):
        width = 2 * _MARGIN + len(names) * side
        sheet = _Sheet(width, top + len(views) * line + 0.3 + _MARGIN, theme)
        sheet.legend({"visible patches": _VISIBLE, "hidden patches": _MASKED}, _MARGIN, _MARGIN)
        for column, name in enumerate(names):
            middle = _MARGIN + (column + 0.5) * side
            sheet.text(name, middle, _MARGIN + 0.45, bold=True, align="center")
        for number, view in enumerate(views):
            above = top + number * line
            frame = np.concatenate([view.seen, view.hidden, *view.guesses])
            best = min(view.distances, default=math.nan)
            for column, added in enumerate((view.hidden[:0], view.hidden, *view.guesses)):
                left = _MARGIN + column * side
                colors = np.array([_VISIBLE] * len(view.seen) + [_MASKED] * len(added))
                points = np.concatenate([view.seen, added])
                place = {"left": left + 0.1, "top": above, "side": side - 0.2}
                sheet.cloud(points, colors, **place, frame=frame)
                if column >= 2:
                    value = view.distances[column - 2]
                    at, bold = (left + side / 2, above + side + 0.08), value == best
                    sheet.text(f"{value:.2f}", *at, bold=bold, soft=not bold, align="center")
        foot = top + len(views) * line + 0.1
        sheet.text(note, _MARGIN, foot, soft=True, width=len(names))
        return _png(sheet.figure)


_MARGIN, _CELL = 0.15, 1.75
_STRIP = 0.34
"""Height of the strip below a cloud with the arrow and the bar."""

_LETTERS, _ENDS = 25, tuple(" /_-.")
_LINE = 0.15


def _require(shapes: Sequence[object]) -> None:
    if not shapes:
        msg = "no clouds to draw; expected at least one of shape (N, 3)"
        raise DataError(msg)


def _cell_height(shapes: Sequence[SheetShape]) -> float:
    """Inches for the cloud, the strip below it, and the longest caption."""
    captions = (
        len(_wrapped(shape.name)) + (shape.title != "") + 1.2 * (shape.similarity is not None)
        for shape in shapes
    )
    return _CELL + _STRIP + _LINE * max(captions) + 0.16


def _wrapped(name: str) -> list[str]:
    """A name in at most two lines; the middle of a longer one is left out."""
    text = one_line(name)
    if len(text) > 2 * _LETTERS:
        return [f"{text[: _LETTERS - 1]}…", text[-_LETTERS:]]
    ends = (
        cut for cut in range(_LETTERS, len(text) - _LETTERS, -1) if text[cut - 1 : cut] in _ENDS
    )
    cut = len(text) if len(text) <= _LETTERS else next(ends, _LETTERS)
    return [line for line in (text[:cut], text[cut:]) if line] or [""]


class _Sheet:
    """A figure whose only axis measures inches from the upper left corner; made without pyplot's global state."""

    def __init__(self, width: float, height: float, theme: Theme | None) -> None:
        self.figure = Figure(figsize=(width, height), dpi=_DPI)
        self.theme = theme or LIGHT
        self.figure.patch.set_facecolor(self.theme.page)
        self.figure.patch.set_alpha(0.0 if theme is None else 1.0)
        self.axis: Axes = self.figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self.axis.set_axis_off()
        self.axis.set_xlim(0.0, width)
        self.axis.set_ylim(height, 0.0)

    def text(
        self,
        text: str,
        left: float,
        middle: float,
        *,
        bold: bool = False,
        soft: bool = False,
        align: str = "left",
        width: int | None = None,
    ) -> None:
        """Write a line, or lines that fit ``width`` cells."""
        lines = [text] if width is None else textwrap.wrap(text, round(width * _LETTERS * 1.03))
        for number, line in enumerate(lines):
            self.axis.text(
                left,
                middle + number * _LINE,
                line,
                color=self.theme.soft if soft else self.theme.ink,
                fontsize=8,
                fontweight="bold" if bold else "normal",
                ha=align,
                va="center",
                parse_math=False,  # names of files may have a $
            )

    def ground(self, left: float, top: float, width: float, height: float) -> None:
        """A card behind what is set apart."""
        card = FancyBboxPatch((left, top), width, height, boxstyle="round,pad=0,rounding_size=0.08")
        card.set(facecolor=self.theme.card, linewidth=0, zorder=0)
        self.axis.add_patch(card)

    def legend(self, names: Mapping[str, str], left: float, top: float) -> None:
        """Names beside dots of their colours, in one line."""
        for name, color in names.items():
            self.axis.scatter([left + 0.08], [top + 0.1], color=color, s=30, linewidths=0)
            self.text(name, left + 0.2, top + 0.1)
            left += 0.5 + 0.075 * len(name)

    def shape(self, shape: SheetShape, left: float, top: float) -> None:
        """A cloud in its cell, with an arrow along z, a bar of a round length, and its caption."""
        inset = 0.1
        side = _CELL - 2 * inset
        if len(shape.points):
            inch = self.cloud(shape.points, shape.colors, left=left + inset, top=top, side=side)
            self._up(left + inset + 0.05, top + side + _STRIP - 0.06)
            self._scale(left + _CELL - inset, top + side + _STRIP - 0.1, inch)
        middle = top + side + _STRIP + 0.12
        if shape.title:
            self.text(_wrapped(shape.title)[0], left + inset, middle, bold=True)
            middle += _LINE
        for line in _wrapped(shape.name):
            self.text(line, left + inset, middle)
            middle += _LINE
        if shape.similarity is not None:
            self._bar(shape.similarity, left + inset, middle + 0.02, side)

    def cloud(
        self,
        points: NDArray[np.floating],
        colors: Colors | None,
        *,
        left: float,
        top: float,
        side: float,
        frame: NDArray[np.floating] | None = None,
    ) -> float:
        """Draw a cloud in parallel projection, so that it or its frame fills a square; far points are paler.

        Returns:
            The length in the cloud's unit that an inch shows.
        """
        colors = _HEIGHTS(_share(points[:, 2])) if colors is None else colors
        bounds = (points if frame is None else frame) @ _camera().T
        middle = (bounds.max(axis=0) + bounds.min(axis=0)) / 2.0
        # The whole square is used, whatever the cloud's extent along the line of sight.
        extent = max(float(np.abs(bounds[:, :2] - middle[:2]).max()), 1e-12)
        right, up, near = ((points @ _camera().T - middle) / extent).T
        order = np.argsort(near)
        depth = _share(near)[order]
        rgba = to_rgba_array(colors)[order]
        rgba[:, 3] = 0.35 + 0.65 * depth
        half = side / 2.08
        self.axis.scatter(
            left + side / 2 + half * right[order],
            top + side / 2 - half * up[order],
            c=rgba,
            s=10.0 * math.sqrt(256 / max(len(points), 256)) * (0.5 + 0.5 * depth),
            linewidths=0,
        )
        return extent / half

    def _up(self, left: float, bottom: float) -> None:
        """An arrow along z; in parallel projection z is upright everywhere."""
        arrow = {
            "arrowstyle": "->",
            "color": self.theme.soft,
            "linewidth": 1.0,
            "shrinkA": 0,
            "shrinkB": 0,
        }
        self.axis.annotate("", xy=(left, bottom - 0.3), xytext=(left, bottom), arrowprops=arrow)
        self.text("z", left + 0.06, bottom - 0.24, soft=True)

    def _scale(self, right: float, bottom: float, inch: float) -> None:
        """A bar of 1, 2 or 5 times a power of ten, with its length above it."""
        longest = 0.8 * inch
        power = 10.0 ** math.floor(math.log10(longest))
        length = max(step * power for step in (1, 2, 5) if step * power <= longest)
        left = right - length / inch
        heights = bottom + np.array([-0.03, 0.03, 0.0, 0.0, -0.03, 0.03])
        self.axis.plot([left] * 3 + [right] * 3, heights, color=self.theme.soft, linewidth=1.0)
        self.text(f"{length:.12g}", (left + right) / 2, bottom - 0.1, soft=True, align="center")

    def _bar(self, share: float, left: float, middle: float, width: float) -> None:
        """A share of 1 as a bar and as a number."""
        full = width - 0.4
        for length, color in (
            (full, self.theme.card),
            (full * min(max(share, 0.0), 1.0), self.theme.accent),
        ):
            bar = Rectangle((left, middle - 0.035), length, 0.07, linewidth=0, facecolor=color)
            self.axis.add_patch(bar)
        self.text(f"{share:.3f}", left + width, middle, align="right")


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


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The font lacks the characters of some scripts, and draws boxes instead.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        # Without the library's version in the file, the same picture gives the same bytes.
        figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
