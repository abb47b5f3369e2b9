"""Encoders on disk: a folder of ``model.safetensors`` and ``config.json``. No pickle, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

import pointdistill
from pointdistill.data.files import read_json, write_aside, write_json
from pointdistill.engine.config import from_plain, to_plain
from pointdistill.engine.hub import fetch_encoder, looks_like_repository
from pointdistill.errors import CheckpointError, DataError, PointDistillError
from pointdistill.model.encoder import Encoder, EncoderConfig

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT = "pointdistill-encoder"
VERSION = 1


def save_encoder(
    encoder: Encoder,
    folder: Path,
    *,
    sources: Sequence[Mapping[str, Any]] = (),
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write an encoder folder, each file whole or absent.

    Args:
        encoder: weights are stored in float32.
        folder: made if absent; an encoder in it is replaced.
        sources: licence ledger, one entry a source that the encoder saw.
        training: how it came about (recipe, steps, seed).
    """
    state = {name: value.float().contiguous().cpu() for name, value in encoder.state_dict().items()}
    write_tensors(folder / WEIGHTS, state)
    write_json(
        folder / CONFIG,
        {
            "format": FORMAT,
            "version": VERSION,
            "pointdistill": pointdistill.__version__,
            "encoder": to_plain(encoder.config),
            "sources": list(sources),
            "training": dict(training or {}),
        },
    )


def load_encoder(path: Path | str) -> Encoder:
    """The encoder in a folder that ``export`` or a run wrote, in evaluation mode on the CPU.

    ``encoder(points)`` takes (B, N, 3) raw points, z up, and returns an ``EncoderOutput``: CLS (B, D), patch
    features (B, P, D) and patch centres (B, P, 3).

    Args:
        path: the folder, the ``model.safetensors`` in it, a run folder (its ``encoder/`` is taken), or a Hub
            repository as ``owner/name``, which is downloaded once and then found in the cache.

    Raises:
        CheckpointError: if there is no encoder, its format is unknown, or weights and configuration differ.
    """
    # `runs/mine` with a folder `runs` here is a path with a typing error, never a stranger's repository.
    if not Path(path).parent.is_dir() and looks_like_repository(str(path)):
        path = fetch_encoder(str(path))
    folder = find_encoder(Path(path))
    config = read_encoder_config(folder)
    encoder = Encoder(config)
    state = read_tensors(folder / WEIGHTS)
    load_exactly(encoder, state, folder / WEIGHTS)
    return encoder.eval().requires_grad_(requires_grad=False)


def find_encoder(path: Path) -> Path:
    """The encoder folder that ``path`` means.

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
    path = folder / CONFIG
    try:
        found = read_json(path)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            msg = f"{path}: not an encoder's configuration (expected format {FORMAT!r})"
            raise CheckpointError(msg)
        if found.get("version") != VERSION:
            msg = f"{path}: format version {found.get('version')!r}, this program reads {VERSION}; update it"
            raise CheckpointError(msg)
        return from_plain(EncoderConfig, found.get("encoder", {}), where="encoder")
    except CheckpointError:
        raise
    except PointDistillError as error:
        msg = f"{path}: {error}"
        raise CheckpointError(msg) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, whole or absent."""
    with write_aside(path) as aside:
        aside.write_bytes(save(dict(tensors)))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        msg = f"{path}: not readable as safetensors ({error}); it may be cut short, copy it again"
        raise CheckpointError(msg) from error


def load_exactly(module: nn.Module, found: Mapping[str, Tensor], path: Path) -> None:
    """Load weights into ``module`` if every name and shape agrees and every value is finite.

    Raises:
        CheckpointError: listing every tensor of ``path`` that does not fit.
    """
    expected = module.state_dict()
    problems = [f"missing {name}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"unexpected {name}" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        if expected[name].shape != found[name].shape:
            problems.append(
                f"{name} is {tuple(found[name].shape)}, the model's {tuple(expected[name].shape)}"
            )
        elif not torch.isfinite(found[name]).all():
            problems.append(f"{name} holds values that are not finite")
    if problems:
        shown = "; ".join(problems[:6]) + (
            f"; and {len(problems) - 6} more" if problems[6:] else ""
        )
        msg = f"{path} does not fit this model: {shown}"
        raise CheckpointError(msg)
    module.load_state_dict(dict(found))


def check_free_for_encoder(output: Path) -> None:
    """Raise unless ``output`` is absent, empty, or an encoder folder that may be replaced.

    Raises:
        DataError: if it holds anything else, a run's own ``config.json`` for one.
    """
    if not output.exists():
        return
    if not output.is_dir():
        msg = f"{output} is a file; name a folder for the encoder"
        raise DataError(msg)
    holds = {entry.name for entry in output.iterdir()}
    if holds and not {CONFIG, WEIGHTS} <= holds:
        msg = f"{output} exists and holds other files; choose a new folder for the encoder"
        raise DataError(msg)


def export_encoder(source: Path, output: Path) -> Path:
    """Copy the encoder of ``source`` to the folder ``output``, checked on the way; the folder found.

    Raises:
        CheckpointError: if ``source`` holds no encoder or a damaged one.
        DataError: if ``output`` exists and is not an encoder folder.
    """
    folder = find_encoder(source)
    check_free_for_encoder(output)
    encoder = load_encoder(folder)
    kept = read_json(folder / CONFIG)
    save_encoder(
        encoder, output, sources=kept.get("sources", []), training=kept.get("training", {})
    )
    return folder
