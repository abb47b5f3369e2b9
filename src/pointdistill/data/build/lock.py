"""A lock that lets one process at a time work in a corpus folder."""

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
    """Keep other builds out of a corpus while the block runs; the lock ends with the process at the latest.

    Makes the folder ``.building``, and removes it afterwards if it holds nothing but the lock.

    Raises:
        CorpusError: if another process holds the lock, or the folder cannot be made.
    """
    folder = corpus / BUILDING_NAME
    with _held(corpus):
        try:
            yield
        finally:
            # Deleted while held: a process that has it open already notices, and makes a new one.
            if folder.is_dir() and {path.name for path in folder.iterdir()} == {LOCK_NAME}:
                (folder / LOCK_NAME).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # where it is not empty
        folder.rmdir()


@contextlib.contextmanager
def _held(corpus: Path) -> Iterator[None]:
    """Hold the lock file of a corpus, under the name by which other processes look for it."""
    _make_folder(corpus)
    if importlib.util.find_spec("fcntl") is None:
        # Windows, where it is up to the user not to run two builds at a time.
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
            _acquire(file, corpus)
            if _has_name(file, lock):
                yield
                return


def _make_folder(corpus: Path) -> None:
    try:
        (corpus / BUILDING_NAME).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{corpus}: cannot be made ({error.strerror}); choose another folder for the corpus"
        raise CorpusError(msg) from error


def _acquire(file: IO[str], corpus: Path) -> None:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        msg = f"{corpus}: another process is building this corpus; wait for it or choose another"
        raise CorpusError(msg) from error
    except OSError:
        # Some network file systems have no locks. A second build writes the same bytes, so it does no harm.
        pass


def _has_name(file: IO[str], path: Path) -> bool:
    """Whether an open file is still the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
