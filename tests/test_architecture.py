"""The house stands: imports run one way, torch stays out of what must start fast, files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "pointdistill"
ALLOWED = {
    "cli": {"engine", "data", "reporter", "errors"},
    "engine": {"model", "data", "reporter", "errors"},
    "model": {"errors"},
    "data": {"reporter", "errors"},
}
LONGEST_FILE = 400


def internal_imports(layer: str) -> Iterator[tuple[Path, str]]:
    """Every import of our own in a layer, as (file, layer imported)."""
    for path in sorted((SOURCE / layer).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert node.level == 0, f"{path}: relative import"
                names = [node.module]
            for name in names:
                parts = name.split(".")
                if parts[0] == "pointdistill" and len(parts) > 1:
                    yield path, parts[1]


@pytest.mark.parametrize("layer", sorted(ALLOWED))
def test_layer_imports_only_what_lies_below(layer: str) -> None:
    found = list(internal_imports(layer))
    assert found
    wrong = [f"{p}: imports {t}" for p, t in found if t not in ALLOWED[layer] | {layer}]
    assert wrong == []


def test_data_does_not_know_torch() -> None:
    for path in (SOURCE / "data").rglob("*.py"):
        assert "import torch" not in path.read_text(encoding="utf-8"), path


def test_files_stay_readable() -> None:
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCE.rglob("*.py")}
    assert {p: n for p, n in lengths.items() if n > LONGEST_FILE} == {}


@pytest.mark.parametrize("module", ["pointdistill", "pointdistill.cli", "pointdistill.data.corpus"])
def test_torch_is_not_loaded_by(module: str) -> None:
    """``--help``, and a program that only reads corpora, must not wait for it."""
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


PUBLIC = """
import os, torch
for name in ("load_encoder", "load_classifier", "load_segmenter"):
    child = os.fork()  # of a process that has loaded nothing of ours
    if child == 0:
        import pointdistill
        getattr(pointdistill, name)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""


def test_each_public_name_loads_before_anything_else() -> None:
    """Rooms of the engine import each other's modules; none may need a room to be loaded before it."""
    done = subprocess.run([sys.executable, "-c", PUBLIC], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
