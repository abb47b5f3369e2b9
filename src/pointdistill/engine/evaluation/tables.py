"""Results for readers: tables with the published figures beside ours, and confusion matrices as pictures.

Sizes: C classes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.benchmarks.registry import RETRIEVAL, PublishedDescriptor, spec_titled
from pointdistill.engine.evaluation.results import WHOLE_METRICS, Result
from pointdistill.engine.reports.tables import Table
from pointdistill.reporter import plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOTHING = "-"
"""Content of a cell without a figure."""

_BEST = "best epoch %"
_PUBLISHED = "published %"
_OWN = ("features", "split")  # what other methods have of their own
_SELECTED = "selected %"
_SHARED = ("features", "split", "data", "points / patches", "repeats")
_NOTED = ("features", "points / patches")
_COPYING = ("linear", "mlp")  # protocols that may use copies instead of augmenting anew

_DPI = 130
_BLUE = "#2f6fb7"


def results_tables(results: Sequence[Result]) -> list[Table]:
    """One table per benchmark, in the order of first appearance."""
    groups: dict[tuple[str, tuple[str, str]], list[Result]] = {}
    for result in results:
        groups.setdefault((result.data_name, result.metrics), []).append(result)
    return [results_table(group) for group in groups.values()]


def results_table(results: Sequence[Result]) -> Table:
    """Results with the same main figures as one table, with the published figures beside ours.

    What is the same in every row (features, split, number of points) appears in the title or below the table
    instead of in its own column.
    """
    data = sorted({f"{r.data_name}, {r.split}" if r.split else r.data_name for r in results})
    further = list(dict.fromkeys(figure.name for r in results for figure in r.further))
    forms = _several_forms(results)
    cells = [_row(result, further, forms) for result in results]
    shared = {key: cells[0][key] for key in _SHARED if len({row[key] for row in cells}) == 1}
    others = _descriptors(results)
    if others:
        shared = {key: cell for key, cell in shared.items() if key not in _OWN}
        cells += [_descriptor_row(other, _split_of(results), list(cells[0])) for other in others]
    if not forms and not _several_archives(results):
        shared["data"] = ""
    columns = [key for key in cells[0] if key not in shared]
    shared_notes = [f"{key.capitalize()}: {shared[key]}." for key in _NOTED if key in shared]
    if all(result.best_epoch_accuracy is None for result in results):
        columns.remove(_BEST)
    if all(result.selected_accuracy is None for result in results):
        columns.remove(_SELECTED)
    if all((r.stand_in or _is_whole(r)) and r.published is None for r in results):
        columns.remove(_PUBLISHED)
    return Table(
        title=f"{_what(results[0])} on " + (data[0] if len(data) == 1 else results[0].data_name),
        columns=tuple(columns),
        rows=tuple(tuple(row[key] for key in columns) for row in cells),
        notes=(*shared_notes, *_notes(results)),
    )


def _what(result: Result) -> str:
    """The kind of figures, as a title begins."""
    if result.protocol == RETRIEVAL:
        return "Retrieval"
    if result.metrics == WHOLE_METRICS:
        return "Accuracy with a share of each test cloud's points kept,"
    main = result.metrics[0] if "IoU" in result.metrics[0] else "accuracy"
    return f"{main[0].upper()}{main[1:]}"


def _is_whole(result: Result) -> bool:
    """Whether the shapes have no sides: each is tested against the others."""
    return result.train_clouds == 0


def _descriptors(results: Sequence[Result]) -> tuple[PublishedDescriptor, ...]:
    """Other methods whose figures belong in the table."""
    spec = spec_titled(results[0].benchmark)
    is_retrieval = all(result.protocol == RETRIEVAL for result in results)
    return spec.descriptors if spec and is_retrieval else ()


def _split_of(results: Sequence[Result]) -> str:
    """The split that the figures of other methods are of."""
    spec = spec_titled(results[0].benchmark)
    return (spec.descriptors_split if spec else None) or NOTHING


def _descriptor_row(
    other: PublishedDescriptor, split: str, columns: Sequence[str]
) -> dict[str, str]:
    """The cells of another method; the columns of its figures are in the order of the record's."""
    first = columns.index("repeats") + 1
    figures = [NOTHING if value is None else f"{value:.1f}" for value in other.figures]
    named = zip(columns[first : first + len(figures)], figures, strict=True)
    own = {"features": f"{other.name}, published", "split": split, "protocol": RETRIEVAL}
    return dict.fromkeys(columns, NOTHING) | own | dict(named)


