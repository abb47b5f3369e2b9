"""Members of an archive that are HDF5 files of labelled clouds: ``data`` (n, N, 3) and ``label`` (n,)."""

from __future__ import annotations

import io

import h5py
import numpy as np
from numpy.typing import NDArray

from pointdistill.data.archive import MEMBER_LIMIT_BYTES, Archive
from pointdistill.data.benchmarks.records import LabelledClouds, check_clouds
from pointdistill.errors import DataError


def read_labelled_hdf5(
    archive: Archive, member: str, *, name: str, classes: tuple[str, ...]
) -> LabelledClouds:
    """One member with y up, turned to z up: new (x, y, z) = old (z, x, y), a rotation.

    Bytes and points are in memory at once, 0.7 GiB for ScanObjectNN's PB-T50-RS.

    Args:
        archive: where it lies.
        member: its name.
        name: the benchmark, for messages.
        classes: what the labels are indices into.

    Raises:
        DataError: if the member is damaged, or its clouds or labels are not what they should be.
    """
    try:
        with h5py.File(io.BytesIO(archive.read(member)), "r") as file:
            points = read_dataset(archive, member, file, "data").astype(np.float32, copy=False)
            labels = read_dataset(archive, member, file, "label").reshape(-1)
    except (OSError, RuntimeError) as error:
        archive.refuse(member, error)
    source = f"{archive.path}: {member}"
    check_clouds(points, source)
    if len(labels) != len(points):
        msg = f"{source}: {len(points)} clouds but {len(labels)} labels; fetch the archive again"
        raise DataError(msg)
    whole = labels.astype(np.int64)
    if (whole != labels).any() or whole.min() < 0 or whole.max() >= len(classes):
        msg = (
            f"{source}: labels from {labels.min()} to {labels.max()}; "
            f"{name}'s are whole numbers from 0 to {len(classes) - 1}"
        )
        raise DataError(msg)
    return LabelledClouds(points=np.ascontiguousarray(points[..., [2, 0, 1]]), labels=whole)


def read_dataset(archive: Archive, member: str, file: h5py.File, key: str) -> NDArray[np.generic]:
    """One numeric dataset of an HDF5 member of ``archive``, whole.

    Raises:
        DataError: if it is absent, not numeric, or claims more than a member may hold; before it is read.
    """
    dataset = file.get(key)
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiu":
        archive.refuse(member, f"no numeric dataset {key!r}")
    if dataset.nbytes > MEMBER_LIMIT_BYTES:
        archive.refuse(member, f"dataset {key!r} claims {dataset.nbytes:,} bytes")
    values: NDArray[np.generic] = dataset[()]
    return values
