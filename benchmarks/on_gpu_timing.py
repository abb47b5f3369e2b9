"""The timings of ``on_gpu.py``: speed, memory, stages and kernels of a step, what compiling and graphs would gain.

Each part is a function of the settings that returns what goes into ``results.json``.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from on_gpu import Settings, write_json
from pointdistill.data.corpus import open_corpus
from pointdistill.data.corpus_building.build import build_corpus
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.engine.config.config import PretrainConfig, Recompute
from pointdistill.engine.config.recipes import recipe
from pointdistill.engine.planning.trial import SyntheticCorpus
from pointdistill.engine.pretraining import step as step_module
from pointdistill.engine.pretraining.checkpoints import new_state, to_device
from pointdistill.engine.pretraining.execution import (
    CudaRecorder,
    StepCompiler,
    ViewMaker,
    compile_failure,
    prepare_student,
)
from pointdistill.engine.pretraining.loader import batches, read_batch
from pointdistill.engine.pretraining.pretrain import pretrain
from pointdistill.engine.pretraining.step import TrainingStep, make_views, views_of
from pointdistill.engine.pretraining.trainer import RunOptions
from pointdistill.engine.runtime.devices import GIB, build_accelerator
from pointdistill.errors import CorpusError
from pointdistill.model import losses, patches, selection
from pointdistill.reporter import StepRecord, TrainingReporter

WAIT_FOR_CORPUS = 60.0
"""Seconds that a part waits for the corpus that another makes."""

COMPARED = 8
"""Steps whose losses are compared; the fourth is the first that can be recorded as a CUDA graph."""

ATTENTION = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
Found = dict[str, Any]


# Tools.


def on_gpu(settings: Settings) -> bool:
    return settings.device == "cuda"


def sizes(settings: Settings, large: int, small: int) -> int:
    """A size for the GPU, or the one that shows on a CPU that the part works."""
    return large if on_gpu(settings) else small


def note(settings: Settings, part: str, found: Found) -> None:
    """Write what a part has found so far."""
    write_json(Path(settings.results, f"{part}.json"), found)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(what: Callable[[], object], device: torch.device, rounds: int = 10) -> dict[str, float]:
    """Median milliseconds to issue a call, and until it is done; and the mean of many without waiting."""
    rounds = rounds if device.type == "cuda" else 1
    for _ in range(3 if device.type == "cuda" else 1):
        what()
    issued, done = [], []
    for _ in range(rounds):
        synchronize(device)
        began = time.perf_counter()
        what()
        issued.append(time.perf_counter() - began)
        synchronize(device)
        done.append(time.perf_counter() - began)
    began = time.perf_counter()
    for _ in range(rounds):
        what()
    synchronize(device)
    row = (time.perf_counter() - began) / rounds
    values = (statistics.median(issued), statistics.median(done), row)
    names = ("issue_ms", "done_ms", "in_a_row_ms")
    return {name: round(1e3 * value, 3) for name, value in zip(names, values, strict=True)}


def error_of(error: Exception) -> Found:
    return {"error": f"{type(error).__name__}: {error}"[:600]}


def peak_gib(what: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Peak memory of a call on a GPU; empty on a CPU."""
    if device.type != "cuda":
        return {}
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    what()
    torch.cuda.synchronize()
    return {
        "allocated_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
    }


