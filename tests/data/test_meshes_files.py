"""Real files: each gives its true surface, and each bad one a line that says why it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree

from pointdistill.data.meshes import PointSet, Surface, read_mesh, sample_surface, surface_area
from pointdistill.errors import DataError

FIXTURES = Path(__file__).parent / "meshes"

# Area and extents. All but the skater's were computed with trimesh, which shares no code with our readers
# but those of dae, 3MF and 3DXML: for these a third program gave the same. The skater's come from summing
# weight * joint * inverse bind matrix * vertex, since trimesh leaves skins out.
TRUTH = {
    "draco/bag-flat.gltf": (0.6776524, (0.65, 0.1905227, 0.4674157)),
    "draco/bench.gltf": (10.25335, (2.366038, 1.613035, 1.373886)),
    "draco/bottle.gltf": (0.3905678, (0.1739546, 0.42175, 0.1739546)),
    "draco/burger-cheese.gltf": (1.50905, (0.378, 0.2199836, 0.378)),
    "draco/cake.gltf": (2.009396, (0.6393061, 0.2730833, 0.6391999)),
    "draco/guitar.gltf": (0.6232734, (0.3313252, 0.9393666, 0.1181131)),
    "draco/house-4.gltf": (4.755526, (1.28638, 0.737627, 0.9162396)),
    "draco/library-large.gltf": (38.22387, (2.623946, 1.641064, 3.592788)),
    "draco/pot-lid.gltf": (0.7312207, (0.6574494, 0.1183091, 0.6253317)),
    "draco/skater-male.gltf": (4.571890, (2.316415, 2.409401, 0.6709126)),
    "draco/suv-luxury.gltf": (19.60586, (1.500304, 1.300635, 2.8)),
    "draco/truck-flat.gltf": (20.03602, (1.500233, 1.299866, 2.745115)),
    "good/ballA.off": (605.9094, (13.8274, 13.84253, 13.85429)),
    "good/beetle.obj": (0.5351292, (0.360267, 0.302954, 0.891651)),
    "good/blue_cube.dae": (24, (2, 2.000001, 2)),
    "good/counterX.3MF": (165045.1, (304.8, 304.4088, 12.7)),
    "good/cow.obj": (108.8454, (10.44392, 6.396756, 3.40281)),
    "good/cube_blender_uv.ply": (6, (1, 1, 1)),
    "good/featuretype.STL": (53.82739, (5, 2.5, 1.375)),
    "good/fuze.obj": (0.04472226, (0.072612, 0.073514, 0.215128)),
    "good/glued_header.off": (12.32985, (2, 2, 2)),
    "good/machinist.3DXML": (5744.065, (25.4, 25.4, 25.4)),
    "good/monkey.glb": (12.46088, (2.734375, 1.96875, 1.703125)),
    "good/multibody.stl": (0.367239, (0.6360319, 1.088432, 0.3399277)),
    "good/nested.glb": (8.677204, (1.436395, 3.336595, 0.538763)),
    "good/reference.ply": (39159.77, (148.2534, 188.562, 103.3073)),
    "good/spot.obj": (5.709519, (0.943104, 1.69043, 1.717909)),
    "good/suzanne.obj": (12.46854, (2.734375, 1.96875, 1.703125)),
    "good/teapot.obj": (52.66079, (6.434, 3.15, 4)),
}
COMMITTED = [name for name in TRUTH if (FIXTURES / Path(name).name).is_file()]

BAD = {
    "empty.obj": "0 vertices and no faces",
    "empty.ply": "0 vertices, 0 faces and 0 points",
    "empty.stl": "0 facets",
    "empty_nodes.glb": "0 vertices, 0 faces and 0 points",
    "git_lfs_pointer.obj": "Git LFS pointer",
    "huge_count.ply": "promises 4,000,000,000 of 'vertex'",
    "index_out_of_range.off": "1 of 1 faces cannot be used (index outside the vertices: 1)",
    "nan_vertices.obj": "121 of 320 faces cannot be used (NaN or infinite corner: 121",
    "not_a_mesh.obj": "a NUL at byte 0 of 10,240",
    "truncated.glb": "promises 69,676 bytes, the file has 23,225",
    "truncated_json.gltf": "6,667 bytes of glTF JSON",
    "zero_area.obj": "1 of 1 triangles are degenerate",
}


def read_surface(path: Path) -> Surface:
    surface = read_mesh(path)
    assert isinstance(surface, Surface)
    return surface


def extents(surface: Surface) -> np.ndarray:
    return np.ptp(surface.vertices[surface.faces.ravel()], axis=0)


def check_truth(path: Path, name: str) -> None:
    area, sides = TRUTH[name]
    surface = read_surface(path)
    assert surface_area(surface) == pytest.approx(area, rel=1e-6)
    assert extents(surface) == pytest.approx(sides, rel=1e-6)


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_file_gives_its_true_surface(name: str) -> None:
    check_truth(FIXTURES / Path(name).name, name)


@pytest.mark.parametrize("name", TRUTH)
def test_a_shared_file_gives_its_true_surface(name: str, shared_dir: Path) -> None:
    check_truth(shared_dir / "meshes" / name, name)


def test_the_table_misses_no_shared_file(shared_dir: Path) -> None:
    folder = shared_dir / "meshes"
    found = {
        f"{kind}/{file.name}" for kind in ("good", "draco") for file in (folder / kind).iterdir()
    }
    assert found == set(TRUTH)
    assert {file.name for file in (folder / "bad").iterdir()} == {*BAD, "notenoughindices.obj"}


@pytest.mark.parametrize("name", ["monkey.glb", "nested.glb", "multibody.stl", "reference.ply"])
def test_a_surface_agrees_with_another_reader(name: str) -> None:
    """trimesh reads these with code of its own."""
    path = FIXTURES / name
    loaded = trimesh.load(path, process=False)
    other = loaded.to_geometry() if isinstance(loaded, trimesh.Scene) else loaded
    surface = read_surface(path)
    assert len(surface.faces) == len(other.faces)
    assert surface_area(surface) == pytest.approx(other.area, rel=1e-6)
    corners = surface.vertices[surface.faces.ravel()]
    assert [corners.min(0), corners.max(0)] == [
        pytest.approx(bound, rel=1e-6) for bound in other.bounds
    ]


@pytest.mark.parametrize("name", ["bag-flat.gltf", "bottle.gltf", "cake.gltf"])
def test_decoded_vertices_fill_the_bounds_that_the_file_states(name: str) -> None:
    """The glTF accessors state each primitive's bounds before compression; quantisation moves them by 1e-3."""
    document = json.loads((FIXTURES / name).read_text())
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for node in document["nodes"]:
        if "mesh" not in node:
            continue
        scale = np.array(node.get("scale", (1, 1, 1)))
        for primitive in document["meshes"][node["mesh"]]["primitives"]:
            accessor = document["accessors"][primitive["attributes"]["POSITION"]]
            sides = (np.array(accessor["max"]) - accessor["min"]) * scale
            low, high = np.minimum(low, sides), np.maximum(high, sides)
    sides = extents(read_surface(FIXTURES / name))
    assert (sides >= high - 2e-3).all()
    if name != "cake.gltf":  # one placed mesh: the bounds are the object's
        assert sides == pytest.approx(high, abs=2e-3)


