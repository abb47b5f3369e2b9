"""Reports and pictures: self-contained pages, and pixels where they should be."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest
from numpy.typing import NDArray

from pointdistill.engine.reports import pictures
from pointdistill.engine.reports.pages import (
    Bar,
    Bars,
    Gallery,
    Mark,
    Picture,
    Section,
    Tile,
    write_report,
)
from pointdistill.engine.reports.pictures import (
    FilledView,
    SheetRow,
    SheetShape,
    cloud_tile,
    contact_sheet,
    filled_views,
    masked_tile,
    run_curves,
    search_sheet,
)
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
    png = cloud_tile(DOT)
    tiles = (Tile(Picture("<i>chair", png), Mark.QUERY), Tile(Picture("sofa", png), Mark.WRONG))
    write_report(
        path,
        title="Run <1>",
        headline="It went <well>.",
        lead="An encoder & its figures.",
        facts={"corpus": "builtin, 10 < 20 shapes"},
        sections=[
            Section(
                title="Accuracy",
                text="Higher is better.",
                key=("a<b",),
                bars=(Bars("svm", (Bar("one", 12.34, 0), Bar("two", 130.0, 7))),),
                remark="Why & how.",
                tables=(Table("On a stand-in", ("features", "%"), (("a|b", "50"),), ("Note.",)),),
            ),
            Section(
                title="Views",
                charts=(Picture('A "dot"', png),),
                galleries=(Gallery("<chair>", (tiles,)),),
                commands=(("echo <x> && rm", "Do it."),),
            ),
        ],
    )
    return Page(path.read_text(encoding="utf-8"))


def test_report_is_one_well_formed_page(tmp_path: Path) -> None:
    page = make_page(tmp_path / "report.html")
    assert page.open == []
    text = "".join(page.words)
    for words in (
        "Run <1>",
        "It went <well>.",
        "An encoder & its figures.",
        "builtin, 10 < 20 shapes",
        "a<b",
        "12.3 %",
        "Why & how.",
        "a|b",
        "Note.",
        "wrongsofa",
        "query<i>chair",
        "<chair>",
        "echo <x> && rm",
    ):
        assert words in text
    assert not {"i", "b"} & {tag for tag, attributes in page.tags if attributes.get("src")}
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_bars_are_as_long_as_their_figures_and_never_longer_than_the_page(tmp_path: Path) -> None:
    page = make_page(tmp_path / "report.html")
    fills = [a for tag, a in page.tags if "fill" in str(a.get("class"))]
    assert [a["style"] for a in fills] == ["width:12.3%", "width:100.0%"]
    assert [a["class"] for a in fills] == ["fill tone0", "fill tone1"]


def test_report_asks_the_network_for_nothing(tmp_path: Path) -> None:
    page = make_page(tmp_path / "report.html")
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 3
    assert all(str(source).startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?:|url\(|@import", (tmp_path / "report.html").read_text())
    policies = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_pictures_arrive_unchanged(tmp_path: Path) -> None:
    page = make_page(tmp_path / "report.html")
    (first, *_) = (attributes for tag, attributes in page.tags if tag == "img")
    assert first["alt"] == 'A "dot"'
    assert base64.b64decode(str(first["src"]).partition(",")[2]) == cloud_tile(DOT)


def test_report_replaces_an_older_one_in_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "run" / "report.html"
    for title in ("the older one", "the newer one"):
        write_report(path, title=title, headline="", lead="", facts={}, sections=[])
    assert "the newer one" in path.read_text()
    assert "the older one" not in path.read_text()


def test_table_refuses_a_ragged_row() -> None:
    with pytest.raises(ConfigError, match="2 columns, but a row of 1"):
        Table("t", ("a", "b"), (("1",),))


def test_markdown_keeps_bars_and_line_ends_inside_cells() -> None:
    text = Table("t", ("a", "b"), (("x|y", "1\n2"),), ("Under it.",)).markdown()
    assert text == "**t**\n\n| a | b |\n| --- | --- |\n| x\\|y | 1 2 |\n\n- Under it.\n"


def test_background_is_transparent_and_the_cloud_is_not() -> None:
    image = pixels(cloud_tile(DOT))
    assert image[0, 0, 3] == 0.0
    assert image[..., 3].max() > 0.9


def test_low_points_are_blue_and_high_points_amber() -> None:
    line = np.stack([np.zeros(50), np.zeros(50), np.linspace(0.0, 1.0, 50)], axis=1)
    image = pixels(cloud_tile(line))
    opaque = np.argwhere(image[..., 3] > 0.3)
    top, bottom = image[tuple(opaque[0])], image[tuple(opaque[-1])]
    assert top[0] > top[2]
    assert bottom[2] > bottom[0]


def test_height_on_the_page_is_height_in_space() -> None:
    """The higher of two points is drawn further up, and nearer the middle line than the edges."""
    image = pixels(cloud_tile(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])))
    rows = np.flatnonzero((image[..., 3] > 0.3).any(axis=1))
    columns = np.flatnonzero((image[..., 3] > 0.3).any(axis=0))
    assert rows.max() - rows.min() > 0.7 * image.shape[0]
    assert abs(columns.mean() - image.shape[1] / 2) < 0.05 * image.shape[1]


def test_a_cloud_of_one_place_can_be_drawn() -> None:
    assert pixels(cloud_tile(np.zeros((5, 3))))[..., 3].max() > 0.3
    assert pixels(contact_sheet([shape(points=np.zeros((5, 3)))], note="")).shape[2] == 4


def test_points_take_the_colours_that_are_given() -> None:
    colors = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert has_color(pixels(cloud_tile(DOT, colors)), 255, 0, 0)


def test_masked_points_are_orange_and_visible_ones_blue() -> None:
    centers = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    points = np.repeat(centers, 10, axis=0)
    both = pixels(masked_tile(points, centers, np.array([True, False])))
    assert has_color(both, 0xD9, 0x82, 0x2B)
    assert has_color(both, 0x2F, 0x81, 0xF7)
    hidden = pixels(masked_tile(points, centers, np.array([True, True])))
    assert not has_color(hidden, 0x2F, 0x81, 0xF7)


def shape(points: NDArray[np.floating] = DOT, **more: Any) -> SheetShape:
    return SheetShape(**{"points": points, "name": "dot"} | more)


def blue_bar(similarity: float) -> int:
    """Pixels of the similarity bar of one neighbour."""
    row = SheetRow(shape(), (shape(similarity=similarity),))
    image = pixels(search_sheet([row], note=""))
    line = np.abs(image[..., :3] * 255 - [0x2F, 0x6F, 0xB7]).max(axis=-1) < 4
    return int(line.sum(axis=1).max())


def test_a_similarity_bar_is_as_long_as_its_share() -> None:
    whole = blue_bar(1.0)
    assert whole > 100
    assert blue_bar(0.5) == pytest.approx(whole / 2, abs=2)
    assert blue_bar(-0.3) == 0


def test_the_query_stands_on_a_ground_of_its_own_to_the_left() -> None:
    image = pixels(search_sheet([SheetRow(shape(), (shape(), shape()))], note="cosine"))
    card = np.abs(image[..., :3] * 255 - [0xEE, 0xF1, 0xF4]).max(axis=-1) < 2
    columns = np.flatnonzero(card.sum(axis=0) > 100)
    assert columns.max() < image.shape[1] / 3
    assert image[..., 3].min() == 1.0


def test_neighbours_of_one_query_fill_rows_of_five() -> None:
    few, many = (
        pixels(search_sheet([SheetRow(shape(), (shape(),) * count)], note="")) for count in (5, 6)
    )
    assert few.shape[1] == many.shape[1]
    assert many.shape[0] > 1.7 * few.shape[0]


@pytest.mark.parametrize(
    ("size", "length"), [(1.0, "0.5"), (4.0, "2"), (0.004, "0.002"), (9e6, "5000000")]
)
def test_the_scale_is_a_round_length_that_fits(
    size: float, length: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upright square of side 1 is drawn 1.13 high, so that 0.6 are at most half a cell."""
    written: list[str] = []
    monkeypatch.setattr(pictures._Sheet, "text", lambda self, text, *_, **__: written.append(text))
    square = np.array([[0, 0, 0], [0, size, 0], [0, 0, size], [0, size, size]])
    contact_sheet([shape(points=square)], note="")
    assert length in written


