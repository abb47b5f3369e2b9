"""The parts of ``on_gpu.py``: whether the numbers are right, whole programs, and the timings of ``on_gpu_timing``.

Each is a function of the settings that returns what goes into ``results.json``.
Run by ``on_gpu.py``, which says what the parts are for: ``python benchmarks/on_gpu_parts.py PART SETTINGS``.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from on_gpu import PARTS, ROOT, Settings
from on_gpu_timing import (
    Found,
    base,
    build,
    compiled,
    error_of,
    machine,
    note,
    on_gpu,
    open_or_make_corpus,
    operations,
    profiled,
    recompute,
    run_losses,
    sizes,
    stages,
    timed,
    train,
    train_base,
    train_recorded,
)
from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.config.recipes import recipe
from pointdistill.engine.embedding.compute import (
    DEFAULT_KIND,
    GPU_BATCH,
    FeatureMaker,
    InferenceThreads,
    inference_threads,
)
from pointdistill.engine.planning.trial import SyntheticCorpus
from pointdistill.engine.pretraining import execution
from pointdistill.engine.pretraining.execution import StepCompiler
from pointdistill.engine.pretraining.loader import Batch
from pointdistill.engine.pretraining.pretrain import pretrain
from pointdistill.engine.pretraining.step import make_views
from pointdistill.engine.pretraining.trainer import RunOptions
from pointdistill.model import selection
from pointdistill.model.encoder import Encoder
from pointdistill.model.initialize import initialize
from pointdistill.model.random import KeyedRandom, sample_keys
from pointdistill.reporter import StepRecord, TrainingReporter


def corpus(settings: Settings) -> Found:
    """A corpus on disk for the parts that follow."""
    began = time.perf_counter()
    shapes = len(open_or_make_corpus(settings))
    return {"shapes": shapes, "seconds": round(time.perf_counter() - began, 1)}


def golden(settings: Settings, precision: str, cases: Sequence[str] = (), **options: Any) -> Found:
    """The golden steps of the tests on the device: largest relative errors of losses and gradients."""
    sys.path.insert(0, str(ROOT))
    from tests.model.test_golden_training import CASES, GoldenStep

    exact, found = precision == "no", dict[str, Found]()
    for name in cases or CASES:
        try:
            folder = ROOT / "tests" / "golden"
            step = GoldenStep(folder, name, settings.device, precision, **options)
            ours = {f"{term}_loss": step.metrics.logged[term] for term in step.metrics.terms}
            ours["loss"] = step.metrics.logged["loss"]
            worst = max(
                abs(ours[term].item() - value) / abs(value)
                for term, value in step.expected["losses"].items()
            )
            errors = {}
            for key, wanted in step.expected_gradients.items():
                gradient = step.gradients[key.removeprefix("student.")].cpu()
                errors[key] = ((gradient - wanted).norm() / wanted.norm()).item()
            where = max(errors, key=errors.__getitem__)
            good = worst < (1e-5 if exact else 2e-2) and errors[where] < (1e-3 if exact else 0.3)
            found[name] = {
                "loss_error": worst,
                "gradient_error": errors[where],
                "where": where,
            }
            if not good:
                found[name]["error"] = "differs more than rounding explains"
        except Exception as error:
            found[name] = error_of(error)
    return found


def golden_float32(settings: Settings) -> Found:
    return golden(settings, "no")


def golden_bf16(settings: Settings) -> Found:
    return golden(settings, "bf16")


def golden_compiled(settings: Settings) -> Found:
    """The first of them as compiled code, in which the gradients too are other code."""
    if not on_gpu(settings):  # where building the kernels takes minutes
        execution._WHOLE["backend"] = "aot_eager"
    found: Found = {}
    for precision in ("no", "bf16"):
        compiler = StepCompiler(active=True, retries=False)
        found[precision] = golden(settings, precision, ["dual"], compiler=compiler)
        note(settings, "golden_compiled", found)
        torch.compiler.reset()
    return found


def same_bits(settings: Settings) -> Found:
    """Random numbers, selections and views on the device beside those on a CPU."""
    device = torch.device(settings.device)
    index, high = torch.arange(64), torch.full((64, 5), 16_384)
    keys = [sample_keys(seed=3, epoch=5, index=index.to(place)) for place in ("cpu", device)]
    ours, theirs = map(KeyedRandom, keys)
    found: Found = {
        "keys": torch.equal(keys[0], keys[1].cpu()),
        "bits": torch.equal(ours.bits("a", (3, 100)), theirs.bits("a", (3, 100)).cpu()),
        "uniform": torch.equal(ours.uniform("b", (7,)), theirs.uniform("b", (7,)).cpu()),
        "integers": torch.equal(
            ours.integers("c", high), theirs.integers("c", high.to(device)).cpu()
        ),
    }
    rng = np.random.default_rng(0)
    distance = torch.from_numpy(rng.random((6, 3, 5000), np.float32))
    distance[..., ::9] = 0.5  # ties
    keep = torch.from_numpy(rng.integers(300, 5000, (6, 3)))
    seeds = torch.from_numpy(rng.integers(-(2**62), 2**62, (6, 3)))
    there = [value.to(device) for value in (distance, keep, seeds)]
    found["draw_nearest"] = torch.equal(
        selection.draw_nearest(distance, keep, seeds, 256),
        selection.draw_nearest(*there, 256).cpu(),
    )
    found["smallest_indices"] = torch.equal(
        selection.smallest_indices(distance, 32), selection.smallest_indices(there[0], 32).cpu()
    )
    config, points = recipe(settings.size), sizes(settings, 16_384, 512)
    clouds = torch.from_numpy(rng.standard_normal((8, points, 3), np.float32))
    batch = Batch(clouds, torch.full((8,), points), torch.arange(8), 0)
    here, there_too = make_views(batch, config), make_views(batch.to(device), config)
    for name in ("global_views", "local_views"):
        pair = getattr(here, name).centers, getattr(there_too, name).centers.cpu()
        close = (pair[0] - pair[1]).abs().amax(-1) < 1e-4
        found[f"share of equal centres, {name}"] = close.float().mean().item()
    hidden = here.masks.hidden_index, there_too.masks.hidden_index.cpu()
    found["share of equal masks"] = (hidden[0] == hidden[1]).float().mean().item()
    return found


def gpu_tests(settings: Settings) -> Found:
    """The tests that need a GPU, which skip on a CPU, and beside a GPU those of the model."""
    # Only the plugins that the project's settings name: others that happen to be installed raise warnings, which
    # are errors here. pytest-benchmark, for one, ends the whole session where tests run beside each other.
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "2"}
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "xdist", "-p", "timeout"]
    pytest += ["-p", "no:cacheprovider"]
    found = {"on the GPU": command([*pytest, "tests/engine/test_on_gpu.py"], env=environment)}
    if on_gpu(settings):
        note(settings, "gpu_tests", found)
        found["of the model"] = command([*pytest, "tests/model"], env=environment)
    return found


def resume(settings: Settings) -> Found:
    """Whether a run here is repeated to the bit, and continued so after SIGKILL; plain, then compiled."""
    batch, steps = sizes(settings, 32, 2), sizes(settings, 40, 4)
    config = replace(recipe("tiny"), batch_size=batch, steps=steps)
    data = SyntheticCorpus(4 * batch, sizes(settings, 2048, 512))
    found: Found = {}
    for name, compiling in (("plain", "off"), ("compiled", "auto")):
        options = RunOptions(
            device=settings.device, compile=compiling, save_every=steps // 4, save_minutes=1e9
        )
        found[name] = repeated_and_resumed(config, data, options, kill_at=3 * steps // 4)
        note(settings, "resume", found)
        if not on_gpu(settings):
            break
    return found


def repeated_and_resumed(
    config: PretrainConfig, data: SyntheticCorpus, options: RunOptions, *, kill_at: int
) -> Found:
    """The beginnings of the checksums of three runs' encoders, the third of which is killed at a step."""
    found: Found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("once", "again", "killed"):
            run = Path(folder, name)
            if name == "killed":
                # A process of its own, which cannot be a fork: this one has used the GPU.
                arguments = (config, data, run, options, kill_at)
                doomed = multiprocessing.get_context("spawn").Process(
                    target=run_until_killed, args=arguments
                )
                doomed.start()
                doomed.join()
                found["killed"] = doomed.exitcode == -signal.SIGKILL
            pretrain(config, corpus=data, run=run, resume=run.exists(), options=options)
            weights = (run / "encoder" / "model.safetensors").read_bytes()
            found[f"weights, {name}"] = hashlib.sha256(weights).hexdigest()[:12]
    found["repeated"] = found["weights, once"] == found["weights, again"]
    found["resumed"] = found["weights, once"] == found["weights, killed"]
    return found


