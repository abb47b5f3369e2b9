"""ScanObjectNN: 15 classes of objects cut from indoor scans (Uy et al., ICCV 2019).

Layout of ``h5_files.zip``: one folder with background and one without, HDF5 files with ``data`` (n,
2048, 3) float32, ``label`` (n,) and ``mask``; y up on disk, turned to z up here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pointdistill.data.archive import Archive, open_archive
from pointdistill.data.benchmarks.hdf5 import read_dataset as read_dataset
from pointdistill.data.benchmarks.hdf5 import read_labelled_hdf5
from pointdistill.data.benchmarks.records import (
    STAND_IN_MARKER as STAND_IN_MARKER,
)
from pointdistill.data.benchmarks.records import (
    Benchmark,
    is_stand_in,
    named_data,
)
from pointdistill.errors import ConfigError, DataError

NAME = "ScanObjectNN"
ARCHIVE_NAME = "h5_files.zip"

# The order of the published labels, which is not alphabetical.
CLASSES = (
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door",
    "shelf", "table", "bed", "pillow", "sink", "sofa", "toilet",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SplitFiles:
    """Where one split lies in the archive, and how many clouds the published one has."""

    folder: str
    stem: str
    official: tuple[int, int]

    @property
    def members(self) -> tuple[str, str]:
        """Names of the training and the test file, without the archive's root folder."""
        return f"{self.folder}/training_{self.stem}.h5", f"{self.folder}/test_{self.stem}.h5"


SPLITS = {
    "OBJ-BG": SplitFiles("main_split", "objectdataset", (2309, 581)),
    "OBJ-ONLY": SplitFiles("main_split_nobg", "objectdataset", (2309, 581)),
    "PB-T50-RS": SplitFiles("main_split", "objectdataset_augmentedrot_scale75", (11416, 2882)),
}


def read_scanobjectnn(path: Path, split: str) -> Benchmark:
    """Read one split of ScanObjectNN, or of its stand-in, in place.

    Args:
        path: ``h5_files.zip``, or the folder extracted from it.
        split: ``OBJ-BG``, ``OBJ-ONLY`` or ``PB-T50-RS``.

    Returns:
        The split with clouds of (n, N, 3) turned to z up: new (x, y, z) = old (z, x, y), a
        rotation.

    Raises:
        ConfigError: if there is no such split.
        DataError: if the archive is absent, damaged, or lacks the split.
    """
    if split not in SPLITS:
        msg = f"ScanObjectNN has no split {split!r}; choose one of {', '.join(SPLITS)}"
        raise ConfigError(msg)
    files = SPLITS[split]
    with open_archive(path, absent=_absent(path)) as archive:
        train_member, test_member = _members(archive, split)
        train, test = (
            read_labelled_hdf5(archive, member, name=NAME, classes=CLASSES)
            for member in (train_member, test_member)
        )
        stand_in = is_stand_in(archive)
        checksum = archive.checksum((train_member, test_member))
    return Benchmark(
        name=NAME,
        split=split,
        classes=CLASSES,
        train=train,
        test=test,
        data_name=named_data(
            NAME, stand_in=stand_in, counts=(len(train), len(test)), official=files.official
        ),
        form=f"{ARCHIVE_NAME}, {files.folder}/*_{files.stem}.h5",
        checksum=checksum,
        stand_in=stand_in,
    )


def _absent(path: Path) -> str:
    return (
        f"{path}: no such archive. {ARCHIVE_NAME} is given out through the form at "
        f"https://hkust-vgd.github.io/scanobjectnn/; save it as {path}, or pass --stand-in to run "
        f"on the stand-in instead"
    )


def _members(archive: Archive, split: str) -> tuple[str, str]:
    """The archive's names of the split's training and test file."""
    train, test = (archive.find(member) for member in SPLITS[split].members)
    if train is None or test is None:
        lacking = SPLITS[split].members[0 if train is None else 1]
        there = [name for name, files in SPLITS.items() if all(map(archive.find, files.members))]
        msg = (
            f"{archive.path}: has no {lacking}, which {split} needs; "
            f"splits it has: {', '.join(there) or 'none'}"
        )
        raise DataError(msg)
    return train, test
