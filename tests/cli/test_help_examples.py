"""The example that ends each command's help runs, in the order of the list, in one folder."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trimesh

from pointdistill.cli import COMMANDS, main
from pointdistill.data.benchmark_standins import ScanSizes, make_scanobjectnn_stand_in

SHORTER = {
    "prepare-data": "--points 512 --workers 0",
    "leaks": "--workers 1",
    "plan": "--no-measure --device cpu",
    "pretrain": "--steps 1 --batch-size 2 --device cpu",
    "finetune": "--epochs 1 --device cpu",
    "evaluate": "--protocol knn --seeds 1 --device cpu",
    "reconstruct": "--steps 1 --device cpu",
    "embed": "--points 64 --draws 1 --turns 1 --device cpu",
    "search": "--device cpu",
    "predict": "--device cpu",
}
"""What is added here to take seconds; nothing is taken away."""

ELSEWHERE = "quickstart"
"""Takes minutes; tests/engine/test_quickstart.py runs it."""


def examples() -> Iterator[tuple[str, list[str]]]:
    for entries in COMMANDS.values():
        for entry in entries:
            words = shlex.split(entry.example)
            if words[0] != ELSEWHERE:
                yield words[0], [*words, *shlex.split(SHORTER.get(words[0], ""))]


def test_examples_run_in_the_order_of_the_list(
    golden_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(10):
        for name, mesh in (
            ("box", trimesh.creation.box((1.0, 1.0 + number, 2.0))),
            ("rod", trimesh.creation.cylinder(0.3, 2.0 + number, sections=9)),
        ):
            path = Path("meshes", name, f"{number}.stl")
            path.parent.mkdir(parents=True, exist_ok=True)
            mesh.export(path)
    trimesh.creation.box((1.0, 1.5, 2.0)).export("chair.stl")
    shutil.copy(golden_dir / "official_tiny.ckpt", "asymdsd.ckpt")
    make_scanobjectnn_stand_in(
        Path("data/h5_files.zip"), sizes=ScanSizes(train=2, test=1, copies=1), workers=1
    )
    for name, words in examples():
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 0, (name, capsys.readouterr().err)
    for written in (
        "data/own/corpus.json",
        "chair.ply",
        "meshes.npz",
        "my-encoder",
        "card/README.md",
    ):
        assert Path(written).exists()
