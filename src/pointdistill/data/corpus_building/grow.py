"""Brings a finished corpus of a user's folder up to date: only new and changed files are read.

The bytes are those of a build of all files at once. Shapes are in the order of their ids, and how they are
divided into shards depends on their number alone, so all shards are written anew beside the corpus: rows of
unchanged files are copied as they are stored, and the build reads what is missing. Which files are unchanged is
told by the list of their checksums that the corpus keeps, whose own checksum is in ``corpus.json``.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from pointdistill.data.corpus.manifest import (
    FILES_NAME,
    MANIFEST_NAME,
    REFUSED_NAME,
    Manifest,
    SourceRecord,
    read_manifest,
)
from pointdistill.data.corpus.reader import open_corpus
from pointdistill.data.corpus.refused import RefusedShape, read_refused
from pointdistill.data.corpus.rows import read_ids, read_rows, with_names
from pointdistill.data.corpus.shard import sizes_of, write_shard
from pointdistill.data.corpus_building.build import BuildSettings, list_entries, room_needed
from pointdistill.data.corpus_building.commit import (
    BuildReport,
    apply_staged,
    content_of,
    discard_staged,
    finish_retry,
    finish_staged,
    refused_shape,
    report,
    retry_folder,
    stage_listing,
    stage_manifest,
    stage_refused,
)
from pointdistill.data.corpus_building.division import Piece, Plan, Span, make_plan
from pointdistill.data.corpus_building.scheduler import Build
from pointdistill.data.corpus_building.state import (
    BASE_NAME,
    PLAN_NAME,
    BuildFolder,
    Outcome,
    Refusal,
    locked,
    retry_is_begun,
    same_but_for_files,
    unfinished_build,
)
from pointdistill.data.corpus_building.tasks import BuildJob
from pointdistill.data.files.files import read_json, sha256_of, write_json
from pointdistill.data.sources.base import Entry, ListedFiles, Source
from pointdistill.errors import CorpusError
from pointdistill.reporter import SILENT, Reporter

_GROWS = "grows_to"
_WITH_COMPANIONS = ".gltf"
"""Ending of files whose shapes may lie partly in another file, beside them or in a folder below."""


@dataclass(frozen=True, slots=True)
class _Change:
    """How a folder differs from the corpus that was made of it, as ids of shapes."""

    same: frozenset[str]
    new: tuple[str, ...]
    changed: tuple[str, ...]
    gone: tuple[str, ...]

    def line(self) -> str:
        """The counts, for people."""
        counts = {"new": self.new, "changed": self.changed, "removed": self.gone}
        told = ", ".join(f"{len(ids):,} {what}" for what, ids in counts.items() if ids)
        return f"{told or 'no shape differs'}, {len(self.same):,} unchanged"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the corpus holds a shape."""

    shard: int
    row: int


def grow_corpus(
    source: Source,
    output: Path,
    settings: BuildSettings,
    *,
    drop_removed: bool = False,
    reporter: Reporter = SILENT,
) -> BuildReport | None:
    """Bring a finished corpus up to date with a folder whose files have changed.

    New and changed files are read; all others are copied from the corpus. The corpus stays as it was until its
    last step, a few renames; if this is stopped at any time, the same call continues.

    Args:
        source: the folder, as it is now.
        output: the corpus folder.
        settings: those that the corpus was made with.
        drop_removed: shapes whose files are gone leave the corpus; otherwise they are an error.
        reporter: hears what has changed, and about every shape that is read.

    Returns:
        None if there is nothing to bring up to date: no finished corpus of this folder with these settings, or no
        file that differs.

    Raises:
        CorpusError: if files are gone, no file is the same, or the corpus does not list its files.
        DataError: as `build_source`.
    """
    finish_retry(output)
    if not (output / MANIFEST_NAME).is_file() or not isinstance(source, ListedFiles):
        return None
    manifest = read_manifest(output)
    if not _is_older(manifest, source, settings):
        _forget_growth(output)
        return None
    open_corpus(output)  # a missing shard is named before anything is read
    entries = list_entries(source)
    refused = _refused(output, manifest)
    places = _places(output, manifest)
    change = _compare(output, manifest, source, entries, places, refused)
    _check(output, change, drop_removed=drop_removed)
    with room_needed(output), locked(output):
        finish_staged(output)
        if read_manifest(output) != manifest:
            msg = f"{output}: another process has just changed this corpus; run the same again"
            raise CorpusError(msg)
        reporter.say(f"{output}: the folder has changed; shapes: {change.line()}")
        growth = _Growth(output, manifest, source, settings, reporter)
        growth.build(entries, change, places, refused)
        apply_staged(output)
        discard_staged(output)
        grown = report(output)
    return replace(grown, resumed=len(change.same))


