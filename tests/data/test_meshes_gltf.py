"""glTF: the box in every way that accessors, nodes, modes and Draco allow, and what is refused."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import DracoPy
import numpy as np
import pytest

from pointdistill.data.meshes import MeshLimits, PointSet, read_mesh, surface_area
from pointdistill.data.meshes.formats.gltf_buffers import DracoDecoder
from pointdistill.errors import DataError
from tests.data.meshes.box import BOX, QUADS, TRIANGLES, bounds, check_box, read_surface

Json = dict[str, Any]
FLOAT, USHORT, UINT, BYTE = 5126, 5123, 5125, 5120
HALF_TURN_ABOUT_Z = [0, 0, 1, 0]


class Builder:
    """A glTF document whose arrays lie in one buffer, one view each."""

    def __init__(self) -> None:
        self.data = b""
        self.json: Json = {
            "asset": {"version": "2.0"},
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
            "meshes": [{"primitives": []}],
            "accessors": [],
            "bufferViews": [],
        }

    def view(self, data: bytes, **more: object) -> int:
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data), **more}
        self.json["bufferViews"].append(view)
        self.data += data + bytes(-len(data) % 4)
        return len(self.json["bufferViews"]) - 1

    def accessor(self, array: np.ndarray, kind: str, component: int, **more: object) -> int:
        view = {} if "bufferView" in more else {"bufferView": self.view(array.tobytes())}
        accessor = {"componentType": component, "count": len(array), "type": kind, **view, **more}
        self.json["accessors"].append(accessor)
        return len(self.json["accessors"]) - 1

    def positions(self, vertices: np.ndarray = BOX) -> int:
        return self.accessor(vertices.astype("<f4"), "VEC3", FLOAT)

    def indices(self, corners: object) -> int:
        return self.accessor(np.asarray(corners, "<u2").reshape(-1), "SCALAR", USHORT)

    def primitive(self, **primitive: object) -> None:
        self.json["meshes"][0]["primitives"].append(primitive)

    def box(self, vertices: np.ndarray = BOX) -> None:
        self.primitive(
            attributes={"POSITION": self.positions(vertices)}, indices=self.indices(TRIANGLES)
        )

    def write(self, path: Path) -> Path:
        self.json["buffers"] = [{"byteLength": len(self.data)}]
        if path.suffix == ".glb":
            text = json.dumps(self.json).encode()
            text += b" " * (-len(text) % 4)
            chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
            chunks += struct.pack("<II", len(self.data), 0x004E4942) + self.data
            path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
        else:
            encoded = base64.b64encode(self.data).decode()
            self.json["buffers"][0]["uri"] = f"data:application/octet-stream;base64,{encoded}"
            path.write_text(json.dumps(self.json))
        return path


def plain(builder: Builder) -> None:
    builder.box()


def without_indices(builder: Builder) -> None:
    builder.primitive(attributes={"POSITION": builder.positions(BOX[np.ravel(TRIANGLES)])})


def strided(builder: Builder) -> None:
    """Positions of 12 bytes in rows of 20, after 8 bytes of something else."""
    rows = b"".join(b"somethng" + struct.pack("<3f", *vertex) for vertex in BOX)
    view = builder.view(rows, byteStride=20)
    position = builder.accessor(BOX, "VEC3", FLOAT, bufferView=view, byteOffset=8)
    builder.primitive(attributes={"POSITION": position}, indices=builder.indices(TRIANGLES))


def sparse(builder: Builder) -> None:
    """Zeros but for the 7 corners away from the origin."""
    rows = np.arange(1, 8, dtype="<u2")
    changed = {
        "count": 7,
        "indices": {"bufferView": builder.view(rows.tobytes()), "componentType": USHORT},
        "values": {"bufferView": builder.view(BOX[1:].astype("<f4").tobytes())},
    }
    builder.json["accessors"].append(
        {"componentType": FLOAT, "count": 8, "type": "VEC3", "sparse": changed}
    )
    builder.primitive(attributes={"POSITION": 0}, indices=builder.indices(TRIANGLES))


def quantised(builder: Builder) -> None:
    """Bytes of 127 for 1, in a box of 1 x 1 x 1 that the node stretches."""
    corners = ((BOX > 0) * 127).astype("<i1")
    padded = np.concatenate([corners, np.zeros((8, 1), "<i1")], axis=1)
    view = builder.view(padded.tobytes(), byteStride=4)
    position = builder.accessor(BOX, "VEC3", BYTE, bufferView=view, normalized=True)
    builder.json["extensionsRequired"] = ["KHR_mesh_quantization"]
    builder.json["nodes"][0]["scale"] = [1, 2, 3]
    builder.primitive(attributes={"POSITION": position}, indices=builder.indices(TRIANGLES))


def strips_and_fans(builder: Builder) -> None:
    for a, b, c, d in QUADS[:3]:
        builder.primitive(
            attributes={"POSITION": builder.positions()},
            indices=builder.indices([a, b, d, c]),
            mode=5,
        )
    for quad in QUADS[3:]:
        builder.primitive(
            attributes={"POSITION": builder.positions()}, indices=builder.indices(quad), mode=6
        )


def with_points_and_lines(builder: Builder) -> None:
    builder.box()
    builder.primitive(attributes={"POSITION": builder.positions(BOX * 9)}, mode=0)
    builder.primitive(attributes={"POSITION": builder.positions(BOX * 9)}, mode=1)


def nested(builder: Builder) -> None:
    """Halved and moved by the child, then turned by half a turn, doubled and moved back by the parent."""
    builder.box()
    builder.json["nodes"] = [
        {
            "children": [1],
            "rotation": HALF_TURN_ABOUT_Z,
            "scale": [2, 2, 2],
            "translation": [3, 4, 0],
        },
        {"matrix": [0.5, 0, 0, 0, 0, 0.5, 0, 0, 0, 0, 0.5, 0, 1, 1, 0, 1], "children": [2]},
        {"mesh": 0},
    ]


def skinned(builder: Builder) -> None:
    """Two joints that moved by (5, 0, 0) since they were bound hold the corners half and half."""
    builder.box(BOX - (5, 0, 0))
    joints = np.tile(np.array([0, 1, 0, 0], "<u1"), (8, 1))
    weights = np.tile(np.array([0.5, 0.5, 0, 0], "<f4"), (8, 1))
    attributes = builder.json["meshes"][0]["primitives"][0]["attributes"]
    attributes["JOINTS_0"] = builder.accessor(joints, "VEC4", 5121)
    attributes["WEIGHTS_0"] = builder.accessor(weights, "VEC4", FLOAT)
    bind = np.tile(np.eye(4, dtype="<f4").ravel(), (2, 1))
    inverse = builder.accessor(bind, "MAT4", FLOAT)
    builder.json["nodes"] = [
        {"children": [1, 2], "translation": [5, 0, 0]},
        {"mesh": 0, "skin": 0, "scale": [7, 7, 7]},
        {"children": [3]},
        {},
    ]
    builder.json["skins"] = [{"joints": [2, 3], "inverseBindMatrices": inverse}]


def morphed(builder: Builder) -> None:
    builder.box(BOX - (1, 0, 0))
    shift = builder.positions(np.tile([4.0, 0, 0], (8, 1)))
    builder.json["meshes"][0]["primitives"][0]["targets"] = [{"POSITION": shift}]
    builder.json["meshes"][0]["weights"] = [0.25]


def compressed(builder: Builder) -> None:
    builder.json["extensionsRequired"] = ["KHR_draco_mesh_compression"]
    stream = DracoPy.encode(BOX, np.array(TRIANGLES), quantization_bits=14)
    for accessor in ({"count": 8, "type": "VEC3"}, {"count": 36, "type": "SCALAR"}):
        builder.json["accessors"].append({"componentType": FLOAT, **accessor})
    extension = {"bufferView": builder.view(stream), "attributes": {"POSITION": 0}}
    builder.primitive(
        attributes={"POSITION": 0}, indices=1, extensions={"KHR_draco_mesh_compression": extension}
    )


def missing_texture(builder: Builder) -> None:
    builder.box()
    builder.json["meshes"][0]["primitives"][0]["material"] = 0
    builder.json["materials"] = [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}]
    builder.json["images"] = [{"uri": "gone.png"}]


def without_scenes(builder: Builder) -> None:
    builder.box()
    del builder.json["scene"], builder.json["scenes"]


FORMS = [
    plain, without_indices, strided, sparse, quantised, strips_and_fans, with_points_and_lines, nested,
    skinned, morphed, compressed, missing_texture, without_scenes,
]  # fmt: skip


@pytest.mark.parametrize("suffix", [".gltf", ".glb"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_gltf(form: Callable[[Builder], None], suffix: str, tmp_path: Path) -> None:
    builder = Builder()
    form(builder)
    path = builder.write(tmp_path / f"box{suffix}")
    check_box(path)
    assert read_mesh(path).declared_up == "y"


def test_a_buffer_beside_the_file(tmp_path: Path) -> None:
    builder = Builder()
    builder.box()
    path = builder.write(tmp_path / "box.gltf")
    (tmp_path / "a b.bin").write_bytes(builder.data)
    builder.json["buffers"][0]["uri"] = "a%20b.bin"
    path.write_text(json.dumps(builder.json))
    check_box(path)


@pytest.mark.parametrize(
    "uri", ["gone.bin", "../outside.bin", "http://example.com/a.bin", "/etc/hostname"]
)
def test_a_buffer_elsewhere_is_refused(uri: str, tmp_path: Path) -> None:
    (tmp_path / "outside.bin").write_bytes(bytes(4096))
    folder = tmp_path / "folder"
    folder.mkdir()
    builder = Builder()
    builder.box()
    path = builder.write(folder / "box.gltf")
    builder.json["buffers"][0]["uri"] = uri
    path.write_text(json.dumps(builder.json))
    with pytest.raises(DataError, match="is not a file in its folder"):
        read_mesh(path)


def test_points_alone_are_a_cloud(tmp_path: Path) -> None:
    builder = Builder()
    builder.primitive(attributes={"POSITION": builder.positions()}, mode=0)
    builder.json["nodes"][0]["translation"] = [1, 0, 0]
    cloud = read_mesh(builder.write(tmp_path / "points.glb"))
    assert isinstance(cloud, PointSet)
    assert cloud.points.tolist() == (BOX + np.array([1, 0, 0])).tolist()


def test_two_nodes_with_one_mesh_are_two_boxes(tmp_path: Path) -> None:
    builder = Builder()
    builder.box()
    builder.json["scenes"][0]["nodes"] = [0, 1]
    builder.json["nodes"].append({"mesh": 0, "translation": [9, 0, 0], "scale": [-1, 1, 1]})
    surface = read_surface(builder.write(tmp_path / "two.glb"))
    assert surface_area(surface) == pytest.approx(44)
    assert surface.vertices.max(0).tolist() == [9, 2, 3]


def break_required(json_: Json) -> None:
    json_["extensionsRequired"] = ["KHR_materials_unlit", "EXT_meshopt_compression"]


def break_loop(json_: Json) -> None:
    json_["nodes"][0]["children"] = [0]


def break_view(json_: Json) -> None:
    json_["bufferViews"][0]["byteLength"] = 10**9


def break_count(json_: Json) -> None:
    json_["accessors"][0]["count"] = 9


def break_huge_count(json_: Json) -> None:
    json_["accessors"][0]["count"] = 4_000_000_000


def break_reference(json_: Json) -> None:
    json_["meshes"][0]["primitives"][0]["attributes"]["POSITION"] = 7


def break_indices(json_: Json) -> None:
    json_["accessors"][1]["count"] = 35


def break_stride(json_: Json) -> None:
    json_["bufferViews"][0]["byteStride"] = -12


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_required, "needs the extension EXT_meshopt_compression; export"),
        (break_loop, "node 0 has two parents or is its own ancestor"),
        (break_view, "wants bytes 0 to 1,000,000,000 of 168"),
        (break_count, "an accessor of 9 entries wants bytes 0 to 108 of 96"),
        (break_huge_count, "12,000,000,000 accessor values, at most"),
        (break_reference, "refers to entry 7 of 2 accessors"),
        (break_indices, "35 indices are not triangles"),
        (break_stride, "an accessor of 8 entries"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damage_is_named(damage: Callable[[Json], None], message: str, tmp_path: Path) -> None:
    builder = Builder()
    builder.box()
    damage(builder.json)
    with pytest.raises(DataError, match=message):
        read_mesh(builder.write(tmp_path / "box.glb"))


STREAM = DracoPy.encode(BOX, np.array(TRIANGLES), quantization_bits=14)


def test_a_draco_stream_gives_its_points_and_faces() -> None:
    mesh = DracoDecoder().decode(STREAM, vertices=8, faces=12)
    assert sorted(mesh.points.round(3).tolist()) == sorted(BOX.tolist())
    assert len(mesh.corners) == 36
    assert mesh.attribute(0) == pytest.approx(mesh.points)


def test_both_methods_of_draco_state_their_counts() -> None:
    """Order is kept by the sequential method alone."""
    stream = DracoPy.encode(BOX, np.array(TRIANGLES), quantization_bits=14, preserve_order=True)
    assert stream[8] == 0
    assert STREAM[8] == 1
    mesh = DracoDecoder().decode(stream, vertices=8, faces=12)
    assert mesh.points == pytest.approx(BOX, abs=1e-3)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"DRACO\2\2\1\1\0\0", "end inside their head"),
        (b"junk" * 20, "expected a Draco mesh of version 2"),
        (STREAM[:60], "cannot be decoded"),
        # 2 ** 28 - 1 vertices in a stream of a few bytes.
        (STREAM[:12] + b"\xff\xff\xff\x7f" + STREAM[13:], "a Draco stream of 268,435,455 vertices"),
    ],
)
def test_a_damaged_draco_stream_is_refused_before_it_costs_anything(
    stream: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        DracoDecoder().decode(stream, vertices=8, faces=12)


def test_draco_metadata_are_passed_over() -> None:
    """One attribute with an entry (k: v) and a tree t without any; the file with none."""
    attribute = b"\1" + b"\0" + b"\1" + b"\1k" + b"\1v" + b"\1" + b"\1t" + b"\0\0"
    flagged = STREAM[:10] + b"\x80" + attribute + b"\0\0" + STREAM[11:]
    mesh = DracoDecoder().decode(flagged, vertices=8, faces=12)
    assert mesh.points == pytest.approx(DracoDecoder().decode(STREAM, vertices=8, faces=12).points)


def test_all_draco_streams_of_a_file_share_one_deadline() -> None:
    with pytest.raises(DataError, match="longer to decode than their size allows"):
        DracoDecoder(seconds_left=0.0).decode(STREAM, vertices=8, faces=12)


def morphing(mesh_weights: list[float] | None, *node_weights: list[float] | None) -> Builder:
    """A box of 1 x 2 x 3 that its only target makes 2 wide; a node for each weights, ten apart."""
    builder = Builder()
    wider = builder.positions(np.where(BOX[:, :1] > 0, [1.0, 0.0, 0.0], 0.0))
    builder.primitive(
        attributes={"POSITION": builder.positions()},
        indices=builder.indices(TRIANGLES),
        targets=[{"POSITION": wider}],
    )
    if mesh_weights is not None:
        builder.json["meshes"][0]["weights"] = mesh_weights
    builder.json["nodes"] = [
        {"mesh": 0, "translation": [10 * k, 0, 0]}
        | ({} if weights is None else {"weights": weights})
        for k, weights in enumerate(node_weights)
    ]
    builder.json["scenes"] = [{"nodes": list(range(len(node_weights)))}]
    return builder


@pytest.mark.parametrize("mesh_weights", [None, [0.0]])
def test_the_weights_of_a_node_come_before_those_of_its_mesh(
    mesh_weights: list[float] | None, tmp_path: Path
) -> None:
    """Faces of 2 x 2, 2 x 3 and 2 x 3 twice: 32."""
    path = morphing(mesh_weights, [1.0]).write(tmp_path / "a.glb")
    assert surface_area(read_surface(path)) == pytest.approx(32)
    assert bounds(path) == [[0, 0, 0], [2, 2, 3]]


def test_nodes_of_one_mesh_each_have_their_own_weights(tmp_path: Path) -> None:
    """Widths 2, 1 and, from the mesh, 1.5: areas 32, 22 and 27; the last ends at 21.5."""
    path = morphing([0.5], [1.0], [0.0], None).write(tmp_path / "a.glb")
    assert surface_area(read_surface(path)) == pytest.approx(32 + 22 + 27)
    assert bounds(path) == [[0, 0, 0], [21.5, 2, 3]]


def test_a_hidden_node_hides_all_below_it_and_is_named(tmp_path: Path) -> None:
    """Of five boxes one is hidden, one is below it and says that it is visible, one is below that."""
    builder = Builder()
    builder.box()
    away = {"mesh": 0, "translation": [10, 0, 0]}
    shown, hidden = ({"KHR_node_visibility": {"visible": value}} for value in (True, False))
    builder.json["extensionsRequired"] = ["KHR_node_visibility"]
    builder.json["nodes"] = [
        {"mesh": 0},
        {**away, "extensions": hidden, "children": [2]},
        {**away, "extensions": shown, "children": [3]},
        away,
        {**away, "extensions": shown},
    ]
    builder.json["scenes"] = [{"nodes": [0, 1, 4]}]
    path = builder.write(tmp_path / "a.glb")
    assert bounds(path) == [[0, 0, 0], [11, 2, 3]]
    assert surface_area(read_surface(path)) == pytest.approx(44)
    assert read_surface(path).left_out == {"meshes on hidden nodes": 3}
    builder.json["scenes"] = [{"nodes": [1]}]
    with pytest.raises(DataError, match="all its meshes are on nodes that KHR_node_visibility hid"):
        read_mesh(builder.write(tmp_path / "a.glb"))


def test_a_skin_follows_joints_that_are_hidden(tmp_path: Path) -> None:
    builder = Builder()
    attributes = {"POSITION": builder.positions()}
    attributes["JOINTS_0"] = builder.accessor(np.zeros((8, 4), "u1"), "VEC4", 5121)
    attributes["WEIGHTS_0"] = builder.accessor(np.eye(4, dtype="<f4")[[0] * 8], "VEC4", FLOAT)
    builder.primitive(attributes=attributes, indices=builder.indices(TRIANGLES))
    hidden = {"KHR_node_visibility": {"visible": False}}
    builder.json["nodes"] = [
        {"mesh": 0, "skin": 0},
        {"translation": [0, 0, 5], "extensions": hidden},
    ]
    builder.json["skins"] = [{"joints": [1]}]
    builder.json["scenes"] = [{"nodes": [0, 1]}]
    assert bounds(builder.write(tmp_path / "a.glb")) == [[0, 0, 5], [1, 2, 8]]


@pytest.mark.parametrize(
    "name",
    [
        "KHR_technique_webgl",
        "KHR_techniques_webgl",
        "KHR_texture_basisu",
        "KHR_materials_pbrSpecularGlossiness",
        "ADOBE_materials_thin_transparency",
        "MSFT_texture_dds",
        "EXT_lights_image_based",
        "KHR_xmp_json_ld",
    ],
)
def test_an_extension_that_changes_only_the_look_may_be_required(name: str, tmp_path: Path) -> None:
    builder = Builder()
    builder.box()
    builder.json["extensionsRequired"] = [name]
    check_box(builder.write(tmp_path / "a.gltf"))


@pytest.mark.parametrize("name", ["KHR_materialise", "EXT_mesh_gpu_instancing", "MSFT_lod", "X"])
def test_any_other_required_extension_is_refused_by_name(name: str, tmp_path: Path) -> None:
    builder = Builder()
    builder.box()
    builder.json["extensionsRequired"] = ["KHR_texture_basisu", name]
    with pytest.raises(DataError, match=f"needs the extension {name};"):
        read_mesh(builder.write(tmp_path / "a.gltf"))


@pytest.mark.parametrize("spaces", range(4))
@pytest.mark.parametrize("padded", [True, False])
def test_chunks_of_a_glb_are_found_with_and_without_padding(
    spaces: int, padded: bool, tmp_path: Path
) -> None:
    """The JSON's stated length is any remainder of 4; the bytes up to the next multiple are there or not."""
    builder = Builder()
    builder.box()
    builder.json["buffers"] = [{"byteLength": len(builder.data)}]
    text = json.dumps(builder.json).encode()
    text += b" " * (-len(text) % 4 + spaces)
    filling = b" " * (-len(text) % 4 if padded else 0)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text + filling
    chunks += struct.pack("<II", len(builder.data), 0x004E4942) + builder.data
    path = tmp_path / "a.glb"
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
    check_box(path)


