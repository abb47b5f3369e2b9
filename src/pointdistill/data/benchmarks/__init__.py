"""Labelled sets with their official splits, read in place from the archives that users have."""

from __future__ import annotations

from pointdistill.data.benchmarks.modelnet40 import read_modelnet40
from pointdistill.data.benchmarks.records import Benchmark, LabelledClouds
from pointdistill.data.benchmarks.scanobjectnn import read_scanobjectnn

__all__ = ["Benchmark", "LabelledClouds", "read_modelnet40", "read_scanobjectnn"]
