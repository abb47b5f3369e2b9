"""Encoders on disk or on the Hugging Face Hub: a folder with ``model.safetensors`` and ``config.json``.

Nothing is unpickled. The network is used only for a Hub repository that is not in the cache yet.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pointdistill.data.files.files import read_json, write_aside, write_json
from pointdistill.data.files.schema import from_plain, to_plain
from pointdistill.errors import CheckpointError, ConfigError, DataError, PointDistillError
from pointdistill.model.config import EncoderConfig
from pointdistill.model.encoder import Encoder
from pointdistill.version import __version__

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
ONNX = "model.onnx"
HEADER = "pointdistill"
"""Key of a second copy of the configuration, in the header of the weights file."""

FORMAT = "pointdistill-encoder"
VERSION = 1

LONGEST_NAME = 96
"""Largest length of a repository's name by the Hub's rules."""


def save_encoder(
    encoder: Encoder,
    folder: Path,
    *,
    sources: Sequence[Mapping[str, Any]] = (),
    training: Mapping[str, Any] | None = None,
    results: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write an encoder folder; an existing file is replaced only when the new one is complete.

    Args:
        encoder: its weights are stored in float32.
        folder: created if absent; an encoder in it is replaced.
        sources: licence ledger, with an entry for each source that the encoder was trained on.
        training: how it was trained (recipe, steps, seed).
        results: its scores, as rows of ``results.json``.
    """
    state = {name: value.float().contiguous().cpu() for name, value in encoder.state_dict().items()}
    described = {
        "format": FORMAT,
        "version": VERSION,
        "pointdistill": __version__,
        "encoder": to_plain(encoder.config),
        "sources": list(sources),
        "training": dict(training or {}),
        **({"results": list(results)} if results else {}),
    }
    write_tensors(folder / WEIGHTS, state, {HEADER: json.dumps(described)})
    write_json(folder / CONFIG, described)


def load_encoder(path: Path | str) -> Encoder:
    """The encoder in a folder that ``export`` or a run wrote, in evaluation mode on the CPU.

    ``encoder(points)`` takes (B, N, 3) raw points, z up, and returns an ``EncoderOutput``: CLS (B, D), patch
    features (B, P, D) and patch centres (B, P, 3).

    Args:
        path: the folder, its ``model.safetensors`` (which may have been moved and renamed), a run folder (for its
            ``encoder/``), or a Hub repository as ``owner/name``, which is downloaded once and then cached.

    Raises:
        CheckpointError: if there is no encoder, its format is unknown, or weights and configuration differ.
    """
    stored = locate_encoder(path)
    if stored.is_file():
        return _load(_encoder_config(_read_header(stored), stored), stored)
    return _load(read_encoder_config(stored), stored / WEIGHTS)


def locate_encoder(path: Path | str) -> Path:
    """The path of an encoder: its folder, or a weights file alone. A Hub repository is downloaded if necessary.

    Args:
        path: as for ``load_encoder``.

    Raises:
        CheckpointError: if there is none.
    """
    local = Path(path)
    if local.suffix == Path(WEIGHTS).suffix and local.is_file() and not _beside_config(local):
        return local
    # If there is a folder `runs`, `runs/mine` is a misspelled path and must not start a download.
    if not local.parent.is_dir() and looks_like_repository(str(path)):
        return find_encoder(fetch_encoder(str(path)))
    return find_encoder(local)


def weights_file(stored: Path) -> Path:
    """The weights file of an encoder; ``stored`` is the result of ``locate_encoder``."""
    return stored if stored.is_file() else stored / WEIGHTS


def read_facts(stored: Path) -> dict[str, Any]:
    """Everything recorded about an encoder: its ``config.json``, or the header of a weights file alone.

    Args:
        stored: the result of ``locate_encoder``.

    Raises:
        CheckpointError: if nothing is recorded, or it is damaged.
    """
    if stored.is_file():
        facts = _read_header(stored)
    else:
        try:
            facts = read_json(stored / CONFIG)
        except DataError as error:
            raise CheckpointError(str(error)) from error
    if not isinstance(facts, dict):
        msg = f"{stored}: holds no configuration of an encoder; export it again"
        raise CheckpointError(msg)
    return facts


def _load(config: EncoderConfig, weights: Path) -> Encoder:
    encoder = Encoder(config)
    load_exactly(encoder, read_tensors(weights), weights)
    return encoder.eval().requires_grad_(requires_grad=False)


def _beside_config(weights: Path) -> bool:
    return weights.name == WEIGHTS and weights.with_name(CONFIG).is_file()


def _read_header(path: Path) -> Any:
    """The configuration in the header of a safetensors file.

    Raises:
        CheckpointError: if it is damaged or has none.
    """
    try:
        with safe_open(path, "pt") as file:
            stored = (file.metadata() or {}).get(HEADER)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error
    if stored is None:
        msg = (
            f"{path}: its header holds no configuration of an encoder, and no {CONFIG} lies beside it; "
            "give the folder that `pointdistill export` wrote"
        )
        raise CheckpointError(msg)
    try:
        return json.loads(stored)
    except json.JSONDecodeError as error:
        raise _damaged(path, error) from error


