"""Fingerprints, registration of clouds, ids, the cached fingerprints, and the search for leaks as a whole."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from pointdistill.data.corpus import Corpus, open_corpus
from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.leaks import HeldOut, candidates, find, find_leaks
from pointdistill.data.leaks.candidates import (
    FILE_NAME,
    MOST,
    POINTS,
    SIZE,
    Fingerprints,
    Queries,
    averages,
    centred,
    corpus_fingerprints,
    fingerprint,
    nearest_candidates,
    saved_fingerprints,
    slopes,
    subsample,
    tangents,
    waves,
)
from pointdistill.data.leaks.find import leaks_by_id, match_clouds
from pointdistill.data.leaks.registration import (
    LIKELY,
    SAME_SURFACE,
    PhaseMatcher,
    Similarity,
    SurfaceSamples,
    pattern,
    surface_gap,
)
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.data.sources.base import source_shape_rng
from pointdistill.data.synthetic_shapes import make_shape, sample_shape

Cloud = NDArray[np.float32]
CATEGORIES = ("airplane", "bed", "chair", "lamp", "sofa", "table")
SHAPES = 60
SEED = 3


def moved(points: Cloud, *, rng: np.random.Generator, mirror: bool = False) -> Cloud:
    """Turned about z, scaled, shifted."""
    angle = rng.uniform(0.0, 2.0 * np.pi)
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.array(((cosine, -sine, 0.0), (sine, cosine, 0.0), (0.0, 0.0, 1.0)))
    if mirror:
        turn[:, 0] *= -1.0
    scale = 10.0 ** rng.uniform(-2.0, 2.0)
    return ((points @ turn.T + rng.normal(size=3)) * scale).astype(np.float32)


def resampled(number: int, count: int = 1024) -> Cloud:
    """Another sample of shape ``number`` of the corpus, moved."""
    name = f"{CATEGORIES[number % 6]}/{number // 6:06d}"
    shape = make_shape(
        name.split("/")[0], rng=source_shape_rng(seed=SEED, source="builtin", shape_id=name)
    )
    rng = np.random.default_rng((1, number))
    return moved(sample_shape(shape, count, rng=rng)[0], rng=rng)


def clean(number: int, count: int = 1024) -> Cloud:
    """A shape of the same categories that is not in the corpus."""
    rng = np.random.default_rng((2, number))
    return moved(
        sample_shape(make_shape(CATEGORIES[number % 6], rng=rng), count, rng=rng)[0], rng=rng
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("leaks") / "corpus"
    source = open_source("builtin", SourceRequest(shapes=SHAPES, categories=CATEGORIES))
    build_corpus(source, folder, points=4096, seed=SEED, workers=0)
    return open_corpus(folder)


def held_out(clouds: list[Cloud], **other: object) -> HeldOut:
    shapes = HeldOut(benchmark="ModelNet40", clouds=clouds, ids=None, checksum="a", stand_in=False)
    return replace(shapes, **other)  # type: ignore[arg-type]


def gap(test: Cloud, seen: Cloud) -> float:
    """Of two clouds, from the poses that their phases give."""
    poses = PhaseMatcher(test).poses(pattern(seen), min(len(seen), POINTS))
    return surface_gap(SurfaceSamples(test), SurfaceSamples(seen), [pose for _, pose in poses])


def naive_fingerprint(points: Cloud) -> list[float]:
    """The definition, one average at a time."""
    x, y, z = centred(points).T
    rho, theta = np.minimum(np.hypot(x, y), 3.0), np.arctan2(y, x)
    found = []
    for k in range(4):
        for level in range(6):
            wave = np.cos(k * np.pi * rho / 3) * np.cos(level * np.pi * (np.clip(z, -3, 3) + 3) / 6)
            found.append(wave.mean())
            for m in range(1, 7):
                power = abs((wave * np.exp(1j * m * theta)).mean()) ** 2
                power -= ((wave**2).mean() - power) / (len(points) - 1)
                found.append(np.sqrt(max(power, 0.0)))
    return found


def test_fingerprint_is_what_it_says() -> None:
    points = clean(2, 700)
    np.testing.assert_allclose(fingerprint(points), naive_fingerprint(points), atol=2e-4)


def test_fingerprint_forgets_turn_scale_and_place_alone() -> None:
    points = clean(2, 2000)
    mine = fingerprint(points)
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(fingerprint(moved(points, rng=rng)), mine, atol=2e-3)
    lying = fingerprint(points[:, [2, 0, 1]])
    assert np.linalg.norm(lying - mine) > 0.1


def test_tangents_explain_a_shifted_centre() -> None:
    """One point far away moves the mean; what that changes lies in the tangents nearly all."""
    points = centred(clean(1, 2000)).astype(np.float32)
    pulled = np.vstack((points, np.full((20, 3), 2.5, np.float32)))
    change = fingerprint(points + 0.0) - fingerprint(pulled)
    slopes = tangents(points)
    np.testing.assert_allclose(slopes.T @ slopes, np.eye(4), atol=1e-5)
    left = change - slopes @ (slopes.T @ change)
    assert np.linalg.norm(left) < 0.7 * np.linalg.norm(change)


def test_coinciding_points_have_a_fingerprint() -> None:
    points = np.ones((40, 3), np.float32)
    assert np.isfinite(fingerprint(points)).all()
    assert PhaseMatcher(points).poses(pattern(points), 40)[0][0] == pytest.approx(0.0, abs=1e-3)


def test_a_subsample_is_evenly_spaced() -> None:
    rows = np.arange(30.0).reshape(10, 3)
    assert subsample(rows, 4)[:, 0].tolist() == [0.0, 6.0, 15.0, 21.0]
    assert subsample(rows, 10) is rows


def slow_distance(test: Cloud, seen: Cloud) -> float:
    """The definition: the best of many turns, with shift and scale free, in units of the covariance."""
    profiles, turns = waves(centred(test))
    each = (profiles[:, None] * turns[None]).reshape(312, -1).astype(np.float64)
    scale = np.linalg.inv(np.linalg.cholesky(np.cov(each, bias=True) + 0.01 * np.eye(312)))
    free = slopes(centred(test), lambda placed: averages(*waves(placed))).reshape(4, 312)
    free = scale @ free.T

    def squared(angle: float) -> float:
        turned = Similarity.turn(angle).apply(centred(seen))
        left = scale @ (averages(*waves(turned)).ravel() - each.mean(axis=1))
        left -= free @ np.linalg.lstsq(free, left, rcond=None)[0]
        return float(left @ left)

    coarse = min(np.arange(0.0, 2.0 * np.pi, 0.05), key=squared)
    lowest = min(squared(coarse + step) for step in np.arange(-0.05, 0.05, 0.005))
    return lowest / (1.0 / len(test) + 1.0 / len(seen))


def test_phases_measure_what_they_say(corpus: Corpus) -> None:
    test, points = resampled(2), corpus.points(corpus.ids().index("chair/000000"))
    for seen in (points, clean(2, 1024)):
        few = subsample(seen, 1024)
        (apart, _), *others = PhaseMatcher(test).poses(pattern(few), 1024)
        assert apart == pytest.approx(slow_distance(test, few), rel=0.02)
        assert all(apart <= other for other, _ in others)
        assert (apart < LIKELY) == (seen is points)


def test_poses_undo_the_error_of_a_centre() -> None:
    """Samples of lamps: how far the mean of the heights is off, the phases say."""
    before, after = [], []
    for number in range(12):
        rng = np.random.default_rng((4, number))
        shape = make_shape("lamp", rng=rng)
        seen, test = (sample_shape(shape, count, rng=rng)[0] for count in (4096, 512))
        ((_, pose), *_) = PhaseMatcher(test).poses(pattern(seen), 4096)
        radius = np.sqrt(np.square(seen - seen.mean(axis=0)).sum(axis=1).mean())
        truth = (test - seen.mean(axis=0))[:, 2] / radius
        before.append(np.square(centred(test)[:, 2] - truth).mean())
        after.append(np.square(pose.apply(centred(test))[:, 2] - truth).mean())
    assert np.mean(after) < 0.25 * np.mean(before)


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_gap_of_two_samples_is_one_and_of_two_shapes_is_not(corpus: Corpus, number: int) -> None:
    names = corpus.ids()
    index = names.index(f"{CATEGORIES[number]}/000000")
    same = gap(resampled(number), corpus.points(index))
    assert 0.9 < same < SAME_SURFACE
    other = names.index(f"{CATEGORIES[number]}/000001")
    assert gap(resampled(number), corpus.points(other)) > 1.3


def test_the_same_points_have_no_gap(corpus: Corpus) -> None:
    points = corpus.points(7)
    turned = moved(points, rng=np.random.default_rng(5))
    assert gap(turned, points) < 0.6


def test_a_mirrored_shape_is_another() -> None:
    """Of a shape without a plane of symmetry: two planks across each other, one of them tilted."""
    rng = np.random.default_rng(0)
    u, v = rng.random((2, 5000, 1))
    planks = np.where(
        rng.random((5000, 1)) < 0.5,
        u * np.array((1.0, 0.0, 0.0)) + v * np.array((0.0, 0.3, 0.0)),
        u * np.array((0.1, 0.9, 0.3)) + v * np.array((0.2, 0.0, 0.1)) + np.array((0.6, 0.0, 0.2)),
    ).astype(np.float32)
    seen, other = planks[:4000], planks[4000:]
    assert gap(moved(other, rng=rng), seen) < SAME_SURFACE
    assert gap(moved(other, rng=rng, mirror=True), seen) > 1.5


def test_nearest_prints_agree_with_all_distances() -> None:
    """Over more corpus rows than one chunk, and more than are kept."""
    rng = np.random.default_rng(0)
    clouds = [clean(k, 512) for k in range(3)]
    queries = Queries.of(clouds)
    near = np.repeat(queries.fingerprints, 3000, axis=0) + rng.normal(scale=0.03, size=(9000, SIZE))
    prints = Fingerprints(near.astype(np.float16), rng.integers(500, 4096, 9000).astype(np.uint16))
    candidate_lists = nearest_candidates(prints, queries)
    for k in range(3):
        apart = prints.values.astype(np.float64) - queries.fingerprints[k]
        apart -= (apart @ queries.tangents[k]) @ queries.tangents[k].T
        distance = (apart**2).sum(axis=1) / (1 / 512 + 1 / prints.points.astype(np.float64))
        best = np.argsort(distance)[:MOST]
        assert distance[best[-1]] < 130.0
        assert set(candidate_lists[k].tolist()) == set(best.tolist())
        assert candidate_lists[k][0] == best[0]
    few = prints.values[::1000].astype(np.float32)
    noise = 1 / queries.points[:, None] + 1 / prints.points[::1000].astype(np.float64)
    plain = (
        np.square(queries.fingerprints[:, None] - few).sum(axis=2)
        - candidates._COARSE_CUTOFF * noise
    )
    beyond = candidates._beyond(few, prints.points[::1000], queries)
    np.testing.assert_allclose(beyond, plain, atol=1e-4)
    far = Fingerprints(np.full((5, SIZE), 0.9, np.float16), np.full(5, 4096, np.uint16))
    assert [len(few) for few in nearest_candidates(far, queries)] == [0, 0, 0]


def test_planted_shapes_are_found_and_clean_ones_are_not(corpus: Corpus) -> None:
    """The benchmark in small: all that was planted, under its own name, and nothing else."""
    numbers = list(range(0, SHAPES, 9))
    clouds = [resampled(number, 1024 + 1024 * (number % 2)) for number in numbers]
    others = [clean(number, 1024) for number in range(6)]
    matches = match_clouds([*clouds, *others], corpus, workers=1)
    names = corpus.ids()
    expected = [f"{CATEGORIES[number % 6]}/{number // 6:06d}" for number in numbers]
    assert [names[m.corpus_index] if m else None for m in matches] == [*expected, *[None] * 6]


def test_clouds_are_compared_on_one_thread(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says; the caller's own number is there again afterwards."""

    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    seen: list[set[int]] = []
    monkeypatch.setattr(find, "_first_match", lambda *_, **__: seen.append(threads()))
    with threadpool_limits(2, user_api="blas"):
        match_clouds([resampled(4)], corpus, workers=1)
        assert (seen, threads()) == ([{1}], {2})


