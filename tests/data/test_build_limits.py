"""Resource limits: a shape that crashes, hangs or takes too much memory costs only itself, and can be retried."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pointdistill.data.corpus import open_corpus, verify_corpus
from pointdistill.data.corpus.manifest import read_manifest, write_manifest
from pointdistill.data.corpus.refused import read_refused
from pointdistill.data.corpus_building import (
    BuildReport,
    ShapeLimits,
    build_corpus,
    retry,
    retry_corpus,
)
from pointdistill.data.corpus_building.commit import content_of, retry_folder
from pointdistill.data.corpus_building.division import Span, cut, tile
from pointdistill.data.files.files import sha256_of
from pointdistill.data.files.processes import GIB
from pointdistill.errors import ConfigError, CorpusError, DataError
from tests.data.test_build import digest

HERE = Path(__file__).parent
LITTLE_MEMORY = ShapeLimits(memory_bytes=GIB // 4)


def build(source: Any, output: Path, **options: Any) -> BuildReport:
    return build_corpus(
        source, output, **{"points": 64, "workers": 2, "limits": LITTLE_MEMORY} | options
    )


def refused_of(corpus: Path) -> dict[str, tuple[str | None, str]]:
    return {
        shape.id: (shape.retryable_failure, shape.cause)
        for shape in read_refused(corpus / "refused.jsonl")
    }


HOSTILE = {
    2: "segfault",
    3: "segfault",
    9: "hang",
    18: "hang in C",
    21: "one huge array",
    22: "hoard",
    30: "hoard quietly",
    33: "exit",
    40: "nan",
    41: "raise",
}


def test_every_hostile_shape_is_retryable_with_its_cause_and_all_others_arrive(
    tmp_path: Path, odd: Callable[..., Any]
) -> None:
    limits = replace(LITTLE_MEMORY, deadline_seconds=2.5)
    report = build(odd(50, HOSTILE, scratch=tmp_path), tmp_path / "corpus", limits=limits)
    assert (report.kept, report.refused) == (40, 10)
    assert report.retryable == {"crash": 3, "deadline": 2, "memory": 3}
    twice = "reading it ended the process 2 times"
    late = ("deadline", "reading it took longer than the deadline of 2.5 s")
    much = ("memory", "reading it took more memory than the limit of 0.25 GiB")
    assert refused_of(tmp_path / "corpus") == {
        "0002": ("crash", f"{twice} (killed by SIGSEGV)"),
        "0003": ("crash", f"{twice} (killed by SIGSEGV)"),
        "0009": late,
        "0018": late,
        "0021": much,
        "0022": much,
        "0030": much,
        "0033": ("crash", f"{twice} (exit code 3)"),
        "0040": (None, "1 of 64 points are not finite"),
        "0041": (None, "ValueError: a reader's own bug"),
    }
    calm = odd(50, dict.fromkeys(HOSTILE, "refuse"))
    build(calm, tmp_path / "calm", workers=0)
    assert open_corpus(tmp_path / "corpus").content == open_corpus(tmp_path / "calm").content
    assert verify_corpus(tmp_path / "corpus") == ()


def test_what_a_retry_brings_is_what_a_build_without_failures_gives(
    tmp_path: Path, odd: Callable[..., Any]
) -> None:
    """Byte for byte; also where a shape is now refused for what it is, and with other limits."""
    corpus = tmp_path / "corpus"
    source = odd(50, {0: "exit", 7: "hoard", 8: "exit", 40: "nan", 49: "one huge array"}, tmp_path)
    build(source, corpus)
    larger = ShapeLimits(memory_bytes=GIB)
    again = retry_corpus([source], corpus, workers=1, limits=larger)
    assert (again.retried, again.recovered, again.kept) == (4, 1, 46)
    assert refused_of(corpus)["0049"][1].endswith("the limit of 1 GiB")
    (tmp_path / "healed").touch()
    after = retry_corpus([source], corpus, workers=1)
    assert (after.retried, after.recovered, after.kept, after.refused) == (3, 3, 49, 1)
    build(source, tmp_path / "fresh", workers=0)
    assert digest(corpus) == digest(tmp_path / "fresh")
    assert not (corpus / ".building").exists()
    nothing = retry_corpus([source], corpus)
    assert (nothing.retried, nothing.kept) == (0, 49)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointdistill.data.corpus_building.division.SHARD_SHAPES", 10)


@pytest.mark.usefixtures("small_shards")
def test_only_the_shards_with_retryable_shapes_are_made_again(
    tmp_path: Path, odd: Callable[..., Any]
) -> None:
    """Five shards of ten; one with a gap, and one that had no file since all its shapes were retryable."""
    corpus = tmp_path / "corpus"
    gone = dict.fromkeys([13, *range(30, 40)], "one huge array")
    source = odd(50, {**gone, 14: "refuse", 45: "nan"}, tmp_path)
    build(source, corpus, workers=0)
    assert sorted(path.name for path in corpus.glob("*.h5")) == [
        f"odd-0000{k}.h5" for k in (0, 1, 2, 4)
    ]
    untouched = {k: (corpus / f"odd-0000{k}.h5").stat().st_ino for k in (0, 2, 4)}
    (tmp_path / "healed").touch()
    retry_corpus([source], corpus, workers=0)
    build(source, tmp_path / "fresh", workers=0)
    assert digest(corpus) == digest(tmp_path / "fresh")
    assert {k: (corpus / f"odd-0000{k}.h5").stat().st_ino for k in untouched} == untouched


class Killed(BaseException):
    """Stands for a SIGKILL at one exact place."""


@pytest.mark.usefixtures("small_shards")
def test_stopped_at_any_rename_a_retry_goes_on_and_nothing_is_ever_torn(
    tmp_path: Path, odd: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each of the moves that end a retry: the old corpus, an unfinished one, or the new one."""
    corpus = tmp_path / "corpus"
    source = odd(50, {3: "one huge array", 13: "one huge array", 14: "nan"}, tmp_path)
    build(source, corpus, workers=0)
    old = open_corpus(corpus).content
    (tmp_path / "healed").touch()
    build(source, tmp_path / "fresh", workers=0)
    new = digest(tmp_path / "fresh")
    plainly = Path.replace
    stops = 0
    for allowed in range(100):
        moves = iter(range(allowed))

        def move(path: Path, target: Path, moves: Any = moves) -> Path:
            if next(moves, None) is None:
                raise Killed
            return plainly(path, target)

        monkeypatch.setattr(Path, "replace", move)
        try:
            retry_corpus([source], corpus, workers=0)
            break
        except Killed:
            stops += 1
        finally:
            monkeypatch.undo()
            monkeypatch.syspath_prepend(HERE)
            monkeypatch.setattr("pointdistill.data.corpus_building.division.SHARD_SHAPES", 10)
        if (corpus / "corpus.json").is_file():
            assert verify_corpus(corpus) == ()
            assert open_corpus(corpus).content == old
        else:
            with pytest.raises(CorpusError, match="not finished; run the same"):
                open_corpus(corpus)
    assert stops >= 5
    assert digest(corpus) == new


