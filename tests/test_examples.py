"""The examples end in one line on wrong input, as the commands do."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import pointdistill
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


def write_stl(path: Path, triangles: NDArray[np.float32]) -> None:
    """A binary STL file of triangles (F, 3, 3)."""
    rows = np.zeros(
        len(triangles), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("rest", "<u2")]
    )
    rows["corners"] = triangles
    path.write_bytes(bytes(80) + np.uint32(len(triangles)).tobytes() + rows.tobytes())


def random_stl_files(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    files = []
    for number, faces in enumerate((12, 300, 2000)):
        files.append(folder / f"shape é {number} <b>.stl")
        triangles = rng.normal(size=(faces, 1, 3)) + rng.normal(size=(faces, 3, 3)) / 3
        write_stl(files[-1], triangles.astype(np.float32) * (number + 1))
    return files


def test_the_c_plus_plus_program_samples_the_same_points(tmp_path: Path) -> None:
    """Compiled against a stub of ONNX Runtime, so that the points are compared and no model is run."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++, which compiles the example, is not installed")
    program = tmp_path / "encode"
    stub = Path(__file__).with_name("onnxruntime_stub")
    flags = ("-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror")
    source = str(EXAMPLES / "cpp" / "encode.cpp")
    subprocess.run([compiler, *flags, f"-I{stub}", source, "-o", str(program)], check=True)
    for path in random_stl_files(tmp_path):
        done = subprocess.run([program, "-", "500", "7", path], capture_output=True, check=True)
        rows = [line.split() for line in done.stdout.decode().splitlines()]
        expected = pointdistill.sample_surface(path, 500, seed=7)
        assert np.array_equal(np.array(rows, np.float32), expected)
    (tmp_path / "bad.stl").write_bytes(b"solid")
    for words, line in (
        (["-", "5", "0", str(tmp_path / "bad.stl")], "not a binary STL file"),
        (["-", "5", "0", str(tmp_path / "none.stl")], "cannot be read; check its name"),
        (["model.onnx", "5", "0", "a.stl"], "compiled without ONNX Runtime"),
    ):
        refused = subprocess.run([program, *words], capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: ")
        assert line in refused.stderr
        assert refused.stderr.count("\n") == 1
