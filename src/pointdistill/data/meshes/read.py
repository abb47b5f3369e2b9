"""Any file, or a mesh in memory -> a surface or a cloud; what all formats have in common is here."""

from __future__ import annotations

import errno
import importlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.files.archive import open_archive
from pointdistill.data.meshes.checks import assemble, transform
from pointdistill.data.meshes.formats.points import is_prose
from pointdistill.data.meshes.records import Floats, MeshLimits, Part, PointSet, RawMesh, Surface
from pointdistill.errors import DataError
from pointdistill.reporter import plural

_PACKAGE = "pointdistill.data.meshes.formats"
_LFS_MARK = b"version https://git-lfs.github.com/spec/"
_PAGE_MARKS = (b"<?xml", b"<!doctype", b"<html", b"<error")
_XML_SUFFIXES = (".dae", ".3dxml")

FORMATS = MappingProxyType(
    {
        ".obj": "obj",
        ".off": "off",
        ".ply": "ply",
        ".stl": "stl",
        ".glb": "gltf",
        ".gltf": "gltf",
        ".dae": "collada",
        ".3mf": "threemf",
        ".3dxml": "threedxml",
        ".step": "step",
        ".stp": "step",
        ".npy": "points",
        ".npz": "points",
        ".xyz": "points",
        ".txt": "points",
        ".csv": "points",
        ".pts": "points",
        ".pcd": "pcd",
        ".las": "las",
        ".laz": "las",
        ".e57": "e57",
    }
)
"""Accepted file endings, in lower case, and the module of `formats` that reads each."""

MESH_SUFFIXES = frozenset(
    {".obj", ".off", ".ply", ".stl", ".glb", ".gltf", ".dae", ".3mf", ".3dxml", ".step", ".stp"}
)
"""Endings of files that can hold a surface; the others hold only points."""

_UNREAD = (
    "sldprt sldasm slddrw dwg dxf dgn ipt iam prt catpart catproduct cgr jt x_t x_b sat sab iges igs brep fcstd "
    "f3d 3dm 3ds fbx blend max c4d skp lwo wrl vrml x3d usd usda usdc usdz abc rvt rfa ifc vtp"
)
UNREAD_SUFFIXES = frozenset(f".{ending}" for ending in _UNREAD.split())
"""Endings of files that hold shapes too, in formats that are not read: a line says so of folders with them."""

_MOST_PROSE = 5
"""Most text files to name in a line."""

Given = TypeVar("Given")
Number = TypeVar("Number", np.float64, np.int64)


class _Reader(Protocol):
    def read(self, path: Path, limits: MeshLimits) -> RawMesh: ...


def read_mesh(
    path: str | os.PathLike[str], *, repair: bool = False, limits: MeshLimits | None = None
) -> Surface | PointSet:
    """Read a mesh with all transforms of its scene applied, or a point cloud, in the file's own frame.

    Args:
        path: a file that ends in one of `FORMATS`, in any case.
        repair: leave out faces and points that cannot be used, instead of refusing the file; the result
            says how many.
        limits: largest file and scene that are accepted.

    Raises:
        DataError: if the file is missing, damaged, empty, too large, or not what its name says. The message is
            one line that names the file, the cause and how many faces or points it concerns.
    """
    path = Path(path)
    limits = limits or MeshLimits()
    try:
        _check_file(path)
        reader = _reader(path)
        # Damaged numbers overflow, and some NaN signal: what is not finite is counted and refused by the checks.
        with np.errstate(over="ignore", invalid="ignore"):
            return assemble(reader.read(path, limits), repair=repair, limits=limits)
    except DataError as error:
        raise DataError(printable_line(f"{path}: {error}"), settings=error.settings) from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # a damaged archive refers to a place before its beginning
            msg = f"{path}: refers to a place that is not in it; it is damaged, copy or export it again"
            raise DataError(printable_line(msg)) from error
        msg = f"{path}: cannot be read ({error.strerror or error}); check that it is there and yours to read"
        raise DataError(printable_line(msg)) from error
    except MemoryError as error:
        msg = f"{path}: does not fit into memory; simplify or split the file"
        raise DataError(printable_line(msg)) from error
    except Exception as error:
        # A file from anywhere can break a reader's assumptions in ways that no list of exceptions covers, and
        # one file must not end a batch of thousands.
        kind = path.suffix.lower().lstrip(".").upper()
        cause = (
            f"{error} is missing"
            if isinstance(error, KeyError)
            else f"{type(error).__name__}: {error}"
        )
        msg = f"{path}: not a readable {kind} file ({cause}); it is damaged or of another format, export it again"
        raise DataError(printable_line(msg)) from error


