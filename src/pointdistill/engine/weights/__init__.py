"""Encoders on disk, on the Hub and by name; this module holds the names, and loads no torch.

The method's authors publish four checkpoints, and one small encoder comes with the program itself. Each has a
name, a plain word such as ``asymdsd-s``. A name is a string; a ``Path``, or a string with a separator such as
``./asymdsd-s``, is always a path.
"""

from __future__ import annotations

import difflib
import os
import re
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from pointdistill.data.benchmarks.registry import (
    BASE_MIXTURE,
    CLS_SMALL,
    MPM_SMALL,
    SMALL,
    benchmark_spec,
)
from pointdistill.data.files.download import BusyError, fetch
from pointdistill.data.files.files import write_aside
from pointdistill.data.files.schema import parse_json, short_repr
from pointdistill.data.files.web import RefusedError, open_web, web_errors
from pointdistill.data.files.workspace import given_or_last_run, last_run, lost_run, why_no_run
from pointdistill.errors import CheckpointError, ConfigError
from pointdistill.reporter import SILENT, Reporter

WEIGHTS: Final = "model.safetensors"
CONFIG: Final = "config.json"

REPOSITORY = "remcofl/AsymDSD"
"""Where the method's authors publish their checkpoints, on the Hugging Face Hub."""

CACHE_VARIABLE = "POINTDISTILL_CACHE"
"""Environment variable with the folder for downloaded weights."""

BUNDLED = "procedural-mini"
"""Name of the encoder that comes with the program."""

BUNDLED_FOLDER = Path(__file__).with_name("bundled")
BUNDLED_TERMS = "trained on made shapes only, free for any use"

