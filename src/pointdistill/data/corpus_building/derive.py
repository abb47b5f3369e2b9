"""Corpora made of corpora: several joined to one, a choice of shapes, and parts of given shares.

What is copied is decided here, from ids and labels alone: 40 bytes and the id for each shape.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.corpus.manifest import REFUSED_NAME, Manifest, ShardRecord
from pointdistill.data.corpus.reader import Corpus, open_columns, open_corpus
from pointdistill.data.corpus.refused import RefusedShape, read_refused
from pointdistill.data.corpus.rows import ShapeFilter, choose_shapes, read_ids, read_labels
from pointdistill.data.corpus_building.commit import BuildReport
from pointdistill.data.corpus_building.copying import ChosenRows, NewSource, Part, write_corpus
from pointdistill.errors import ConfigError, CorpusError
from pointdistill.reporter import SILENT, Reporter

SELECTION = "selection"
"""Setting of a source of which a corpus has only chosen shapes: how they were chosen, one step after another."""

_STAND_IN = "-stand-in"


def merge_corpora(
    corpora: Sequence[Path],
    output: Path,
    *,
    workers: int | None = None,
    reporter: Reporter = SILENT,
) -> BuildReport:
    """Join corpora to one.

    Sources of one name are one source if all else that is recorded of them agrees but for a choice of shapes: a
    shape that several hold is kept once. Otherwise they are different sources, and all but the first get a number
    behind their name. Licences, origins and checksums of archives are kept, and so are lists of refused shapes.

    Args:
        corpora: two or more folders.
        output: the new corpus; a new or empty folder, or one with an interrupted call like this.
        workers: processes; 1 copies in this process, None uses every usable core. The bytes do not depend on it.
        reporter: hears what was renamed or held twice, and of each shard.

    Raises:
        ConfigError: if fewer than two are named, or one is named twice.
        CorpusError: if one is damaged, two hold different shapes under one id of one source, or the output holds
            something else.
    """
    places = [folder.resolve() for folder in corpora]
    if len(places) < 2 or len(set(places)) < len(places):
        msg = f"{len(set(places))} different corpora given; name two or more"
        raise ConfigError(msg)
    manifests = [open_corpus(folder).manifest for folder in corpora]
    parts = [
        _noted(part, manifest, manifests)
        for folder, manifest in zip(corpora, manifests, strict=True)
        for part in _parts(folder, manifest)
    ]
    groups: dict[str, list[list[Part]]] = {}
    for part in parts:
        same_name = groups.setdefault(part.record.name, [])
        alike = next((g for g in same_name if _facts(g[0]) == _facts(part)), None)
        if alike is None:
            same_name.append([part])
        else:
            alike.append(part)
    names = set(groups)
    sources = []
    for name, same_name in groups.items():
        for number, group in enumerate(same_name):
            new = _free_name(name, names) if number else name
            names.add(new)
            if number:
                reporter.say(f"{group[0].folder}: its source {name} is another one; it is {new}")
            sources.append(_united(group, new, reporter))
    first = manifests[0]
    head = replace(first, points=max(m.points for m in manifests))
    return write_corpus(head, sources, output, workers=workers, reporter=reporter)


def subset_corpus(
    corpus: Path,
    output: Path,
    *,
    choice: ShapeFilter,
    shapes: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    reporter: Reporter = SILENT,
) -> BuildReport:
    """Make a corpus of some shapes of another one. It has no list of refused shapes.

    Args:
        corpus: the folder.
        output, workers, reporter: see `merge_corpora`.
        choice: conditions on sources, labels and ids.
        shapes: how many of those that meet them, drawn by ``seed``; None for all.
        seed: same seed, same shapes.

    Raises:
        ConfigError: if a name is not in the corpus, or fewer shapes meet the conditions than are wanted.
        DataError: if no shape meets them, or an id is missing.
        CorpusError: as `merge_corpora`.
    """
    opened = open_corpus(corpus)
    numbers = choose_shapes(opened, choice, count=len(opened), seed=seed)
    if shapes is not None and shapes > len(numbers):
        msg = f"shapes must be at most {len(numbers):,}, which meet the conditions, got {shapes:,}"
        raise ConfigError(msg, settings=("shapes",))
    step: dict[str, Any] = {"of": opened.content}
    step |= {"sources": sorted(choice.sources)} if choice.sources else {}
    step |= {"labels": sorted(choice.labels)} if choice.labels else {}
    if choice.ids:
        listed = "".join(f"{name}\n" for name in sorted(set(choice.ids)))
        step |= {"ids_sha256": hashlib.sha256(listed.encode()).hexdigest()}
    if shapes is not None:
        rng = np.random.default_rng(np.random.SeedSequence(seed))
        numbers = np.sort(rng.choice(numbers, shapes, replace=False))
        step |= {"shapes": shapes, "seed": seed}
    sources = _chosen(opened, numbers, step)
    return write_corpus(opened.manifest, sources, output, workers=workers, reporter=reporter)


def split_corpus(
    corpus: Path,
    output: Path,
    *,
    shares: Mapping[str, float],
    seed: int = 0,
    workers: int | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, BuildReport]:
    """Divide a corpus into parts, each a corpus of its own in a folder of ``output``.

    Every label of every source is divided by the shares as evenly as whole shapes allow, and so are the shapes
    without a label. Which shape goes where depends on the seed and on the ids.

    Args:
        corpus: the folder.
        output: folder in which each part gets a folder of its name.
        shares: by the name of each part, its share; they add up to 1.
        seed: same seed, same parts.
        workers, reporter: see `merge_corpora`.

    Returns:
        A report for each part, in the order of the shares.

    Raises:
        ConfigError: if shares or names are not accepted, or a part would get no shape.
        CorpusError: as `merge_corpora`.
    """
    _check_shares(shares)
    opened = open_corpus(corpus)
    part_of = _divide(opened, list(shares.values()), seed)
    counts = np.bincount(part_of, minlength=len(shares))
    empty = next((n for n, count in zip(shares, counts, strict=True) if not count), None)
    if empty is not None:
        msg = f"{empty} would get none of {len(opened):,} shapes; give it a larger share"
        raise ConfigError(msg, settings=("shares",))
    reports = {}
    for number, name in enumerate(shares):
        step = {"of": opened.content, "part": name, "shares": dict(shares), "seed": seed}
        sources = _chosen(opened, np.flatnonzero(part_of == number), step)
        reports[name] = write_corpus(
            opened.manifest, sources, output / name, workers=workers, reporter=reporter
        )
    return reports


def _check_shares(shares: Mapping[str, float]) -> None:
    for name, share in shares.items():
        if not name or set(name) & set('/\\:*?"<>|\0') or name.startswith("."):
            msg = f"{name!r} is no name for a folder; use letters and digits"
            raise ConfigError(msg, settings=("shares",))
        if not 0 < share < 1:
            msg = f"shares must lie between 0 and 1, got {share:g} for {name}"
            raise ConfigError(msg, settings=("shares",))
    if len(shares) < 2 or abs(sum(shares.values()) - 1) > 1e-6:
        msg = f"two or more shares must add up to 1, got {len(shares)} that add up to {sum(shares.values()):g}"
        raise ConfigError(msg, settings=("shares",))


def _divide(corpus: Corpus, shares: Sequence[float], seed: int) -> NDArray[np.int64]:
    """(n,) the part of every shape.

    Shapes are sorted by source, label, and a hash of seed and id. Each in turn goes to the part that is furthest
    behind its share, so that every run of shapes, such as a label, is divided evenly, and so is the whole.
    """
    part_of = np.empty(len(corpus), np.int64)
    wanted = np.array(shares)
    given = np.zeros(len(shares))
    base = done = 0
    for part in _parts(corpus.path, corpus.manifest):
        labels = [read_labels(part.folder, shard, part.record) for shard in part.shards]
        hashes = [
            hashlib.sha256(f"{seed}\0{part.record.name}\0".encode() + bytes(name)).digest()[:16]
            for shard in part.shards
            for name in read_ids(part.folder, shard)
        ]
        drawn = np.array(hashes, "V16").view("S16") if hashes else np.empty(0, "S16")
        ranking = np.lexsort((drawn, np.concatenate([*labels, np.empty(0, np.int32)])))
        for place in ranking:
            done += 1
            behind = int(np.argmax(wanted * done - given))
            given[behind] += 1
            part_of[base + place] = behind
        base += len(hashes)
    return part_of


def _parts(folder: Path, manifest: Manifest) -> list[Part]:
    """The sources of a corpus, in its own order.

    Raises:
        CorpusError: if its shards are in another order, so that its shapes would be numbered differently.
    """
    parts = [
        Part(folder, record, tuple(s for s in manifest.shards if s.source == record.name))
        for record in manifest.sources
    ]
    if tuple(shard for part in parts for shard in part.shards) != manifest.shards:
        msg = f"{folder}: lists its shards in another order than its sources; prepare it again"
        raise CorpusError(msg)
    return parts


def _noted(part: Part, manifest: Manifest, manifests: Sequence[Manifest]) -> Part:
    """A part whose settings say with which seed and points it was made, where corpora differ in these."""
    made = {"seed": manifest.seed, "points": manifest.points}
    if all((m.seed, m.points) == (manifest.seed, manifest.points) for m in manifests):
        return part
    settings = {**part.record.settings, "made_with": made}
    return replace(part, record=replace(part.record, settings=settings))


def _facts(part: Part) -> dict[str, Any]:
    """What is recorded of a source, but for a choice of shapes and its counts."""
    stated = part.record.stated()
    settings = {k: v for k, v in stated["settings"].items() if k != SELECTION}
    return {**stated, "settings": settings}


def _free_name(name: str, taken: Iterable[str]) -> str:
    """The name with the first number behind it that no source has; a stand-in's still says that it is one."""
    stem, end = (name.removesuffix(_STAND_IN), _STAND_IN if name.endswith(_STAND_IN) else "")
    known, number = set(taken), 2
    while f"{stem}-{number}{end}" in known:
        number += 1
    return f"{stem}-{number}{end}"