def _reader(path: Path) -> _Reader:
    module = FORMATS.get(path.suffix.lower())
    if module is None:
        ending = f"files ending in {path.suffix!r}" if path.suffix else "files without an ending"
        accepted = ", ".join(ending[1:] for ending in FORMATS)
        msg = f"{ending} are not read, accepted are {accepted}; export the model as one of them"
        raise DataError(msg)
    return cast("_Reader", importlib.import_module(f"{_PACKAGE}.{module}"))


def _check_file(path: Path) -> None:
    """Refuse folders, devices, broken links, empty files, and what Git LFS leaves in place of a file."""
    if path.is_symlink() and not path.exists():
        msg = "is a broken link; put the file there that it stands for"
        raise DataError(msg)
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        msg = "is a folder; name the files in it"
        raise DataError(msg)
    if not stat.S_ISREG(status.st_mode):
        msg = "is a device or a pipe, not a file; save its content to a file"
        raise DataError(msg)
    if not status.st_size:
        msg = "is empty (0 bytes); copy or export it again"
        raise DataError(msg)
    with path.open("rb") as file:
        start = file.read(200)
        if start.startswith(_LFS_MARK):
            msg = f"is a Git LFS pointer ({status.st_size} bytes), not the file; fetch it with `git lfs pull`"
            raise DataError(msg)
    page = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGE_MARKS)
    if page and path.suffix.lower() not in _XML_SUFFIXES:
        shown = start.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")[:60]
        msg = (
            f"is an XML or HTML page ({shown}…), such as a server sends in place of a file; download the file "
            "again"
        )
        raise DataError(msg)


def files_in_folders(
    given: Iterable[Given],
    *,
    say: Callable[[str], object],
    leave_out: Path | None = None,
) -> list[Given | Path]:
    """Every item, with a folder replaced by all mesh and point files below it, in the order of their names.

    Hidden files and folders are left out, and so are text files without points, and ``leave_out``, the output of
    the caller. ``say`` receives a line about the text files, and one about formats that are not read.

    Raises:
        DataError: if a folder holds no such file.
    """
    found: list[Given | Path] = []
    for item in given:
        if not isinstance(item, Path) or not item.is_dir():
            found.append(item)
            continue
        with open_archive(item, absent=f"{item}: no such folder; check its name") as folder:
            # What cannot be read is refused one by one, and not missing without a word.
            names = sorted((*folder.names, *folder.irregular))
        files = [item / name for name in names if is_shape_name(name)]
        prose = [file for file in files if is_prose(file)]
        files = [file for file in files if file not in set(prose)]
        if leave_out is not None:
            output = os.path.realpath(leave_out)
            files = [file for file in files if not _is_in(os.path.realpath(file), output)]
        if not files:
            raise DataError(no_shape_in(item, names))
        found += files
        for line in not_shapes([str(file) for file in prose], names):
            say(line)
    return found


def not_shapes(prose: Sequence[str], names: Iterable[str]) -> list[str]:
    """What of a folder is not read, in lines.

    Args:
        prose: text files without points.
        names: all files; those of `UNREAD_SUFFIXES` are counted.
    """
    lines = []
    if prose:
        more = f" and {len(prose) - _MOST_PROSE:,} more" if len(prose) > _MOST_PROSE else ""
        shown = ", ".join(prose[:_MOST_PROSE])
        lines.append(f"left out: {plural(len(prose), 'text file')} without points ({shown}{more})")
    endings = Counter(unread_suffixes(names))
    if endings:
        counts = ", ".join(f"{count:,} {ending}" for ending, count in sorted(endings.items()))
        them = "it" if endings.total() == 1 else "them"
        lines.append(f"not read: {counts}; export {them} as STEP or STL")
    return lines


def unread_suffixes(names: Iterable[str]) -> list[str]:
    """The ending of each file that holds a shape in a format that is not read; hidden files do not count."""
    paths = (PurePosixPath(name) for name in names)
    return [
        path.suffix.lower()
        for path in paths
        if path.suffix.lower() in UNREAD_SUFFIXES
        and not any(part.startswith((".", "__MACOSX")) for part in path.parts)
    ]


def _is_in(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place}{os.sep}")


