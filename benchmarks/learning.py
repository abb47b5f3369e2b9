"""What pretraining is worth on the stand-in, compared with initial weights, geometric features, and labels.

Each seed has its own corpus, weights, views and probes; the stand-in is always the same. The supervised run trains
the same encoder from scratch with the labels. Prints Markdown for docs/results.md. A recipe and seed takes about
four minutes on one core. Finished results are stored in FOLDER under their settings and not computed again, so two
calls with different seeds can share the work on two cores.

Run: ``python benchmarks/learning.py [FOLDER] [--seeds 0 1 2] [--recipes tiny tiny-cls …] [--supervised]``
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from pointdistill.data.benchmark_standins import make_scanobjectnn_stand_in
from pointdistill.data.benchmarks.records import Benchmark
from pointdistill.data.benchmarks.scanobjectnn import read_scanobjectnn
from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.files.files import write_json
from pointdistill.data.files.schema import to_plain
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.config.recipes import find_recipe
from pointdistill.engine.evaluation.classification import evaluate, evaluate_geometry
from pointdistill.engine.evaluation.results import Result
from pointdistill.engine.evaluation.run import COPIES_ON_CPU, Evaluation
from pointdistill.engine.features.inputs import protocol_input
from pointdistill.engine.finetuning.classification import train_classifier
from pointdistill.engine.finetuning.recipes import RECIPES
from pointdistill.engine.pretraining.checkpoints import list_checkpoints, new_state
from pointdistill.engine.pretraining.pretrain import pretrain
from pointdistill.engine.pretraining.run_folder import CHECKPOINTS
from pointdistill.engine.quickstart import PROTOCOLS, SPLIT, QuickstartConfig, stand_in_path
from pointdistill.engine.weights.encoders import load_encoder

SIZES = QuickstartConfig()
DEFAULT = ["tiny", "tiny-cls", "tiny-mpm", "tiny-mpm-query-attention", "tiny-mpm-no-predictor"]
Scores = dict[str, float]


class Bench:
    """The stand-in, corpora by seed, and the results so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = stand_in_path(folder, SIZES)
        if not path.exists():
            make_scanobjectnn_stand_in(path, splits=[SPLIT], sizes=SIZES.sizes)
        self.stand_in: Benchmark = read_scanobjectnn(path, SPLIT)

    def kept(self, name: str, settings: object, measure: Callable[[], Scores]) -> Scores:
        """The stored result of the same settings, or else ``measure()``."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        path = self.folder / f"{name}-{digest}.json"
        if not path.exists():
            write_json(path, measure())
            print(f"{path}: {path.read_text()}", flush=True)
        found: Scores = json.loads(path.read_text())
        return found

    def corpus(self, seed: int) -> Corpus:
        source = open_source("builtin", SourceRequest(shapes=SIZES.shapes))
        folder = self.folder / f"corpus-seed{seed}"
        return open_corpus(build_corpus(source, folder, points=SIZES.points, seed=seed).path)

    def evaluation(self, seed: int) -> Evaluation:
        return Evaluation(protocols=PROTOCOLS, seeds=(seed,), augmented_copies=COPIES_ON_CPU)

    def pretrained(self, name: str, seed: int) -> Scores:
        config = replace(find_recipe(name).config, seed=seed)

        def measure() -> Scores:
            run = self.folder / f"{name}-seed{seed}"
            begun = bool(list_checkpoints(run / CHECKPOINTS))
            pretrain(config, corpus=self.corpus(seed), run=run, resume=begun)
            return by_protocol(
                evaluate(load_encoder(run), self.stand_in, self.evaluation(seed), name=name)
            )

        return self.kept(f"{name}-seed{seed}", to_plain(config), measure)

    def initial(self, seed: int) -> Scores:
        config = replace(find_recipe("tiny").config, seed=seed)

        def measure() -> Scores:
            encoder = new_state(config).teacher.encoder
            return by_protocol(
                evaluate(encoder, self.stand_in, self.evaluation(seed), name="initial")
            )

        return self.kept(f"initial-seed{seed}", to_plain(config.encoder), measure)

    def geometry(self, seed: int) -> Scores:
        encoder = find_recipe("tiny").config.encoder
        inputs = protocol_input(self.stand_in.name, encoder)

        def measure() -> Scores:
            found = evaluate_geometry(self.stand_in, self.evaluation(seed), inputs=inputs)
            return by_protocol(found)

        return self.kept(f"geometry-seed{seed}", to_plain(inputs), measure)

    def supervised(self, seed: int) -> Scores:
        """Test accuracy of the scratch protocol, in the last and in the best epoch."""
        config: PretrainConfig = find_recipe("tiny").config
        encoder = new_state(config).student.encoder

        def measure() -> Scores:
            score = train_classifier(
                encoder,
                self.stand_in.train,
                self.stand_in.test,
                classes=len(self.stand_in.classes),
                recipe=RECIPES["scratch"],
                inputs=protocol_input(self.stand_in.name, encoder.config),
                seed=seed,
            ).score
            assert score.best_accuracy is not None
            return {"last": score.accuracy, "best": score.best_accuracy}

        return self.kept(f"supervised-seed{seed}", to_plain(config.encoder), measure)


def by_protocol(results: list[Result]) -> Scores:
    return {result.protocol: result.accuracy.mean for result in results}


def spread(values: list[float]) -> str:
    """Mean ± sample standard deviation."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.1f} ± {deviation:.1f}"


def show(name: str, runs: list[Scores]) -> None:
    print(f"| {name} | {' | '.join(spread([run[p] for run in runs]) for p in PROTOCOLS)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("learning"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", default=DEFAULT)
    parser.add_argument("--supervised", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    bench = Bench(given.folder)
    initial = [bench.initial(seed) for seed in given.seeds]
    geometry = [bench.geometry(seed) for seed in given.seeds]
    found = {name: [bench.pretrained(name, seed) for seed in given.seeds] for name in given.recipes}
    labelled = [bench.supervised(seed) for seed in given.seeds] if given.supervised else []
    print(f"{platform.machine()}, {given.threads} thread, torch {torch.__version__}")
    print(f"\n| features | {' | '.join(PROTOCOLS)} |\n| --- |{' --- |' * len(PROTOCOLS)}")
    for name, runs in found.items():
        show(name, runs)
    show("initial weights", initial)
    show("geometric features", geometry)
    for name, runs in found.items():
        pairs = list(zip(runs, initial, strict=True))
        show(f"gain of {name}", [{p: run[p] - start[p] for p in PROTOCOLS} for run, start in pairs])
    if labelled:
        print("\n| supervised from scratch | last epoch | best epoch |\n| --- | --- | --- |")
        cells = [spread([run[epoch] for run in labelled]) for epoch in ("last", "best")]
        print(f"| tiny | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
