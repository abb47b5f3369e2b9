"""What a run was begun on: its precision is kept, another device is said; processes agree on one batch."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pointdistill.data.files.schema import to_plain
from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.pretraining import pretrain as module
from pointdistill.engine.pretraining.pretrain import pretrain
from pointdistill.engine.pretraining.run_folder import (
    RunEnvironment,
    begin_run,
    read_run_environment,
    resume_run,
)
from pointdistill.engine.runtime import devices
from pointdistill.errors import ConfigError
from tests.engine.conftest import MemoryCorpus, micro_config
from tests.engine.runs import options

CPU = RunEnvironment(device="cpu", precision="no")


@pytest.fixture
def run(memory_corpus: MemoryCorpus, tmp_path: Path) -> Path:
    """One step of a run on the CPU."""
    run = tmp_path / "run"
    pretrain(micro_config(), corpus=memory_corpus, run=run, options=options(stop_at=1))
    return run


def rewrite(run: Path, **begun: str) -> None:
    """As if the run had been begun elsewhere."""
    file = run / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"begun_on": begun}))


def resume(run: Path, corpus: MemoryCorpus, monkeypatch: pytest.MonkeyPatch, **asked: Any) -> str:
    """The precision that it would go on in; no step is taken, for not every CPU can train in bf16."""
    built: list[str] = []
    build = module.build_accelerator

    def noting(device: str, precision: str, **other: Any) -> Any:
        accelerator = build(device, precision, **other)
        built.append(accelerator.mixed_precision)
        return accelerator

    monkeypatch.setattr(module, "build_accelerator", noting)
    monkeypatch.setattr(devices, "_check_bf16_on_cpu", lambda: None)
    pretrain(
        micro_config(), corpus=corpus, run=run, resume=True, options=options(stop_at=1, **asked)
    )
    return built[0]


def test_a_run_writes_down_what_it_was_begun_on(run: Path) -> None:
    assert read_run_environment(run) == CPU


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_auto_keeps_the_precision_of_the_run(
    precision: str,
    run: Path,
    memory_corpus: MemoryCorpus,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rewrite(run, device="cpu", precision=precision)
    with caplog.at_level(logging.WARNING, "pointdistill"):
        assert resume(run, memory_corpus, monkeypatch) == precision
    assert caplog.records == []


def test_what_cannot_be_kept_is_said_in_one_line(
    run: Path,
    memory_corpus: MemoryCorpus,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rewrite(run, device="cuda", precision="bf16")
    with caplog.at_level(logging.WARNING, "pointdistill"):
        assert resume(run, memory_corpus, monkeypatch) == "no"
    assert [record.getMessage() for record in caplog.records] == [
        "started on cuda with precision bf16, resumed on cpu with precision no: numbers will be rounded "
        "differently"
    ]


def test_a_run_that_wrote_nothing_down_goes_on_as_before(
    run: Path, memory_corpus: MemoryCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = run / "config.json"
    described = json.loads(file.read_text())
    del described["begun_on"]
    file.write_text(json.dumps(described))
    assert resume(run, memory_corpus, monkeypatch) == "no"


def test_nothing_is_written_for_processes_that_cannot_share_a_batch(
    memory_corpus: MemoryCorpus, tmp_path: Path
) -> None:
    new = tmp_path / "new"
    with pytest.raises(ConfigError, match="batch_size 6 is not a multiple of the 4 processes"):
        begin_run(micro_config(), memory_corpus, new, init_from=None, environment=CPU, processes=4)
    assert not new.exists()


def test_a_run_is_resumed_by_processes_that_can_share_its_batch(
    run: Path, memory_corpus: MemoryCorpus
) -> None:
    rows = (run / "metrics.jsonl").read_text() + json.dumps({"step": 2}) + "\n"
    (run / "metrics.jsonl").write_text(rows)
    with pytest.raises(
        ConfigError, match=r"batch of 6 is not a multiple of the 4 .*with 3 of them"
    ):
        resume_run(memory_corpus, run, processes=4)
    assert (run / "metrics.jsonl").read_text() == rows
    assert resume_run(memory_corpus, run, processes=3)[0].step == 1


def test_processes_agree_on_the_main_ones_settings_and_the_smallest_batch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Process 1 has memory for 4 shapes of the main process's 6."""
    main = replace(micro_config(), seed=3)
    other = replace(micro_config(), batch_size=4)

    def gathered(_mine: list[Any]) -> list[Any]:
        return [to_plain(main), to_plain(other)]

    monkeypatch.setattr(module, "gather_object", gathered)
    found: list[PretrainConfig] = []
    with caplog.at_level(logging.WARNING, "pointdistill"):
        for mine, is_main in ((main, True), (other, False)):
            process: Any = SimpleNamespace(num_processes=2, is_main_process=is_main)
            found.append(module._agreed(mine, process))
    assert found == [replace(main, batch_size=4)] * 2
    assert [record.getMessage() for record in caplog.records] == [
        "batch: 4 instead of 6, the largest that fits into every process's memory"
    ]
