"""Labelled sets with their official splits, read in place from the archives that users have."""

from __future__ import annotations

from pointdistill.data.benchmarks.lvis import LvisShapes, draw_lvis, read_lvis
from pointdistill.data.benchmarks.modelnet40 import read_modelnet40
from pointdistill.data.benchmarks.modelnet_fewshot import (
    FEWSHOT_SETTINGS,
    FOLDS,
    read_modelnet_fewshot,
)
from pointdistill.data.benchmarks.part_records import PartBenchmark, PartClouds
from pointdistill.data.benchmarks.records import Benchmark, LabelledClouds
from pointdistill.data.benchmarks.scanobjectnn import read_scanobjectnn
from pointdistill.data.benchmarks.shapenetpart import read_shapenetpart

__all__ = [
    "FEWSHOT_SETTINGS",
    "FOLDS",
    "Benchmark",
    "LabelledClouds",
    "LvisShapes",
    "PartBenchmark",
    "PartClouds",
    "draw_lvis",
    "read_lvis",
    "read_modelnet40",
    "read_modelnet_fewshot",
    "read_scanobjectnn",
    "read_shapenetpart",
]
