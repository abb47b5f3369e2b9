"""Google Scanned Objects from Gazebo Fuel: its list comes in pages, and every model is a zip of its own."""

from __future__ import annotations

import json
import lzma
import re
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pointdistill.data.fetch import DamagedError, fetch
from pointdistill.data.sources.base import printable
from pointdistill.data.web import LostError, RefusedError, open_web, web_errors, with_retries
from pointdistill.errors import DataError
from pointdistill.reporter import SILENT, Reporter

OWNER = "GoogleResearch"
COLLECTION = "Scanned Objects by Google Research"

_PAGE_MODELS = 100
_MOST_PAGES = 1_000  # against a list that never ends
_MOST_PAGE_BYTES = 1 << 26
_MOST_NAME_BYTES = 200

# Accepted file names: a single path component, not hidden, valid on every system.
_NAME = re.compile(r"\w[\w .,'&()+-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelsFetched:
    """What came of a collection."""

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
        count = partial(reporter.progress, title, unit="bytes")
        count(0, None)
        try:
            size += fetch(url, path, check=_damage, progress=count, sleep=sleep).bytes
        except (RefusedError, DamagedError) as error:
            failed.append(str(error))
        else:
            fetched += 1
    return ModelsFetched(
        folder=folder, fetched=fetched, bytes=size, there=zips_there(folder), failed=tuple(failed)
    )


def list_models(server: str, *, sleep: Callable[[float], None] = time.sleep) -> tuple[str, ...]:
    """Names of the collection's models as the server gives them, each once: nothing that can be trusted.

    Raises:
        DataError: if there is no such list, or the server stays away.
    """
    names: dict[str, None] = {}
    for page in range(1, _MOST_PAGES + 1):
        query = f"page={page}&per_page={_PAGE_MODELS}&q=collections:{quote(COLLECTION)}"
        found = _page(f"{server}/models?{query}", first=page == 1, sleep=sleep)
        if names.keys() >= set(found):  # none, or a server that knows no pages
            break
        names |= dict.fromkeys(found)
    if not names:
        msg = f"{server}: lists no models of {COLLECTION!r}; fetch them by hand, one zip each"
        raise DataError(msg)
    return tuple(names)


def _page(url: str, *, first: bool, sleep: Callable[[float], None]) -> list[str]:
    """Names on a page of the list; none beyond its end, where some servers answer 404.

    Raises:
        DataError: if it is no list of models.
    """

    def read() -> bytes:
        with web_errors(url), open_web(url) as response:
            content = response.read(_MOST_PAGE_BYTES)
            if response.length:  # what read() leaves unsaid where it is given a size
                why = f"{len(content):,} bytes came and {response.length:,} are missing"
                raise LostError(why)
            return content

    try:
        content = with_retries(url, read, sleep=sleep)
    except RefusedError:
        if first:
            raise
        return []
    try:
        rows: Any = json.loads(content) if content.strip() else []
        return [str(row["name"]) for row in rows or [] if row.get("owner", OWNER) == OWNER]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        msg = f"{url}: is no list of models ({type(error).__name__}); fetch them by hand, one zip each"
        raise DataError(msg) from error


def _damage(path: Path) -> str:
    """What is wrong with a zip; empty if its directory and every member are whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
        RuntimeError,
        ValueError,
    ) as error:
        return f"is no whole zip ({type(error).__name__})"
    return f"its member {printable(broken)!r} is damaged" if broken else ""
