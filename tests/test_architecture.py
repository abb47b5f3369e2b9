"""The house stands: rooms in one order, no torch where it costs a second, files of a good size, standard terms."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
SOURCE = REPOSITORY / "src" / "pointdistill"
LONGEST_FILE = 500
MOST_FILES = 240
SHORT_FILE = 60
PLUG_INS = ("data/meshes/formats/", "data/sources/", "data/benchmarks/", "data/benchmark_standins/")
"""Where a small file with one reader is right: a format, a source, a benchmark."""

FRONT = ("__init__", "__main__")
"""The package's own front: looks names up in any room when they are first used."""


def rooms() -> list[str]:
    """The order of rooms, as docs/architecture.md writes it down."""
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = text.split("## The order of rooms", 1)[1].split("```", 2)[1]
    return [line.split()[0].rstrip("/") for line in block.splitlines() if line[:1].strip()]


@cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def modules() -> dict[str, Path]:
    """Every module by its dotted name without the package's."""
    named = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" and parts[:-1] else parts)] = path
    return named


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Every module or name of ours that a file imports anywhere, as (line, dotted name without the package's)."""
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "pointdistill":
                yield node.lineno, name.removeprefix("pointdistill").lstrip(".")


def room_of(module: str, order: list[str]) -> str | None:
    """The room that a module or a name in it belongs to; None for a name of the package itself."""
    found = [room for room in order if f"{module}.".startswith(f"{room.replace('/', '.')}.")]
    return max(found, key=len) if found else None


def wrong_arrows(order: list[str], files: dict[str, Path]) -> list[str]:
    """Imports from a later room, from the package itself, or between ``model`` and ``data``."""
    wrong = []
    for module, path in files.items():
        if module in FRONT:
            continue
        here = room_of(module, order)
        if here is None:
            floors = ("data", "engine")  # their __init__ hold a line of text
            wrong += [] if module in floors else [f"{path}: in no room of docs/architecture.md"]
            continue
        for line, name in imported(path):
            there = room_of(name, order)
            apart = {here.split("/")[0], str(there).split("/")[0]} == {"model", "data"}
            if there is None or apart or order.index(there) > order.index(here):
                wrong.append(f"{path}:{line}: {here} imports {name} ({there})")
    return wrong


def test_each_room_imports_only_from_rooms_before_it() -> None:
    assert wrong_arrows(rooms(), modules()) == []


@pytest.mark.parametrize(
    "line",
    [
        "from pointdistill import __version__",
        "from pointdistill import engine",
        "import pointdistill",
        "from pointdistill.engine import quickstart",
        "from pointdistill.model import encoder",
        "def f():\n    from pointdistill.cli.console import print_table",
    ],
)
def test_an_arrow_that_points_up_is_found(line: str, tmp_path: Path) -> None:
    """In every way of writing it, inside a function too."""
    (tmp_path / "files.py").write_text(line)
    assert len(wrong_arrows(rooms(), {"data.files.files": tmp_path / "files.py"})) == 1


def knows_torch(path: Path) -> bool:
    for node in ast.walk(syntax(path)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(name.split(".")[0] in ("torch", "accelerate") for name in names):
            return True
    return False


def test_data_does_not_know_torch(tmp_path: Path) -> None:
    assert [path for path in (SOURCE / "data").rglob("*.py") if knows_torch(path)] == []
    for number, line in enumerate(("import torch.nn as nn", "from torch import Tensor")):
        (tmp_path / f"{number}.py").write_text(line)
        assert knows_torch(tmp_path / f"{number}.py")


def length(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_files_are_of_a_good_size_and_few() -> None:
    lengths = {path: length(path) for path in SOURCE.rglob("*.py")}
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE} == {}
    assert len(lengths) <= MOST_FILES


def test_a_small_file_with_one_reader_beside_it_belongs_to_its_reader() -> None:
    files = modules()
    readers: defaultdict[str, set[str]] = defaultdict(set)
    for module, path in files.items():
        for _, name in imported(path):
            # ``from a.b import c`` reads the module a.b.c if there is one, else a.b.
            readers[name if name in files else name.rpartition(".")[0]].add(module)
    lonely = []
    for module, path in files.items():
        inside = path.relative_to(SOURCE).as_posix()
        if path.stem.startswith("__") or inside.startswith(PLUG_INS) or length(path) >= SHORT_FILE:
            continue
        (reader, *others) = readers[module] or {""}
        if not others and reader.rpartition(".")[0] == module.rpartition(".")[0]:
            lonely.append(f"{inside} ({length(path)} lines) is read by {reader} alone")
    assert lonely == []


@pytest.mark.parametrize("module", ["pointdistill", "pointdistill.cli", "pointdistill.data.corpus"])
def test_torch_is_not_loaded_by(module: str) -> None:
    """``--help``, and a program that only reads corpora, must not wait for it."""
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


PUBLIC = """
import os, torch
for name in ("load_encoder", "load_classifier", "load_segmenter", "embed", "search", "Embedding"):
    child = os.fork()  # of a process that has loaded nothing of ours
    if child == 0:
        import pointdistill
        getattr(pointdistill, name)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""


def test_each_public_name_loads_before_anything_else() -> None:
    """None may need another module to be loaded before it."""
    done = subprocess.run([sys.executable, "-c", PUBLIC], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


PRIVATE_WORDS = {
    # Names of this code's own that gave way to the field's, by where they meant something of their own
    # ("" is everywhere; a capital letter matters).
    "": """foreman Foreman _Foreman Foremen _Foremen hang_up dismiss place_order OrderedJob Order _Lanes Spoken
        sum_up sum_up_targets begun_on BegunOn carry_out too_little warmth unsaid departure Keeper KeepNothing
        Describer Description EncoderDescriber GeometryDescriber BenchmarkKind Kind Unit Place Standing survey
        Survey fuel wares fronts supports lay_out backstop Backstop quarantine UNREADABLE thinned _thinned
        _halved in_words cut_from_outermost cut_clouds cut_from of_point of_patch Draft Likeness Words Asked
        Launch Reading Readings settle asked_for judged sound exchange Bench""",
    "cli/": "span _duration told asked words",
    "engine/pretraining/": "alive taken votes readings reading fault faults asked lane",
    "engine/config/": "asked words told",
    "engine/evaluation/": "asked measured kept kinds bench kept_training",
    "data/corpus_building/": "order orders swap decide clear faults fault judged lanes",
    "data/synthetic_shapes/": "cases building",
}


def defined_names(path: Path) -> Iterator[tuple[int, str]]:
    """Everything that a file gives a name to: itself, functions, classes, parameters, variables, attributes."""
    yield 0, path.stem
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr


def test_names_are_the_field_s_words() -> None:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        inside = path.relative_to(SOURCE).as_posix()
        banned = {
            word
            for place, words in PRIVATE_WORDS.items()
            if inside.startswith(place)
            for word in words.split()
        }
        found += [f"{inside}:{n} {name}" for n, name in defined_names(path) if name in banned]
    assert found == []


OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
STYLE_SHEETS = {("engine/reports/pages.py", "_STYLE")}
"""Names that hold CSS, whose custom properties are spelled like options."""


def modules_below_the_command_line() -> Iterator[tuple[str, ast.Module]]:
    """Every module that a Python user may call, as (path within the package, syntax tree)."""
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if not name.startswith("cli/"):
            yield name, syntax(path)


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


def test_the_command_line_prints_through_one_module() -> None:
    """There, whatever could steer a terminal is turned into escapes."""
    printing = re.compile(r"typer\.echo\(|\bprint\(|console\.print\(")
    found = [
        str(path.relative_to(SOURCE))
        for path in sorted(SOURCE.rglob("*.py"))
        if path != SOURCE / "cli" / "console.py" and printing.search(path.read_text("utf-8"))
    ]
    assert found == []
