"""Tables of text and arrays: columns are found by name, and what is not surely a cloud is refused."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointdistill.data.meshes import PointSet, Surface, read_mesh, surface_area
from pointdistill.errors import DataError
from tests.data.meshes.box import BOX, TRIANGLES, rows

POINTS = np.random.default_rng(0).uniform(0, 3, (40, 3)).round(4) + 0.00001
TEXTS = [[f"{value:.5f}" for value in point] for point in POINTS]
SWAPPED = [[z, x, y] for x, y, z in TEXTS]
COMMAS = [[value.replace(".", ",") for value in point] for point in TEXTS]
COUNTED = [[n, *point] for n, point in enumerate(TEXTS)]
NORMAL = ["0.60000", "0.00000", "0.80000"]

CLOUDS = {
    "plain.xyz": rows(TEXTS),
    "coloured.txt": rows([*point, 3, 40, 200] for point in TEXTS),
    "with_normals.asc.txt": rows([*point, *NORMAL] for point in TEXTS),
    "modelnet.txt": rows(([*point, *NORMAL] for point in TEXTS), ","),
    "counted.pts": "40\n" + rows([*point, -1000, 3, 40, 200] for point in TEXTS),
    "spaced.csv": rows(TEXTS, ", "),
    "bars.txt": rows(TEXTS, "|"),
    "blank_lines.xyz": "\n\n" + rows(TEXTS).replace("\n", "\n\n"),
    "old_mac.xyz": rows(TEXTS).replace("\n", "\r"),
    "pandas.csv": ",x,y,z\n" + rows(COUNTED, ","),
    "pandas_tabs.csv": "\tx\ty\tz\n" + rows(COUNTED, "\t"),
    "pandas_numbered.csv": "0,1,2\n" + rows(TEXTS, ","),
    "pandas_numbered_index.csv": ",0,1,2\n" + rows(COUNTED, ","),
    "paraview.csv": '"N:0","N:1","N:2","Points:0","Points:1","Points:2"\n'
    + rows(([1, 0, 0, *point] for point in TEXTS), ","),
    "paraview_underscore.csv": "Points_0,Points_1,Points_2,A\n" + rows(([*p, 1] for p in TEXTS), ","),
    "quoted.csv": '"x","y","z"\n' + rows(([f'"{v}"' for v in point] for point in TEXTS), ","),
    "names.csv": "name,x,y,z\n" + rows(([f"Point {n}", *p] for n, p in enumerate(TEXTS)), ","),
    "quoted_names.csv": "x,y,z,name\n" + rows(([*p, '"a, ""b"""'] for p in TEXTS), ","),
    "sep.csv": "sep=;\nx;y;z\n" + rows(TEXTS, ";"),
    "units.csv": "t [s],X [m],Y [m],Z [m]\n" + rows(COUNTED, ","),
    "units.txt": "Z (mm) X (mm) Y (mm)\n" + rows(SWAPPED),
    "tight_units.csv": "x(m);y(m);z(m)\n" + rows(COMMAS, ";"),
    "suffixed.csv": "id,x_m,y_m,z_m\n" + rows(COUNTED, ","),
    "positions.csv": "time,position_x,position_y,position_z\n" + rows(COUNTED, ","),
    "rostopic.csv": "%time,field.position.x,field.position.y,field.position.z\n" + rows(COUNTED, ","),
    "utm.csv": "POLY_ID,X_UTME,Y_UTMN,Z_TVDSS\n" + rows(COUNTED, ","),
    "survey.csv": "PointId,Easting,Northing,Elevation\n" + rows(COUNTED, ","),
    "survey_z.csv": "z,E,N\n" + rows(SWAPPED, ","),
    "comma.csv": "x;y;z\n" + rows(COMMAS, ";"),
    "comma_tabs.csv": "x\ty\tz\n" + rows(COMMAS, "\t"),
    "comma_blanks.xyz": rows(COMMAS),
    "cloudcompare.txt": "//R G B X Y Z\n" + rows([n, 1, 2, *p] for n, p in enumerate(TEXTS)),
    "cloudcompare_counted.txt": "//Z X Y\n40\n" + rows(SWAPPED),
    "savetxt.txt": "# intensity x y z\n" + rows(COUNTED),
    "labelled_comment.txt": "# columns: z, x, y\n" + rows(SWAPPED),
    "colmap.txt": "# 3D point list with one line of data per point:\n"
    "#   POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)\n"
    "# Number of points: 40, mean track length: 3.1\n"
    + rows([n, *p, 1, 2, 3, 0.5, *[1, 2] * (1 + n % 3)] for n, p in enumerate(TEXTS)),
    "prose.xyz": "# Created by a scanner\n" + rows(TEXTS),
    "comma_names.txt": "z,x,y\n" + rows(SWAPPED),
    "comma_names_spaced.xyz": "id, x [m], y [m], z [m]\n" + rows(COUNTED),
    "comma_names_tabs.csv": "z,x,y\n" + rows(SWAPPED, "\t"),
    "comma_names_counted.txt": "Z;X;Y\n40\n" + rows(SWAPPED),
    "comma_names_decimal_commas.txt": "x,y,z\n" + rows(COMMAS),
    "paraview_grid.csv": '"Structured Coordinates:0","Structured Coordinates:1","Structured Coordinates:2",'
    '"Points:0","Points:1","Points:2"\n' + rows(([n % 3, 0, 1, *p] for n, p in enumerate(TEXTS)), ","),
    "microns.csv": "X [\u00b5m],Y [\u00b5m],Z [\u00b5m]\n" + rows(TEXTS, ","),
    "trailing.csv": "x,y,z\n" + rows(([*p, ""] for p in TEXTS), ","),
}  # fmt: skip


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_that_are_clouds(name: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(CLOUDS[name].encode(encoding))
    cloud = read_mesh(path)
    assert isinstance(cloud, PointSet)
    assert cloud.points.tolist() == POINTS.round(5).tolist()


REFUSED = {
    "metadata.csv": (
        "item,width_cm,height_cm,depth_cm\n" + rows(COUNTED, ","),
        "'item, width_cm, height_cm, depth_cm', none are surely x, y and z",
    ),
    "twice.csv": ("X,Y,X\n" + rows(TEXTS, ","), "'X, Y, X', none are surely x, y and z"),
    "normals.csv": ("nx,ny,nz\n" + rows(TEXTS, ","), "'nx, ny, nz', none are surely"),
    "two_x.csv": ("x,x,y,z\n" + rows(COUNTED, ","), "several columns are x, y or z"),
    "speeds.csv": ("x [m/s],y [m/s],z [m/s]\n" + rows(TEXTS, ","), "are in m/s, accepted is one"),
    "mixed_units.csv": ("x [m],y [m],z [mm]\n" + rows(TEXTS, ","), "are in m, mm, accepted is one"),
    "commented.txt": ("# id intensity range\n" + rows(TEXTS), "'id, intensity, range', none are"),
    "longer_comment.txt": ("# intensity x y z\n" + rows([1, *p, 2] for p in TEXTS), "rows have 5"),
    "ids.txt": (rows(COUNTED), "the first column seems to be a number of the row"),
    "counted_pairs.txt": (rows([f"{n}.0", *p[:2]] for n, p in enumerate(TEXTS)), "number of the row"),
    "times.txt": (
        rows([f"{n / 10:.1f}", *p] for n, p in enumerate(TEXTS)),
        "seems to be a time or a number of the row",
    ),
    "clock.txt": (rows([1700000000 + n * n, *p] for n, p in enumerate(TEXTS)), "seems to be a time"),
    "labels.txt": (rows([n * n % 7, *p] for n, p in enumerate(TEXTS)), "be a number or a label"),
    "label_floats.txt": (rows([f"{n * n % 7:.3e}", *p] for n, p in enumerate(TEXTS)), "be a number or a label"),
    "label_and_two.txt": (rows([n * n % 7, *p[:2]] for n, p in enumerate(TEXTS)), "be a number or a label"),
    "shuffled_ids.txt": (rows([7 * n % 41, *p[:2]] for n, p in enumerate(TEXTS)), "be a number or a label"),
    "ids_and_a_gap.txt": (rows([["nan", *TEXTS[0]], *COUNTED]), "to be a number of the row"),
    "atoms.xyz": ("40\n\n" + rows([6, *p] for p in TEXTS), "be a number or a label"),
    "thousands.csv": ("x;y;z\n" + rows(([n, 5, 900] for n in (7, "1.097", 9)), ";"), "may be thousands"),
    "thousands.txt": (rows([f"{n * 97:,}", 15, 900 + n] for n in range(40)), "may be thousands or fractions"),
    "named_decimal_commas.csv": ("x,y,z,i,j,k\n" + rows([["1,012", "3,045", "1,017"]] * 9, ","), "decimal marks"),
    "faces.txt": (rows(TEXTS), "holds faces as its name says"),
    "colours.txt": (rows([3, 200, 7 * n % 9, *p] for n, p in enumerate(TEXTS)), "to be a colour"),
    "features.txt": (rows(np.random.default_rng(1).normal(size=(40, 16))), "16 columns"),
    "two.csv": (rows(POINTS[:, :2], ","), "expected at least 3 numbers a row"),
    "words.txt": ("some words\nof a text\n" * 20, "none are surely x, y and z"),
    "decimal_commas.csv": (rows(COMMAS, ","), "decimal marks and separators"),
    "both_marks.csv": ("x;y;z\n" + rows(COMMAS, ";") + "1.5;2.5;3.5\n", "numbers with decimal commas"),
    "lost_field.csv": (rows(TEXTS, ",") + "1.0,2.0\n", "2 fields where the table has 3"),
    "more_fields.xyz": (rows(TEXTS) + "1.0 2.0 3.0 4.0\n", "4 fields where the table has 3"),
    "open_quote.csv": ("x,y,z\n" + rows(TEXTS, ",") + '"1,2,3\n', "quotes to end on their line"),
    "fewer_comma_names.txt": ("x,y,z\n" + rows(COUNTED), "'x,y,z', none are surely x, y and z"),
    "other_comma_names.txt": ("nx,ny,nz\n" + rows(TEXTS), "none are surely x, y and z"),
    "row_names.txt": ('"x" "y" "z"\n' + rows(COUNTED), "4 fields where the table has 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_tables_that_are_not_surely_clouds(name: str, tmp_path: Path) -> None:
    text, message = REFUSED[name]
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError) as refusal:
        read_mesh(path)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("missing", ["nan", "NA", "1.#QNAN", "-1.#IND", "NULL", "-"])
@pytest.mark.parametrize("separator", [" ", ","])
def test_missing_values_are_left_out_and_never_shift_columns(
    missing: str, separator: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_text(rows([*TEXTS, [missing] * 3, ["1.5", missing, "2.5"]], separator))
    cloud = read_mesh(path)
    assert isinstance(cloud, PointSet)
    assert cloud.dropped_points == 2
    assert cloud.points.tolist() == POINTS.round(5).tolist()


@pytest.mark.parametrize("infinite", ["inf", "-Infinity", "1.#INF"])
@pytest.mark.parametrize("quoted", [False, True])
def test_infinite_values_are_left_out_only_by_repair(
    infinite: str, quoted: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_text(rows([*TEXTS, ["1.5", f'"{infinite}"' if quoted else infinite, "2.5"]], ","))
    with pytest.raises(DataError, match="1 of 41 points are NaN or infinite"):
        read_mesh(path)
    cloud = read_mesh(path, repair=True)
    assert isinstance(cloud, PointSet)
    assert (cloud.dropped_points, len(cloud.points)) == (1, 40)


def test_empty_fields_are_missing_values(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,x,y,z\n" + rows(COUNTED, ",") + "40,,1.0,2.0\n,1.0,2.0,3.0\n")
    cloud = read_mesh(path)
    assert isinstance(cloud, PointSet)
    assert cloud.dropped_points == 1
    assert cloud.points[-1].tolist() == [1, 2, 3]


@pytest.mark.parametrize("infinite", ["1.#INF", "-1.#IND", "1.#QNAN", "1.#INF00"])
def test_a_hash_inside_a_number_begins_no_comment(infinite: str, tmp_path: Path) -> None:
    path = tmp_path / "a.obj"
    text = rows(["v", *point] for point in BOX).replace("v 1.0 2.0 3.0", f"v 1 2 {infinite}")
    path.write_text(text + rows(["f", a + 1, b + 1, f"{c + 1}#x"] for a, b, c in TRIANGLES))
    with pytest.raises(DataError, match="NaN or infinite vertices: 1 of 8"):
        read_mesh(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (POINTS.T, r"shape \(3, 40\) has a column for each point"),
        (np.ones((40, 384)), r"shape \(40, 384\); this is not surely a cloud"),
        (np.ones((48, 64)), r"shape \(48, 64\)"),
        (np.ones((40, 3), np.uint8), "uint8 of shape"),
        (np.c_[np.arange(40), POINTS], "the first column seems to be a number of the row"),
    ],
)
def test_arrays_that_are_not_surely_clouds(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "b.npz", points=array)
    for name in ("a.npy", "b.npz"):
        with pytest.raises(DataError, match=message):
            read_mesh(tmp_path / name)


@pytest.mark.parametrize(
    "names",
    [
        ("points", "occupancies"),
        ("points", "pos"),
        ("arr_0", "arr_1"),
        ("normals",),
        ("faces",),
        ("x", "y"),
    ],
)
def test_archives_whose_points_are_not_known(names: tuple[str, ...], tmp_path: Path) -> None:
    arrays: dict[str, Any] = dict.fromkeys(names, POINTS)
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=f"has the arrays {', '.join(names)}; accepted are"):
        read_mesh(tmp_path / "a.npz")


def test_an_archive_with_vertices_and_faces_is_a_mesh(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", vertices=BOX, faces=np.array(TRIANGLES, np.int32))
    surface = read_mesh(tmp_path / "a.npz")
    assert isinstance(surface, Surface)
    assert len(surface.faces) == 12
    assert surface_area(surface) == pytest.approx(22)


def test_numbers_that_are_whole_by_chance_do_not_hide_a_cloud(tmp_path: Path) -> None:
    """A plane, lines of a scanner and slices of a volume, a column of whole numbers behind, grids of heights."""
    plane = [["0.0", *p[1:], "1.5"] for p in TEXTS]
    lines = [[n // 8, *p[1:]] for n, p in enumerate(TEXTS)]
    behind = [[*p, n * n % 7] for n, p in enumerate(TEXTS)]
    fractions = [[f"{n / 8:.3f}", 0, f"{1 + n / 16:.4f}"] for n in range(40)]
    down = [[-(n // 8), *p[1:]] for n, p in enumerate(TEXTS)]
    to_and_fro = [[abs(n // 4 - 5), *p[1:]] for n, p in enumerate(TEXTS)]
    heights = [f"{120 + n * n % 17 / 8:.3f}" for n in range(40)]
    metres = [[500_000 + n % 5, 4_100_000 + n // 5, height] for n, height in enumerate(heights)]
    pixels = [[n % 5, n // 5, height] for n, height in enumerate(heights)]
    centred = [[n * 7 % 5 - 2, *p[1:], 0.5] for n, p in enumerate(TEXTS)]
    tables = [plane, lines, behind, fractions, down, to_and_fro, metres, pixels, centred]
    for name, table in enumerate(tables):
        path = tmp_path / f"{name}.xyz"
        path.write_text(rows(table))
        assert len(read_mesh(path).points) == 40  # type: ignore[union-attr]


def test_what_lies_beside_the_points_in_their_form_is_no_cloud(tmp_path: Path) -> None:
    for name in ("normal.npy", "Normals.npy", "color.npy", "faces.npy", "labels.txt"):
        path = tmp_path / name
        np.save(path, POINTS) if path.suffix == ".npy" else path.write_text(rows(TEXTS))
        with pytest.raises(DataError, match="as its name says, and not surely points; rename it"):
            read_mesh(path)
    (tmp_path / "labels.csv").write_text("x,y,z\n" + rows(TEXTS, ","))
    assert isinstance(read_mesh(tmp_path / "labels.csv"), PointSet)


def test_a_second_array_in_a_file_is_not_lost(tmp_path: Path) -> None:
    with (tmp_path / "two.npy").open("wb") as file:
        np.save(file, POINTS)
        np.save(file, POINTS)
    with pytest.raises(DataError, match=r"promises an array of shape .40, 3., but more follows"):
        read_mesh(tmp_path / "two.npy")


def test_whole_numbers_padded_with_zeros_are_a_cloud(tmp_path: Path) -> None:
    """Three fields leave no room for a decimal comma."""
    (tmp_path / "a.csv").write_text(
        "x,y,z\n" + rows(([f"{n * k:05}" for k in (3, 5, 7)] for n in range(40)), ",")
    )
    cloud = read_mesh(tmp_path / "a.csv")
    assert isinstance(cloud, PointSet)
    assert cloud.points[2].tolist() == [6, 10, 14]


def test_whole_numbers_on_a_curve_are_a_cloud(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text(rows([n, n * n, 1] for n in range(40)))
    cloud = read_mesh(tmp_path / "a.xyz")
    assert isinstance(cloud, PointSet)
    assert cloud.points.tolist() == [[n, n * n, 1] for n in range(40)]


def test_a_table_longer_than_a_block(tmp_path: Path) -> None:
    points = np.random.default_rng(2).normal(size=(20_000, 3)).round(6)
    text = "id;x;y;z\n" + rows(([f"p{n}", *p] for n, p in enumerate(points)), ";")
    path = tmp_path / "a.csv"
    path.write_text(text.replace(".", ","))
    cloud = read_mesh(path)
    assert isinstance(cloud, PointSet)
    assert cloud.points.tolist() == points.tolist()


@pytest.mark.parametrize(
    "text",
    [
        "x{blanks}q,y,z\n",
        "x,y,z{blanks}q\n",
        "# x,y,z{blanks}q\n",
        "x,y,z\n{digits}x,2.5,3.5\n",
        "{digits}x 2.5 3.5\n",
    ],
)
def test_no_text_takes_long_to_be_refused(text: str, tmp_path: Path) -> None:
    """A pattern that can divide a run in many ways tries them all: of these, each took hours."""
    rows = "1.5,2.5,3.5\n" * 40
    path = tmp_path / "a.csv"
    path.write_text(text.format(blanks=" " * 100_000, digits="1" * 100_000) + rows)
    begun = time.process_time()
    with contextlib.suppress(DataError):
        read_mesh(path)
    assert time.process_time() - begun < 2
