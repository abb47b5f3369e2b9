"""Which sources of the mixture a folder holds, which of them go in, and which of their shapes are left out.

Some sources contain the test shapes of a benchmark under the same ids. Those are found in the benchmark's own list
and left out on request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pointdistill.data.benchmarks.lvis import ANNOTATION_NAME, annotated_uids
from pointdistill.data.benchmarks.shapenetpart import ARCHIVE_STEM
from pointdistill.data.corpus.manifest import COMMERCIAL_ONLY, SourceFacts
from pointdistill.data.files.archive import open_archive
from pointdistill.data.files.files import sha256_of
from pointdistill.data.files.packed_tars import tar_names
from pointdistill.data.files.schema import parse_json
from pointdistill.data.sources import (
    SOURCES,
    Source,
    SourceInfo,
    SourceRequest,
    open_source,
    source_info,
)
from pointdistill.data.sources.base import Entry, SourceCloud, find_archives
from pointdistill.errors import ConfigError, DataError

_PART_LIST = "shuffled_test_file_list.json"

_WHOLE_OBJAVERSE = "objaverse"
_CLOUDS_OF_OBJAVERSE = "objaverse-cap3d"
_ONLY_BY_NAME = "objaverse-xl-cap3d"


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureRequest:
    """What goes into a mixture.

    Raises:
        ConfigError: if a source is unknown, is no archive, or has no test split to take.
    """

    archives: Path
    """Folder in which the archives lie."""

    sources: tuple[str, ...] = ()
    """Sources to take, all of which must be there; empty: whatever is there."""

    take_tests: tuple[str, ...] = ()
    """Sources made from a benchmark whose test split is taken in too."""

    exclude_all_tests: bool = False
    """Whether shapes of ShapeNetPart's test split and of LVIS are left out of the sources that hold them."""

    commercial_only: bool = False
    """Whether only sources go in whose licence allows commercial use of all of their shapes."""

    def __post_init__(self) -> None:
        for name in (*self.sources, *self.take_tests):
            if not source_info(name).files:
                known = ", ".join(info.name for info in mixture_sources())
                msg = f"{name} is no source of the mixture; it has {known}"
                raise ConfigError(msg)
        for name in self.take_tests:
            if not source_info(name).official_test:
                known = ", ".join(info.name for info in SOURCES if info.official_test)
                msg = f"{name} has no test split to take in; {known} have one"
                raise ConfigError(msg)
        if self.exclude_all_tests and self.take_tests:
            msg = f"test split of {', '.join(self.take_tests)}: both taken in and excluded; choose one"
            raise ConfigError(msg)
        for name in self.sources if self.commercial_only else ():
            reason = licence_obstacle(source_info(name))
            if reason:
                msg = f"{name}: {reason}; leave it out, or take in sources of any licence"
                raise ConfigError(msg, settings=("sources", "commercial_only"))


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceStatus:
    """Whether a source is there, and whether it goes into the mixture."""

    info: SourceInfo
    archives: tuple[Path, ...]
    """Its archives in the folder."""

    missing: tuple[str, ...]
    """Names of those that are not there."""

    exclusion_reason: str
    """Why it is not part of this mixture, whether it is there or not; empty if it is."""

    settings: tuple[str, ...] = ()
    """The settings that would take it in, where that is not obvious."""

    @property
    def complete(self) -> bool:
        """Whether all its archives are there."""
        return bool(self.archives) and not self.missing

    @property
    def taken(self) -> bool:
        """Whether it is there and goes in."""
        return self.complete and not self.exclusion_reason


def mixture_sources() -> tuple[SourceInfo, ...]:
    """The sources that come as archives of known names."""
    return tuple(info for info in SOURCES if info.files)


def licence_obstacle(info: SourceInfo) -> str:
    """Why a source must stay out of a corpus for commercial use, with its licence; empty if it need not."""
    if info.commercial:
        return ""
    if info.commercial is None:
        return f"not known to allow commercial use of all its shapes ({info.licence})"
    return f"allows no commercial use ({info.licence})"


