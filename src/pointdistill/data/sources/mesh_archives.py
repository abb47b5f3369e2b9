"""Archives of mesh or cloud files as sources, one member a shape: what members' names mean and which way is up.

| source | members | ids |
|---|---|---|
| Amazon Berkeley Objects (Collins et al., CVPR 2022) | GLB scenes in a tar, y up | the item's own |
| Cap3D (Luo et al., NeurIPS 2023), clouds of Objaverse | PLY clouds in zips, z up | the bare uid |
| 3D-FUTURE (Fu et al., IJCV 2021) | OBJ meshes in four zips, y up | the model's own |
| ModelNet40 (Wu et al., CVPR 2015) | OFF meshes by class and split, z up | ``chair/train/chair_0001`` |
| ShapeNetCore v2 (Chang et al., arXiv 1512.03012) | OBJ meshes of 55 synsets, y up | ``03001627/<id>`` |
| Toys4K (Stojanov et al., CVPR 2021) | OBJ meshes by class and object, y up | ``class/object/file`` |
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from pointdistill.data.files.archive import open_archive
from pointdistill.data.files.schema import parse_json
from pointdistill.data.sources.base import SourceInfo, SourceRequest, archive_paths
from pointdistill.data.sources.members import Layout, MemberSource, Named, open_members
from pointdistill.errors import DataError


def open_abo(request: SourceRequest, info: SourceInfo) -> MemberSource:
    """The source for an ``abo-3dmodels.tar``.

    Raises:
        DataError: if the archive is absent or damaged, or holds no such scene.
    """
    layout = Layout(name=_abo_name, up="y", pattern="original/<c>/<id>.glb")
    return open_members(request, info, layout)


def _abo_name(member: str) -> Named | None:
    path = PurePosixPath(member)
    if path.suffix.lower() != ".glb" or path.parts[-3:-2] != ("original",):
        return None
    return Named(path.stem)


def open_cap3d(request: SourceRequest, info: SourceInfo) -> MemberSource:
    """The source for those of Cap3D's zips that are there; which they are is recorded as the archive.

    The index that comes with the zips is a pickle; the zips list their own members, so it is not needed.

    Raises:
        DataError: if none is there, one is damaged or belongs to another part of Objaverse, or none holds a
            cloud.
    """
    for path in archive_paths(request, info):
        if path.is_file() and not path.match(info.files[0]):
            msg = f"{path}: {info.name} is {info.archive}; rename the file if it is one of them"
            raise DataError(msg)
    layout = Layout(name=_cap3d_name, up="z", pattern="Cap3D_pcs/<uid>.ply")
    return open_members(request, info, layout)


def _cap3d_name(member: str) -> Named | None:
    path = PurePosixPath(member)
    return Named(path.stem) if path.suffix.lower() == ".ply" else None


FUTURE_NO_CATEGORY = "Other"
"""Label of a model of 3D-FUTURE whose category is null."""

_FUTURE_MESH = "normalized_model.obj"
_FUTURE_TABLE = "model_info.json"


def open_3d_future(request: SourceRequest, info: SourceInfo) -> MemberSource:
    """The source for the four parts of 3D-FUTURE together, named by their folder or by one of them.

    Raises:
        DataError: if a part is absent or damaged, or none holds the table of categories.
    """
    categories = _future_categories(archive_paths(request, info))
    layout = Layout(
        name=functools.partial(_future_name, categories=categories),
        up="y",
        pattern=f"<id>/{_FUTURE_MESH}",
    )
    return open_members(request, info, layout)


def _future_name(member: str, categories: Mapping[str, str]) -> Named | None:
    """A model, with no label where the table does not list it."""
    parts = PurePosixPath(member).parts
    if len(parts) < 2 or parts[-1] != _FUTURE_MESH:
        return None
    return Named(parts[-2], categories.get(parts[-2]))


def _future_categories(roots: tuple[Path, ...]) -> dict[str, str]:
    """The category of each model that the table in one of the parts lists.

    Raises:
        DataError: if no part has the table, or it is malformed.
    """
    for root in roots:
        with open_archive(root, absent=str(root), tolerate_unsafe=True) as archive:
            member = archive.find(_FUTURE_TABLE)
            if member is None:
                continue
            try:
                rows = parse_json(archive.read(member))
                return {
                    str(row["model_id"]): str(row["category"] or FUTURE_NO_CATEGORY) for row in rows
                }
            except (ValueError, KeyError, TypeError) as error:
                archive.refuse(member, error)
    parts = ", ".join(map(str, roots))
    msg = f"{parts}: no {_FUTURE_TABLE}, which part 1 holds; fetch the parts again"
    raise DataError(msg)


_MODELNET_SPLITS = ("train", "test")


def open_modelnet40(request: SourceRequest, info: SourceInfo) -> MemberSource:
    """The source for a ``ModelNet40.zip``: its training split, and its test split if asked for.

    Raises:
        DataError: if the archive is absent, damaged, or in another of ModelNet40's forms.
    """
    splits = _MODELNET_SPLITS if request.include_test else _MODELNET_SPLITS[:1]
    layout = Layout(
        name=functools.partial(_modelnet_name, splits=splits),
        up="z",
        pattern="<class>/train/<name>.off",
    )
    return open_members(request, info, layout, settings={"splits": list(splits)})


def _modelnet_name(member: str, splits: Sequence[str]) -> Named | None:
    """Class, split and name, whatever folder they are in."""
    path = PurePosixPath(member)
    if path.suffix.lower() != ".off" or len(path.parts) < 3 or path.parts[-2] not in splits:
        return None
    label, split = path.parts[-3:-1]
    return Named(f"{label}/{split}/{path.stem}", label)


SYNSETS = {
    "02691156": "airplane",
    "02747177": "trash bin",
    "02773838": "bag",
    "02801938": "basket",
    "02808440": "bathtub",
    "02818832": "bed",
    "02828884": "bench",
    "02843684": "birdhouse",
    "02871439": "bookshelf",
    "02876657": "bottle",
    "02880940": "bowl",
    "02924116": "bus",
    "02933112": "cabinet",
    "02942699": "camera",
    "02946921": "can",
    "02954340": "cap",
    "02958343": "car",
    "02992529": "cellphone",
    "03001627": "chair",
    "03046257": "clock",
    "03085013": "keyboard",
    "03207941": "dishwasher",
    "03211117": "display",
    "03261776": "earphone",
    "03325088": "faucet",
    "03337140": "file cabinet",
    "03467517": "guitar",
    "03513137": "helmet",
    "03593526": "jar",
    "03624134": "knife",
    "03636649": "lamp",
    "03642806": "laptop",
    "03691459": "loudspeaker",
    "03710193": "mailbox",
    "03759954": "microphone",
    "03761084": "microwaves",
    "03790512": "motorbike",
    "03797390": "mug",
    "03928116": "piano",
    "03938244": "pillow",
    "03948459": "pistol",
    "03991062": "flowerpot",
    "04004475": "printer",
    "04074963": "remote",
    "04090263": "rifle",
    "04099429": "rocket",
    "04225987": "skateboard",
    "04256520": "sofa",
    "04330267": "stove",
    "04379243": "table",
    "04401088": "telephone",
    "04460130": "tower",
    "04468005": "train",
    "04530566": "watercraft",
    "04554684": "washer",
}
"""ShapeNetCore's folder of each category and its name; the order is that of the labels."""

