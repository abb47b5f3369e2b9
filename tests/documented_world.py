"""A folder with everything that the pages speak of, tiny: files, archives, corpora, runs, models.

`build` makes it once; the lines of each page run in a copy that begins with the archives, and gets whatever else
a line reads.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import trimesh

import pointdistill
from pointdistill.data.benchmark_standins import (
    HalfSizes,
    MeshSizes,
    PartSizes,
    ScanSizes,
    make_modelnet40_stand_in,
    make_psb_stand_in,
    make_scanobjectnn_stand_in,
    make_shapenetpart_stand_in,
)
from pointdistill.data.benchmark_standins.lvis import LvisSizes, make_lvis_stand_in
from pointdistill.data.benchmark_standins.modelnet import (
    FewshotSizes,
    make_modelnet_fewshot_stand_in,
)
from pointdistill.data.synthetic_shapes import category_rng, make_shape
from pointdistill.engine.quickstart import QuickstartConfig, stand_in_path
from tests.data.mixture_archives import write_archives, write_cap3d, write_lists, write_shapenetcore
from tests.data.source_archives import wedge_obj, write_zip

ROOT = Path(__file__).parents[1]
PARTS = "shapenetcore_partanno_segmentation_benchmark_v0_normal.zip"
CLASSES = ("chair", "lamp", "mug")
EACH = 10
"""Meshes of a class: as many as cross-validation asks for."""
TINY_RUN = ("--size", "tiny", "--steps", "1", "--batch-size", "4", "--device", "cpu")

Run = Callable[..., None]
"""Types a command in the folder; raises if it fails."""


def build(folder: Path, run: Run, interrupt: Run) -> None:
    """Everything, in a new folder.

    Args:
        folder: must not exist.
        run: takes the words after ``pointdistill``.
        interrupt: the same for a training, which it stops by Ctrl-C as soon as there is something to resume.
    """
    folder.mkdir(parents=True)
    _write_meshes(folder)
    _write_archives(folder)
    run("prepare-data", "mixture", "--archives", "downloads", "--points", "600", "--workers", "0")
    _write_names(folder / "data" / "mixture", folder / "names.txt")
    # The corpus made last is the one that lines without `--data` use.
    run("prepare-data", "builtin", "--shapes", "56", "--points", "600", "--workers", "0")
    for name in ("mine", "own", "other", "procedural", "shapenet", "my-meshes"):
        shutil.copytree(folder / "data" / "builtin", folder / "data" / name)
    run("pretrain", *TINY_RUN, "--run", "runs/tiny-dual-1")
    for name in ("a", "b", "own", "mine", "small-dual-1", "tiny-dual-2", "adapted"):
        shutil.copytree(folder / "runs" / "tiny-dual-1", folder / "runs" / name)
    # The quickstart makes a stand-in of 3,810 scans unless one is there: a tiny one, under the name it looks for.
    make_scanobjectnn_stand_in(
        stand_in_path(folder / "quickstart", QuickstartConfig()),
        splits=["OBJ-BG"],
        sizes=ScanSizes(train=4, test=2, copies=1),
        workers=1,
    )
    run("finetune", "--data", "my-shapes", "--epochs", "1", "--output", "models/my-shapes")
    for name in ("own", "mine"):
        shutil.copytree(folder / "models" / "my-shapes", folder / "models" / name)
    interrupt("finetune", "--data", "my-shapes", "--epochs", "40", "--output", "models/interrupted")
    run("embed", "my-meshes", "--output", "my-meshes.npz")
    shutil.copy(folder / "my-meshes.npz", folder / "meshes.npz")
    run("export", "my-encoder", "--encoder", "runs/tiny-dual-1")
    checkpoint = ROOT / "tests" / "golden" / "official_tiny.ckpt"
    for name in ("my-checkpoint.ckpt", "asymdsd.ckpt"):
        shutil.copy(checkpoint, folder / name)
    (folder / "run.toml").write_text('recipe = "tiny-mpm"\nbatch_size = 4\n')


def begin(world: Path, folder: Path) -> None:
    """A page's own folder: the archives, and a corpus and a run that were made last, as the pages assume."""
    folder.mkdir(parents=True)
    for name in ("data", "runs/tiny-dual-1", ".pointdistill", "examples", "my-meshes"):
        shutil.copytree(world / name, folder / name)


def provide(world: Path, folder: Path, name: str) -> None:
    """Copy what a line reads into a page's folder, unless an earlier line made it."""
    source, target = world / name, folder / name
    if (
        Path(name).is_absolute()
        or ".." in Path(name).parts
        or not source.exists()
        or target.exists()
    ):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if source.is_dir() else shutil.copy)(source, target)