class SyntheticStep:
    """The production step on synthetic shapes."""

    def __init__(
        self,
        settings: Settings,
        size: str | None = None,
        *,
        drop_path: bool = True,
        compiler: StepCompiler | None = None,
    ) -> None:
        config = recipe(size or settings.size)
        encoder = config.encoder if drop_path else replace(config.encoder, drop_path=0.0)
        self.config = replace(config, encoder=encoder, batch_size=sizes(settings, 128, 2))
        self.accelerator = build_accelerator(settings.device, "auto")
        self.device = self.accelerator.device
        self.state = new_state(self.config)
        to_device(self.state, self.device)
        student = prepare_student(self.state, self.accelerator, RunOptions().sharding)
        self.step = TrainingStep(self.state, student, self.accelerator, compiler)
        self.make_views = ViewMaker(
            partial(views_of, config=self.config), self.device, self.step.compiler
        )
        # After the warm-up, whose rates are so low that wrong gradients would not show.
        self.rates = self.config.schedule.at(4_000, total=10_000, steps_per_epoch=400)
        shapes = SyntheticCorpus(self.config.batch_size, sizes(settings, 16_384, 512))
        self.batch = read_batch(shapes, range(len(shapes)), 0).to(self.device)
        self.loss = math.nan

    def views(self) -> None:
        self.made = self.make_views(self.batch)

    def train(self) -> Tensor:
        return self.step(self.batch, self.made, self.rates).logged["loss"]

    def both(self) -> Tensor:
        self.views()
        return self.train()

    def speed(self, rounds: int = 20) -> Found:
        """Time of views and step, and the rate of shapes that follows from it."""
        found: Found = timed(self.both, self.device, rounds)
        rate = 1e3 * self.config.batch_size / found["in_a_row_ms"]
        return found | {"shapes_per_second": round(rate, 1)}

    def by_stage(self, rounds: int = 12) -> Found:
        """Median milliseconds to issue each stage of a step, and that the device spent on it."""
        marks: list[tuple[str, float, torch.cuda.Event | None]] = []

        def mark(name: str) -> None:
            event = None
            if self.device.type == "cuda":
                event = torch.cuda.Event(enable_timing=True)
                event.record()
            marks.append((name, time.perf_counter(), event))

        rows = []
        with marked_stages(self.state.student, mark):
            for _ in range(rounds if self.device.type == "cuda" else 1):
                marks.clear()
                mark("views")
                self.views()
                mark("teacher")
                self.train()
                mark("end")
                rows.append(list(marks))
        synchronize(self.device)
        found = {}
        rows = rows[len(rows) // 4 :]
        for place, (name, _, event) in enumerate(rows[0][:-1]):
            pairs = [(row[place], row[place + 1]) for row in rows]
            issued = statistics.median(after[1] - before[1] for before, after in pairs)
            stage = {"issue_ms": round(1e3 * issued, 2)}
            if event is not None:
                spent = [before[2].elapsed_time(after[2]) for before, after in pairs]
                stage["device_ms"] = round(statistics.median(spent), 2)
            found[name] = stage
        return found


@contextlib.contextmanager
def marked_stages(student: nn.Module, mark: Callable[[str], None]) -> Iterator[None]:
    """Call ``mark`` with the name of each stage of a production step when it begins."""

    def marked(function: Callable[..., Any], name: str, then: str | None = None) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            mark(name)
            result = function(*given, **named)
            if then is not None:
                mark(then)
            return result

        return patch.object(step_module, function.__name__, call)

    hook = student.register_forward_pre_hook(lambda *_: mark("student"))
    with (
        marked(step_module.objective, "loss", then="backward"),
        marked(step_module.clip_gradients, "clip", then="message"),
        marked(step_module.guarded_step, "optimiser"),
        marked(step_module.update_average, "moving average"),
    ):
        yield
    hook.remove()


# Correctness.


def open_or_make_corpus(settings: Settings) -> Any:
    path = Path(settings.corpus)
    source = open_source("builtin", SourceRequest(shapes=sizes(settings, 1024, 16)))
    workers = None if on_gpu(settings) else 0
    ends = time.monotonic() + WAIT_FOR_CORPUS
    while True:
        try:
            build_corpus(source, path, points=sizes(settings, 16_384, 1024), workers=workers)
        except CorpusError:  # another part is making it
            if time.monotonic() > ends:
                raise
            time.sleep(0.5)
        else:
            return open_corpus(path)


# Timings.


def machine(settings: Settings) -> Found:
    """What the device reaches: matrix products, copies, launches, and the patch embedding's narrow product."""
    device = torch.device(settings.device)
    found: Found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpus": os.cpu_count(),
    }
    if on_gpu(settings):
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "gib": round(properties.total_memory / GIB, 1),
        }
    for name, kind, large in (
        ("bf16", torch.bfloat16, 8192),
        ("float32", torch.float32, 4096),
    ):
        size = sizes(settings, large, 128)
        left = torch.randn(size, size, device=device, dtype=kind)
        spent = timed(lambda left=left: left @ left, device)["in_a_row_ms"]
        found[f"matrix_tflops_{name}"] = round(2 * size**3 / max(spent, 1e-3) / 1e9, 3)
    values = torch.empty(sizes(settings, 2**30, 2**16), device=device)
    other = torch.empty_like(values)
    spent = timed(lambda: other.copy_(values), device)["in_a_row_ms"]
    found["copy_tb_per_second"] = round(8 * len(values) / max(spent, 1e-3) / 1e9, 3)
    small = torch.zeros(8, device=device)
    launches = sizes(settings, 1000, 10)
    spent = timed(lambda: [small.add_(1.0) for _ in range(launches)], device)["issue_ms"]
    found["launch_us"] = round(1e3 * spent / launches, 2)
    rows = sizes(settings, 524_288, 512)
    for kind in (torch.bfloat16, torch.float32):
        x, weight = (torch.randn(n, 3, device=device, dtype=kind) for n in (rows, 128))
        gradient = torch.randn(rows, 128, device=device, dtype=kind)
        found[f"three columns, {kind}"] = {
            "forward": timed(lambda x=x, w=weight: functional.linear(x, w), device),
            "weight": timed(lambda x=x, g=gradient: g.t() @ x, device),
        }
    return found


