"""What is remembered in a working folder: what was made there last, and checksums of large files.

``.pointdistill/workspace.json`` names the last corpus, run, stand-ins and embedding, so that the next command
needs no path. ``.pointdistill/checksums.json`` caches the SHA-256 of large files, with the size, times and
identity that each file had, so that an archive of many gigabytes is read once and not at every call. Both are a
convenience: what is missing, moved or unreadable counts as never noted, and if a file cannot be written, nothing
is remembered.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from pointdistill.data.files.files import read_json, sha256_of, write_json
from pointdistill.errors import CheckpointError, DataError

WORKSPACE_NAME = Path(".pointdistill", "workspace.json")
CHECKSUMS_NAME = WORKSPACE_NAME.with_name("checksums.json")

REMEMBERED_BYTES = 64 * 2**20
"""Size from which a file's checksum is cached; that of a smaller file takes a tenth of a second."""

# The coarsest time stamps of a file system: a change within this time of the last one may leave no trace.
_SETTLED_SECONDS = 2.0

_CORPUS = "corpus"
_RUN = "run"
_STAND_INS = "stand_ins"
_EMBEDDING = "embedding"
_EMBEDDINGS = "embeddings"
_EARLIER_EMBEDDINGS = "earlier_embeddings"

_MOST_EARLIER = 50
"""Most embeddings to remember besides the last one."""

_disabled: ContextVar[bool] = ContextVar("checksums disabled", default=False)


def remember_corpus(path: Path, *, folder: Path = Path()) -> None:
    """Note the corpus that was made last in ``folder``, the current one unless given."""
    _remember(folder, {_CORPUS: _portable_path(path, folder)})


def last_corpus(*, folder: Path = Path()) -> Path | None:
    """The corpus that was made last in ``folder``; None if there is none or it is gone."""
    return _existing_path(_read(folder).get(_CORPUS), folder)


def remember_run(path: Path, *, folder: Path = Path()) -> None:
    """Note the run that was started or resumed last in ``folder``."""
    _remember(folder, {_RUN: _portable_path(path, folder)})


def last_run(*, folder: Path = Path()) -> Path | None:
    """The run that was started or resumed last in ``folder``; None if there is none or it is gone."""
    return _existing_path(_read(folder).get(_RUN), folder)


def lost_run(*, folder: Path = Path()) -> str | None:
    """The run that `last_run` would have found if it were still there, as it was noted; else None."""
    noted = _read(folder).get(_RUN)
    is_lost = isinstance(noted, str) and noted and _existing_path(noted, folder) is None
    return noted if is_lost else None


def why_no_run(*, folder: Path = Path()) -> str:
    """Why `last_run` finds none, for a message."""
    lost = lost_run(folder=folder)
    return (
        f"{lost}, the last run made in this folder, is gone"
        if lost
        else "no run was made in this folder yet"
    )


def given_or_last_run(
    encoder: Path | str | None,
    *,
    folder: Path = Path(),
    what: str = "an encoder",
    settings: tuple[str, ...] = ("encoder",),
) -> Path | str:
    """What a user named, or the last run made in ``folder``.

    Args:
        encoder: what was named; None for nothing.
        folder: where the last run is looked for.
        what: what could be named, for the message.
        settings: parameters that name it.

    Raises:
        CheckpointError: if nothing was named and no run was made, or the last one is gone.
    """
    source = encoder or last_run(folder=folder)
    if source is None:
        msg = f"{why_no_run(folder=folder)}; run `pointdistill pretrain`, or name {what}"
        raise CheckpointError(msg, settings=settings)
    return source


def remember_stand_in(benchmark: str, path: Path, *, folder: Path = Path()) -> None:
    """Note the archive that stands in for a benchmark in ``folder``."""
    known = _stand_ins(folder)
    _remember(folder, {_STAND_INS: known | {benchmark: _portable_path(path, folder)}})


def last_stand_in(benchmark: str, *, folder: Path = Path()) -> Path | None:
    """The archive that stands in for a benchmark; None if there is none or it is gone."""
    return _existing_path(_stand_ins(folder).get(benchmark), folder)


def remember_embedding(output: Path, inputs: Sequence[Path], *, folder: Path = Path()) -> None:
    """Note the embedding that was made last in ``folder``, and the inputs it was made from."""
    output_name = _portable_path(output, folder)
    stored = _read(folder)
    earlier = stored.get(_EMBEDDINGS)
    others = [name for name in [stored.get(_EMBEDDING), *_earlier(stored)] if name != output_name]
    by_input = {str(path.resolve()): output_name for path in inputs}
    _remember(
        folder,
        {
            _EMBEDDING: output_name,
            _EARLIER_EMBEDDINGS: [name for name in others if name][:_MOST_EARLIER],
            _EMBEDDINGS: (earlier if isinstance(earlier, dict) else {}) | by_input,
        },
    )