def _write_meshes(folder: Path) -> None:
    """Meshes of three classes in OBJ files, alone and in sub-folders; chair-0 is there twice."""
    meshes = {f"{name}-{index}": _mesh(name, index) for name in CLASSES for index in range(EACH)}
    for name, mesh in meshes.items():
        place = folder / "my-shapes" / name.rpartition("-")[0] / f"{name}.obj"
        place.parent.mkdir(parents=True, exist_ok=True)
        mesh.export(place)
    for place in ("my-meshes", "meshes"):
        shutil.copytree(folder / "my-shapes", folder / place)
    shutil.copy(folder / "my-shapes/chair/chair-0.obj", folder / "my-meshes/chair/again.obj")
    (folder / "new").mkdir()
    for target, mesh in (
        ("chair.obj", meshes["chair-1"]),
        ("my-meshes/chair.off", meshes["chair-1"]),
        ("chair.stl", meshes["chair-1"]),
        ("lamp.glb", meshes["lamp-0"]),
        ("lamp.stl", meshes["lamp-0"]),
        ("mug.obj", meshes["mug-0"]),
        ("new.obj", meshes["mug-1"]),
        ("new/one.obj", meshes["mug-2"]),
        ("new/two.obj", meshes["lamp-2"]),
    ):
        mesh.export(folder / target)
    shutil.copytree(ROOT / "examples", folder / "examples")


def _mesh(name: str, index: int) -> trimesh.Trimesh:
    shape = make_shape(name, rng=category_rng(seed=3, category=name, index=index))
    return trimesh.Trimesh(shape.vertices, shape.faces, process=False)


def _write_names(corpus: Path, file: Path) -> None:
    """Two ids of a corpus, as a list of a reader's own."""
    ids = pointdistill.open_corpus(corpus).ids()[:2]
    file.write_text("".join(f"{one}\n" for one in ids), encoding="utf-8")


def _write_archives(folder: Path) -> None:
    """The benchmarks' archives under data/, beside the files of the pages, and as stand-ins; the mixture's."""
    data = folder / "data"
    stand_ins = data / "stand-in"
    stand_ins.mkdir(parents=True)
    make_scanobjectnn_stand_in(
        stand_ins / "h5_files.zip", sizes=ScanSizes(train=2, test=1, copies=1), workers=1
    )
    make_modelnet40_stand_in(
        stand_ins / "ModelNet40.zip", sizes=MeshSizes(train=1, test=1), workers=1
    )
    make_modelnet_fewshot_stand_in(
        stand_ins / "ModelNetFewshot.zip",
        sizes=FewshotSizes(folds=1, test=1, points=300),
        workers=1,
    )
    make_shapenetpart_stand_in(
        stand_ins / PARTS, sizes=PartSizes(train=2, val=1, test=1, points=400), workers=1
    )
    make_psb_stand_in(
        stand_ins / "psb_v1.zip", sizes=HalfSizes(classes=CLASSES, train=10, test=10), workers=1
    )
    sizes = LvisSizes(
        categories=(*CLASSES, "bed"), each=11, scarce=1, unlabelled=1, missing=1, points=300
    )
    make_lvis_stand_in(data / "lvis", sizes=sizes, workers=1)
    for path in list(stand_ins.iterdir()):
        shutil.copy(path, data / path.name)
    shutil.move(data / "lvis" / "lvis-annotations.json.gz", data / "lvis-annotations.json.gz")
    shutil.move(data / "lvis" / "corpus", data / "objaverse")
    shutil.rmtree(data / "lvis")
    for name in ("h5_files.zip", "ModelNet40.zip", "lvis-annotations.json.gz"):
        shutil.copy(data / name, folder / name)
    shutil.copy(data / "psb_v1.zip", folder / "psb_v1_train.zip")
    write_shapenetcore(folder)
    downloads = folder / "downloads"
    downloads.mkdir()
    write_archives(downloads)
    write_cap3d(downloads)
    write_lists(downloads)
    # A member of the scanned objects that is no zip is a test of its own; here all is well.
    (downloads / "google-scanned-objects" / "Broken.zip").unlink()
    for number in (1, 2, 3, 4):
        part = f"3D-FUTURE-model-part{number}"
        table = {f"{part}/model_info.json": "[]"} if number == 1 else {}
        shape = {f"{part}/shape{number}/normalized_model.obj": wedge_obj()}
        write_zip(downloads / f"{part}.zip", table | shape)
