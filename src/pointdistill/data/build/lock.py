"""One process at a time works in a corpus folder."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pointdistill.data.corpus.manifest import BUILDING_NAME
from pointdistill.errors import CorpusError

LOCK_NAME = "lock"


@contextlib.contextmanager
def locked(corpus: Path) -> Iterator[None]:
    """Keep a second build out of a corpus, whose ``.building`` is made; the lock ends with the process.

    Where that folder holds nothing but the lock in the end, it is removed.

    Raises:
        CorpusError: if another process has the lock, or the folder cannot be made.
    """
    folder = corpus / BUILDING_NAME
    with _opened(corpus):
        try:
            yield
        finally:
            # While it is held: who has opened it already sees that it is gone, and makes a new one.
            if folder.is_dir() and {path.name for path in folder.iterdir()} == {LOCK_NAME}:
                (folder / LOCK_NAME).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # where it is not empty
        folder.rmdir()


@contextlib.contextmanager
def _opened(corpus: Path) -> Iterator[None]:
    """Have the lock of a corpus, at the place where others look for it."""
    _make_folder(corpus)
    if (
        importlib.util.find_spec("fcntl") is None
    ):  # Windows, where two builds at a time are up to the user
        yield
        return
    lock = corpus / BUILDING_NAME / LOCK_NAME
    while True:
        try:
            file = lock.open("a")
        except FileNotFoundError:  # another process has just removed the folder
            _make_folder(corpus)
            continue
        with file:
            _take(file, corpus)
            if _is_at(file, lock):
                yield
                return


def _make_folder(corpus: Path) -> None:
    try:
        (corpus / BUILDING_NAME).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{corpus}: cannot be made ({error.strerror}); choose another folder for the corpus"
        raise CorpusError(msg) from error


def _take(file: IO[str], corpus: Path) -> None:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        msg = f"{corpus}: another process is building this corpus; wait for it or choose another"
        raise CorpusError(msg) from error
    except OSError:
        # Some network file systems have no locks; determinism makes a second build harmless.
        pass


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
