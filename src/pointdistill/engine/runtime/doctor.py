"""Reports what this machine has, and what would prevent a run on it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import platform
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from pointdistill.data.files.files import check_folders_can_be_renamed
from pointdistill.data.files.processes import usable_cores
from pointdistill.data.files.workspace import last_corpus, last_run, lost_run
from pointdistill.engine.runtime.devices import (
    bf16_failure,
    check_launch_variables,
    launch_variables,
)
from pointdistill.errors import ConfigError, DataError
from pointdistill.reporter import plural
from pointdistill.version import __version__

LOW_DISK_GIB = 2.0
"""The builtin corpus takes 1 GiB, a small run's checkpoints 0.5 GiB."""


@dataclass(frozen=True, slots=True)
class Report:
    """The state of a machine, as lines to print in order."""

    facts: list[tuple[str, str]]
    problems: list[str]
    """What would prevent a run."""

    remarks: list[str]
    """What would only slow a run down, or is missing."""


def examine() -> Report:
    """Examine Python, packages, devices, and the disk and workspace of the current folder."""
    folder = Path.cwd()
    problems: list[str] = []
    remarks: list[str] = []
    facts = [
        ("pointdistill", __version__),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
    ]
    facts += _packages(problems)
    facts += _devices(remarks)
    facts += _disk(folder, problems, remarks)
    facts += _environment(problems, remarks)
    corpus, run = last_corpus(), last_run()
    facts.append(
        ("last corpus", str(corpus) if corpus else "none yet: `pointdistill prepare-data`")
    )
    none = f"{lost}, which is gone" if (lost := lost_run()) else "none yet: `pointdistill pretrain`"
    facts.append(("last run", str(run or none)))
    return Report(facts, problems, remarks)


def _packages(problems: list[str]) -> list[tuple[str, str]]:
    """Versions of the packages that this package's metadata requires."""
    try:
        requirements = importlib.metadata.requires("pointdistill") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
        problems.append(
            "pointdistill is not installed as a package; run `pip install .` in its checkout"
        )
    versions = []
    for requirement in requirements:
        if "extra ==" in requirement:
            continue
        name = re.split(r"[\s;<>=!~\[(]", requirement, maxsplit=1)[0]
        try:
            versions.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            versions.append((name, "MISSING"))
            problems.append(f"{name} is missing; run `pip install '{requirement}'`")
    return versions


def _devices(remarks: list[str]) -> list[tuple[str, str]]:
    threads = plural(torch.get_num_threads(), "thread")
    facts = [("cpu", f"{plural(usable_cores(), 'core')}, torch uses {threads}")]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(number)
            facts.append((f"gpu {number}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"))
    else:
        facts.append(("gpu", "none that torch can use"))
        failure = bf16_failure()
        facts.append(("bf16 on the cpu", f"does not work: {failure}" if failure else "works"))
        remarks.append(
            "without a GPU only the tiny size trains in minutes; small takes weeks on a CPU"
        )
    return facts


def _disk(folder: Path, problems: list[str], remarks: list[str]) -> list[tuple[str, str]]:
    free = shutil.disk_usage(folder).free / 2**30
    if free < LOW_DISK_GIB:
        remarks.append(f"{free:.1f} GiB free in {folder}; the builtin corpus alone takes 1 GiB")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        check_folders_can_be_renamed(folder)
    except OSError as error:
        problems.append(f"{folder} cannot be written to ({error.strerror}); work in another folder")
    except DataError as error:
        problems.append(str(error))
    return [("disk", f"{free:.0f} GiB free in {folder}"), ("file locks", _locks(folder, remarks))]


def _locks(folder: Path, remarks: list[str]) -> str:
    """Whether files can be locked in a folder."""
    if importlib.util.find_spec("fcntl") is None:
        return "none on this system"
    import fcntl

    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            remarks.append(f"{folder}: no file locks; let one process at a time work there")
            return f"none in {folder} ({error.strerror})"
        return "work"
    return "not tried"


def _environment(problems: list[str], remarks: list[str]) -> list[tuple[str, str]]:
    """Variables of other programs that change what this one does."""
    facts = []
    if found := launch_variables():
        facts.append(("launcher", " ".join(f"{name}={value}" for name, value in found.items())))
        try:
            check_launch_variables()
        except ConfigError as error:
            problems.append(str(error))
        else:
            if found.get("WORLD_SIZE", "1") != "1":
                remarks.append(
                    f"pretrain waits for {found['WORLD_SIZE']} processes; to train alone, unset {' '.join(found)}"
                )
    return facts
