"""The plan of a mixture, and what is fetched for it."""

from __future__ import annotations

import fnmatch
import http.server
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pointdistill.data.benchmarks.lvis import ANNOTATION_NAME
from pointdistill.data.corpus_building import BuildSettings, mixture_fetch
from pointdistill.data.corpus_building.mixture import build_mixture
from pointdistill.data.corpus_building.mixture_fetch import Offer, fetch_missing
from pointdistill.data.corpus_building.mixture_plan import plan_mixture
from pointdistill.data.corpus_building.source_status import MixtureRequest, open_one
from pointdistill.data.sources import source_info
from pointdistill.errors import DataError
from tests.data.local_server import serving
from tests.data.mixture_archives import (
    write_archives,
    write_cap3d,
    write_lists,
    write_modelnet40,
    write_shapenetcore,
)
from tests.data.source_archives import wedge_obj, write_zip
from tests.data.watching import Watching

ROW_BYTES = 128 * 6 + 120


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    return write_archives(tmp_path / "archives")


def planned(archives: Path, **request: Any) -> Any:
    mixture_request = MixtureRequest(archives=archives, **request)
    return plan_mixture(
        mixture_request, archives / "no" / "corpus", BuildSettings(points=128, workers=2)
    )


OFFICIAL = {
    "shapenetcore": 52_470,
    "3d-future": 16_560,
    "scanobjectnn": 2_309 + 2_309 + 11_416,  # the three training sets
    "modelnet40": 9_843,
    "s3dis": 8_948,
    "sunrgbd": 8_451,
    "abo": 7_953,
    "omniobject3d": 5_911,
    "toys4k": 4_000,
    "google-scanned-objects": 1_030,
    "objaverse": 797_084,
}
"""Shapes of each source, as its authors and the paper count them."""


def test_the_official_counts_are_those_of_the_sources(tmp_path: Path) -> None:
    rows = planned(tmp_path).rows
    assert {
        row.status.info.name: row.shapes for row in rows if not row.status.exclusion_reason
    } == OFFICIAL
    assert sum(OFFICIAL.values()) == 928_284
    assert sum(OFFICIAL.values()) + 2_468 == 930_752


@pytest.mark.parametrize(
    ("take_tests", "whole"),
    [
        ((), 928_284),
        (("modelnet40",), 930_752),  # the number in the paper
        (("modelnet40", "scanobjectnn"), 934_796),
    ],
)
def test_the_whole_has_the_official_number_of_shapes(
    tmp_path: Path, take_tests: tuple[str, ...], whole: int
) -> None:
    plan = planned(tmp_path, take_tests=take_tests)
    assert plan.official == plan.whole == whole
    assert (plan.shapes, plan.bytes, plan.seconds) == (0, 0, 0)


def test_with_cap3ds_clouds_the_whole_has_these_instead_of_the_scenes(tmp_path: Path) -> None:
    write_cap3d(tmp_path)
    plan = planned(tmp_path)
    assert plan.official == 928_284 - 797_084 + 785_150
    assert plan.whole == 928_284 - 797_084 + 1
    assert [row.status.info.name for row in plan.rows if row.goes_in] == ["objaverse-cap3d"]


def test_what_is_there_is_counted_and_measured(archives: Path) -> None:
    rows = {row.status.info.name: row for row in planned(archives).rows}
    there = rows["modelnet40"]
    assert (there.shapes, there.listed, there.goes_in) == (2, True, True)
    assert there.bytes == 2 * ROW_BYTES
    assert there.seconds is not None
    assert 0 < there.seconds < 5
    clouds = rows["scanobjectnn"]
    assert clouds.bytes == 2 * (64 * 6 + 120), "a cloud of 64 points keeps its 64"
    lacking = rows["sunrgbd"]
    assert (lacking.shapes, lacking.listed, lacking.seconds) == (8_451, False, None)
    assert lacking.bytes == 8_451 * ROW_BYTES
    assert len(lacking.status.missing) == 3


def test_a_plan_is_the_sum_of_what_goes_in_and_nothing_is_made(archives: Path) -> None:
    before = sorted(archives.rglob("*"))
    reporter = Watching()
    request = MixtureRequest(archives=archives, sources=("modelnet40", "shapenetcore"))
    output = archives / "no" / "corpus"
    plan = plan_mixture(request, output, BuildSettings(points=128, workers=2), reporter=reporter)
    assert reporter.said == [
        f"measuring a few shapes of {n}" for n in ("shapenetcore", "modelnet40")
    ]
    assert (plan.shapes, plan.bytes) == (4, 4 * ROW_BYTES)
    assert plan.seconds == sum(row.seconds or 0 for row in plan.rows) / 2
    assert plan.free_bytes > 0
    assert sorted(archives.rglob("*")) == before
    assert build_mixture(request, output, BuildSettings(points=128, workers=0)).kept == plan.shapes


