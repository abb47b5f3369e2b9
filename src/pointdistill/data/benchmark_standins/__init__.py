"""Stand-ins: archives in the real benchmarks' layouts, made on the spot from built-in shapes.

Each contains a marker by which the readers of `pointdistill.data.benchmarks` recognise it, so that no result on a
stand-in can be mistaken for one on the benchmark.
"""

from __future__ import annotations

from pointdistill.data.benchmark_standins.lvis import LvisSizes, make_lvis_stand_in
from pointdistill.data.benchmark_standins.modelnet import (
    FewshotSizes,
    HalfSizes,
    MeshSizes,
    make_modelnet40_stand_in,
    make_modelnet_fewshot_stand_in,
    make_psb_stand_in,
)
from pointdistill.data.benchmark_standins.scanobjectnn import ScanSizes, make_scanobjectnn_stand_in
from pointdistill.data.benchmark_standins.scans import HARDNESS, Hardness
from pointdistill.data.benchmark_standins.shapenetpart import PartSizes, make_shapenetpart_stand_in
from pointdistill.data.benchmark_standins.zips import STAND_IN_SEED

__all__ = [
    "HARDNESS",
    "STAND_IN_SEED",
    "FewshotSizes",
    "HalfSizes",
    "Hardness",
    "LvisSizes",
    "MeshSizes",
    "PartSizes",
    "ScanSizes",
    "make_lvis_stand_in",
    "make_modelnet40_stand_in",
    "make_modelnet_fewshot_stand_in",
    "make_psb_stand_in",
    "make_scanobjectnn_stand_in",
    "make_shapenetpart_stand_in",
]
