"""The three forms in which ModelNet40 goes round, and how to tell which one an archive holds.

``ModelNet40.zip``: ``<class>/{train,test}/<class>_0001.off``, meshes, z up. ``modelnet40_normal_resampled``:
``<class>/<class>_0001.txt``, 10,000 rows x,y,z,nx,ny,nz, y up, with lists of the splits. And
``modelnet40_ply_hdf5_2048``: ``ply_data_{train0..4,test0..1}.h5``, 2,048 points a cloud, y up. They are not
interchangeable: other points of the same models, and three models fewer in the last.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from pointdistill.data.archive import Archive
from pointdistill.data.benchmarks.records import LabelledClouds, read_labelled_hdf5
from pointdistill.errors import DataError

NAME = "ModelNet40"
ARCHIVE_NAME = "ModelNet40.zip"
RESAMPLED = "modelnet40_normal_resampled"
HDF5 = "modelnet40_ply_hdf5_2048"

OFFICIAL = {
    ARCHIVE_NAME: (9843, 2468),
    RESAMPLED: (9843, 2468),
    HDF5: (9840, 2468),
}
"""Shapes for training and testing in each form."""

CLASSES = (
    "airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone",
    "cup", "curtain", "desk", "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard",
    "lamp", "laptop", "mantel", "monitor", "night_stand", "person", "piano", "plant", "radio",
    "range_hood", "sink", "sofa", "stairs", "stool", "table", "tent", "toilet", "tv_stand", "vase",
    "wardrobe", "xbox",
)  # fmt: skip

SIDES = ("train", "test")
_HDF5_FILE = re.compile(r"ply_data_(train|test)\d+\.h5")


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the archive: a mesh or a cloud, in a member of its own."""

    member: str
    class_name: str
    side: str

    @property
    def id(self) -> str:
        """Class, split and name, whatever folder it lies in: ``chair/train/chair_0001``."""
        return f"{self.class_name}/{self.side}/{PurePosixPath(self.member).stem}"


def find_form(archive: Archive) -> str:
    """Which of the three forms an archive holds; that of meshes where there is no sign of another.

    Raises:
        DataError: if it holds several.
    """
    signs = {
        ARCHIVE_NAME: any(_is_mesh(PurePosixPath(name)) for name in archive.names),
        RESAMPLED: any(archive.find(_list_name(side)) for side in SIDES),
        HDF5: any(_HDF5_FILE.fullmatch(PurePosixPath(name).name) for name in archive.names),
    }
    found = [form for form, there in signs.items() if there]
    if len(found) > 1:
        msg = f"{archive.path}: holds several forms of {NAME} ({', '.join(found)}); give the folder of one"
        raise DataError(msg)
    return found[0] if found else ARCHIVE_NAME


def list_models(archive: Archive, form: str) -> list[Model]:
    """The models of an archive with a member each, in the order of their ids.

    Raises:
        DataError: if a split is empty, a class is not ModelNet40's, or a model is missing or there twice.
    """
    found = _meshes(archive) if form == ARCHIVE_NAME else _resampled(archive)
    unknown = sorted({model.class_name for model in found} - set(CLASSES))
    if unknown:
        msg = (
            f"{archive.path}: {unknown[0]!r} is none of ModelNet40's classes ({CLASSES[0]} … "
            f"{CLASSES[-1]}); a set of your own goes through prepare-data"
        )
        raise DataError(msg)
    for side in SIDES:
        if not any(model.side == side for model in found):
            msg = (
                f"{archive.path}: holds no <class>/{side}/<name>.off, and none of ModelNet40's other forms; "
                f"get {ARCHIVE_NAME} from https://modelnet.cs.princeton.edu"
            )
            raise DataError(msg)
    found.sort(key=lambda model: model.id)
    for one, other in itertools.pairwise(found):
        if one.id == other.id:
            msg = (
                f"{archive.path}: holds {one.id} twice ({one.member}, {other.member}); "
                f"keep one of them"
            )
            raise DataError(msg)
    return found


def split_lists(archive: Archive) -> list[str]:
    """The members that say which cloud is in which split; none in the other forms."""
    found = [archive.find(_list_name(side)) for side in SIDES]
    return [name for name in found if name is not None]


def hdf5_members(archive: Archive, side: str) -> list[str]:
    """The members of one split of the HDF5 form, in the order of their numbers.

    Raises:
        DataError: if there are none.
    """
    found = [
        name
        for name in archive.names
        if (match := _HDF5_FILE.fullmatch(PurePosixPath(name).name)) and match[1] == side
    ]
    if not found:
        msg = f"{archive.path}: holds no ply_data_{side}0.h5; fetch the archive again"
        raise DataError(msg)
    return found


def read_hdf5(archive: Archive) -> tuple[LabelledClouds, LabelledClouds]:
    """Training and test clouds (n, N, 3) of the HDF5 form, turned to z up.

    Raises:
        DataError: if a file is missing or damaged, or the classes are in another order.
    """
    names = archive.find("shape_names.txt")
    if names is not None and tuple(archive.read(names).decode("latin-1").split()) != CLASSES:
        msg = f"{archive.path}: {names} has other classes than ModelNet40's 40; fetch the archive again"
        raise DataError(msg)
    train, test = (_read_side(archive, side) for side in SIDES)
    return train, test


def _read_side(archive: Archive, side: str) -> LabelledClouds:
    files = [
        read_labelled_hdf5(archive, member, name=NAME, classes=CLASSES)
        for member in hdf5_members(archive, side)
    ]
    sizes = {file.points.shape[1] for file in files}
    if len(sizes) > 1:
        msg = f"{archive.path}: clouds of {sorted(sizes)} points in {side}; fetch the archive again"
        raise DataError(msg)
    return LabelledClouds(
        points=np.concatenate([file.points for file in files]),
        labels=np.concatenate([file.labels for file in files]),
    )


def _is_mesh(path: PurePosixPath) -> bool:
    return path.suffix.lower() == ".off" and len(path.parts) >= 3 and path.parts[-2] in SIDES


def _meshes(archive: Archive) -> list[Model]:
    paths = [(name, PurePosixPath(name)) for name in archive.names]
    return [
        Model(name, class_name=path.parts[-3], side=path.parts[-2])
        for name, path in paths
        if _is_mesh(path)
    ]


def _list_name(side: str) -> str:
    return f"modelnet40_{side}.txt"


def _resampled(archive: Archive) -> list[Model]:
    """Every cloud that the archive's lists name, one name such as ``night_stand_0001`` a line."""
    members = {"/".join(PurePosixPath(name).parts[-2:]): name for name in archive.names}
    found = []
    for side in SIDES:
        listed = archive.find(_list_name(side))
        if listed is None:
            msg = f"{archive.path}: has no {_list_name(side)}; fetch the archive again"
            raise DataError(msg)
        names = archive.read(listed).decode("latin-1").split()
        classes = [name.rpartition("_")[0] for name in names]
        files = [f"{kind}/{name}.txt" for kind, name in zip(classes, names, strict=True)]
        missing = [file for file in files if file not in members]
        if missing:
            msg = (
                f"{archive.path}: lacks {len(missing)} of the {len(files)} clouds that {listed} names, such as "
                f"{missing[0]}; fetch the archive again"
            )
            raise DataError(msg)
        found += [
            Model(members[file], kind, side) for kind, file in zip(classes, files, strict=True)
        ]
    return found