_SHAPENET_MESH = "model_normalized.obj"


def open_shapenetcore(request: SourceRequest, info: SourceInfo) -> MemberSource:
    """The source for a ``ShapeNetCore.v2.zip``: every mesh of the 55 synsets.

    Raises:
        DataError: if the archive is absent or damaged, or holds no such mesh.
    """
    layout = Layout(
        name=_shapenet_name,
        up="y",
        pattern=f"<synset>/<id>/models/{_SHAPENET_MESH}",
        labels=tuple(SYNSETS.values()),
    )
    return open_members(request, info, layout)


def _shapenet_name(member: str) -> Named | None:
    parts = PurePosixPath(member).parts
    if len(parts) < 4 or parts[-2:] != ("models", _SHAPENET_MESH) or parts[-4] not in SYNSETS:
        return None
    synset, shape = parts[-4:-2]
    return Named(f"{synset}/{shape}", SYNSETS[synset])


def open_toys4k(request: SourceRequest, info: SourceInfo) -> MemberSource:
    """The source for a ``toys4k_obj_files.zip``.

    Raises:
        DataError: if the archive is absent or damaged, or holds no such mesh.
    """
    layout = Layout(name=_toys_name, up="y", pattern="<class>/<object>/<file>.obj")
    return open_members(request, info, layout)


def _toys_name(member: str) -> Named | None:
    path = PurePosixPath(member)
    if path.suffix.lower() != ".obj" or len(path.parts) < 3:
        return None
    label, shape = path.parts[-3:-1]
    return Named(f"{label}/{shape}/{path.stem}", label)
