"""Leaks by id: the same name in the same data. Costs the corpus's ids in memory, 0.1 GiB for a million shapes."""

from __future__ import annotations

from collections.abc import Callable

from pointdistill.data.corpus import Corpus
from pointdistill.data.corpus.manifest import SourceRecord
from pointdistill.data.leaks.records import HeldOut, Leak

_STAND_IN = "-stand-in"


def _whole(name: str) -> str:
    return name


def _last_part(name: str) -> str:
    return name.rsplit("/", 1)[-1]


_MEETINGS: dict[str, tuple[str, Callable[[str], str]]] = {
    "ModelNet40": ("modelnet40", _whole),
    "ScanObjectNN": ("scanobjectnn", _whole),
    "ShapeNetPart": ("shapenet", _last_part),
    "Objaverse-LVIS": ("objaverse", _last_part),
}
"""For a benchmark: how the names of sources with its ids begin, and what of an id tells a shape."""


def meeting_sources(held_out: HeldOut, corpus: Corpus) -> tuple[str, ...]:
    """Sources of a corpus whose ids mean the same shapes as the benchmark's."""
    if held_out.ids is None or held_out.benchmark not in _MEETINGS:
        return ()
    start, _ = _MEETINGS[held_out.benchmark]
    return tuple(s.name for s in corpus.sources if _meets(s, start, held_out, corpus))


def leaks_by_id(held_out: HeldOut, corpus: Corpus) -> dict[int, Leak]:
    """Test shapes, by their number, whose id a source of the same data has in the corpus."""
    sources = meeting_sources(held_out, corpus)
    if not sources or held_out.ids is None:
        return {}
    key = _MEETINGS[held_out.benchmark][1]
    wanted = {key(name): number for number, name in enumerate(held_out.ids)}
    found: dict[int, Leak] = {}
    names = enumerate(corpus.ids())
    for shard in corpus.manifest.shards:
        for _ in range(shard.shapes):
            index, name = next(names)
            test = wanted.get(key(name)) if shard.source in sources else None
            if test is not None and test not in found:
                found[test] = Leak(
                    test=test,
                    test_id=held_out.ids[test],
                    corpus_index=index,
                    corpus_id=name,
                    source=shard.source,
                    how="id",
                    gap=None,
                )
    return found


def _meets(source: SourceRecord, start: str, held_out: HeldOut, corpus: Corpus) -> bool:
    """Whether ids agree: real data's always do, a stand-in's only within the very same archive."""
    if not source.name.startswith(start) or source.stand_in != held_out.stand_in:
        return False
    same = held_out.checksum in (source.archive_sha256, corpus.content)
    return same if source.stand_in else not source.name.endswith(_STAND_IN)