def test_the_same_object_in_two_formats_has_one_shape(shared_dir: Path) -> None:
    """The OBJ has quads that are not flat, so the choice of diagonals moves the area by less than 0.1 %."""
    first = read_surface(shared_dir / "meshes/good/suzanne.obj")
    second = read_surface(shared_dir / "meshes/good/monkey.glb")
    assert surface_area(first) == pytest.approx(surface_area(second), rel=1e-3)
    assert extents(first) == pytest.approx(extents(second), rel=1e-6)
    # The OBJ stands elsewhere, so both are compared from their lower corner.
    one, other = (shape.vertices - shape.vertices.min(0) for shape in (first, second))
    assert cKDTree(one).query(other)[0].max() < 1e-5
    assert cKDTree(other).query(one)[0].max() < 1e-5


def test_a_skin_stands_where_its_joints_are() -> None:
    """The node above the skater scales by 0.64; glTF places a skinned mesh by its joints, which do not."""
    document = json.loads((FIXTURES / "skater-male.gltf").read_text())
    accessor = document["accessors"][
        document["meshes"][0]["primitives"][0]["attributes"]["POSITION"]
    ]
    stated = np.array(accessor["max"]) - accessor["min"]
    assert extents(read_surface(FIXTURES / "skater-male.gltf")) == pytest.approx(stated, rel=5e-3)


@pytest.mark.parametrize(
    ("name", "up"),
    [("monkey.glb", "y"), ("counterX.3MF", "z"), ("blue_cube.dae", "z"), ("multibody.stl", None)],
)
def test_the_up_axis_is_stated_where_the_format_has_one(name: str, up: str | None) -> None:
    assert read_mesh(FIXTURES / name).declared_up == up


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gives_one_line_with_its_name_and_cause(name: str, shared_dir: Path) -> None:
    path = shared_dir / "meshes/bad" / name
    with pytest.raises(DataError) as caught:
        read_mesh(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert BAD[name] in message
    assert "\n" not in message


def test_repair_drops_faces_with_a_nan_corner_and_counts_them(shared_dir: Path) -> None:
    surface = read_mesh(shared_dir / "meshes/bad/nan_vertices.obj", repair=True)
    assert isinstance(surface, Surface)
    assert (surface.dropped_faces, len(surface.faces)) == (121, 320 - 121)
    assert np.isfinite(surface.vertices[surface.faces]).all()


def test_a_face_with_two_corners_is_left_out_and_counted() -> None:
    """The triangle that is left has legs of 1000 and 500."""
    surface = read_mesh(FIXTURES / "notenoughindices.obj")
    assert isinstance(surface, Surface)
    assert surface.dropped_faces == 1
    assert surface_area(surface) == 250_000


def test_a_cloud_is_taken_as_it_is() -> None:
    cloud = read_mesh(FIXTURES / "points_emptyface.ply")
    assert isinstance(cloud, PointSet)
    assert cloud.points.shape == (1024, 3)
    assert cloud.points[0] == pytest.approx((-86.01312256, 39.38998413, -32.02719879))
    whole = sample_surface(FIXTURES / "points_emptyface.ply", 1024, seed=3)
    assert (whole == cloud.points.astype(np.float32)).all()


def test_a_cloud_with_more_points_gives_distinct_ones_in_its_order() -> None:
    points = sample_surface(FIXTURES / "points_emptyface.ply", 100, seed=3)
    whole = sample_surface(FIXTURES / "points_emptyface.ply", 1024, seed=3)
    places = [int(np.flatnonzero((whole == point).all(axis=1))[0]) for point in points]
    assert places == sorted(set(places))


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("points_emptyface.ply", 2048, "1,024 points, 2,048 are needed; ask for at most 1,024"),
        ("points_bin.ply", 5, "5 points, 32 are needed; use a denser scan"),
    ],
)
def test_a_cloud_with_too_few_points_says_how_many_are_needed(
    name: str, count: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        sample_surface(FIXTURES / name, count, seed=0)
