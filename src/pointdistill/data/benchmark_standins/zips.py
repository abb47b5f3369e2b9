"""What all stand-ins share: their seed, and zip members whose bytes depend only on their content."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping

STAND_IN_SEED = 40_417
"""Seed of every stand-in; one that nobody would choose for a corpus."""

_OLDEST = (1980, 1, 1, 0, 0, 0)  # the first moment that the format can name


def add_member(archive: zipfile.ZipFile, name: str, content: bytes, *, compress: bool) -> None:
    """Add a member without the current time, so that an archive made twice is the same file."""
    info = zipfile.ZipInfo(name, date_time=_OLDEST)
    info.external_attr = 0o644 << 16
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    archive.writestr(info, content, compress_type=method)


def add_marker(archive: zipfile.ZipFile, name: str, facts: Mapping[str, object]) -> None:
    """Add the JSON member that marks a stand-in and says what it was made from."""
    text = json.dumps(facts, indent=1) + "\n"
    add_member(archive, name, text.encode(), compress=False)
