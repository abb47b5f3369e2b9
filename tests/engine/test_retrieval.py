"""Figures of retrieval by hand and against a slow reference, cross-validation, and whole evaluations of files."""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.model_selection import StratifiedKFold

from pointdistill.cli import main
from pointdistill.data.benchmark_standins import HalfSizes, make_psb_stand_in
from pointdistill.data.benchmarks.psb import read_psb
from pointdistill.data.files.workspace import remember_stand_in
from pointdistill.engine.embedding.embed import EmbedRequest, embed
from pointdistill.engine.embedding.file import Chunk, WorkFolder
from pointdistill.engine.embedding.memory import measure_encoder
from pointdistill.engine.evaluation import retrieval
from pointdistill.engine.evaluation.evaluate import EvaluationRequest, Outcome, evaluate_saved
from pointdistill.engine.evaluation.leak_check import held_out_of
from pointdistill.engine.evaluation.retrieval import (
    retrieval_figures,
    shape_score,
)
from pointdistill.engine.features import Samples, nearest_neighbour_probe
from pointdistill.engine.features.statistics import FeatureStatistics, space_among, standardiser
from pointdistill.errors import ConfigError, DataError
from pointdistill.reporter import Reporter
from tests.engine.labelled import saved_encoder


def directions(*degrees: float) -> torch.Tensor:
    """Rows whose cosine similarity falls with the angle between them."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def figures(features: torch.Tensor, labels: Sequence[int]) -> tuple[float, ...]:
    found = retrieval_figures(features, np.array(labels))
    return (found.nearest, found.first_tier, found.second_tier, found.e_measure, found.gain)


def test_figures_by_hand() -> None:
    """Two classes of three, a at 0, 10 and 40 degrees, b at 12, 50 and 90. The classes of each ranking:

    from a 0: a b a b b; from a 10: b a a b b; from a 40: b b a a b; from b 12: a a a b b; from b 50: a b a b a,
    where a 10 and b 90 are equally far and a 10 has the lower number; from b 90: b a b a a.
    """
    rank_3, rank_5 = 1 / math.log2(3), 1 / math.log2(5)
    gains = [1 + rank_3, 1 + rank_3, rank_3 + 0.5, 0.5 + rank_5, 1 + 0.5, 1 + rank_3]
    best = 1 + 1  # ranks 1 and 2: 1 / log2(2) is 1
    expected = (
        100 * 2 / 6,
        100 * (1 / 2 + 1 / 2 + 0 + 0 + 1 / 2 + 1 / 2) / 6,
        100 * (1 + 1 + 1 + 1 / 2 + 1 + 1) / 6,
        100 * 2 / (1 / (2 / 5) + 1 / (2 / 2)),
        100 * sum(gains) / best / 6,
    )
    assert figures(directions(0, 10, 40, 12, 50, 90), [0, 0, 0, 1, 1, 1]) == pytest.approx(expected)


def slow_figures(features: torch.Tensor, labels: Sequence[int]) -> tuple[float, ...]:
    """The definitions, one query and one rank at a time."""
    rows = [[float(x) for x in row] for row in features]
    norms = [math.sqrt(sum(x * x for x in row)) for row in rows]
    sums, queries = [0.0] * 5, 0
    for query, label in enumerate(labels):
        same = sum(other == label for other in labels) - 1
        if same < 2:
            continue
        queries += 1

        def similarity(k: int, query: int = query) -> float:
            product = sum(x * y for x, y in zip(rows[query], rows[k], strict=True))
            return round(product / (norms[query] * norms[k]), 9)

        others = [k for k in range(len(rows)) if k != query]
        others.sort(key=lambda k: (-similarity(k), k))
        hits = [labels[k] == label for k in others]
        shown = hits[:32]
        precision, recall = sum(shown) / len(shown), sum(shown) / same
        gain = sum(1 / max(1.0, math.log2(rank)) for rank, hit in enumerate(hits, 1) if hit)
        best = sum(1 / max(1.0, math.log2(rank)) for rank in range(1, same + 1))
        e_measure = 2 / (1 / precision + 1 / recall) if any(shown) else 0.0
        tiers = sum(hits[:same]) / same, sum(hits[: 2 * same]) / same
        for place, value in enumerate((hits[0], *tiers, e_measure, gain / best)):
            sums[place] += value
    return tuple(100 * value / queries for value in sums)


def test_figures_against_a_slow_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes of 1 to 24 shapes, some copies of others, so that similarities are equal; in small blocks."""
    monkeypatch.setattr(retrieval, "_BLOCK_VALUES", 500)
    generator = torch.Generator().manual_seed(0)
    labels = [0] * 24 + [1] * 13 + [2] * 3 + [3] * 2 + [4]
    labels = [labels[k] for k in torch.randperm(len(labels), generator=generator)]
    features = torch.randn(len(labels), 5, generator=generator, dtype=torch.float64)
    features += torch.tensor(labels)[:, None] * 0.3
    features[10:20] = features[20:30]
    assert figures(features, labels) == pytest.approx(slow_figures(features, labels))


