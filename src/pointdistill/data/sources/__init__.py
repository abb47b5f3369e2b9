"""The sources that a corpus can be made of: one row here and one module each.

To add one: write a module with ``open_source(request, info) -> Source`` beside the others, and a row
below; ``docs/sources.md`` shows how.
"""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import cast

from pointdistill.data.sources.base import (
    Entry,
    Source,
    SourceCloud,
    SourceInfo,
    SourceRequest,
    check_request,
    source_shape_rng,
)
from pointdistill.errors import ConfigError

__all__ = [
    "SOURCES",
    "Entry",
    "Source",
    "SourceCloud",
    "SourceInfo",
    "SourceRequest",
    "open_source",
    "source_info",
    "source_shape_rng",
]

_HERE = "pointdistill.data.sources"

SOURCES: tuple[SourceInfo, ...] = (
    SourceInfo(
        name="builtin",
        module=f"{_HERE}.builtin",
        title="everyday objects made on the spot, with part labels",
        licence="CC0-1.0 (made on the spot)",
        up="z",
        origin="this program",
        archive=None,
        access="made on the spot",
        commercial=True,
        options=frozenset({"shapes", "categories", "procedural"}),
    ),
    SourceInfo(
        name="folder",
        module=f"{_HERE}.folder",
        opener="open_folder",
        title="your own meshes and point clouds; sub-folders are the labels",
        licence="your own files",
        up="y in glTF and GLB, what the file states, else as given",
        origin="your own disk",
        archive="a folder of mesh or point files",
        options=frozenset({"up"}),
    ),
    SourceInfo(
        name="shapenetcore",
        module=f"{_HERE}.mesh_archives",
        opener="open_shapenetcore",
        title="ShapeNetCore v2, CAD models of 55 categories",
        licence="non-commercial research and education, on ShapeNet's terms",
        up="y",
        origin="https://shapenet.org",
        archive="ShapeNetCore.v2.zip",
        files=("ShapeNetCore.v2.zip",),
        access="login, approved by its authors",
        commercial=False,
        official=52_470,
    ),
    SourceInfo(
        name="3d-future",
        module=f"{_HERE}.mesh_archives",
        opener="open_3d_future",
        title="3D-FUTURE, furniture models",
        licence="research use, on its authors' terms",
        up="y",
        origin="https://tianchi.aliyun.com/dataset/98063",
        archive="3D-FUTURE-model-part1.zip to part4.zip",
        files=(
            "3D-FUTURE-model-part1.zip",
            "3D-FUTURE-model-part2.zip",
            "3D-FUTURE-model-part3.zip",
            "3D-FUTURE-model-part4.zip",
        ),
        access="login",
        commercial=False,
        official=16_560,
    ),
    SourceInfo(
        name="scanobjectnn",
        module=f"{_HERE}.scanned_objects",
        opener="open_scanobjectnn",
        title="ScanObjectNN, 15 classes of objects cut from indoor scans",
        licence="research use, on its authors' form",
        up="y",
        origin="https://hkust-vgd.github.io/scanobjectnn/",
        archive="h5_files.zip",
        files=("h5_files.zip",),
        access="its authors' form",
        commercial=False,
        official=16_034,
        official_test=4_044,
        options=frozenset({"include_test"}),
    ),
    SourceInfo(
        name="modelnet40",
        module=f"{_HERE}.mesh_archives",
        opener="open_modelnet40",
        title="ModelNet40, 40 classes of CAD models",
        licence="academic use; models belong to their owners",
        up="z",
        origin="https://modelnet.cs.princeton.edu",
        archive="ModelNet40.zip",
        files=("ModelNet40.zip",),
        access="no login",
        commercial=False,
        official=9_843,
        official_test=2_468,
        options=frozenset({"include_test"}),
    ),
    SourceInfo(
        name="s3dis",
        module=f"{_HERE}.indoor_scenes",
        opener="open_s3dis",
        title="objects of S3DIS, indoor scans with 14 names",
        licence="research use, on its authors' form",
        up="z",
        origin="http://buildingparser.stanford.edu/dataset.html",
        archive="Stanford3dDataset_v1.2.zip",
        files=("Stanford3dDataset_v1.2.zip",),
        access="its authors' form",
        commercial=False,
        official=8_948,
    ),
    SourceInfo(
        name="sunrgbd",
        module=f"{_HERE}.indoor_scenes",
        opener="open_sunrgbd",
        title="objects of SUN RGB-D's training images",
        licence="research use",
        up="z once Rtilt is applied",
        origin="https://rgbd.cs.princeton.edu",
        archive="SUNRGBD.zip, SUNRGBDtoolbox.zip and SUNRGBDMeta3DBB_v2.mat",
        files=(
            "SUNRGBD.zip",
            "SUNRGBDtoolbox.zip",
            "SUNRGBDMeta3DBB_v2.mat",
        ),
        access="no login",
        commercial=False,
        official=8_451,
    ),
    SourceInfo(
        name="abo",
        module=f"{_HERE}.mesh_archives",
        opener="open_abo",
        title="Amazon Berkeley Objects, models of goods",
        licence="CC BY-NC 4.0",
        up="y",
        origin="https://amazon-berkeley-objects.s3.amazonaws.com/index.html",
        archive="abo-3dmodels.tar",
        files=("abo-3dmodels.tar",),
        access="no login",
        commercial=False,
        official=7_953,
    ),
    SourceInfo(
        name="omniobject3d",
        module=f"{_HERE}.scanned_objects",
        opener="open_omniobject3d",
        title="OmniObject3D, scanned objects of 216 categories",
        licence="CC BY 4.0",
        up="y",
        origin="https://omniobject3d.github.io",
        archive="OmniObject3D.zip of the 16384-point files",
        files=("OmniObject3D.zip",),
        access="login",
        commercial=True,
        official=5_911,
    ),
    SourceInfo(
        name="toys4k",
        module=f"{_HERE}.mesh_archives",
        opener="open_toys4k",
        title="Toys4K, toys of 105 classes",
        licence="each object under its own licence",
        up="y",
        origin="https://github.com/rehg-lab/lowshot-shapebias",
        archive="toys4k_obj_files.zip",
        files=("toys4k_obj_files.zip",),
        access="its authors' form",
        commercial=None,
        official=4_000,
    ),
    SourceInfo(
        name="google-scanned-objects",
        module=f"{_HERE}.scanned_objects",
        opener="open_google_scanned_objects",
        title="Google Scanned Objects, scanned household goods",
        licence="CC BY 4.0",
        up="z",
        origin="https://app.gazebosim.org/GoogleResearch/fuel/collections/Scanned%20Objects%20by%20Google%20Research",
        archive="a folder of <name>.zip, one a model",
        files=("google-scanned-objects/*.zip",),
        access="no login",
        commercial=True,
        official=1_030,
    ),
    SourceInfo(
        name="objaverse-cap3d",
        module=f"{_HERE}.mesh_archives",
        opener="open_cap3d",
        title="Objaverse 1.0 as Cap3D's point clouds",
        licence="ODC-By; each object under its own licence",
        up="z",
        origin="https://huggingface.co/datasets/tiange/Cap3D",
        archive="compressed_pcs_00.zip to compressed_pcs_09.zip",
        files=("compressed_pcs_0?.zip",),
        access="no login",
        commercial=None,
        official=785_150,
    ),
    SourceInfo(
        name="objaverse-xl-cap3d",
        module=f"{_HERE}.mesh_archives",
        opener="open_cap3d",
        title="Objaverse-XL's part of Cap3D's point clouds",
        licence="ODC-By; each object under its own licence",
        up="z",
        origin="https://huggingface.co/datasets/tiange/Cap3D",
        archive="compressed_pcs_10.zip to compressed_pcs_12.zip",
        files=("compressed_pcs_1?.zip",),
        access="no login",
        commercial=None,
        official=221_632,
    ),
    SourceInfo(
        name="objaverse",
        module=f"{_HERE}.objaverse",
        title="Objaverse 1.0, models of all kinds as GLB",
        licence="ODC-By; each object under its own licence",
        up="y",
        origin="https://objaverse.allenai.org",
        archive="the folder hf-objaverse-v1, with object-paths.json.gz and glbs/",
        files=("hf-objaverse-v1/object-paths.json.gz",),
        access="no login",
        commercial=None,
        official=797_084,
    ),
)


def source_info(name: str) -> SourceInfo:
    """The row of a source.

    Raises:
        ConfigError: if there is none of that name; suggests the nearest.
    """
    rows = {info.name: info for info in SOURCES}
    if name in rows:
        return rows[name]
    near = difflib.get_close_matches(name, rows, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(rows)}"
    settings: tuple[str, ...] = ()
    if Path(name).is_dir():
        hint = "for your own files choose the source folder and give it this path"
        settings = ("input",)
    msg = f"no source {name!r}; {hint}"
    raise ConfigError(msg, settings=settings)


def open_source(name: str, request: SourceRequest) -> Source:
    """Open a source: look at its archive, without reading its shapes.

    Raises:
        ConfigError: if there is no such source, or it does not have an option of the request.
        DataError: if its archive is missing or is not what its name says.
    """
    info = source_info(name)
    check_request(request, info)
    opener = getattr(importlib.import_module(info.module), info.opener)
    return cast("Source", opener(request, info))
