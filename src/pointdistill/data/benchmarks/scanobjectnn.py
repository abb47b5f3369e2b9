"""ScanObjectNN: 15 classes of objects cut from indoor scans (Uy et al., ICCV 2019).

Layout of ``h5_files.zip``: one folder with background and one without, HDF5 files with ``data`` (n,
2048, 3) float32, ``label`` (n,) and ``mask``; y up on disk, turned to z up here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pointdistill.data.benchmarks.records import (
    Benchmark,
    is_stand_in,
    named_data,
    read_labelled_hdf5,
)
from pointdistill.data.benchmarks.registry import (
    BASE_MIXTURE,
    CLS_SMALL,
    MPM_SMALL,
    SCRATCH_SMALL,
    SMALL,
    SMALL_MIXTURE,
    BenchmarkInput,
    BenchmarkPaths,
    BenchmarkSpec,
    published_table,
)
from pointdistill.data.files.archive import Archive, open_archive
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
            read_labelled_hdf5(
                archive, member, name=NAME, classes=CLASSES, training=member == train_member
            )
            for member in (train_member, test_member)
        )
        stand_in = is_stand_in(archive)
        checksum = archive.checksum((train_member, test_member))
    # A corpus of the same archive names its clouds by their rows too.
    test = replace(test, ids=tuple(f"{split}/test/{row:05d}" for row in range(len(test))))
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
        f"https://hkust-vgd.github.io/scanobjectnn/; save it as {path}, or use "
        "the stand-in instead"
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


def _read(
    paths: BenchmarkPaths,
    split: str | None,
    *,
    fold: int = 0,  # noqa: ARG001
    progress: Callable[[int, int], None] | None = None,  # noqa: ARG001
) -> Benchmark:
    assert split is not None
    return read_scanobjectnn(paths.archive, split)


SPEC = BenchmarkSpec(
    title=NAME,
    archives=(ARCHIVE_NAME,),
    licence="research use, on its authors' form",
    read=_read,
    stand_in_maker="pointdistill.data.benchmark_standins.scanobjectnn:make_scanobjectnn_stand_in",
    splits=tuple(SPLITS),
    training_split="PB-T50-RS",  # the one that the method's ablations are on
    input=BenchmarkInput(
        points=2048, patches=128, subsampling="uniform", rotate_z=True, scale=(0.9, 1.1)
    ),
    published=published_table(
        tuple(SPLITS),
        {
            ("scratch", SCRATCH_SMALL): (87.6, 86.7, 83.5),
            ("finetune", CLS_SMALL): (92.77, 90.53, 88.72),
            ("finetune", MPM_SMALL): (92.77, 91.39, 88.58),
            ("finetune", SMALL): (94.32, 91.91, 90.53),
            ("finetune", SMALL_MIXTURE): (97.07, 94.83, 92.89),
            ("finetune", BASE_MIXTURE): (96.73, 94.32, 93.72),
            ("linear", CLS_SMALL): (90.67, 88.31, 83.19),
            ("linear", MPM_SMALL): (89.00, 87.80, 81.04),
            ("linear", SMALL): (89.95, 88.73, 83.33),
            ("linear", SMALL_MIXTURE): (95.22, 94.51, 91.31),
            ("linear", BASE_MIXTURE): (96.16, 93.44, 91.96),
            # From the ablations, which name PB-T50-RS alone.
            ("svm", CLS_SMALL): (None, None, 82.27),
            ("svm", MPM_SMALL): (None, None, 81.06),
            ("svm", SMALL): (None, None, 82.34),
        },
    ),
)
