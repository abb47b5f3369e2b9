"""The page about runs: what was trained, how it went, what was measured, and what the features find alike.

`report` writes it for runs on disk, several of them side by side; the quickstart writes it for its own run.
Sizes: n clouds of N points, P patches, D the encoder's width, F the length of a feature vector.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointdistill.data.benchmarks.records import LabelledClouds
from pointdistill.data.files.workspace import given_or_last_run
from pointdistill.engine.evaluation.results import Result
from pointdistill.engine.evaluation.store import results_in
from pointdistill.engine.evaluation.tables import results_tables
from pointdistill.engine.features.extract import extract_features, feature_colors, unit_features
from pointdistill.engine.features.inputs import ProtocolInput, embedding_input
from pointdistill.engine.pretraining.online_probe import BUILTIN, open_labelled_set
from pointdistill.engine.pretraining.run_folder import (
    ENCODER,
    read_metrics,
    read_run_config,
    run_folder_of,
)
from pointdistill.engine.reports.pages import (
    Bar,
    Bars,
    Gallery,
    Mark,
    Picture,
    Section,
    Tile,
    write_report,
)
from pointdistill.engine.reports.pictures import LINES, LOSS_TERMS, cloud_tile, run_curves
from pointdistill.engine.reports.tables import Table
from pointdistill.engine.runtime.devices import pick_device
from pointdistill.engine.weights.encoders import fingerprint, load_encoder
from pointdistill.errors import CheckpointError, ConfigError, one_line
from pointdistill.model.encoder import Encoder
from pointdistill.reporter import SILENT, Reporter, format_duration
from pointdistill.version import __version__

MOST_RUNS = len(LINES)
"""Most runs on a page: each has a colour of its own."""

QUERIES, NEIGHBOURS = 5, 5
"""Rows of the picture of neighbours, and neighbours in each."""

COLOURED_CLASSES, COLOURED_EACH = 6, 2
"""Shapes that are coloured by their features: this many classes, and of each this many."""

PAGE_POINTS = 1024
"""Points of a cloud on the page."""

_EVALUATED = "encoder of "  # how ``evaluate`` begins the name of a run's features
_PROBE = "probe_accuracy"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportRequest:
    """Which runs to report, and where to write the page."""

    runs: tuple[Path, ...] = ()
    """Run folders; by default the last run in ``folder``."""

    output: Path | None = None
    """By default ``report.html`` in the run, or in ``folder`` for several."""

    probe: str = BUILTIN
    """The labelled set whose shapes are shown, as for the online probe: builtin, a corpus, or an archive."""

    device: str = "auto"
    folder: Path = Path()
    next_steps: tuple[tuple[str, str], ...] = ()
    """Commands to show at the end, each with what it does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportedRun:
    """One run, as the page shows it."""

    name: str
    """Its folder's name, and more of its path where two have the same."""

    described: Mapping[str, Any]
    """The content of its ``config.json``."""

    metrics: Sequence[Mapping[str, float]]
    """The rows of its ``metrics.jsonl``."""

    results: Sequence[Result]
    encoder: Encoder | None
    """None if it has not saved one yet."""


