"""The process that other tests start their programs from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.warm import Warm


def test_a_program_leaves_no_file_open(tmp_path: Path, warm: Warm) -> None:
    here = Path("/dev/fd")
    if not here.is_dir():
        pytest.skip("this system does not list a process's open files")
    before = len(list(here.iterdir()))
    assert warm.run("platform", cwd=tmp_path).returncode == 0
    assert len(list(here.iterdir())) == before
