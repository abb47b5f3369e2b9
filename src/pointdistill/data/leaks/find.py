"""Finds test shapes in a corpus: by id where ids name the same data, otherwise by comparing the shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pointdistill.data.corpus import Corpus
from pointdistill.data.corpus.manifest import SourceRecord
from pointdistill.data.files.processes import ordered_map
from pointdistill.data.leaks.candidates import (
    POINTS,
    Queries,
    corpus_fingerprints,
    nearest_candidates,
)
from pointdistill.data.leaks.registration import (
    LIKELY,
    SAME_SURFACE,
    PhaseMatcher,
    Similarity,
    SurfaceSamples,
    pattern,
    surface_match,
)

How = Literal["id", "geometry"]


_STAND_IN = "-stand-in"
_BLOCK = 8  # test shapes a task
_COMPARED_SURFACES = 16  # likely candidates whose surfaces are compared with a test shape's

SAME_SIZE = 0.04
"""Two shapes are of one size if the logarithm of their scale is at most this: 4 %."""

# Samples of 4,096 points tell the scale to about 1 %, but that of a rod fifty times as long as thick with a
# standard deviation of 0.9 %.

_NEAR_SIZE = 0.1
"""The same for clouds that are not registered yet, whose sizes differ by chance as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The test shapes of one benchmark. Sizes: n shapes, N points, which may differ from shape to shape."""

    benchmark: str
    """The published name, such as ``ModelNet40``."""

    clouds: Sequence[NDArray[np.float32]]
    """n arrays (N, 3), z up, in any unit and place."""

    ids: tuple[str, ...] | None
    """n ids, spelled as in a corpus of the same data; None where the data has none."""

    checksum: str
    """Of the archive or the corpus that holds the shapes."""

    stand_in: bool
    """Whether the data is a generated stand-in; its ids then mean something within that archive alone."""

    def __len__(self) -> int:
        """Number of shapes."""
        return len(self.clouds)

    def some(self, count: int) -> HeldOut:
        """At most ``count`` of them, evenly spread; all of them if there are no more."""
        if len(self) <= count:
            return self
        chosen = [k * len(self) // count for k in range(count)]
        ids = tuple(self.ids[k] for k in chosen) if self.ids else None
        return replace(self, clouds=[self.clouds[k] for k in chosen], ids=ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """One test shape that is in the corpus."""

    test: int
    """Its number in the test split, from 0."""

    test_id: str | None
    corpus_index: int
    """Number of the shape in the corpus."""

    corpus_id: str
    source: str
    """The source of the corpus that holds it."""

    how: How
    gap: float | None
    """How far apart the two surfaces are, see `surface_gap`; None for a leak found by id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakReport:
    """Every test shape of one benchmark that is in a corpus."""

    benchmark: str
    test_shapes: int
    corpus_shapes: int
    corpus: str
    """Its content checksum."""

    leaks: tuple[Leak, ...]
    """In the order of the test split; at most one for each test shape."""

    ids_met: tuple[str, ...]
    """Sources whose ids could be compared with the benchmark's."""

    geometry: bool
    """Whether the shapes themselves were compared too."""

    def count(self, how: How) -> int:
        """Leaks found by ``how``."""
        return sum(leak.how == how for leak in self.leaks)


def _whole_id(name: str) -> str:
    return name


def _last_part(name: str) -> str:
    return name.rsplit("/", 1)[-1]


_SHARED_IDS: dict[str, tuple[str, Callable[[str], str]]] = {
    "ModelNet40": ("modelnet40", _whole_id),
    "ScanObjectNN": ("scanobjectnn", _whole_id),
    "ShapeNetPart": ("shapenet", _last_part),
    "Objaverse-LVIS": ("objaverse", _last_part),
}
"""For each benchmark: the prefix of the sources that share its ids, and the part of an id that names a shape."""