def run_until_killed(
    config: PretrainConfig, data: SyntheticCorpus, run: Path, options: RunOptions, kill_at: int
) -> None:
    """Train, and end this process as a lost machine would when a step is reported."""

    class Kills(TrainingReporter):
        def step(self, record: StepRecord) -> None:
            if record.step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    pretrain(config, corpus=data, run=run, options=options, reporter=Kills())


def precision(settings: Settings) -> Found:
    """The same run in bf16 and in float32: losses side by side."""
    data = open_or_make_corpus(settings)
    batch, steps = sizes(settings, 64, 2), sizes(settings, 100, 3)
    config = replace(recipe(settings.size), batch_size=batch, steps=steps)
    config = replace(config, schedule=replace(config.schedule, warmup_epochs=1.0))
    runs, found = {}, {}
    for name, kind in (("bf16", "bf16"), ("float32", "no")):
        # Plain, since each would wait minutes for kernels of its own.
        marks = run_losses(config, data, settings, precision=kind, compile="off")
        runs[name] = [record.loss for _, record in marks]
        numbers = [n for _, r in marks for n in (r.loss, r.gradient_norm, *r.terms.values())]
        found[name] = {
            "finite": all(map(math.isfinite, numbers)),
            "losses": {i: runs[name][i] for i in (0, 9, 24, 49, 74, 99) if i < steps},
        }
        note(settings, "precision", found)
    pairs = zip(*runs.values(), strict=True)
    found["largest relative difference"] = max(abs(a - b) / abs(b) for a, b in pairs)
    return found