def test_what_is_finished_costs_nothing_more(
    archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = archives.parent / "corpus"
    part = MixtureRequest(archives=archives, sources=("modelnet40",))
    build_mixture(part, output, BuildSettings(points=128, workers=0))
    both = MixtureRequest(archives=archives, sources=("modelnet40", "abo"))
    reporter = Watching()
    plan = plan_mixture(both, output, BuildSettings(points=128, workers=2), reporter=reporter)
    rows = {row.status.info.name: row for row in plan.rows}
    done, new = rows["modelnet40"], rows["abo"]
    assert reporter.said == ["measuring a few shapes of abo"]
    assert (done.done, done.shapes, done.seconds, new.done) == (True, 2, 0.0, False)
    assert (plan.shapes, plan.bytes, plan.whole) == (3, ROW_BYTES, 3)
    assert plan.seconds == (new.seconds or 0) / 2
    other = plan_mixture(both, output, BuildSettings(points=128, seed=1, workers=2))
    assert not any(row.done for row in other.rows), "this corpus was made of another seed"

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pointdistill.data.corpus_building.mixture.join", stopped)
    unfinished = archives.parent / "unfinished"
    with pytest.raises(KeyboardInterrupt):
        build_mixture(part, unfinished, BuildSettings(points=128, workers=0))
    plan = plan_mixture(part, unfinished, BuildSettings(points=128, workers=2))
    assert [row.status.info.name for row in plan.rows if row.done] == ["modelnet40"]


def test_a_plan_reads_no_archive_for_its_checksum(
    archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred gigabytes take long to read."""

    def read_whole(path: Path) -> str:
        raise AssertionError(path)

    monkeypatch.setattr("pointdistill.data.files.workspace.sha256_of", read_whole)
    names = ("google-scanned-objects", "modelnet40")
    request = MixtureRequest(archives=archives, sources=names)
    for name in names:
        with pytest.raises(AssertionError, match=r"\.zip$"):
            open_one(request, source_info(name))
    assert planned(archives, sources=names).shapes == 4


def test_a_plan_counts_what_a_list_leaves_out(tmp_path: Path) -> None:
    write_shapenetcore(tmp_path)
    assert "their list is needed" in planned(tmp_path, exclude_all_tests=True).rows[0].problem
    write_lists(tmp_path)
    assert planned(tmp_path).shapes == 2
    plan = planned(tmp_path, exclude_all_tests=True)
    assert plan.shapes == 1
    assert plan.listed_tests == {"ShapeNetPart": 2, "Objaverse-LVIS": 3}
    named = planned(tmp_path, exclude_all_tests=True, sources=("shapenetcore",))
    assert named.listed_tests == {"ShapeNetPart": 2}


def test_an_archive_that_cannot_be_used_is_named_and_the_others_are_planned(archives: Path) -> None:
    (archives / "abo-3dmodels.tar").write_bytes(b"cut short")
    plan = planned(archives)
    (bad,) = (row for row in plan.rows if row.problem)
    assert bad.status.info.name == "abo"
    assert "abo-3dmodels.tar" in bad.problem
    assert not bad.goes_in
    assert plan.shapes == 8


# Fetching


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is served at the addresses of ModelNet40, the annotation, and one scanned object."""
    folder = tmp_path / "site"
    write_zip(folder / "GoogleResearch/models/Cup.zip", {"meshes/model.obj": wedge_obj()})
    (folder / "models").write_text(json.dumps([{"name": "Cup", "owner": "GoogleResearch"}]))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

    with serving(Handler) as root:
        addresses = {"modelnet40": {"ModelNet40.zip": f"{root}/ModelNet40.zip"}}
        lists = {ANNOTATION_NAME: f"{root}/{ANNOTATION_NAME}"}
        monkeypatch.setattr(mixture_fetch, "ADDRESSES", addresses)
        monkeypatch.setattr(mixture_fetch, "LIST_ADDRESSES", lists)
        monkeypatch.setattr(mixture_fetch, "FUEL", root)
        yield folder


def test_what_is_missing_is_fetched_and_the_rest_is_explained(site: Path, tmp_path: Path) -> None:
    write_modelnet40(site)
    write_lists(site)
    folder = tmp_path / "downloads"
    write_shapenetcore(folder)
    request = MixtureRequest(archives=folder, exclude_all_tests=True)
    reporter = Watching()
    report = fetch_missing(request, reporter=reporter)
    (line,) = reporter.said
    assert line.startswith(f"about to download into {folder}, whose disk has ")
    assert line.endswith(
        " GB free: modelnet40, 1 file, about 0.0 GB; lists of test shapes, 1 file, about 0.0 GB; "
        "google-scanned-objects, 1,030 files, about 13.0 GB"
    )
    assert reporter.tasks == [
        "ModelNet40.zip",
        ANNOTATION_NAME,
        "google-scanned-objects/Cup.zip (1 of 1)",
    ]
    assert [file.path.name for file in report.fetched] == ["ModelNet40.zip", ANNOTATION_NAME]
    assert report.scanned is not None
    assert (report.scanned.fetched, report.scanned.there) == (1, 1)
    assert (folder / "google-scanned-objects/Cup.zip").exists()
    for name in ("ModelNet40.zip", ANNOTATION_NAME):
        assert (folder / name).read_bytes() == (site / name).read_bytes()
    lines = {line.split(":")[0]: line for line in report.by_hand}
    info = source_info("toys4k")
    assert lines["toys4k"] == f"toys4k: {info.archive}, from {info.origin} ({info.access})"
    assert "shapenetcore" not in lines, "it is there"
    assert "the package `objaverse` fetches them" in lines["objaverse"]
    assert not lines.keys() & {"modelnet40", "google-scanned-objects"}
    again = fetch_missing(request)
    assert again.fetched == (), "what is there is not fetched again"
    assert again.scanned is not None
    assert again.scanned.fetched == 0


def test_only_what_was_named_is_fetched(site: Path, tmp_path: Path) -> None:
    write_modelnet40(site)
    report = fetch_missing(MixtureRequest(archives=tmp_path / "none", sources=("toys4k",)))
    assert report.fetched == ()
    assert [line.split(":")[0] for line in report.by_hand] == ["toys4k"]


def test_a_large_source_is_fetched_where_it_is_named_and_goes_on_with_what_lacks(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cap3d(site)
    root = mixture_fetch.ADDRESSES["modelnet40"]["ModelNet40.zip"].rpartition("/")[0]
    files = {name: f"{root}/{name}" for name in ("compressed_pcs_00.zip", "compressed_pcs_01.zip")}
    monkeypatch.setattr(mixture_fetch, "ADDRESSES", {"objaverse-cap3d": files})
    folder = tmp_path / "downloads"
    write_zip(folder / "compressed_pcs_01.zip", {"Cap3D_pcs/a.ply": "x"})
    size = (site / "compressed_pcs_00.zip").stat().st_size
    report = fetch_missing(MixtureRequest(archives=folder))
    assert report.fetched == ()
    assert report.too_large == (Offer(name="objaverse-cap3d", files=1, bytes=size),)
    report = fetch_missing(MixtureRequest(archives=folder, sources=("objaverse-cap3d",)))
    assert [file.path.name for file in report.fetched] == ["compressed_pcs_00.zip"]
    assert report.too_large == report.by_hand == ()
    assert report.scanned is None, "another source was named"


def test_a_file_that_is_gone_is_one_error(site: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ModelNet40\.zip: 404"):
        fetch_missing(MixtureRequest(archives=tmp_path / "downloads"))
    assert not (tmp_path / "downloads" / "ModelNet40.zip").exists()


def test_nothing_that_takes_a_login_has_an_address() -> None:
    for name, files in mixture_fetch.ADDRESSES.items():
        info = source_info(name)
        assert info.access == "no login"
        for file in files:
            assert any(fnmatch.fnmatch(file, pattern) for pattern in info.files), file
        for pattern in info.files:
            assert fnmatch.filter(files, pattern), pattern
        assert all(url.startswith("https://") for url in files.values())
        assert all(url.endswith(f"/{file}") for file, url in files.items())
    assert source_info(mixture_fetch.SCANNED).access == "no login"
    assert set(mixture_fetch.ADDRESSES) >= mixture_fetch.LARGE


def test_cap3ds_clouds_are_those_of_objaverse() -> None:
    first, beyond = (mixture_fetch.ADDRESSES[n] for n in ("objaverse-cap3d", "objaverse-xl-cap3d"))
    assert (len(first), len(beyond)) == (10, 3)
    assert first["compressed_pcs_09.zip"] == (
        "https://huggingface.co/datasets/tiange/Cap3D/resolve/main/PointCloud_zips/compressed_pcs_09.zip"
    )
    assert list(beyond) == [f"compressed_pcs_{number}.zip" for number in (10, 11, 12)]