def _united(group: Sequence[Part], name: str, reporter: Reporter) -> NewSource:
    """One source of parts that agree in all but their shapes; a shape that several hold is kept once.

    Raises:
        CorpusError: if an id stands for different shapes.
    """
    rows = _all_rows(group)
    refused: dict[str, RefusedShape] = {}
    for part in group:
        for shape in _refused_of(part):
            refused.setdefault(shape.id, replace(shape, source=name))
    settings = dict(group[0].record.settings)
    if len(group) > 1:
        rows, twice = _in_order(group, rows)
        if twice:
            first, other = group[0].folder, group[-1].folder
            several = f"{twice:,} shapes are" if twice > 1 else "1 shape is"
            reporter.say(f"{name}: {several} in {first} and in {other}; kept once")
        chosen = [part.record.settings.get(SELECTION) for part in group]
        settings.pop(SELECTION, None)
        if all(chosen):
            settings[SELECTION] = [{"merged": chosen}]
    if name != group[0].record.name:
        settings["name_before"] = group[0].record.name
    record = replace(
        group[0].record, name=name, kept=len(rows), refused=len(refused), settings=settings
    )
    listed = tuple(sorted(refused.values(), key=lambda shape: shape.id))
    return NewSource(record, tuple(group), rows, listed)


def _all_rows(group: Sequence[Part]) -> ChosenRows:
    """All rows of some parts, one part after another."""
    sizes = [
        (p, s, shard.shapes) for p, part in enumerate(group) for s, shard in enumerate(part.shards)
    ]
    empty = np.empty(0, np.int32)
    return ChosenRows(
        np.concatenate([empty, *(np.full(n, p, np.int32) for p, _, n in sizes)]),
        np.concatenate([empty, *(np.full(n, s, np.int32) for _, s, n in sizes)]),
        np.concatenate([empty, *(np.arange(n, dtype=np.int32) for _, _, n in sizes)]),
    )


