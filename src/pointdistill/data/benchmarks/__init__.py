"""Labelled sets with their official splits, read from the archives that users have.

The reader of ModelNet40 is in `pointdistill.data.benchmarks.modelnet40`: it needs the readers of
meshes, which know the archives below.
"""

from __future__ import annotations

from pointdistill.data.benchmarks.records import Benchmark, LabelledClouds
from pointdistill.data.benchmarks.scanobjectnn import read_scanobjectnn

__all__ = ["Benchmark", "LabelledClouds", "read_scanobjectnn"]
