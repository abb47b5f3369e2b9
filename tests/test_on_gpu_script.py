"""``benchmarks/on_gpu.py``: no part's failure loses another's results, and the parts run at the smallest size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pointdistill.errors import CorpusError

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Any:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        import on_gpu

        yield on_gpu


@pytest.fixture(scope="module")
def parts(script: ModuleType) -> Any:
    import on_gpu_parts

    return on_gpu_parts


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


@pytest.fixture
def settings(script: ModuleType, results: Path, tmp_path: Path) -> Any:
    return script.Settings(
        device="cpu",
        size="tiny",
        corpus=str(tmp_path / "corpus"),
        output=str(tmp_path),
        results=str(results),
    )


def session(script: ModuleType, results: Path, codes: dict[str, str], seconds: float) -> Any:
    """A session whose parts are Python programs, in which ``write`` writes a part's results."""

    def command(part: Any) -> list[str]:
        write = f"write = open({str(results / part.name)!r} + '.json', 'w').write;"
        return [sys.executable, "-S", "-c", write + codes[part.name]]

    return script.Session(results.parent, results, seconds, command, side_by_side=True)


def test_a_part_that_crashes_or_hangs_loses_only_itself(script: ModuleType, results: Path) -> None:
    codes = {
        "crashes": """write('{"before": 1}'); import sys; sys.stdout.flush(); raise SystemExit(3)""",
        "hangs": "write('{'); import time; time.sleep(60)",
        "works": """write('{"speed": 2}'); print("a line for the log")""",
    }
    limits = {"crashes": 30.0, "hangs": 1.0, "works": 30.0}
    planned = [script.Part(name, limits[name]) for name in codes]
    found = session(script, results, codes, 100.0).run(planned)
    assert found["crashes"] == {"before": 1}
    assert found["works"] == {"speed": 2}
    assert set(found.get("hangs", {"error": ""})) == {"error"}  # cut off while it wrote, or before
    endings = {name: said.rpartition(",")[0] for name, said in found["how each part ended"].items()}
    assert endings == {"crashes": "exit code 3", "hangs": "stopped", "works": "exit code 0"}
    assert json.loads((results.parent / "results.json").read_text()) == found
    assert "a line for the log" in (results.parent / "log.txt").read_text()


def test_results_are_there_after_each_part_and_none_starts_without_time(
    script: ModuleType, results: Path
) -> None:
    planned = [script.Part("first", 30.0), script.Part("second", 30.0)]
    run = session(script, results, {"first": "write('{}')", "second": "write('{}')"}, 100.0)
    seen = []
    gather = run.gather
    run.gather = lambda: seen.append(dict(gather())) or gather()
    run.run(planned)
    assert [set(found) - {"how each part ended"} for found in seen][:2] == [
        {"first"},
        {"first", "second"},
    ]
    late = session(script, results, {}, 1.0).run(planned)
    assert late["how each part ended"] == dict.fromkeys(("first", "second"), "no time left")


def test_timings_run_alone(script: ModuleType) -> None:
    planned = [script.Part(name, 1.0, alone=name.isupper()) for name in "abCDef"]
    names = ["".join(p.name for p in group) for group in script.groups(planned, side_by_side=True)]
    assert names == ["ab", "C", "D", "ef"]
    assert len(list(script.groups(planned, side_by_side=False))) == len(planned)


def test_errors_are_found_wherever_a_part_reports_them(script: ModuleType) -> None:
    found = {"machine": {"gpu": "any"}, "commands": {"1 embed": {"error": "exit code 1"}}}
    assert list(script.errors_in(found)) == ["commands: 1 embed"]


def test_every_part_is_a_function(script: ModuleType, parts: ModuleType) -> None:
    assert set(parts.FUNCTIONS) == {part.name for part in script.PARTS}


def test_parts_run_at_the_smallest_size(parts: ModuleType, settings: Any, results: Path) -> None:
    names = (
        "same_bits",
        "machine",
        "stages",
        "recompute",
        "operations",
        "compiled",
        "embed",
        "build",
    )
    for name in names:
        assert parts.run_part(name, settings), name
    found = {file.stem: json.loads(file.read_text()) for file in results.glob("*.json")}
    assert all(value in (True, 1.0) for value in found["same_bits"].values())
    assert found["stages"]["all steps applied"]
    assert list(found["stages"]["by stage"]) == [
        *("views", "teacher", "student", "loss", "backward"),
        *("clip", "message", "optimiser", "moving average"),
    ]
    assert max(found["operations"]["patch loss, relative difference"]) < 1e-5
    assert found["compiled"]["compiled"]["share of equal centres"] == 1.0
    assert found["embed"]["clouds per second, as embed computes them"] > 0.0
    assert len(found["build"]["seconds until the first steps"]) == 5


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_bit(parts: ModuleType, settings: Any) -> None:
    found = parts.resume(settings)["plain"]
    assert found["killed"]
    assert found["repeated"]
    assert found["resumed"]


def test_parts_that_need_the_corpus_wait_for_it(
    parts: ModuleType, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They begin while another part still makes it."""
    import on_gpu_timing

    build, calls = on_gpu_timing.build_corpus, []

    def busy_at_first(*given: Any, **named: Any) -> Any:
        calls.append(given)
        if len(calls) == 1:
            raise CorpusError("another process is building this corpus")
        return build(*given, **named)

    monkeypatch.setattr(on_gpu_timing, "build_corpus", busy_at_first)
    assert len(parts.open_or_make_corpus(settings)) == 16
    assert len(calls) == 2
    monkeypatch.setattr(on_gpu_timing, "WAIT_FOR_CORPUS", -1.0)
    calls.clear()
    with pytest.raises(CorpusError, match="another process"):
        parts.open_or_make_corpus(settings)


def test_tests_run_with_the_plugins_of_the_project_alone(parts: ModuleType, settings: Any) -> None:
    found = parts.gpu_tests(settings)["on the GPU"]
    assert found["exit_code"] == 0, found["end"]
    assert "skipped" in found["end"]


def test_an_error_stands_beside_what_a_part_had_found(
    parts: ModuleType, settings: Any, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(settings: Any) -> None:
        parts.note(settings, "machine", {"before": 1})
        raise RuntimeError("out of patience")

    monkeypatch.setitem(parts.FUNCTIONS, "machine", fails)
    assert not parts.run_part("machine", settings)
    found = json.loads((results / "machine.json").read_text())
    assert found == {"before": 1, "error": "RuntimeError: out of patience"}


def test_the_script_runs_a_part_in_a_process_of_its_own(script: ModuleType, tmp_path: Path) -> None:
    words = ["--output", str(tmp_path), "--device", "cpu", "--parts", "machine"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "on_gpu.py"), *words],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "has 1 of 1 parts" in done.stdout
    assert "error" not in done.stdout
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["machine"]["launch_us"] > 0.0


def test_the_usual_step_and_ours_have_the_same_losses(script: ModuleType) -> None:
    """``benchmarks/step.py``, which one of the parts runs."""
    import step

    shapes = [step.np.random.default_rng(0).normal(size=(512, 3)).astype("f4") for _ in range(2)]
    clouds = step.torch.from_numpy(step.np.stack(shapes))
    counts, index = step.torch.full((2,), 512), step.torch.arange(2)
    batch = step.Batch(clouds, counts, index, 0)
    ways = step.ladder("tiny", step.torch.device("cpu"))
    step.run_rounds(ways, batch, step.make_views(batch, step.recipe("tiny")), 1)
    step.check_losses(ways)