def test_predictions_are_shown_with_their_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, bool] = {}

    def text(self: object, words: str, *_: object, bold: bool = False, **__: object) -> None:
        written[words] = bold

    monkeypatch.setattr(pictures._Sheet, "text", text)
    view = FilledView(seen=DOT, hidden=DOT + 1, guesses=(DOT + 1, DOT), distances=(1.234, 5.0))
    filled_views([view], titles=("pretrained", "random weights"), note="Chamfer distance")
    assert list(written) == [
        *("visible patches", "hidden patches", "seen", "true", "pretrained", "random weights"),
        *("1.23", "5.00", "Chamfer distance"),
    ]
    assert (written["1.23"], written["5.00"]) == (True, False)


def test_the_same_picture_is_the_same_bytes_whatever_the_users_settings() -> None:
    sheet = [shape(name="dot $x$\n" + "鎖" * 80)]
    first = (cloud_tile(DOT), contact_sheet(sheet, note=""))
    with mpl.rc_context({"text.usetex": True, "font.family": "serif", "savefig.dpi": 10}):
        assert (cloud_tile(DOT), contact_sheet(sheet, note="")) == first


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(DataError, match="no points to draw"):
        cloud_tile(np.empty((0, 3)))
    for draw in (contact_sheet, search_sheet):
        with pytest.raises(DataError, match="no clouds to draw"):
            draw([], note="")  # type: ignore[operator]
    with pytest.raises(DataError, match="no clouds to draw"):
        filled_views([], titles=(), note="")
    with pytest.raises(DataError, match="loss is in none of the 1 rows"):
        run_curves([[{"step": 1, "learning_rate": 0.1}]], "loss")


def test_each_run_has_a_line_of_its_own_colour() -> None:
    rows = [{"step": step, "loss": 2.0 / step} for step in (1, 2, 3)]
    one = pixels(run_curves([rows], "loss"))
    two = pixels(run_curves([rows, [row | {"loss": 1.0} for row in rows]], "loss", smooth=False))
    assert has_color(one, 0x2F, 0x81, 0xF7)
    assert not has_color(one, 0xD9, 0x82, 0x2B)
    assert has_color(two, 0xD9, 0x82, 0x2B)


def test_curves_accept_a_single_row_and_a_run_without_the_term() -> None:
    assert pixels(run_curves([[{"step": 1, "loss": 2.0}], []], "loss")).shape[2] == 4


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("chair.obj", ["chair.obj"]),
        (
            "furniture/chairs/of-the-1960s/chair.obj",
            ["furniture/chairs/of-the-", "1960s/chair.obj"],
        ),
        ("x" * 30, ["x" * 25, "xxxxx"]),
        ("a" * 40 + "b" * 40, ["a" * 24 + "…", "b" * 25]),
    ],
)
def test_a_name_takes_at_most_two_lines(name: str, lines: list[str]) -> None:
    assert pictures._wrapped(name) == lines
