"""Pretraining end to end, from a corpus on disk: shapes per second, memory, FLOPs, and time by kind of kernel.

The run is ``pretrain`` itself, including loader, views and checkpoints. The script works on a CPU and on a GPU.
Shares refer to the machine's matrix rate, which is measured first (large square matrices, bf16 on a GPU, float32
on a CPU). FLOPs are those of matrix products and attention, forward and backward, counted in one step.

Run: ``python benchmarks/train.py [--size small] [--batch 128] [--steps 60] [--corpus FOLDER]``
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from pointdistill.data.corpus import open_corpus
from pointdistill.data.corpus_building.build import build_corpus
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.config.recipes import recipe
from pointdistill.engine.pretraining.checkpoints import new_state, to_device
from pointdistill.engine.pretraining.execution import ViewMaker, prepare_student, step_compiler
from pointdistill.engine.pretraining.launch import fit_batch
from pointdistill.engine.pretraining.loader import Batch, read_batch
from pointdistill.engine.pretraining.pretrain import pretrain
from pointdistill.engine.pretraining.step import TrainingStep, views_of
from pointdistill.engine.pretraining.trainer import RunOptions
from pointdistill.engine.runtime.devices import build_accelerator, pick_device, threads_for
from pointdistill.model.config import Mode
from pointdistill.reporter import StepRecord, TrainingReporter

WARM = 0.2
"""Share of the steps that is not timed."""

KINDS = {
    "fused by the compiler": ("triton_",),
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "matrix products": (
        "gemm",
        "::mm",
        "addmm",
        "bmm",
        "matmul",
        "linear",
        "cutlass",
        "nvjet",
        "cublas",
    ),
    "optimiser, teacher": ("adam", "foreach", "multi_tensor", "lerp"),
    "norms, softmax, reductions": ("norm", "softmax", "reduce", "sum", "mean", "amax", "max"),
    "sorting, selecting, gathering": ("sort", "topk", "gather", "scatter", "index", "radix", "cat"),
    "copies": ("copy", "memcpy", "memset", "fill"),
}
"""Kernels by a part of their name; the first that fits, so that attention's, whose names contain ``cutlass``, and
fused ones, which are named after what they fuse, come first. Everything else is elementwise work."""


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed_run(config: PretrainConfig, corpus: Path, device: str, steps: int) -> float:
    """Shapes per second of the real program by wall-clock time, without the warm-up."""
    marks: list[float] = []

    class Marks(TrainingReporter):
        def step(self, record: StepRecord) -> None:  # noqa: ARG002
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        options = RunOptions(device=device, save_every=10**9, save_minutes=1e9)
        pretrain(
            replace(config, steps=steps),
            corpus=open_corpus(corpus),
            run=Path(folder) / "run",
            options=options,
            reporter=Marks(),
        )
    first = max(1, round(WARM * steps))
    return config.batch_size * (len(marks) - 1 - first) / (marks[-1] - marks[first])


class OneStep:
    """A training step whose parts can be measured."""

    def __init__(self, config: PretrainConfig, corpus: Path, device: str) -> None:
        self.config, self.opened = config, open_corpus(corpus)
        self.accelerator = build_accelerator(device, "auto")
        self.device = self.accelerator.device
        self.state = new_state(config)
        to_device(self.state, self.device)
        student = prepare_student(self.state, self.accelerator, RunOptions().sharding)
        # As training does it, so on a GPU compiled.
        compiler = step_compiler(RunOptions().compile, self.accelerator)
        self.step = TrainingStep(self.state, student, self.accelerator, compiler)
        self.make_views = ViewMaker(partial(views_of, config=config), self.device, compiler)
        self.rates = config.schedule.at(0, total=1000, steps_per_epoch=100)
        self.batch = self.read()

    def read(self) -> Batch:
        rows = [i % len(self.opened) for i in range(self.config.batch_size)]
        return read_batch(self.opened, rows, 0).to(self.device)

    def views(self) -> None:
        self.made = self.make_views(self.batch)

    def train(self) -> None:
        self.step(self.batch, self.made, self.rates)

    def seconds(self, what: str, rounds: int = 5) -> float:
        part, found = getattr(self, what), []
        for _ in range(rounds + 2):
            synchronize(self.device)
            began = time.perf_counter()
            part()
            synchronize(self.device)
            found.append(time.perf_counter() - began)
        return statistics.median(found[2:])

    def flops(self) -> float:
        # The counter misses fused attention on a CPU; the plain form computes the same products. It misses
        # compiled code everywhere.
        with (
            torch.compiler.set_stance("force_eager"),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            self.train()
        return float(counter.get_total_flops())

    def shares(self) -> dict[str, float]:
        """Share of a step's computing time by kind of kernel."""
        on_gpu = self.device.type == "cuda"
        activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
        with profile(activities=[activity]) as found:
            for _ in range(3):
                self.train()
            synchronize(self.device)
        spent: dict[str, float] = {}
        for event in found.key_averages():
            if getattr(event, "is_user_annotation", False):
                continue  # of a compiled graph, whose kernels have their own rows
            taken = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            name = event.key.lower()
            kind = next((k for k, parts in KINDS.items() if any(p in name for p in parts)), None)
            spent[kind or "elementwise"] = spent.get(kind or "elementwise", 0.0) + taken
        total = sum(spent.values())
        return {k: v / total for k, v in sorted(spent.items(), key=lambda item: -item[1])}


