"""A compiled training step on a CPU beside the plain one: losses, graph breaks, time.

The production step of a small dual model, with Inductor's own kernels: both ways take the same steps on the same
views in turn. A graph break is an error (``fullgraph=True``), and so is compiling anything a second time. Needs
g++; the first step builds all kernels, which takes minutes and is reported on its own.

Run: ``python benchmarks/compiled.py [--depth 1] [--steps 13] [--recompute]``
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from pointdistill.engine.config.config import PretrainConfig, Recompute
from pointdistill.engine.config.recipes import recipe
from pointdistill.engine.pretraining.checkpoints import new_state
from pointdistill.engine.pretraining.execution import StepCompiler, prepare_student
from pointdistill.engine.pretraining.loader import Batch
from pointdistill.engine.pretraining.step import TrainingStep, make_views
from pointdistill.engine.runtime.devices import build_accelerator, keep_freed_memory

WARM = 3
"""Steps before times count."""


@dataclass
class Way:
    """One way to take the steps."""

    step: TrainingStep
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def smallest(depth: int, *, recompute: bool) -> PretrainConfig:
    """The tiny recipe with few patches and blocks: every kind of operation once, so few kernels to build."""
    config = recipe("tiny")
    assert config.predictor is not None
    return replace(
        config,
        encoder=replace(config.encoder, depth=depth, points=128, patches=8),
        predictor=replace(config.predictor, depth=1),
        global_crop=replace(config.global_crop, points=128, patches=8),
        checkpoint_patch_embedding=Recompute.ON if recompute else Recompute.OFF,
        batch_size=16,
    )


def batches(config: PretrainConfig, steps: int) -> Iterator[Batch]:
    """Random shapes, other ones in each step."""
    rng, shapes = np.random.default_rng(0), config.batch_size
    for epoch in range(steps):
        points = rng.normal(size=(shapes, 2048, 3)).astype(np.float32)
        yield Batch(
            torch.from_numpy(points), torch.full((shapes,), 2048), torch.arange(shapes), epoch
        )


def main(config: PretrainConfig, steps: int) -> None:
    """Take the steps both ways and print what came of them."""
    torch.set_num_threads(1)
    keep_freed_memory()
    accelerator = build_accelerator("cpu", "no")
    ways = {}
    for name in ("plain", "compiled"):
        state = new_state(config)
        student = prepare_student(state, accelerator, "none")
        compiler = StepCompiler(active=name == "compiled", retries=False)
        ways[name] = Way(TrainingStep(state, student, accelerator, compiler))
    begun, busy = time.perf_counter(), processor_seconds()
    for number, batch in enumerate(batches(config, steps)):
        views = make_views(batch, config)
        rates = config.schedule.at(number + 2, total=1000, steps_per_epoch=100)
        for way in ways.values():
            start = time.process_time()
            with torch._dynamo.config.patch(error_on_recompile=number > 0):
                way.losses.append(way.step(batch, views, rates).logged["loss"].item())
            way.seconds.append(time.process_time() - start)
        if number == 0:
            print(
                f"built in {time.perf_counter() - begun:.0f} s "
                f"({processor_seconds() - busy:.0f} s of processor time)",
                flush=True,
            )
    plain, compiled = ways["plain"], ways["compiled"]
    gaps = [abs(a - b) / abs(b) for a, b in zip(compiled.losses, plain.losses, strict=True)]
    print(f"depth {config.encoder.depth}, {steps} steps, torch {torch.__version__}, one thread")
    print(f"losses differ by {gaps[0]:.1e} in the first step, by at most {max(gaps):.1e}")
    for name, way in ways.items():
        times = way.seconds[WARM:]
        print(
            f"{name}: {1e3 * statistics.median(times):.1f} ms of processor time "
            f"(least {1e3 * min(times):.1f}), loss {way.losses[0]:.6f} to {way.losses[-1]:.6f}"
        )


def processor_seconds() -> float:
    """Of this process and of the compilers that it started."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=1, help="blocks of the encoder")
    parser.add_argument("--steps", type=int, default=13)
    parser.add_argument("--recompute", action="store_true", help="keep less of the patch embedding")
    given = parser.parse_args()
    main(smallest(given.depth, recompute=given.recompute), given.steps)