def sources_sharing_ids(held_out: HeldOut, corpus: Corpus) -> tuple[str, ...]:
    """Sources of a corpus whose ids mean the same shapes as the benchmark's."""
    if held_out.ids is None or held_out.benchmark not in _SHARED_IDS:
        return ()
    start, _ = _SHARED_IDS[held_out.benchmark]
    return tuple(s.name for s in corpus.sources if _shares_ids(s, start, held_out, corpus))


def leaks_by_id(held_out: HeldOut, corpus: Corpus) -> dict[int, Leak]:
    """Test shapes whose id is in the corpus, in a source of the same data, by their number in the split."""
    sources = sources_sharing_ids(held_out, corpus)
    if not sources or held_out.ids is None:
        return {}
    key = _SHARED_IDS[held_out.benchmark][1]
    test_numbers = {key(name): number for number, name in enumerate(held_out.ids)}
    leaks: dict[int, Leak] = {}
    names = enumerate(corpus.ids())
    for shard in corpus.manifest.shards:
        for _ in range(shard.shapes):
            index, name = next(names)
            test = test_numbers.get(key(name)) if shard.source in sources else None
            if test is not None and test not in leaks:
                leaks[test] = Leak(
                    test=test,
                    test_id=held_out.ids[test],
                    corpus_index=index,
                    corpus_id=name,
                    source=shard.source,
                    how="id",
                    gap=None,
                )
    return leaks


def _shares_ids(source: SourceRecord, start: str, held_out: HeldOut, corpus: Corpus) -> bool:
    """Whether ids mean the same: those of real data always do, a stand-in's only within the very same archive."""
    if not source.name.startswith(start) or source.stand_in != held_out.stand_in:
        return False
    same = held_out.checksum in (source.archive_sha256, corpus.content)
    return same if source.stand_in else not source.name.endswith(_STAND_IN)


@dataclass(frozen=True, slots=True)
class Match:
    """The shape of a corpus of which a cloud is a sample."""

    corpus_index: int
    gap: float
    scale: float
    """How many times as large as that shape the cloud is."""


@dataclass(frozen=True, slots=True)
class _Task:
    """Some test clouds, each with the corpus shapes of which it may be a sample."""

    corpus: Corpus
    clouds: tuple[NDArray[np.float32], ...]
    candidates: tuple[NDArray[np.int64], ...]


def find_leaks(
    held_out: HeldOut,
    corpus: Corpus,
    *,
    geometry: bool = True,
    workers: int | None = None,
    fingerprinting: Callable[[int, int], None] | None = None,
    comparing: Callable[[int, int], None] | None = None,
) -> LeakReport:
    """The test shapes of a benchmark that are in a corpus.

    A shape that is found by its id is not compared by geometry; every other shape is, with the whole corpus. A
    test shape that the corpus holds several times is reported with the first match.

    Args:
        held_out: the test shapes.
        corpus: where to look.
        geometry: False compares ids alone, in seconds.
        workers: number of processes; 1 means this one, None every usable core.
        fingerprinting: called with corpus shapes (done, total) as their fingerprints are computed.
        comparing: called with test shapes (done, total) as they are compared.
    """
    leaks = leaks_by_id(held_out, corpus)
    if geometry:
        unmatched = [number for number in range(len(held_out)) if number not in leaks]
        matches = match_clouds(
            [held_out.clouds[number] for number in unmatched],
            corpus,
            workers=workers,
            fingerprinting=fingerprinting,
            comparing=comparing,
        )
        for number, match in zip(unmatched, matches, strict=True):
            if match is not None:
                leaks[number] = _leak(held_out, corpus, number, match)
    return LeakReport(
        benchmark=held_out.benchmark,
        test_shapes=len(held_out),
        corpus_shapes=len(corpus),
        corpus=corpus.content,
        leaks=tuple(leaks[number] for number in sorted(leaks)),
        ids_met=sources_sharing_ids(held_out, corpus),
        geometry=geometry,
    )


