"""The examples end in one line on wrong input, as the commands do."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from tests.engine.labelled import saved_encoder

EXAMPLES = Path(__file__).parents[1] / "examples"


def refusal(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(EXAMPLES / name))
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "arguments", "line"),
    [
        ("read_corpus.py", ["nowhere"], "error: nowhere: no such corpus"),
        ("nearest_shapes.py", ["nowhere", "a.obj", "b.obj"], "error: nowhere: no encoder here"),
        ("nearest_shapes.py", ["encoder", "a.obj", "b.obj"], "error: a.obj: cannot be read"),
        ("nearest_shapes.py", ["encoder", "a.obj"], "give an encoder and at least two"),
    ],
)
def test_wrong_input_is_one_line(
    name: str, arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved_encoder(Path("encoder"))
    found = refusal(name, arguments, monkeypatch)
    assert found.startswith(line)
    assert "\n" not in found


def test_each_file_is_nearest_to_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    saved_encoder(Path("encoder"))
    rows = [f"{i % 7} {i % 5} {i % 3}\n" for i in range(120)]
    Path("a.xyz").write_text("".join(rows))
    Path("a2.xyz").write_text("".join(rows))
    Path("b.xyz").write_text("".join(f"{i * i % 11} 0.1 {i % 2}\n" for i in range(120)))
    monkeypatch.setattr(sys, "argv", ["nearest_shapes.py", "encoder", "a.xyz", "b.xyz", "a2.xyz"])
    runpy.run_path(str(EXAMPLES / "nearest_shapes.py"))
    assert "a.xyz: nearest is a2.xyz (cosine " in capsys.readouterr().out
