"""Fixtures that the tests of builds share."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The class of the odd source, in a module that workers can import."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module("odd_source").OddSource  # type: ignore[no-any-return]
