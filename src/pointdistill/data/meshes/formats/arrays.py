"""Point clouds as numpy arrays: one array of shape (n, 3 or more) in .npy or .npz; never a pickle."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.meshes.checks import check_size
from pointdistill.data.meshes.records import Draft, MeshLimits
from pointdistill.errors import DataError

_NAMES = ("points", "xyz", "pos", "vertices", "arr_0")


def read(path: Path, limits: MeshLimits) -> Draft:
    """Read a .npy file, or the array of a .npz file that holds the points.

    Raises:
        DataError: if the file is damaged, or has no numeric array of that shape.
    """
    check_size("bytes", path.stat().st_size, limits.file_bytes)
    try:
        if path.suffix.lower() == ".npz":
            return Draft(points=[_points(_from_archive(path, limits), limits)])
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return Draft(points=[_points(array, limits)])
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        msg = (
            f"expected a numpy array ({error}); the file is damaged, cut short or of another format"
        )
        raise DataError(msg) from error


def _from_archive(path: Path, limits: MeshLimits) -> NDArray[Any]:
    with zipfile.ZipFile(path) as file:
        members = {Path(item.filename).stem: item for item in file.infolist()}
        wanted = [name for name in _NAMES if name in members] or list(members)
        if len(wanted) != 1 and wanted[0] not in _NAMES:
            msg = f"has the arrays {', '.join(members)[:200]}; name the one of the points 'points'"
            raise DataError(msg)
        member = members[wanted[0]]
        check_size("bytes in the archive", member.file_size, limits.file_bytes)
        with file.open(member) as stream:
            _check_claim(stream, member.file_size)
        with file.open(member) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)


def _check_claim(stream: IO[bytes], size: int) -> None:
    """Refuse an array whose header claims more bytes than its member holds, before room is made for them."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > size:
        msg = f"an array of shape {shape} claims {claimed:,} bytes, the member has {size:,}; it is cut short"
        raise DataError(msg)


def _points(array: NDArray[Any], limits: MeshLimits) -> NDArray[np.float64]:
    if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "fiu":
        msg = f"expected numbers of shape (n, 3 or more), got {array.dtype} of shape {array.shape}"
        raise DataError(msg)
    check_size("points", len(array), limits.vertices)
    return np.array(array[:, :3], dtype=np.float64)
