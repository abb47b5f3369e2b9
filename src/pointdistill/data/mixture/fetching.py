"""Archives that anyone may download, at their authors' own addresses; the others are explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from pointdistill.data.benchmarks.lvis import ANNOTATION_NAME
from pointdistill.data.fetch import Fetched, Progress, fetch
from pointdistill.data.mixture.survey import MixtureRequest, Standing, survey

_MODELNET = "https://modelnet.cs.princeton.edu"
_SUNRGBD = "https://rgbd.cs.princeton.edu/data"
_ABO = "https://amazon-berkeley-objects.s3.amazonaws.com/archives"
_OBJAVERSE = "https://huggingface.co/datasets/allenai/objaverse/resolve/main"

ADDRESSES: Mapping[str, Mapping[str, str]] = {
    "modelnet40": {"ModelNet40.zip": f"{_MODELNET}/ModelNet40.zip"},
    "sunrgbd": {
        name: f"{_SUNRGBD}/{name}"
        for name in ("SUNRGBD.zip", "SUNRGBDtoolbox.zip", "SUNRGBDMeta3DBB_v2.mat")
    },
    "abo": {"abo-3dmodels.tar": f"{_ABO}/abo-3dmodels.tar"},
}
"""For a source, the address of each of its files; none of them asks for a login."""

LIST_ADDRESSES: Mapping[str, str] = {ANNOTATION_NAME: f"{_OBJAVERSE}/{ANNOTATION_NAME}"}
"""Addresses of lists of test shapes."""

_FUEL = "https://fuel.gazebosim.org/1.0/GoogleResearch/models"
_OF_CAP3D = "of its point clouds of Objaverse, not those of ShapeNet, which are called the same"

_BY_HAND: Mapping[str, str] = {
    "google-scanned-objects": f"no login, but a zip a model, {_FUEL}/<name>.zip; save each in "
    "google-scanned-objects/",
    "objaverse-cap3d": f"no login, 10 files {_OF_CAP3D}; `hf download` fetches them",
    "objaverse-xl-cap3d": f"no login, 3 files {_OF_CAP3D}; `hf download` fetches them",
    "objaverse": "no login, but 800,000 files; the package `objaverse` fetches them",
}

Begin = Callable[[str], AbstractContextManager[Progress | None]]
"""Told that a file begins; gives what is told how far that one is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchReport:
    """What came, and what has to be fetched by hand."""

    fetched: tuple[Fetched, ...]
    by_hand: tuple[str, ...]
    """A line for each source that is still missing: what it takes, and from where."""


def fetch_missing(request: MixtureRequest, *, begin: Begin | None = None) -> FetchReport:
    """Download what is missing and needs no login into the folder of archives, which is made.

    Files that are there are left as they are. What was fetched before an error or an interruption stays, and
    the same call goes on from there.

    Args:
        request: the folder; its ``sources`` where only those are wanted.
        begin: called as each file begins.

    Raises:
        DataError: if a download fails; see `fetch`.
    """
    request.archives.mkdir(parents=True, exist_ok=True)
    wanted = [s for s in survey(request) if s.missing and not s.not_taken]
    files: dict[str, str] = {}
    for standing in wanted:
        addresses = ADDRESSES.get(standing.info.name, {})
        files |= {name: addresses[name] for name in standing.missing if name in addresses}
    if request.exclude_all_tests:
        files |= {
            name: url
            for name, url in LIST_ADDRESSES.items()
            if not (request.archives / name).exists()
        }
    fetched = []
    for name, url in files.items():
        with begin(name) if begin else nullcontext() as progress:
            fetched.append(fetch(url, request.archives / name, progress=progress))
    by_hand = tuple(_explained(s) for s in wanted if s.info.name not in ADDRESSES)
    return FetchReport(fetched=tuple(fetched), by_hand=by_hand)


def _explained(standing: Standing) -> str:
    info = standing.info
    access = _BY_HAND.get(info.name, info.access)
    return f"{info.name}: {info.archive}, from {info.origin} ({access})"
