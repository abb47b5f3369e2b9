"""What an evaluation found, with everything that a reader needs to know what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pointdistill.data.files import write_json
from pointdistill.engine.inputs import Subsampling
from pointdistill.engine.published import PublishedFigure
from pointdistill.engine.tables import Table

NOTHING = "-"
"""A cell for which there is no figure."""

RESULTS_FORMAT = 1
"""Version of ``results.json``; raised when the meaning of a field changes."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over several seeds."""

    mean: float

    deviation: float | None
    """Sample standard deviation over the seeds; None for a single one."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Mean and deviation of at least one value."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(mean=statistics.fmean(values), deviation=deviation)

    def __str__(self) -> str:
        """Two decimals, as in ``51.20 ± 0.43``."""
        return f"{self.mean:.2f}" + ("" if self.deviation is None else f" ± {self.deviation:.2f}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One set of features under one protocol on one split. Accuracies are in percent."""

    features: str
    """Whose features: a run's encoder, its initial weights, or the geometric baseline."""

    benchmark: str
    split: str | None
    data_name: str
    """What the data really was; for a stand-in it says so."""

    form: str
    """Which distributed form of the benchmark was read."""

    checksum: str
    """SHA-256 of the archive."""

    stand_in: bool
    train_clouds: int
    test_clouds: int

    protocol: str
    points: int
    patches: int | None
    """None for features that have no patches."""

    subsampling: Subsampling
    augmentation: str
    """How often the training clouds were augmented."""

    seeds: tuple[int, ...]
    accuracy: Spread
    """Overall accuracy on the test split; of a trained probe, after its last epoch."""

    class_accuracy: Spread
    """Mean over classes."""

    best_epoch_accuracy: Spread | None
    """Of the best epoch, chosen on the test split; None for probes without epochs."""

    published: PublishedFigure | None
    """What the paper reports for the same protocol on the real benchmark."""

    notes: tuple[str, ...] = ()
    """What to know before trusting the figures."""


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Write results as JSON: ``format`` and ``results``, one object each with the fields above."""
    rows = [asdict(result) for result in results]
    write_json(path, {"format": RESULTS_FORMAT, "results": rows})


def results_table(results: Sequence[Result]) -> Table:
    """The results as a table, the published figures beside ours where there are any.

    What is the same in every row (whose features, which split, how many points) is said in the title
    or below the table instead of in a column of its own.
    """
    data = sorted({f"{r.data_name}, {r.split}" if r.split else r.data_name for r in results})
    cells = [_row(result) for result in results]
    shared = {key: cells[0][key] for key in _SHARED if len({row[key] for row in cells}) == 1}
    columns = [key for key in cells[0] if key not in shared]
    said = [f"{key.capitalize()}: {shared[key]}." for key in _NOTED if key in shared]
    return Table(
        title="Accuracy on " + (data[0] if len(data) == 1 else results[0].data_name),
        columns=tuple(columns),
        rows=tuple(tuple(row[key] for key in columns) for row in cells),
        notes=(*said, *_notes(results)),
    )


_SHARED = ("features", "split", "points / patches")
_NOTED = ("features", "points / patches")


def _row(result: Result) -> dict[str, str]:
    """The cells of one result by their columns."""
    patches = "" if result.patches is None else f" / {result.patches}"
    best, published = result.best_epoch_accuracy, result.published
    return {
        "features": result.features,
        "split": result.split or NOTHING,
        "protocol": result.protocol,
        "points / patches": f"{result.points}{patches}",
        "accuracy %": str(result.accuracy),
        "class mean %": str(result.class_accuracy),
        "best epoch %": NOTHING if best is None else str(best),
        "published %": NOTHING if published is None else f"{published.accuracy:.2f}",
    }


def _notes(results: Sequence[Result]) -> list[str]:
    """The sentences under the table: seeds, epochs, whose the published figures are, warnings."""
    chosen = sorted({result.subsampling for result in results})
    seeds = sorted({", ".join(map(str, result.seeds)) for result in results})
    notes = [
        f"Points chosen by {' or '.join(chosen)} subsampling.",
        f"Seeds: {' or '.join(seeds)}{_deviation(results)}.",
    ]
    if any(result.best_epoch_accuracy is not None for result in results):
        notes.append(
            "Accuracy is that of the last epoch. The best epoch is chosen on the test split: "
            "a bound, not a result."
        )
    augmentations = sorted({r.augmentation for r in results if r.protocol == "linear"})
    notes += [f"Linear probe: {augmentation}." for augmentation in augmentations]
    models = sorted({result.published.model for result in results if result.published})
    if models:
        notes.append(f"Published: {', '.join(models)}, on the real benchmark and in its own input.")
    if any(result.stand_in for result in results):
        notes.append(
            "This is a stand-in made by pointdistill in the benchmark's layout; "
            "its figures are not comparable with published ones."
        )
    warned = [f"{r.features}, {r.protocol}: {note}." for r in results for note in r.notes]
    return [*notes, *dict.fromkeys(warned)]


def _deviation(results: Sequence[Result]) -> str:
    several = any(len(result.seeds) > 1 for result in results)
    return "; mean ± sample standard deviation" if several else ""