def _is_older(manifest: Manifest, source: Source, settings: BuildSettings) -> bool:
    """Whether a corpus was made of this folder with these settings, and files have changed since."""
    if len(manifest.sources) != 1:
        return False
    recorded = {
        "seed": manifest.seed,
        "points": manifest.points,
        "source": manifest.sources[0].stated(),
    }
    now = {"seed": settings.seed, "points": settings.points, "source": asdict(source.facts)}
    return same_but_for_files(recorded, now)


def _forget_growth(output: Path) -> None:
    """Remove what a growth that was stopped left behind, where the folder is again what the corpus was made of."""
    plans = retry_folder(output).glob(f"*/.building/{PLAN_NAME}")
    if any(_GROWS in read_json(plan) for plan in plans):
        with locked(output):
            discard_staged(output)


def _refused(output: Path, manifest: Manifest) -> dict[str, RefusedShape]:
    if manifest.refused_sha256 is None:
        return {}
    return {shape.id: shape for shape in read_refused(output / REFUSED_NAME)}


def _places(output: Path, manifest: Manifest) -> dict[str, _Place]:
    """Where each shape of the corpus is, by id."""
    return {
        bytes(name).decode("utf-8", "replace"): _Place(number, row)
        for number, shard in enumerate(manifest.shards)
        for row, name in enumerate(read_ids(output, shard))
    }


def _compare(
    output: Path,
    manifest: Manifest,
    source: ListedFiles,
    entries: Sequence[Entry],
    places: Mapping[str, _Place],
    refused: Mapping[str, RefusedShape],
) -> _Change:
    """Compare the checksums of the folder's files with those that the corpus keeps.

    Raises:
        CorpusError: if it keeps none, or they are not those that it was made of.
    """
    old = _files_of(output, manifest.sources[0])
    new = _checksums(source.listing)
    ids = {entry.id for entry in entries}
    touched = {n for n in old.keys() | new.keys() if old.get(n) != new.get(n)}
    # Any file can be a glTF's buffer, one with a shape's ending too.
    companions = [PurePosixPath(n) for n in touched]

    def is_same(shape: str) -> bool:
        if shape not in new or old.get(shape) != new[shape]:
            return False
        beside = shape.lower().endswith(_WITH_COMPANIONS)
        folder = PurePosixPath(shape).parent
        own = PurePosixPath(shape)
        return not (beside and any(c.is_relative_to(folder) for c in companions if c != own))

    held = places.keys() | refused.keys()
    same = frozenset(shape for shape in ids & held if is_same(shape))
    return _Change(
        same=same,
        new=tuple(sorted(ids - held)),
        changed=tuple(sorted((ids & held) - same)),
        # A refused file that is still there may be no shape by a later rule, as a readme; nothing is lost.
        gone=tuple(sorted(held - ids - (refused.keys() & new.keys()))),
    )


def _files_of(output: Path, record: SourceRecord) -> dict[str, str]:
    path = output / FILES_NAME
    if not path.is_file() or sha256_of(path) != record.archive_sha256:
        state = "has changed" if path.is_file() else "is missing"
        msg = (
            f"{output}: the source's files have changed since this corpus was made, and {FILES_NAME}, the list of "
            f"those it was made of, {state}; choose another output folder, or remove this one"
        )
        raise CorpusError(msg, settings=("output",))
    return _checksums(path.read_text(encoding="utf-8"))


def _checksums(listing: str) -> dict[str, str]:
    """The checksum of each file of a list, by its path."""
    lines = (line.partition("  ") for line in listing.split("\n") if line)
    return {name: checksum for checksum, _, name in lines}


def _check(output: Path, change: _Change, *, drop_removed: bool) -> None:
    """Raise if shapes of the corpus would be lost unasked."""
    if change.gone and not drop_removed:
        msg = (
            f"{output}: {len(change.gone):,} of its shapes have no file in the folder any more, such as "
            f"{change.gone[0]!r}; put the files back, let the shapes go, or choose another output folder"
        )
        raise CorpusError(msg, settings=("drop_removed", "output"))
    if not change.same:
        msg = (
            f"{output}: none of the files that this corpus was made of is unchanged; choose another output "
            "folder, or remove this one"
        )
        raise CorpusError(msg, settings=("output",))


