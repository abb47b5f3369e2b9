"""What several tests share."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.warm import Warm, warm_process

# As the program's own entry does, and before anything loads torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

TESTS = Path(__file__).parent


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Golden numbers: those of the repository, or another set of the same sizes."""
    return Path(os.environ.get("POINTDISTILL_GOLDEN", TESTS / "golden"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Material that lies beside a checkout on the project's own machines; absent elsewhere."""
    folder = TESTS.parent.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the folder 'shared' is not beside this checkout")
    return folder


@pytest.fixture(autouse=True)
def no_slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands do not say how far they are or how long they took, as they do where they take more than seconds."""
    monkeypatch.setattr("pointdistill.cli.console.SECONDS_BEFORE_LINES", math.inf)
    monkeypatch.setattr("pointdistill.cli.console.LONG_SECONDS", math.inf)


@pytest.fixture
def no_bundled_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without the encoder that comes with the program, which is else the last choice."""
    monkeypatch.setattr("pointdistill.engine.weights.BUNDLED_FOLDER", tmp_path / "no bundled")


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Starts programs without their having to load torch."""
    with warm_process(tmp_path_factory.mktemp("warm")) as process:
        yield process