def is_shape_name(name: str) -> bool:
    """Whether a file in a folder or archive has a known format and is not hidden, nor in a hidden folder."""
    path = PurePosixPath(name)
    return path.suffix.lower() in FORMATS and not any(part.startswith(".") for part in path.parts)


def no_shape_in(path: Path, names: Iterable[str] = ()) -> str:
    """The message for a folder or archive without a mesh or point file, but with files of these names."""
    endings = ", ".join(ending[1:] for ending in FORMATS)
    unread = "".join(f"; {line}" for line in not_shapes((), names))
    return f"{path}: holds no mesh or point cloud; files that end in {endings} are read{unread}"


def printable_line(message: str) -> str:
    """A message without line breaks or control characters, whatever a file's name or content holds."""
    words = "".join(character if character.isprintable() else " " for character in message).split()
    return " ".join(words)[:1000]


def from_object(
    mesh: Any, *, repair: bool = False, limits: MeshLimits | None = None
) -> Surface | PointSet:
    """The surface of a ``trimesh.Trimesh`` or ``trimesh.Scene``, or the points of a ``PointCloud`` or an array.

    Args:
        mesh: has ``vertices`` (V, 3) and ``faces`` (F, 3), or ``triangles`` (F, 3) as in Open3D; or is a cloud of
            trimesh; or is a scene of such; or is an array (N, 3) of points, in which rows with NaN are missing as
            in a .npy file.
        repair: leave out faces and points that cannot be used, instead of refusing the mesh.
        limits: largest scene that is accepted.

    Raises:
        DataError: if there is no surface and no point, or something in it cannot be used.
        TypeError: if ``mesh`` is none of these.
    """
    raw = RawMesh(nan_is_missing=is_array(mesh))
    try:
        if raw.nan_is_missing:
            raw.points.append(_rows_of_three(mesh, "points", np.float64))
        elif hasattr(mesh, "geometry") and hasattr(mesh, "graph"):
            for name in mesh.graph.nodes_geometry:
                matrix, geometry = mesh.graph[name]
                _add_object(mesh.geometry[geometry], np.asarray(matrix, dtype=np.float64), raw)
        else:
            _add_object(mesh, np.eye(4), raw)
        return assemble(raw, repair=repair, limits=limits or MeshLimits())
    except DataError as error:
        msg = f"the given {type(mesh).__name__}: {error}"
        raise DataError(msg, settings=error.settings) from error


def is_array(value: Any) -> bool:
    """Whether it is an array of NumPy, or a tensor or the like that becomes one."""
    return hasattr(value, "__array__") and not hasattr(value, "vertices")


def _add_object(geometry: Any, matrix: Floats, raw: RawMesh) -> None:
    """Add one geometry; paths of trimesh, which have entities and no faces, are no surface."""
    if hasattr(geometry, "vertices") and hasattr(geometry, "entities"):
        return
    faces = next((name for name in ("faces", "triangles") if hasattr(geometry, name)), None)
    if not hasattr(geometry, "vertices") or (faces is None and not _is_cloud(geometry)):
        kind = type(geometry).__name__
        msg = f"expected a path, an array (N, 3), a trimesh.Trimesh or a trimesh.Scene, got {kind}"
        raise TypeError(msg)
    vertices = _rows_of_three(geometry.vertices, "vertices", np.float64)
    if faces is None:
        raw.points.append(transform(vertices, matrix))
    else:
        corners = _rows_of_three(getattr(geometry, faces), faces, np.int64).reshape(-1)
        raw.parts.append(Part(vertices, corners, matrix=matrix))


def _is_cloud(geometry: Any) -> bool:
    """Whether it is a cloud of trimesh: other classes with vertices keep their faces under names of their own."""
    return any(
        kind.__name__ == "PointCloud" and kind.__module__.split(".")[0] == "trimesh"
        for kind in type(geometry).__mro__
    )


def _rows_of_three(values: Any, name: str, dtype: type[Number]) -> NDArray[Number]:
    """Values as (n, 3).

    Raises:
        DataError: if they have another shape, as the corners of quads would.
    """
    if (kind := np.asarray(values).dtype).kind not in "fiub":
        msg = f"its {name} are {kind}, accepted are real numbers"
        raise DataError(msg)
    rows: NDArray[Number] = np.asarray(values, dtype=dtype)
    if not rows.size:
        return rows.reshape(0, 3)
    if rows.ndim != 2 or rows.shape[1] != 3:
        msg = f"its {name} have the shape {rows.shape}, accepted is (n, 3); triangulate or transpose them"
        raise DataError(msg)
    return rows
