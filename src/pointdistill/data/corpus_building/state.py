"""An unfinished build on disk: what is done, so that a killed build can continue from there.

It is in ``.building`` inside the corpus folder. A piece (a span of shapes) or a shard is finished when its JSON
mark exists, which is written last; anything without a mark is made again. A lock lets one process at a time work
in a corpus folder.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pointdistill.data.corpus.manifest import (
    BUILDING_NAME,
    MANIFEST_NAME,
    ShardRecord,
    check_record,
    check_source_name,
)
from pointdistill.data.corpus.refused import with_field_names
from pointdistill.data.corpus_building.division import Span
from pointdistill.data.files.files import (
    check_own_folder,
    hold_lock,
    read_json,
    read_record,
    sha256_of,
    wait_until_free,
    write_json,
)
from pointdistill.data.files.schema import from_plain, refusing_damage, to_plain
from pointdistill.data.meshes.records import LeftOut
from pointdistill.errors import ConfigError, CorpusError, DataError

LOCK_NAME = "lock"
_ORPHANS_SECONDS = 30.0
"""How long a build waits for workers of one that was killed, which end within moments unless a reader hangs."""

PLAN_NAME = "plan.json"
RETRY_NAME = "retry"
"""Folder in ``.building`` of a finished corpus while some of its shapes are being read again."""

BASE_NAME = "base.json"
"""File in that folder: the checksum of the manifest that the retry began with."""

_PIECE_MARK = re.compile(r"piece-(\d+)-(\d+)\.json")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A shape that could not be used, and why in one line."""

    id: str
    cause: str
    retryable_failure: str | None = None
    """``crash``, ``deadline``, ``memory`` or ``machine``, where another attempt may succeed; None where the shape
    itself is unusable."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many shapes of a piece or shard were kept, and which were refused."""

    kept: int
    refused: tuple[Refusal, ...]
    left_out: LeftOut = field(default_factory=LeftOut)
    """What the files of kept shapes hold besides."""

    @property
    def shapes(self) -> int:
        """Kept and refused together."""
        return self.kept + len(self.refused)


@dataclass(frozen=True, slots=True)
class BuildFolder:
    """Paths and marks of an unfinished build."""

    corpus: Path
    """The corpus folder; finished shards are in it."""

    @property
    def path(self) -> Path:
        """The folder of the unfinished build."""
        return self.corpus / BUILDING_NAME

    @property
    def at_work(self) -> Path:
        """Lock file that every worker shares while it does a task: those of a killed build end after it does."""
        return self.path / "at-work"

    def piece(self, span: Span) -> Path:
        """File of a piece, in the layout of a shard; absent where all its shapes were refused."""
        return self.path / f"piece-{span.start:08d}-{span.stop:08d}.h5"

    def shard(self, number: int) -> Path:
        """File of a shard before it moves into the corpus folder."""
        return self.path / f"shard-{number:05d}.h5"

    def finish_piece(self, span: Span, outcome: Outcome) -> None:
        """Mark a piece as finished."""
        write_json(self._piece_mark(span), _outcome_json(outcome))

    def finish_shard(self, number: int, outcome: Outcome, record: ShardRecord | None) -> None:
        """Mark a shard as finished; ``record`` is None where all its shapes were refused."""
        stored = _outcome_json(outcome) | {"record": asdict(record) if record else None}
        write_json(self._shard_mark(number), stored)

    def finished_pieces(self) -> list[Span]:
        """Every piece that is marked as finished, in any order; some may overlap."""
        marks = (_PIECE_MARK.fullmatch(path.name) for path in self.path.glob("piece-*.json"))
        return [Span(int(mark[1]), int(mark[2])) for mark in marks if mark]

    def piece_outcome(self, span: Span) -> Outcome | None:
        """The outcome of a piece; None until it is finished."""
        return _outcome(self._piece_mark(span))

    def shard_outcome(self, number: int) -> Outcome | None:
        """The outcome of a shard; None until it is finished, or where its file is missing or has another size."""
        outcome = _outcome(self._shard_mark(number))
        if outcome is None or outcome.kept == 0:
            return outcome
        record = self.shard_record(number)
        try:
            whole = record is None or (self.corpus / record.file).stat().st_size == record.bytes
        except FileNotFoundError:
            whole = False
        return outcome if whole else None

    def shard_record(self, number: int) -> ShardRecord | None:
        """The manifest's record of a finished shard; None if all its shapes were refused."""
        return read_record(self._shard_mark(number), _Mark).record

    def remove_pieces(self, spans: Sequence[Span]) -> None:
        """Delete the pieces of a finished shard."""
        for span in spans:
            self.piece(span).unlink(missing_ok=True)
            self._piece_mark(span).unlink(missing_ok=True)

    def _piece_mark(self, span: Span) -> Path:
        return self.piece(span).with_suffix(".json")

    def _shard_mark(self, number: int) -> Path:
        return self.shard(number).with_suffix(".json")