def _several_archives(results: Sequence[Result]) -> bool:
    """Whether data of the same name come from different archives, so that the checksum needs a column."""
    named = {(r.data_name, r.split) for r in results}
    return len({(r.data_name, r.split, r.checksum) for r in results}) > len(named)


def _several_forms(results: Sequence[Result]) -> tuple[str, ...]:
    """The forms that data of the same archive were read in, if one was read in several: with two up axes, say."""
    archives = {(r.data_name, r.split, r.checksum) for r in results}
    if len({(r.data_name, r.split, r.checksum, r.form) for r in results}) == len(archives):
        return ()
    return tuple(dict.fromkeys(result.form for result in results))


def _row(result: Result, further: Sequence[str], forms: Sequence[str]) -> dict[str, str]:
    """The cells of one result by their columns; ``forms`` are numbered as in the notes."""
    form = f", form {forms.index(result.form) + 1}" if forms else ""
    patches = "" if result.patches is None else f" / {result.patches}"
    values = {figure.name: str(figure.value) for figure in result.further}
    best, selected = result.best_epoch_accuracy, result.selected_accuracy
    published = result.published
    return {
        "features": result.features,
        "split": result.split or NOTHING,
        "data": f"{result.checksum[:8]}{form}",
        "protocol": result.label,
        "points / patches": f"{result.points}{patches}",
        "repeats": f"{len(result.seeds)} {result.repeated_over}",
        f"{result.metrics[0]} %": str(result.accuracy),
        f"{result.metrics[1]} %": str(result.class_accuracy),
        **{f"{name} %": values.get(name, NOTHING) for name in further},
        _BEST: NOTHING if best is None else str(best),
        _SELECTED: NOTHING if selected is None else str(selected),
        _PUBLISHED: NOTHING if published is None else str(published),
    }


def _notes(results: Sequence[Result]) -> list[str]:
    """The sentences under the table: data, seeds, epochs, whose the published figures are, warnings."""
    chosen = sorted({result.subsampling for result in results})
    notes = [f"Points chosen by {' or '.join(chosen)} subsampling.", *_repeats(results)]
    if any(result.best_epoch_accuracy is not None for result in results):
        notes.append(
            f"{results[0].metrics[0]} is that of the last epoch. The best epoch is chosen on the test split: "
            "a bound, not a result."
        )
    if results[0].metrics == ("OA", "mAcc"):
        notes.append(
            "OA: share of all test clouds that is right; mAcc: mean of the classes' shares."
        )
    if any(result.selected_accuracy is not None for result in results):
        notes.append(
            "Selected: the test score after the epoch that was best on the held-out part of the training split, "
            "which was not trained on: a result."
        )
    if any(result.metrics == WHOLE_METRICS for result in results):
        notes.append(
            "The probes are fitted on whole training clouds. Of each test cloud's input points, a share is kept: "
            "drawn at random, or the contiguous part nearest to a random point."
        )
    copied: dict[str, list[str]] = {}
    for result in results:
        if result.protocol in _COPYING and result.protocol not in copied.get(
            result.augmentation, ()
        ):
            copied.setdefault(result.augmentation, []).append(result.protocol)
    notes += [f"{', '.join(protocols)}: {how}." for how, protocols in copied.items()]
    notes += _how_ranked(results)
    models = sorted({result.published.model for result in results if result.published})
    if models:
        notes.append(f"Published: {', '.join(models)}, on the real benchmark and in its own input.")
    if any(result.epochs != result.protocol_epochs for result in results):
        notes.append("Fewer epochs than the protocol's are a deviation from it.")
    if any(result.copies is not None for result in results):
        notes.append(
            "Augmented copies are a deviation from the protocol, which augments anew each epoch."
        )
    if any(result.votes > 1 for result in results):
        notes.append(
            "Votes: logits averaged over that many versions of each test cloud, resampled and scaled. "
            "The published figures have none."
        )
    if any(result.stand_in for result in results):
        notes.append(
            "This is a stand-in made by pointdistill in the benchmark's layout; "
            "its figures are not comparable with published ones."
        )
    warned = [f"{r.features}, {r.protocol}: {note}." for r in results for note in r.notes]
    forms = _several_forms(results)
    data = (
        f"Form {forms.index(result.form) + 1}: {_data(result)}" if forms else _data(result)
        for result in results
    )
    return [*notes, *dict.fromkeys(warned), *dict.fromkeys(data)]


