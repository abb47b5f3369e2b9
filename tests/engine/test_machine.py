"""Memory limits of a container, read from control groups written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pointdistill.engine import machine
from pointdistill.engine.machine import GIB, memory_gib, out_of_memory

UNLIMITED_V1 = "9223372036854771712\n"


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(machine.os, "sysconf", {"SC_PAGE_SIZE": GIB, "SC_PHYS_PAGES": 64}.get)
    return tmp_path


def write(folder: Path, membership: str, limits: dict[str, str]) -> None:
    (folder / "membership").write_text(membership)
    for name, text in limits.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_without_groups_it_is_the_physical_memory(groups: Path) -> None:
    assert memory_gib() == 64


@pytest.mark.parametrize(
    ("membership", "limits", "gib"),
    [
        ("0::/\n", {"memory.max": f"{3 * GIB}\n"}, 3),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": f"{5 * GIB}\n"}, 5),
        ("0::/a/b\n", {"a/b/memory.max": f"{2 * GIB}\n", "a/memory.max": f"{5 * GIB}\n"}, 2),
        ("0::/not/mounted\n", {"memory.max": f"{4 * GIB}\n"}, 4),
        ("0::/\n", {"memory.max": "max\n"}, 64),
        ("0::/\n", {"memory.max": f"{100 * GIB}\n"}, 64),
        ("9:cpu:/x\n4:memory:/x\n", {"memory/x/memory.limit_in_bytes": f"{6 * GIB}\n"}, 6),
        ("4:memory:/x\n0::/\n", {"memory/x/memory.limit_in_bytes": UNLIMITED_V1}, 64),
        ("4:hugetlb,memory:/x\n", {"memory/memory.limit_in_bytes": f"{7 * GIB}\n"}, 7),
    ],
)
def test_the_smallest_limit_counts(
    groups: Path, membership: str, limits: dict[str, str], gib: float
) -> None:
    write(groups, membership, limits)
    assert memory_gib() == gib


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
