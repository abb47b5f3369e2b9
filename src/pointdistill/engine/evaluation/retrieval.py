"""Sets without an official split: figures of retrieval, and probes by cross-validation.

Every shape is read and embedded as `pointdistill embed` does it by default, so the figures are those of the
vectors that a user gets.

Sizes: n shapes, F features, C classes, q queries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from pointdistill.data.benchmarks.records import LabelledShapes
from pointdistill.data.benchmarks.registry import CROSS_VALIDATED, RETRIEVAL
from pointdistill.data.files.files import write_aside
from pointdistill.data.sources.paths import ShapeList, ShapeSource
from pointdistill.engine.embedding.compute import (
    DEFAULT_KIND,
    FeatureKind,
    FeatureMaker,
    default_draws,
    feature_width,
    read_settings,
)
from pointdistill.engine.embedding.embed import shapes_in_chunk
from pointdistill.engine.embedding.file import WorkFolder
from pointdistill.engine.embedding.loop import EmbeddingLoop
from pointdistill.engine.evaluation.results import Result
from pointdistill.engine.evaluation.run import EvaluationRun
from pointdistill.engine.features import (
    Samples,
    Score,
    cross_validate,
    logistic_probe,
    nearest_neighbour_probe,
    svm_probe,
)
from pointdistill.engine.features.feature_extractors import EncoderFeatures
from pointdistill.engine.features.statistics import (
    FeatureStatistics,
    space_among,
    standardiser,
)
from pointdistill.engine.runtime.devices import interruptible
from pointdistill.errors import DataError
from pointdistill.model.encoder import Encoder
from pointdistill.reporter import Forecast, Reporter, plural

FOLDS = 5
"""Folds of the cross-validation."""

FEWEST_TO_VALIDATE = 10
"""Shapes that a class needs to be cross-validated."""

SMALLEST_QUERIED = 3
"""Shapes that a class needs for its shapes to be queries."""

E_CUTOFF = 32
"""Ranks that the E-measure looks at: what a user sees on the first page."""

_BLOCK_VALUES = 2**24  # similarities at a time: 128 MiB
_DECIMALS = 9  # of a similarity: below that is the rounding of sums, which differs between machines
_FEATURES_VERSION = 2  # raised when the same settings would give other features
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class RetrievalFigures:
    """Figures of the Princeton Shape Benchmark in percent, means over the queries."""

    nearest: float
    """Share of queries whose nearest shape is of their class."""

    first_tier: float
    """Share of the c - 1 others of a query's class among the nearest c - 1 shapes."""

    second_tier: float
    """The same among the nearest 2 (c - 1)."""

    e_measure: float
    """Harmonic mean of precision and recall of the nearest 32."""

    gain: float
    """Discounted cumulative gain over all ranks, as a share of the best possible one."""

    queries: int
    """How many shapes were queries."""

    @property
    def score(self) -> Score:
        """For the record of a result: the two main figures are the nearest neighbour and the first tier."""
        further = (
            ("second tier", self.second_tier),
            ("E", self.e_measure),
            ("DCG", self.gain),
        )
        return Score(accuracy=self.nearest, class_accuracy=self.first_tier, further=further)


RETRIEVAL_METRICS = ("NN", "first tier")


