"""What pretraining is worth on the stand-in: three seeds, beside initial weights, geometry, and labels.

Each seed makes its own corpus, weights, views and probes (``pointdistill quickstart --seed S``); the stand-in is
always the same. The supervised run trains the same encoder from scratch with the labels. Prints Markdown for
docs/results.md. Some 30 minutes on two quiet cores; what is finished is kept in FOLDER and not done again.

Run: ``python benchmarks/learning.py [FOLDER] [--seeds 3] [--part quickstart|supervised|all] [--threads N]``
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from pointdistill.data.benchmarks import read_scanobjectnn
from pointdistill.data.files import write_json
from pointdistill.engine.classifier_recipes import RECIPES
from pointdistill.engine.inputs import protocol_input
from pointdistill.engine.quickstart import (
    GEOMETRY,
    INITIAL,
    PRETRAINED,
    PROTOCOLS,
    SPLIT,
    QuickstartConfig,
    quickstart,
    stand_in_path,
)
from pointdistill.engine.recipes import recipe
from pointdistill.engine.state import new_state
from pointdistill.engine.supervised import train_classifier


def run_quickstart(folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Accuracy in percent by features and protocol."""
    kept = folder / f"quickstart-{seed}.json"
    if not kept.exists():
        began = time.perf_counter()
        result = quickstart(folder, QuickstartConfig(seed=seed))
        found: dict[str, dict[str, float]] = {"seconds": result.seconds}
        for row in result.results:
            found.setdefault(row.features, {})[row.protocol] = row.accuracy.mean
        found["seconds"]["all"] = time.perf_counter() - began
        write_json(kept, found)
    return json.loads(kept.read_text())


def run_supervised(folder: Path, seed: int) -> dict[str, float]:
    """Last and best epoch's test accuracy of the scratch protocol."""
    kept = folder / f"supervised-{seed}.json"
    if not kept.exists():
        benchmark = read_scanobjectnn(stand_in_path(folder, QuickstartConfig()), SPLIT)
        encoder = new_state(recipe("tiny")).student.encoder
        began = time.perf_counter()
        result = train_classifier(
            encoder,
            benchmark.train,
            benchmark.test,
            classes=len(benchmark.classes),
            recipe=RECIPES["scratch"],
            inputs=protocol_input(benchmark.name, encoder.config),
            seed=seed,
        )
        spent = time.perf_counter() - began
        score = result.score
        write_json(kept, {"last": score.accuracy, "best": score.best_accuracy, "seconds": spent})
    return json.loads(kept.read_text())


def spread(values: list[float]) -> str:
    """Mean ± standard deviation (of the sample)."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.1f} ± {deviation:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("learning"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", choices=("quickstart", "supervised", "all"), default="all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    seeds = range(given.seeds)
    print(
        f"{platform.processor() or platform.machine()}, {given.threads} threads, torch {torch.__version__}"
    )
    if given.part != "supervised":
        found = [run_quickstart(given.folder, seed) for seed in seeds]
        print(f"\n| features | {' | '.join(PROTOCOLS)} |")
        print(f"| --- |{' --- |' * len(PROTOCOLS)}")
        for name in (PRETRAINED, INITIAL, GEOMETRY):
            cells = [spread([run[name][p] for run in found]) for p in PROTOCOLS]
            print(f"| {name} | {' | '.join(cells)} |")
        gains = [spread([run[PRETRAINED][p] - run[INITIAL][p] for run in found]) for p in PROTOCOLS]
        print(f"| gain over initial weights | {' | '.join(gains)} |")
    if given.part != "quickstart":
        scores = [run_supervised(given.folder, seed) for seed in seeds]
        print("\n| supervised from scratch | last epoch | best epoch |\n| --- | --- | --- |")
        print(
            f"| tiny | {spread([s['last'] for s in scores])} | {spread([s['best'] for s in scores])} |"
        )


if __name__ == "__main__":
    main()
