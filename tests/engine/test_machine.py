"""What this process holds of the machine's memory, and which errors mean that it is full."""

from __future__ import annotations

import pytest
import torch

from pointdistill.engine.runtime import devices as machine
from pointdistill.engine.runtime.devices import out_of_memory


def test_memory_of_this_process() -> None:
    """What it holds now is at most what it ever held, and torch alone takes tens of MiB."""
    now, peak = machine.resident_gib(), machine.peak_resident_gib()
    if now is None or peak is None:
        pytest.skip("this system does not say what a process holds")
    assert 0.03 < now <= peak


def test_which_errors_mean_full_memory() -> None:
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as full:
        torch.empty(2**62, dtype=torch.uint8)
    assert out_of_memory(full.value)
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
