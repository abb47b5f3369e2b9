"""How Sphinx builds the site: ``nox -s docs``. The pages are Markdown and read on their own as well.

Two directives fill pages from the program itself, so that they cannot go stale: ``command-reference`` (the help of
every command, as the program prints it) and ``public-names`` (every name of ``pointdistill.__all__``).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import typer
from docutils import nodes
from docutils.statemachine import StringList
from PIL import Image
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import pointdistill
from pointdistill.cli import app as program

project = "pointdistill"
author = "the authors of pointdistill"
version = release = pointdistill.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = f"pointdistill {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
# Lines in blocks marked `python` may be unfinished on purpose (`...`); nothing is highlighted by guessing.
highlight_language = "text"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
# Docstrings quote names with single backticks, as the pages do.
default_role = "code"

HELP_WIDTH = "88"
LONGEST_NAME = 20
"""Characters of code that fit into a line even in a table on a phone."""
WIDEST_FOR_A_PHONE = 800
"""Pixels; the sheets that commands write are wider."""


class CommandReference(SphinxDirective):
    """A section for every command with its help, asked of the program in a process of its own."""

    def run(self) -> list[nodes.Node]:
        sections: list[nodes.Node] = []
        for name in all_commands():
            section = nodes.section(ids=[name.replace(" ", "-")])
            section += nodes.title(text=name)
            section += nodes.literal_block(text=help_of(name), language="text")
            self.state.document.note_explicit_target(section)
            sections.append(section)
        return sections


def all_commands() -> list[str]:
    """Every command that is not hidden; those of a group follow it, as `corpus merge`."""
    found: list[str] = []
    for name, command in typer.main.get_command(program).commands.items():  # type: ignore[attr-defined]
        if not command.hidden:
            found += [name, *(f"{name} {one}" for one in getattr(command, "commands", {}))]
    return found


def help_of(command: str) -> str:
    """What ``pointdistill COMMAND --help`` prints where it is not a terminal."""
    environment = os.environ | {"COLUMNS": HELP_WIDTH, "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-m", "pointdistill", *command.split(), "--help"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.replace("python -m pointdistill", "pointdistill").strip("\n")


class PublicNames(SphinxDirective):
    """Documents every public name, functions and classes with all that they have."""

    def run(self) -> list[nodes.Node]:
        lines: list[str] = []
        for name in pointdistill.__all__:
            found = getattr(pointdistill, name)
            if isinstance(found, type):
                lines += [f".. autoclass:: pointdistill.{name}", "   :members:", ""]
            elif callable(found):
                lines += [f".. autofunction:: pointdistill.{name}", ""]
        return self.parse_text_to_nodes(StringList(lines, source="public-names"))


def name_links_by_title(app: Sphinx, page: str, source: list[str]) -> None:  # noqa: ARG001
    """A link that the pages name by its file, as `embedding.md`, shows the title of the page or section."""
    source[0] = re.sub(r"\[[\w-]+\.md\]\((?=[\w-]+\.md)", "[](", source[0])


def keep_together(app: Sphinx, doctree: nodes.document) -> None:  # noqa: ARG001
    """No line ends inside `90.1 ± 0.4` or inside a short name such as `--commercial-only`."""
    for text in list(doctree.findall(nodes.Text)):
        if " ± " in text and not isinstance(text.parent, (nodes.literal, nodes.literal_block)):
            text.parent.replace(text, nodes.Text(text.replace(" ± ", "\u00a0±\u00a0")))
    for name in doctree.findall(nodes.literal):
        if len(name.astext()) <= LONGEST_NAME:
            name["classes"].append("short")


def mark_wide_pictures(app: Sphinx, doctree: nodes.document) -> None:
    """Pictures whose captions cannot be read at the width of a phone; the style sheet lets them scroll."""
    for image in doctree.findall(nodes.image):
        with Image.open(app.srcdir / image["uri"]) as picture:
            if picture.width > WIDEST_FOR_A_PHONE:
                image["classes"].append("wide")


def setup(app: Sphinx) -> None:
    """Make the two directives known, the links, what stays on one line, and wide pictures."""
    app.connect("source-read", name_links_by_title)
    app.connect("doctree-read", keep_together)
    app.connect("doctree-read", mark_wide_pictures)
    app.add_directive("command-reference", CommandReference)
    app.add_directive("public-names", PublicNames)