def stages(settings: Settings, size: str | None = None) -> Found:
    """The step on synthetic shapes: speed, memory, stages, waits, and each kernel of attention."""
    one = SyntheticStep(settings, size)
    loss = one.both().item()
    found: Found = {"batch": one.config.batch_size, "loss": loss, "speed": one.speed()}
    found["views"] = timed(one.views, one.device)
    found["memory"] = peak_gib(one.both, one.device)
    found["memory of views"] = peak_gib(one.views, one.device)
    found["by stage"] = one.by_stage()
    found["all steps applied"] = bool(one.step.all_finite.item())
    if on_gpu(settings):
        found["waits"] = waits(one.both)
        for name in ATTENTION[:3]:
            with contextlib.suppress(RuntimeError), sdpa_kernel(getattr(SDPBackend, name)):
                found[f"speed, {name}"] = one.speed(10)
    return found


def waits(what: Callable[[], object]) -> list[str]:
    """Where a call makes the host wait for the GPU."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        what()
        torch.cuda.set_sync_debug_mode("default")
    lines = [f"{Path(w.filename).name}:{w.lineno} {w.message}"[:200] for w in seen]
    return [line for line in lines if "prototype" not in line][:20]


def base(settings: Settings) -> Found:
    return stages(settings, "base" if on_gpu(settings) else "tiny")


def recompute(settings: Settings) -> Found:
    """Speed and memory with the student's patch embedding kept and recomputed, as plain PyTorch."""
    one, found = SyntheticStep(settings), {}
    embedding = one.state.student.encoder.patch_embedding
    for name, choice in (("kept", Recompute.OFF), ("recomputed", Recompute.ON)):
        embedding.recompute = choice.applies_on(one.device.type)
        found[name] = one.speed() | peak_gib(one.both, one.device)
    return found


def run_losses(config: PretrainConfig, data: Any, settings: Settings, **options: Any) -> Any:
    """Times and records of the steps of a real run that saves only its end."""
    marks: list[tuple[float, StepRecord]] = []

    class Marks(TrainingReporter):
        def step(self, record: StepRecord) -> None:
            marks.append((time.perf_counter(), record))

    with tempfile.TemporaryDirectory() as folder:
        pretrain(
            config,
            corpus=data,
            run=Path(folder, "run"),
            options=RunOptions(
                device=settings.device, save_every=10**9, save_minutes=1e9, **options
            ),
            reporter=Marks(),
        )
    return marks


