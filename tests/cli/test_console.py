"""The console: options beside messages, one bar that follows the task, durations of two digits."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pointdistill.cli import console
from pointdistill.cli.console import console_reporter, name_options, stages_reporter
from pointdistill.reporter import format_duration


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal in the place of stderr shows."""
    file = io.StringIO()
    made = Console(file=file, force_terminal=True, width=120)
    monkeypatch.setattr(console, "_stderr", lambda: made)
    return file


def test_options_stand_behind_the_message() -> None:
    assert name_options("too few", ()) == "too few"
    assert name_options("too few", ("batch_size", "run")) == "too few (--batch-size, --run)"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (40, "40 s"),
        (1500, "25 min"),
        (7199, "120 min"),
        (11520, "3.2 h"),
        (36000, "10 h"),
        (864000, "10 days"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_bar_that_follows_the_task_is_gone_in_the_end(screen: io.StringIO) -> None:
    with console_reporter() as reporter:
        reporter.progress("reading", 3, 5, unit="shapes")
        reporter.progress("writing", 1)
        reporter.say("a [line]", "up")
        assert [task.description for task in reporter._bar.tasks] == ["writing"]
        assert reporter._bar.tasks[0].total is None
    assert "a [line] (--up)\n" in screen.getvalue()


def test_stages_stay_each_with_a_full_bar(screen: io.StringIO) -> None:
    with stages_reporter() as reporter:
        reporter.progress("making shapes", 0)
        reporter.progress("making shapes", 3, 5)
        reporter.progress("pretraining", 1, 2, note="loss 4.2")
    assert [(task.description, task.percentage) for task in reporter._bar.tasks] == [
        ("making shapes", 100.0),
        ("pretraining", 100.0),
    ]
    assert "loss 4.2" in screen.getvalue()


def test_a_file_gets_a_line_for_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(console, "_stderr", lambda: Console(file=file))
    with stages_reporter() as reporter:
        reporter.progress("making shapes", 3, 5)
        reporter.progress("making shapes", 4, 5)
        reporter.progress("pretraining", 1, 2)
    assert file.getvalue() == "making shapes\npretraining\n"
