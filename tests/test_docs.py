"""The pages: every link between them leads somewhere, every command in them exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from pointdistill.cli import app

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_and_options_exist(page: Path) -> None:
    """Whatever a page shows after ``pointdistill`` at the beginning of a line."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^(?:\$ )?pointdistill ([a-z].*)$", text, flags=re.MULTILINE):
        words = line.split("#")[0].split()
        assert words[0] in commands, f"{page.name}: {line}"
        known = {option for p in commands[words[0]].params for option in p.opts} | {"--help"}
        for word in words[1:]:
            if word.startswith("--"):
                assert word.split("=")[0] in known, f"{page.name}: {line}"
