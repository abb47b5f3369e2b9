"""Downloads archives that need no login, from their authors' own sites, and explains how to get the others.

Google Scanned Objects is no single archive: its server, Gazebo Fuel, lists the models in pages, and each model is
a zip of its own.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pointdistill.data.benchmarks.lvis import ANNOTATION_NAME
from pointdistill.data.corpus_building.source_status import (
    MixtureRequest,
    SourceStatus,
    scan_sources,
)
from pointdistill.data.files.archive import zip_damage
from pointdistill.data.files.download import DamagedError, Fetched, fetch
from pointdistill.data.files.packed_tars import tar_names
from pointdistill.data.files.schema import parse_json
from pointdistill.data.files.web import (
    RefusedError,
    announced_bytes,
    open_web,
    web_errors,
    with_retries,
)
from pointdistill.data.sources import SourceInfo
from pointdistill.errors import DataError
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

OWNER = "GoogleResearch"
COLLECTION = "Scanned Objects by Google Research"

_PAGE_MODELS = 100
_MOST_PAGES, _MOST_MODELS = 1_000, 100_000  # in case the list never ends
_MOST_PAGE_BYTES = 1 << 24
_MOST_NAME_BYTES = 200

# Accepted file names: a single path component, not hidden, valid on every system.
_NAME = re.compile(r"\w[\w .,'&()+-]*")


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
        request: the folder; names ``sources`` if only those are to be fetched.
        reporter: hears what is about to be downloaded, before the first byte, and how far each file is.

    Raises:
        DataError: if a download fails; see `fetch`.
    """
    folder = request.archives
    folder.mkdir(parents=True, exist_ok=True)
    statuses = [status for status in scan_sources(request) if not status.exclusion_reason]
    missing_files = {
        s.info.name: files for s in statuses if (files := _missing_files(s.info, folder))
    }
    too_large_names = [
        name for name in missing_files if name in LARGE and name not in request.sources
    ]
    too_large = tuple(_offer(name, missing_files.pop(name)) for name in too_large_names)
    if request.exclude_all_tests:
        missing = {n: url for n, url in LIST_ADDRESSES.items() if not (folder / n).exists()}
        missing_files |= {"lists of test shapes": missing} if missing else {}
    scans = _scans_offer(statuses, folder)
    if missing_files or scans:
        offers = [*(_offer(name, files) for name, files in missing_files.items()), *scans]
        free = f"{shutil.disk_usage(folder).free / _GB:,.1f} GB free"
        offered = "; ".join(offer.describe() for offer in offers)
        reporter.say(f"about to download into {folder}, whose disk has {free}: {offered}")
    fetched = []
    for name, url in (pair for files in missing_files.values() for pair in files.items()):
        show_bytes = partial(reporter.progress, name, unit="bytes")
        show_bytes(0, None)
        fetched.append(fetch(url, folder / name, progress=show_bytes))
    return FetchReport(
        fetched=tuple(fetched),
        scanned=fetch_models(FUEL, folder / SCANNED, reporter=reporter) if scans else None,
        too_large=too_large,
        by_hand=tuple(_how_to_get(s) for s in statuses if s.missing and not fetchable(s.info)),
    )


def fetchable(info: SourceInfo) -> bool:
    """Whether `fetch_missing` can download a source."""
    return info.name == SCANNED or info.name in ADDRESSES


def _missing_files(info: SourceInfo, folder: Path) -> dict[str, str]:
    """Addresses, by name, of those files of a source that are missing."""
    files = ADDRESSES.get(info.name, {})
    return {
        name: url
        for name, url in files.items()
        if not any((folder / other).exists() for other in tar_names(name))
    }


def _scans_offer(statuses: Sequence[SourceStatus], folder: Path) -> list[Offer]:
    """Google Scanned Objects, if they are requested and incomplete; no server is asked."""
    official = next((s.info.official or 0 for s in statuses if s.info.name == SCANNED), 0)
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