def retrieval_figures(features: Tensor, labels: NDArray[np.int64]) -> RetrievalFigures:
    """Rank all other shapes by their cosine similarity to each query, and average over the queries.

    The definitions are those of Shilane et al. (SMI 2004), and where the paper leaves a choice, those of
    ``psbTable`` in the benchmark's utilities. A query is never in its own ranking, and the sizes of the tiers do
    not count it. Equally similar shapes are ranked in the order of their numbers. The mean is over queries, not
    over classes. Shapes of a class of one or two are in the rankings, but are no queries: ``psbTable`` leaves them
    out of its averages. The tiers and the E-measure end with the ranking where there are fewer shapes.

    A query's gain is 1 for rank 1 and 1 / log2(r) for rank r, summed over the ranks of its class and divided by
    the sum over the first c - 1 ranks.

    Args:
        features: (n, F), none of them zero, as rows to compare by angle.
        labels: (n,) classes.

    Raises:
        DataError: if no class has three shapes.
    """
    size_of = np.bincount(labels)
    queries = np.flatnonzero(size_of[labels] >= SMALLEST_QUERIED)
    if not len(queries):
        msg = (
            f"retrieval needs a class of at least {plural(SMALLEST_QUERIED, 'shape')}, and the largest has "
            f"{size_of.max(initial=0)}; add shapes to a class"
        )
        raise DataError(msg)
    rows = normalize(features.double(), dim=1)
    classes = torch.from_numpy(labels)
    others = len(labels) - 1
    discount = torch.ones(others, dtype=torch.float64)
    discount[1:] = 1.0 / torch.arange(2, others + 1, dtype=torch.float64).log2()
    figures = []
    for some in torch.from_numpy(queries).split(max(1, _BLOCK_VALUES // len(labels))):
        similarity = (rows[some] @ rows.T).round(decimals=_DECIMALS)
        similarity[torch.arange(len(some)), some] = -torch.inf
        order = similarity.sort(dim=1, descending=True, stable=True).indices[:, :-1]
        hits = (classes[order] == classes[some, None]).double()
        figures.append(_of_queries(hits, discount))
    nearest, first, second, e_measure, gain = (100.0 * torch.cat(figures).mean(dim=0)).tolist()
    return RetrievalFigures(nearest, first, second, e_measure, gain, queries=len(queries))


def _of_queries(hits: Tensor, discount: Tensor) -> Tensor:
    """(q, 5) figures as shares, of (q, n - 1) ranked shapes that are 1 where they are of the query's class."""
    others = hits.shape[1]
    found = hits.cumsum(dim=1)
    same = found[:, -1].long()  # c - 1

    def up_to(ranks: Tensor) -> Tensor:
        return found.gather(1, ranks.clamp(max=others)[:, None] - 1).squeeze(1)

    shown = min(E_CUTOFF, others)
    # 2 / (1 / precision + 1 / recall) with precision k / shown and recall k / (c - 1).
    e_measure = 2.0 * found[:, shown - 1] / (shown + same)
    gain = (hits * discount).sum(dim=1) / discount.cumsum(dim=0)[same - 1]
    tiers = up_to(same) / same, up_to(2 * same) / same
    return torch.stack([hits[:, 0], *tiers, e_measure, gain], dim=1)


def shape_score(
    features: Tensor,
    labels: NDArray[np.int64],
    protocol: str,
    *,
    seed: int,
    statistics: FeatureStatistics | None = None,
    tested: Callable[[int], object] = lambda _: None,
) -> Score:
    """One protocol on features of any kind.

    Args:
        features: (n, F) float32, as they come from an encoder.
        labels: (n,) classes.
        protocol: ``retrieval``, or one of ``knn``, ``svm`` and ``logistic`` by stratified five-fold
            cross-validation over the classes of ten and more shapes.
        seed: of the folds.
        statistics: those that came with the encoder; they decide how features are compared by angle.
        tested: called after each fold with the number of folds so far.

    Raises:
        DataError: if there are too few shapes, or features are not finite.
    """
    Samples(features, torch.from_numpy(labels))  # checks them
    if protocol == RETRIEVAL:
        rows = features.numpy()
        compared = space_among(rows, statistics).transform(rows)
        return retrieval_figures(torch.from_numpy(compared), labels).score
    chosen, names = large_classes(labels)
    if len(names) < 2:
        msg = (
            f"cross-validation needs 2 classes of at least {FEWEST_TO_VALIDATE} shapes, got {len(names)}; "
            "add shapes"
        )
        raise DataError(msg)
    numbers = torch.from_numpy(np.searchsorted(names, labels[chosen]))
    probe = partial(_probe_in_training_space, protocol=protocol, statistics=statistics, seed=seed)
    samples = Samples(features[chosen], numbers)
    return cross_validate(probe, samples, folds=FOLDS, seed=seed, tested=tested)


def large_classes(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows (m,) of the (n,) labels whose class can be cross-validated, and these classes (C,), ascending."""
    names = np.flatnonzero(np.bincount(labels) >= FEWEST_TO_VALIDATE)
    return np.flatnonzero(np.isin(labels, names)), names


def _probe_in_training_space(
    train: Samples,
    test: Samples,
    *,
    protocol: str,
    statistics: FeatureStatistics | None,
    seed: int,
) -> Score:
    """Probe features in the space of the training shapes: nothing of the test shapes is known."""
    like = train.features.numpy()
    space = space_among(like, statistics).transform if protocol == "knn" else standardiser(like)
    scaled = [torch.from_numpy(space(part.features.numpy())).float() for part in (train, test)]
    if protocol != "logistic":
        scaled = [normalize(features, dim=1) for features in scaled]
    known, held_out = Samples(scaled[0], train.labels), Samples(scaled[1], test.labels)
    if protocol == "logistic":
        return logistic_probe(known, held_out)
    if protocol == "svm":
        return svm_probe(known, held_out, seed=seed)
    return nearest_neighbour_probe(known, held_out)


@dataclass(frozen=True, slots=True)
class ShapeFeatures:
    """Features of the shapes of a set that could be read. Sizes: m of n shapes."""

    features: Tensor
    """(m, F) float32, on the CPU."""

    rows: NDArray[np.int64]
    """(m,) int64, which of the n shapes they are of, ascending."""

    refused: tuple[tuple[str, str], ...]
    """Name and reason of every other shape."""


def embed_labelled(
    shapes: LabelledShapes,
    encoder: Encoder,
    *,
    seed: int,
    device: torch.device,
    output: Path,
    reporter: Reporter,
    kind: FeatureKind = DEFAULT_KIND,
) -> ShapeFeatures:
    """Features of every shape as ``embed`` writes them for the same seed and up axis.

    They are averaged over several draws if a draw has few points. They are stored in ``output``, and read from it
    next time, whatever their kind.

    Raises:
        DataError: if the archive cannot be read, or no shape in it.
        KeyboardInterrupt: after a signal, once the shapes that were read are saved; the same call continues.
    """
    if output.exists():
        return _stored(output)
    draws = default_draws(encoder)
    settings = read_settings(encoder, draws, seed=seed, up=shapes.up)
    path = shapes.path.resolve()
    names = shapes.members
    source = ShapeSource(shapes.kind, str(path), shapes.path.as_posix(), names, len(names))
    size = shapes_in_chunk(draws, feature_width(kind, encoder))
    # Its name says all that decides the features, so another request is of a version with other chunks.
    wanted, chunks = {"features": output.name, "chunk": size}, -(-len(shapes) // size)
    work = WorkFolder(output, wanted, chunks=chunks, overwrite=True)
    loop = EmbeddingLoop(ShapeList([source]), settings, work, size, _Forecasting(reporter))
    maker = FeatureMaker(encoder, kind, device, points=draws.points, turns=draws.turns)
    with interruptible(reporter.on_signal) as stopped:
        loop.run(maker, batch_size=None, workers=None, stopped=stopped)
        if stopped() and loop.missing():
            raise KeyboardInterrupt
    columns = list(work.columns("features", "rows", "failed"))
    refused = [row for chunk in columns for row in work.refusals(chunk["failed"])]
    usable = [chunk for chunk in columns if len(chunk["rows"])]
    if not usable:
        first = f"{refused[0][0]}: {refused[0][1]}"
        msg = f"{shapes.path}: none of its {plural(len(shapes), 'shape')} can be read; {first}"
        raise DataError(msg)
    with write_aside(output) as aside:
        np.savez(
            aside,
            allow_pickle=False,
            features=np.concatenate([chunk["features"] for chunk in usable]),
            rows=np.concatenate([chunk["rows"] for chunk in usable]),
            refused=np.array(refused, dtype=np.str_).reshape(-1, 2),
        )
    work.remove()
    return _stored(output)


def _stored(path: Path) -> ShapeFeatures:
    try:
        with np.load(path, allow_pickle=False) as stored:
            refused = tuple((str(name), str(reason)) for name, reason in stored["refused"])
            return ShapeFeatures(torch.from_numpy(stored["features"]), stored["rows"], refused)
    except (OSError, ValueError, KeyError) as error:
        msg = f"{path}: damaged ({error}); remove it, and the features are computed again"
        raise DataError(msg) from error


class _Forecasting(Reporter):
    """Forwards progress, and says once how long it will take."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._forecast = Forecast(reporter, "features of the shapes")
        self._before: float | None = None

    def progress(
        self, task: str, done: float, total: float | None = None, *, note: str = "", unit: str = ""
    ) -> None:
        """Report the progress of a task; those of its first report may be of an earlier call."""
        self._reporter.progress(task, done, total, note=note, unit=unit)
        if total is not None and self._before is not None:
            self._forecast(done, total, latest=done - self._before)
        self._before = done if self._before is None else self._before


def evaluate_retrieval(run: EvaluationRun) -> list[Result]:
    """One result for every split, protocol and seed of a run; a seed is that of the points and of the folds."""
    found: list[Result] = []
    for split in run.splits:
        shapes = run.read(split)
        assert isinstance(shapes, LabelledShapes)
        shapes = _with_draws(run, shapes)
        run.announce(shapes)
        results = _measure(run, shapes)
        if run.store is not None:
            run.store.draw(results)
        found += results
    return found


def _with_draws(run: EvaluationRun, shapes: LabelledShapes) -> LabelledShapes:
    """The same; its form says which features a vector holds, and what it is the mean of."""
    extractor = run.extractor
    assert isinstance(extractor, EncoderFeatures)
    draws = default_draws(extractor.encoder)
    how = f"{draws.points:,} points"
    if draws.count > 1:
        how = f"{draws.count} draws of {how} at {draws.turns} angles"
    return replace(shapes, form=f"{shapes.form}; {DEFAULT_KIND} of {how} from each shape")


def _measure(run: EvaluationRun, shapes: LabelledShapes) -> list[Result]:
    results: list[Result] = []
    protocols = _possible(run, shapes)
    for seed in run.seeds:
        templates = {protocol: _template(run, shapes, protocol, seed) for protocol in protocols}
        stored = {protocol: run.find(template) for protocol, template in templates.items()}
        missing = [protocol for protocol, result in stored.items() if result is None]
        embedded = _embed(run, shapes, seed) if missing else None
        for protocol in missing:
            assert embedded is not None
            task = f"{shapes.name}, seed {seed}: {protocol}"
            folds = partial(
                run.reporter.progress, task, total=None if protocol == RETRIEVAL else FOLDS
            )
            folds(0)
            labels = shapes.labels[embedded.rows]
            score = shape_score(
                embedded.features,
                labels,
                protocol,
                seed=seed,
                statistics=run.statistics,
                tested=folds,
            )
            if embedded.refused:
                left_out = (
                    f"{len(embedded.refused):,} of {plural(len(shapes), 'shape')} could not be read"
                )
                score = replace(score, note="; ".join(filter(None, [score.note, left_out])))
            names = () if protocol == RETRIEVAL else _names(shapes, labels)
            stored[protocol] = run.record(templates[protocol], score, names)
        results += [result for result in stored.values() if result is not None]
    return results


def _possible(run: EvaluationRun, shapes: LabelledShapes) -> tuple[str, ...]:
    """The protocols of a run that the classes are large enough for.

    Raises:
        DataError: if there are none.
    """
    sizes = np.bincount(shapes.labels)
    large, queried = (
        int((sizes >= FEWEST_TO_VALIDATE).sum()),
        int((sizes >= SMALLEST_QUERIED).sum()),
    )
    lacking = {
        **dict.fromkeys(
            CROSS_VALIDATED if large < 2 else (),
            f"cross-validation needs 2 classes of at least {FEWEST_TO_VALIDATE} shapes, got {large}",
        ),
        **(
            {}
            if queried
            else {RETRIEVAL: f"retrieval needs a class of {plural(SMALLEST_QUERIED, 'shape')}"}
        ),
    }
    possible = tuple(protocol for protocol in run.protocols if protocol not in lacking)
    reasons = dict.fromkeys(lacking[protocol] for protocol in run.protocols if protocol in lacking)
    if not possible:
        msg = f"{shapes.path}: {'; '.join(reasons)}; add shapes to the classes"
        raise DataError(msg)
    for reason in reasons:
        left_out = ", ".join(p for p in run.protocols if lacking.get(p) == reason)
        run.reporter.say(f"not measured: {left_out}; {reason}")
    return possible


def _template(run: EvaluationRun, shapes: LabelledShapes, protocol: str, seed: int) -> Result:
    """The result of one protocol and seed, complete but for the figures."""
    size = len(shapes) if protocol == RETRIEVAL else len(large_classes(shapes.labels)[0])
    metrics = RETRIEVAL_METRICS if protocol == RETRIEVAL else ("OA", "mAcc")
    template = run.template(
        shapes, protocol, seed, sizes=(0, size), protocol_epochs=None, metrics=metrics
    )
    by_angle = protocol in (RETRIEVAL, "knn")
    return replace(template, compared=_compared(run.statistics) if by_angle else "")


def _compared(statistics: FeatureStatistics | None) -> str:
    """For the record: by which axes; other statistics of the same encoder give other figures."""
    if statistics is None:
        return "the set's own axes or deviations"
    shapes = plural(statistics.shapes, "shape")
    return f"axes of {shapes} that came with the encoder ({statistics.checksum[:8]})"


def _names(shapes: LabelledShapes, labels: NDArray[np.int64]) -> tuple[str, ...]:
    """Names of the classes that are cross-validated."""
    return tuple(shapes.classes[number] for number in large_classes(labels)[1])


def _embed(run: EvaluationRun, shapes: LabelledShapes, seed: int) -> ShapeFeatures:
    """The features for a seed, and a line for what could not be read."""
    extractor = run.extractor
    assert isinstance(extractor, EncoderFeatures)
    assert run.store is not None
    named = "\0".join(shapes.members)
    config = extractor.encoder.config
    draws = default_draws(extractor.encoder)
    what = (
        *(_FEATURES_VERSION, run.fingerprint, shapes.checksum, shapes.up, seed, named),
        *draws.plain().values(),
        config.patches,
    )
    key = hashlib.sha256(repr(what).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    embedded = embed_labelled(
        shapes,
        extractor.encoder,
        seed=seed,
        device=torch.device(extractor.device),
        output=run.store.output / "features" / f"{key}.npz",
        reporter=run.reporter,
    )
    _say_refused(embedded.refused, len(shapes), run.reporter)
    return embedded


def _say_refused(refused: Sequence[tuple[str, str]], count: int, reporter: Reporter) -> None:
    if refused:
        reporter.say(
            f"{len(refused):,} of {plural(count, 'shape')} cannot be read and are left out:"
        )
    for name, reason in refused[:_MOST_NAMED]:
        reporter.say(f"left out: {name}: {reason}")
    if len(refused) > _MOST_NAMED:
        reporter.say(f"left out: {len(refused) - _MOST_NAMED:,} more")
