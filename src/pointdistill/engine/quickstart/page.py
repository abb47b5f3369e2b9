"""The page of a quickstart: what was measured in words and bars, features, and what the encoder was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from pointdistill.data.benchmarks.records import Benchmark, LabelledClouds
from pointdistill.data.corpus import Corpus
from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.evaluation.results import Result
from pointdistill.engine.features.inputs import protocol_input
from pointdistill.engine.pretraining.loader import read_batch
from pointdistill.engine.pretraining.run_folder import read_metrics, read_run_config
from pointdistill.engine.reports.pages import Gallery, Picture, Section, Tile, write_report
from pointdistill.engine.reports.pictures import cloud_tile, masked_tile
from pointdistill.engine.run_report import (
    PAGE_POINTS,
    ReportedRun,
    curve_sections,
    feature_sections,
    score_sections,
)
from pointdistill.engine.weights import BUNDLED, bundled_is_here
from pointdistill.model.encoder import Encoder
from pointdistill.model.masking import draw_masks
from pointdistill.model.random import KeyedRandom, sample_keys
from pointdistill.model.views import draw_views
from pointdistill.version import __version__

PRETRAINED, INITIAL, GEOMETRY = "pretrained", "initial weights", "geometric features"
SUPERVISED = "supervised from scratch"
PROTOCOLS = ("knn", "linear", "svm", "logistic")
"""What frozen features are measured by."""

SHAPES = 6
"""Shapes of the corpus that the page shows."""

POOL = 1500
"""Number of test clouds to search for neighbours."""


def gains(results: Sequence[Result]) -> dict[str, float]:
    """Accuracy gained by pretraining over the run's initial weights, in percentage points, by protocol."""
    accuracy = {(r.features, r.protocol): r.accuracy.mean for r in results}
    return {name: accuracy[PRETRAINED, name] - accuracy[INITIAL, name] for name in PROTOCOLS}


def write_page(
    path: Path,
    config: PretrainConfig,
    corpus: Corpus,
    benchmark: Benchmark,
    run: Path,
    trained: Encoder,
    results: list[Result],
    *,
    seconds: Mapping[str, float],
    device: str,
    next_steps: tuple[tuple[str, str], ...],
) -> None:
    """Write the page about a run, with the comparisons that were measured and the training data.

    Args:
        path: the page.
        config: of the pretraining.
        corpus: trained on.
        benchmark: measured on.
        run: the run's folder.
        trained: the encoder of that run.
        results: of this encoder, of its initial weights, and of what they are compared with.
        seconds: duration of each stage.
        device: where the features for the page are computed.
        next_steps: commands that the page proposes, each with what it does.
    """
    facts = {
        "encoder": f"tiny, {sum(p.numel() for p in trained.parameters()):,} parameters",
        "pretraining": f"{config.steps:,} steps of {config.batch_size} shapes, "
        "dual mode, no labels",
        "corpus": f"{len(corpus):,} builtin shapes, content {corpus.manifest.content[:16]}",
        "measured on": f"{benchmark.data_name} ({benchmark.split}): {len(benchmark.train):,} clouds to "
        f"train the probes, {len(benchmark.test):,} to test",
        "seed": str(config.seed),
        "seconds": ", ".join(f"{name} {spent:.0f}" for name, spent in seconds.items()),
        "pointdistill": __version__,
    }
    reported = ReportedRun(
        name=PRETRAINED,
        described=read_run_config(run),
        metrics=read_metrics(run),
        results=results,
        encoder=trained,
    )
    about = [
        why_geometry_wins(results),
        "Each group is a simple classifier on frozen features. The initial weights are those of this very run "
        "before its first step.",
        _ABOUT_BUNDLED if bundled_is_here() else "",
    ]
    searched = LabelledClouds(benchmark.test.points[:POOL], benchmark.test.labels[:POOL])
    bars, tables = score_sections([reported], remark=" ".join(filter(None, about)))
    sections = [
        bars,
        *([Section(title="What to do next", commands=next_steps)] if next_steps else []),
        *curve_sections([reported]),
        *feature_sections(
            [reported],
            searched,
            benchmark.classes,
            inputs=protocol_input(benchmark.name, trained.config),
            what=f"the {benchmark.data_name}",
            device=torch.device(device),
        ),
        _views(corpus, config),
        tables,
    ]
    write_report(
        path,
        title="pointdistill quickstart",
        headline=headline(results),
        lead="An encoder that was pretrained on this machine without labels, compared with the same encoder "
        "before training and with simple geometric features. The benchmark is a stand-in made of simulated "
        "scans, not ScanObjectNN itself.",
        facts=facts,
        sections=sections,
    )