def match_clouds(
    clouds: Sequence[NDArray[np.float32]],
    corpus: Corpus,
    *,
    workers: int | None = None,
    fingerprinting: Callable[[int, int], None] | None = None,
    comparing: Callable[[int, int], None] | None = None,
) -> list[Match | None]:
    """For each of n clouds (N, 3), z up, the corpus shape of which it is another sample; None where there is none.

    See `find_leaks` for the other arguments.
    """
    if not clouds:
        return []
    prints = corpus_fingerprints(corpus, workers=workers, progress=fingerprinting)
    candidates = nearest_candidates(prints, Queries.of(clouds))
    with_candidates = [number for number, few in enumerate(candidates) if len(few)]
    tasks = [
        _Task(
            corpus,
            tuple(clouds[k] for k in with_candidates[first : first + _BLOCK]),
            tuple(candidates[k] for k in with_candidates[first : first + _BLOCK]),
        )
        for first in range(0, len(with_candidates), _BLOCK)
    ]
    matches_by_cloud: list[Match | None] = [None] * len(clouds)
    done = 0
    for matches in ordered_map(_compare, tasks, workers=workers):
        for match in matches:
            matches_by_cloud[with_candidates[done]] = match
            done += 1
        if comparing:
            comparing(done, len(with_candidates))
    return matches_by_cloud


def _compare(task: _Task) -> list[Match | None]:
    return first_matches(task.clouds, task.candidates, task.corpus)


def first_matches(
    clouds: Sequence[NDArray[np.float32]],
    candidates: Sequence[NDArray[np.int64]],
    corpus: Corpus,
    *,
    same_size: bool = False,
) -> list[Match | None]:
    """For each of n clouds (N, 3), z up, the first of its candidates, shapes of ``corpus``, that is the same.

    With ``same_size``, a shape whose size differs by more than `SAME_SIZE` is another one.
    """
    # Thousands of small matrix products: sharing each among threads takes five to seventeen times as long.
    with threadpool_limits(1, user_api="blas"):
        return [
            _first_match(cloud, few, corpus, same_size=same_size)
            for cloud, few in zip(clouds, candidates, strict=True)
        ]


def _first_match(
    cloud: NDArray[np.float32], candidates: NDArray[np.int64], corpus: Corpus, *, same_size: bool
) -> Match | None:
    """The first candidate, in order of likelihood, of which the cloud is a sample."""
    test = SurfaceSamples(cloud)
    if same_size:
        # First, since only the likeliest are compared, and copies in all sizes are equally likely.
        sizes = [SurfaceSamples(corpus.points(index)).size for index in candidates.tolist()]
        candidates = candidates[np.abs(np.log(np.array(sizes) / test.size)) <= _NEAR_SIZE]
    for index, poses in likely(PhaseMatcher(cloud), candidates, corpus)[:_COMPARED_SURFACES]:
        gap, scale = surface_match(test, SurfaceSamples(corpus.points(index)), poses)
        if gap <= SAME_SURFACE and not (same_size and abs(np.log(scale)) > SAME_SIZE):
            return Match(index, gap, scale)
    return None


def likely(
    matcher: PhaseMatcher, candidates: NDArray[np.int64], corpus: Corpus
) -> list[tuple[int, list[Similarity]]]:
    """The candidates that the phases do not rule out, likeliest first, each with poses to start from."""
    likely_shapes = []
    for index in candidates.tolist():
        points = corpus.points(index)
        poses = matcher.poses(pattern(points), min(len(points), POINTS))
        near = [pose for apart, pose in poses if apart <= LIKELY]
        if near:
            likely_shapes.append((poses[0][0], index, near))
    return [(index, near) for _, index, near in sorted(likely_shapes, key=itemgetter(0, 1))]


def _leak(held_out: HeldOut, corpus: Corpus, number: int, match: Match) -> Leak:
    shape = corpus[match.corpus_index]
    return Leak(
        test=number,
        test_id=held_out.ids[number] if held_out.ids else None,
        corpus_index=match.corpus_index,
        corpus_id=shape.id,
        source=shape.source,
        how="geometry",
        gap=match.gap,
    )
