"""STEP (ISO 10303-21: AP203, AP214, AP242) with its curved faces cut into triangles, the assembly in place.

cascadio does the work: OpenCASCADE as packaged by trimesh's authors, an optional extra of 30 MB. It runs in a
process of its own, because its parser is C++ and the file may come from anywhere. Coordinates are in millimetres,
into which it converts whatever unit the file states (parts of one assembly may state different ones), along the
file's own axes; the format declares no up axis.
"""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import IO, Final, NoReturn

import numpy as np

from pointdistill.data.files.packed_tars import temporary_folder
from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.formats import gltf
from pointdistill.data.meshes.formats.content import excerpt
from pointdistill.data.meshes.records import MeshLimits, Part, RawMesh
from pointdistill.errors import DataError

_PROGRAM: Final = Path(__file__).with_name("step_convert.py")
_START: Final = b"ISO-10303-21"
_MILLIMETRES: Final = np.diag([1000.0, 1000.0, 1000.0, 1.0])
"""From the converter's metres."""

_MOST_SECONDS: Final = 600
_MOST_MEMORY_BYTES: Final = 4 * 2**30
_PATIENCE_SECONDS: Final = 5  # beyond the converter's own alarm
_OUT_OF_MEMORY: Final = ("MemoryError", "bad_alloc", "out of memory")
_DECORATION: Final = re.compile(r"\x1b\[[0-9;]*m|\*+")
"""Colours and rules in the kernel's messages."""

_LONGEST_LINE: Final = 400


def read(path: Path, limits: MeshLimits) -> RawMesh:
    """Read the solids and shells of a .step or .stp file.

    Raises:
        DataError: if cascadio is not installed, or the file is damaged, has no faces, or costs too much to
            convert.
    """
    check_size("bytes", path.stat().st_size, limits.document_bytes)
    with path.open("rb") as file:
        start = file.read(256)
    if _START not in start:
        msg = f"expected {_START.decode()}, got {excerpt(start[:16])}; the file is damaged or of another format"
        raise DataError(msg)
    if importlib.util.find_spec("cascadio") is None:
        msg = "STEP needs cascadio; pip install 'pointdistill[step]', or export the model as GLB or OBJ"
        raise DataError(msg)
    with temporary_folder() as folder:
        converted = Path(folder, "converted.glb")
        _convert(path, converted, limits)
        raw = gltf.read(converted, limits)
    return RawMesh([_in_millimetres(part) for part in raw.parts])


def _convert(path: Path, converted: Path, limits: MeshLimits) -> None:
    """Write a STEP file as GLB.

    Raises:
        DataError: if the converter ends early, complains, or gives nothing; from a TimeoutError if it took
            too long.
        MemoryError: if it asks for more than it may have, or the system ends it.
    """
    arguments = [_MOST_SECONDS, _MOST_MEMORY_BYTES, limits.file_bytes]
    with (
        path.open("rb") as source,
        converted.open("wb") as target,
        converted.with_name("messages").open("w+b") as messages,
    ):
        try:
            # -P, or modules beside the program would shadow others of the same name.
            done = subprocess.run(
                [sys.executable, "-P", str(_PROGRAM), *map(str, arguments)],
                stdin=source,
                stdout=target,
                stderr=messages,
                timeout=_MOST_SECONDS + _PATIENCE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            _refuse_slow()
        complaint, last = _read_messages(messages)
    _check_end(done.returncode, last)
    # The converter carries on with what it understood; but a part of a shape is not the shape.
    if complaint or not converted.stat().st_size:
        cause = complaint or "nothing to convert"
        msg = f"not a readable STEP file ({cause}); it is damaged or cut short, export it again"
        raise DataError(msg)


def _read_messages(messages: IO[bytes]) -> tuple[str, str]:
    """The first line that is an error of the kernel, and the last line; empty if there is none."""
    complaint = last = ""
    messages.seek(0)
    while line := messages.readline(_LONGEST_LINE):
        text = " ".join(_DECORATION.sub(" ", line.decode("utf-8", "replace")).split())
        last = text or last
        if not complaint and "ERR " in text:
            complaint = text
    return complaint, last


def _check_end(code: int, last: str) -> None:
    """Raise if the converter did not finish: its exit code and the last line that it wrote tell why.

    Raises:
        DataError: if it took too long, see `_refuse_slow`, or crashed.
        MemoryError: if it asked for more memory than it may have.
    """
    if not code:
        return
    if code == -getattr(signal, "SIGALRM", 0):
        _refuse_slow()
    # SIGKILL is how the system ends a process when memory runs out.
    if code == -getattr(signal, "SIGKILL", 0) or any(word in last for word in _OUT_OF_MEMORY):
        raise MemoryError
    msg = (
        f"the converter ended with {code} ({last or 'no message'}); export the model as GLB or OBJ"
    )
    raise DataError(msg)


def _in_millimetres(part: Part) -> Part:
    matrix = np.eye(4) if part.matrix is None else part.matrix
    return replace(part, matrix=_MILLIMETRES @ matrix)


def _refuse_slow() -> NoReturn:
    """Raise the DataError for a file that takes too long, from a TimeoutError: another machine may be faster."""
    msg = f"not converted within {_MOST_SECONDS} seconds; simplify it, or export it as GLB or OBJ"
    raise DataError(msg) from TimeoutError(msg)
