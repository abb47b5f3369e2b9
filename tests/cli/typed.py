"""Commands as they are typed, run in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pointdistill.cli import main

Run = Callable[..., tuple[int, str, str]]
"""Takes the words of a command; its exit code, output and errors."""


def typed(capsys: pytest.CaptureFixture[str], *before: str) -> Run:
    """A function that types ``before`` and then its own words."""

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([*before, *words])
        written = capsys.readouterr()
        return int(stop.value.code or 0), written.out, written.err

    return run
