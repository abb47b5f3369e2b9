"""The quick part of `documented_lines`: what it finds, and that the program accepts each line as it is written."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import typer

from pointdistill.cli import app
from tests.cli.typed import typed
from tests.documented_lines import Line, lines, lines_of, stale_entries

PAGE = """
Text with `pointdistill recipes`, `pointdistill recipes tiny` and `pointdistill search QUERY… [INDEX]`.

```console
pip install . && pointdistill quickstart
# a remark
pointdistill embed my-meshes \\
    --up y     # y up
```

```python
import numpy
```

```json
{}
```
"""


def test_what_is_found_in_a_page(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE)
    assert list(lines_of(tmp_path / "page.md")) == [
        Line("page.md", 2, "pointdistill recipes tiny"),
        Line("page.md", 5, "pip install ."),
        Line("page.md", 5, "pointdistill quickstart"),
        Line("page.md", 5, "pointdistill embed my-meshes      --up y"),
        Line("page.md", 11, "import numpy", python=True),
    ]


def test_no_reason_without_a_line() -> None:
    assert stale_entries(lines()) == []


def test_the_program_accepts_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options, values and numbers of arguments, before anything is read or written."""
    # By the name `pointdistill.cli.sample` goes the command, which hides its module.
    monkeypatch.setattr(sys.modules["pointdistill.cli.sample"], "require_paths", lambda _: None)
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    accepted = 0
    for line in lines():
        for text in (line.text, line.as_run):
            # What follows a pipe, a list or a redirection belongs to the shell.
            ours = re.match(r"pointdistill ([^|<>&]+)", text)
            if ours and not line.python and "evaluate BENCHMARK" not in text:
                name, *words = shlex.split(ours[1])
                commands[name].make_context(name, words)
                accepted += 1
    assert accepted > 150


def test_recipes_that_the_pages_print(capsys: pytest.CaptureFixture[str]) -> None:
    run = typed(capsys)
    texts = {line.as_run for line in lines() if re.match(r"pointdistill recipes [^>]*$", line.text)}
    assert texts >= {"pointdistill recipes adapt", "pointdistill recipes tiny"}
    for text in texts:
        code, out, _ = run(*shlex.split(text)[1:])
        assert code == 0
        assert "batch_size = " in out
