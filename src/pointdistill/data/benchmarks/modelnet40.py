"""ModelNet40: 40 classes of CAD models (Wu et al., CVPR 2015), read in any of the forms that are in circulation.

Results on different forms are not comparable, so a benchmark's ``form`` says which was read.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import h5py
import numpy as np
from numpy.typing import NDArray

from pointdistill.data.benchmarks.records import (
    Benchmark,
    LabelledClouds,
    check_clouds,
    is_stand_in,
    leave_out,
    named_data,
    read_labelled_hdf5,
    read_rows,
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
from pointdistill.data.files.files import write_aside
from pointdistill.data.files.hdf5 import open_hdf5
from pointdistill.data.files.processes import ordered_map
from pointdistill.data.meshes import PointSet, draw, named_rng
from pointdistill.data.meshes.sample import read_member
from pointdistill.errors import ConfigError, DataError

# The three forms in which ModelNet40 circulates, and how to tell which one an archive holds.
#
# ``ModelNet40.zip``: ``<class>/{train,test}/<class>_0001.off``, meshes, z up. ``modelnet40_normal_resampled``:
# ``<class>/<class>_0001.txt``, 10,000 rows x,y,z,nx,ny,nz, y up, with lists of the splits. And
# ``modelnet40_ply_hdf5_2048``: ``ply_data_{train0..4,test0..1}.h5``, 2,048 points per cloud, y up. They are
# not interchangeable: the points of a model differ, and the last form lacks three of the models.

NAME = "ModelNet40"
ARCHIVE_NAME = "ModelNet40.zip"
RESAMPLED = "modelnet40_normal_resampled"
HDF5 = "modelnet40_ply_hdf5_2048"

OFFICIAL = {
    ARCHIVE_NAME: (9843, 2468),
    RESAMPLED: (9843, 2468),
    HDF5: (9840, 2468),
}
"""Number of training and test shapes in each form."""

CLASSES = (
    "airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone",
    "cup", "curtain", "desk", "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard",
    "lamp", "laptop", "mantel", "monitor", "night_stand", "person", "piano", "plant", "radio",
    "range_hood", "sink", "sofa", "stairs", "stool", "table", "tent", "toilet", "tv_stand", "vase",
    "wardrobe", "xbox",
)  # fmt: skip

SIDES = ("train", "test")
TRAINING = SIDES[0]
_HDF5_FILE = re.compile(r"ply_data_(train|test)\d+\.h5")


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the archive: a mesh or a cloud that has its own member."""

    member: str
    class_name: str
    side: str

    @property
    def id(self) -> str:
        """Class, split and name, whatever folder it lies in: ``chair/train/chair_0001``."""
        return f"{self.class_name}/{self.side}/{PurePosixPath(self.member).stem}"


def find_form(archive: Archive) -> str:
    """Which of the three forms an archive holds; the form of meshes if nothing points to another.

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
    """The models of an archive that stores one member per model, in the order of their ids.

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
    """The lists that assign clouds to splits; empty for the forms that have none."""
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
        read_labelled_hdf5(archive, member, name=NAME, classes=CLASSES, training=side == TRAINING)
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
    """Every cloud that the archive's lists name, one name per line, such as ``night_stand_0001``."""
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


POINTS = 4096
"""Points a model by default: four times what the protocol then keeps by farthest point sampling."""

_COLUMNS = ("x", "y", "z", "nx", "ny", "nz")
_BATCH = 16  # models per task
_CACHE_VERSION = 1  # raised when the same seed would give other points


@dataclass(frozen=True, slots=True)
class _Task:
    """A batch of models to sample."""

    path: Path
    models: tuple[Model, ...]
    form: str
    points: int
    seed: int


