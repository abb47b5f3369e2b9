"""What a device is asked before it is trusted."""

from __future__ import annotations

import pytest

from pointdistill.engine import devices
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
    assert message.startswith(
        f"precision 'bf16' cannot be had on this CPU ({reason}); use --precision no"
    )
    assert "\n" not in message
