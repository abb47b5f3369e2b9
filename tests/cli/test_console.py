"""The console: options beside messages, one bar that follows the task, durations of two digits."""

from __future__ import annotations

import io
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pointdistill.cli import console
from pointdistill.cli.console import console_reporter, name_options, print_table, stages_reporter
from pointdistill.engine.reports.tables import Table
from pointdistill.reporter import format_bytes, format_duration, format_speed, plural
from tests.cli.typed import typed


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


def test_a_pipe_gets_the_progress_in_lines_at_most_one_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A part takes 7 s: the first line comes after ten seconds, the next a minute later, the last at the end."""
    clock, file = [0.0], io.StringIO()
    monkeypatch.setattr(console, "SECONDS_BEFORE_LINES", 10.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(console, "_stderr", lambda: Console(file=file))
    with console_reporter() as reporter:
        for done in range(13):
            reporter.progress("reading", done, 12)
            clock[0] += 7.0
        reporter.progress("a.zip", 5e6, 20e6, unit="bytes")
        clock[0] += 10.0
        reporter.progress("a.zip", 10e6, 20e6, unit="bytes")
    assert file.getvalue().splitlines() == [
        "reading: 2 of 12, about 70 s left",
        "reading: 11 of 12, about 7 s left",
        "reading: 12 of 12",
        "a.zip: 10.0 of 20.0 MB, about 10 s left",
    ]


def test_quiet_leaves_results_warnings_and_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = io.StringIO()
    monkeypatch.setattr(console, "_stderr", lambda: Console(file=file))
    monkeypatch.setattr(console, "SECONDS_BEFORE_LINES", 0.0)
    console.set_quiet(True)
    try:
        with stages_reporter() as reporter:
            reporter.progress("making shapes", 3, 5)
            reporter.say("encoder: runs/a")
            logging.getLogger("pointdistill").warning("the disk is full")
        console.echo("a result")
        console.echo("next: something")
        console.echo("note: z was assumed", err=True)
        console.echo("error: a.ply: damaged", err=True)
        console.say_duration(100.0)
    finally:
        console.set_quiet(False)
    assert file.getvalue() == "the disk is full\n"
    assert capsys.readouterr() == ("a result\n", "error: a.ply: damaged\n")


def test_every_command_that_works_takes_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = typed(capsys)
    code, loud, _ = run("recipes")
    assert (code, loud.splitlines()[-1][:5]) == (0, "next:")
    code, quiet, _ = run("recipes", "--quiet")
    assert quiet == "".join(line for line in loud.splitlines(keepends=True) if line[:5] != "next:")
    assert run("recipes", "-q")[1] == quiet
    assert run("recipes")[1] == loud, "it is said anew for each command"


def test_long_work_ends_with_its_duration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LONG_SECONDS", 0.0)
    last = typed(capsys)("recipes", "tiny")[2].splitlines()[-1]
    assert re.fullmatch(r"took \d+ s", last)


def test_counts_and_speeds() -> None:
    assert [plural(n, "shape") for n in (0, 1, 2000)] == ["0 shapes", "1 shape", "2,000 shapes"]
    assert plural(2, "category", "categories") == "2 categories"
    sizes = [format_bytes(x) for x in (1, 512, 7400, 5_300_000, 230e6, 1.24e9)]
    assert sizes == ["1 byte", "512 bytes", "7.4 kB", "5.3 MB", "230 MB", "1.2 GB"]
    assert [format_speed(x) for x in (0.0312, 0.25, 9.9, 9.96, 1204.4)] == [
        "0.031",
        "0.25",
        "9.9",
        "10",
        "1,204",
    ]


LONG = "a sentence of several words that does not fit into the narrow column which is left for it"
TABLE = Table(
    "Names",
    ("name", "mode", "what it is"),
    (("a-name-to-be-copied", "dual", LONG), ("b", "cls", "short")),
    ("a note",),
)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_table_is_never_cut(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prose is wrapped; where even that has no room, a row is printed as lines of its own."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(TABLE)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    lines = plain.splitlines()
    assert any("a-name-to-be-copied" in line for line in lines)
    assert "…" not in plain
    assert (
        " ".join(" ".join(line.split()[2 * ("dual" in line) :]) for line in lines).count(
            "column which is left"
        )
        or "  what it is: " + LONG in lines
    )
    if width >= 60:
        assert max(len(line.rstrip()) for line in lines) <= width
    assert lines[-2:] == ["a note", ""]


def test_many_columns_are_not_squeezed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nine columns that need 133 characters, in a terminal of 120."""
    names = tuple(f"a-column-{number:02}" for number in range(9))
    row = (*(f"{number}-{'x' * 9}" for number in range(8)), "y" * 29)
    monkeypatch.setenv("FORCE_COLOR", "1")
    for width, shown in (("120", f"  a-column-08: {'y' * 29}\n"), ("140", "y" * 29 + "\n")):
        monkeypatch.setenv("COLUMNS", width)
        print_table(Table("Many", names, (row,)), whole=True)
        out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
        assert shown in out
        assert all(cell in out for cell in row)


def test_headings_and_notes_are_broken_between_words_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Columns whose headings alone would not fit beside each other do so; what may be copied stays in one line."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    row = ("a-name-to-be-copied", "linear (4 augmented copies)", "256 / 16", "13.33")
    columns = ("features", "protocol", "points / patches of a view", "best epoch of all %")
    note = "To know it, run `pointdistill evaluate scanobjectnn --stand-in` once more."
    print_table(Table("Some", columns, (row,), (note,)))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 60
    assert any(line.startswith("a-name-to-be-copied  linear (4") for line in lines)
    assert "  256 / 16  " in "\n".join(lines)
    command = "`pointdistill evaluate scanobjectnn --stand-in`"
    assert lines[-3:-1] == ["To know it, run", f"{command} once more."]


def test_a_pipe_gets_a_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(TABLE)
    assert capsys.readouterr().out == (
        f"Names\nname\tmode\twhat it is\na-name-to-be-copied\tdual\t{LONG}\nb\tcls\tshort\n- a note\n\n"
    )


def test_json_has_no_number_that_json_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    record = {"a": np.float32("nan"), "b": np.array([1.0, np.inf]), "c": np.int64(3)}
    console.print_json("test", record)
    told = json.loads(capsys.readouterr().out)
    assert (told["a"], told["b"], told["c"]) == (None, [1.0, None], 3)