@contextmanager
def locked(corpus: Path) -> Iterator[None]:
    """Keep other builds out of a corpus while the block runs; the lock ends with the process at the latest.

    Makes the folder ``.building``, and removes it afterwards if it holds nothing but the lock.

    Raises:
        CorpusError: if another process holds the lock, or the folder cannot be made.
    """
    folder = corpus / BUILDING_NAME
    check_own_folder(folder)
    busy = CorpusError(
        f"{corpus}: another process is building this corpus; wait for it or choose another"
    )
    with hold_lock(folder / LOCK_NAME, busy, partial(_make_folder, corpus)):
        try:
            yield
        finally:
            # Deleted while the lock is held: a process that has the file open notices that, and makes a new one.
            if folder.is_dir() and {path.name for path in folder.iterdir()} == {LOCK_NAME}:
                (folder / LOCK_NAME).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # where it is not empty
        folder.rmdir()


def _make_folder(corpus: Path) -> None:
    try:
        (corpus / BUILDING_NAME).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{corpus}: cannot be made ({error.strerror}); choose another folder for the corpus"
        raise CorpusError(msg) from error


@contextmanager
def unfinished_build(
    corpus: Path, settings: Mapping[str, Any], *, grows: bool = False
) -> Iterator[BuildFolder]:
    """Begin a build in ``corpus``, or continue the one that was begun there with the same settings.

    Args:
        corpus: a new or empty folder, or one with an unfinished build.
        settings: everything that decides what the corpus will hold, as JSON values.
        grows: the folder may also hold a finished corpus.

    Raises:
        CorpusError: if the folder holds something else, a build with other settings, or one that another
            process is working on.
    """
    build = BuildFolder(corpus)
    if not (grows and (corpus / MANIFEST_NAME).is_file()):
        _refuse_foreign(corpus)
    with locked(corpus):
        plan = build.path / PLAN_NAME
        if plan.is_file():
            begun = read_json(plan)
            with refusing_damage(plan, advice="remove the folder it is in", error=CorpusError):
                different = differences(begun, settings)
                moved = bool(different) and same_but_for_files(begun, settings)
            if different:
                msg = (
                    f"{corpus}: holds an unfinished build with other settings ({different}); finish it "
                    f"with those, remove the folder, or choose another output folder"
                )
                if moved:
                    msg = (
                        f"{corpus}: holds an unfinished build, and the source's files have changed since it was "
                        "begun; choose another output folder, or remove this one"
                    )
                raise CorpusError(msg, settings=("output",))
        else:
            write_json(plan, settings)
        # Workers of a killed build may still be joining pieces, and removing them; they end with what they do now.
        wait_until_free(build.at_work, _ORPHANS_SECONDS)
        # Half-written files of a killed build; in the corpus itself that can be the list of refused shapes. A
        # worker that has outlived the build may be about to rename its last one.
        for leftover in (*build.path.glob(".*.part*"), *corpus.glob(".*.part*")):
            leftover.unlink(missing_ok=True)
        yield build


def remove_build(corpus: Path) -> None:
    """Delete the files of an unfinished build; the corpus itself and a begun retry stay.

    The caller holds the lock; the folder is removed when the lock is released.
    """
    if retry_is_begun(corpus):
        return
    for path in (corpus / BUILDING_NAME).iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK_NAME:
            with contextlib.suppress(OSError):
                path.unlink()