@pytest.mark.usefixtures("small_shards")
def test_a_build_finishes_the_last_step_of_a_retry_and_keeps_one_that_is_not_there_yet(
    tmp_path: Path, odd: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus"
    source = odd(50, {3: "one huge array", 13: "one huge array"}, tmp_path)
    build(source, corpus, workers=0)
    (tmp_path / "healed").touch()

    def stop(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(retry, "_stage", stop)
        with pytest.raises(Killed):
            retry_corpus([source], corpus, workers=0)
    build(source, corpus)
    assert len(list(retry_folder(corpus).glob("odd/odd-*.h5"))) == 2, "what was read again is kept"
    with monkeypatch.context() as patch:
        patch.setattr(retry, "apply_staged", stop)
        with pytest.raises(Killed):
            retry_corpus([source], corpus, workers=0)
    (corpus / "corpus.json").unlink()  # as the last step does first
    assert build(source, corpus).kept == 50
    build(source, tmp_path / "fresh", workers=0)
    assert digest(corpus) == digest(tmp_path / "fresh")


def test_a_retry_of_a_corpus_of_two_sources_makes_each_again_where_it_must(
    tmp_path: Path, odd: Callable[..., Any]
) -> None:
    behaviours = {"one": {4: "one huge array", 5: "nan"}, "two": {6: "one huge array", 7: "refuse"}}
    sources = [odd(20, odd_ones, tmp_path, name) for name, odd_ones in behaviours.items()]
    join(sources, tmp_path / "corpus")
    with pytest.raises(CorpusError, match="shapes of two are to be read again; give its archive"):
        retry_corpus(sources[:1], tmp_path / "corpus", workers=0)
    (tmp_path / "healed").touch()
    growing = tmp_path / "corpus" / ".building" / "parts"
    growing.mkdir(parents=True)
    assert retry_corpus(sources, tmp_path / "corpus", workers=0).recovered == 2
    assert growing.is_dir(), "what is being added to the corpus is left alone"
    shutil.rmtree(growing.parent)
    join(sources, tmp_path / "fresh")
    assert digest(tmp_path / "corpus") == digest(tmp_path / "fresh")


def join(sources: list[Any], output: Path) -> None:
    """One corpus of several, as a mixture is."""
    output.mkdir()
    parts = [output.parent / f"{output.name} {source.name}" for source in sources]
    for source, part in zip(sources, parts, strict=True):
        build(source, part, workers=0)
    made = [read_manifest(part) for part in parts]
    shards = tuple(shard for manifest in made for shard in manifest.shards)
    lines = "".join((part / "refused.jsonl").read_text() for part in parts)
    (output / "refused.jsonl").write_text(lines)
    for part in parts:
        for shard in part.glob("*.h5"):
            shard.rename(output / shard.name)
    whole = replace(
        made[0],
        shards=shards,
        sources=tuple(source for manifest in made for source in manifest.sources),
        content=content_of(output / shard.file for shard in shards),
        refused_sha256=sha256_of(output / "refused.jsonl"),
    )
    write_manifest(output / "corpus.json", whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": 21}, r"odd was different .*settings.shapes: 20 then, 21 now"),
        ({"listed": 21}, "lists other shapes now"),
        ({"shard": b"x"}, "damaged; `pointdistill verify"),
    ],
)
def test_a_retry_refuses_what_the_corpus_was_not_made_of(
    tmp_path: Path, odd: Callable[..., Any], change: dict[str, Any], message: str
) -> None:
    corpus = tmp_path / "corpus"
    source = odd(20, {3: "one huge array"}, tmp_path)
    build(source, corpus, workers=0)
    if "shapes" in change:
        source = replace(source, shapes=change["shapes"])
    if "shard" in change:
        with (corpus / "odd-00000.h5").open("r+b") as file:
            file.seek(-1, 2)
            file.write(change["shard"])
    if "listed" in change:

        class Longer(odd):  # type: ignore[misc]
            def entries(self) -> list[Any]:
                return [*super().entries(), replace(super().entries()[0], id="9999")]

        source = Longer(20, source.odd, tmp_path)
    with pytest.raises(CorpusError, match=message):
        retry_corpus([source], corpus, workers=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_however_many_shapes_of_a_piece_fail_the_others_are_read_twice_at_most(
    tmp_path: Path, odd: Callable[..., Any], workers: int
) -> None:
    """Eight of sixteen: a piece that began again at each death would read its first shape nine times."""
    (tmp_path / "reads").touch()
    bad = dict.fromkeys(range(1, 16, 2), "one huge array")
    report = build(odd(16, bad, tmp_path), tmp_path / "corpus", workers=workers)
    assert report.retryable == {"memory": 8}
    reads = Counter(map(int, (tmp_path / "reads").read_text().split()))
    assert max(reads.values()) == 2
    assert set(reads) == set(range(16))


def test_the_list_names_a_retryable_failure_only_where_there_was_one_and_older_lists_are_read(
    tmp_path: Path, odd: Callable[..., Any]
) -> None:
    build(odd(20, {1: "nan", 2: "one huge array"}, tmp_path), tmp_path / "corpus", workers=0)
    path = tmp_path / "corpus" / "refused.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [sorted(line) for line in lines] == [
        ["cause", "id", "source"],
        ["backstop", "cause", "id", "source"],
    ]
    path.write_text(path.read_text().replace(', "backstop": "memory"', ""))
    assert [shape.retryable_failure for shape in read_refused(path)] == [None, None]


def test_without_workers_a_shape_that_wants_too_much_memory_is_retryable_too(
    tmp_path: Path, odd: Callable[..., Any]
) -> None:
    build(odd(20, {2: "one huge array"}, tmp_path), tmp_path / "corpus", workers=0)
    cause = "reading it took more memory than there is"
    assert refused_of(tmp_path / "corpus") == {"0002": ("memory", cause)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"deadline_seconds": 0},
            "deadline of a shape must be a positive number of seconds, got 0",
        ),
        ({"deadline_seconds": float("nan")}, "positive number of seconds, got nan"),
        ({"memory_bytes": 2**20}, r"memory of a worker must be at least 0.25 GiB, got 0.000977"),
    ],
)
def test_limits_that_leave_no_room_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ShapeLimits(**options)


