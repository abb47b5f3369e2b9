"""One list of benchmarks: what is added to it can be measured on, trained on and checked for leaks."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pointdistill.data.benchmarks.records import Benchmark, LabelledClouds
from pointdistill.data.benchmarks.registry import (
    BENCHMARKS,
    SMALL,
    BenchmarkInput,
    BenchmarkPaths,
    BenchmarkRow,
    BenchmarkSpec,
    benchmark_spec,
    benchmark_specs,
    choose_splits,
    find_archive,
    published_table,
    spec_titled,
    trainable_benchmarks,
)
from pointdistill.data.corpus import open_corpus
from pointdistill.data.sources import SOURCES, source_info
from pointdistill.engine.evaluation.evaluate import EvaluationRequest, evaluate_saved
from pointdistill.engine.evaluation.leak_check import LeakRequest, check_leaks
from pointdistill.engine.finetuning.finetune import finetune
from pointdistill.engine.finetuning.request import FinetuneRequest
from pointdistill.engine.pretraining.online_probe import open_labelled_set
from pointdistill.errors import ConfigError
from tests.engine.labelled import saved_encoder

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"
CLASSES = ("ball", "rod")


def side(each: int, *, seed: int) -> LabelledClouds:
    """Balls and rods in turn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(2 * each) % 2
    stretch = np.array([[1.0, 1.0, 1.0], [0.1, 0.1, 1.0]])[labels]
    points = rng.normal(size=(2 * each, 64, 3)) * stretch[:, None]
    return LabelledClouds(points.astype(np.float32), labels.astype(np.int64))


def read_toys(paths: BenchmarkPaths, split: str | None, **_: object) -> Benchmark:
    """A benchmark whose archive is a JSON file that says how many shapes there are."""
    each = json.loads(paths.archive.read_text())["each"]
    return Benchmark(
        name="Toys",
        split=split,
        classes=CLASSES,
        train=side(each, seed=0),
        test=side(2, seed=1),
        data_name="Toys",
        form="toys.json",
        checksum="0" * 64,
        stand_in="stand-in" in paths.archive.parts,
    )


def make_toys(output: Path, *, progress: Callable[[int, int], None] | None = None) -> None:
    output.parent.mkdir(parents=True)
    output.write_text('{"each": 6}')
    if progress:
        progress(1, 1)


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> BenchmarkSpec:
    """A benchmark of one module and one row."""
    module = ModuleType("toys_benchmark")
    module.__dict__["make_toys"] = make_toys
    module.__dict__["SPEC"] = spec = BenchmarkSpec(
        title="Toys",
        archives=("toys.json",),
        licence="anybody may do anything",
        read=read_toys,
        stand_in_maker="toys_benchmark:make_toys",
        splits=("hard", "easy"),
        training_split="easy",
        input=BenchmarkInput(
            points=32, patches=4, subsampling="uniform", rotate_z=True, scale=(0.9, 1.1)
        ),
        published=published_table(("hard", "easy"), {("knn", SMALL): (50.0, 100.0)}),
    )
    monkeypatch.setitem(sys.modules, "toys_benchmark", module)
    monkeypatch.setitem(BENCHMARKS, "toys", BenchmarkRow("toys_benchmark", "classification"))
    return spec


def test_a_module_and_a_row_are_a_benchmark_for_evaluate(
    toys: BenchmarkSpec, tmp_path: Path
) -> None:
    saved_encoder(tmp_path / "encoder")
    outcome = evaluate_saved(
        EvaluationRequest(
            benchmark="toys",
            encoder=tmp_path / "encoder",
            stand_in=True,
            protocols=("knn", "finetune"),
            splits=("easy",),
            seeds=1,
            epochs=1,
            device="cpu",
            folder=tmp_path,
        )
    )
    knn, trained = outcome.results
    assert (knn.benchmark, knn.split, knn.test_clouds) == ("Toys", "easy", 4)
    assert knn.accuracy.mean == 100.0
    assert trained.label == "finetune (1 of 150 epochs)"
    assert toys.published["easy", "knn", SMALL].accuracy == 100.0