def find_encoder(path: Path) -> Path:
    """The encoder folder at ``path``, which may be the folder, its weights file, or a run.

    Raises:
        CheckpointError: if there is none.
    """
    if path.name == WEIGHTS and path.is_file():
        path = path.parent
    for folder in (path, path / "encoder"):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            return folder
    msg = (
        f"{path}: no encoder here; expected a folder with {WEIGHTS} and {CONFIG}, or a run folder "
        "that `pointdistill pretrain` wrote"
    )
    raise CheckpointError(msg)


def read_encoder_config(folder: Path) -> EncoderConfig:
    """The configuration in an encoder folder.

    Raises:
        CheckpointError: if the file is damaged, or of another format or a newer version.
    """
    try:
        config = read_json(folder / CONFIG)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    return _encoder_config(config, folder / CONFIG)


def _encoder_config(facts: Any, path: Path) -> EncoderConfig:
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        msg = f"{path}: not an encoder's configuration (expected format {FORMAT!r})"
        raise CheckpointError(msg)
    if facts.get("version") != VERSION:
        msg = f"{path}: format version {facts.get('version')!r}, this program reads {VERSION}; update it"
        raise CheckpointError(msg)
    try:
        return from_plain(EncoderConfig, facts.get("encoder", {}), where="encoder")
    except PointDistillError as error:
        msg = f"{path}: {error}"
        raise CheckpointError(msg) from error


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file with ``header`` as its metadata, atomically."""
    with write_aside(path) as aside:
        aside.write_bytes(save(dict(tensors), None if header is None else dict(header)))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path}: not readable as safetensors ({error}); it may be cut short, copy it again"
    )


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load weights into ``module`` if every name and shape agrees and every value is finite.

    Raises:
        CheckpointError: listing every tensor of ``path`` that does not fit.
    """
    expected = module.state_dict()
    problems = [f"missing {name}" for name in sorted(expected.keys() - tensors.keys())]
    problems += [f"unexpected {name}" for name in sorted(tensors.keys() - expected.keys())]
    for name in sorted(expected.keys() & tensors.keys()):
        if expected[name].shape != tensors[name].shape:
            problems.append(
                f"{name} is {tuple(tensors[name].shape)}, the model's {tuple(expected[name].shape)}"
            )
        elif not torch.isfinite(tensors[name]).all():
            problems.append(f"{name} holds values that are not finite")
    if problems:
        listed = "; ".join(problems[:6]) + (
            f"; and {len(problems) - 6} more" if problems[6:] else ""
        )
        msg = f"{path} does not fit this model: {listed}"
        raise CheckpointError(msg)
    module.load_state_dict(dict(tensors))


def check_free_for_encoder(output: Path) -> None:
    """Check that ``output`` is absent, empty, or holds an encoder or ONNX file that may be replaced.

    Raises:
        DataError: if it holds anything else, such as a run with its own ``config.json``.
    """
    if not output.exists():
        return
    if not output.is_dir():
        msg = f"{output} is a file; name a folder for the encoder"
        raise DataError(msg, settings=("output",))
    names = {entry.name for entry in output.iterdir()}
    if not (names <= {ONNX} or {CONFIG, WEIGHTS} <= names):
        msg = f"{output} exists and holds other files; choose a new folder for the encoder"
        raise DataError(msg, settings=("output",))


def looks_like_repository(name: str) -> bool:
    """Whether a name has the form ``owner/name`` of a Hub repository."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def check_repository(name: str) -> None:
    """Check that the Hub accepts a name.

    Raises:
        ConfigError: if it does not; says what is accepted.
    """
    parts = name.split("/")
    plain = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
    valid = len(parts) == 2 and all(re.fullmatch(plain, part) for part in parts)
    if not valid or len(name) > LONGEST_NAME or re.search(r"--|\.\.|\.git$", name):
        msg = (
            f"{name!r} is not the name of a Hub repository; expected owner/name of letters, digits, '-', '_' and "
            "'.', such as jane/shapes-tiny"
        )
        raise ConfigError(msg)


def fetch_encoder(repository: str) -> Path:
    """The local folder of a repository's encoder, which is downloaded unless it is in the cache.

    Only the weights and their configuration are fetched; nothing in them is executed.

    Raises:
        CheckpointError: if it cannot be downloaded; says why.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(repository, allow_patterns=[WEIGHTS, CONFIG])
    except hub_errors() as error:
        msg = (
            f"{repository}: neither a folder here nor a Hub repository that can be reached ({reason_of(error)}); "
            "check the name, or the network for a first download"
        )
        raise CheckpointError(msg) from error
    return Path(folder)


def hub_errors() -> tuple[type[Exception], ...]:
    """The exceptions that the Hub's client raises for a bad name, a refusal, a missing file, or no network."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # Its base classes include the errors of the client's HTTP library, which changed between major versions.
    bases = [kind for kind in HfHubHTTPError.__mro__ if issubclass(kind, Exception)]
    return (HFValidationError, OSError, *(kind for kind in bases if kind is not Exception))


def reason_of(error: Exception) -> str:
    """The first line of an error."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def encoder_checksum(encoder: Encoder) -> str:
    """Hexadecimal SHA-256 of an encoder's configuration and weights, independent of how it is stored."""
    digest = hashlib.sha256(json.dumps(to_plain(encoder.config), sort_keys=True).encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def fingerprint(encoder: Encoder) -> str:
    """Sixteen hexadecimal digits that identify an encoder's weights and architecture.

    They are the same for a run's encoder and its export, whatever the folder, file or version of this program.
    """
    return encoder_checksum(encoder)[:16]
