"""The quickstart at a toy size: it goes the whole way, twice with the same numbers, and writes its page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pointdistill.data.benchmark_standins import ScanSizes
from pointdistill.data.files.files import hold_output
from pointdistill.data.files.schema import to_plain
from pointdistill.data.files.workspace import last_corpus, last_run
from pointdistill.engine import quickstart as engine
from pointdistill.engine.quickstart import (
    GEOMETRY,
    INITIAL,
    PRETRAINED,
    PROTOCOLS,
    SUPERVISED,
    UNAUGMENTED,
    QuickstartConfig,
    gains,
    quickstart,
)
from pointdistill.engine.weights import BUNDLED, bundled_is_here
from pointdistill.errors import ConfigError, DataError
from tests.cli.test_json import document
from tests.cli.typed import typed
from tests.recorder import Recorder

TOY = QuickstartConfig(
    shapes=64, points=320, sizes=ScanSizes(train=4, test=2), steps=3, supervised_epochs=1
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "quick start"


def test_a_second_one_in_the_same_folder_is_refused(folder: Path) -> None:
    busy = "quick start: another process is writing there; wait for it, or choose another folder"
    with hold_output(folder), pytest.raises(DataError, match=busy) as caught:
        quickstart(folder, TOY)
    assert caught.value.settings == ("folder",)


def test_the_whole_way_and_again_with_the_same_numbers(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder()
    first = quickstart(folder, TOY, processes=1, reporter=recorder)
    steps = [(done, total) for _, done, total, note in recorder.tasks if note.startswith("loss")]
    assert steps == [(1, 3), (2, 3), (3, 3)]
    measured = {(r.features, r.protocol) for r in first.results}
    frozen = {(f, p) for f in (PRETRAINED, INITIAL, GEOMETRY) for p in PROTOCOLS}
    bundled = f"{BUNDLED}, trained for hours"
    frozen |= {(bundled, p) for p in UNAUGMENTED} if bundled_is_here() else set()
    assert measured == frozen | {(SUPERVISED, "scratch")}
    assert all(result.stand_in for result in first.results)
    assert gains(first.results).keys() == set(PROTOCOLS)
    # The second time as it is typed, with the same sizes.
    toy = partial(
        QuickstartConfig,
        points=TOY.points,
        sizes=TOY.sizes,
        supervised_epochs=TOY.supervised_epochs,
    )
    words = ("--folder", str(folder), "--shapes", str(TOY.shapes), "--steps", str(TOY.steps))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "QuickstartConfig", toy)
        patch.setattr(engine, "usable_cores", lambda: 1)
        again = document(typed(capsys), "quickstart", *words)
    assert again["results"] == to_plain(first.results)
    assert again["gains"] == gains(first.results)
    assert Path(again["report"]) == first.report
    assert again["finished"]
    assert again["total_seconds"] >= again["seconds"]["corpus"]
    fresh = quickstart(folder.parent / "elsewhere", TOY, processes=2)
    assert fresh.results == first.results, "stages beside each other give the same numbers"
    assert first.seconds.keys() <= fresh.seconds.keys()
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 5
    assert not re.search(r'(src|href)="http', page)
    assert "stand-in" in page
    assert json.loads((folder / "run-seed0" / "results.json").read_text())
    assert last_run() is not None
    assert last_corpus() is None  # that of `prepare-data` stays the one to train on
    with pytest.raises(ConfigError, match="holds a run of other settings; choose another folder"):
        quickstart(folder, replace(TOY, steps=4), processes=1)