def test_workers_share_three_quarters_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointdistill.data.corpus_building.limits.memory_bytes", lambda: 16 * GIB)
    assert ShapeLimits().worker_bytes(4) == 3 * GIB
    assert ShapeLimits().worker_bytes(1000) == GIB // 4
    assert ShapeLimits(memory_bytes=GIB).worker_bytes(4) == GIB


def test_nothing_usable_says_so_though_it_could_be_tried_again(
    tmp_path: Path, odd: Callable[..., Any]
) -> None:
    with pytest.raises(DataError, match="none of the 2 shapes of odd can be used; first 0000"):
        build(odd(2, {0: "one huge array", 1: "nan"}, tmp_path), tmp_path / "corpus", workers=0)


def test_finished_spans_are_used_once_and_what_lies_between_is_missing() -> None:
    whole = Span(10, 40)
    assert tile(whole, []) == ([], [whole])
    assert tile(whole, [Span(0, 10), Span(40, 50), Span(10, 40)]) == ([whole], [])
    # A late worker finished 10 to 30 after the next build had made 10 to 15 and 20 to 30 of it.
    late = [Span(20, 30), Span(10, 15), Span(10, 30), Span(35, 40)]
    assert tile(whole, late) == ([Span(10, 30), Span(35, 40)], [Span(30, 35)])
    assert tile(whole, [Span(12, 20), Span(18, 25)]) == (
        [Span(12, 20)],
        [Span(10, 12), Span(20, 40)],
    )
    assert list(cut(Span(5, 25), [Span(0, 10), Span(10, 20), Span(20, 30), Span(30, 40)])) == [
        Span(5, 10),
        Span(10, 20),
        Span(20, 25),
    ]
