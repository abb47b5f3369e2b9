"""Many numbers of a text at once: the floats that Python reads, and nothing accepted that is no number."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.meshes import MeshLimits
from pointdistill.data.meshes.formats import obj, off
from pointdistill.data.meshes.formats.content import parse_indices, parse_points, token_blocks
from pointdistill.data.meshes.formats.fast_numbers import (
    Tokens,
    read_decimals,
    read_integers,
    split_tokens,
)
from pointdistill.errors import DataError


def tokens_of(texts: list[str]) -> Tokens:
    """One word a line."""
    tokens = split_tokens("\n".join(texts).encode())
    assert len(tokens) == len(texts)
    return tokens


def spellings() -> list[str]:
    """Numbers of all sizes as programs write them."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=4000) * 10.0 ** rng.integers(-7, 8, size=4000)
    forms = ["{:.6f}", "{:.8f}", "{:.15f}", "{!r}", "{:g}", "{:e}", "{:.0f}", "{:+.3f}", "{:08.2f}"]
    return [forms[k % len(forms)].format(number) for k, number in enumerate(numbers.tolist())]


EDGES = [
    "0", "-0", "-0.0", "+5", "5.", ".5", "-.5", "00012.5", "12345678.5", "1.23456789", "1.2345678901234567",
    "99999999.99999999999", "9007199254740992", "0.9007199254740991", "0.9007199254740993", "4503599.627370497",
    "123456789.5", "0.00000000000000001", "1e5", "-1.5E-014", "1234567890123456789012.5", "1e400", "inf", "-nan",
]  # fmt: skip


@pytest.mark.parametrize("texts", [spellings(), EDGES], ids=["written", "edges"])
def test_decimals_are_the_floats_that_python_reads(texts: list[str]) -> None:
    """Bit for bit, minus zero included, whether read at once or left to the slower parser."""
    tokens = tokens_of(texts)
    plain, odd = read_decimals(tokens, np.arange(len(texts)))
    expected = np.array([float(text) for text in texts])
    sure = np.setdiff1d(np.arange(len(texts)), odd)
    assert plain[sure].view(np.int64).tolist() == expected[sure].view(np.int64).tolist()
    rows = parse_points([f"{text} 0 0".encode() for text in texts])
    np.testing.assert_array_equal(rows[:, 0], expected)


def test_which_decimals_are_read_at_once() -> None:
    plain = [
        "0",
        "-0.25",
        "+7.125",
        "5.",
        ".5",
        "-.5",
        "-1234567.25",
        "12345678",
        "1.123456789012345",
        "000.5",
    ]
    odd = [
        "1e5", "nan", "-", "+", ".", "1.2.3", "--1", "1-2", "1,5", "0x10", "12345678.5", "123456789", "1.5f",
        "1_0", "1/2", "0.12345678901234567", "9007199254740993", "٣", "1\x01", ":5", "5:", "5.5:5", "/5",
    ]  # fmt: skip
    assert read_decimals(tokens_of(plain), np.arange(len(plain)))[1].tolist() == []
    values, found = read_decimals(tokens_of(odd + plain), np.arange(len(odd + plain)))
    assert found.tolist() == list(range(len(odd)))
    assert values[len(odd) :].tolist() == [float(text) for text in plain]


def test_integers_end_at_a_slash_or_with_their_word() -> None:
    texts = ["1", "-1", "1234567", "-1234567", "12/3/4", "12//4", "7/", "0", "007"]
    odd = ["12345678", "+3", "1.0", "1e3", "/5", "-", "3a", "--2", "4\\", ":", "3\x01", "-/1"]
    values, found = read_integers(tokens_of(texts + odd), np.arange(len(texts + odd)))
    assert values[: len(texts)].tolist() == [1, -1, 1234567, -1234567, 12, 12, 7, 0, 7]
    assert found.tolist() == list(range(len(texts), len(texts + odd)))
    assert parse_indices(tokens_of(["12345678/1", "+3/2"]), np.arange(2)).tolist() == [12345678, 3]


@pytest.mark.parametrize("word", ["-", "+", "-/1", "5-"])
def test_a_sign_alone_is_no_index(word: str) -> None:
    """NumPy takes one for 0, and the one before a number for its sign."""
    for texts in ([word], [word, "+3"], ["+3", word]):
        with pytest.raises(DataError, match=f"expected whole numbers, got '{re.escape(word)}'"):
            parse_indices(tokens_of(texts), np.arange(len(texts)))