def remove_idle_build(corpus: Path, *, unless: Callable[[], bool] = lambda: False) -> None:
    """Delete what a build left behind in a finished corpus, unless another process is working there.

    Args:
        corpus: the finished corpus.
        unless: called under the lock; if it returns True, nothing is deleted.
    """
    if not (corpus / BUILDING_NAME).is_dir():
        return
    # Another process holds the lock, or we may not write to the corpus.
    with contextlib.suppress(CorpusError, OSError), locked(corpus):
        if not unless():
            remove_build(corpus)


def retry_is_begun(corpus: Path) -> bool:
    """Whether a retry of this very corpus is under way, or was until it was stopped."""
    base, manifest = corpus / BUILDING_NAME / RETRY_NAME / BASE_NAME, corpus / MANIFEST_NAME
    if not (base.is_file() and manifest.is_file()):
        return False
    return bool(read_json(base) == sha256_of(manifest))


def shard_name(source: str, number: int) -> str:
    """File name of a source's shard.

    Raises:
        CorpusError: if the source's name would lead out of the corpus folder.
    """
    check_source_name(source)
    return f"{source}-{number:05d}.h5"


def differences(
    old_settings: Mapping[str, Any], new_settings: Mapping[str, Any], prefix: str = ""
) -> str:
    """Which settings differ, as ``points: 2048 then, 1024 now``; empty if none does."""
    lines = []
    # Compared as JSON, because a stored tuple comes back as a list.
    old_settings, new_settings = json.loads(json.dumps([old_settings, new_settings]))
    for key in sorted(old_settings.keys() | new_settings.keys()):
        old, new = old_settings.get(key), new_settings.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            inner = differences(old, new, f"{prefix}{key}.")
            lines += [inner] if inner else []
        elif old != new:
            lines.append(f"{prefix}{key}: {_short(old)} then, {_short(new)} now")
    return "; ".join(lines)


def same_but_for_files(old_settings: Mapping[str, Any], new_settings: Mapping[str, Any]) -> bool:
    """Whether the settings of two builds differ only in the source's files and what follows from them."""
    if "source" not in old_settings or "source" not in new_settings:
        return False
    file_facts = {"archive_sha256": None, "labels": None}
    old, new = (
        {**settings, "source": {**settings["source"], **file_facts}, "division": None}
        for settings in (old_settings, new_settings)
    )
    changed = old_settings["source"]["archive_sha256"] != new_settings["source"]["archive_sha256"]
    return changed and not differences(old, new)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    refused = [
        {"id": refusal.id, "cause": refusal.cause, "backstop": refusal.retryable_failure}
        for refusal in outcome.refused
    ]
    stored = {"kept": outcome.kept, "refused": refused}
    return stored | {"left_out": to_plain(outcome.left_out)} if outcome.left_out.files else stored


@dataclass(frozen=True, kw_only=True, slots=True)
class _Mark:
    """The file that marks a piece or a shard as finished."""

    kept: int
    refused: tuple[Mapping[str, Any], ...]
    record: ShardRecord | None = None
    left_out: LeftOut = field(default_factory=LeftOut)

    def __post_init__(self) -> None:
        if self.kept < 0:
            msg = f"kept must not be negative, got {self.kept}"
            raise ConfigError(msg)
        if self.record is not None:
            check_record(self.record)


def _outcome(mark: Path) -> Outcome | None:
    with refusing_damage(mark):
        try:
            stored = read_record(mark, _Mark)
        except DataError as error:
            # Not asked for beforehand: another host may remove it between the question and the reading.
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        refused = [
            from_plain(Refusal, with_field_names(one), partial=True) for one in stored.refused
        ]
    return Outcome(kept=stored.kept, refused=tuple(refused), left_out=stored.left_out)


def _refuse_foreign(corpus: Path) -> None:
    """Raise if the folder holds files of something else, which a build must not mix with."""
    if not corpus.exists():
        return
    if not corpus.is_dir():
        msg = f"{corpus}: is a file; choose another name for the corpus"
        raise CorpusError(msg)
    if (corpus / BUILDING_NAME).is_dir() or not any(corpus.iterdir()):
        return
    msg = (
        f"{corpus}: holds other files and no {MANIFEST_NAME}; choose another folder for the corpus"
    )
    raise CorpusError(msg)
