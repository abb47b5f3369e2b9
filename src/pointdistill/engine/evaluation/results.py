"""Results of an evaluation, with everything that a reader needs to know about what was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from pointdistill.data.benchmarks.registry import (
    BASE_MIXTURE,
    CLS_SMALL,
    MPM_SMALL,
    PARTIAL,
    RETRIEVAL,
    SCRATCH_SMALL,
    SMALL,
    SMALL_MIXTURE,
    PublishedFigure,
    spec_titled,
)
from pointdistill.data.files.files import write_json
from pointdistill.data.files.schema import to_plain
from pointdistill.engine.features import Score
from pointdistill.engine.weights.encoders import read_facts

_MODELS = {
    ("cls", "small", "ShapeNet"): CLS_SMALL,
    ("mpm", "small", "ShapeNet"): MPM_SMALL,
    ("dual", "small", "ShapeNet"): SMALL,
    ("dual", "small", "Mixture"): SMALL_MIXTURE,
    ("dual", "base", "Mixture"): BASE_MIXTURE,
}

RESULTS_FORMAT = 3
"""Version of ``results.json``; increased when the meaning of a field changes."""

RULES = 2
"""Present rules of the protocols. 1: among equally many votes the nearest voter won, the last partial batch of an
epoch was trained on, the patches of training clouds for a head began at the outermost point, and only the
fine-tuning recipes had stochastic depth."""

_WITHOUT_RULES = ("svm", "logistic", RETRIEVAL, *PARTIAL)
"""Protocols whose results no change of rules has affected."""

WHOLE_METRICS = ("whole OA", "whole mAcc")
"""Main figures of the protocols on partial shapes: those on whole test clouds. They have a table of their own."""

FOLDS = "folds"
"""What a few-shot result is repeated over."""


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


NOT_MEASURED = Spread(math.nan, None)
"""Stands for figures that have not been measured yet."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One more figure of a result."""

    name: str
    value: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One set of features under one protocol on one split. Figures are in percent."""

    features: str
    """Whose features: a run's encoder, its initial weights, or the geometric baseline."""

    benchmark: str
    split: str | None
    data_name: str
    """What the data really was; a stand-in is named as one."""

    form: str
    """Which distributed form of the benchmark was read."""

    checksum: str
    """SHA-256 of the archive; of a folder, of those files in it that belong to the benchmark and split."""

    stand_in: bool
    train_clouds: int
    """0 where every shape is tested against the others, by ranking them or in the folds of a cross-validation."""

    test_clouds: int

    protocol: str
    points: int
    patches: int | None
    """None for features that have no patches."""

    subsampling: str
    """``uniform`` or ``farthest``."""

    augmentation: str
    """How often the training clouds were augmented."""

    seeds: tuple[int, ...]
    """Seeds, or numbers of folds or draws; see ``repeated_over``."""

    accuracy: Spread
    """The first main figure, such as overall accuracy, on the test split after the last epoch."""

    class_accuracy: Spread
    """The second main figure, such as the mean accuracy over classes."""

    best_epoch_accuracy: Spread | None
    """The first main figure of the best epoch, chosen on the test split; None for probes without epochs."""

    published: PublishedFigure | None
    """What the paper reports for the same protocol on the real benchmark."""

    notes: tuple[str, ...] = ()
    """What to know before trusting the figures."""

    metrics: tuple[str, str] = ("OA", "mAcc")
    """Names of the two main figures."""

    further: tuple[Figure, ...] = ()
    """Other figures, such as top-5 accuracy."""

    each: tuple[float, ...] = ()
    """The first main figure of every seed, in the order of ``seeds``."""

    repeated_over: str = "seeds"
    """What ``seeds`` counts: ``seeds``, ``folds`` or ``draws``."""

    fingerprint: str = ""
    """Identifies the encoder's weights; empty for features that have none."""

    epochs: int | None = None
    """Epochs of training; None for probes without."""

    protocol_epochs: int | None = None
    """Epochs of the protocol; ``epochs`` differs from it in a shortened run."""

    votes: int = 1
    """Versions of each test cloud whose logits were averaged; 1 means no voting."""

    copies: int | None = None
    """Augmented sets of training clouds used in turn; None if each epoch made its own, as published, or nothing
    was augmented."""

    hold_out: float | None = None
    """Share of every class of the training split that was not trained on but selected an epoch; None for none."""

    selected_accuracy: Spread | None = None
    """The first main figure after the epoch that was best on the held-out clouds."""

    compared: str = ""
    """How features were compared by angle, where that depends on more than the encoder's weights."""

    rules: int = 1
    """Version of the protocol's rules, see ``RULES``; results from before this field existed have the first."""

    @property
    def protocol_deviation(self) -> str:
        """How the run differs from the protocol; empty if it does not."""
        shortened = self.epochs is not None and self.epochs != self.protocol_epochs
        parts = [f"{self.epochs} of {self.protocol_epochs} epochs"] * shortened
        if self.copies is not None:
            parts.append(
                "1 augmented copy" if self.copies == 1 else f"{self.copies} augmented copies"
            )
        if self.votes > 1:
            parts.append(f"{self.votes} votes")
        if self.hold_out is not None:
            parts.append(f"{100.0 * self.hold_out:g} % held out")
        if self.rules < rules_of(self.protocol):
            parts.append("earlier rules")
        return ", ".join(parts)

    @property
    def label(self) -> str:
        """The protocol as every output names it: ``linear``, or ``linear (5 of 150 epochs)``."""
        return (
            f"{self.protocol} ({self.protocol_deviation})"
            if self.protocol_deviation
            else self.protocol
        )

    def beside(self, published: PublishedFigure | None) -> Result:
        """The same with a published figure beside it; without one if the run deviated from the protocol."""
        return replace(self, published=None if self.protocol_deviation else published)


