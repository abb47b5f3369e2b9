"""``pointdistill prepare-data mixture`` as it is typed."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pointdistill.cli import main
from pointdistill.data.corpus import open_corpus
from pointdistill.data.corpus_building import BuildSettings, ShapeLimits
from pointdistill.data.corpus_building.source_status import mixture_sources
from pointdistill.data.files.workspace import last_corpus
from pointdistill.engine.weights.licences import Terms, licence_ledger, read_ledger, terms_of
from tests.cli.typed import Run, typed
from tests.data.mixture_archives import write_archives


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Type a command beside a folder of archives; its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    write_archives(tmp_path / "archives")
    return typed(capsys, "prepare-data", "mixture")


def test_it_builds_what_is_there_and_says_what_is_not(run: Run) -> None:
    words = ("--archives", "archives", "--points", "64", "--workers", "0")
    code, out, err = run(*words)
    assert code == 0
    assert "data/mixture is complete: 8 shapes of the mixture" in out
    assert "next: pointdistill pretrain" in out
    assert "3d-future: missing, with 16,560 shapes" in err
    assert "modelnet40: 2 shapes kept and 0 refused; its whole archive gives 9,843" in err
    assert "objaverse-cap3d" not in err
    assert "Objaverse-LVIS" not in err, "nothing that is there holds its shapes"
    assert (
        "test splits left out: scanobjectnn (officially 4,044 shapes), "
        "modelnet40 (officially 2,468 shapes); --take" in err
    )
    assert "test shapes of ShapeNetPart (in shapenetcore) are in; --exclude-tests all" in err
    assert "refused: Broken" in err
    assert last_corpus() == Path("data/mixture")
    assert len(open_corpus("data/mixture")) == 8
    code, out, _ = run(*words)
    assert (code, "was complete already" in out) == (0, True)


def test_the_plan_is_a_table_and_makes_nothing(run: Run) -> None:
    code, out, err = run(
        "--archives", "archives", "--sources", "abo,modelnet40", "--points", "64", "--plan"
    )
    assert code == 0
    assert "3 shapes from archives, 0.00 GB" in out
    assert "- these sources have 17,796 shapes by the official counts; 3 with those counted" in out
    rows = {line.split("\t")[0]: line for line in out.splitlines() if "\t" in line}
    assert len(rows) == 14, "thirteen sources and the head"
    assert "there\t1\t" in rows["abo"]
    assert rows["abo"].endswith("\tNO")
    assert "- there: abo: licence: CC BY-NC 4.0\n" in out
    assert rows["shapenetcore"].startswith("shapenetcore\tleft out\t52,470*")
    assert "- left out: shapenetcore, 3d-future, " in out
    assert (
        "google-scanned-objects, objaverse-cap3d, objaverse-xl-cap3d, objaverse: not requested"
        in out
    )
    assert "ShapeNetPart" not in out, "no source that was named holds its shapes"
    assert "measuring a few shapes of abo" in err
    assert out.splitlines()[-1] == (
        "next: pointdistill prepare-data mixture --archives archives --sources abo,modelnet40 --points 64"
    )
    assert not Path("data").exists()


def test_what_comes_next_repeats_every_option_that_was_given(run: Run) -> None:
    head = "pointdistill prepare-data mixture"
    words = "--archives archives --sources modelnet40 --take-tests modelnet40 --output 'my corpus'"
    words += " --points 64 --seed 3 --workers 1 --deadline 7.5 --memory 2"
    _, out, _ = run(*shlex.split(words), "--plan")
    assert out.splitlines()[-1] == f"next: {head} {words}"
    assert "test splits taken in: modelnet40 (officially 2,468 shapes)" in out
    _, out, _ = run(*shlex.split(words), "--fetch")
    assert out.splitlines()[-1] == f"next: {head} {words} --plan"
    empty = "--archives empty --exclude-tests all --seed 5"
    Path("empty").mkdir()
    _, out, _ = run(*shlex.split(empty), "--plan")
    assert out.splitlines()[-1] == f"next: {head} {empty} --fetch"


def test_what_comes_next_is_a_command_that_works(run: Run) -> None:
    """A damaged archive would end the build, so the next command names the others."""
    whole = Path("archives/ModelNet40.zip").read_bytes()
    Path("archives/ModelNet40.zip").write_bytes(whole[: len(whole) // 2])
    words = ("--archives", "archives", "--points", "64", "--workers", "0")
    for chosen in ((), ("--sources", "abo,modelnet40")):
        code, out, _ = run(*words, *chosen, "--plan")
        assert code == 0
        assert "- unusable: modelnet40: archives/ModelNet40.zip: " in out
        assert "- the next command leaves out modelnet40; once its archive is whole" in out
    command = shlex.split(out.splitlines()[-1].removeprefix("next: "))
    assert command[:3] == ["pointdistill", "prepare-data", "mixture"]
    assert command[command.index("--sources") + 1] == "abo"
    code, out, _ = run(*command[3:])
    assert (code, "data/mixture is complete" in out) == (0, True)
    Path("archives/ModelNet40.zip").write_bytes(whole)
    code, out, _ = run(*words, "--sources", "abo,modelnet40", "--plan")
    code, out, _ = run(*shlex.split(out.splitlines()[-1].removeprefix("next: "))[3:])
    assert code == 0
    assert [s.name for s in open_corpus("data/mixture").sources] == ["abo", "modelnet40"]


def test_a_test_split_of_a_source_that_stays_out_is_said_not_to_be_taken(run: Run) -> None:
    words = ("--archives", "archives", "--sources", "abo", "--take-tests", "modelnet40")
    _, out, _ = run(*words, "--points", "64", "--plan")
    assert "test split of modelnet40 is not taken in: modelnet40 is not among the sources" in out
    assert "taken in: modelnet40 (" not in out


def test_a_corpus_for_commercial_use_leaves_out_every_other_source_and_says_why(run: Run) -> None:
    words = ("--archives", "archives", "--points", "64", "--workers", "0", "--commercial-only")
    code, out, _ = run(*words[:4], "--commercial-only", "--plan")
    assert code == 0
    assert "2 shapes from archives" in out
    assert "- left out: abo: allows no commercial use (CC BY-NC 4.0)\n" in out
    assert "- left out: toys4k: not known to allow commercial use of all its shapes (each" in out
    assert "not for commercial use" not in out
    assert out.splitlines()[-1] == (
        "next: pointdistill prepare-data mixture --archives archives --commercial-only --points 64"
    )
    code, out, err = run(*words)
    assert (code, "data/mixture is complete: 1 shape of the mixture" in out) == (0, True)
    assert "note: modelnet40 is left out: allows no commercial use (academic use; models" in err
    assert "3d-future" not in err, "it is not there"
    (source,) = open_corpus("data/mixture").sources
    assert (source.name, source.settings["commercial_only"]) == ("google-scanned-objects", True)
    ledger = licence_ledger(open_corpus("data/mixture").sources)
    assert [entry["commercial_only"] for entry in ledger] == [True]
    assert read_ledger(ledger)[0].commercial_only
    code, out, _ = run(*words)
    assert (code, "was complete already" in out) == (0, True)
    code, _, err = run(*words[:-1])
    assert (code, "made with other settings" in err) == (2, True)
    assert "sources.google-scanned-objects.settings" in err


def test_a_corpus_for_commercial_use_needs_a_source_that_allows_it(run: Run) -> None:
    Path("empty").mkdir()
    code, _, err = run("--archives", "empty", "--commercial-only")
    assert code == 2
    assert "put one of omniobject3d, google-scanned-objects there" in err
    code, _, err = run("--archives", "archives", "--sources", "abo", "--commercial-only")
    assert code == 2
    assert "abo: allows no commercial use (CC BY-NC 4.0); leave it out" in err
    assert "--commercial-only" in err


def test_what_a_source_allows_is_what_its_licence_says() -> None:
    expected = {True: Terms.OPEN, False: Terms.NON_COMMERCIAL, None: Terms.UNKNOWN}
    for info in mixture_sources():
        assert terms_of(info.licence)[0] is expected[info.commercial], info.name


def test_on_a_terminal_of_80_columns_nothing_is_cut(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    Path("empty").mkdir()
    _, out, _ = run("--archives", "empty", "--plan")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
    table = plain.split("\n\n")[0].splitlines()[1:]
    assert len(table) == 15, "thirteen sources, the head and its rule"
    assert max(map(len, table)) <= 80
    assert "…" not in plain
    assert {line.split()[0] for line in table[2:]} == {info.name for info in mixture_sources()}
    assert (
        " missing: 3d-future: 3D-FUTURE-model-part1.zip, 3D-FUTURE-model-part2.zip, "
        "3D-FUTURE-model-part3.zip, 3D-FUTURE-model-part4.zip, from "
        "https://tianchi.aliyun.com/dataset/98063 (login); licence: research use"
        in " ".join(plain.split())
    )


def test_a_retry_without_retryable_shapes_says_so(run: Run) -> None:
    words = ("--archives", "archives", "--sources", "google-scanned-objects", "--points", "64")
    assert run(*words, "--workers", "0")[0] == 0
    _, _, err = run(*words, "--retry")
    assert "nothing is retryable, so nothing was read again; 1 shape was refused" in err
    assert "nothing is retryable" not in run(*words)[2]
    _, out, err = run(*words, "--plan")
    assert "google-scanned-objects\tdone\t1\t0.00 GB\t-\tyes" in out
    assert "measuring" not in err


def test_the_plan_says_where_the_missing_come_from(run: Run) -> None:
    Path("empty").mkdir()
    code, out, _ = run("--archives", "empty", "--plan")
    assert code == 0
    assert (
        "missing: toys4k: toys4k_obj_files.zip, from https://github.com/rehg-lab/lowshot-shapebias"
        in out
    )
    assert "shapenetcore\tmissing\t52,470*" in out
    assert "ModelNet40.zip, from https://modelnet.cs.princeton.edu (no login: --fetch)" in out
    assert "(no login: --fetch --sources abo)" in out
    assert "the whole mixture has 928,284 shapes by the official counts\n" in out
    assert out.endswith("next: pointdistill prepare-data mixture --archives empty --fetch\n")


def test_fetch_explains_what_takes_a_login(run: Run) -> None:
    code, out, err = run("--archives", "archives", "--sources", "s3dis,abo", "--fetch")
    assert code == 0
    assert "by hand: s3dis: Stanford3dDataset_v1.2.zip, from http://buildingparser" in err
    assert "nothing was missing that can be fetched" in err
    assert "--sources s3dis,abo --plan" in out


def test_fetch_says_what_was_not_fetched(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pointdistill.data.corpus_building import mixture_fetch

    large = mixture_fetch.Offer(name="abo", files=1, bytes=150_000_000_000)
    folder = Path("archives", "google-scanned-objects")
    failed = tuple(f"model {number}: 404" for number in range(7))

    def fetch_missing(*_: object, **__: object) -> object:
        models = mixture_fetch.ModelsFetched(
            folder=folder, fetched=2, bytes=34, there=3, failed=failed
        )
        return mixture_fetch.FetchReport(fetched=(), scanned=models, too_large=(large,), by_hand=())

    monkeypatch.setattr(mixture_fetch, "fetch_missing", fetch_missing)
    code, out, err = run("--archives", "archives", "--fetch")
    assert code == 0
    lines = err.splitlines()
    assert lines[:5] == [f"not fetched: model {number}: 404" for number in range(5)]
    assert lines[5:] == [
        "not fetched: 2 more of google-scanned-objects",
        "google-scanned-objects: 3 of 1,030 are there",
        "large, and fetched only by its name: abo, 1 file, about 150.0 GB; pointdistill prepare-data "
        "mixture --archives archives --sources abo --fetch",
    ]
    assert f"{folder}: 2 zips fetched, 34 bytes; 3 are there" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "mixture needs the folder that holds the archives"),
        (["--archives", "nowhere"], "give the one that holds the archives (--archives)"),
        (
            ["--archives", "archives/ModelNet40.zip", "--plan"],
            "archives/ModelNet40.zip is a file; give the folder that holds the archives: "
            "--archives archives\n",
        ),
        (["--archives", "archives", "--shapes", "3"], "--shapes has no meaning for mixture"),
        (["--archives", "archives", "--include-test"], "name the source with --take-tests"),
        (["--archives", "archives", "--take-tests", "abo"], "abo has no test split"),
        (["--archives", "archives", "--exclude-tests", "some"], "accepts all, got 'some'"),
        (["--archives", "archives", "--exclude-tests", "all"], "their list is needed"),
        (
            ["--archives", "archives", "--plan", "--fetch"],
            "--fetch has no meaning for --plan, which",
        ),
        (
            ["--archives", "archives", "--plan", "--retry"],
            "--retry has no meaning for --plan, which",
        ),
        (
            ["--archives", "archives", "--plan", "--cluster", "tcp://a:1"],
            "--cluster has no meaning for",
        ),
        (
            ["--archives", "archives", "--fetch", "--retry"],
            "--retry has no meaning for --fetch, which",
        ),
        (
            ["--archives", "archives", "--fetch", "--cluster", "tcp://a:1"],
            "meaning for --fetch, which",
        ),
        (
            ["--archives", "archives", "--workers", "0", "--cluster", "tcp://127.0.0.1:1"],
            "--workers has no meaning for --cluster",
        ),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(run: Run, words: list[str], message: str) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("option", ["--plan", "--fetch", "--sources=abo", "--exclude-tests=all"])
def test_a_single_source_has_no_options_of_the_mixture(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["prepare-data", "abo", option])
    assert stop.value.code == 2
    assert "has no meaning for abo; it is for mixture" in capsys.readouterr().err


def test_limits_the_cluster_and_the_retry_reach_the_build(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pointdistill.data.corpus_building import mixture

    given: dict[str, Any] = {}
    build, again = mixture.build_mixture, mixture.retry_mixture

    def noted_build(request: Any, output: Path, settings: BuildSettings, **options: Any) -> object:
        given["build"] = settings
        return build(request, output, replace(settings, workers=0, cluster=None), **options)

    def noted_retry(*words: Any, **options: Any) -> object:
        given["retry"] = options["limits"]
        return again(*words, **options | {"workers": 0})

    monkeypatch.setattr(mixture, "build_mixture", noted_build)
    monkeypatch.setattr(mixture, "retry_mixture", noted_retry)
    words = ("--archives", "archives", "--points", "64", "--deadline", "7", "--memory", "2")
    code, _, _ = run(*words, "--cluster", "tcp://host:8786", "--retry")
    assert code == 0
    limits = ShapeLimits(deadline_seconds=7.0, memory_bytes=2 * 2**30)
    assert given["build"].limits == given["retry"] == limits
    assert given["build"].cluster == "tcp://host:8786"


def test_ctrl_c_keeps_what_is_done(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pointdistill.data.corpus_building.mixture.build_mixture", interrupted)
    code, _, err = run("--archives", "archives")
    assert code == 130
    assert "the same command goes on" in err
