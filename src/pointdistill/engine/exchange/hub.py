"""Encoders from a Hugging Face Hub repository; without a network, from the cache of an earlier download."""

from __future__ import annotations

import re
from pathlib import Path

from pointdistill.errors import CheckpointError, ConfigError

FILES = ("model.safetensors", "config.json")
LONGEST = 96
"""Characters of a repository's name, by the Hub's rules."""


def looks_like_repository(name: str) -> bool:
    """Whether a name has the form ``owner/name`` of a Hub repository."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def check_repository(name: str) -> None:
    """Raise unless a name is one that the Hub accepts.

    Raises:
        ConfigError: saying what is accepted.
    """
    parts = name.split("/")
    plain = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
    valid = len(parts) == 2 and all(re.fullmatch(plain, part) for part in parts)
    if not valid or len(name) > LONGEST or re.search(r"--|\.\.|\.git$", name):
        msg = (
            f"{name!r} is no repository of the Hub; expected owner/name of letters, digits, '-', '_' and '.', "
            "such as jane/shapes-tiny"
        )
        raise ConfigError(msg)


def fetch_encoder(repository: str) -> Path:
    """The local folder of a repository's encoder, downloaded if it is not in the cache.

    Only the weights and their configuration are fetched; nothing in them is executed.

    Raises:
        CheckpointError: if it cannot be had; says why.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(repository, allow_patterns=list(FILES))
    except hub_errors() as error:
        msg = (
            f"{repository}: neither a folder here nor a Hub repository that can be had ({reason_of(error)}); "
            "check the name, or the network for a first download"
        )
        raise CheckpointError(msg) from error
    return Path(folder)


def hub_errors() -> tuple[type[Exception], ...]:
    """What the Hub's client raises for a bad name, a refusal, a missing file, or no network."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # Its bases are the errors of the HTTP library below it, which is another in each major version.
    bases = [kind for kind in HfHubHTTPError.__mro__ if issubclass(kind, Exception)]
    return (HFValidationError, OSError, *(kind for kind in bases if kind is not Exception))


def reason_of(error: Exception) -> str:
    """The first line of an error."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
