"""``benchmarks/count_kernels.py --build``: what it finds in Inductor's code, and what it says of a failure."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

CODE = """
async_compile = AsyncCompile()
triton_poi_fused_add_0 = async_compile.triton('triton_poi_fused_add_0', '''
def triton_poi_fused_add_0(in_ptr0): pass
''', device_str='cuda')
cpp_fused_0 = async_compile.cpp_pybinding(['float*'], '''void kernel() {}''')
triton_poi_fused_add_7 = async_compile.triton('triton_poi_fused_add_7', '''
def triton_poi_fused_add_7(in_ptr0): pass
''', device_str='cuda')
async_compile.wait(globals())
"""


@pytest.fixture(scope="module")
def building() -> Any:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        import count_kernels_build

        yield count_kernels_build


def test_the_kernels_of_inductors_code_are_found(building: Any) -> None:
    found = dict(building.kernels_in(CODE))
    assert list(found) == ["triton_poi_fused_add_0", "triton_poi_fused_add_7"]
    sources = {source.replace(name, "") for name, source in found.items()}
    assert sources == {"\ndef (in_ptr0): pass\n"}  # the same kernel under two names


def test_a_failure_names_its_cause_and_its_line(building: Any) -> None:
    error = ValueError(
        "at 9:11:\n    tmp0 = x1\n    tmp1 = tmp0 * -7046\n           ^\nout of range\n"
    )
    assert building.cause(error) == "ValueError: out of range, in: tmp1 = tmp0 * -7046"
    assert building.cause(RuntimeError("ptxas\nfailed")) == "RuntimeError: failed"
    assert building.cause(AssertionError()) == "AssertionError: no message"


def test_a_row_counts_failures_and_takes_the_largest(building: Any) -> None:
    built = [
        building.Built(versions=2, shared=4096, spilled=0),
        building.Built(versions=1, shared=512),
        building.Built(failure="ValueError: out of range"),
    ]
    assert building.row("views", built).split() == ["views", "3", "3", "1", "4096", "0"]
    assert building.row("views", built[1:]).split()[-2:] == ["not", "told"]


def test_without_triton_one_line_says_so(
    building: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import count_kernels

    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["count_kernels.py", "--build"])
    assert count_kernels.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "--build needs Triton; install the version that your PyTorch names"