@dataclass(frozen=True, slots=True)
class _Growth:
    """One growth of one corpus."""

    output: Path
    manifest: Manifest
    source: Source
    settings: BuildSettings
    reporter: Reporter

    def build(
        self,
        entries: Sequence[Entry],
        change: _Change,
        places: Mapping[str, _Place],
        refused: Mapping[str, RefusedShape],
    ) -> None:
        """Build all shards beside the corpus and stage them; the caller puts them in place."""
        facts = self.source.facts
        plan = make_plan(len(entries), self.manifest.points)
        place = retry_folder(self.output) / facts.name
        decisive = {_GROWS: facts.archive_sha256, "shapes": len(entries), "shards": plan.shards}
        self._start_folder(place, decisive)
        with unfinished_build(place, decisive) as folder:
            self._copy(folder, plan, entries, change.same, places, refused)
            job = BuildJob(
                self.source, seed=self.manifest.seed, points=self.manifest.points, folder=folder
            )
            build = Build(job, plan, entries, f"preparing {facts.name}", self.reporter)
            build.run(self.settings.processes, self.settings.limits, cluster=self.settings.cluster)
            self._stage(folder, plan)

    def _start_folder(self, place: Path, decisive: Mapping[str, object]) -> None:
        """Keep what an earlier call for the same files has done; remove anything else."""
        begun = place / ".building" / PLAN_NAME
        same = begun.is_file() and read_json(begun) == decisive
        if not (same and retry_is_begun(self.output)):
            shutil.rmtree(retry_folder(self.output), ignore_errors=True)
            write_json(
                retry_folder(self.output) / BASE_NAME, sha256_of(self.output / MANIFEST_NAME)
            )

    def _copy(
        self,
        folder: BuildFolder,
        plan: Plan,
        entries: Sequence[Entry],
        same: frozenset[str],
        places: Mapping[str, _Place],
        refused: Mapping[str, RefusedShape],
    ) -> None:
        """Write the unchanged shapes as finished pieces, except those that are written already."""
        finished = set(folder.finished_pieces())
        whole = {k for k in range(plan.shards) if folder.shard_outcome(k) is not None}
        for piece in plan.pieces:
            self.reporter.progress("copying shapes", piece.stop, len(entries), unit="shapes")
            for run in _runs(piece, entries, same):
                if piece.shard not in whole and run not in finished:
                    ids = [entry.id for entry in entries[run.start : run.stop]]
                    self._copy_run(folder, run, ids, places, refused)

    def _copy_run(
        self,
        folder: BuildFolder,
        run: Span,
        ids: Sequence[str],
        places: Mapping[str, _Place],
        refused: Mapping[str, RefusedShape],
    ) -> None:
        facts, old = self.source.facts, self.manifest.sources[0]
        kept = [places[name] for name in ids if name in places]
        blocks = [
            with_names(block, old, name=facts.name, labels=facts.labels)
            for number, group in itertools.groupby(kept, key=lambda place: place.shard)
            for block in read_rows(
                self.output,
                self.manifest.shards[number],
                old,
                np.array([place.row for place in group]),
            )
        ]
        if blocks:
            sizes = sum((sizes_of(block) for block in blocks[1:]), sizes_of(blocks[0]))
            path = folder.piece(run)
            write_shard(path, blocks, sizes, source=facts.name, label_names=facts.labels)
        lacking = [refused[name] for name in ids if name not in places]
        refusals = tuple(Refusal(s.id, s.cause, s.retryable_failure) for s in lacking)
        folder.finish_piece(run, Outcome(kept=len(kept), refused=refusals))

    def _stage(self, folder: BuildFolder, plan: Plan) -> None:
        outcomes = [folder.shard_outcome(shard) for shard in range(plan.shards)]
        refusals = [r for outcome in outcomes if outcome is not None for r in outcome.refused]
        records = [folder.shard_record(shard) for shard in range(plan.shards)]
        shards = tuple(record for record in records if record is not None)
        if not shards:
            msg = f"none of the {len(refusals):,} shapes can be used; first {refusals[0].id}: {refusals[0].cause}"
            raise CorpusError(msg)
        facts = self.source.facts
        assert isinstance(self.source, ListedFiles), "only such sources grow"
        stage_listing(self.output, self.source.listing)
        lines = [refused_shape(facts.name, refusal) for refusal in refusals]
        staged = replace(
            self.manifest,
            content=content_of(folder.corpus / shard.file for shard in shards),
            refused_sha256=sha256_of(stage_refused(self.output, lines)) if lines else None,
            sources=(
                SourceRecord(
                    **facts.stated(),
                    kept=sum(shard.shapes for shard in shards),
                    refused=len(refusals),
                ),
            ),
            shards=shards,
        )
        stage_manifest(self.output, staged)


def _runs(piece: Piece, entries: Sequence[Entry], same: frozenset[str]) -> Iterator[Span]:
    """The longest spans of a piece that hold only unchanged shapes."""
    start = piece.start
    for index in range(piece.start, piece.stop):
        if entries[index].id not in same:
            if index > start:
                yield Span(start, index)
            start = index + 1
    if piece.stop > start:
        yield Span(start, piece.stop)
