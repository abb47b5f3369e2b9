"""Any mesh or point file -> points on its surface. Nothing here knows about learning, or imports torch.

A file passes through three stages: the reader of its format (`formats/`) returns a raw mesh, `checks` counts what
cannot be used and refuses or drops it, and `sampling` draws points. `batch` does this for many files.
"""

from pointdistill.data.meshes.read import FORMATS, MESH_SUFFIXES, read_mesh
from pointdistill.data.meshes.records import MINIMUM_POINTS, Axis, MeshLimits, PointSet, Surface
from pointdistill.data.meshes.sample import (
    FailedFile,
    LeftOutWarning,
    RepairWarning,
    SampledFile,
    SampleReport,
    named_rng,
    sample_files,
    sample_surface,
)
from pointdistill.data.meshes.sampling import AXES, check_axis, draw, surface_area, to_z_up

__all__ = [
    "AXES",
    "FORMATS",
    "MESH_SUFFIXES",
    "MINIMUM_POINTS",
    "Axis",
    "FailedFile",
    "LeftOutWarning",
    "MeshLimits",
    "PointSet",
    "RepairWarning",
    "SampleReport",
    "SampledFile",
    "Surface",
    "check_axis",
    "draw",
    "named_rng",
    "read_mesh",
    "sample_files",
    "sample_surface",
    "surface_area",
    "to_z_up",
]
