"""Which sources of the mixture a folder holds, and which of them go in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pointdistill.data.mixture.held_out import PartlyHeldOut, find_list, held_out_of
from pointdistill.data.sources import (
    SOURCES,
    Source,
    SourceInfo,
    SourceRequest,
    open_source,
    source_info,
)
from pointdistill.data.sources.base import find_archives
from pointdistill.errors import ConfigError, DataError

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
    """Benchmarks' sources whose test split is taken in."""

    exclude_all_tests: bool = False
    """Whether shapes of ShapeNetPart's test split and of LVIS are left out of the sources that hold them."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceStatus:
    """Whether a source is there, and whether it goes in."""

    info: SourceInfo
    found: tuple[Path, ...]
    """Archives that are there."""

    missing: tuple[str, ...]
    """Files that are not."""

    not_taken: str
    """Why it stays out, whether there or not; empty if it belongs to the mixture."""

    settings: tuple[str, ...] = ()
    """The settings that would take it in, where it is not obvious."""

    @property
    def there(self) -> bool:
        """Whether all its archives are there."""
        return bool(self.found) and not self.missing

    @property
    def taken(self) -> bool:
        """Whether it is there and goes in."""
        return self.there and not self.not_taken


def mixture_sources() -> tuple[SourceInfo, ...]:
    """The sources that come as archives of known names."""
    return tuple(info for info in SOURCES if info.files)


def scan_sources(request: MixtureRequest) -> tuple[SourceStatus, ...]:
    """The status of each source; looks only at the names of files in the folder.

    Raises:
        DataError: if the folder does not exist.
    """
    if not request.archives.is_dir():
        msg = f"{request.archives}: no such folder; give the one that holds the archives"
        raise DataError(msg, settings=("archives",))
    there = {info.name: find_archives(info, request.archives) for info in mixture_sources()}
    clouds = bool(there[_CLOUDS_OF_OBJAVERSE][0]) and not there[_WHOLE_OBJAVERSE][0]
    return tuple(
        SourceStatus(
            info=info,
            found=there[info.name][0],
            missing=there[info.name][1],
            not_taken=_why_not(info.name, request, only_clouds=clouds),
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
    lacking = [s for s in statuses if s.info.name in request.sources and not s.there]
    if lacking:
        first = lacking[0].info
        msg = (
            f"{request.archives}: {', '.join(lacking[0].missing)} missing; {first.name} is {first.archive}, "
            f"from {first.origin} ({first.access})"
        )
        raise DataError(msg)
    taken = [open_one(request, status.info) for status in statuses if status.taken]
    if not taken:
        msg = (
            f"{request.archives}: holds none of the mixture's archives; its plan lists what they are called "
            f"and where they come from"
        )
        raise DataError(msg, settings=("plan",))
    return tuple(sorted(taken, key=lambda source: source.facts.name))


def open_one(request: MixtureRequest, info: SourceInfo) -> Source:
    """Open one source as the mixture takes it: with or without test shapes.

    Raises:
        DataError: if its archive is damaged, or a list of test shapes is missing.
    """
    held_out = held_out_of(info.name)
    listed = None
    if held_out is not None and request.exclude_all_tests:
        listed = find_list(held_out, request.archives)
    asked = SourceRequest(path=request.archives, include_test=info.name in request.take_tests)
    source = open_source(info.name, asked)
    return PartlyHeldOut(source, held_out.benchmark, listed) if held_out else source


def official_shapes(request: MixtureRequest, info: SourceInfo) -> int:
    """Shapes that the whole archive gives to this mixture; a list of test shapes may take some away."""
    tests = info.official_test if info.name in request.take_tests else 0
    return (info.official or 0) + tests


def _why_not(name: str, request: MixtureRequest, *, only_clouds: bool) -> str:
    """``only_clouds``: Objaverse is there as point clouds and not as meshes."""
    if request.sources:
        return "" if name in request.sources else "not asked for"
    if name == _ONLY_BY_NAME:
        return "part of the mixture only where it is named"
    chosen, other = _WHOLE_OBJAVERSE, _CLOUDS_OF_OBJAVERSE
    if only_clouds:
        chosen, other = other, chosen
    return f"the same objects as {chosen}" if name == other else ""
