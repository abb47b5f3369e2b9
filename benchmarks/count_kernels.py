"""What a training step would launch and move on a GPU, counted on a machine without one.

The production step and views run on fake CUDA tensors, which have shapes but no numbers. What runs as plain
PyTorch is counted operation by operation, each with the kernels that it is known to launch. What is compiled is
handed to Inductor as far as its scheduler, and counted by what that would launch: its fused kernels, and library
calls. Bytes are those of all inputs and outputs. The peak is the largest of what is alive while plain operations
run, and of what is alive when a compiled part begins plus what Inductor's own estimate says that the part needs.

With ``--build`` nothing is counted. Inductor writes its code for every compiled part instead, and Triton builds
every kernel of it for an H200; the exit code is 1 if it cannot build one. Unless depths are given, encoder and
predictor have two blocks there, which have all pairs of neighbours.

Nothing here was measured, and nothing is launched. It takes minutes, and needs g++; ``--build`` also needs Triton.
The fake GPU is in ``count_kernels_gpu.py``, compiled graphs are in ``count_kernels_graphs.py``, and what builds
kernels is in ``count_kernels_build.py``.

Run: ``python benchmarks/count_kernels.py [--size small] [--batch 128] [--compile on] [--build [--code FOLDER]]``
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from count_kernels_gpu import GIB, FusedNorm, attend, install_fake_gpu, on_fake_gpu
from count_kernels_graphs import (
    LEDGER,
    CompiledPart,
    Counted,
    CountOperations,
    HandleGraph,
    checkpointed,
    code_of,
    count_graph,
    handled_compiler,
)

if TYPE_CHECKING:
    from pointdistill.engine.config.config import PretrainConfig

BUILT_DEPTH = 2
"""Blocks of encoder and predictor whose kernels are built."""


def take_step(
    config: PretrainConfig, handle: HandleGraph, *, compiled: bool, points: int, recompute: bool
) -> None:
    """Count a step that is not the first, since moments exist from the second on; ``handle`` takes its graphs."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from pointdistill.engine.pretraining import step as steps
    from pointdistill.engine.pretraining.checkpoints import TrainState
    from pointdistill.engine.pretraining.execution import StepCompiler, ViewMaker
    from pointdistill.engine.pretraining.loader import Batch
    from pointdistill.engine.runtime.optimizer import build_optimizer
    from pointdistill.model import distillation, kernels, masking, patches, transformer

    for record in (
        patches.Patches,
        masking.Masks,
        distillation.Views,
        distillation.Losses,
        steps.Temperatures,
    ):
        pytree.register_dataclass(record)
    plain_norm = torch.nn.functional.rms_norm

    def norm(x: Tensor, shape: Any, weight: Tensor, eps: float) -> Tensor:
        return (
            plain_norm(x, shape, weight, eps)
            if CompiledPart.tracing
            else FusedNorm.apply(x, weight)
        )

    transformer.functional = SimpleNamespace(
        rms_norm=norm,
        linear=torch.nn.functional.linear,
        gelu=torch.nn.functional.gelu,
        scaled_dot_product_attention=attend,
    )
    transformer.checkpoint = checkpointed
    kernels.triton = kernels.triton or (object() if compiled else None)
    # A generator of a fake device cannot be made; what is drawn has no numbers anyway.
    draw_order, draw_uniform = torch.randperm, torch.rand
    torch.randperm = lambda n, generator=None, device=None: draw_order(n, device=device)  # noqa: ARG005
    torch.rand = lambda *n, generator=None, device=None: draw_uniform(*n, device=device)  # noqa: ARG005
    steps.TrainingStep._generator = lambda _: object()
    device = torch.device("cuda", 0)
    accelerator = SimpleNamespace(
        device=device,
        num_processes=1,
        process_index=0,
        autocast=lambda: torch.autocast("cuda", dtype=torch.bfloat16),
    )
    for name in ("clip_gradients", "guarded_step", "update_average"):
        setattr(steps, name, in_part(getattr(steps, name), name))
    plain_backward = Tensor.backward
    Tensor.backward = in_part(plain_backward, "backward")

    batch = config.batch_size
    compiler = StepCompiler(active=compiled, retries=False)
    with FakeTensorMode(allow_non_fake_inputs=True), CountOperations(), handled_compiler(handle):
        student = on_fake_gpu(
            distillation.Student(config.mode, config.encoder, config.head, config.predictor)
        )
        teacher = on_fake_gpu(distillation.Teacher(config.mode, config.encoder, config.head))
        student.packs_passes = compiled
        student.keep_less(recompute)
        optimizer = build_optimizer(student, learning_rate=5e-4, weight_decay=0.05)
        state = TrainState(config, student, teacher, optimizer)
        take = steps.TrainingStep(state, student, accelerator, compiler)
        make_views = ViewMaker(partial(steps.views_of, config=config), device, compiler)
        shapes = Batch(
            torch.empty(batch, points, 3, device=device),
            torch.empty(batch, dtype=torch.int64, device=device),
            torch.empty(batch, dtype=torch.int64, device=device),
            0,
        )
        rates = config.schedule.at(10, total=1000, steps_per_epoch=100)
        for parameter in student.parameters():
            optimizer.state[parameter] = {
                "step": torch.empty((), device=device),
                "exp_avg": torch.empty_like(parameter),
                "exp_avg_sq": torch.empty_like(parameter),
            }
        LEDGER.counting = True
        views = in_part(make_views, "views, plain")(shapes)
        in_part(take, "step, plain")(shapes, views, rates)