def test_a_module_and_a_row_are_a_benchmark_for_finetune(
    toys: BenchmarkSpec, tmp_path: Path
) -> None:
    saved_encoder(tmp_path / "encoder")
    (tmp_path / "toys.json").write_text('{"each": 6}')
    request = FinetuneRequest(
        benchmark="toys",
        data=tmp_path / "toys.json",
        encoder=tmp_path / "encoder",
        epochs=1,
        output=tmp_path / "model",
        device="cpu",
        folder=tmp_path,
    )
    result = finetune(request)
    assert (result.finished, result.kind) == (True, "classifier")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["training"]["data"]["split"] == "easy"
    assert toys.licence in json.dumps(config)


def test_a_module_and_a_row_are_a_benchmark_for_leaks_and_the_online_probe(
    toys: BenchmarkSpec, tmp_path: Path, corpus_of_chairs: Path
) -> None:
    (tmp_path / "toys.json").write_text('{"each": 6}')
    checked = check_leaks(
        LeakRequest(
            benchmark="toys", corpus=corpus_of_chairs, data=tmp_path / "toys.json", workers=1
        )
    )
    assert [split for split, _ in checked.reports] == list(toys.splits)
    assert all(report.test_shapes == 4 for _, report in checked.reports)
    labelled = open_labelled_set(str(tmp_path / "toys.json"), points=64)
    assert labelled.name == "Toys"


@pytest.fixture
def corpus_of_chairs(tmp_path: Path) -> Path:
    from pointdistill.data.corpus_building import build_corpus
    from pointdistill.data.sources import SourceRequest, open_source

    source = open_source("builtin", SourceRequest(shapes=4))
    build_corpus(source, tmp_path / "corpus", points=64, seed=0, workers=0)
    return open_corpus(tmp_path / "corpus").path


def test_titles_names_and_stand_ins_fit_together() -> None:
    assert trainable_benchmarks() == ("scanobjectnn", "modelnet40", "shapenetpart")
    for spec in benchmark_specs():
        assert spec_titled(spec.title) is spec
        assert set(spec.default_protocols) <= set(spec.protocols)
        assert {split for split, _, _ in spec.published} <= set(spec.splits)
        assert {protocol for _, protocol, _ in spec.published} <= set(spec.protocols)
        module, _, function = spec.stand_in_maker.partition(":")
        assert callable(getattr(__import__(module, fromlist=["_"]), function))
    assert spec_titled("Toys") is None


def test_splits_are_measured_in_their_official_order() -> None:
    typed = ("PB-T50-RS", "OBJ-BG")
    assert choose_splits("scanobjectnn", typed) == ("OBJ-BG", "PB-T50-RS")
    assert choose_splits("scanobjectnn", ()) == benchmark_spec("scanobjectnn").splits
    assert choose_splits("psb", ()) == benchmark_spec("psb").default_splits
    with pytest.raises(ConfigError, match="no split 'OBJ'; choose from OBJ-BG"):
        choose_splits("scanobjectnn", ("OBJ",))


def test_an_archive_is_found_in_any_of_its_forms(tmp_path: Path) -> None:
    """Where there are several, the first; where there is none, messages name the first."""
    for name in ("shapenetpart", "psb"):
        folder = tmp_path / name
        places = [folder / archive for archive in benchmark_spec(name).archives]
        assert len(places) == 2
        assert find_archive(name, data=folder, folder=tmp_path) == places[0]
        for place in reversed(places):
            place.mkdir(parents=True)
            assert find_archive(name, data=folder, folder=tmp_path) == place


def test_a_licence_is_that_of_the_source_of_the_same_data() -> None:
    for name in BENCHMARKS:
        if name in {source.name for source in SOURCES}:
            assert benchmark_spec(name).licence == source_info(name).licence


def test_the_table_in_the_docs_is_the_list() -> None:
    """Name, archives, splits, repeats and protocols, those run by default in bold."""
    found = {}
    for line in DOCS.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0].strip("`") in BENCHMARKS:
            found[cells[0].strip("`")] = cells[1:]
    assert list(found) == list(BENCHMARKS)
    for name, (data, splits, repeats, protocols) in found.items():
        spec = benchmark_spec(name)
        first, *others = spec.archives
        assert f"`{first}`" in data
        assert all(Path(other).suffix in data for other in others)
        assert splits == ", ".join(filter(None, spec.splits))
        assert repeats.startswith(f"{spec.seeds} {spec.repeated_over}")
        plain = tuple(part.strip(" *") for part in protocols.split(","))
        assert plain == spec.protocols
        bold = protocols.split("**")[1::2]
        assert tuple(p.strip() for part in bold for p in part.split(",")) == spec.default_protocols