def _how_ranked(results: Sequence[Result]) -> list[str]:
    """What was done with a set that has no sides for training and testing."""
    whole = [result for result in results if _is_whole(result)]
    notes = []
    if any(result.protocol == RETRIEVAL for result in whole):
        notes.append(
            "Retrieval: every shape is a query, and all others are ranked by the cosine, in the space that "
            "`search` compares in; means over the queries. Shapes of classes of one or two are ranked, but are no "
            "queries. E is that of the first 32."
        )
    folded = dict.fromkeys(result.protocol for result in whole if result.protocol != RETRIEVAL)
    if folded:
        notes.append(
            f"{', '.join(folded)}: stratified five-fold cross-validation over the classes of ten and more "
            "shapes, features standardised by the training folds, or for knn compared as `search` does; means "
            "over the folds."
        )
    for how in dict.fromkeys(result.compared for result in whole if result.compared):
        by_angle = dict.fromkeys(r.protocol for r in whole if r.compared == how)
        notes.append(f"{', '.join(by_angle)}: compared by {how}.")
    sources = dict.fromkeys(other.source for other in _descriptors(results))
    if sources:
        notes.append(
            f"Published rows: {'; '.join(sources)}; descriptors of meshes, without learning, on the split "
            f"{_split_of(results)}. Methods are developed on the split train, and compared with these on the "
            f"split {_split_of(results)} once every choice has been made."
        )
    return notes


def _repeats(results: Sequence[Result]) -> list[str]:
    """The seeds or folds that the figures are means over."""
    several = any(len(result.seeds) > 1 for result in results)
    spread = "; mean ± sample standard deviation" if several else ""
    repeats: dict[str, set[tuple[int, ...]]] = {}
    for result in results:
        repeats.setdefault(result.repeated_over, set()).add(result.seeds)
    return [
        f"{what.capitalize()}: {' or '.join(', '.join(map(str, one)) for one in sorted(seeds))}{spread}."
        for what, seeds in repeats.items()
    ]


def _data(result: Result) -> str:
    """A sentence on the files that were read."""
    split = f", {result.split}" if result.split else ""
    if _is_whole(result):
        use = RETRIEVAL if result.protocol == RETRIEVAL else "cross-validation"
        return (
            f"{result.data_name}{split}, {use}: {plural(result.test_clouds, 'shape')}; {result.form}; "
            f"SHA-256 {result.checksum[:16]}."
        )
    return (
        f"{result.data_name}{split}: {result.train_clouds:,} training and {result.test_clouds:,} test "
        f"clouds; {result.form}; SHA-256 {result.checksum[:16]}."
    )


