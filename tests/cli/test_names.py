"""Names from outside that could steer a terminal reach it only as escapes, in every kind of output."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
from rich.console import Console

from pointdistill.cli import console, main
from pointdistill.cli.console import (
    console_reporter,
    echo,
    echo_lines,
    print_error,
    print_table,
    warnings_as_lines,
)
from pointdistill.engine.reports.tables import Table
from pointdistill.errors import one_line

STEERING = "\x1b[2J\x1b]0;t\x07\x9b1m\r\u202e\u2066\u2028\x7f\udcff\U000e0041"
BOX = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 2 4\n"


def harmless(text: str, *, lines: int) -> bool:
    return not (set(STEERING) - set("[2Jt]0;1m")) & set(text) and text.count("\n") == lines


def test_escapes_are_those_of_json() -> None:
    assert one_line("chair_ü 椅子\u3000$") == "chair_ü 椅子\u3000$", "nothing else is changed"
    assert one_line("a\x1b\nb") == r"a\u001b\u000ab"
    written = json.dumps([STEERING], ensure_ascii=False)
    assert json.loads(one_line(written)) == [STEERING]
    assert harmless(one_line(STEERING), lines=0)


def test_lines_errors_warnings_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    echo(f"next: {STEERING}")
    echo_lines(json.dumps({STEERING: 1}, indent=1, ensure_ascii=False))
    captured = capsys.readouterr()
    assert harmless(captured.out, lines=4)
    with warnings_as_lines():
        # Without half of a surrogate pair: pytest captures it too, and cannot send it between processes.
        logging.getLogger("pointdistill").warning("%s", STEERING.replace("\udcff", ""))
    print_error(f"error: {STEERING}\nnext: something")
    assert harmless(capsys.readouterr().err, lines=2)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_tables(
    terminal: bool, whole: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "400")
    name = f"{STEERING}a|b"
    print_table(Table(name, (name, "n"), ((name, "1"),), (name,)), whole=whole)
    shown = capsys.readouterr().out
    assert r"\u001b[2J" in shown
    assert terminal or "a|b\t1\n" in shown, "in a file, a tab between cells"
    for _ in range(9):  # what rich itself adds, on a terminal only
        for own in ("\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[3m"):
            shown = shown.replace(own, "")
    assert "\x1b" not in shown
    assert not set("\x9b\r\u202e\x7f\udcff") & set(shown)
    assert r"\u000a" not in shown, "the lines of a table stay lines"


def test_lines_and_tasks_of_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    made = Console(file=file, force_terminal=True, color_system=None, width=300)
    monkeypatch.setattr(console, "_stderr", lambda: made)
    with console_reporter() as reporter:
        reporter.progress(f"reading {STEERING}", 1, 2, note=STEERING)
        reporter.say(STEERING)
        # Without half of a surrogate pair: pytest captures it too, and cannot send it between processes.
        logging.getLogger("pointdistill").warning("%s", STEERING.replace("\udcff", ""))
        assert reporter._bar.tasks[0].description == f"reading {one_line(STEERING)}"
        assert reporter._bar.tasks[0].fields["note"] == one_line(STEERING)
    assert "\x1b]0" not in file.getvalue()
    assert file.getvalue().count(r"\u001b]0;t\u0007") >= 2


def test_files_with_such_names_are_sampled_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    good, bad = f"{STEERING[:-1]}\n.obj", f"bad{STEERING[:-1]}.obj"
    Path(good).write_text(BOX)
    Path(bad).write_text("f 1 2 9\n")
    with pytest.raises(SystemExit) as stop:
        main(["sample", good, bad, "--points", "8", "--output", f"out{STEERING[:4]}"])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert harmless(captured.out, lines=1)
    assert harmless(captured.err, lines=2)
    assert len(list(Path(f"out{STEERING[:4]}").iterdir())) == 1
    with pytest.raises(SystemExit):
        main(["sample", STEERING, "--colour\x1b[31m"])
    assert harmless(capsys.readouterr().err, lines=1)