_SHAPENET = {
    "name": "ShapeNetCore v2",
    "licence": "non-commercial research and education, on ShapeNet's terms",
    "shapes": 41_952,
}
_MIXTURE = {
    "name": "the paper's Mixture (ShapeNetCore v2, ModelNet40, Objaverse and others)",
    "licence": "each source under its own; several allow non-commercial use only",
    "shapes": 930_752,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeights:
    """A checkpoint that the method's authors published."""

    name: str
    file: str
    """Its name in their repository."""

    megabytes: int
    """Size of the download."""

    size: str
    mode: str
    model: str
    """The model's name in the tables of published figures."""

    source: dict[str, Any]
    """What it was trained on, as the paper states it: an entry of a licence ledger."""

    @property
    def folder(self) -> Path:
        """Where it is kept once it was downloaded and converted."""
        return cache_folder() / "encoders" / self.name

    @property
    def url(self) -> str:
        """Address of the checkpoint."""
        return f"{hub_address()}/{REPOSITORY}/resolve/main/{self.file}"

    @property
    def is_here(self) -> bool:
        """Whether it was downloaded and converted before."""
        return holds_encoder(self.folder)

    def published_accuracy(self, benchmark: str, split: str | None, protocol: str) -> float | None:
        """The paper's accuracy in percent; None if it has none."""
        figure = benchmark_spec(benchmark).published.get((split, protocol, self.model))
        return None if figure is None else figure.accuracy


# Sizes as the Hub lists them; what each was trained on, from the paper (AsymDSD, arXiv 2506.21724, section 4).
PUBLISHED = {
    weights.name: weights
    for weights in (
        PublishedWeights(
            name="asymdsd-s",
            file="AsymDSD-S_ShapeNet.ckpt",
            megabytes=230,
            size="small",
            mode="dual",
            model=SMALL,
            source=_SHAPENET,
        ),
        PublishedWeights(
            name="asymsd-cls-s",
            file="AsymSD-S-CLS_ShapeNet.ckpt",
            megabytes=197,
            size="small",
            mode="cls",
            model=CLS_SMALL,
            source=_SHAPENET,
        ),
        PublishedWeights(
            name="asymsd-mpm-s",
            file="AsymSD-S-MPM_ShapeNet.ckpt",
            megabytes=208,
            size="small",
            mode="mpm",
            model=MPM_SMALL,
            source=_SHAPENET,
        ),
        PublishedWeights(
            name="asymdsd-b",
            file="AsymDSD-B_Mixture_B.ckpt",
            megabytes=827,
            size="base",
            mode="dual",
            model=BASE_MIXTURE,
            source=_MIXTURE,
        ),
    )
}


def is_name(text: Path | str | None) -> bool:
    """Whether this names an encoder of the list; a ``Path`` never does."""
    return isinstance(text, str) and (text in PUBLISHED or text == BUNDLED)


def name_of(stored: Path) -> str | None:
    """The name of the encoder in a folder; None if it is none of the list."""
    places = {BUNDLED: BUNDLED_FOLDER} | {name: one.folder for name, one in PUBLISHED.items()}
    return next((n for n, place in places.items() if stored.absolute() == place.absolute()), None)


def suggestion(text: Path | str) -> str:
    """``did you mean 'asymdsd-s'? `` for what is nearly a name, else nothing; to be put before advice."""
    known = (*PUBLISHED, *([BUNDLED] if bundled_is_here() else []))
    near = difflib.get_close_matches(str(text).lower(), known, n=1, cutoff=0.75)
    return f"did you mean {near[0]!r}? " if near else ""


def bundled_is_here() -> bool:
    """Whether this installation holds the encoder that comes with the program."""
    return holds_encoder(BUNDLED_FOLDER)


def bundled_folder() -> Path:
    """The folder of the encoder that comes with the program.

    Raises:
        CheckpointError: if this installation lacks it.
    """
    if bundled_is_here():
        return BUNDLED_FOLDER
    msg = (
        f"{BUNDLED}: not in this installation ({BUNDLED_FOLDER} is absent); install a released package, or name "
        "another encoder"
    )
    raise CheckpointError(msg)


def given_or_default(
    encoder: Path | str | None, *, folder: Path = Path(), reporter: Reporter = SILENT
) -> Path | str:
    """What a user named; else the last run made in ``folder``; else the encoder that comes with the program.

    Args:
        encoder: what was named; None for nothing.
        folder: where the last run is looked for.
        reporter: receives a line if the last run is gone, so that another encoder takes its place.

    Raises:
        CheckpointError: if there is none of them.
    """
    if encoder is None and last_run(folder=folder) is None and bundled_is_here():
        if lost_run(folder=folder):
            reporter.say(f"{why_no_run(folder=folder)}; {BUNDLED} is taken in its place", "encoder")
        return BUNDLED
    return given_or_last_run(encoder, folder=folder)


def holds_encoder(folder: Path) -> bool:
    """Whether a folder has the two files of an encoder."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def cache_folder() -> Path:
    """Folder of downloads: ``POINTDISTILL_CACHE``, else ``pointdistill`` in ``XDG_CACHE_HOME`` or ``~/.cache``.

    A user without a home folder, as in a container that runs under any number, has it in the working folder.
    """
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(os.path.expanduser(chosen))  # noqa: PTH111  Path raises where there is no such user
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # A relative path is to be ignored by the standard that defines the variable.
    if base.is_absolute():
        return base / "pointdistill"
    home = Path(os.path.expanduser("~"))  # noqa: PTH111
    return home / ".cache" / "pointdistill" if home.is_absolute() else Path(".pointdistill/cache")


HUB_SECONDS = 10.0
"""How long the Hub may be silent before it counts as out of reach; a download that has begun gets longer."""


_LONGEST_LIST = 1 << 22  # bytes; the Hub's description of a repository takes a few thousand
_POLL_SECONDS = 0.5


def fetch_repository(
    repository: str,
    files: Mapping[str, int],
    check: Callable[[str, Path], str],
    reporter: Reporter,
) -> Path:
    """The folder of a repository in the cache of the Hub's own client; what it lacks is downloaded.

    A file that another process is downloading is waited for.

    Args:
        repository: ``owner/name``.
        files: names of the files to download, those of them that there are, and the most bytes of each.
        check: called with the name of a file and where it is, before it gets its place: what is damaged would stay
            there for all later calls. Returns what is wrong with it, or an empty string.
        reporter: told the progress.

    Raises:
        LostError: if the Hub cannot be reached.
        RefusedError: if it refuses, or answers with something else.
        DataError: if a file cannot be downloaded.
    """
    from huggingface_hub import constants, get_token

    token, hub = get_token(), hub_address()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"{hub}/api/models/{repository}/revision/main"
    with web_errors(url), open_web(url, headers=headers, timeout_seconds=HUB_SECONDS) as answer:
        text = answer.read(_LONGEST_LIST)
    try:
        listed = parse_json(text)
    except ValueError:
        listed = None
    match listed:
        case {"sha": str(commit), "siblings": list(stored)} if re.fullmatch("[0-9a-f]{40}", commit):
            names = [entry.get("rfilename") for entry in stored if isinstance(entry, dict)]
        case _:
            msg = f"{url}: answers with something else than a list of files; see HF_ENDPOINT"
            raise RefusedError(msg)
    cached = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
    folder = cached / "snapshots" / commit
    for name, most in files.items():
        if name in names:
            get = partial(
                fetch,
                f"{hub}/{repository}/resolve/{commit}/{name}",
                folder / name,
                headers=headers,
                most_bytes=most,
                check=partial(check, name),
                progress=partial(_progress, reporter, f"downloading {name}"),
            )
            _fetch_or_wait(get, folder / name, repository, reporter)
    with write_aside(cached / "refs" / "main") as aside:
        aside.write_text(commit)
    return folder


def _fetch_or_wait(
    get: Callable[[], object], file: Path, repository: str, reporter: Reporter
) -> None:
    """Download a file that is not there; if another process does, wait for that one."""
    waited = False
    while not file.exists():
        try:
            get()
        except BusyError:
            if not waited:
                reporter.say(f"{repository}: another process is downloading it; waiting for it")
            waited = True
            time.sleep(_POLL_SECONDS)


def _progress(reporter: Reporter, task: str, done: int, total: int | None) -> None:
    reporter.progress(task, done, total, unit="bytes")


def hub_address() -> str:
    """The Hub, or the mirror that ``HF_ENDPOINT`` names."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def check_hub_address() -> None:
    """Check the address of the Hub, before its client is loaded: of some of them that cannot be.

    Raises:
        ConfigError: if ``HF_ENDPOINT`` names something else than a server on the web.
    """
    address = hub_address()
    try:
        parts = urllib.parse.urlsplit(address)
        _ = parts.port  # raises where it is no number, or too large
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        valid = False
    if not valid or not (address.isascii() and address.isprintable()) or " " in address:
        msg = (
            f"HF_ENDPOINT is {short_repr(address)}, no address of a Hub; expected one such as "
            "https://huggingface.co, or unset it"
        )
        raise ConfigError(msg)


def hub_is_off() -> bool:
    """Whether ``HF_HUB_OFFLINE`` forbids requests to the Hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
