"""Test shapes in a corpus: by id where ids meet, by the shape itself for all the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pointdistill.data.corpus import Corpus
from pointdistill.data.leaks.candidates import Wanted, nearest_prints
from pointdistill.data.leaks.fingerprint import POINTS
from pointdistill.data.leaks.ids import leaks_by_id, meeting_sources
from pointdistill.data.leaks.phases import LIKELY, Likeness, pattern
from pointdistill.data.leaks.records import HeldOut, Leak, LeakReport
from pointdistill.data.leaks.register import Similarity
from pointdistill.data.leaks.store import corpus_prints
from pointdistill.data.leaks.surface import SAME_SURFACE, Survey, surface_gap
from pointdistill.data.workers import Progress, ordered_map

_BLOCK = 8  # test shapes a task
_SURVEYED = 16  # likely candidates whose surfaces are compared with a test shape's


@dataclass(frozen=True, slots=True)
class Match:
    """The shape of a corpus that a cloud is a sample of."""

    corpus_index: int
    gap: float


@dataclass(frozen=True, slots=True)
class _Task:
    """Some test clouds and the corpus shapes that each may be a sample of."""

    corpus: Corpus
    clouds: tuple[NDArray[np.float32], ...]
    candidates: tuple[NDArray[np.int64], ...]


def find_leaks(
    held_out: HeldOut,
    corpus: Corpus,
    *,
    geometry: bool = True,
    workers: int | None = None,
    fingerprinting: Progress | None = None,
    comparing: Progress | None = None,
) -> LeakReport:
    """The test shapes of a benchmark that a corpus has.

    A shape whose id is found is not looked for by geometry; every other is, in all of the corpus. A test
    shape that the corpus has several times is reported with the first one found.

    Args:
        held_out: the test shapes.
        corpus: where to look.
        geometry: False compares ids alone, in seconds.
        workers: processes; 1 works in this one, None takes every usable core.
        fingerprinting: called with corpus shapes (done, total) while their fingerprints are computed.
        comparing: called with test shapes (done, total) while they are compared.
    """
    found = leaks_by_id(held_out, corpus)
    if geometry:
        left = [number for number in range(len(held_out)) if number not in found]
        matches = match_clouds(
            [held_out.clouds[number] for number in left],
            corpus,
            workers=workers,
            fingerprinting=fingerprinting,
            comparing=comparing,
        )
        for number, match in zip(left, matches, strict=True):
            if match is not None:
                found[number] = _leak(held_out, corpus, number, match)
    return LeakReport(
        benchmark=held_out.benchmark,
        test_shapes=len(held_out),
        corpus_shapes=len(corpus),
        corpus=corpus.content,
        leaks=tuple(found[number] for number in sorted(found)),
        ids_met=meeting_sources(held_out, corpus),
        geometry=geometry,
    )


def match_clouds(
    clouds: Sequence[NDArray[np.float32]],
    corpus: Corpus,
    *,
    workers: int | None = None,
    fingerprinting: Progress | None = None,
    comparing: Progress | None = None,
) -> list[Match | None]:
    """For each of n clouds (N, 3), z up, the corpus shape that it is another sample of; None where there is none.

    See `find_leaks` for the other arguments.
    """
    if not clouds:
        return []
    prints = corpus_prints(corpus, workers=workers, progress=fingerprinting)
    candidates = nearest_prints(prints, Wanted.of(clouds))
    open_cases = [number for number, few in enumerate(candidates) if len(few)]
    tasks = [
        _Task(
            corpus,
            tuple(clouds[k] for k in open_cases[first : first + _BLOCK]),
            tuple(candidates[k] for k in open_cases[first : first + _BLOCK]),
        )
        for first in range(0, len(open_cases), _BLOCK)
    ]
    found: list[Match | None] = [None] * len(clouds)
    done = 0
    for matches in ordered_map(_compare, tasks, workers=workers):
        for match in matches:
            found[open_cases[done]] = match
            done += 1
        if comparing:
            comparing(done, len(open_cases))
    return found


def _compare(task: _Task) -> list[Match | None]:
    # Thousands of small products: sharing each among threads takes five to seventeen times as long.
    with threadpool_limits(1, user_api="blas"):
        return [
            _first_match(cloud, candidates, task.corpus)
            for cloud, candidates in zip(task.clouds, task.candidates, strict=True)
        ]


def _first_match(
    cloud: NDArray[np.float32], candidates: NDArray[np.int64], corpus: Corpus
) -> Match | None:
    """The first of the candidates, likeliest first, that the cloud is a sample of."""
    test = Survey(cloud)
    for index, poses in likely(Likeness(cloud), candidates, corpus)[:_SURVEYED]:
        gap = surface_gap(test, Survey(corpus.points(index)), poses)
        if gap <= SAME_SURFACE:
            return Match(index, gap)
    return None


def likely(
    likeness: Likeness, candidates: NDArray[np.int64], corpus: Corpus
) -> list[tuple[int, list[Similarity]]]:
    """Those of some candidates that the phases do not rule out, likeliest first, with poses to begin from."""
    found = []
    for index in candidates.tolist():
        points = corpus.points(index)
        poses = likeness.poses(pattern(points), min(len(points), POINTS))
        near = [pose for apart, pose in poses if apart <= LIKELY]
        if near:
            found.append((poses[0][0], index, near))
    return [(index, near) for _, index, near in sorted(found, key=itemgetter(0, 1))]


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