def report(request: ReportRequest, *, reporter: Reporter = SILENT) -> Path:
    """Write the page about runs; returns where it is.

    Raises:
        CheckpointError: if there is no run, or its encoder is damaged.
        ConfigError: for more runs than colours, a run named twice, or a page whose name does not end in .html.
        DataError: if the labelled set cannot be read.
    """
    folders = _run_folders(request)
    output = request.output or (
        folders[0] / "report.html" if len(folders) == 1 else request.folder / "report.html"
    )
    if output.suffix.lower() not in (".html", ".htm"):
        msg = f"the page must end in .html, got {str(output)!r}"
        raise ConfigError(msg, settings=("output",))
    device = pick_device(request.device)
    runs = [_read_run(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    encoders = [run.encoder for run in runs if run.encoder is not None]
    scores = score_sections(runs)
    sections = [*scores[:1], *curve_sections(runs), *_run_tables(runs)]
    if encoders:
        reporter.progress(f"reading {request.probe}", 0)
        most = max(PAGE_POINTS, *(encoder.config.points for encoder in encoders))
        labelled = open_labelled_set(request.probe, points=most)
        sections += feature_sections(
            runs,
            labelled.voters,
            labelled.classes,
            inputs=None,
            what="the builtin library" if labelled.name == BUILTIN else labelled.name,
            device=device,
            reporter=reporter,
        )
    sections += scores[1:]
    if request.next_steps:
        sections.append(Section(title="What to do next", commands=request.next_steps))
    write_report(
        output,
        title=f"pointdistill: {', '.join(run.name for run in runs)}",
        headline=_headline(runs),
        lead="What was trained, how it went, what was measured, and which shapes the features find alike. "
        "The page is one file that loads nothing.",
        facts={"pointdistill": __version__}
        | {run.name: str(folder) for run, folder in zip(runs, folders, strict=True)},
        sections=sections,
    )
    return output


def _run_folders(request: ReportRequest) -> list[Path]:
    given = request.runs or (
        Path(given_or_last_run(None, folder=request.folder, what="a run", settings=())),
    )
    folders: list[Path] = []
    for path in given:
        folder = run_folder_of(path)
        if folder is None:
            msg = f"{path}: no run here; name a folder that `pointdistill pretrain` wrote"
            raise CheckpointError(msg)
        if folder.resolve() in [other.resolve() for other in folders]:
            msg = f"{path} is named twice; name each run once"
            raise ConfigError(msg)
        folders.append(folder)
    if len(folders) > MOST_RUNS:
        msg = f"a page shows at most {MOST_RUNS} runs, got {len(folders)}; make several pages"
        raise ConfigError(msg)
    return folders


def _names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many parts as tell the runs apart."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-count:]) for path in parts]
        if len(set(names)) == len(names):
            break
    return [one_line(name) for name in names]


def _read_run(folder: Path, name: str) -> ReportedRun:
    return ReportedRun(
        name=name,
        described=read_run_config(folder),
        metrics=read_metrics(folder),
        results=results_in(folder),
        encoder=load_encoder(folder) if (folder / ENCODER).is_dir() else None,
    )


def _headline(runs: Sequence[ReportedRun]) -> str:
    """The last probe or loss of one run; of several, which is ahead, with the figures of all."""
    probes = [[row[_PROBE] for row in run.metrics if _PROBE in row] for run in runs]
    if len(runs) == 1:
        losses = [row["loss"] for row in runs[0].metrics if "loss" in row]
        if probes[0]:
            return f"The online probe went from {probes[0][0]:.1f} to {probes[0][-1]:.1f} %."
        if losses:
            step = runs[0].metrics[-1]["step"]
            return f"The loss went from {losses[0]:.2f} to {losses[-1]:.2f} in {step:,} steps."
        return "Not a step was logged yet."
    if all(probes):
        last = [values[-1] for values in probes]
        best, pairs = runs[last.index(max(last))].name, zip(runs, last, strict=True)
        figures = ", ".join(f"{run.name} {value:.1f} %" for run, value in pairs)
        return f"{best} is ahead in the online probe: {figures}."
    return f"{len(runs)} runs side by side."


def _named_results(runs: Sequence[ReportedRun]) -> list[Result]:
    """All scores, under the names that the page uses."""
    named = []
    for run in runs:
        own = None if run.encoder is None else fingerprint(run.encoder)
        for result in run.results:
            if result.fingerprint and result.fingerprint == own:
                name = run.name
            elif result.features.startswith(_EVALUATED):
                name = f"{run.name}, other weights"
            else:
                name = result.features if len(runs) == 1 else f"{run.name}: {result.features}"
            named.append(replace(result, features=name))
    return named


def score_sections(runs: Sequence[ReportedRun], *, remark: str = "") -> list[Section]:
    """The scores of the runs as bars, with a remark below, and as tables; empty if there are none."""
    results = _named_results(runs)
    if not results:
        return []
    # A run's bars have the colour of its curves.
    names = list(dict.fromkeys([*(r.name for r in runs), *(r.features for r in results)]))
    data = list(dict.fromkeys(_data(result) for result in results))
    groups: dict[str, list[Bar]] = {}
    for result in results:
        title_of = f"{_data(result)}: " * (len(data) > 1) + f"{result.label}, {result.metrics[0]}"
        if math.isfinite(result.accuracy.mean):
            bar = Bar(result.features, result.accuracy.mean, names.index(result.features))
            groups.setdefault(title_of, []).append(bar)
    return [
        Section(
            title="Scores",
            text=f"On {' and '.join(data)}, in percent; more is better, the best of each group is bold."
            + "".join(_not_evaluated(runs, results, name) for name in data if len(runs) > 1),
            bars=tuple(Bars(name, tuple(bars)) for name, bars in groups.items()),
            remark=remark,
        ),
        Section(title="Scores as tables", tables=tuple(results_tables(results))),
    ]


def _not_evaluated(runs: Sequence[ReportedRun], results: Sequence[Result], data: str) -> str:
    """Which runs' own encoders have no score on ``data``, in a sentence."""
    measured = {result.features for result in results if _data(result) == data}
    lacking = [run.name for run in runs if run.name not in measured]
    return f" Not evaluated on {data}: {', '.join(lacking)}." if lacking else ""


def _data(result: Result) -> str:
    return f"{result.data_name}, {result.split}" if result.split else result.data_name


def curve_sections(runs: Sequence[ReportedRun]) -> list[Section]:
    """The loss terms and the online probe over the steps; what was not logged is left out."""
    key = tuple(run.name for run in runs) if len(runs) > 1 else ()
    rows = [run.metrics for run in runs]
    logged = {term for run in rows for row in run for term in row}
    sections = []
    if losses := [term for term in LOSS_TERMS if term in logged]:
        charts = tuple(
            Picture("total loss" if term == "loss" else f"{term} loss", run_curves(rows, term))
            for term in losses
        )
        text = "Logged steps are pale; the line is the mean over a fortieth of them to each side, at least one."
        sections.append(Section(title="Learning curves", text=text, key=key, charts=charts))
    if _PROBE in logged:
        chart = Picture("accuracy in percent", run_curves(rows, _PROBE, of="%", smooth=False))
        text = (
            "A vote of the nearest neighbours in the teacher's features on labelled shapes, "
            "measured while the run trained. No label was trained on."
        )
        sections.append(Section(title="Online probe", text=text, key=key, charts=(chart,)))
    return sections


def _run_tables(runs: Sequence[ReportedRun]) -> list[Section]:
    """What the runs are, and the settings in which they differ."""
    names = tuple(run.name for run in runs)
    facts = [_facts(run) for run in runs]
    rows = tuple((key, *(fact[key] for fact in facts)) for key in facts[0])
    tables = [Table("What was trained", ("", *names), rows)]
    settings = [_flat(run.described.get("config", {})) for run in runs]
    keys = sorted({key for one in settings for key in one})
    differing = tuple(
        (key, *(one.get(key, "-") for one in settings))
        for key in keys
        if len({one.get(key) for one in settings}) > 1
    )
    if differing:
        tables.append(Table("Settings that differ", ("setting", *names), differing))
    return [Section(title="The run" if len(runs) == 1 else "The runs", tables=tuple(tables))]


def _facts(run: ReportedRun) -> dict[str, str]:
    """Facts of a run by name; those that are not known are dashes."""
    config, corpus = run.described.get("config", {}), run.described.get("corpus", {})
    begun = run.described.get("begun_on")
    last = run.metrics[-1] if run.metrics else {}
    total = config.get("steps") or (f"{config['epochs']} epochs" if config.get("epochs") else "-")
    numbers = run.encoder.parameters() if run.encoder is not None else ()
    parameters = sum(parameter.numel() for parameter in numbers)
    shapes = corpus.get("shapes")
    return {
        "recipe": one_line(str(config.get("name", "-"))),
        "objectives": one_line(str(config.get("mode", "-"))),
        "steps": f"{last.get('step', 0):,} of {total:,}"
        if isinstance(total, int)
        else f"{last.get('step', 0):,} in {one_line(str(total))}",
        "batch": str(config.get("batch_size", "-")),
        "shapes": f"{shapes:,}" if isinstance(shapes, int) else "-",
        "corpus": one_line(Path(str(corpus.get("path", "-"))).name),
        "encoder": f"{parameters:,} parameters" if parameters else "not saved yet",
        "time": format_duration(last["seconds"]) if "seconds" in last else "-",
        "device": one_line(str(begun.get("device", "-"))) if isinstance(begun, Mapping) else "-",
        "seed": str(config.get("seed", "-")),
    }


def _flat(settings: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings by dotted names, as text."""
    if not isinstance(settings, Mapping):
        return {prefix.removesuffix("."): one_line(json.dumps(settings))}
    found: dict[str, str] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{one_line(str(key))}.")
    return found


def feature_sections(
    runs: Sequence[ReportedRun],
    clouds: LabelledClouds,
    classes: Sequence[str],
    *,
    inputs: ProtocolInput | None,
    what: str,
    device: torch.device,
    reporter: Reporter = SILENT,
) -> list[Section]:
    """What the features of each run find alike, and shapes coloured by their patch features.

    Args:
        runs: those without an encoder are left out.
        clouds: labelled clouds to search.
        classes: names of their labels; empty if they have none.
        inputs: how clouds reach the encoders; None for each encoder's own points and patches.
        what: what the clouds are, in a few words.
        device: where to compute.
        reporter: told the progress.
    """
    neighbours: dict[str, NDArray[np.int64]] = {}
    precision: dict[str, float] = {}
    for run in runs:
        if run.encoder is None:
            continue
        task = f"features of {run.name}"
        done = 0

        def step(count: int, task: str = task) -> None:
            nonlocal done
            done += count
            reporter.progress(task, done, len(clouds))

        features = unit_features(
            extract_features(
                run.encoder,
                clouds.points,
                inputs=inputs or embedding_input(run.encoder.config),
                seed=0,
                device=device,
                progress=step,
            ),
            run.encoder,
        )
        found = _nearest(features, min(NEIGHBOURS, len(clouds) - 1))
        neighbours[run.name] = found
        precision[run.name] = 100.0 * float((clouds.labels[found] == clouds.labels[:, None]).mean())
    galleries = _neighbour_galleries(neighbours, clouds, classes)
    shares = ", ".join(f"{name} {share:.1f} %" for name, share in precision.items())
    same = clouds.labels[:, None] == clouds.labels[None]
    chance = 100.0 * (float(same.mean()) * len(clouds) - 1) / max(len(clouds) - 1, 1)
    sections = [
        Section(
            title="What the features find alike",
            text=f"Labelled shapes of {what}, and beside each the shapes whose features are nearest by cosine. "
            f"No label was used to find them; the labels tell which are right. Of the {NEIGHBOURS} nearest, the "
            f"share of the query's class over all {len(clouds):,} shapes: {shares} (by chance {chance:.1f} %).",
            galleries=galleries,
        )
    ]
    coloured = _spread(clouds, classes=COLOURED_CLASSES, each=COLOURED_EACH)
    if len(coloured):
        sections.append(
            Section(
                title="Patch features as colours",
                text="The first three principal components of the patch features of these shapes as red, green "
                "and blue. Within one run, parts of the same colour have similar features.",
                galleries=tuple(
                    Gallery(
                        run.name,
                        _feature_tiles(run.encoder, clouds, coloured, classes, device),
                    )
                    for run in runs
                    if run.encoder is not None
                ),
            )
        )
    return sections


def _nearest(features: Tensor, count: int) -> NDArray[np.int64]:
    """For each row of unit features (n, F) the ``count`` nearest others, (n, count), the nearest first."""
    found = []
    for first in range(0, len(features), 512):
        cosine = features[first : first + 512] @ features.T
        rows = torch.arange(len(cosine))
        cosine[rows, rows + first] = -math.inf
        found.append(cosine.topk(count, dim=1).indices)
    return torch.cat(found).numpy()


def _neighbour_galleries(
    neighbours: Mapping[str, NDArray[np.int64]], clouds: LabelledClouds, classes: Sequence[str]
) -> tuple[Gallery, ...]:
    """A gallery per query, with a row for each run."""
    tiles: dict[tuple[int, str], bytes] = {}

    def tile(number: int, caption: str, mark: Mark) -> Tile:
        png = tiles.get((number, ""))
        if png is None:
            png = tiles[number, ""] = cloud_tile(clouds.points[number, :PAGE_POINTS])
        return Tile(Picture(caption, png), mark)

    galleries = []
    several = len(neighbours) > 1
    for query in _spread(clouds, classes=QUERIES, each=1).tolist():
        name = _class_name(classes, clouds.labels[query])
        rows = []
        for run, found in neighbours.items():
            row = [tile(query, run if several else name, Mark.QUERY)]
            for number in found[query].tolist():
                right = clouds.labels[number] == clouds.labels[query]
                mark = Mark.RIGHT if right else Mark.WRONG
                row.append(tile(number, _class_name(classes, clouds.labels[number]), mark))
            rows.append(tuple(row))
        galleries.append(Gallery(name if several else "", tuple(rows)))
    return tuple(galleries)


def _class_name(classes: Sequence[str], label: int) -> str:
    return one_line(classes[label]) if 0 <= label < len(classes) else f"class {label}"


def _spread(clouds: LabelledClouds, *, classes: int, each: int) -> NDArray[np.int64]:
    """Numbers of shapes to show: the first ones of classes that are spread over all that have enough."""
    numbers = [np.flatnonzero(clouds.labels == label) for label in np.unique(clouds.labels)]
    enough = [found[:each] for found in numbers if len(found) >= each]
    if not enough:
        return np.empty(0, np.int64)
    chosen = np.unique(np.linspace(0, len(enough) - 1, classes).round().astype(int))
    return np.concatenate([enough[number] for number in chosen])


def _feature_tiles(
    encoder: Encoder,
    clouds: LabelledClouds,
    numbers: NDArray[np.int64],
    classes: Sequence[str],
    device: torch.device,
) -> tuple[tuple[Tile, ...], ...]:
    """Rows of six shapes whose points have the colours of the features around them."""
    whole = clouds.points.shape[1]
    kept = np.random.default_rng(np.random.SeedSequence((0, whole))).permutation(whole)
    kept = kept[: max(PAGE_POINTS, encoder.config.points)]
    points = torch.from_numpy(clouds.points[numbers][:, kept])
    colors = feature_colors(encoder, points, device=device)
    tiles = [
        Tile(
            Picture(
                _class_name(classes, clouds.labels[number]),
                cloud_tile(points[row].numpy(), colors[row]),
            )
        )
        for row, number in enumerate(numbers)
    ]
    return tuple(tuple(tiles[first : first + 6]) for first in range(0, len(tiles), 6))