def scan_sources(request: MixtureRequest) -> tuple[SourceStatus, ...]:
    """The status of each source; looks only at the names of files in the folder.

    Raises:
        DataError: if the folder does not exist.
    """
    if not request.archives.is_dir():
        msg = f"{request.archives}: no such folder; give the one that holds the archives"
        raise DataError(msg, settings=("archives",))
    archives = {info.name: find_archives(info, request.archives) for info in mixture_sources()}
    clouds = bool(archives[_CLOUDS_OF_OBJAVERSE][0]) and not archives[_WHOLE_OBJAVERSE][0]
    return tuple(
        SourceStatus(
            info=info,
            archives=archives[info.name][0],
            missing=archives[info.name][1],
            exclusion_reason=_exclusion_reason(info, request, only_clouds=clouds),
            settings=("sources",) if info.name == _ONLY_BY_NAME and not request.sources else (),
        )
        for info in mixture_sources()
    )


def open_taken(request: MixtureRequest) -> tuple[Source, ...]:
    """Open what goes in, sorted by recorded name; each archive is read once, for its checksum.

    Raises:
        DataError: if nothing is there, a source that was named is not, an archive is damaged, or a list of
            test shapes is missing.
    """
    statuses = scan_sources(request)
    lacking = [s for s in statuses if s.info.name in request.sources and not s.complete]
    if lacking:
        first = lacking[0].info
        msg = (
            f"{request.archives}: {', '.join(lacking[0].missing)} missing; {first.name} is {first.archive}, "
            f"from {first.origin} ({first.access})"
        )
        raise DataError(msg)
    taken = [open_one(request, status.info) for status in statuses if status.taken]
    if not taken and request.commercial_only:
        free = ", ".join(info.name for info in mixture_sources() if info.commercial)
        msg = (
            f"{request.archives}: holds no archive whose licence allows commercial use; put one of {free} there, "
            f"or take in sources of any licence"
        )
        raise DataError(msg, settings=("commercial_only",))
    if not taken:
        msg = (
            f"{request.archives}: holds none of the mixture's archives; its plan lists what they are called "
            f"and where they come from"
        )
        raise DataError(msg, settings=("plan",))
    return tuple(sorted(taken, key=lambda source: source.facts.name))


def open_one(request: MixtureRequest, info: SourceInfo) -> Source:
    """Open one source as the mixture takes it: with or without test shapes, marked if chosen by its licence.

    Raises:
        DataError: if its archive is damaged, or a list of test shapes is missing.
    """
    held_out = held_out_benchmark(info.name)
    left_out = None
    if held_out is not None and request.exclude_all_tests:
        left_out = find_list(held_out, request.archives)
    source_request = SourceRequest(
        path=request.archives, include_test=info.name in request.take_tests
    )
    source = open_source(info.name, source_request)
    choices: dict[str, Any] = {}
    if held_out is not None:
        choices["test_shapes"] = _test_shapes(held_out, left_out)
    if request.commercial_only:
        choices[COMMERCIAL_ONLY] = True
    return ChosenShapes(source, choices, left_out) if choices else source


def official_shapes(request: MixtureRequest, info: SourceInfo) -> int:
    """Shapes that the whole archive gives to this mixture; a list of test shapes may take some away."""
    tests = info.official_test if info.name in request.take_tests else 0
    return (info.official or 0) + tests


def _exclusion_reason(info: SourceInfo, request: MixtureRequest, *, only_clouds: bool) -> str:
    """Why a source stays out; ``only_clouds``: Objaverse is there as point clouds and not as meshes."""
    name = info.name
    obstacle = licence_obstacle(info) if request.commercial_only else ""
    if obstacle:
        return obstacle
    if request.sources:
        return "" if name in request.sources else "not requested"
    if name == _ONLY_BY_NAME:
        return "part of the mixture only where it is named"
    chosen, other = _WHOLE_OBJAVERSE, _CLOUDS_OF_OBJAVERSE
    if only_clouds:
        chosen, other = other, chosen
    return f"the same objects as {chosen}" if name == other else ""


@dataclass(frozen=True, slots=True)
class HeldOutList:
    """The test shapes of a benchmark."""

    benchmark: str
    ids: frozenset[str]
    """Last part of each shape's id: a model's hash or uid, the same in every version of the source."""

    sha256: str
    """SHA-256 of the list or of the annotation."""


@dataclass(frozen=True, slots=True)
class HeldOutBenchmark:
    """A benchmark whose test shapes some sources contain."""

    benchmark: str
    sources: tuple[str, ...]
    files: tuple[str, ...]
    """File names of its list, in the order in which they are tried."""

    origin: str
    read: Callable[[Path], tuple[frozenset[str], str]]
    """Reads ids and checksum from a file."""