def test_small_classes_are_ranked_but_are_no_queries() -> None:
    """A class of two and one of one: far away, and then between the members of the class of three."""
    found = retrieval_figures(directions(0, 2, 90, 1, 92), np.array([0, 0, 1, 0, 1]))
    assert (found.nearest, found.first_tier, found.queries) == (100.0, 100.0, 3)
    found = retrieval_figures(directions(0, 10, 90, 5, 1), np.array([0, 0, 1, 0, 2]))
    assert found.nearest == pytest.approx(100 / 3)  # of 10 degrees alone
    with pytest.raises(DataError, match="a class of at least 3 shapes, and the largest has 2"):
        retrieval_figures(directions(0, 1, 2), np.array([0, 0, 1]))


def test_equally_similar_shapes_are_ranked_by_number() -> None:
    """All shapes are the same: each query finds the lowest numbers first."""
    nearest, first, second, _, _ = figures(torch.ones(6, 3), [0, 0, 0, 1, 1, 1])
    assert nearest == pytest.approx(100 * 3 / 6)
    assert first == pytest.approx(100 * 3 / 6)
    assert second == pytest.approx(100 * (3 * 1 + 3 * 1 / 2) / 6)


def test_a_class_that_is_everything_has_no_rank_left() -> None:
    assert figures(directions(0, 20, 50), [0, 0, 0]) == pytest.approx((100.0,) * 5)


def test_standardised_features() -> None:
    """Mean 0 and deviation 1 each; a constant one, whatever its value, is 0 and not noise."""
    features = np.array([[1.0, 0.1, -5e6], [3.0, 0.1, 5e6], [5.0, 0.1, 0.0]], np.float32)
    standardised = standardiser(features)
    scaled = standardised(features)
    np.testing.assert_allclose(scaled.mean(axis=0), 0.0, atol=1e-9)
    np.testing.assert_allclose(scaled.std(axis=0), [1.0, 0.0, 1.0])
    assert standardised(features[:1])[0, 1] == 0.0


