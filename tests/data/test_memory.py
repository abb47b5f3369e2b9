"""Memory limits of a container, read from control groups written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from pointdistill.data.files import processes as memory
from pointdistill.data.files.processes import GIB, memory_bytes

UNLIMITED_V1 = "9223372036854771712\n"


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(memory.os, "sysconf", {"SC_PAGE_SIZE": GIB, "SC_PHYS_PAGES": 64}.get)
    return tmp_path


def write(folder: Path, membership: str, limits: dict[str, str]) -> None:
    (folder / "membership").write_text(membership)
    for name, text in limits.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_without_groups_it_is_the_physical_memory(groups: Path) -> None:
    assert memory_bytes() == 64 * GIB


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
    groups: Path, membership: str, limits: dict[str, str], gib: int
) -> None:
    write(groups, membership, limits)
    assert memory_bytes() == gib * GIB
