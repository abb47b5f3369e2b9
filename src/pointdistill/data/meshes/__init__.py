"""Any mesh or point file -> points on its surface. Nothing here knows about learning, or imports torch.

The way of a file: a reader of its format (`formats/`) drafts what it finds, `checks` counts what cannot be
used and refuses or drops it, `sampling` draws points, `batch` does it for many files.
"""

from pointdistill.data.meshes.batch import FailedFile, SampledFile, SampleReport, sample_files
from pointdistill.data.meshes.read import FORMATS, MESH_SUFFIXES, read_mesh
from pointdistill.data.meshes.records import MINIMUM_POINTS, Axis, MeshLimits, PointSet, Surface
from pointdistill.data.meshes.sample import RepairWarning, named_shape_rng, sample_surface
from pointdistill.data.meshes.sampling import AXES, check_axis, draw, surface_area, to_z_up

__all__ = [
    "AXES",
    "FORMATS",
    "MESH_SUFFIXES",
    "MINIMUM_POINTS",
    "Axis",
    "FailedFile",
    "MeshLimits",
    "PointSet",
    "RepairWarning",
    "SampleReport",
    "SampledFile",
    "Surface",
    "check_axis",
    "draw",
    "named_shape_rng",
    "read_mesh",
    "sample_files",
    "sample_surface",
    "surface_area",
    "to_z_up",
]
