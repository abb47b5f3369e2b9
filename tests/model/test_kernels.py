"""The Triton kernels: interpreted beside the reference, compiled for a GPU without one, and when they are used."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from pointdistill.model import kernels

INPUTS = int(os.environ.get("POINTDISTILL_KERNEL_INPUTS", "8"))
"""Random inputs of each kernel; the interpreter takes 20 ms for a row."""

COMPARE = """
import sys
import torch
from pointdistill.model import kernels, patches, selection

torch.set_num_threads(1)
for seed in range(int(sys.argv[1])):
    generator = torch.Generator().manual_seed(seed)

    def integer(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    size = integer(1, 150)
    count = integer(1, min(size, 20))
    # Every other input lies on a coarse grid, where most distances and values are tied.
    levels = integer(1, 6) if seed % 2 else 2**24
    points = torch.randint(-levels, levels + 1, (2, size, 3), generator=generator) / levels
    start = torch.randint(0, size, (2,), generator=generator)
    ours = kernels.launch_farthest_points(points, count, start)
    assert torch.equal(ours, patches.farthest_points(points, count, start=start)), seed

    high = levels if seed % 2 else 2**31
    values = torch.randint(0, high, (2, size), generator=generator, dtype=torch.int64).to(torch.int32)
    ours = kernels.launch_smallest_indices(values, count)
    assert torch.equal(ours, selection.smallest_indices(values, count)), seed
    rank = torch.randint(1, size + 1, (2,), generator=generator)
    ours = kernels.launch_kth_smallest(values, rank)
    assert torch.equal(ours, selection.kth_smallest(values, rank)), seed
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_kernels_choose_what_the_reference_chooses() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}  # read when Triton is imported
    command = [sys.executable, "-c", COMPARE, str(INPUTS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


COMPILE = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from pointdistill.model import kernels


class NoDevice:
    # What Triton asks the driver of a GPU for before it compiles.
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


class Compiled:
    # Compiles the call of a kernel instead of launching it.
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def compile(*arguments, **options):
            built = self.kernel.warmup(*arguments, grid=grid, **options)
            assert "fma.rn" not in built.asm["ptx"], self.kernel
            assert built.metadata.shared < 2**15, built.metadata
            assert len(built.asm["cubin"]) > 1000

        return compile


driver.set_active(NoDevice())
for name in ("_farthest", "_kth_of_rows", "_smallest_of_rows"):
    setattr(kernels, name, Compiled(getattr(kernels, name)))
for size in (200, 2048, 16384, kernels.MOST_VALUES):
    rows, one = torch.zeros(2, size, dtype=torch.int32), torch.ones(2, dtype=torch.int64)
    kernels.launch_farthest_points(torch.zeros(2, size, 3), 64, one)
    kernels.launch_kth_smallest(rows, one)
    kernels.launch_smallest_indices(rows, 32)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_kernels_compile_for_a_hopper_gpu_without_fused_multiply_add() -> None:
    # A fused multiply-add rounds once where a CPU rounds twice, and would decide ties differently.
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_where_triton_builds_nothing_the_reference_is_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in an image that has PyTorch for a GPU, but no C compiler; one line says so, once."""

    def broken(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nand much more")

    monkeypatch.setattr(kernels, "triton", object())
    monkeypatch.setattr(kernels, "launch_kth_smallest", broken)
    kernels.can_be_built.cache_clear()
    try:
        tried = [kernels.can_be_built(torch.device("cpu")) for _ in range(2)]
    finally:
        kernels.can_be_built.cache_clear()
    assert tried == [False, False]
    (line,) = caplog.messages
    assert line.startswith("views and patches are made without Triton, which takes longer: ")
    assert line.endswith(": Failed to find C compiler.")


def test_a_gpu_uses_the_kernels_where_they_can_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        device = torch.device("cuda")

    values: Any = OnGpu()
    monkeypatch.setattr(kernels, "triton", object())
    for works in (True, False):
        monkeypatch.setattr(kernels, "can_be_built", lambda _, works=works: works)
        assert kernels.usable(values, 1024) == works
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert kernels.usable(values, 1024), "the compiler has shown that Triton works"
    assert not kernels.usable(values, kernels.MOST_VALUES + 1)
    assert not kernels.usable(torch.zeros(2), 2)
