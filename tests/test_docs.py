"""The pages: links lead somewhere, and the commands, options and files that they name exist."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest
import typer

from pointdistill.cli import app

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
for group, within in [(name, c) for name, c in COMMANDS.items() if hasattr(c, "commands")]:
    COMMANDS |= {f"{group} {name}": command for name, command in within.commands.items()}
OPTIONS = {
    name: {"--help", *(option for p in command.params for option in p.opts)}
    for name, command in COMMANDS.items()
}
BENCHMARK_OPTIONS = {"--calibrate", "--planted", "--clean"}
PROGRAM_OPTIONS = {"--install-completion", "--show-completion"}
"""Options of scripts that a page names alone, without their command."""

NOT_OURS = re.compile(r"python |torchrun|accelerate|dask|pip |SBATCH|Accelerate's trackers")
"""Marks a line whose options may be another program's."""


def anchors(page: Path) -> set[str]:
    """The headings of a page as the ends of links, in GitHub's spelling."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", text):
        if not target.startswith(("http://", "https://")):
            file = page.parent / target if target else page
            assert file.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(file), f"{page.name}: {target}#{anchor}"


@every_page
def test_commands_and_options_exist(page: Path) -> None:
    """Whatever a page shows after ``pointdistill`` at the beginning of a line."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^(?:\$ )?pointdistill ([a-z].*)$", text, flags=re.MULTILINE):
        words = line.split("#")[0].split()
        if hasattr(COMMANDS.get(words[0]), "commands"):
            words[:2] = [" ".join(words[:2])]
        assert words[0] in COMMANDS, f"{page.name}: {line}"
        for word in words[1:]:
            if word.startswith("--"):
                assert word.split("=")[0] in OPTIONS[words[0]], f"{page.name}: {line}"


@every_page
def test_options_named_in_the_text_exist(page: Path) -> None:
    """An option between backticks belongs to some command of ours."""
    known = set().union(*OPTIONS.values()) | BENCHMARK_OPTIONS | PROGRAM_OPTIONS
    for line in page.read_text(encoding="utf-8").splitlines():
        for quoted in re.findall(r"`([^`]*)`", line):
            if not NOT_OURS.search(line) and not quoted.startswith("benchmarks/"):
                options = re.findall(r"(?<![\w-])--[a-z][a-z-]+", quoted)
                assert set(options) <= known, f"{page.name}: {quoted}"


@every_page
def test_files_and_modules_named_in_the_text_exist(page: Path) -> None:
    """Paths in the repository or the package, and dotted names of modules and of what is in them."""
    text = page.read_text(encoding="utf-8")
    paths = r"`((?:data|engine|model|cli|tests|benchmarks|src)/[\w/]+(?:\.py|/)(?=[` ]))"
    for path in re.findall(paths, text):
        found = any((root / path).exists() for root in (ROOT, ROOT / "src" / "pointdistill"))
        assert found, f"{page.name}: {path}"
    names = re.findall(r"\bpointdistill\.((?:data|engine|model)(?:\.\w+)*)", text)
    for name in [*names, *re.findall(r"`((?:data|engine)(?:\.\w+)+)`", text)]:
        if not name.endswith(".bricks"):  # the example of a new source
            pkgutil.resolve_name(f"pointdistill.{name}")