def _how_to_get(status: SourceStatus) -> str:
    info = status.info
    access = _BY_HAND.get(info.name, info.access)
    return f"{info.name}: {info.archive}, from {info.origin} ({access})"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelsFetched:
    """The result of downloading a collection."""

    folder: Path
    fetched: int
    """Zips downloaded by this call."""

    bytes: int
    """Their size."""

    there: int
    """Zips that are in the folder now."""

    failed: tuple[str, ...]
    """A line for each model that could not be fetched and will not be by trying again."""


def zips_there(folder: Path) -> int:
    """Models whose zip is there."""
    return sum(1 for path in folder.glob("*.zip") if not path.name.startswith("."))


def fetch_models(
    server: str,
    folder: Path,
    *,
    reporter: Reporter = SILENT,
    sleep: Callable[[float], None] = time.sleep,
) -> ModelsFetched:
    """Download the models whose zip is not there yet; if stopped at any time, the same call continues.

    A zip gets its name once its directory and the checksums of all its members are right, because the server need
    not state its length. A model that the server refuses, as with a 404, costs only itself.

    Args:
        server: address of Fuel's interface, with its version.
        folder: where the zips go, each under its model's name; it is made.
        reporter: hears how far each zip is.
        sleep: waits between attempts.

    Raises:
        DataError: if there is no list of models, the server stays away, or the disk is full.
    """
    names = list_models(server, sleep=sleep)
    fetched, size, failed = 0, 0, []
    for number, name in enumerate(names, 1):
        path = folder / f"{name}.zip"
        if not _NAME.fullmatch(name) or len(name.encode()) > _MOST_NAME_BYTES:
            failed.append(f"{ascii(name)[:_MOST_NAME_BYTES]}: is no name for a file")
            continue
        if path.exists():
            continue
        url = f"{server}/{OWNER}/models/{quote(name, safe='')}.zip"
        title = f"{folder.name}/{name}.zip ({number:,} of {len(names):,})"
        show_bytes = partial(reporter.progress, title, unit="bytes")
        show_bytes(0, None)
        try:
            size += fetch(url, path, check=zip_damage, progress=show_bytes, sleep=sleep).bytes
        except (RefusedError, DamagedError) as error:
            failed.append(str(error))
        else:
            fetched += 1
    return ModelsFetched(
        folder=folder, fetched=fetched, bytes=size, there=zips_there(folder), failed=tuple(failed)
    )


def list_models(server: str, *, sleep: Callable[[float], None] = time.sleep) -> tuple[str, ...]:
    """Names of the collection's models as the server sends them, each once; not to be trusted.

    Raises:
        DataError: if there is no such list, or the server stays away.
    """
    names: dict[str, None] = {}
    for page in range(1, _MOST_PAGES + 1):
        query = f"page={page}&per_page={_PAGE_MODELS}&q=collections:{quote(COLLECTION)}"
        page_names = _read_page(f"{server}/models?{query}", first=page == 1, sleep=sleep)
        if names.keys() >= set(page_names):  # the end, or a server without pages
            break
        names |= dict.fromkeys(page_names)
        if len(names) > _MOST_MODELS:
            msg = f"{server}: lists more than {_MOST_MODELS:,} models; fetch them by hand, one zip each"
            raise DataError(msg)
    if not names:
        msg = f"{server}: lists no models of {COLLECTION!r}; fetch them by hand, one zip each"
        raise DataError(msg)
    return tuple(names)


def _read_page(url: str, *, first: bool, sleep: Callable[[float], None]) -> list[str]:
    """Names on one page of the list; none for a page beyond its end, where some servers answer 404.

    Raises:
        DataError: if it is no list of models.
    """

    def read() -> bytes:
        with web_errors(url), open_web(url) as answer:
            return answer.read(_MOST_PAGE_BYTES)

    try:
        content = with_retries(url, read, sleep=sleep)
    except RefusedError:
        if first:
            raise
        return []
    try:
        # A name that is no Unicode is refused by itself, not the list.
        rows: Any = parse_json(content, any_text=True) if content.strip() else []
        return [str(row["name"]) for row in rows or [] if row.get("owner", OWNER) == OWNER]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{url}: is no list of models ({type(error).__name__}); fetch them by hand, one zip each"
        raise DataError(msg) from error
