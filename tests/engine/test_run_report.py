"""The page about runs: what is on it for one run and for two, and what strangers' names may do to it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pointdistill.data.benchmarks.records import LabelledClouds
from pointdistill.engine import run_report
from pointdistill.engine.evaluation.results import Result, Spread, write_results
from pointdistill.engine.features.extract import feature_colors
from pointdistill.engine.pretraining import online_probe
from pointdistill.engine.pretraining.pretrain import pretrain
from pointdistill.engine.pretraining.run_folder import read_metrics
from pointdistill.engine.quickstart.page import (
    GEOMETRY,
    INITIAL,
    PRETRAINED,
    PROTOCOLS,
    headline,
    why_geometry_wins,
)
from pointdistill.engine.run_report import ReportRequest, feature_sections, report
from pointdistill.engine.weights.encoders import fingerprint, load_encoder
from pointdistill.errors import CheckpointError, ConfigError
from tests.cli.typed import typed
from tests.engine.conftest import MemoryCorpus, micro_config
from tests.engine.labelled import make_encoder
from tests.engine.runs import options
from tests.engine.test_evaluate import make_result
from tests.engine.test_report import Page

EVIL = "<script>alert(1)</script><b>&"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two short runs with a probe; the first was evaluated, and its folder has a stranger's name."""
    return made_runs(tmp_path_factory.mktemp("runs"))


