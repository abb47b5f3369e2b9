"""The probe of a run: the same every time, told apart from chance, and nothing that the run would notice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pointdistill.data.benchmark_standins import ScanSizes, make_scanobjectnn_stand_in
from pointdistill.data.benchmarks.records import LabelledClouds
from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.engine.pretraining import online_probe as run_probe
from pointdistill.engine.pretraining.checkpoints import new_state, take_snapshot
from pointdistill.engine.pretraining.online_probe import LabelledSet, RunProbe, open_labelled_set
from pointdistill.engine.pretraining.pretrain import pretrain
from pointdistill.engine.pretraining.run_folder import read_metrics
from pointdistill.errors import DataError
from pointdistill.model.encoder import Encoder
from tests.engine.conftest import MemoryCorpus, micro_config
from tests.engine.runs import assert_same_bits, options, untimed


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_probe, "BUILTIN_SHAPES", 108)


def encoder() -> Encoder:
    taken = take_snapshot(new_state(micro_config()), seconds=0.0, keep=True, moments=False)
    assert taken is not None
    return taken.teacher_encoder()


def test_builtin_shapes_are_the_same_every_time_and_split_half_within_each_label() -> None:
    first, second = (open_labelled_set("builtin", points=48) for _ in range(2))
    assert first.voters.points.shape == (54, 48, 3)
    assert np.array_equal(first.voters.points, second.voters.points)
    assert sorted(first.voters.labels) == sorted(first.tested.labels) == list(range(54))


def test_clouds_with_neighbours_of_their_own_class_are_named_right() -> None:
    """Three kinds of cloud, each repeated: every neighbour is of the right class, so 100 %."""
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(3, 48, 3)).astype(np.float32) * np.array(
        [[[1, 1, 0.1]], [[0.1, 0.1, 1]], [[1, 0.2, 1]]]
    )
    labels = np.repeat(np.arange(3), 6)
    clouds = LabelledClouds(kinds[labels].astype(np.float32), labels)
    found = RunProbe(LabelledSet("made", clouds, clouds), torch.device("cpu"))(encoder())
    assert (found["probe_accuracy"], found["probe_class_accuracy"]) == (100.0, 100.0)
    assert found["probe_seconds"] > 0.0


def test_a_corpus_with_labels_is_a_set(tmp_path: Path) -> None:
    source = open_source("builtin", SourceRequest(shapes=40, categories=("chair", "mug")))
    build_corpus(source, tmp_path / "corpus", points=64, seed=0, workers=0)
    found = open_labelled_set(str(tmp_path / "corpus"), points=48)
    assert found.voters.points.shape == found.tested.points.shape == (20, 48, 3)
    assert np.bincount(found.voters.labels).tolist() == [10, 10]


def test_a_benchmarks_archive_is_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "h5_files.zip"
    make_scanobjectnn_stand_in(archive, sizes=ScanSizes(train=3, test=1, copies=1))
    monkeypatch.setattr(run_probe, "TESTED", 8)
    found = open_labelled_set(str(archive), points=48)
    assert found.name.endswith("stand-in")
    assert (len(found.voters), len(found.tested)) == (45, 8)


def test_what_is_no_labelled_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; a probe takes builtin, a corpus"):
        open_labelled_set(str(tmp_path / "none.zip"), points=48)
    (tmp_path / "other.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match="neither a corpus with labels nor the archive of"):
        open_labelled_set(str(tmp_path / "other.zip"), points=48)


def test_a_probe_changes_no_bit_of_a_run(memory_corpus: MemoryCorpus, tmp_path: Path) -> None:
    """Three steps an epoch, probed after every second epoch and at the end."""
    plain, probed = tmp_path / "plain", tmp_path / "probed"
    pretrain(micro_config(), corpus=memory_corpus, run=plain, options=options())
    pretrain(
        micro_config(),
        corpus=memory_corpus,
        run=probed,
        options=options(probe="builtin", probe_every=2),
    )
    assert_same_bits(plain, probed)
    rows = read_metrics(probed)
    assert [row["step"] for row in rows if "probe_accuracy" in row] == [6, 7]
    of_probe = ("probe_accuracy", "probe_class_accuracy")
    without = [{n: v for n, v in row.items() if n not in of_probe} for row in untimed(probed)]
    assert without == untimed(plain)


def test_a_probe_after_a_resume_says_the_same(memory_corpus: MemoryCorpus, tmp_path: Path) -> None:
    asked = {"probe": "builtin", "probe_every": 2}
    pretrain(micro_config(), corpus=memory_corpus, run=tmp_path / "a", options=options(**asked))
    for resume, stop in ((False, 4), (True, None)):
        pretrain(
            micro_config(),
            corpus=memory_corpus,
            run=tmp_path / "b",
            resume=resume,
            options=options(**asked, stop_at=stop),
        )
    assert untimed(tmp_path / "a") == untimed(tmp_path / "b")
