"""Every page and picture that the program makes, opened in a real browser at the width of a phone and of a desk.

Not a part of plain ``pytest``, since a browser is needed: ``nox -s browser``, or
``pytest -n 0 tests/pages_in_browser.py`` with the ``browser`` extra and Chromium (on Debian the package chromium).
It is looked for under its usual names, or in the environment variable CHROMIUM. With the variable SCREENSHOTS the
screenshots are kept in that folder, to be looked at.
"""

from __future__ import annotations

import functools
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

import pointdistill
from pointdistill.data.corpus import open_corpus
from pointdistill.engine.pretraining import online_probe
from pointdistill.engine.reports.pictures import FilledView, filled_views
from pointdistill.engine.reports.preview import write_preview
from tests.cli.typed import typed
from tests.data.test_corpus import some_rows, write_corpus
from tests.engine.labelled import saved_encoder
from tests.engine.test_run_report import EVIL, made_runs
from tests.test_examples import random_stl_files

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
EXAMPLE = Path(__file__).parents[1] / "examples" / "browser"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = (360, 1280)
CUBE = [f"v {x} {y} {z}\n" for x in (0, 1) for y in (0, 1) for z in (0, 1)]
FACES = ["f 1 2 4\n", "f 1 4 3\n", "f 5 8 6\n", "f 5 7 8\n", "f 1 5 2\n", "f 3 4 8\n"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium here; install it, or name it in CHROMIUM")
    with api.sync_playwright() as playwright:
        # Without a sandbox, since containers let nobody make one; the pages are our own.
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


def look(browser: Browser, page: Path, *, scheme: str = "light") -> list[Any]:
    """Open a page at both widths: no complaint on the console, nothing wider than the window, every image drawn.

    Returns what the page's body says at each width.
    """
    said = []
    for width in WIDTHS:
        context = browser.new_context(
            viewport={"width": width, "height": 800},
            color_scheme=scheme,  # type: ignore[arg-type]
            offline=True,
        )
        tab = context.new_page()
        complaints: list[str] = []
        tab.on("console", lambda line: complaints.append(f"{line.type}: {line.text}"))  # noqa: B023
        tab.on("pageerror", lambda error: complaints.append(str(error)))  # noqa: B023
        tab.on("dialog", lambda dialog: complaints.append(dialog.message))  # noqa: B023
        tab.goto(page.resolve().as_uri())
        tab.wait_for_load_state("load")
        assert complaints == [], f"{page.name} at {width} pixels"
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, page.name
        assert tab.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
        small = tab.evaluate(SMALL_TEXT)
        assert small == [], f"{page.name} at {width} pixels: {small}"
        if folder := os.environ.get("SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            tab.screenshot(path=Path(folder, f"{page.stem}-{width}-{scheme}.png"), full_page=True)
        said.append(tab.inner_text("body"))
        context.close()
    return said


SMALL_TEXT = """[...document.querySelectorAll("body *")]
  .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
  .filter((e) => !["SCRIPT", "STYLE", "NOSCRIPT"].includes(e.tagName))
  .filter((e) => parseFloat(getComputedStyle(e).fontSize) < 11)
  .map((e) => e.textContent.trim().slice(0, 40))"""
"""Text that nobody reads on a phone."""


def shown(folder: Path, picture: Path) -> Path:
    """A page with a picture as wide as the window, as a viewer shows it."""
    page = folder / f"shown-{picture.stem}.html"
    page.write_text(
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<title>picture</title><img alt="" style="max-width: 100%" src="{picture.resolve().as_uri()}">'
    )
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_about_two_runs(
    browser: Browser, tmp_path: Path, scheme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(online_probe, "BUILTIN_SHAPES", 216)
        runs = made_runs(tmp_path)
        for name, given in (("two.html", runs), ("one.html", runs[:1])):
            code, _, err = typed(capsys)("report", *map(str, given), "-o", str(tmp_path / name))
            assert (code, err) == (0, "")
            for text in look(browser, tmp_path / name, scheme=scheme):
                assert EVIL in text
                assert "Patch features as colours" in text


def test_the_turning_page_draws_and_changes_shapes(browser: Browser, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", [("a", some_rows("a", 7))])
    made = write_preview(
        open_corpus(tmp_path / "corpus"), [0, 1, 2], stem=tmp_path / "turn", seed=0
    )
    for text in look(browser, made.page):
        assert "corpus: 3 shapes" in text
    look(browser, shown(tmp_path, made.picture))
    tab = browser.new_page()
    tab.goto(made.page.resolve().as_uri())
    before = tab.inner_text("#name")
    tab.locator("#shelf button").nth(2).click()
    assert tab.inner_text("#name") != before
    drawn = """() => {
      const { width, height } = document.getElementById("stage");
      const pixels = document.getElementById("stage").getContext("2d").getImageData(0, 0, width, height).data;
      return pixels.filter((value, k) => k % 4 === 3 && value > 0).length;
    }"""
    tab.wait_for_function(f"({drawn})() > 100")
    tab.close()


def test_the_sheets(
    browser: Browser,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    saved_encoder(Path("encoder"))
    Path("meshes").mkdir()
    for number in range(7):
        scaled = [f"v {float(line.split()[1]) * (number + 1)} {line[4:]}" for line in CUBE]
        name = f"part {number} <b>$x$ with a name too long to fit a single line of its caption.obj"
        Path("meshes", name).write_text("".join([*scaled, *FACES]))
    run = typed(capsys)
    assert run("embed", "meshes", "--encoder", "encoder", "--up", "z", "-o", "all.npz")[0] == 0
    queries = [str(path) for path in sorted(Path("meshes").iterdir())[:2]]
    assert run("search", queries[0], "all.npz", "--sheet", "one.png")[0] == 0
    assert run("search", *queries, "all.npz", "--sheet", "several.png")[0] == 0
    rng = np.random.default_rng(0)
    seen, hidden = rng.normal(size=(2, 200, 3))
    guesses = (hidden + 0.02, hidden + rng.normal(size=hidden.shape))
    view = FilledView(seen=seen, hidden=hidden, guesses=guesses, distances=(0.51, 12.3))
    titles = ("pretrained", "random weights")
    Path("filled.png").write_bytes(filled_views([view] * 2, titles=titles, note="Chamfer distance"))
    for name in ("one.png", "several.png", "filled.png"):
        look(browser, shown(tmp_path, Path(name)))


def test_the_pictures_of_the_readme_are_those_of_their_script(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = PICTURES.parents[1] / "examples" / "shapes_by_features.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    for scheme in ("light", "dark"):
        picture = PICTURES / f"shapes-{scheme}.png"
        assert picture.stat().st_size < 200_000
        ours, again = (
            np.asarray(Image.open(path).convert("RGB"), np.float32)
            for path in (picture, tmp_path / picture.name)
        )
        # Rounding differs between processors, and may turn the sign of a component: the ink is compared.
        assert ours.shape == again.shape
        assert np.abs(ours.mean() - again.mean()) < 3
        look(browser, shown(tmp_path, picture), scheme=scheme)


@pytest.mark.timeout(900)
def test_the_site(browser: Browser, tmp_path: Path) -> None:
    """The pages that are read first; on a phone their sheets scroll, and commands are copied as written."""
    pytest.importorskip("furo", reason="the docs extra, which builds the site, is not installed")
    pages = PICTURES.parent
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", str(pages), "site"]
    subprocess.run(command, cwd=tmp_path, check=True)
    for name in ("index", "tour", "gallery", "faq", "comparison", "results"):
        look(browser, tmp_path / "site" / f"{name}.html")
    tab = browser.new_page(viewport={"width": WIDTHS[0], "height": 800})
    tab.goto((tmp_path / "site" / "tour.html").as_uri())
    widths = tab.evaluate("[...document.querySelectorAll('img.wide')].map((i) => i.width)")
    assert len(widths) == 3
    assert min(widths) > 600
    copied = tab.evaluate(
        """[...document.querySelectorAll(".highlight-console pre")].map((block) => {
          getSelection().selectAllChildren(block);
          return getSelection().toString().trim();
        })"""
    )
    written = re.findall(r"```console\n(.*?)\n```", (pages / "tour.md").read_text(), re.DOTALL)
    assert copied == written
    tab.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The browser example with onnxruntime-web beside it, on the loopback interface."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm, which brings onnxruntime-web, is not installed")
    shutil.copytree(EXAMPLE, tmp_path / "site")
    command = [npm, "install", "--no-save", "--silent", "onnxruntime-web"]
    done = subprocess.run(command, cwd=tmp_path / "site", capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"onnxruntime-web cannot be had: {done.stderr.decode(errors='replace')[-200:]}")
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_the_browser_samples_and_encodes_as_python_does(
    browser: Browser, served: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    words = (
        "export",
        str(model),
        "--format",
        "onnx",
        "--points",
        "1024",
        "--encoder",
        "procedural-mini",
    )
    assert typed(capsys)(*words)[0] == 0
    files = random_stl_files(tmp_path)
    for width in WIDTHS:
        tab = browser.new_page(viewport={"width": width, "height": 800})
        complaints: list[str] = []
        tab.on("console", lambda line: complaints.append(line.text))  # noqa: B023
        tab.on("pageerror", lambda error: complaints.append(str(error)))  # noqa: B023
        tab.goto(served)
        tab.set_input_files("#model", model / "model.onnx")
        tab.set_input_files("#shapes", files)
        tab.fill("#seed", "7")
        tab.click("#run")
        tab.wait_for_function(
            "document.querySelectorAll('#nearest li').length == 2", timeout=120_000
        )
        assert complaints == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        encoded = tab.evaluate("window.encoded")
        listed = tab.inner_text("#nearest")
        tab.close()
    assert "<b>.stl: " in listed
    encoder = pointdistill.load_encoder("procedural-mini")
    for path, shape in zip(files, encoded, strict=True):
        points = pointdistill.sample_surface(path, 1024, seed=7)
        assert np.abs(np.reshape(shape["points"], (-1, 3)) - points).max() < 1e-6
        with torch.inference_mode():
            output = encoder(torch.from_numpy(points)[None])
        own = torch.cat([output.cls, output.patches.mean(dim=1)], dim=1)[0].numpy()
        assert np.abs(np.array(shape["features"]) - own).max() < 1e-4
