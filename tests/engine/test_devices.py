"""What a device is asked before it is trusted."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

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


@pytest.mark.parametrize(
    ("variables", "accepted"),
    [
        ({}, True),
        ({"WORLD_SIZE": "1", "RANK": "0"}, True),  # as some clusters set them
        ({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, True),
        ({"WORLD_SIZE": "2", "RANK": "0"}, False),
        ({"RANK": "1"}, False),
        ({"LOCAL_RANK": "0"}, False),
        ({"WORLD_SIZE": "two", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, False),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, True),
    ],
)
def test_variables_that_a_launcher_left_are_named(
    variables: dict[str, str], accepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in devices.LAUNCH_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if accepted:
        devices.check_launch_variables()
        return
    with pytest.raises(ConfigError) as caught:
        devices.check_launch_variables()
    said = str(caught.value)
    assert all(f"{name}={value}" in said for name, value in variables.items())
    assert f"unset {' '.join(n for n in devices.LAUNCH_VARIABLES if n in variables)}" in said


def test_processes_that_never_come_are_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    left = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(devices, "_NEAR_SECONDS", 0.2)
    with pytest.raises(ConfigError, match="of 2 processes not all came within 0 seconds"):
        devices.build_accelerator("cpu", "no")


def test_only_a_gpu_multiplies_in_tf32_and_only_within_the_block() -> None:
    before = torch.get_float32_matmul_precision()
    with devices.gpu_products("tf32", torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == before
    for products, expected in (("tf32", "high"), ("float32", "highest")):
        with devices.gpu_products(products, torch.device("cuda")):  # type: ignore[arg-type]
            assert torch.get_float32_matmul_precision() == expected
        assert torch.get_float32_matmul_precision() == before


def test_each_of_several_processes_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.process_device("auto") == torch.device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "3")
    found = []
    for rank in ("0", "1", "2"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        found.append(devices.process_device("auto"))
    assert found == [torch.device("cuda", number) for number in (0, 1, 0)]
    assert devices.process_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE"])
@pytest.mark.parametrize("value", ["abc", "-1", "9" * 5000, "1.5"])
def test_what_is_no_number_of_a_launcher_is_one_line(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(one, raising=False)
    assert (devices.process_count(), devices.process_rank()) == (1, 0)
    assert devices.local_process_count() == 1
    monkeypatch.setenv(name, value)
    read = {"WORLD_SIZE": devices.process_count, "RANK": devices.process_rank}
    with pytest.raises(ConfigError, match=f"{name}={value}, which is no number"):
        read.get(name, devices.local_process_count)()