def confusion_chart(
    counts: Sequence[NDArray[np.int64]], classes: Sequence[str], *, title: str
) -> bytes:
    """Draw the confusion matrix in percent of each true class, and beside it the accuracy of every class.

    Each row has the number of its test clouds. Classes without any are left out.

    Args:
        counts: one (C, C) array per seed, test clouds by true (row) and predicted (column) class.
        classes: names of all C classes.
        title: printed above both.

    Returns:
        A PNG.
    """
    from matplotlib.figure import Figure

    here = np.flatnonzero(np.sum(counts, axis=0).sum(axis=1))
    names = [classes[int(index)] for index in here]
    totals = np.array([c[here].sum(axis=1) for c in counts])
    shares = [
        100.0 * c[np.ix_(here, here)] / n[:, None] for c, n in zip(counts, totals, strict=True)
    ]
    size = max(4.5, 0.24 * len(names) + 1.8)
    figure = Figure(figsize=(size + 3.2, size), dpi=_DPI, layout="constrained")
    matrix, bars = figure.subplots(1, 2, width_ratios=(size, 2.2), sharey=True)
    _draw_matrix(matrix, np.mean(shares, axis=0), names, totals)
    _draw_accuracies(bars, np.array([np.diag(share) for share in shares]))
    figure.suptitle(title, fontsize=9)
    buffer = io.BytesIO()
    # Without the library's version in it, equal pictures are equal files.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_matrix(
    axis: Axes, share: NDArray[np.float64], names: Sequence[str], totals: NDArray[np.int64]
) -> None:
    """Shares in percent as shades, with a number from 1.5 percent on; ``totals`` is (seeds, C) test clouds."""
    axis.imshow(share, cmap="Blues", vmin=0.0, vmax=100.0, aspect="auto")
    for row, column in zip(*np.nonzero(share >= 1.5), strict=True):
        value = share[row, column]
        text = axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=5.5)
        text.set_color("white" if value > 55.0 else "black")
        # Numbers inside cells take no room from the layout, and measuring them is a quarter of the drawing time.
        text.set_in_layout(False)
    places = range(len(names))
    axis.set_xticks(places, names, rotation=90, fontsize=7)
    spans = zip(names, totals.min(axis=0), totals.max(axis=0), strict=True)
    rows = [
        f"{n} ({low:,})" if low == high else f"{n} ({low:,} to {high:,})" for n, low, high in spans
    ]
    axis.set_yticks(places, rows, fontsize=7)
    axis.set_xlabel("predicted, % of the true class", fontsize=8)
    axis.set_ylabel("true class (number of shapes)", fontsize=8)
    axis.tick_params(length=0)
    axis.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="#d8d8d8", linewidth=0.4)
    axis.tick_params(which="minor", length=0)


def _draw_accuracies(axis: Axes, accuracies: NDArray[np.float64]) -> None:
    """One bar per class, its mean over the seeds as a number, and a line from the lowest to the highest seed.

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


def partial_chart(results: Sequence[Result], *, title: str) -> bytes:
    """Draw the accuracy against the share of points kept: a line for every cut of every set of features.

    Args:
        results: on partial shapes, of one benchmark, split and probe.
        title: printed above.

    Returns:
        A PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.2), dpi=_DPI, layout="constrained")
    axis = figure.subplots()
    for number, result in enumerate(results):
        for cut, style in (("random", "--"), ("contiguous", "-")):
            parts = [one for one in result.further if one.name.startswith(f"{cut} ")]
            spreads = [result.accuracy, *(one.value for one in parts)]
            axis.errorbar(
                [100.0, *(float(one.name.removeprefix(f"{cut} ")) for one in parts)],
                [spread.mean for spread in spreads],
                yerr=[spread.deviation or 0.0 for spread in spreads],
                linestyle=style,
                marker="o",
                markersize=3,
                capsize=2,
                color=f"C{number % 10}",
                label=f"{result.features}, {cut}",
            )
    axis.invert_xaxis()
    axis.set_xlabel("share of the points kept, %")
    axis.set_ylabel("overall accuracy, %")
    axis.grid(color="#e4e4e4", linewidth=0.6)
    axis.legend(fontsize=7)
    axis.set_title(title, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