def rules_of(protocol: str) -> int:
    """The version of its rules that results of a protocol have now."""
    return 1 if protocol in _WITHOUT_RULES else RULES


_VARYING = (
    "seeds",
    "accuracy",
    "class_accuracy",
    "best_epoch_accuracy",
    "selected_accuracy",
    "published",
    "notes",
    "further",
    "each",
)


def with_score(template: Result, score: Score) -> Result:
    """The result of one seed: a template, completed with the figures of a score."""
    best, selected = score.best_accuracy, score.selected_accuracy
    return replace(
        template,
        accuracy=Spread.of([score.accuracy]),
        class_accuracy=Spread.of([score.class_accuracy]),
        best_epoch_accuracy=None if best is None else Spread.of([best]),
        selected_accuracy=None if selected is None else Spread.of([selected]),
        further=tuple(Figure(name, Spread.of([value])) for name, value in score.further),
        notes=(score.note,) if score.note else (),
        each=(score.accuracy,),
    )


def setting_of(result: Result) -> tuple[Hashable, ...]:
    """What results have in common that differ only in the seed: encoder, data, protocol and settings."""
    left_out = {*_VARYING}
    # The name is a path, which changes when a folder is moved; the fingerprint does not.
    left_out |= {"features"} if result.fingerprint else set()
    # Left out where it says nothing, so that a score stored before the field existed is found.
    left_out |= {"rules"} if result.rules == 1 else set()
    left_out |= {"compared"} if not result.compared else set()
    left_out |= {"hold_out"} if result.hold_out is None else set()
    return tuple(getattr(result, item.name) for item in fields(Result) if item.name not in left_out)


def combine(results: Sequence[Result]) -> list[Result]:
    """Results of single seeds (with ``each`` set), joined per setting, in the order of first appearance."""
    groups: dict[tuple[Hashable, ...], dict[int, Result]] = {}
    for result in results:
        (seed,) = result.seeds
        groups.setdefault(setting_of(result), {})[seed] = result
    return [_join([group[seed] for seed in sorted(group)]) for group in groups.values()]


def _join(seeds: Sequence[Result]) -> Result:
    """Results of single seeds of one setting as one result; names and published figures are those of the last."""
    best = [s.best_epoch_accuracy.mean for s in seeds if s.best_epoch_accuracy is not None]
    selected = [s.selected_accuracy.mean for s in seeds if s.selected_accuracy is not None]
    names = [figure.name for figure in seeds[0].further]
    columns = zip(*[[figure.value.mean for figure in s.further] for s in seeds], strict=True)
    return replace(
        seeds[-1],
        seeds=tuple(s.seeds[0] for s in seeds),
        accuracy=Spread.of([s.accuracy.mean for s in seeds]),
        class_accuracy=Spread.of([s.class_accuracy.mean for s in seeds]),
        best_epoch_accuracy=Spread.of(best) if len(best) == len(seeds) else None,
        selected_accuracy=Spread.of(selected) if len(selected) == len(seeds) else None,
        notes=tuple(dict.fromkeys(note for s in seeds for note in s.notes)),
        further=tuple(Figure(n, Spread.of(c)) for n, c in zip(names, columns, strict=True)),
        each=tuple(s.accuracy.mean for s in seeds),
    )


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Write results as JSON: ``format``, and ``results`` with one object per result, its fields those above."""
    rows = [to_plain(result) for result in results]
    write_json(path, {"format": RESULTS_FORMAT, "results": rows})


def comparison_model(*, size: str, mode: str, sources: int) -> str | None:
    """The published model to set beside an encoder: a point of reference that tables print by name.

    Args:
        size: ``small``, ``base`` or ``large``; any other, such as ``tiny``, is compared with small.
        mode: ``dual``, ``cls`` or ``mpm``.
        sources: number of sources of the pretraining corpus: one is compared with ShapeNet, several with
            the Mixture.

    Returns:
        A name for ``published_figure``, or None if nothing of that size and mode was published.
    """
    if size == "large":
        return None
    if size == "base":
        return _MODELS.get((mode, "base", "Mixture"))
    corpus = "Mixture" if sources > 1 else "ShapeNet"
    return _MODELS.get((mode, "small", corpus), _MODELS.get((mode, "small", "ShapeNet")))


def comparison_for(encoder: Path) -> str | None:
    """``comparison_model`` of an encoder's folder or file, from what is recorded of its training."""
    config = read_facts(encoder)
    training = config.get("training", {})
    return comparison_model(
        size=str(training.get("name")).partition("-")[0],  # of a recipe such as small-shapenet
        mode=str(training.get("mode")),
        sources=len(config.get("sources", [])),
    )


def published_figure(
    model: str | None, *, benchmark: str, split: str | None, protocol: str
) -> PublishedFigure | None:
    """What the paper reports for a model under exactly this protocol, or None.

    Args:
        model: a name from ``pointdistill.data.benchmarks.registry``, or None.
        benchmark: by its name in results, such as ``ScanObjectNN``.
        split: such as ``PB-T50-RS`` or ``5w10s``; None if there is only one.
        protocol: ``linear``, ``svm``, ``knn``, ``finetune``, ``scratch`` or ``parts``. From scratch, the figure is
            that of the paper's own ViT-S, whatever the model.
    """
    if protocol == "scratch":
        model = SCRATCH_SMALL
    if model is None:
        return None
    spec = spec_titled(benchmark)
    return None if spec is None else spec.published.get((split, protocol, model))