class Lines(logging.Handler):
    """The program's warnings, such as that a step cannot be compiled."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def build(settings: Settings) -> Found:
    """The kernels of a training step, made for the parts that follow; and how long a run waits for them."""
    batch = sizes(settings, 128, 2)
    config = replace(recipe(settings.size), batch_size=batch, steps=5)
    data = SyntheticCorpus(4 * batch, sizes(settings, 16_384, 512))
    return waited(settings, config, data)[0]


def waited(
    settings: Settings, config: PretrainConfig, data: Any, **options: Any
) -> tuple[Found, list[tuple[float, StepRecord]]]:
    """How long a run took to its first steps, and what it warned of; and its steps."""
    log, lines, began = logging.getLogger("pointdistill"), Lines(), time.perf_counter()
    log.addHandler(lines)
    try:
        marks = run_losses(config, data, settings, **options)
    finally:
        log.removeHandler(lines)
    first = [round(at - began, 1) for at, _ in marks[:5]]
    return {"seconds until the first steps": first, "warnings": lines.lines}, marks


def train(settings: Settings, size: str | None = None, **options: Any) -> Found:
    """The real program, from a corpus on disk to its last checkpoint; and the loader alone."""
    data = open_or_make_corpus(settings)
    batch, steps = sizes(settings, 128, 2), sizes(settings, 80, 4)
    config = replace(recipe(size or settings.size), batch_size=batch, steps=steps)
    found, marks = waited(settings, config, data, **options)
    marks = marks[steps // 4 :]
    gaps = [after[0] - before[0] for before, after in itertools.pairwise(marks)]
    found |= {
        "shapes_per_second": round(batch * len(gaps) / sum(gaps), 1),
        "steps": len(gaps),
        "step_ms": round(1e3 * statistics.median(gaps), 2),
        "slowest_step_ms": round(1e3 * max(gaps), 1),
        "losses": [round(record.loss, 4) for _, record in (marks[0], marks[-1])],
    }
    if on_gpu(settings):
        found["allocated_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
        found["reserved_gib"] = round(torch.cuda.max_memory_reserved() / GIB, 2)
    began = time.perf_counter()
    read = batches(data, batch_size=batch, seed=0, first=0, last=6, pin=on_gpu(settings))
    shapes = sum(len(one.counts) for one in read)
    found["loader_alone_shapes_per_second"] = round(shapes / (time.perf_counter() - began), 1)
    return found


def train_recorded(settings: Settings) -> Found:
    """The same with ``--compile on``: step and views are CUDA graphs, or a warning says why they are not."""
    return train(settings, compile="on" if on_gpu(settings) else "auto")


def train_base(settings: Settings) -> Found:
    """The same for the base size; the kernels are not there yet, so its first step takes minutes."""
    return train(settings, "base" if on_gpu(settings) else "tiny")


def operations(settings: Settings) -> Found:
    """The kernels of attention, the selections of the views, and both forms of the patch loss."""
    device, found = torch.device(settings.device), {}
    kind = torch.bfloat16 if on_gpu(settings) else torch.float32
    # (batch, heads, tokens, width of a head) of the masked pass, the whole views and the local views of small.
    large = [(1024, 6, 20, 64), (128, 6, 65, 64), (512, 6, 17, 64)]
    for shape in large if on_gpu(settings) else [(2, 6, 20, 64)]:
        triple = [torch.randn(shape, device=device, dtype=kind).requires_grad_() for _ in range(3)]

        def attend(triple: list[Tensor] = triple) -> None:
            functional.scaled_dot_product_attention(*triple).sum().backward()

        for name in ATTENTION:
            with contextlib.suppress(RuntimeError), sdpa_kernel(getattr(SDPBackend, name)):
                found[f"{name} {shape}"] = timed(attend, device)["in_a_row_ms"]
    rows, points = sizes(settings, 256, 2), sizes(settings, 1024, 128)
    cloud = patches.to_unit_sphere(torch.randn(rows, points, 3)).to(device)
    start = torch.zeros(rows, dtype=torch.int64, device=device)
    far = torch.rand(rows, 64, points, device=device)
    found["farthest points"] = timed(
        lambda: patches.farthest_points(cloud, points // 16, start=start), device
    )
    found["nearest neighbours"] = timed(lambda: selection.smallest_indices(far, 32), device)
    rows, targets, prototypes = (
        sizes(settings, *n) for n in ((46_080, 64), (16_384, 32), (4096, 64))
    )
    logits = torch.randn(rows, prototypes, device=device).mul(0.5).to(kind).requires_grad_()
    probs = torch.randn(targets, prototypes, device=device).softmax(-1)
    index = torch.randint(0, targets, (rows,), device=device)
    results = {}
    for name, form in (
        ("chunks", losses.chunked_cross_entropy),
        ("compiled", compiled_loss(device)),
    ):

        def both(form: Callable[..., Tensor] = form) -> tuple[Tensor, Tensor]:
            loss = form(logits, probs, index, 0.1)
            return loss.detach(), torch.autograd.grad(loss, logits)[0]

        found[f"patch loss, {name}"] = timed(both, device) | peak_gib(both, device)
        results[name] = both()
    pairs = zip(*results.values(), strict=True)
    found["patch loss, relative difference"] = [
        ((a.float() - b.float()).norm() / a.float().norm()).item() for a, b in pairs
    ]
    return found


def compiled_loss(device: torch.device) -> Callable[..., Tensor]:
    """The loss as ``torch.compile`` fuses it on a GPU; on a CPU, where compiling takes a minute, as it is."""
    if device.type == "cpu" or compile_failure(device) is not None:
        return losses.plain_cross_entropy
    return torch.compile(losses.plain_cross_entropy, fullgraph=True, dynamic=False)


def profiled(settings: Settings) -> Found:
    """Kernels of views and step as training runs them, from PyTorch's profiler."""
    gpu, found = on_gpu(settings), {}
    one = SyntheticStep(settings, compiler=StepCompiler(active=gpu))
    rounds = sizes(settings, 3, 1)
    for _ in range(rounds):
        one.both()
    own = "self_device_time_total" if gpu else "self_cpu_time_total"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    for name, what in (("views", one.views), ("step", one.train)):
        synchronize(one.device)
        with profile(activities=kinds) as seen:
            for _ in range(rounds):
                what()
            synchronize(one.device)
        events = seen.key_averages()
        # On a GPU only the kernels: an operation's own row has the time of its kernels once more, and so has that
        # of a compiled graph.
        rows = [
            event
            for event in events
            if not gpu
            or (
                "CUDA" in str(event.device_type) and not getattr(event, "is_user_annotation", False)
            )
        ]
        rows.sort(key=lambda e: -getattr(e, own))
        found[name] = {
            "kernels": sum(e.count for e in rows) // rounds,
            "busy_ms": round(sum(getattr(e, own) for e in rows) / rounds / 1e3, 2),
            "longest": [
                [e.key[:110], e.count // rounds, round(getattr(e, own) / rounds / 1e3, 3)]
                for e in rows[:25]
            ],
        }
        table = events.table(sort_by=own, row_limit=40, max_name_column_width=90)
        Path(settings.output, f"profile-{name}.txt").write_text(table)
        note(settings, "profile", found)
    return found


def compiled(settings: Settings) -> Found:
    """Views and step through the compiler that training uses, and as the CUDA graphs of ``--compile on``."""
    device = torch.device(settings.device)
    plain = SyntheticStep(settings)
    # Several, since the first loss would be the same with wrong gradients.
    first = [plain.both().item() for _ in range(COMPARED)]
    found: Found = {"plain": {"losses": first} | plain.speed(10)}
    del plain  # whose memory would count
    ways: dict[str, Callable[[], StepCompiler]] = {
        "compiled": lambda: StepCompiler(active=on_gpu(settings))
    }
    if on_gpu(settings):
        ways["recorded"] = lambda: StepCompiler(active=True, recorder=CudaRecorder(device))
    for name, compiler in ways.items():
        one, began = SyntheticStep(settings, compiler=compiler()), time.perf_counter()
        found[name] = {"losses": [one.both().item()]}
        found[name]["seconds of the first step"] = round(time.perf_counter() - began, 1)
        found[name]["losses"] += [one.both().item() for _ in range(COMPARED - 1)]
        note(settings, "compiled", found)
        found[name] |= one.speed() | {"memory": peak_gib(one.both, device)}
        found[name]["views"] = timed(one.views, device)
        found[name]["step"] = timed(one.train, device)
        found[name]["share of equal centres"] = equal_centers(one)
        note(settings, "compiled", found)
    return found


def equal_centers(one: SyntheticStep) -> float:
    """Share of the centres of global views that are, to the bit, those of views that are not compiled."""
    one.views()
    wanted = make_views(one.batch, one.config).global_views.centers
    return (one.made.global_views.centers == wanted).all(-1).float().mean().item()
