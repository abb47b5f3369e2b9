"""Downloads archives that need no login, from their authors' own sites, and explains how to get the others."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pointdistill.data.benchmarks.lvis import ANNOTATION_NAME
from pointdistill.data.fetch import Fetched, fetch
from pointdistill.data.mixture.gazebo_download import ModelsFetched, fetch_models, zips_there
from pointdistill.data.mixture.source_status import MixtureRequest, SourceStatus, scan_sources
from pointdistill.data.sources import SourceInfo
from pointdistill.data.web import announced_bytes
from pointdistill.reporter import SILENT, Reporter

_MODELNET = "https://modelnet.cs.princeton.edu"
_SUNRGBD = "https://rgbd.cs.princeton.edu/data"
_ABO = "https://amazon-berkeley-objects.s3.amazonaws.com/archives"
_OBJAVERSE = "https://huggingface.co/datasets/allenai/objaverse/resolve/main"
# Not PointCloud_zips_ShapeNet beside it, whose files have the same names.
_CAP3D = "https://huggingface.co/datasets/tiange/Cap3D/resolve/main/PointCloud_zips"


def _cap3d(first: int, last: int) -> dict[str, str]:
    names = (f"compressed_pcs_{number:02}.zip" for number in range(first, last + 1))
    return {name: f"{_CAP3D}/{name}" for name in names}


ADDRESSES: Mapping[str, Mapping[str, str]] = {
    "modelnet40": {"ModelNet40.zip": f"{_MODELNET}/ModelNet40.zip"},
    "sunrgbd": {
        name: f"{_SUNRGBD}/{name}"
        for name in ("SUNRGBD.zip", "SUNRGBDtoolbox.zip", "SUNRGBDMeta3DBB_v2.mat")
    },
    "abo": {"abo-3dmodels.tar": f"{_ABO}/abo-3dmodels.tar"},
    "objaverse-cap3d": _cap3d(0, 9),
    "objaverse-xl-cap3d": _cap3d(10, 12),
}
"""The address of each file of a source; none of them needs a login."""

LIST_ADDRESSES: Mapping[str, str] = {ANNOTATION_NAME: f"{_OBJAVERSE}/{ANNOTATION_NAME}"}
"""Addresses of lists of test shapes."""

FUEL = "https://fuel.gazebosim.org/1.0"
"""Address of the server of Google Scanned Objects."""

SCANNED = "google-scanned-objects"
"""The source that is a folder of zips, listed by its server; they are put into a folder of this name."""

LARGE = frozenset({"abo", "objaverse-cap3d", "objaverse-xl-cap3d"})
"""Sources of tens to hundreds of gigabytes: fetched only where ``sources`` names them."""

_GB = 1e9
_SCANNED_BYTES = 13_000_000_000  # of the whole collection, roughly; the server states no lengths

_BY_HAND: Mapping[str, str] = {
    "objaverse": "no login, but 800,000 files; the package `objaverse` fetches them. Point clouds of the "
    "same objects are the source objaverse-cap3d, which is fetched where it is named",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """What a source lacks and can be downloaded."""

    name: str
    files: int
    bytes: int | None
    """Their size, as their servers state it; None if one does not."""

    def describe(self) -> str:
        """Name, files and size in a few words."""
        files = f"{self.files:,} file{'s' if self.files > 1 else ''}"
        size = "of unknown size" if self.bytes is None else f"about {self.bytes / _GB:,.1f} GB"
        return f"{self.name}, {files}, {size}"


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchReport:
    """What was fetched and what was not."""

    fetched: tuple[Fetched, ...]
    scanned: ModelsFetched | None
    """What was fetched of Google Scanned Objects; None if they were not requested or are complete."""

    too_large: tuple[Offer, ...]
    """Sources that are fetched only where they are named."""

    by_hand: tuple[str, ...]
    """A line for each source that is still missing: how to get it, and from where."""


def fetch_missing(
    request: MixtureRequest,
    *,
    reporter: Reporter = SILENT,
) -> FetchReport:
    """Download what is missing and needs no login into the folder of archives, which is made if need be.

    Existing files are left as they are. What was fetched before an error or an interruption stays, and the same
    call continues from there. Sources of `LARGE` are fetched only where the request names them.

    Args:
        request: the folder; its ``sources`` where only those are wanted.
        reporter: hears what is about to be downloaded, before the first byte, and how far each file is.

    Raises:
        DataError: if a download fails; see `fetch`.
    """
    folder = request.archives
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [status for status in scan_sources(request) if not status.not_taken]
    lacking = {s.info.name: files for s in wanted if (files := _lacking(s.info, folder))}
    left = [name for name in lacking if name in LARGE and name not in request.sources]
    too_large = tuple(_offer(name, lacking.pop(name)) for name in left)
    if request.exclude_all_tests:
        missing = {n: url for n, url in LIST_ADDRESSES.items() if not (folder / n).exists()}
        lacking |= {"lists of test shapes": missing} if missing else {}
    scans = _lacking_scans(wanted, folder)
    if lacking or scans:
        offers = [*(_offer(name, files) for name, files in lacking.items()), *scans]
        free = f"{shutil.disk_usage(folder).free / _GB:,.1f} GB free"
        what = "; ".join(offer.describe() for offer in offers)
        reporter.say(f"about to download into {folder}, whose disk has {free}: {what}")
    fetched = []
    for name, url in (pair for files in lacking.values() for pair in files.items()):
        count = partial(reporter.progress, name, unit="bytes")
        count(0, None)
        fetched.append(fetch(url, folder / name, progress=count))
    return FetchReport(
        fetched=tuple(fetched),
        scanned=fetch_models(FUEL, folder / SCANNED, reporter=reporter) if scans else None,
        too_large=too_large,
        by_hand=tuple(_explained(s) for s in wanted if s.missing and not fetchable(s.info)),
    )


def fetchable(info: SourceInfo) -> bool:
    """Whether `fetch_missing` can download a source."""
    return info.name == SCANNED or info.name in ADDRESSES


def _lacking(info: SourceInfo, folder: Path) -> dict[str, str]:
    """Addresses, by name, of those files of a source that are missing."""
    files = ADDRESSES.get(info.name, {})
    return {name: url for name, url in files.items() if not (folder / name).exists()}


def _lacking_scans(wanted: Sequence[SourceStatus], folder: Path) -> list[Offer]:
    """Google Scanned Objects, if wanted and incomplete; asks no server."""
    official = next((s.info.official or 0 for s in wanted if s.info.name == SCANNED), 0)
    files = official - zips_there(folder / SCANNED)
    if files <= 0:
        return []
    return [Offer(name=SCANNED, files=files, bytes=_SCANNED_BYTES * files // official)]


def _offer(name: str, files: Mapping[str, str]) -> Offer:
    lengths = [announced_bytes(url) for url in files.values()]
    known = [length for length in lengths if length is not None]
    return Offer(
        name=name, files=len(files), bytes=sum(known) if len(known) == len(lengths) else None
    )


def _explained(status: SourceStatus) -> str:
    info = status.info
    access = _BY_HAND.get(info.name, info.access)
    return f"{info.name}: {info.archive}, from {info.origin} ({access})"