def in_part(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function, with everything in it counted as a part of this name."""

    def named(*args: Any, **kwargs: Any) -> Any:
        before, LEDGER.part = LEDGER.part, name
        try:
            return function(*args, **kwargs)
        finally:
            LEDGER.part = before

    return named


def report(title: str, kinds: int) -> None:
    lines = [
        f"{title}, torch {torch.__version__}",
        f"{'part':24} {'kernels':>8} {'library':>8} {'GB':>8}",
    ]
    total = Counted()
    for name, part in LEDGER.parts.items():
        lines.append(f"{name:24} {part.kernels:8} {part.library_calls:8} {part.bytes / 1e9:8.2f}")
        total.kernels += part.kernels
        total.library_calls += part.library_calls
        total.bytes += part.bytes
    lines.append(f"{'total':24} {total.kernels:8} {total.library_calls:8} {total.bytes / 1e9:8.2f}")
    largest = sorted(LEDGER.kinds.items(), key=lambda kind: (-kind[1].kernels, -kind[1].bytes))
    for (part, name), found in largest[:kinds]:
        lines.append(
            f"{part:24} {found.kernels:8} {found.library_calls:8} {found.bytes / 1e9:8.2f}  {name[:160]}"
        )
    lines.append(f"peak {LEDGER.peak / GIB:.2f} GiB, in {LEDGER.peak_at}")
    sys.stdout.write("\n".join(lines) + "\n")


def build_step(config: PretrainConfig, *, points: int, folder: Path | None) -> int:
    """Build what Inductor makes of a step, and return how many kernels failed; its code is kept in ``folder``."""
    from count_kernels_build import build_parts, prepare

    prepare()
    parts: dict[str, list[str]] = collections.defaultdict(list)

    def keep(graph: Any, example: Any, part: str) -> int:
        code = code_of(graph, example)
        parts[part].append(code)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{part.replace(', ', '-')}-{len(parts[part])}.py"
            (folder / name).write_text(code, encoding="utf-8")
        sys.stderr.write(f"{part}: code of {len(code)} characters\n")
        return 0

    take_step(config, keep, compiled=True, points=points, recompute=True)
    depths = f"{config.encoder.depth} blocks"
    if config.predictor is not None:
        depths += f" and {config.predictor.depth} of the predictor"
    return build_parts(f"{config.name}, {depths}, batch {config.batch_size}", parts)


def main() -> int:
    """Parse, install, count or build."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", default="small")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--points", type=int, default=16384)
    parser.add_argument("--compile", choices=("on", "off"), default="on")
    parser.add_argument(
        "--recompute", action="store_true", help="recompute what a GPU does by default"
    )
    parser.add_argument(
        "--depth", type=int, default=0, help="blocks of the encoder, if not the size's"
    )
    parser.add_argument("--predictor-depth", type=int, default=0, help="the same of the predictor")
    parser.add_argument(
        "--kinds",
        type=int,
        default=0,
        help="also list so many kinds of kernels, the most frequent first",
    )
    parser.add_argument(
        "--build",
        action="store_true",
        help="build the kernels of a compiled step instead, which recomputes what a GPU does by default",
    )
    parser.add_argument(
        "--code", type=Path, metavar="FOLDER", help="with --build, keep what Inductor writes there"
    )
    given = parser.parse_args()
    if given.build and given.compile == "off":
        parser.error("--build is for a compiled step: leave out --compile off")
    if given.build and importlib.util.find_spec("triton") is None:
        print("--build needs Triton; install the version that your PyTorch names", file=sys.stderr)
        return 2
    install_fake_gpu()

    from pointdistill.engine.config.recipes import recipe

    if given.build:
        given.depth = given.depth or BUILT_DEPTH
        given.predictor_depth = given.predictor_depth or BUILT_DEPTH
    # Counts grow with each block by the same number, so two small depths give those of any other in less time.
    config = replace(recipe(given.size), batch_size=given.batch)
    if given.depth:
        config = replace(config, encoder=replace(config.encoder, depth=given.depth))
    if given.predictor_depth and config.predictor is not None:
        predictor = replace(config.predictor, depth=given.predictor_depth)
        config = replace(config, predictor=predictor)
    if given.build:
        return int(build_step(config, points=given.points, folder=given.code) > 0)
    compiled = given.compile == "on"
    take_step(
        config, count_graph, compiled=compiled, points=given.points, recompute=given.recompute
    )
    kind = "compiled" if compiled else "plain"
    title = f"{config.name}, {config.encoder.depth} blocks, batch {given.batch}, {kind}"
    report(title, given.kinds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