def test_lines_and_their_tokens() -> None:
    tokens = split_tokens(b"\n\n  v 1\t2  \n \t\nVertex 3\x0b4 5\nv5 6\n\n")
    assert [tokens.line(k) for k in range(len(tokens))] == [b"v 1\t2", b"Vertex 3\x0b4 5", b"v5 6"]
    assert tokens.counts.tolist() == [3, 4, 2]
    assert tokens.line(1, skip=2) == b"4 5"
    assert tokens.line(0, skip=3) == b""
    assert tokens.lines_that_begin(b"v").tolist() == [True, False, False]
    assert tokens.lines_that_begin(b"vertex").tolist() == [False, True, False]
    assert tokens.lines(slice(1, None)).line(1) == b"v5 6"
    assert tokens.lines(np.array([False, False, True])).counts.tolist() == [2]
    assert len(split_tokens(b"")) == len(split_tokens(b" \n\n ")) == 0


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_blocks_cut_a_file_between_its_lines(end: str, tmp_path: Path) -> None:
    """A megabyte, several times what is read at once."""
    path = tmp_path / "rows.txt"
    rows = [f"{k} {k / 8:.3f} {-k}" for k in range(40_000)]
    path.write_bytes(end.join(rows).encode())
    blocks = list(token_blocks(path))
    assert len(blocks) > 2
    points = np.concatenate([parse_points(block) for block in blocks])
    count = np.arange(40_000)
    assert (points == np.stack([count, count / 8, -count], axis=1)).all()


def test_a_long_obj_gives_what_a_plain_loop_gives(tmp_path: Path) -> None:
    """Triangles, quads and pentagons, three ways to write a corner, normals and names between."""
    rng = np.random.default_rng(0)
    vertices = rng.normal(size=(9000, 3)).round(5)
    faces = [rng.integers(9000, size=rng.integers(3, 6)).tolist() for _ in range(12_000)]
    forms = ["{}", "{}/7", "{}/7/9", "{}//9"]
    lines = [f"v {x} {y} {z}" + " 1 1 1" * (k % 2) for k, (x, y, z) in enumerate(vertices)]
    for k, face in enumerate(faces):
        corners = [forms[(k + c) % 4].format(corner + 1) for c, corner in enumerate(face)]
        lines += ["vn 0 0 1", f"g part{k}", "f " + " ".join(corners)]
    path = tmp_path / "long.obj"
    path.write_text("\n".join(lines))
    part = obj.read(path, MeshLimits()).parts[0]
    assert (part.vertices == vertices).all()
    assert part.sizes is not None
    assert part.sizes.tolist() == [len(face) for face in faces]
    assert part.corners.tolist() == [corner for face in faces for corner in face]


def test_a_long_off_gives_what_a_plain_loop_gives(tmp_path: Path) -> None:
    """Header and rows fall into several blocks; colours of some faces and a comment change nothing."""
    rng = np.random.default_rng(1)
    vertices = rng.normal(size=(9000, 3))
    faces = [rng.integers(9000, size=rng.integers(3, 6)).tolist() for _ in range(12_000)]
    lines = [f"{x!r} {y!r} {z!r}" for x, y, z in vertices.tolist()]
    lines += ["# faces"]
    lines += [
        " ".join(map(str, [len(face), *face])) + " 0.5 0.5 1" * (k % 2)
        for k, face in enumerate(faces)
    ]
    path = tmp_path / "long.off"
    path.write_text("OFF9000 12000 0\n" + "\n".join(lines))
    part = off.read(path, MeshLimits()).parts[0]
    assert (part.vertices == vertices).all()
    assert part.corners.tolist() == [corner for face in faces for corner in face]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["0 0 0", "1 2 x"], "expected numbers, got '1 2 x'"),
        (["0 0 0", "1 2 1:5"], "expected numbers, got '1 2 1:5'"),
        (["1 2 1e5e5", "1e5 0 0"], "expected numbers, got '1 2 1e5e5'"),
        (["0 0 0", "1 2"], "expected at least 3 numbers a row, got '1 2'"),
    ],
)
def test_a_row_that_is_none_is_named(rows: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_points([row.encode() for row in rows])