def read_modelnet40(
    path: Path,
    *,
    points: int = POINTS,
    seed: int = 0,
    cache: Path | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Benchmark:
    """Read ModelNet40, or its stand-in, in whichever form the archive holds.

    Meshes are sampled uniformly by area; from the 10,000 resampled points a random subset is drawn. Both depend
    only on the seed and the model's id. This takes minutes for all 12,311 models, so the points are cached on
    disk, under a name made from archive, count and seed. The clouds of the HDF5 form are returned unchanged.

    Args:
        path: ``ModelNet40.zip``, ``modelnet40_normal_resampled`` or ``modelnet40_ply_hdf5_2048``, zipped or as
            folders.
        points: points per model; the HDF5 form always has 2,048.
        seed: of the sampling, not negative.
        cache: folder in which the points are cached; by default the archive's.
        workers: processes; 1 works in this one, None takes every usable core.
        progress: called with models (done, total) while they are sampled.

    Returns:
        The benchmark with clouds of (n, N, 3), z up, in the models' own units. ``form`` names the form.

    Raises:
        ConfigError: if ``points`` or ``seed`` is not accepted.
        DataError: if the archive is absent or damaged, holds several forms, a test model is damaged, or more
            than 1 % of the training models are; fewer are left out and named.
    """
    if points < 1 or seed < 0:
        msg = f"ModelNet40 is sampled at 1 point or more and a seed from 0, got {points} and {seed}"
        raise ConfigError(msg)
    with open_archive(path, absent=_absent(path)) as archive:
        form = find_form(archive)
        stand_in = is_stand_in(archive)
        if form == HDF5:
            return _hdf5_benchmark(archive, stand_in=stand_in)
        models = list_models(archive, form)
        checksum = archive.checksum([*(m.member for m in models), *split_lists(archive)])
    name = f"modelnet40-{checksum[:16]}-{points}-points-seed-{seed}.h5"
    cache_file = (cache or path.parent) / name
    clouds = _read_cache(cache_file, len(models), points)
    if clouds is None:
        tasks = [
            _Task(path, tuple(models[start : start + _BATCH]), form, points, seed)
            for start in range(0, len(models), _BATCH)
        ]
        clouds, causes = _sample(tasks, len(models), points, workers=workers, progress=progress)
        models, kept = _usable(path, models, clouds, causes)
        # Failing to write the cache costs only the time of the next call.
        with contextlib.suppress(OSError):
            _write_cache(cache_file, clouds)
    else:
        models, kept = _usable(path, models, clouds, {})
    check_clouds(clouds[kept], str(path))
    return _benchmark(models, clouds[kept], form, checksum, stand_in=stand_in)


def _usable(
    path: Path,
    models: Sequence[Model],
    clouds: NDArray[np.float32],
    causes: Mapping[str, str],
) -> tuple[list[Model], NDArray[np.bool_]]:
    """The models that could be read, and (n,) which of all they are; training models alone may be left out.

    Raises:
        DataError: if too many cannot be read, see `leave_out`.
    """
    damaged = np.isnan(clouds).all(axis=(1, 2))
    damaged &= np.array([model.side == TRAINING for model in models])
    names = [model.id for model, bad in zip(models, damaged, strict=True) if bad]
    training = sum(model.side == TRAINING for model in models)
    leave_out(path, {name: causes.get(name, "") for name in names}, of=training)
    kept = [model for model, bad in zip(models, damaged, strict=True) if not bad]
    return kept, ~damaged


def _benchmark(
    models: Sequence[Model],
    clouds: NDArray[np.float32],
    form: str,
    checksum: str,
    *,
    stand_in: bool,
) -> Benchmark:
    classes = tuple(sorted({model.class_name for model in models}))
    labels = np.array([classes.index(model.class_name) for model in models], dtype=np.int64)
    train, test = (
        LabelledClouds(clouds[rows], labels[rows], tuple(models[row].id for row in rows))
        for rows in ([k for k, model in enumerate(models) if model.side == side] for side in SIDES)
    )
    counts = (len(train), len(test))
    what = {
        ARCHIVE_NAME: f"OFF meshes, {clouds.shape[1]:,} points uniform by area",
        RESAMPLED: f"{clouds.shape[1]:,} of each model's resampled points",
    }[form]
    return Benchmark(
        name=NAME,
        split=None,
        classes=classes,
        train=train,
        test=test,
        data_name=named_data(NAME, stand_in=stand_in, counts=counts, official=OFFICIAL[form]),
        form=f"{form}, {what}",
        checksum=checksum,
        stand_in=stand_in,
    )


def _hdf5_benchmark(archive: Archive, *, stand_in: bool) -> Benchmark:
    train, test = read_hdf5(archive)
    counts = (len(train), len(test))
    return Benchmark(
        name=NAME,
        split=None,
        classes=CLASSES,
        train=train,
        test=test,
        data_name=named_data(NAME, stand_in=stand_in, counts=counts, official=OFFICIAL[HDF5]),
        form=f"{HDF5}, {train.points.shape[1]:,} points a model as distributed",
        checksum=archive.checksum([m for side in SIDES for m in hdf5_members(archive, side)]),
        stand_in=stand_in,
    )


def _absent(path: Path) -> str:
    return (
        f"{path}: no such archive. {ARCHIVE_NAME} is at https://modelnet.cs.princeton.edu; save it "
        f"as {path}, or use the stand-in instead"
    )


def _sample(
    tasks: Sequence[_Task],
    models: int,
    points: int,
    *,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[NDArray[np.float32], dict[str, str]]:
    """Points (models, points, 3) of every task's models, in the tasks' order; by id, why one is NaN."""
    clouds = np.empty((models, points, 3), dtype=np.float32)
    causes: dict[str, str] = {}
    done = 0
    for some, damaged in ordered_map(_sample_some, tasks, workers=workers):
        clouds[done : done + len(some)] = some
        causes |= damaged
        done += len(some)
        if progress:
            progress(done, models)
    return clouds, causes


def _sample_some(task: _Task) -> tuple[NDArray[np.float32], dict[str, str]]:
    """Points (n, points, 3) of a task's models; those of damaged training models are NaN, with causes by id."""
    causes: dict[str, str] = {}
    with open_archive(task.path, absent=_absent(task.path)) as archive:
        return np.stack(list(_draw_each(task, archive, causes))), causes


def _draw_each(
    task: _Task, archive: Archive, causes: dict[str, str]
) -> Iterator[NDArray[np.float32]]:
    for model in task.models:
        rng = named_rng(task.seed, model.id)
        try:
            if task.form == RESAMPLED:
                cloud = PointSet(read_rows(archive, model.member, _COLUMNS)[:, :3])
                yield draw(cloud, task.points, rng=rng, up="y")
            else:
                yield draw(read_member(archive, model.member), task.points, rng=rng, up=None)
        except DataError as error:
            if model.side != TRAINING:
                msg = f"{task.path}: {model.id}: {error}"
                raise DataError(msg) from error
            causes[model.id] = str(error)
            yield np.full((task.points, 3), np.nan, np.float32)


def _write_cache(path: Path, clouds: NDArray[np.float32]) -> None:
    with write_aside(path) as aside, h5py.File(aside, "w", locking=False) as file:
        file.attrs["version"] = _CACHE_VERSION
        file["points"] = clouds


def _read_cache(path: Path, models: int, points: int) -> NDArray[np.float32] | None:
    """Points cached by an earlier call; None if there are none, or they do not fit."""
    try:
        with open_hdf5(path, path) as file:
            if file.attribute("version") != _CACHE_VERSION:
                return None
            stored = file.dataset("points", "f")
            if stored.shape != (models, points, 3) or stored.dtype != np.float32:
                return None
            return stored.read()
    except DataError:
        return None


def _read(
    paths: BenchmarkPaths,
    split: str | None,  # noqa: ARG001
    *,
    fold: int = 0,  # noqa: ARG001
    progress: Callable[[int, int], None] | None = None,
) -> Benchmark:
    return read_modelnet40(paths.archive, progress=progress)


SPEC = BenchmarkSpec(
    title=NAME,
    archives=(ARCHIVE_NAME,),
    licence="academic use; models belong to their owners",
    read=_read,
    stand_in_maker="pointdistill.data.benchmark_standins.modelnet:make_modelnet40_stand_in",
    input=BenchmarkInput(
        points=1024, patches=64, subsampling="farthest", rotate_z=False, scale=(0.6, 1.4)
    ),
    recipe="finetune-modelnet40",
    published=published_table(
        (None,),
        {
            ("scratch", SCRATCH_SMALL): (92.9,),
            ("finetune", CLS_SMALL): (93.6,),
            ("finetune", MPM_SMALL): (94.0,),
            ("finetune", SMALL): (94.1,),
            ("finetune", SMALL_MIXTURE): (94.4,),
            ("finetune", BASE_MIXTURE): (94.7,),
            ("linear", CLS_SMALL): (91.78,),
            ("linear", MPM_SMALL): (93.55,),
            ("linear", SMALL): (92.52,),
            ("linear", SMALL_MIXTURE): (93.98,),
            ("linear", BASE_MIXTURE): (93.76,),
        },
    ),
)