def matrix_rate(device: torch.device) -> float:
    """FLOP per second of large square matrix products."""
    on_gpu = device.type == "cuda"
    size, kind = (8192, torch.bfloat16) if on_gpu else (2048, torch.float32)
    left = torch.randn(size, size, device=device, dtype=kind)
    found = []
    for _ in range(12):
        synchronize(device)
        began = time.perf_counter()
        left @ left
        synchronize(device)
        found.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(found[2:])


def peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="small")
    parser.add_argument("--mode", default="dual")
    parser.add_argument(
        "--batch", type=int, help="default: the recipe's, or what a CPU's memory holds"
    )
    parser.add_argument("--steps", type=int, help="default: 60 on a GPU, 12 on a CPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--corpus", type=Path)
    given = parser.parse_args()
    device = pick_device(given.device)
    config = recipe(given.size, Mode(given.mode))
    if given.batch is None:
        config, _ = fit_batch(config, config.batch_size, given.device)
    else:
        config = replace(config, batch_size=given.batch)
    batch, steps = config.batch_size, given.steps or (60 if device.type == "cuda" else 12)
    with tempfile.TemporaryDirectory() as folder:
        corpus = given.corpus or Path(folder) / "corpus"
        if given.corpus is None:
            request = SourceRequest(shapes=max(4 * batch, 256))
            build_corpus(open_source("builtin", request), corpus)
        speed = timed_run(config, corpus, given.device, steps)
        memory = peak_gib(device)
        one = OneStep(config, corpus, given.device)
        with threads_for(config.encoder.width, device):
            reading, views = one.seconds("read"), one.seconds("views")
            training, flops, rate = one.seconds("train"), one.flops(), matrix_rate(device)
            shares, threads = one.shares(), torch.get_num_threads()
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    print(
        f"{where}, {threads} threads, torch {torch.__version__}, {given.size}, {given.mode}, "
        f"batch {batch}, {steps} steps"
    )
    rows = {
        "end to end, shapes/s": f"{speed:.1f}",
        "peak memory, GiB": f"{memory:.1f}",
        "a step without views, ms": f"{1e3 * training:.1f}",
        "views, ms (share of both)": f"{1e3 * views:.1f} ({views / (views + training):.0%})",
        "reading a batch in the loader's thread, ms": f"{1e3 * reading:.1f}",
        "model FLOP a step, T": f"{flops / 1e12:.2f}",
        "measured matrix rate, TFLOP/s": f"{rate / 1e12:.2f}",
        "share of it in a step without views": f"{flops / training / rate:.0%}",
        "share of it end to end": f"{flops * speed / batch / rate:.0%}",
    }
    print("| figure | |\n| --- | --- |")
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    print("\n| a step's computing, without views | share |\n| --- | --- |")
    for name, share in shares.items():
        print(f"| {name} | {share:.0%} |")


if __name__ == "__main__":
    main()
