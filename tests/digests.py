"""What must not change when code only moves: bytes of what the program makes, losses, results, the command line.

Usage, in an environment that has the project (its losses hold on one machine and build of torch only)::

    python tests/digests.py record digests.json     # before
    python tests/digests.py compare digests.json    # after; exit code 1 and a list where something differs
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS = 190
"""Of each run. The losses of the first and of every tenth step are written down: 20 lines."""
RECIPES = ("tiny", "tiny-cls", "tiny-mpm")
CLOCKS = ("seconds", "shapes_per_second")
"""Entries of a metrics line that differ from run to run."""


def program(*arguments: str, folder: Path) -> None:
    """Run the command line in ``folder``; fail loudly."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pointdistill", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")


def tree_digest(path: Path) -> str:
    """SHA-256 over names and bytes of a file or of all files in a folder."""
    total = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.is_file():
            total.update(file.relative_to(path.parent).as_posix().encode())
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def corpus(folder: Path) -> dict[str, str]:
    """A builtin corpus, as two processes make it."""
    arguments = ("--shapes", "120", "--points", "1024", "--workers", "2", "--output", "corpus")
    program("prepare-data", "builtin", *arguments, folder=folder)
    return {file.name: tree_digest(file) for file in sorted((folder / "corpus").glob("[!.]*"))}


def stand_ins(folder: Path) -> dict[str, str]:
    """The five stand-ins at small sizes."""
    from pointdistill.data import benchmark_standins as standins

    makers: dict[str, Callable[[Path], object]] = {
        "scanobjectnn.zip": lambda path: standins.make_scanobjectnn_stand_in(
            path, sizes=standins.ScanSizes(train=8, test=4, copies=1), splits=("OBJ-BG",), workers=1
        ),
        "modelnet40.zip": lambda path: standins.make_modelnet40_stand_in(
            path, sizes=standins.MeshSizes(train=2, test=1), workers=1
        ),
        "fewshot.zip": lambda path: standins.make_modelnet_fewshot_stand_in(
            path,
            sizes=standins.FewshotSizes(settings=((5, 10),), folds=1, test=2, points=64),
            workers=1,
        ),
        "parts.zip": lambda path: standins.make_shapenetpart_stand_in(
            path, sizes=standins.PartSizes(train=2, test=1), workers=1
        ),
        "lvis": lambda path: standins.make_lvis_stand_in(
            path, sizes=standins.LvisSizes(each=12, unlabelled=4), workers=1
        ),
    }
    digests = {}
    for name, make in makers.items():
        make(folder / name)
        digests[name] = tree_digest(folder / name)
    return digests


def losses(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The metrics lines of short runs, one for each mode."""
    lines = {}
    for recipe in RECIPES:
        arguments = [
            "--recipe",
            recipe,
            "--steps",
            str(STEPS),
            "--batch-size",
            "8",
            "--device",
            "cpu",
        ]
        run = folder / "runs" / recipe
        program("pretrain", *arguments, "--data", "corpus", "--run", str(run), folder=folder)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        lines[recipe] = [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]
    return lines


def results(folder: Path) -> Any:
    """One ``results.json``."""
    arguments = ("--protocol", "knn", "--protocol", "svm", "--split", "OBJ-BG", "--seeds", "2")
    where = ("--data", "scanobjectnn.zip", "--encoder", "runs/tiny", "--output", "results")
    program("evaluate", "scanobjectnn", *arguments, *where, "--device", "cpu", folder=folder)
    return json.loads((folder / "results" / "results.json").read_text())


def record() -> dict[str, Any]:
    """Everything, made anew in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return {
            "corpus": corpus(folder),
            "stand_ins": stand_ins(folder),
            "losses": losses(folder),
            "results": results(folder),
        }


def main(action: str, file: str) -> None:
    """Record digests, or compare with those recorded."""
    found = record()
    if action == "record":
        Path(file).write_text(json.dumps(found, indent=1) + "\n")
        return
    before = json.loads(Path(file).read_text())
    different = (
        [
            f"{part}: {name}"
            for part in before
            for name in before[part]
            if found[part].get(name) != before[part][name]
        ]
        if before != found
        else []
    )
    for line in different:
        print("different:", line)  # noqa: T201
    if before != found:
        sys.exit("digests differ")
    print("all digests are equal")  # noqa: T201


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(*sys.argv[1:])
