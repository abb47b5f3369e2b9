"""Encoders from a Hugging Face Hub repository; without a network, from the cache of an earlier download."""

from __future__ import annotations

import re
from pathlib import Path

from pointdistill.errors import CheckpointError

FILES = ("model.safetensors", "config.json")


def looks_like_repository(name: str) -> bool:
    """Whether a name has the form ``owner/name`` of a Hub repository."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def fetch_encoder(repository: str) -> Path:
    """The local folder of a repository's encoder, downloaded if it is not in the cache.

    Only the weights and their configuration are fetched; nothing in them is executed.

    Raises:
        CheckpointError: if it cannot be had; says why.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        folder = snapshot_download(repository, allow_patterns=list(FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        msg = (
            f"{repository}: neither a folder here nor a Hub repository that can be had ({reason}); "
            "check the name, or the network for a first download"
        )
        raise CheckpointError(msg) from error
    return Path(folder)