def _in_order(group: Sequence[Part], rows: ChosenRows) -> tuple[ChosenRows, int]:
    """Rows of several parts in the order of their ids, each id once, and how many were left out for it."""
    ids = np.concatenate([read_ids(p.folder, shard) for p in group for shard in p.shards])
    digests = np.concatenate([_digests(p.folder, shard) for p in group for shard in p.shards])
    ranking = np.argsort(ids, kind="stable")
    again = np.concatenate([[False], ids[ranking][1:] == ids[ranking][:-1]])
    for place in np.flatnonzero(again):
        one, other = ranking[place - 1], ranking[place]
        if (digests[one] != digests[other]).any():
            a, b = (group[rows.part[k]].folder for k in (one, other))
            shape = bytes(ids[one]).decode("utf-8", "replace")
            msg = (
                f"{a} and {b} hold different shapes under the id {shape!r} of {group[0].record.name}, as they do "
                "if they were made with different settings; leave one out"
            )
            raise CorpusError(msg)
    kept = ranking[~again]
    return ChosenRows(rows.part[kept], rows.shard[kept], rows.row[kept]), int(again.sum())


def _digests(folder: Path, shard: ShardRecord) -> NDArray[np.uint8]:
    with open_columns(folder, shard) as columns:
        digests: NDArray[np.uint8] = columns.read("sha256", 0, shard.shapes).reshape(-1, 32)
        return digests


def _refused_of(part: Part) -> Iterator[RefusedShape]:
    if part.record.refused:
        for shape in read_refused(part.folder / REFUSED_NAME):
            if shape.source == part.record.name:
                yield shape


def _chosen(corpus: Corpus, numbers: NDArray[np.int64], step: Mapping[str, Any]) -> list[NewSource]:
    """The sources of a choice of shapes, given by their numbers; each records how they were chosen."""
    sources, base = [], 0
    for part in _parts(corpus.path, corpus.manifest):
        rows = _all_rows([part])
        low, high = np.searchsorted(numbers, [base, base + len(rows)])
        picked = numbers[low:high] - base
        base += len(rows)
        if not len(picked):
            continue
        before = part.record.settings.get(SELECTION)
        steps = [*(before if isinstance(before, list | tuple) else ()), dict(step)]
        settings = {**part.record.settings, SELECTION: steps}
        record = replace(part.record, kept=len(picked), refused=0, settings=settings)
        chosen = ChosenRows(rows.part[picked], rows.shard[picked], rows.row[picked])
        sources.append(NewSource(record, (part,), chosen))
    return sources


def read_names(path: Path) -> tuple[str, ...]:
    """The ids in a text file, one a line; empty lines are left out.

    Raises:
        ConfigError: if the file cannot be read as text, or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: cannot be read as text ({error}); give a file with an id on each line"
        raise ConfigError(msg, settings=("ids",)) from error
    names = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not names:
        msg = f"{path}: holds no id; give a file with an id on each line"
        raise ConfigError(msg, settings=("ids",))
    return names
