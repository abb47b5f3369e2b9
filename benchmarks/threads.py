"""A step of the tiny and the small model on one thread or all, spinning or waiting, alone or beside other work.

It shows why the program tells OpenMP to wait passively, and why a narrow encoder trains on one thread. Each case
runs in a separate process, because OpenMP reads its settings when torch is loaded. Here views are made within the
step; ``pretrain`` makes them one step ahead on a CPU.

Run: ``python benchmarks/threads.py``
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time

STEPS, WARMUP = 7, 2
BATCH = {"tiny": 32, "small": 2}
BUSY = "while True: pass"


def measure(name: str) -> None:
    """Print the median seconds of a step in this process."""
    import numpy as np
    import torch

    from pointdistill.engine.config.recipes import recipe
    from pointdistill.engine.pretraining.checkpoints import new_state
    from pointdistill.engine.pretraining.execution import prepare_student
    from pointdistill.engine.pretraining.loader import Batch
    from pointdistill.engine.pretraining.step import TrainingStep, make_views
    from pointdistill.engine.runtime.devices import build_accelerator

    config = recipe(name)
    state = new_state(config)
    accelerator = build_accelerator("cpu", "no")
    take = TrainingStep(state, prepare_student(state, accelerator, "none"), accelerator)
    rates = config.schedule.at(0, total=100, steps_per_epoch=10)
    size = BATCH[name]
    points = np.random.default_rng(0).normal(size=(size, 2048, 3)).astype(np.float32)
    seconds = []
    for step in range(WARMUP + STEPS):
        began = time.perf_counter()
        batch = Batch(torch.from_numpy(points), torch.full((size,), 2048), torch.arange(size), step)
        take(batch, make_views(batch, config), rates)
        seconds.append(time.perf_counter() - began)
    print(statistics.median(seconds[WARMUP:]))


def timed(name: str, threads: int, policy: str, *, busy: bool) -> float:
    """Median seconds of a step in a new process, optionally beside a busy one."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": policy}
    beside = subprocess.Popen([sys.executable, "-c", BUSY]) if busy else None
    try:
        done = subprocess.run(
            [sys.executable, __file__, name],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
    finally:
        if beside is not None:
            beside.kill()
            beside.wait()
    return float(done.stdout)


def main() -> None:
    cores = os.cpu_count() or 1
    print(f"{platform.machine()}, {cores} cores, median of {STEPS} steps")
    print("| model, shapes | threads | which, waiting, | alone, s | beside a busy process, s |")
    print("| --- | --- | --- | --- | --- |")
    ways = [(1, "PASSIVE", "-"), (cores, "PASSIVE", "sleep"), (cores, "ACTIVE", "spin")]
    for name, size in BATCH.items():
        for threads, policy, waiting in ways:
            alone, beside = (timed(name, threads, policy, busy=busy) for busy in (False, True))
            print(
                f"| {name}, {size} | {threads} | {waiting} | {alone:.3f} | {beside:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    measure(sys.argv[1]) if sys.argv[1:] else main()