def embed(settings: Settings) -> Found:
    """Features a second by batch size, and of the encoder's forward pass by precision, with its error."""
    device, config = torch.device(settings.device), recipe(settings.size).encoder
    encoder = Encoder(config).eval().requires_grad_(requires_grad=False)
    initialize(encoder, generator=torch.Generator().manual_seed(0))
    count = sizes(settings, 1024, 4)
    clouds = np.random.default_rng(0).standard_normal((count, config.points, 3), np.float32)
    maker, found = FeatureMaker(encoder, DEFAULT_KIND, device, points=config.points), {}
    for size in {min(size, count) for size in (64, 256, 1024)}:
        spent = timed(lambda size=size: maker(list(clouds[:size])), device, 5)["in_a_row_ms"]
        found[f"clouds per second, {size} a batch, one after another"] = round(
            1e3 * size / spent, 1
        )
    found["clouds per second, as embed computes them"] = overlapped(maker, clouds, device)
    note(settings, "embed", found)
    points = torch.from_numpy(clouds[:256]).to(device)

    @torch.inference_mode()
    def forward() -> Tensor:
        return encoder(points).patches.float()

    encoder.to(device)
    exact = forward()
    for name, tf32, bf16 in (
        ("float32", False, False),
        ("tf32", True, False),
        ("bf16", True, True),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            spent = timed(forward, device, 5)["in_a_row_ms"]
            error = (forward() - exact).norm() / exact.norm()
        rate = round(1e3 * len(points) / spent, 1)
        found[name] = {"clouds_per_second": rate, "relative_error": error.item()}
    return found


def overlapped(maker: FeatureMaker, clouds: NDArray[np.float32], device: torch.device) -> float:
    """Clouds a second in batches of the default size, of which two are under way at a time."""
    size = min(GPU_BATCH, len(clouds))
    rounds = 8 if device.type == "cuda" else 1
    batches = [list(clouds[i : i + size]) for i in range(0, len(clouds), size)] * rounds

    def compute(threads: InferenceThreads, batches: list[Any]) -> None:
        for waiting in [threads.submit(batch) for batch in batches]:
            waiting.result()

    with inference_threads(maker) as threads:
        compute(threads, batches[:4])  # each thread prepares its memory
        began = time.perf_counter()
        compute(threads, batches)
        spent = time.perf_counter() - began
    return round(size * len(batches) / spent, 1)


def command(words: list[str], **more: Any) -> Found:
    """Run a command; its time limit is that of the part."""
    began = time.perf_counter()
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **more
    )
    print("$", *words, "\n", done.stdout[-6000:], flush=True)
    found: Found = {"seconds": round(time.perf_counter() - began, 1)}
    found |= {"exit_code": done.returncode, "end": done.stdout.strip()[-2500:]}
    return found | ({"error": f"exit code {done.returncode}"} if done.returncode else {})


