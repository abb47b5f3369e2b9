"""What bf16 costs: the same run in float32 and in bf16, with more or less of it kept in float32.

Every variant trains the same initial weights on the same views by the production step: ``float32``; ``bf16``, as
autocast computes; ``residual``, bf16 with the tokens between blocks in float32; ``logits``, bf16 with the last
layer of the heads in float32; ``both``. ``packed`` is float32 with the student's passes computed together, the
same numbers but for the order of sums: what it differs by is no fault of a precision. Two numbers come out for
each: how far its losses are from those of float32, and how far bf16 features are from float32 features of the
same weights, initial and trained.

Run: ``python benchmarks/bf16.py CORPUS [--size tiny] [--width 0] [--steps 100] [--batch 16]``
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.config.recipes import recipe
from pointdistill.engine.pretraining.checkpoints import new_state
from pointdistill.engine.pretraining.execution import prepare_student
from pointdistill.engine.pretraining.loader import batches
from pointdistill.engine.pretraining.step import TrainingStep, make_views
from pointdistill.engine.runtime.devices import build_accelerator, keep_freed_memory
from pointdistill.model.encoder import Encoder, Tokens
from pointdistill.model.heads import Prototypes
from pointdistill.model.patches import patchify, to_unit_sphere

VARIANTS = ("float32", "packed", "bf16", "residual", "logits", "both")
IN_FLOAT32 = ("float32", "packed")
SHAPES = 64
"""Shapes whose features are compared."""


@contextlib.contextmanager
def kept_in_float32(variant: str) -> Iterator[None]:
    """Within the block these parts of the network stay in float32 under autocast."""
    embed, logits = Encoder.embed, Prototypes.forward

    def embed_float(self: Encoder, patches: object) -> Tokens:
        tokens = embed(self, patches)
        return Tokens(tokens.features.float(), tokens.positions.float())

    def logits_float(self: Prototypes, unit: Tensor) -> Tensor:
        with torch.autocast(unit.device.type, enabled=False):
            return logits(self, unit.float())

    with contextlib.ExitStack() as stack:
        if variant in ("residual", "both"):
            stack.enter_context(patch.object(Encoder, "embed", embed_float))
        if variant in ("logits", "both"):
            stack.enter_context(patch.object(Prototypes, "forward", logits_float))
        yield


def features(encoder: Encoder, corpus: Corpus, *, bf16: bool) -> Tensor:
    """(SHAPES, D) CLS features; the patches do not depend on the precision."""
    config, rows = encoder.config, []
    for number in range(SHAPES):
        cloud = torch.from_numpy(corpus.points(number)[: config.points])[None]
        points = to_unit_sphere(cloud)
        rows.append(
            patchify(
                points,
                patches=config.patches,
                patch_points=config.patch_points,
                start=torch.zeros(1, dtype=torch.int64),
            )
        )
    found = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for row in rows:
            cls, _ = encoder.encode_tokens(encoder.embed(row))
            assert cls is not None
            found.append(cls.float())
    return torch.cat(found)


def distance(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """How far features are apart: relative to their length, and to the difference between shapes; in percent."""
    error = (ours - theirs).norm(dim=1)
    between = (theirs - theirs.mean(0)).norm(dim=1)
    return (
        100 * (error / theirs.norm(dim=1)).mean().item(),
        100 * (error.mean() / between.mean()).item(),
    )


def train(config: PretrainConfig, corpus: Corpus, variant: str) -> tuple[list[float], list[str]]:
    """The losses of a run, and lines about its features."""
    accelerator = build_accelerator("cpu", "no" if variant in IN_FLOAT32 else "bf16")
    state = new_state(config)
    lines, losses = [], []
    with kept_in_float32(variant):
        step = TrainingStep(state, prepare_student(state, accelerator, "none"), accelerator)
        state.student.packs_passes = variant == "packed"
        total = config.steps or 0
        for number in range(total + 1):
            if number in (0, total) and variant not in IN_FLOAT32:
                exact = features(state.teacher.encoder, corpus, bf16=False)
                off = distance(features(state.teacher.encoder, corpus, bf16=True), exact)
                lines.append(
                    f"{off[0]:.2f} % of a feature, {off[1]:.1f} % of what shapes differ by"
                )
            if number == total:
                break
            source = batches(
                corpus,
                batch_size=config.batch_size,
                seed=config.seed,
                first=number,
                last=number + 1,
            )
            batch = next(source).to(accelerator.device)
            rates = config.schedule.at(number, total=total, steps_per_epoch=total / 10)
            metrics = step(batch, make_views(batch, config), rates)
            losses.append(metrics.logged["loss"].item())
    return losses, lines


def main() -> None:
    """Train every variant and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--width", type=int, default=0, help="a narrower encoder of that size")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--variants", nargs="*", default=VARIANTS, choices=VARIANTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    config = replace(recipe(given.size), batch_size=given.batch, steps=given.steps)
    if given.width:
        heads = max(1, given.width // 64)
        config = replace(config, encoder=replace(config.encoder, width=given.width, heads=heads))
    corpus = open_corpus(given.corpus)
    exact: list[float] = []
    for variant in given.variants:
        losses, lines = train(config, corpus, variant)
        exact = exact or losses
        gaps = [abs(a - b) / b for a, b in zip(losses, exact, strict=True)]
        shown = ", ".join(f"{losses[i]:.4f}" for i in (0, len(losses) // 2, len(losses) - 1))
        sys.stdout.write(
            f"{variant:9} losses {shown}; from float32 {100 * sum(gaps) / len(gaps):.3f} % on average, "
            f"{100 * max(gaps):.3f} % at most; features: {'; '.join(lines)}\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
