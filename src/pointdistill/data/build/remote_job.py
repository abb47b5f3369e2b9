"""The work on one source, published as a file for workers on other hosts, and how those run it.

The file is in the build's own folder: a host that can read it there shares the folder with the other hosts.
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
from pointdistill.version import __version__

SEEN_SECONDS = 90.0
"""How long to wait for a file that another host wrote: network file systems cache directories for a minute."""

_NAME = "cluster-{}.job"


@dataclass(frozen=True, slots=True)
class RemoteJob:
    """Where the published work on a source is, and what a host needs to run it; sent with every task."""

    path: Path
    sha256: str
    python: str
    version: str
    """Version of this program."""

    inputs: tuple[tuple[Path, int | None], ...]
    """What the source reads: files with their size in bytes, folders with None."""

    limits: ShapeLimits

    def problem(self) -> str | None:
        """Why this host cannot run the job, in one line that names the host; None if it can."""
        here = f"{platform.node()} (process {os.getpid()})"
        for name, expected, found in (
            ("pointdistill", self.version, program_version()),
            ("Python", self.python, python_version()),
        ):
            if found != expected:
                return f"{here} has {name} {found}, this program {expected}; install the same there"
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
def _load_job(remote: RemoteJob) -> BuildJob:
    """The work itself, read once per process.

    Raises:
        DataError: if this host cannot do it.
    """
    problem = remote.problem()
    if problem:
        raise DataError(problem)
    content = remote.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != remote.sha256:
        msg = f"{remote.path}: changed since the build began; run the same again"
        raise DataError(msg)
    return cast("BuildJob", _Unpacker(io.BytesIO(content)).load())


def python_version() -> str:
    """Python's version without the patch number, which does not affect results."""
    return ".".join(platform.python_version_tuple()[:2])


def program_version() -> str:
    """This program's version."""
    return __version__


@dataclass(frozen=True, slots=True)
class RemoteJobRunner:
    """Runs the tasks of a published job, although another host may have run the same task, or be running it now.

    A worker that loses its scheduler for a while counts as dead, yet goes on working. The files that it writes are
    complete and the same, so it is enough that nobody trips over them.
    """

    remote: RemoteJob

    def __call__(self, task: BuildTask, started: Callable[[int], None]) -> Outcome:
        """Run one task, see `BuildJob`.

        Raises:
            DataError: if this host cannot run it, or does not see what other hosts wrote.
        """
        job = _load_job(self.remote)
        if not self.remote.path.exists():
            msg = f"{self.remote.path.parent}: the build was stopped"
            raise DataError(msg)
        if not isinstance(task, JoinTask):
            return job.folder.piece_outcome(task.span) or job(task, started)
        until = time.monotonic() + SEEN_SECONDS
        while True:
            outcome = job.folder.shard_outcome(task.shard)
            if outcome is not None:
                return outcome
            # Another host was faster and has removed the pieces.
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


def publish_job(job: BuildJob, limits: ShapeLimits) -> RemoteJob:
    """Write the job where workers read it; remove job files that killed builds left behind."""
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
    return RemoteJob(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        python=python_version(),
        version=program_version(),
        inputs=inputs,
        limits=limits,
    )


def _packed(job: BuildJob) -> tuple[bytes, set[Path]]:
    """The pickled job with every path made absolute, and those paths."""
    cloudpickle: Any = importlib.import_module("cloudpickle")
    paths: set[Path] = set()

    # cloudpickle, as in dask, includes classes from the user's own script, which workers cannot import.
    class Packer(cloudpickle.Pickler):  # type: ignore[misc]
        def persistent_id(self, value: Any) -> str | None:
            if not isinstance(value, Path):
                return None
            paths.add(value.absolute())
            return str(value.absolute())

    stream = io.BytesIO()
    Packer(stream).dump(job)
    return stream.getvalue(), paths
