"""Reports and pictures: self-contained pages, and pixels where they should be."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from numpy.typing import NDArray

from pointdistill.engine.reports.pages import Picture, Section, write_report
from pointdistill.engine.reports.pictures import clouds, loss_curves, masked_patches, neighbour_rows
from pointdistill.engine.reports.tables import Table
from pointdistill.errors import ConfigError, DataError

DOT = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])


def pixels(png: bytes) -> NDArray[np.float32]:
    """(height, width, RGBA) in [0, 1]."""
    return np.asarray(matplotlib.image.imread(io.BytesIO(png), format="png"))


def has_color(image: NDArray[np.float32], red: int, green: int, blue: int) -> bool:
    """Whether some opaque pixel is within rounding of a colour given in 0 to 255."""
    close = np.abs(image[..., :3] * 255 - [red, green, blue]).max(axis=-1) < 4
    return bool((close & (image[..., 3] > 0.9)).any())


class Page(HTMLParser):
    """Opening tags and text of a page; complains about tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def make_page(path: Path) -> Page:
    png = clouds([DOT])
    write_report(
        path,
        title="Run <1>",
        lead="An encoder & its figures.",
        facts={"corpus": "builtin, 10 < 20 shapes"},
        sections=[
            Section(
                "Accuracy",
                text="Higher is better.",
                tables=(Table("On a stand-in", ("features", "%"), (("a|b", "50"),), ("Note.",)),),
            ),
            Section("Views", pictures=(Picture('A "dot"', png), Picture("Again", png))),
        ],
    )
    return Page(path.read_text(encoding="utf-8"))


def test_report_is_one_well_formed_page(tmp_path: Path) -> None:
    page = make_page(tmp_path / "report.html")
    assert page.open == []
    text = "".join(page.words)
    for words in (
        "Run <1>",
        "An encoder & its figures.",
        "builtin, 10 < 20 shapes",
        "a|b",
        "Note.",
    ):
        assert words in text
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_report_asks_the_network_for_nothing(tmp_path: Path) -> None:
    page = make_page(tmp_path / "report.html")
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 2
    assert all(str(source).startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?:|url\(|@import", (tmp_path / "report.html").read_text())


def test_pictures_arrive_unchanged(tmp_path: Path) -> None:
    page = make_page(tmp_path / "report.html")
    (first, *_) = (attributes for tag, attributes in page.tags if tag == "img")
    assert first["alt"] == 'A "dot"'
    assert base64.b64decode(str(first["src"]).partition(",")[2]) == clouds([DOT])


def test_report_replaces_an_older_one_in_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "run" / "report.html"
    for title in ("first", "second"):
        write_report(path, title=title, lead="", facts={}, sections=[])
    assert "second" in path.read_text()
    assert "first" not in path.read_text()


def test_table_refuses_a_ragged_row() -> None:
    with pytest.raises(ConfigError, match="2 columns, but a row of 1"):
        Table("t", ("a", "b"), (("1",),))


def test_markdown_keeps_bars_and_line_ends_inside_cells() -> None:
    text = Table("t", ("a", "b"), (("x|y", "1\n2"),), ("Under it.",)).markdown()
    assert text == "**t**\n\n| a | b |\n| --- | --- |\n| x\\|y | 1 2 |\n\n- Under it.\n"


def test_background_is_transparent_and_the_cloud_is_not() -> None:
    image = pixels(clouds([DOT]))
    assert image[0, 0, 3] == 0.0
    assert image[..., 3].max() > 0.9


def test_low_points_are_blue_and_high_points_amber() -> None:
    line = np.stack([np.zeros(50), np.zeros(50), np.linspace(0.0, 1.0, 50)], axis=1)
    image = pixels(clouds([line]))
    opaque = np.argwhere(image[..., 3] > 0.3)
    top, bottom = image[tuple(opaque[0])], image[tuple(opaque[-1])]
    assert top[0] > top[2]
    assert bottom[2] > bottom[0]


def test_height_on_the_page_is_height_in_space() -> None:
    """The higher of two points is drawn further up, and nearer the middle line than the edges."""
    image = pixels(clouds([np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])]))
    rows = np.flatnonzero((image[..., 3] > 0.3).any(axis=1))
    columns = np.flatnonzero((image[..., 3] > 0.3).any(axis=0))
    assert rows.max() - rows.min() > 0.7 * image.shape[0]
    assert abs(columns.mean() - image.shape[1] / 2) < 0.05 * image.shape[1]


def test_a_cloud_of_one_place_can_be_drawn() -> None:
    assert pixels(clouds([np.zeros((5, 3))]))[..., 3].max() > 0.3


def test_masked_points_are_orange_and_visible_ones_blue() -> None:
    centers = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    points = np.repeat(centers, 10, axis=0)
    both = pixels(masked_patches([(points, centers, np.array([True, False]))]))
    assert has_color(both, 0xD9, 0x82, 0x2B)
    assert has_color(both, 0x2F, 0x81, 0xF7)
    hidden = pixels(masked_patches([(points, centers, np.array([True, True]))]))
    assert not has_color(hidden, 0x2F, 0x81, 0xF7)


def test_rows_of_neighbours_make_a_grid() -> None:
    one = pixels(clouds([DOT]))
    grid = pixels(neighbour_rows([[DOT, DOT, DOT], [DOT, DOT, DOT]]))
    assert grid.shape[0] == pytest.approx(2 * one.shape[0], abs=2)
    assert grid.shape[1] == pytest.approx(3 * one.shape[1], abs=2)


def test_the_same_picture_is_the_same_bytes() -> None:
    assert clouds([DOT], titles=["dot"]) == clouds([DOT], titles=["dot"])


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(DataError, match="no clouds to draw"):
        clouds([])
    with pytest.raises(DataError, match="none of loss, patch"):
        loss_curves([{"step": 1, "learning_rate": 0.1}])


def test_one_panel_a_loss_term_that_was_logged() -> None:
    rows = [{"step": step, "loss": 2.0 / step, "cls": 1.0, "seconds": 9.0} for step in (1, 2, 3)]
    both, one = pixels(loss_curves(rows)), pixels(loss_curves(rows, terms=("loss",)))
    assert both.shape[1] == pytest.approx(2 * one.shape[1], abs=2)
    assert has_color(one, 0x2F, 0x81, 0xF7)
    assert not has_color(one, 0xD9, 0x82, 0x2B)
    assert has_color(both, 0xD9, 0x82, 0x2B)


def test_curves_accept_a_single_row() -> None:
    assert pixels(loss_curves([{"step": 1, "loss": 2.0}])).shape[2] == 4
