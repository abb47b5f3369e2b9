"""One change at a time: what settings, corpora and initial weights are worth on real shapes, over three seeds.

The base is the tiny recipe with axes scaled by 0.5 to 1.5, on builtin shapes, half of them procedural. Each
ablation changes one thing of it. Encoders are measured as `embed` uses them on the Princeton Shape Benchmark's
training half, separately on the models that choices are made on and on those they are reported on (by a hash of
their ids), and by nearest neighbours on a ScanObjectNN stand-in. Finished trainings and figures are stored in
FOLDER under their settings and not computed again; an interrupted training resumes.

Run: ``python benchmarks/ablations.py psb_v1_train.zip FOLDER [--names …] [--seeds 0 1 2] [--steps 1500]``
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from pointdistill.data.benchmark_standins import make_scanobjectnn_stand_in
from pointdistill.data.benchmarks.psb import read_psb
from pointdistill.data.benchmarks.records import LabelledShapes
from pointdistill.data.benchmarks.scanobjectnn import read_scanobjectnn
from pointdistill.data.corpus import open_corpus
from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.files.files import write_json
from pointdistill.data.files.schema import to_plain
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.config.recipes import find_recipe
from pointdistill.engine.embedding.compute import DEFAULT_KIND, PER_SHAPE, FeatureKind
from pointdistill.engine.evaluation.classification import evaluate
from pointdistill.engine.evaluation.retrieval import shape_score
from pointdistill.engine.evaluation.run import Evaluation
from pointdistill.engine.pretraining.checkpoints import list_checkpoints, new_state
from pointdistill.engine.pretraining.pretrain import pretrain
from pointdistill.engine.pretraining.run_folder import CHECKPOINTS
from pointdistill.engine.pretraining.trainer import RunOptions
from pointdistill.engine.quickstart import SPLIT, QuickstartConfig, stand_in_path
from pointdistill.engine.weights.encoders import load_encoder
from pointdistill.model.config import AugmentConfig, Initialization
from pointdistill.model.encoder import Encoder
from real_shapes import encoder_features, reporting

Change = Callable[[PretrainConfig], PretrainConfig]
Scores = dict[str, float]
SHAPES, POINTS = 10_000, 2_048


@dataclass(frozen=True)
class Ablation:
    """One change to the base."""

    about: str
    change: Change = lambda config: config
    procedural: float = 0.5
    """Share of the corpus's shapes that are procedural."""
    steps: float = 1.0
    """Length of the run, relative to the base's; 0 measures the initial weights."""


def denser(config: PretrainConfig, times: int = 2) -> PretrainConfig:
    """Views and inputs with more points and patches."""
    assert config.local_crop is not None
    encoder, crop, local = config.encoder, config.global_crop, config.local_crop
    return replace(
        config,
        encoder=replace(encoder, points=times * encoder.points, patches=times * encoder.patches),
        global_crop=replace(crop, points=times * crop.points, patches=times * crop.patches),
        local_crop=replace(local, points=times * local.points, patches=times * local.patches),
    )


def wider(config: PretrainConfig) -> PretrainConfig:
    """Width 96 and three blocks, as in the encoder that comes with the program."""
    like = find_recipe("procedural-mini").config
    encoder = replace(
        like.encoder,
        points=config.encoder.points,
        patches=config.encoder.patches,
        patch_points=config.encoder.patch_points,
    )
    return replace(config, encoder=encoder, predictor=like.predictor)


ABLATIONS = {
    "base": Ablation("the base"),
    "initial": Ablation("no pretraining: initial weights", steps=0),
    "scale": Ablation(
        "axes scaled by 0.8 to 1.2, as published", lambda c: replace(c, augment=AugmentConfig())
    ),
    "wider-scale": Ablation(
        "axes scaled by 0.25 to 1.75",
        lambda c: replace(c, augment=replace(c.augment, scale_low=0.25, scale_high=1.75)),
    ),
    "widest-scale": Ablation(
        "axes scaled by 0.1 to 1.9",
        lambda c: replace(c, augment=replace(c.augment, scale_low=0.1, scale_high=1.9)),
    ),
    "categories": Ablation("no procedural shapes", procedural=0.0),
    "procedural": Ablation("procedural shapes alone", procedural=1.0),
    "authors-init": Ablation(
        "the authors' initial weights", lambda c: replace(c, initialization=Initialization.AUTHORS)
    ),
    "tilted": Ablation(
        "a third of the views rotated about any axis",
        lambda c: replace(c, augment=replace(c.augment, tilt_share=1 / 3)),
    ),
    "densities": Ablation(
        "views keep a quarter to all of their points",
        lambda c: replace(c, augment=replace(c.augment, density_low=0.25)),
    ),
    "no-koleo": Ablation("KoLeo's weight 0", lambda c: replace(c, koleo_weight=0.0)),
    "koleo": Ablation("KoLeo's weight 0.1 instead of 0.01", lambda c: replace(c, koleo_weight=0.1)),
    "prototypes": Ablation(
        "1,024 prototypes instead of 256",
        lambda c: replace(c, head=replace(c.head, prototypes=1024)),
    ),
    "no-local": Ablation("no local views", lambda c: replace(c, local_crop=None)),
    "two-masks": Ablation(
        "two masks for each view",
        lambda c: replace(c, masking=replace(c.masking, masks_per_view=2)),
    ),
    "dense": Ablation("twice the points and patches", denser),
    "wide": Ablation("width 96, three blocks", wider),
    "batch": Ablation(
        "batches of 64, half the steps", lambda c: replace(c, batch_size=64), steps=0.5
    ),
    "long": Ablation("three times the steps", steps=3.0),
}


