"""Small archives of several sources in one folder, as users of the mixture have them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np

from tests.data.source_archives import (
    WEDGE,
    box_cloud,
    h5_bytes,
    wedge_glb,
    wedge_obj,
    wedge_off,
    write_zip,
)

PART_LIST = "shuffled_test_file_list.json"


def write_archives(folder: Path) -> Path:
    """ModelNet40, ShapeNetCore, ScanObjectNN, ABO, and two scanned objects of which one is no zip."""
    write_modelnet40(folder)
    write_shapenetcore(folder)
    sets = "h5_files/main_split"
    clouds = np.stack([box_cloud(64, seed=k) for k in range(3)])
    write_zip(
        folder / "h5_files.zip",
        {
            f"{sets}/training_objectdataset.h5": h5_bytes(clouds[:2], np.array([4, 0])),
            f"{sets}/test_objectdataset.h5": h5_bytes(clouds[2:], np.array([14])),
        },
    )
    with tarfile.open(folder / "abo-3dmodels.tar", "w") as tar:
        info = tarfile.TarInfo("3dmodels/original/A/B01.glb")
        info.size = len(wedge_glb())
        tar.addfile(info, io.BytesIO(wedge_glb()))
    write_zip(folder / "google-scanned-objects/Cup.zip", {"meshes/model.obj": wedge_obj()})
    (folder / "google-scanned-objects/Broken.zip").write_bytes(b"no zip")
    return folder


def write_modelnet40(folder: Path) -> None:
    """Two shapes for training, one for testing."""
    members: dict[str, str | bytes] = {
        "ModelNet40/chair/train/chair_0001.off": wedge_off(),
        "ModelNet40/airplane/train/airplane_0001.off": wedge_off(2 * WEDGE),
        "ModelNet40/chair/test/chair_0890.off": wedge_off(),
    }
    write_zip(folder / "ModelNet40.zip", members)


def write_shapenetcore(folder: Path) -> None:
    """Two shapes: 02691156/b2 and 03001627/a1."""
    names = ("03001627/a1", "02691156/b2")
    members: dict[str, str | bytes] = {
        f"ShapeNetCore.v2/{name}/models/model_normalized.obj": wedge_obj() for name in names
    }
    write_zip(folder / "ShapeNetCore.v2.zip", members)


def write_objaverse(folder: Path, uids: tuple[str, ...] = ("u1", "u2")) -> None:
    """Objaverse as GLB, with its index."""
    root = folder / "hf-objaverse-v1"
    (root / "glbs").mkdir(parents=True)
    for uid in uids:
        (root / "glbs" / f"{uid}.glb").write_bytes(wedge_glb())
    index = json.dumps({uid: f"glbs/{uid}.glb" for uid in uids}).encode()
    (root / "object-paths.json.gz").write_bytes(gzip.compress(index))


def write_cap3d(folder: Path) -> None:
    """A zip each of Cap3D's clouds of Objaverse 1.0 and of its XL part."""
    for number in ("00", "10"):
        rows = "\n".join(" ".join(f"{v:.4f}" for v in row) for row in box_cloud(64))
        head = "ply\nformat ascii 1.0\nelement vertex 64\n"
        head += "".join(f"property float {axis}\n" for axis in "xyz") + "end_header\n"
        write_zip(
            folder / f"compressed_pcs_{number}.zip",
            {f"Cap3D_pcs/c{number}.ply": head + rows + "\n"},
        )


def write_lists(folder: Path) -> None:
    """ShapeNetPart's list of test shapes, and LVIS's annotation."""
    (folder / PART_LIST).write_text(json.dumps(["shape_data/03001627/a1", "shape_data/0/zz"]))
    annotation = json.dumps({"cup": ["u2", "u9"], "pen": ["u8"]}).encode()
    (folder / "lvis-annotations.json.gz").write_bytes(gzip.compress(annotation))