def commands(settings: Settings) -> Found:
    """Commands as a user types them; each must end with exit code 0."""
    size, data = ["--size", "tiny"], settings.corpus
    open_or_make_corpus(settings)
    device, trained = ["--device", settings.device], ["--encoder", "run"]
    steps = ["--steps", str(sizes(settings, 60, 2)), "--batch-size", str(sizes(settings, 64, 2))]
    lines = [
        ["doctor"],
        # Not compiled, which would take most of the time; the part "resume" does it.
        ["pretrain", *size, "--data", data, *device, *steps, "--run", "run", "--compile", "off"],
        ["embed", data, *trained, *device, "--output", "features.npz"],
    ]
    if on_gpu(settings):
        labelled = ["scanobjectnn", "--stand-in", *trained, "--split", "OBJ-BG", *device]
        parts = ["shapenetpart", "--stand-in", *trained, *device]
        probes = ["--protocol", "knn", "--protocol", "linear", "--seeds", "1"]
        # The longest last.
        lines += [
            ["reconstruct", *trained, "--data", data, "--steps", "20", *device],
            ["finetune", *labelled, "--epochs", "2", "--output", "classifier"],
            ["finetune", *parts, "--epochs", "1", "--output", "segmenter"],
            ["evaluate", *labelled, *probes, "--epochs", "2"],
        ]
    found: Found = {}
    with tempfile.TemporaryDirectory() as folder:
        for words in lines:
            name = f"{len(found) + 1} {words[0]}"
            found[name] = command([sys.executable, "-P", "-m", "pointdistill", *words], cwd=folder)
            note(settings, "commands", found)
    return found


def plan(settings: Settings) -> Found:
    """What is planned for a run of the part "train", whose memory and time of a step stand beside it."""
    words = ["plan", "--size", settings.size, "--shapes", str(sizes(settings, 52_470, 64))]
    words += ["--device", settings.device] if on_gpu(settings) else ["--no-measure"]
    with tempfile.TemporaryDirectory() as folder:
        return command([sys.executable, "-P", "-m", "pointdistill", *words], cwd=folder)


def benchmark(name: str, settings: Settings, *words: str) -> Found:
    return command([sys.executable, f"benchmarks/{name}.py", "--device", settings.device, *words])


def benchmark_train(settings: Settings) -> Found:
    open_or_make_corpus(settings)
    batch, steps = str(sizes(settings, 128, 2)), str(sizes(settings, 80, 6))
    words = ("--batch", batch, "--steps", steps, "--corpus", settings.corpus)
    return benchmark("train", settings, "--size", settings.size, *words)


def benchmark_views(settings: Settings) -> Found:
    return benchmark("views", settings, "--batch", str(sizes(settings, 128, 1)))


def benchmark_step(settings: Settings) -> Found:
    batch, rounds = str(sizes(settings, 64, 2)), str(sizes(settings, 3, 1))
    return benchmark(
        "step", settings, "--size", settings.size, "--batch", batch, "--rounds", rounds
    )


FUNCTIONS: dict[str, Callable[[Settings], Found]] = {
    "profile": profiled,
} | {
    function.__name__: function
    for function in (
        *(corpus, golden_float32, golden_bf16, golden_compiled, same_bits, gpu_tests, resume),
        *(build, machine, train, train_recorded, train_base, stages, recompute, operations, base),
        *(precision, commands, plan, compiled, embed),
        *(benchmark_train, benchmark_views, benchmark_step),
    )
}


def run_part(name: str, settings: Settings) -> bool:
    """Run a part and write its results, or its error beside what it had found before; whether all went well."""
    try:
        note(settings, name, FUNCTIONS[name](settings))
    except Exception as error:
        traceback.print_exc()
        file = Path(settings.results, f"{name}.json")
        kept = json.loads(file.read_text()) if file.is_file() else {}
        note(settings, name, kept | error_of(error))
        return False
    return True


if __name__ == "__main__":
    # The kernels of "build" are waited for by everything that follows.
    if sys.argv[1] in {part.name for part in PARTS if not part.alone} - {"build"}:
        os.nice(5)
    sys.exit(not run_part(sys.argv[1], Settings(**json.loads(sys.argv[2]))))