def _repeated_primitives(builder: Builder) -> None:
    """Accessors without a view are zeros, which cost the file nothing."""
    builder.json["accessors"] = [{"componentType": FLOAT, "type": "VEC3", "count": 9_000_000}]
    builder.json["meshes"] = [{"primitives": [{"attributes": {"POSITION": 0}, "mode": 0}] * 100}]


def _repeated_targets(builder: Builder) -> None:
    builder.json["accessors"] = [{"componentType": FLOAT, "type": "VEC3", "count": 100}]
    primitive = {"attributes": {"POSITION": 0}, "mode": 0, "targets": [{"POSITION": 0}] * 50_000}
    builder.json["meshes"] = [{"weights": [1.0] * 50_000, "primitives": [primitive]}]


def _many_joints(builder: Builder) -> None:
    kinds = (FLOAT, "VEC3"), (BYTE, "VEC4"), (FLOAT, "VEC4")
    builder.json["accessors"] = [
        {"componentType": component, "type": kind, "count": 1_000_000} for component, kind in kinds
    ]
    sets = {f"{name}_{k}": at for k in range(30) for name, at in (("JOINTS", 1), ("WEIGHTS", 2))}
    primitive = {"attributes": {"POSITION": 0, **sets}, "mode": 0}
    builder.json["meshes"] = [{"primitives": [primitive]}]


@pytest.mark.parametrize(
    ("form", "cause"),
    [
        (_repeated_primitives, r"18,000,000 vertices, at most 15,000,000"),
        (_repeated_targets, r"read the same bytes over and over"),
        (_many_joints, r"120,000,000 joint weights, at most 30,000,000"),
    ],
)
def test_a_small_file_that_asks_for_much_is_refused_early(
    form: Callable[[Builder], None], cause: str, tmp_path: Path
) -> None:
    """Each would take gigabytes or minutes: one accessor may be used by any number of meshes."""
    builder = Builder()
    form(builder)
    limits = MeshLimits(file_bytes=2**22) if form is _repeated_targets else None
    with pytest.raises(DataError, match=cause):
        read_mesh(builder.write(tmp_path / "a.gltf"), limits=limits)