def made_runs(root: Path) -> list[Path]:
    made = [root / "one <b>&amp;", root / "other"]
    rng = np.random.default_rng(0)
    corpus = MemoryCorpus([rng.normal(size=(60, 3)).astype(np.float32) for _ in range(12)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(online_probe, "BUILTIN_SHAPES", 108)
        for seed, run in enumerate(made):
            config = replace(micro_config(), seed=seed, steps=2)
            probed = options(probe="builtin", probe_every=1)
            pretrain(config, corpus=corpus, run=run, options=probed)
    own = fingerprint(load_encoder(made[0]))
    rows = [
        score("encoder of somewhere", 61.25, fingerprint=own),
        score("encoder of somewhere", 12.5, fingerprint="other"),
        score(EVIL, 40.0),
    ]
    write_results(made[0] / "evaluation" / "toy" / "results.json", rows)
    return made


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_probe, "BUILTIN_SHAPES", 216)


def score(features: str, accuracy: float, protocol: str = "svm", fingerprint: str = "") -> Result:
    return make_result(
        features=features,
        protocol=protocol,
        accuracy=Spread.of([accuracy]),
        fingerprint=fingerprint,
    )


def words_of(page: Path) -> str:
    parsed = Page(page.read_text(encoding="utf-8"))
    assert parsed.open == []
    assert not {"script", "link", "iframe"} & {tag for tag, _ in parsed.tags}
    return " ".join(parsed.words)


def test_one_run_has_its_curves_probe_scores_neighbours_and_colours(runs: list[Path]) -> None:
    page = report(ReportRequest(runs=(runs[0],), next_steps=(("cmd <x>", "Next."),)))
    assert page == runs[0] / "report.html"
    words = words_of(page)
    name = runs[0].name
    metrics = [row["probe_accuracy"] for row in read_metrics(runs[0]) if "probe_accuracy" in row]
    went = f"The online probe went from {metrics[0]:.1f} to {metrics[-1]:.1f} %."
    for expected in (
        went,
        "total loss",
        "patch loss",
        "Online probe",
        "61.2 %",
        f"{name}, other weights",
        EVIL,
        "2 of 2",
        "12",
        "cmd <x>",
        "by chance",
        "Patch features as colours",
    ):
        assert expected in words, expected
    assert "Settings that differ" not in words
    assert "Not evaluated" not in words
    assert "the mean over a fortieth of them to each side, at least one." in words
    # 5 rows of a query and 5 neighbours, 2 rows of 6 in colours, and the curves.
    curves = words.count(" loss ") + 1
    assert page.read_text().count("data:image/png;base64,") == 30 + 12 + curves


def test_two_runs_stand_side_by_side(
    runs: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = typed(capsys)("report", *map(str, runs))
    assert (code, err) == (0, "")
    assert out == "page: report.html, open it in a browser\n"
    words = words_of(Path("report.html"))
    assert "is ahead in the online probe" in words
    assert re.search(r"the best of each group is bold\. Not evaluated on .*: other\.", words)
    assert re.search(r"Settings that differ\s+setting .* seed 0 1 ", words)
    last = [read_metrics(run)[-1]["probe_accuracy"] for run in runs]
    for run, accuracy in zip(runs, last, strict=True):
        assert f"{run.name} {accuracy:.1f} %" in words
    assert f"pointdistill evaluate scanobjectnn --stand-in --encoder '{runs[0]}'" in words


def test_what_cannot_be_shown_is_said(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run here; name a folder"):
        report(ReportRequest(runs=(tmp_path,)))
    with pytest.raises(CheckpointError, match="no run was made in this folder yet"):
        report(ReportRequest(folder=tmp_path))
    with pytest.raises(ConfigError, match="named twice"):
        report(ReportRequest(runs=(runs[0], runs[0])))
    with pytest.raises(ConfigError, match=r"must end in \.html, got '.*page.png'"):
        report(ReportRequest(runs=(runs[0],), output=tmp_path / "page.png"))
    monkeypatched = [tmp_path / str(number) for number in range(7)]
    for folder in monkeypatched:
        folder.mkdir()
        (folder / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match="at most 6 runs, got 7"):
        report(ReportRequest(runs=tuple(monkeypatched)))


def test_a_run_without_a_checkpoint_has_a_page_too(runs: list[Path], tmp_path: Path) -> None:
    started = tmp_path / "started"
    started.mkdir()
    described = json.loads((runs[0] / "config.json").read_text())
    (started / "config.json").write_text(json.dumps(described))
    words = words_of(report(ReportRequest(runs=(started,))))
    assert "Not a step was logged yet" in words
    assert "not saved yet" in words


def test_right_and_wrong_are_told_by_the_labels_and_the_query_is_not_its_own_neighbour() -> None:
    """Two kinds of cloud, each three times: both nearest are of its kind, the third is not."""
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(2, 60, 3)) * np.array([[[1, 1, 0.05]], [[0.05, 0.05, 1]]])
    labels = np.repeat(np.arange(2), 3)
    clouds = LabelledClouds(
        (kinds[labels] * rng.uniform(1, 2, (6, 1, 1))).astype(np.float32), labels
    )
    run = run_report.ReportedRun(
        name="one", described={}, metrics=[], results=[], encoder=make_encoder().eval()
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_report, "NEIGHBOURS", 3)
        sections = feature_sections(
            [run], clouds, ["disc", "pole"], inputs=None, what="toys", device=torch.device("cpu")
        )
    assert "one 66.7 % (by chance 40.0 %)" in sections[0].text
    rows = [
        [(tile.picture.caption, str(tile.mark)) for tile in row]
        for gallery in sections[0].galleries
        for row in gallery.rows
    ]
    assert rows == [
        [("disc", "query"), ("disc", "right"), ("disc", "right"), ("pole", "wrong")],
        [("pole", "query"), ("pole", "right"), ("pole", "right"), ("disc", "wrong")],
    ]


def test_equal_clouds_have_equal_colours_and_colours_are_seen_on_any_page() -> None:
    rng = np.random.default_rng(0)
    cloud = torch.from_numpy(rng.normal(size=(1, 100, 3)).astype(np.float32))
    other = torch.from_numpy(rng.normal(size=(1, 100, 3)).astype(np.float32))
    colors = feature_colors(make_encoder().eval(), torch.cat([cloud, other, cloud]))
    assert colors.shape == (3, 100, 3)
    assert np.allclose(colors[0], colors[2], atol=1e-5)
    assert colors.min() >= 0.14
    assert colors.max() <= 0.91
    assert np.ptp(colors, axis=(0, 1)).min() > 0.3


def test_the_headline_and_why_geometry_wins() -> None:
    figures = {INITIAL: 20.0, PRETRAINED: 30.0, GEOMETRY: 25.0}
    rows = [
        score(name, value, protocol) for name, value in figures.items() for protocol in PROTOCOLS
    ]
    assert "gained 10.0 points" in headline(rows)
    assert why_geometry_wins(rows) == ""
    better = [*rows, score(GEOMETRY, 35.0, "knn"), score(GEOMETRY, 40.0, "svm")]
    better += [score("procedural-mini, trained for hours", 50.0, "svm")]
    told = why_geometry_wins(better)
    assert told.startswith("Hand-made geometric features are ahead under knn and svm: ")
    assert told.endswith("is ahead of them: 50.0 % under svm.")
    worse = [
        score(name, 50.0 - value, protocol)
        for name, value in figures.items()
        for protocol in PROTOCOLS
    ]
    assert "lost 10.0 points" in headline(worse)
