"""The house stands: imports run one way, torch stays out of what must start fast, files stay small."""

from __future__ import annotations

import ast
import json
import re
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


OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
STYLE_SHEETS = {("engine/reporting/report.py", "_STYLE")}
"""Names that hold CSS, whose custom properties are spelled like options."""

NAMES_OPTIONS_STILL = {
    "data/benchmarks/modelnet40.py",
    "data/benchmarks/modelnet_fewshot.py",
    "data/benchmarks/scanobjectnn.py",
    "data/benchmarks/shapenetpart.py",
    "data/build/old_shards.py",
    "data/build/prepare.py",
    "data/build/publish.py",
    "data/build/retry.py",
    "data/build/state.py",
    "data/leaks/phases.py",
    "data/leaks/surface.py",
    "data/meshes/checks.py",
    "data/mixture/fetching.py",
    "data/mixture/recorded.py",
    "data/mixture/survey.py",
    "data/sources/__init__.py",
    "data/sources/base.py",
    "engine/embedding/run.py",
    "engine/embedding/search.py",
    "engine/embedding/work.py",
    "engine/evaluation/bench.py",
    "engine/evaluation/kept.py",
    "engine/evaluation/request.py",
    "engine/evaluation/saved.py",
    "engine/evaluation/sources.py",
    "engine/exchange/import_weights.py",
    "engine/exchange/onnx_export.py",
    "engine/finetuning/finetune_choices.py",
    "engine/finetuning/model_folder.py",
    "engine/finetuning/training_data.py",
    "engine/leaks.py",
    "engine/reconstruction/reconstruct.py",
    "engine/reconstruction/reconstruct_comparison.py",
}
"""Files that wait for their turn; the list only shrinks."""


def modules_below_the_command_line() -> Iterator[tuple[str, ast.Module]]:
    """Every module that a Python user may call, as (path within the package, syntax tree)."""
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if not name.startswith("cli/"):
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def texts(name: str, tree: ast.Module) -> Iterator[ast.Constant]:
    """String constants and docstrings of a module, without its style sheets."""
    sheets = {
        constant
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(isinstance(t, ast.Name) and (name, t.id) in STYLE_SHEETS for t in node.targets)
        for constant in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in sheets:
            yield node


def test_no_message_below_the_command_line_names_an_option() -> None:
    """A notebook user has no ``--encoder``: errors carry ``settings``, and the command line adds its options."""
    found = [
        f"{name}:{node.lineno}: {', '.join(OPTION.findall(str(node.value)))}"
        for name, tree in modules_below_the_command_line()
        if name not in NAMES_OPTIONS_STILL
        for node in texts(name, tree)
        if OPTION.search(str(node.value))
    ]
    assert found == []


def test_style_sheets_exist() -> None:
    trees = dict(modules_below_the_command_line())
    for name, variable in STYLE_SHEETS:
        assert any(isinstance(n, ast.Name) and n.id == variable for n in ast.walk(trees[name]))


def named_settings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Names in ``settings=(...)`` of an error and behind the line in ``reporter.say(line, ...)``."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        for keyword in node.keywords:
            if keyword.arg == "settings" and isinstance(keyword.value, ast.Tuple):
                yield from (n for n in keyword.value.elts if isinstance(n, ast.Constant))
        if isinstance(node.func, ast.Attribute) and node.func.attr == "say":
            yield from (n for n in node.args[1:] if isinstance(n, ast.Constant))


def test_every_setting_that_a_message_names_is_an_option() -> None:
    surface = json.loads((Path(__file__).parent / "cli" / "surface.json").read_text())
    options = {
        spelled
        for command in surface.values()
        for parameter in command.values()
        for spelled in parameter.get("spelled", ())
    }
    found = [
        f"{name}:{node.lineno}: {node.value}"
        for name, tree in modules_below_the_command_line()
        for node in named_settings(tree)
        if f"--{str(node.value).replace('_', '-')}" not in options
    ]
    assert found == []
