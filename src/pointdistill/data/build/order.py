"""The work on a source, written down for workers on other hosts, and how these do it.

It lies in the build's own folder, so a host that can read it there shares the folder with the others.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import os
import pickle
import platform
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pointdistill.data.build.limits import ShapeLimits
from pointdistill.data.build.state import Outcome
from pointdistill.data.build.tasks import BuildJob, BuildTask, JoinTask
from pointdistill.errors import DataError

SEEN_SECONDS = 90.0
"""How long a file that another host wrote may stay unseen: network file systems keep lists for a minute."""

_NAME = "cluster-{}.job"


@dataclass(frozen=True, slots=True)
class Order:
    """Where the work on a source lies, and what a host must have for it; sent with every task."""

    path: Path
    sha256: str
    python: str
    version: str
    """Of this program."""

    inputs: tuple[tuple[Path, int | None], ...]
    """Files with their bytes, and folders without, that the source reads."""

    limits: ShapeLimits

    def problem(self) -> str | None:
        """Why this host cannot work on it, in one line that names the host; None if it can."""
        here = f"{platform.node()} (process {os.getpid()})"
        for name, asked, found in (
            ("pointdistill", self.version, program_version()),
            ("Python", self.python, python_version()),
        ):
            if found != asked:
                return f"{here} has {name} {found}, this program {asked}; install the same there"
        for path, size in ((self.path.parent, None), (self.path, None), *self.inputs):
            try:
                found_size = path.stat().st_size
            except OSError as error:
                return (
                    f"{here} cannot read {path} ({error.strerror}); corpus and archives must lie on a file "
                    f"system that all hosts share, under the same paths"
                )
            if size not in (None, found_size):
                return f"{here} has another file as {path} ({found_size:,} bytes, not {size:,})"
        return None


class _Unpacker(pickle.Unpickler):
    """Reads the driver's own pickle, whose checksum came with the task; paths are stored as text."""

    def persistent_load(self, identity: str) -> Path:
        return Path(identity)


@functools.cache
def _job_of(order: Order) -> BuildJob:
    """The work, read once in a process.

    Raises:
        DataError: if this host cannot do it.
    """
    problem = order.problem()
    if problem:
        raise DataError(problem)
    content = order.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != order.sha256:
        msg = f"{order.path}: changed since the build began; run the same again"
        raise DataError(msg)
    return cast("BuildJob", _Unpacker(io.BytesIO(content)).load())


def python_version() -> str:
    """Python's version without the patch, which changes no result."""
    return ".".join(platform.python_version_tuple()[:2])


def program_version() -> str:
    """This program's version."""
    from pointdistill import __version__

    return __version__


@dataclass(frozen=True, slots=True)
class OrderedJob:
    """The job of an order, done once: another host may have done the task, or be doing it still.

    A worker that has lost its scheduler for a while is taken for dead, and works on. What it writes is the
    same and whole, so it is enough not to stumble over it.
    """

    order: Order

    def __call__(self, task: BuildTask, started: Callable[[int], None]) -> Outcome:
        """Do one task, see `BuildJob`.

        Raises:
            DataError: if this host cannot, or does not see what other hosts wrote.
        """
        job = _job_of(self.order)
        if not self.order.path.exists():
            msg = f"{self.order.path.parent}: the build was stopped"
            raise DataError(msg)
        if not isinstance(task, JoinTask):
            return job.folder.piece_outcome(task.span) or job(task, started)
        until = time.monotonic() + SEEN_SECONDS
        while True:
            outcome = job.folder.shard_outcome(task.shard)
            if outcome is not None:
                return outcome
            # The other host was faster, and has taken the pieces away.
            with contextlib.suppress(FileNotFoundError):
                if all(job.folder.piece_outcome(span) for span in task.pieces):
                    return job(task, started)
            if time.monotonic() > until:
                msg = (
                    f"{platform.node()} does not see in {job.folder.path} what other hosts wrote "
                    f"{SEEN_SECONDS:.0f} s ago; look at that mount, and run the same again to go on"
                )
                raise DataError(msg)
            time.sleep(0.5)


def place_order(job: BuildJob, limits: ShapeLimits) -> Order:
    """Write the job where workers read it, and remove those of builds that were killed."""
    folder = job.folder.path.absolute()
    for leftover in folder.glob(_NAME.format("*")):
        leftover.unlink()
    content, paths = _packed(job)
    path = folder / _NAME.format(secrets.token_hex(8))
    path.write_bytes(content)
    inputs = tuple(
        (given, given.stat().st_size if given.is_file() else None)
        for given in sorted(paths)
        if given.exists()
    )
    return Order(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        python=python_version(),
        version=program_version(),
        inputs=inputs,
        limits=limits,
    )


def _packed(job: BuildJob) -> tuple[bytes, set[Path]]:
    """The pickled job with every path made absolute, and these paths."""
    cloudpickle: Any = importlib.import_module("cloudpickle")
    paths: set[Path] = set()

    # Like dask, it takes a class of the user's own script along, which workers cannot import.
    class Packer(cloudpickle.Pickler):  # type: ignore[misc]
        def persistent_id(self, value: Any) -> str | None:
            if not isinstance(value, Path):
                return None
            paths.add(value.absolute())
            return str(value.absolute())

    stream = io.BytesIO()
    Packer(stream).dump(job)
    return stream.getvalue(), paths