def spread(values: list[float]) -> str:
    """Mean ± sample standard deviation."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.1f} ± {deviation:.1f}"


class Bench:
    """The two data sets, corpora by their share of procedural shapes, and the figures so far."""

    def __init__(
        self, archive: Path, folder: Path, steps: int, options: RunOptions, kind: FeatureKind
    ) -> None:
        self.folder = folder
        self.steps = steps
        self.options = options
        self.kind = kind
        self.shapes: LabelledShapes = read_psb(archive, "train")
        self.reporting = reporting(self.shapes)
        sizes = QuickstartConfig()
        path = stand_in_path(folder, sizes)
        if not path.exists():
            make_scanobjectnn_stand_in(path, splits=[SPLIT], sizes=sizes.sizes)
        self.stand_in = read_scanobjectnn(path, SPLIT)

    def run(self, name: str, seed: int) -> Scores:
        """The figures of one ablation and seed: trained and measured, or read."""
        ablation = ABLATIONS[name]
        base = replace(
            find_recipe("tiny").config, augment=AugmentConfig(scale_low=0.5, scale_high=1.5)
        )
        steps = round(ablation.steps * self.steps)
        config = ablation.change(replace(base, seed=seed, steps=steps or self.steps))
        settings = [to_plain(config), ablation.procedural, steps, SHAPES, POINTS, self.kind]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        path = self.folder / f"{name}-seed{seed}-{digest}.json"
        if not path.exists():
            encoder = self.trained(config, ablation, path.with_suffix("")) if steps else None
            encoder = encoder or new_state(config).teacher.encoder
            write_json(path, self.measured(encoder, seed))
            print(f"{path.name}: {path.read_text()}", flush=True)
        found: Scores = json.loads(path.read_text())
        return found

    def trained(self, config: PretrainConfig, ablation: Ablation, run: Path) -> Encoder:
        source = open_source(
            "builtin", SourceRequest(shapes=SHAPES, procedural=ablation.procedural)
        )
        corpus = self.folder / f"corpus-{ablation.procedural}"
        built = build_corpus(source, corpus, points=POINTS, seed=7).path
        begun = bool(list_checkpoints(run / CHECKPOINTS))
        pretrain(config, corpus=open_corpus(built), run=run, resume=begun, options=self.options)
        return load_encoder(run)

    def measured(self, encoder: Encoder, seed: int) -> Scores:
        features = encoder_features(self.shapes, encoder, seed, self.kind)
        scores: Scores = {}
        for half, chosen in (("chosen", ~self.reporting), ("reported", self.reporting)):
            rows, labels = features[torch.from_numpy(chosen)], self.shapes.labels[chosen]
            retrieved = shape_score(rows, labels, "retrieval", seed=seed)
            scores[f"{half} NN"] = retrieved.accuracy
            scores[f"{half} DCG"] = dict(retrieved.further)["DCG"]
            for protocol in ("knn", "logistic"):
                scores[f"{half} {protocol}"] = shape_score(
                    rows, labels, protocol, seed=seed
                ).accuracy
        task = Evaluation(protocols=("knn",), seeds=(seed,))
        (result,) = evaluate(encoder, self.stand_in, task, name="ablation")
        return {**scores, "stand-in knn": result.accuracy.mean}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--names", nargs="+", choices=ABLATIONS, default=list(ABLATIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", choices=("off", "on"), default="off")
    parser.add_argument("--features", choices=PER_SHAPE, default=DEFAULT_KIND)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(
        given.archive, given.folder, given.steps, RunOptions(compile=given.compile), given.features
    )
    # Seed by seed, so that an interrupted series has complete comparisons.
    found: dict[str, list[Scores]] = {name: [] for name in given.names}
    for seed in given.seeds:
        for name in given.names:
            found[name].append(bench.run(name, seed))
    columns = list(found[given.names[0]][0])
    print(
        f"{platform.machine()}, {given.threads} thread, torch {torch.__version__}, {given.steps} steps"
    )
    print(f"\n| change | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for name, runs in found.items():
        cells = [spread([run[column] for run in runs]) for column in columns]
        print(f"| {ABLATIONS[name].about} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