def last_embedding(source: Path | None = None, *, folder: Path = Path()) -> Path | None:
    """The embedding that was made last in ``folder``, or made last from ``source``; None if there is none."""
    stored = _read(folder)
    if source is None:
        return _existing_path(stored.get(_EMBEDDING), folder)
    known = stored.get(_EMBEDDINGS)
    return (
        _existing_path(known.get(str(source.resolve())), folder)
        if isinstance(known, dict)
        else None
    )


def embedded_inputs(*, folder: Path = Path()) -> frozenset[Path]:
    """Every path, resolved, of which an embedding was made in ``folder``."""
    known = _read(folder).get(_EMBEDDINGS)
    return frozenset(map(Path, known)) if isinstance(known, dict) else frozenset()


def lost_embedding(
    source: Path | None = None, *, folder: Path = Path()
) -> tuple[str, Path | None] | None:
    """What `last_embedding` would have found if it were still there.

    Returns:
        Its path as it was noted, and the newest other embedding made in ``folder`` that still exists; None if none
        was ever made, or it is there.
    """
    stored = _read(folder)
    known = stored.get(_EMBEDDINGS)
    by_source = known if isinstance(known, dict) else {}
    noted = stored.get(_EMBEDDING) if source is None else by_source.get(str(source.resolve()))
    if not isinstance(noted, str) or _existing_path(noted, folder) is not None:
        return None
    others = [stored.get(_EMBEDDING), *_earlier(stored), *reversed(by_source.values())]
    found = (_existing_path(name, folder) for name in others)
    return noted, next((path for path in found if path is not None), None)


def check_not_lost(source: Path | None = None, *, folder: Path = Path()) -> None:
    """Check that the embedding that `last_embedding` looks for was not deleted or moved.

    Raises:
        DataError: if it was; names it, and the newest other one.
    """
    lost = lost_embedding(source, folder=folder)
    if lost is not None:
        name, other = lost
        made = "the last embedding made in this folder" if source is None else f"made of {source}"
        advice = (
            f"name {other}, the newest other one," if other else "run `pointdistill embed` again"
        )
        msg = f"{name}, {made}, is gone; {advice} or name the file where it is now"
        raise DataError(msg, settings=("index",))


def _earlier(stored: dict[str, Any]) -> list[Any]:
    names = stored.get(_EARLIER_EMBEDDINGS)
    return names if isinstance(names, list) else []


def _stand_ins(folder: Path) -> dict[str, Any]:
    known = _read(folder).get(_STAND_INS)
    return known if isinstance(known, dict) else {}


def _read(folder: Path) -> dict[str, Any]:
    try:
        stored = read_json(folder / WORKSPACE_NAME, any_text=True)
    except DataError:
        return {}
    return stored if isinstance(stored, dict) else {}


def _remember(folder: Path, entries: dict[str, Any]) -> None:
    # DataError: a folder, a pipe or a broken link has the file's name.
    with contextlib.suppress(OSError, DataError):
        write_json(folder / WORKSPACE_NAME, _read(folder) | entries, any_text=True)


def _portable_path(path: Path, folder: Path) -> str:
    """Relative if it lies in the folder, so that the folder can be moved; otherwise absolute."""
    whole, base = path.resolve(), folder.resolve()
    return whole.relative_to(base).as_posix() if whole.is_relative_to(base) else str(whole)


def _existing_path(stored: object, folder: Path) -> Path | None:
    """The path that was noted, if it still exists."""
    if not isinstance(stored, str) or not stored:
        return None
    path = folder / stored
    try:
        return path if path.exists() else None
    except (OSError, ValueError):  # a name that no file system takes
        return None


@contextlib.contextmanager
def without_checksums() -> Iterator[None]:
    """Within this context `file_checksum` reads nothing and returns an empty string: a plan records none."""
    token = _disabled.set(True)
    try:
        yield
    finally:
        _disabled.reset(token)


def file_checksum(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, computed again only if anything about the file has changed."""
    return "" if _disabled.get() else _checksum_of(path.resolve(), _state(path))


def _state(path: Path) -> tuple[int, ...]:
    """Size, times and identity of a file; among them ctime, which no program can set back."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


@functools.lru_cache(maxsize=64)
def _checksum_of(path: Path, state: tuple[int, ...]) -> str:
    """The checksum of a file in this state; kept in memory too, because forty folds are read from one archive."""
    if state[0] < REMEMBERED_BYTES:
        return sha256_of(path)
    match _cached().get(str(path)):
        case {"state": known, "sha256": str(checksum)} if known == list(state):
            return checksum
    settled = time.time() - max(state[1:3]) / 1e9 > _SETTLED_SECONDS
    checksum = sha256_of(path)
    if settled and _state(path) == state:
        noted = _cached() | {str(path): {"state": state, "sha256": checksum}}
        with contextlib.suppress(OSError, DataError):
            write_json(CHECKSUMS_NAME, noted, any_text=True)
    return checksum


def _cached() -> dict[str, Any]:
    try:
        stored = read_json(CHECKSUMS_NAME, any_text=True)
    except DataError:
        return {}
    return stored if isinstance(stored, dict) else {}
