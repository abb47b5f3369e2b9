"""Confusion matrix and class accuracies as one picture, for papers and slides: dark on white, readable in print.

Sizes: C classes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

_DPI = 130
_BLUE = "#2f6fb7"


def confusion_chart(
    counts: Sequence[NDArray[np.int64]], classes: Sequence[str], *, title: str
) -> bytes:
    """Draw confusions in percent of each true class, and beside them the accuracy of every class.

    Classes without a test cloud are left out.

    Args:
        counts: (C, C) each, test clouds by true (row) and predicted (column) class, one a seed.
        classes: C names.
        title: above both.

    Returns:
        A PNG.
    """
    here = np.flatnonzero(np.sum(counts, axis=0).sum(axis=1))
    names = [classes[int(index)] for index in here]
    shares = [100.0 * c[np.ix_(here, here)] / c[here].sum(axis=1, keepdims=True) for c in counts]
    size = max(4.5, 0.24 * len(names) + 1.8)
    figure = Figure(figsize=(size + 3.2, size), dpi=_DPI, layout="constrained")
    matrix, bars = figure.subplots(1, 2, width_ratios=(size, 2.2), sharey=True)
    _draw_matrix(matrix, np.mean(shares, axis=0), names)
    _draw_accuracies(bars, np.array([np.diag(share) for share in shares]))
    figure.suptitle(title, fontsize=9)
    buffer = io.BytesIO()
    # Without the library's version in it, the same picture is the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_matrix(axis: Axes, share: NDArray[np.float64], names: Sequence[str]) -> None:
    """Shares in percent as shades, and as numbers from two percent on."""
    axis.imshow(share, cmap="Blues", vmin=0.0, vmax=100.0, aspect="auto")
    for row, column in zip(*np.nonzero(share >= 1.5), strict=True):
        value = share[row, column]
        text = axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=5.5)
        text.set_color("white" if value > 55.0 else "black")
        # Numbers inside cells need no place of their own; looking for one is a quarter of the time to draw.
        text.set_in_layout(False)
    places = range(len(names))
    axis.set_xticks(places, names, rotation=90, fontsize=7)
    axis.set_yticks(places, names, fontsize=7)
    axis.set_xlabel("predicted, % of the true class", fontsize=8)
    axis.set_ylabel("true", fontsize=8)
    axis.tick_params(length=0)
    axis.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="#d8d8d8", linewidth=0.4)
    axis.tick_params(which="minor", length=0)


def _draw_accuracies(axis: Axes, accuracies: NDArray[np.float64]) -> None:
    """A bar a class, its mean over the seeds in numbers, and a line from the lowest to the highest seed.

    ``accuracies`` is (seeds, C), in percent.
    """
    mean = accuracies.mean(axis=0)
    places = np.arange(len(mean))
    axis.barh(places, mean, color=_BLUE, height=0.7)
    if len(accuracies) > 1:
        axis.hlines(places, accuracies.min(axis=0), accuracies.max(axis=0), color="black", lw=0.8)
    for place, value in enumerate(mean):
        axis.text(102.0, place, f"{value:.0f}", va="center", fontsize=6)
    axis.set_xlim(0.0, 100.0)
    axis.set_xlabel("accuracy of the class, %", fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    axis.tick_params(axis="y", which="both", length=0, labelleft=False)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
