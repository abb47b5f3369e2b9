"""Files that are either complete or absent: how they are written to disk."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from pointdistill.data.files import files


@pytest.mark.parametrize(("system", "how"), [("nt", os.O_RDWR), ("posix", os.O_RDONLY)])
def test_a_file_is_flushed_as_the_system_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, how: int
) -> None:
    """Windows flushes only what is open for writing; elsewhere a file may be there to be read alone."""
    opened: list[int] = []

    def open_(path: Path, flags: int) -> int:
        opened.append(flags)
        return os.open(path, flags)

    real = {name: getattr(os, name) for name in ("O_RDWR", "O_RDONLY", "fsync", "close")}
    monkeypatch.setattr(files, "os", SimpleNamespace(name=system, open=open_, **real))
    (tmp_path / "file").write_bytes(b"x")
    files.flush(tmp_path / "file")
    assert opened == [how]
