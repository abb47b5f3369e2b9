"""The page that turns shapes: what is in it, what cannot get into it, and that its script draws."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.engine.reports import preview
from pointdistill.engine.reports.preview import (
    PreviewShape,
    contact_sheet,
    read_preview,
    turning_page,
    write_preview,
)
from tests.data.test_corpus import some_rows, write_corpus
from tests.engine.test_report import Page, has_color, pixels

SCRIPT = Path(preview.__file__).with_name("preview.js")
EVIL = "</script><script>alert(1)</script><b>&$x$"

# A page without a browser: elements that remember what is drawn, and listeners that can be called.
BROWSER = """
const made = {};
const element = () => ({
  drawn: [], listeners: {}, width: 300, height: 200, clientWidth: 300, clientHeight: 200, children: [],
  getContext() {
    const drawn = this.drawn;
    return { clearRect() { drawn.length = 0; }, beginPath() {}, moveTo() {}, lineTo() {}, stroke() {},
      fillRect(x, y, w, h) { drawn.push([x + w / 2, y + h / 2]); },
      fillText(text) { drawn.push(text); } };
  },
  addEventListener(name, call) { this.listeners[name] = call; },
  append(...more) { this.children.push(...more); },
  setAttribute(name, value) { this[name] = value; },
  setPointerCapture() {},
});
global.window = { devicePixelRatio: 1, matchMedia: () => ({ matches: true }), addEventListener() {} };
global.requestAnimationFrame = (call) => call();
global.document = { createElement: element, getElementById: (id) => (made[id] ??= element()) };
"""


def node(code: str, *, given: object = None) -> object:
    """What a piece of JavaScript leaves in ``result``, with ``given`` as it was given."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("node, which runs the page's script here, is not installed")
    whole = f"const given = {json.dumps(given)}; let result; {code}; console.log(JSON.stringify(result));"
    done = subprocess.run([program, "-e", whole], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def shape_of(points: object, *, name: str = "one", label: str = "") -> PreviewShape:
    array = np.asarray(points, np.float32)
    x, y, z = np.ptp(array, axis=0).tolist()
    return PreviewShape(
        id=name, source="a", label=label, points=array, whole=len(array), sides=(x, y, z)
    )


def data_of(page: str) -> list[dict[str, str]]:
    found = re.search(r'<script type="application/json" id="shapes">(.*?)</script>', page)
    assert found is not None
    entries: list[dict[str, str]] = json.loads(found[1])
    return entries


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    write_corpus(tmp_path / "corpus", [("a", some_rows("a", 7))])
    return open_corpus(tmp_path / "corpus")


BOX = [[0, 0, 0], [2, 0, 0], [2, 4, 0], [0, 0, 8]]


def test_points_stand_in_the_page_as_steps_of_their_cube() -> None:
    """A box of 2 x 4 x 8: its middle is (1, 2, 4), and half its longest side 4 is 32767 steps."""
    (entry,) = data_of(turning_page("shapes", [shape_of(BOX, label="box")]))
    steps = np.frombuffer(base64.b64decode(entry["points"]), "<i2").reshape(-1, 3)
    expected = (np.array(BOX) - [1, 2, 4]) / 4 * 32767
    assert np.abs(steps - expected).max() <= 0.5
    assert entry["facts"] == "a · box · 4 points · 2 x 4 x 8"


def test_names_stay_text_and_the_policy_allows_this_script_alone() -> None:
    text = turning_page(EVIL, [shape_of(BOX, name=EVIL, label=EVIL)])
    page = Page(text)
    assert page.open == []
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "shapes"}, {}]
    assert "b" not in {tag for tag, _ in page.tags}
    assert data_of(text)[0]["id"] == EVIL
    assert not any("src" in attributes or "href" in attributes for _, attributes in page.tags)
    assert "http://" not in text
    assert "https://" not in text
    policies = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    hashed = base64.b64encode(hashlib.sha256(SCRIPT.read_bytes()).digest()).decode()
    assert policies[0] is not None
    assert policies[0].startswith("default-src 'none'; style-src 'sha256-")
    assert policies[0].endswith(f"script-src 'sha256-{hashed}'")
    assert text.count(f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>") == 1


def test_the_same_seed_shows_the_same_points(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "POINTS_ON_PAGE", 10)
    first, other = (list(read_preview(corpus, [1, 4], seed=seed)) for seed in (0, 1))
    again = list(read_preview(corpus, [1, 4], seed=0))
    assert [s.points.tobytes() for s in first] == [s.points.tobytes() for s in again]
    assert first[0].points.tobytes() != other[0].points.tobytes()
    assert [(s.id, s.label, len(s.points), s.whole) for s in first] == [
        ("a/é01", "chair", 10, 41),
        ("a/é04", "chair", 10, 44),
    ]
    rows = {row.tobytes() for row in corpus.points(1)}
    assert len({row.tobytes() for row in first[0].points} & rows) == 10
    assert first[0].sides == pytest.approx(np.ptp(corpus.points(1), axis=0))
    assert "41 points (10 shown)" in data_of(turning_page("x", first))[0]["facts"]


def test_both_files_are_written_beside_each_other(corpus: Corpus, tmp_path: Path) -> None:
    made = write_preview(corpus, [0, 1], stem=tmp_path / "new" / "v1.2", seed=0)
    assert (made.picture.name, made.page.name, made.shapes) == ("v1.2.png", "v1.2.html", 2)
    assert sorted(p.name for p in made.page.parent.iterdir()) == ["v1.2.html", "v1.2.png"]
    assert pixels(made.picture.read_bytes()).shape[2] == 4
    assert "<title>corpus: 2 shapes</title>" in made.page.read_text(encoding="utf-8")


def test_the_sheet_draws_up_and_takes_any_name() -> None:
    """All points are in the middle, so that the arrow's ink is all there is at the left. A name in
    another script, of several lines, or that reads as a formula is drawn as it is."""
    dot = np.zeros((40, 3))
    image = pixels(contact_sheet([shape_of(dot, name="鎖$\n" + "x" * 90, label=r"$\frac$")]))
    corner = image[-image.shape[0] // 3 :, : image.shape[1] // 6]
    assert has_color(corner, 0x59, 0x63, 0x6E)


def test_the_script_reads_points_as_they_were_written() -> None:
    (entry,) = data_of(turning_page("shapes", [shape_of(BOX)]))
    code = f"result = Array.from(require({json.dumps(str(SCRIPT))}).decodePoints(given))"
    points = np.reshape(node(code, given=entry["points"]), (-1, 3))  # type: ignore[call-overload]
    assert np.allclose(points, (np.array(BOX) - [1, 2, 4]) / 4, atol=2e-5)


@pytest.mark.parametrize(("azimuth", "elevation"), [(0.0, 0.0), (0.7, 0.3), (-2.0, 1.5), (4.0, -1)])
def test_the_scripts_camera_turns_and_never_mirrors(azimuth: float, elevation: float) -> None:
    code = f"result = require({json.dumps(str(SCRIPT))}).camera(...given)"
    rows = np.array(node(code, given=[azimuth, elevation]))
    assert np.allclose(rows @ rows.T, np.eye(3))
    assert np.linalg.det(rows) == pytest.approx(1)
    assert rows[1, 2] == pytest.approx(math.cos(elevation))  # z points up on the screen
    assert rows[0, 2] == pytest.approx(0)  # and never leans


def test_the_script_shows_turns_and_changes_shapes() -> None:
    shapes = [shape_of(BOX, name="first"), shape_of([[0, 0, 0], [0, 0, 1]], name="<second>")]
    entries = json.dumps(data_of(turning_page("shapes", shapes)))
    code = f"""{BROWSER}
    document.getElementById("shapes").textContent = given;
    require({json.dumps(str(SCRIPT))});
    const stage = made.stage, shelf = made.shelf.children;
    const dots = () => stage.drawn.filter((mark) => typeof mark !== "string").map((p) => p.map(Math.round));
    const key = (name) => stage.listeners.keydown({{ key: name, preventDefault() {{}} }});
    result = {{ first: made.name.textContent, start: dots() }};
    result.shelf = shelf.map((b) => b.children[0].drawn.length);
    result.texts = stage.drawn.filter((mark) => typeof mark === "string");
    key("ArrowLeft"); result.turned = dots();
    key("ArrowRight"); result.back = dots();
    shelf[1].listeners.click();
    result.second = made.name.textContent; result.pole = dots();
    result.pressed = shelf.map((b) => b["aria-pressed"]);
    stage.listeners.pointerdown({{ clientX: 5, clientY: 5, pointerId: 1 }});
    stage.listeners.pointermove({{ clientX: 5, clientY: 905, buttons: 1 }}); result.above = dots();
    """
    seen = node(code, given=entries)
    assert isinstance(seen, dict)
    assert seen["shelf"] == [4, 2]
    assert (seen["first"], seen["second"]) == ("first", "<second>")
    assert seen["texts"] == ["x 2", "y 4", "z, up 8"]
    assert seen["turned"] != seen["start"] == seen["back"]
    assert seen["pressed"] == ["false", "true"]
    # Far to near: the pole's foot, then its top, one above the other in the middle of 300 x 200.
    (low_x, low_y), (high_x, high_y) = seen["pole"]
    assert low_x == high_x == 150
    assert high_y < 100 < low_y
    assert high_y + low_y == pytest.approx(200, abs=1)
    # Dragged down as far as it goes, it is seen from straight above.
    assert seen["above"] == [[150, 100], [150, 100]]
