"""The examples end in one line on wrong input, as the commands do."""

from __future__ import annotations

import functools
import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import pointdistill
from tests.cli.typed import typed
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


def compiled_encoder(folder: Path, *flags: str) -> Path:
    """The C++ example as a program."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++, which compiles the example, is not installed")
    program = folder / "encode"
    strict = ("-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror")
    source = str(EXAMPLES / "cpp" / "encode.cpp")
    subprocess.run([compiler, *strict, source, *flags, "-o", str(program)], check=True)
    return program


def test_the_c_plus_plus_program_samples_the_same_points(tmp_path: Path) -> None:
    """Compiled against a stub of ONNX Runtime, so that the points are compared wherever there is a compiler."""
    stub = Path(__file__).with_name("onnxruntime_stub")
    program = compiled_encoder(tmp_path, f"-I{stub}")
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
        (["-", "0", "0", "a.stl"], "POINTS must be a whole number from 1 to 10000000, not '0'"),
        (["-", "5", "4294967296", "a.stl"], "SEED must be a whole number from 0 to 4294967295"),
    ):
        assert line in refused_in_one_line(program, *words)


def refused_in_one_line(program: Path, *words: str, library: str = "") -> str:
    environment = os.environ | {"LD_LIBRARY_PATH": library}
    refused = subprocess.run(
        [program, *words], capture_output=True, text=True, check=False, env=environment
    )
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1
    return refused.stderr


def onnxruntime_headers() -> Path | None:
    """The folder of ONNX Runtime's C++ headers: below $ORT, or where Debian and its own archive put them."""
    places = [Path(os.environ["ORT"], "include")] if os.environ.get("ORT") else []
    places += [Path("/usr/include"), Path("/usr/local/include")]
    folders = [folder for place in places for folder in (place, place / "onnxruntime")]
    return next(
        (folder for folder in folders if (folder / "onnxruntime_cxx_api.h").is_file()), None
    )


def onnxruntime_library() -> Path:
    """ONNX Runtime's library: below $ORT, or else the one in the Python package."""
    pattern = "libonnxruntime.so*"
    found = sorted(Path(os.environ["ORT"], "lib").glob(pattern)) if os.environ.get("ORT") else []
    package = importlib.util.find_spec("onnxruntime")
    if package is not None and package.submodule_search_locations:
        found += sorted(Path(package.submodule_search_locations[0], "capi").glob(pattern))
    if not found:
        pytest.skip("the library of ONNX Runtime was not found; name its folder in ORT")
    return found[0]


def test_the_c_plus_plus_program_encodes_as_python_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With ONNX Runtime's headers: in $ORT/include, or of Debian's package libonnxruntime-dev."""
    headers = onnxruntime_headers()
    if headers is None:
        pytest.skip("no C++ headers of ONNX Runtime here; name the folder above include in ORT")
    # The names that the linker and the loader ask for.
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (tmp_path / name).symlink_to(onnxruntime_library())
    folder = str(tmp_path)
    program = compiled_encoder(tmp_path, "-isystem", str(headers), f"-L{folder}", "-lonnxruntime")
    model = tmp_path / "model"
    words = ("--format", "onnx", "--points", "1024", "--encoder", "procedural-mini")
    assert typed(capsys)("export", str(model), *words)[0] == 0
    files = random_stl_files(tmp_path)
    environment = os.environ | {"LD_LIBRARY_PATH": folder}
    run = functools.partial(
        subprocess.run, capture_output=True, text=True, check=True, env=environment
    )
    given = (str(model / "model.onnx"), "1024", "7", *map(str, files))
    rows = run([program, "--features", *given]).stdout.splitlines()
    encoder = pointdistill.load_encoder("procedural-mini")
    own = []
    for path, row in zip(files, rows, strict=True):
        points = torch.from_numpy(pointdistill.sample_surface(path, 1024, seed=7))
        with torch.inference_mode():
            output = encoder(points[None])
        own.append(torch.cat([output.cls, output.patches.mean(dim=1)], dim=1)[0].numpy())
        assert np.abs(np.array(row.split(), np.float32) - own[-1]).max() < 1e-4
    unit = np.stack([row / np.linalg.norm(row) for row in own])
    cosines = unit @ unit.T - 3 * np.eye(3)
    for k, line in enumerate(run([program, *given]).stdout.splitlines()):
        said, _, cosine = line.partition(" (cosine ")
        assert said == f"{files[k]}: nearest is {files[cosines[k].argmax()]}"
        assert float(cosine[:-1]) == pytest.approx(cosines[k].max(), abs=1e-3)
    # The model takes 1,024 points.
    wrong = refused_in_one_line(program, given[0], "1000", *given[2:], library=folder)
    assert "Expected: 1024" in wrong
