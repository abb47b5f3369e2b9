"""What tests ask of every refusal of a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pointdistill.errors import DataError


def refusal_of(path: Path, read: Callable[[Path], object]) -> str:
    """The message with which ``read`` refuses a file: one line that names it."""
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message