@pytest.mark.parametrize("protocol", ["retrieval", "knn"])
def test_statistics_of_the_encoder_decide_how_shapes_are_compared(protocol: str) -> None:
    """Features of which two tell classes apart, and many, that vary as much, do not: the axes know which."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2).repeat_interleave(30)
    features = torch.randn(60, 200, generator=generator)
    features[:, :2] += 3.0 * labels[:, None]
    variances = np.where(np.arange(200) < 2, 1.0, 1e4).astype(np.float32)
    statistics = FeatureStatistics(
        mean=np.zeros(200, np.float32),
        axes=np.eye(200, dtype=np.float32),
        variances=variances,
        mean_variance=1e-3,
        shapes=900,
    )
    alone = shape_score(features, labels.numpy(), protocol, seed=0)
    with_axes = shape_score(features, labels.numpy(), protocol, seed=0, statistics=statistics)
    assert with_axes.accuracy > alone.accuracy + 10.0


def test_cross_validation_tests_each_large_class() -> None:
    """Two classes of ten that a plane divides, and one of nine at the same place as the first."""
    generator = torch.Generator().manual_seed(1)
    labels = np.array([0] * 10 + [1] * 9 + [2] * 10)
    features = torch.randn(29, 4, generator=generator)
    features[labels == 2] += 30.0
    for protocol in ("knn", "svm", "logistic"):
        score = shape_score(features, labels, protocol, seed=0)
        assert (score.accuracy, score.class_accuracy) == (100.0, 100.0)
        assert score.confusion == ((10, 0), (0, 10))
    with pytest.raises(DataError, match="2 classes of at least 10 shapes, got 1"):
        shape_score(features[:19], labels[:19], "knn", seed=0)
    with pytest.raises(DataError, match="features of 1 of 29 clouds are not finite"):
        shape_score(features.index_fill(0, torch.tensor([3]), math.nan), labels, "svm", seed=0)


def test_no_fold_knows_the_mean_and_axes_of_its_test_shapes() -> None:
    """Against a loop over the folds, where the space of all shapes would give other figures."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    features = torch.randn(60, 6, generator=generator)
    features[:, 0] += 1.5 * labels

    def mean_accuracy(*, leaking: bool) -> float:
        accuracies = []
        for train, test in StratifiedKFold(5, shuffle=True, random_state=4).split(labels, labels):
            like = features if leaking else features[train]
            space = space_among(like.numpy(), None)
            known, asked = (
                Samples(torch.from_numpy(space.transform(features[part].numpy())), labels[part])
                for part in (train, test)
            )
            accuracies.append(nearest_neighbour_probe(known, asked).accuracy)
        return float(np.mean(accuracies))

    score = shape_score(features, labels.numpy(), "knn", seed=4)
    assert score.accuracy == pytest.approx(mean_accuracy(leaking=False))
    assert score.accuracy != pytest.approx(mean_accuracy(leaking=True))


class Lines(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str, *_: str) -> None:
        self.said.append(line)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("psb") / "psb_v1.zip"
    sizes = HalfSizes(classes=("chair", "bottle"), train=10, test=3)
    make_psb_stand_in(path, sizes=sizes, workers=1)
    return path


@pytest.fixture
def workplace(tmp_path: Path, archive: Path) -> Path:
    saved_encoder(tmp_path / "encoder")
    remember_stand_in("psb", archive, folder=tmp_path)
    return tmp_path


def measure(folder: Path, reporter: Reporter | None = None, **changes: object) -> Outcome:
    settings: dict[str, object] = {
        "benchmark": "psb",
        "encoder": folder / "encoder",
        "seeds": 1,
        "device": "cpu",
        "folder": folder,
    }
    request = EvaluationRequest(**(settings | changes))  # type: ignore[arg-type]
    return evaluate_saved(request, reporter or Lines())