def test_the_report_does_not_depend_on_the_workers(corpus: Corpus) -> None:
    shapes = held_out([clean(0), resampled(4), resampled(9)])
    alone = find_leaks(shapes, corpus, workers=1)
    assert [(leak.test, leak.how, leak.source) for leak in alone.leaks] == [
        (1, "geometry", "builtin"),
        (2, "geometry", "builtin"),
    ]
    assert alone.leaks[0].corpus_id == f"{CATEGORIES[4]}/000000"
    assert find_leaks(shapes, corpus, workers=2) == alone


def test_fingerprints_are_kept_and_go_on_after_a_stop(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    (corpus.path / FILE_NAME).unlink(missing_ok=True)
    monkeypatch.setattr(candidates, "_BLOCK", 8)

    def stop(done: int, total: int) -> None:
        assert total == SHAPES
        if done >= 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corpus_fingerprints(corpus, workers=1, progress=stop)
    assert len(saved_fingerprints(corpus)) == 24
    steps: list[int] = []
    whole = corpus_fingerprints(corpus, workers=1, progress=lambda done, _: steps.append(done))
    assert steps[0] == 32
    assert steps[-1] == SHAPES
    again = corpus_fingerprints(
        corpus, workers=1, progress=lambda *_: pytest.fail("computed again")
    )
    np.testing.assert_array_equal(again.values, whole.values)
    expected = fingerprint(corpus.points(33)).astype(np.float16)
    np.testing.assert_array_equal(whole.values[33], expected)


@pytest.mark.parametrize("damage", ["other corpus", "other version", "cut short"])
def test_fingerprints_of_something_else_are_not_used(corpus: Corpus, damage: str) -> None:
    corpus_fingerprints(corpus, workers=1)
    path = corpus.path / FILE_NAME
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        with h5py.File(path, "r+") as file:
            file.attrs["corpus" if damage == "other corpus" else "version"] = "another"
    assert len(saved_fingerprints(corpus)) == 0
    assert len(corpus_fingerprints(corpus, workers=1)) == SHAPES
    assert len(saved_fingerprints(corpus)) == SHAPES


def named(corpus: Corpus, **facts: object) -> Corpus:
    """The same corpus, its one source under another name."""
    source = replace(corpus.sources[0], **facts)  # type: ignore[arg-type]
    shards = tuple(replace(s, source=source.name) for s in corpus.manifest.shards)
    return Corpus(corpus.path, replace(corpus.manifest, sources=(source,), shards=shards))


@pytest.mark.parametrize(
    ("source", "benchmark", "ids", "found"),
    [
        ("modelnet40", "ModelNet40", ("chair/000001", "chair/999999"), {0: "chair/000001"}),
        ("shapenet", "ModelNet40", ("chair/000001",), {}),
        ("shapenet", "ShapeNetPart", ("03001627/000001",), {0: "airplane/000001"}),
        ("objaverse-cap3d", "Objaverse-LVIS", ("000002",), {0: "airplane/000002"}),
        ("modelnet40", "ModelNet40 few-shot", ("chair/000001",), {}),
    ],
)
def test_ids_meet_in_the_same_data_alone(
    corpus: Corpus, source: str, benchmark: str, ids: tuple[str, ...], found: dict[int, str]
) -> None:
    shapes = held_out([clean(0, 64)] * len(ids), benchmark=benchmark, ids=ids)
    leaks = leaks_by_id(shapes, named(corpus, name=source))
    assert {number: leak.corpus_id for number, leak in leaks.items()} == found


def test_ids_of_a_stand_in_mean_nothing_in_another_archive(corpus: Corpus) -> None:
    shapes = held_out([clean(0, 64)], ids=("chair/000001",), stand_in=True)
    facts = {"name": "modelnet40-stand-in", "stand_in": True}
    assert not leaks_by_id(shapes, named(corpus, archive_sha256="b", **facts))
    assert leaks_by_id(shapes, named(corpus, archive_sha256="a", **facts))
    assert not leaks_by_id(shapes, named(corpus, name="modelnet40"))


def test_a_shape_found_by_id_is_not_compared(corpus: Corpus) -> None:
    """And one whose id is absent still is, in the same source."""
    known = named(corpus, name="modelnet40")
    shapes = held_out([clean(0), resampled(2)], ids=("chair/000003", "chair/test/1"))
    report = find_leaks(shapes, known, workers=1)
    assert [(leak.test, leak.how) for leak in report.leaks] == [(0, "id"), (1, "geometry")]
    assert report.ids_met == ("modelnet40",)
    assert report.count("id") == report.count("geometry") == 1
    assert not find_leaks(held_out([resampled(2)]), known, geometry=False).leaks