_ABOUT_BUNDLED = (
    f"{BUNDLED} comes with the program: the same method on the same kind of shapes, for hours "
    "instead of minutes."
)


def headline(results: Sequence[Result]) -> str:
    """What pretraining was worth, in a sentence."""
    accuracy = {(r.features, r.protocol): r.accuracy.mean for r in results}
    gained = gains(results)
    mean = sum(gained.values()) / len(gained)
    best = max(gained, key=lambda name: gained[name])
    verb = "gained" if mean > 0 else "lost"
    return (
        f"Pretraining without a label {verb} {abs(mean):.1f} points of accuracy over the encoder's initial "
        f"weights (mean of {len(gained)} probes; the most under {best}: from {accuracy[INITIAL, best]:.1f} to "
        f"{accuracy[PRETRAINED, best]:.1f} %)."
    )


def why_geometry_wins(results: Sequence[Result]) -> str:
    """Why hand-made features are ahead of the pretrained ones where they are; empty if they are nowhere."""
    accuracy = {(r.features, r.protocol): r.accuracy.mean for r in results}
    ahead = [name for name in PROTOCOLS if accuracy[GEOMETRY, name] > accuracy[PRETRAINED, name]]
    if not ahead:
        return ""
    told = (
        f"Hand-made geometric features are ahead under {_and(ahead)}: they measure proportions, heights and "
        "distances of the whole cloud, which already tell these parametric shapes apart, while a tiny encoder had "
        "minutes to learn what to look at."
    )
    hours = {r.protocol: r.accuracy.mean for r in results if r.features.startswith(BUNDLED)}
    longer = [name for name in ahead if hours.get(name, 0.0) > accuracy[GEOMETRY, name]]
    if longer:
        figures = _and([f"{hours[name]:.1f} % under {name}" for name in longer])
        told += f" The same method trained for hours ({BUNDLED}) is ahead of them: {figures}."
    return told


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _views(corpus: Corpus, config: PretrainConfig) -> Section:
    """Shapes of the corpus, and of each one masked global view and one local view."""
    index = np.linspace(0, len(corpus) - 1, SHAPES).astype(np.int64)
    shapes = [corpus[int(number)] for number in index]
    names = [corpus.label_names[shape.label] if shape.label >= 0 else shape.id for shape in shapes]
    batch = read_batch(corpus, index, epoch=0)
    random = KeyedRandom(sample_keys(seed=config.seed, epoch=0, index=batch.index))
    patches, points = draw_views(
        batch.points, batch.counts, config.global_crop, random.child("global"), config.augment
    )
    mask = draw_masks(patches.centers, config.masking, random)
    rows = {
        "Shapes of the corpus": [cloud_tile(shape.points[:PAGE_POINTS]) for shape in shapes],
        "A global view of each, with a mask": [
            masked_tile(
                points[row, 0].numpy(), patches.centers[row, 0].numpy(), mask[row, 0, 0].numpy()
            )
            for row in range(SHAPES)
        ],
    }
    if config.mode.has_cls and config.local_crop is not None:
        _, local = draw_views(
            batch.points, batch.counts, config.local_crop, random.child("local"), config.augment
        )
        rows["A local view of each"] = [cloud_tile(local[row, 0].numpy()) for row in range(SHAPES)]
    galleries = tuple(
        Gallery(
            title,
            (tuple(Tile(Picture(n, png)) for n, png in zip(names, pictures, strict=True)),),
        )
        for title, pictures in rows.items()
    )
    return Section(
        title="What it was trained on",
        text="Crops of random shape and size, rotated about the vertical axis and stretched. The student sees the "
        "blue patches and predicts the orange ones.",
        galleries=galleries,
    )