def test_an_encoder_is_measured_with_the_statistics_that_came_with_it(
    workplace: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    settings = {"stand_in": True, "protocols": ("retrieval",), "output": workplace / "out"}
    alone = measure(workplace, **settings).results
    assert alone[0].compared == "the set's own axes or deviations"
    measure_encoder(workplace / "encoder", archive, up="y")
    with_axes = [r for r in measure(workplace, **settings).results if r != alone[0]]
    assert with_axes[0].compared.startswith("axes of 26 shapes that came with the encoder (")
    assert with_axes[0].accuracy != alone[0].accuracy
    # Measured again with as many others, the statistics are others, and so are the figures.
    measure_encoder(workplace / "encoder", archive, up="x")
    again = [r for r in measure(workplace, **settings).results if r not in (alone[0], *with_axes)]
    assert [r.protocol for r in again] == ["retrieval"]
    noted = (workplace / "out" / "results.md").read_text()
    assert f"retrieval: compared by {again[0].compared}." in noted


def test_features_are_those_that_embed_writes(
    workplace: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in chunks of the same size, which is what a kill or Ctrl-C costs."""
    monkeypatch.chdir(workplace)
    chunks: list[int] = []
    save = WorkFolder.save

    def noted(work: WorkFolder, number: int, chunk: Chunk) -> None:
        chunks.append(chunk.size)
        save(work, number, chunk)

    monkeypatch.setattr(WorkFolder, "save", noted)
    measure(workplace, stand_in=True, protocols=("retrieval",), output=workplace / "out")
    assert chunks == [16, 4]
    (stored,) = (workplace / "out" / "features").glob("*.npz")
    output = workplace / "all.npz"
    embed(EmbedRequest(paths=[archive], output=output, encoder=workplace / "encoder", up="y"))
    with np.load(output) as embedded, np.load(stored) as own:
        row = {str(name): k for k, name in enumerate(embedded["ids"])}
        rows = [row[name] for name in read_psb(archive, "train").members]
        np.testing.assert_allclose(own["features"], embedded["features"][rows], atol=1e-6)


def test_a_half_is_measured_and_stored_once(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = Lines()
    settings = {"stand_in": True, "output": workplace / "out", "seeds": 2}
    outcome = measure(workplace, reporter, protocols=("knn", "retrieval"), **settings)
    by_protocol = {result.protocol: result for result in outcome.results}
    assert set(by_protocol) == {"knn", "retrieval"}
    ranked = by_protocol["retrieval"]
    assert (ranked.split, ranked.test_clouds, ranked.seeds) == ("train", 20, (0, 1))
    assert [figure.name for figure in ranked.further] == ["second tier", "E", "DCG"]
    assert ranked.accuracy.mean >= 50.0
    assert "moments of 168 draws of 48 points at 8 angles from each shape" in ranked.form
    assert any("20 shapes of 2 classes" in line for line in reporter.said)
    text = (workplace / "out" / "results.md").read_text()
    assert "| LFD (light fields), published | test | retrieval | 65.7 | 38.0 | 48.7 |" in text
    assert "**Accuracy on Princeton Shape Benchmark stand-in, train**" in text
    assert "E is that of the first 32" in text
    assert len(list((workplace / "out" / "pictures").glob("*.png"))) == 1
    monkeypatch.setattr(retrieval, "embed_labelled", pytest.fail)
    again = measure(workplace, protocols=("knn", "retrieval"), **settings)
    assert [r.each for r in again.results] == [r.each for r in outcome.results]


def test_scores_of_another_kind_of_features_are_a_row_of_their_own(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an earlier version left them, in the same folder."""
    settings = {"stand_in": True, "output": workplace / "out", "protocols": ("retrieval",)}
    with monkeypatch.context() as earlier:
        earlier.setattr(retrieval, "DEFAULT_KIND", "pooled")
        measure(workplace, **settings, seeds=1)
    (result,) = measure(workplace, **settings, seeds=2).results
    assert result.seeds == (0, 1)
    rows = json.loads((workplace / "out" / "results.json").read_text())["results"]
    found = [(len(row["seeds"]), "moments of" in row["form"]) for row in rows]
    assert sorted(found) == [(1, False), (2, True)], rows


def test_the_test_half_by_its_name(workplace: Path) -> None:
    reporter = Lines()
    outcome = measure(workplace, reporter, stand_in=True, splits=("test",), protocols=())
    (result,) = outcome.results
    assert (result.split, result.protocol, result.test_clouds) == ("test", "retrieval", 6)
    assert "not measured: knn, svm, logistic; cross-validation needs 2 classes" in " ".join(
        reporter.said
    )


@pytest.fixture
def own_folder(workplace: Path, archive: Path) -> Path:
    """Two classes of ten, a file that is no mesh, and one outside the classes."""
    shapes = read_psb(archive, "train")
    folder = workplace / "mine"
    with zipfile.ZipFile(archive) as meshes:
        for member, label in zip(shapes.members, shapes.labels, strict=True):
            place = folder / shapes.classes[label] / Path(member).name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(meshes.read(member))
    (folder / "chair" / "broken.off").write_text("OFF\n1 1\n")
    shutil.copy(folder / "chair" / "m0.off", folder / "loose.off")
    return folder


def test_a_user_s_own_folder(workplace: Path, own_folder: Path) -> None:
    reporter = Lines()
    protocols = ("svm", "retrieval")
    outcome = measure(
        workplace, reporter, benchmark="folder", data=own_folder, up="y", protocols=protocols
    )
    figures = {result.protocol: result for result in outcome.results}
    assert set(figures) == {"svm", "retrieval"}
    assert figures["retrieval"].data_name == "your own folder mine"
    assert figures["svm"].notes == ("1 of 21 shapes could not be read",)
    said = "\n".join(reporter.said)
    assert "no class and are left out: 1" in said
    assert "1 of 21 shapes cannot be read and are left out:\nleft out: chair/broken.off: " in said
    rows = json.loads((workplace / "evaluation/folder/results.json").read_text())["results"]
    assert {row["benchmark"] for row in rows} == {"folder"}
    # The same files as in the archive, so the same vectors and figures.
    of_archive = measure(workplace, stand_in=True, protocols=("retrieval",))
    assert figures["retrieval"].accuracy == of_archive.results[0].accuracy


def test_the_command_that_comes_next_can_be_typed(
    workplace: Path,
    own_folder: Path,
    archive: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It keeps the axis of one's own files, and names no benchmark whose archive is not here."""
    monkeypatch.chdir(workplace)
    for words, following in (
        (
            ("folder", "--data", own_folder.name, "--up", "-y"),
            "finetune --data mine --up -y --encoder encoder",
        ),
        (("psb", "--data", str(archive)), "embed YOUR_FILES --encoder encoder"),
    ):
        protocol = ("--protocol", "retrieval", "--seeds", "1", "--device", "cpu")
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", *words, *protocol, "--encoder", "encoder"])
        assert stop.value.code == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"next: pointdistill {following}"
    with pytest.raises(SystemExit) as stop:
        main(["finetune", "--data", "mine", "--up", "-y", "--encoder", "none"])
    assert "none: no encoder here" in capsys.readouterr().err


def test_a_folder_that_cannot_be_measured(workplace: Path, own_folder: Path) -> None:
    with pytest.raises(ConfigError, match="your own shapes are a folder of data") as caught:
        measure(workplace, benchmark="folder")
    assert caught.value.settings == ("data", "split", "stand_in")
    with pytest.raises(
        ConfigError, match="nothing requested of folder is tested after every epoch"
    ):
        measure(workplace, benchmark="folder", data=own_folder, hold_out=0.1)
    with pytest.raises(ConfigError, match="psb has its own axes"):
        measure(workplace, stand_in=True, up="y")
    shutil.rmtree(own_folder / "bottle")
    with pytest.raises(DataError, match=r"needs at least 2 sub-folders with shapes.*got 1"):
        measure(workplace, benchmark="folder", data=own_folder)
    (own_folder / "few").mkdir()
    shutil.copy(own_folder / "loose.off", own_folder / "few")
    with pytest.raises(DataError, match="needs 2 classes of at least 10 shapes, got 1; add"):
        measure(workplace, benchmark="folder", data=own_folder, protocols=("knn", "svm"))
    for file in own_folder.rglob("*.off"):
        file.write_text("OFF")
    with pytest.raises(DataError, match=r"mine: none of its 12 shapes can be read; chair/broken"):
        measure(workplace, benchmark="folder", data=own_folder, protocols=("retrieval",))


def test_the_shapes_of_a_half_can_be_searched_for_in_a_corpus(archive: Path) -> None:
    held_out = held_out_of(read_psb(archive, "train"))
    assert len(held_out) == 20
    assert held_out.clouds[3].shape == (4096, 3)
    assert held_out.some(4).ids == tuple(read_psb(archive, "train").members[::5])
