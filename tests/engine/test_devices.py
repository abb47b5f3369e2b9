"""What a device is asked before it is trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

from pointdistill.engine.runtime import devices
from pointdistill.errors import ConfigError


@pytest.mark.parametrize(
    ("trial", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "it ends in SIGILL"),
        ("raise RuntimeError('no such kernel')", "RuntimeError: no such kernel"),
    ],
)
def test_a_cpu_that_cannot_train_in_bf16_is_refused_in_one_line(
    trial: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_BF16_TRIAL", trial)
    with pytest.raises(ConfigError) as caught:
        devices.build_accelerator("cpu", "bf16")
    message = str(caught.value)
    assert message.startswith(f"precision 'bf16' does not work on this CPU ({reason}); use 'no'")
    assert "\n" not in message


def test_a_trial_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_BF16_TRIAL", "import time; time.sleep(30)")
    monkeypatch.setattr(devices, "_TRIAL_SECONDS", 0.2)
    with pytest.raises(ConfigError, match=r"\(a trial did not end within 0.2 s\)"):
        devices.build_accelerator("cpu", "bf16")


def test_a_trial_loads_nothing_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('a file of the user was run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "_BF16_TRIAL", "import random")
    devices.build_accelerator("cpu", "bf16")
