"""STEP through the optional cascadio: the file's own axes, millimetres, assemblies, and hostile files."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.meshes import read_mesh, surface_area
from pointdistill.data.meshes.formats import step
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.errors import DataError
from tests.data.meshes.box import read_surface
from tests.data.meshes.step_text import step_text
from tests.data.source_archives import FROM_Y_UP, WEDGE, WEDGE_FACES, build, ranges

PART = 10 * WEDGE
AREA = 100 * (
    1 + 1.5 + 3 + 3.5
)  # of the wedge's three legs and of the face across, sqrt(6² + 3² + 2²) / 2

needs_cascadio = pytest.mark.skipif(
    importlib.util.find_spec("cascadio") is None, reason="cascadio, an optional extra, is not there"
)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@needs_cascadio
def test_axes_and_millimetres_are_the_files_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The converter writes metres."""
    surface = read_surface(write(tmp_path / "a.STP", step_text(PART, WEDGE_FACES)))
    corners = surface.vertices[surface.faces]
    assert np.allclose(corners.min((0, 1)), 0, atol=1e-5)
    assert np.allclose(corners.max((0, 1)), [10, 20, 30], rtol=1e-6)
    assert surface_area(surface) == pytest.approx(AREA, rel=1e-5)
    # Six times the volume under the faces, seen from outside: a mirror image would turn its sign.
    assert np.linalg.det(corners).sum() == pytest.approx(6000, rel=1e-5)
    assert surface.declared_up is None
    assert capfd.readouterr() == ("", "")


@needs_cascadio
def test_an_assembly_in_inches_puts_its_parts_in_place(tmp_path: Path) -> None:
    """The second copy's z points along x and its x along y: new (x, y, z) = old (z, x, y)."""
    moved = ((100, 0, 0), (0, 0, 1), (1, 0, 0))
    turned = ((0, 200, 0), (1, 0, 0), (0, 1, 0))
    text = step_text(PART, WEDGE_FACES, unit="inch", places=[moved, turned])
    surface = read_surface(write(tmp_path / "a.step", text))
    assert surface_area(surface) == pytest.approx(2 * AREA * 25.4**2, rel=1e-5)
    inches = surface.vertices / 25.4
    near, far = inches[inches[:, 1] < 100], inches[inches[:, 1] > 100]
    assert np.allclose([near.min(0), near.max(0)], [[100, 0, 0], [110, 20, 30]], atol=1e-4)
    assert np.allclose([far.min(0), far.max(0)], [[0, 200, 0], [30, 210, 20]], atol=1e-4)


@needs_cascadio
def test_curved_faces_are_close_to_their_shape(tmp_path: Path) -> None:
    """A sphere of radius 50: no corner off it, no triangle's middle more than half a percent inside."""
    path = write(tmp_path / "a.step", step_text(radius=50))
    surface, again = read_surface(path), read_surface(path)
    corners = surface.vertices[surface.faces]
    assert np.allclose(np.linalg.norm(corners, axis=2), 50, rtol=1e-4)
    assert np.linalg.norm(corners.mean(axis=1), axis=1).min() > 0.995 * 50
    assert surface_area(surface) == pytest.approx(4 * math.pi * 50**2, rel=0.005)
    np.testing.assert_array_equal(corners, again.vertices[again.faces])


@needs_cascadio
def test_a_folder_with_step_files_becomes_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts" / "a.step", step_text(WEDGE, WEDGE_FACES))
    corpus = build("folder", tmp_path / "corpus", path=tmp_path / "parts", up="y")
    assert ranges(corpus.points(0)) == FROM_Y_UP


@needs_cascadio
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-30], "not a readable STEP file .ERR StepFile"),
        (lambda text: text.replace("PLANE('',#", "PLANE('',#9", 1), "Unresolved Reference"),
    ],
    ids=["no end", "reference"],
)
def test_damage_is_one_line(
    change: object, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert callable(change)
    path = write(tmp_path / "a.step", change(step_text(PART, WEDGE_FACES)))
    with pytest.raises(DataError, match=message) as caught:
        read_mesh(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert capfd.readouterr() == ("", "")


def test_another_format_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected ISO-10303-21, got 'solid x'"):
        read_mesh(write(tmp_path / "a.step", "solid x"))


def test_without_the_extra_the_message_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'pointdistill\[step\]'"):
        read_mesh(write(tmp_path / "a.step", step_text(PART, WEDGE_FACES)))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os; os.kill(os.getpid(), 6)", r"the converter ended with -6 \(no message\)"),
        ("import os; os.kill(os.getpid(), 9)", "does not fit into memory"),
        ("import time; time.sleep(60)", "not converted within 1 seconds"),
        ("bytearray(2 << 40)", "does not fit into memory"),
        (
            "raise ValueError('\\x1b[31mx')",
            r"the converter ended with 1 \(ValueError: x\)",
        ),
        ("print()", r"expected|GLB|glTF"),
        ("", "nothing to convert"),
    ],
    ids=["crash", "killed", "hang", "memory", "exception", "chatter", "nothing"],
)
def test_a_converter_that_fails_costs_its_file_alone(
    program: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program in the converter's place does what a stranger's file can make it do."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(step, "_PROGRAM", write(tmp_path / "program.py", program))
    monkeypatch.setattr(step, "_MOST_SECONDS", 1 if "sleep" in program else 60)
    monkeypatch.setattr(step, "_PATIENCE_SECONDS", 0)
    with pytest.raises(DataError, match=message) as caught:
        read_mesh(write(tmp_path / "a.step", step_text(PART, WEDGE_FACES)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("program", "seconds", "failure"),
    [
        ("import os; os.kill(os.getpid(), 9)", 60, "memory"),
        ("import os; os.kill(os.getpid(), 14)", 60, "deadline"),
        ("import time; time.sleep(60)", 0.5, "deadline"),
    ],
    ids=["killed", "alarm", "no alarm"],
)
def test_a_build_can_tell_what_was_no_fault_of_the_file(
    program: str,
    seconds: float,
    failure: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The system was out of memory, or the machine too slow."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(step, "_PROGRAM", write(tmp_path / "program.py", program))
    monkeypatch.setattr(step, "_MOST_SECONDS", seconds)
    monkeypatch.setattr(step, "_PATIENCE_SECONDS", 0)
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts" / "a.step", step_text(PART, WEDGE_FACES))
    np.save(tmp_path / "parts" / "b.npy", np.arange(192, dtype=np.float32).reshape(64, 3))
    source = open_source("folder", SourceRequest(path=tmp_path / "parts"))
    report = build_corpus(source, tmp_path / "corpus", points=64, workers=0)
    assert (report.kept, report.retryable) == (1, {failure: 1})


@needs_cascadio
def test_the_converter_keeps_its_limits_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever started it may be gone. 32 MiB are too few to load its libraries."""
    path = write(tmp_path / "a.step", step_text(PART, WEDGE_FACES))
    monkeypatch.setattr(step, "_MOST_MEMORY_BYTES", 32 << 20)
    with pytest.raises(DataError, match=r"memory|the converter ended"):
        read_mesh(path)