class ChosenShapes:
    """A source as a mixture takes it, perhaps without the shapes of a list; its settings record the choices."""

    def __init__(
        self, source: Source, choices: Mapping[str, Any], left_out: HeldOutList | None
    ) -> None:
        """Wrap ``source``.

        Args:
            source: the whole source.
            choices: further settings of the source that the corpus records.
            left_out: the shapes to leave out; None for none.
        """
        settings = {**source.facts.settings, **choices}
        self.facts: SourceFacts = replace(source.facts, settings=settings)
        self._source = source
        self._ids = left_out.ids if left_out else frozenset()

    def entries(self) -> Sequence[Entry]:
        """The source's shapes that are not on the list."""
        entries = self._source.entries()
        return [entry for entry in entries if _last_part(entry.id) not in self._ids]

    def read(self, entry: Entry, count: int, *, rng: np.random.Generator) -> SourceCloud:
        """One shape's points; see `pointdistill.data.sources.base.Source`."""
        return self._source.read(entry, count, rng=rng)

    def __getstate__(self) -> dict[str, Any]:
        """Without the list, which a worker does not need."""
        return self.__dict__ | {"_ids": frozenset()}


def _test_shapes(held_out: HeldOutBenchmark, left_out: HeldOutList | None) -> dict[str, Any]:
    """What a corpus records of a benchmark's test shapes in one of its sources."""
    recorded: dict[str, Any] = {
        "benchmark": held_out.benchmark,
        "left_out": left_out is not None,
    }
    if left_out is not None:
        recorded |= {"listed": len(left_out.ids), "list_sha256": left_out.sha256}
    return recorded


def held_out_benchmark(source: str) -> HeldOutBenchmark | None:
    """The benchmark whose test shapes a source contains under the same ids; None if there is none."""
    return next((row for row in HELD_OUT if source in row.sources), None)


def find_list(held_out: HeldOutBenchmark, folder: Path) -> HeldOutList:
    """Read a benchmark's list from the folder of archives.

    Raises:
        DataError: if none of its files exists, or the one that does is damaged.
    """
    path = next((folder / name for name in held_out.files if (folder / name).exists()), None)
    if path is None:
        msg = (
            f"{folder}: to leave out {held_out.benchmark}'s shapes their list is needed; put one of "
            f"{', '.join(held_out.files)} there, from {held_out.origin}"
        )
        raise DataError(msg)
    ids, checksum = held_out.read(path)
    return HeldOutList(held_out.benchmark, ids, checksum)


def _read_part_list(path: Path) -> tuple[frozenset[str], str]:
    """ShapeNetPart's test ids, from the list itself or from the archive or folder that holds it."""
    if path.name == _PART_LIST:
        content = path.read_bytes()
    else:
        with open_archive(path, absent=str(path)) as archive:
            member = archive.find(f"train_test_split/{_PART_LIST}")
            if member is None:
                msg = f"{path}: holds no train_test_split/{_PART_LIST}; fetch the archive again"
                raise DataError(msg)
            content = archive.read(member)
    try:
        entries = parse_json(content)
    except ValueError as error:
        msg = f"{path}: its {_PART_LIST} is damaged ({error}); fetch it again"
        raise DataError(msg) from error
    if not isinstance(entries, list) or not entries or not all("/" in str(e) for e in entries):
        msg = f"{path}: its {_PART_LIST} is no list of shape_data/<synset>/<id>; fetch it again"
        raise DataError(msg)
    ids = frozenset(_last_part(str(entry)) for entry in entries)
    return ids, hashlib.sha256(content).hexdigest()


def _read_annotation(path: Path) -> tuple[frozenset[str], str]:
    return annotated_uids(path), sha256_of(path)


def _last_part(name: str) -> str:
    return name.rpartition("/")[2]


HELD_OUT = (
    HeldOutBenchmark(
        benchmark="ShapeNetPart",
        sources=("shapenetcore",),
        files=(f"{ARCHIVE_STEM}.zip", *tar_names(f"{ARCHIVE_STEM}.tar"), ARCHIVE_STEM, _PART_LIST),
        origin="https://shapenet.org",
        read=_read_part_list,
    ),
    HeldOutBenchmark(
        benchmark="Objaverse-LVIS",
        sources=("objaverse", "objaverse-cap3d", "objaverse-xl-cap3d"),
        files=(ANNOTATION_NAME,),
        origin="https://huggingface.co/datasets/allenai/objaverse",
        read=_read_annotation,
    ),
)
