"""A full disk: a one-line error, nothing half-written, and work that goes on once there is space."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
"""Lets anyone mount file systems of their own, which nobody else sees and which end with the program."""


Seen = Callable[[str], Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("full")


@pytest.fixture(scope="module")
def seen(folder: Path) -> Seen:
    """What a scenario of `full_disk` saw; its own assertions are part of the test."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("small file systems are made with Linux's unshare, which is not here")
    (folder / "tried").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder / "tried")]
    tried = subprocess.run([*NAMESPACE, *mount], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.strip()}")
    program = [*NAMESPACE, sys.executable, "-m", "tests.data.full_disk", str(folder)]
    ended = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    scenarios = json.loads(ended.stdout)

    def of(scenario: str) -> Any:
        assert "failed" not in scenarios[scenario], scenarios[scenario]["failed"]
        return scenarios[scenario]["saw"]

    return of


def test_whichever_file_fills_the_disk_the_mixture_ends_in_one_line_and_goes_on(seen: Seen) -> None:
    """Each file that a new mixture, and one that grows, writes is once the one for which there is no room."""
    files = seen("every_writer")
    # The place that workers hold is made for the reading, and for the shard.
    work = ["at-work", "piece.h5", "piece.json", "at-work", "shard.h5", "shard.json"]
    source = ["lock", "plan.json", *work]
    assert files["new"] == [*source[:2], *source, *2 * ["refused.jsonl", "corpus.json"]]
    assert files["grown"] == [*source[:2], *source, "corpus.json", "refused.jsonl", "corpus.json"]


def test_whichever_file_fills_the_disk_a_retry_ends_in_one_line_and_goes_on(seen: Seen) -> None:
    """The lock, the retry's own plan, what is kept and what is read again, and what the corpus will be."""
    begun, piece = ["lock", "base.json", "lock", "plan.json"], ["piece.h5", "piece.json"]
    read = ["at-work", *piece, "at-work", "shard.h5", "shard.json"]
    decided = ["refused.jsonl", "corpus.json"]
    # What is kept is before the shape and after it.
    assert seen("every_writer_of_a_retry") == [*begun, *piece, *piece, *read, *decided]


def test_a_disk_that_fills_up_under_two_workers_is_one_line_and_exit_code_2(
    seen: Seen, folder: Path
) -> None:
    corpus = folder / "processes" / "small" / "corpus"
    assert seen("processes")["message"] == (
        f"error: {corpus}: no space left on the disk; what is done is safe: make room and run the same "
        f"again to go on\n"
    )


def test_a_full_disk_of_temporary_files_is_named_and_costs_no_shape(
    seen: Seen, folder: Path
) -> None:
    place, results = folder / "temporary_files", seen("temporary_files")
    assert f"{place / 'corpus'}: {place / 'small'}/pointdistill-" in results["message"]
    assert results["planned"].startswith(f"error: {place / 'small'}: no space left on the disk")


def test_a_download_that_fills_the_disk_keeps_what_came_and_goes_on(
    seen: Seen, folder: Path
) -> None:
    downloads, results = folder / "download" / "small" / "downloads", seen("download")
    assert results["early"].startswith(
        f"{downloads}: the file takes 1,024,000 bytes, and its disk has"
    )
    assert results["late"] == (
        f"{downloads / 'a.zip'}: no space left on the disk; what came, … bytes, is safe: make room and run "
        f"the same again to go on"
    )
