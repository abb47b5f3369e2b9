"""Encoders on disk or on the Hugging Face Hub: a folder with ``model.safetensors`` and ``config.json``.

Nothing is unpickled. The network is used only for published weights, or a Hub repository, not in the cache yet.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from pointdistill.data.files.files import LOCK_NAME, read_json, write_aside, write_json
from pointdistill.data.files.schema import (
    MOST_RECORD_BYTES,
    from_plain,
    parse_json,
    read_bounded,
    refusing_damage,
    short_repr,
    to_plain,
)
from pointdistill.data.files.web import LostError, RefusedError, UnreachableError
from pointdistill.engine.weights import (
    BUNDLED,
    PUBLISHED,
    bundled_folder,
    check_hub_address,
    fetch_repository,
    holds_encoder,
    hub_is_off,
    is_name,
    suggestion,
)
from pointdistill.engine.weights import CONFIG as CONFIG
from pointdistill.engine.weights import WEIGHTS as WEIGHTS
from pointdistill.errors import CheckpointError, ConfigError, DataError
from pointdistill.model.config import EncoderConfig
from pointdistill.model.encoder import Encoder
from pointdistill.reporter import SILENT, Reporter
from pointdistill.version import __version__

ONNX = "model.onnx"
STATISTICS = "feature_statistics.safetensors"
"""Mean and principal axes of the encoder's features; optional, see ``engine.features.statistics``."""

HEADER = "pointdistill"
"""Key of a second copy of the configuration, in the header of the weights file."""

FORMAT = "pointdistill-encoder"
VERSION = 1

_AGAIN = "it may be cut short, copy it again"

_FETCHED = {CONFIG: MOST_RECORD_BYTES, WEIGHTS: 8 << 30, STATISTICS: 1 << 30}
"""The files of a repository that are downloaded, and the most bytes of each."""

LONGEST_NAME = 96
"""Largest length of a repository's name by the Hub's rules."""


def save_encoder(
    encoder: Encoder,
    folder: Path,
    *,
    sources: Sequence[Mapping[str, Any]] = (),
    training: Mapping[str, Any] | None = None,
    results: Sequence[Mapping[str, Any]] = (),
    half: bool = False,
) -> None:
    """Write an encoder folder; an existing file is replaced only when the new one is complete.

    Args:
        encoder: its weights are stored in float32, whatever their dtype.
        folder: created if absent; an encoder in it is replaced.
        sources: licence ledger, with an entry for each source that the encoder was trained on.
        training: how it was trained (recipe, steps, seed).
        results: its scores, as rows of ``results.json``.
        half: store them in float16 instead, in half the space. ``load_encoder`` gives float32 in either case.

    Raises:
        CheckpointError: if a weight is too large for float16.
    """
    dtype = torch.float16 if half else torch.float32
    state = {n: value.to("cpu", dtype).contiguous() for n, value in encoder.state_dict().items()}
    if half and not all(torch.isfinite(value).all() for value in state.values()):
        msg = f"{folder}: a weight is too large for float16; store this encoder in float32"
        raise CheckpointError(msg, settings=("half",))
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


def load_encoder(path: Path | str, *, reporter: Reporter = SILENT) -> Encoder:
    """The encoder of a name, or in a folder that ``export`` or a run wrote, in evaluation mode on the CPU.

    ``encoder(points)`` takes (B, N, 3) raw points, z up, and returns an ``EncoderOutput``: CLS (B, D), patch
    features (B, P, D) and patch centres (B, P, 3).

    Args:
        path: the name of published weights, such as ``"asymdsd-s"``; or the folder, its ``model.safetensors``
            (which may have been moved and renamed), or a run folder (for its ``encoder/``); or a Hub repository as
            ``owner/name``. Names and repositories are downloaded once and then cached. A ``Path``, or a string
            with a separator such as ``"./asymdsd-s"``, is never such a name.
        reporter: told of a download of published weights.

    Raises:
        CheckpointError: if there is no encoder, its format is unknown, or weights and configuration differ.
    """
    stored = locate_encoder(path, reporter=reporter)
    if stored.is_file():
        return _load(_encoder_config(_read_header(stored), stored), stored)
    return _load(read_encoder_config(stored), stored / WEIGHTS)


def locate_encoder(path: Path | str, *, reporter: Reporter = SILENT) -> Path:
    """The path of an encoder: its folder, or a weights file alone. What is on the Hub is downloaded if necessary.

    Args:
        path: as for ``load_encoder``.
        reporter: told of a download of published weights.

    Raises:
        CheckpointError: if there is none.
    """
    if is_name(path):
        return _locate_named(str(path), reporter)
    local = Path(path)
    if local.suffix == Path(WEIGHTS).suffix and local.is_file() and not _beside_config(local):
        return local
    # If there is a folder `runs`, `runs/mine` is a misspelled path and must not start a download.
    if not local.parent.is_dir() and looks_like_repository(str(path)):
        return find_encoder(fetch_model(str(path), reporter=reporter))
    return find_encoder(local)


def _locate_named(name: str, reporter: Reporter) -> Path:
    if Path(name).exists():
        reporter.say(f"note: {name} is the encoder of that name; the one here is ./{name}")
    if name == BUNDLED:
        return bundled_folder()
    from pointdistill.engine.weights.published import fetch_published

    return fetch_published(PUBLISHED[name], reporter=reporter)


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
    place = stored if stored.is_file() else stored / CONFIG
    with refusing_damage(place, advice="export it again", error=CheckpointError):
        facts = _read_header(stored) if stored.is_file() else read_json(place)
        from_plain(ModelFacts, facts, partial=True)
        return dict(facts)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """The part of a ``config.json`` that encoders, classifiers and segmenters share; all of it may be absent."""

    format: str = FORMAT
    version: int = VERSION
    sources: tuple[Mapping[str, Any], ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    results: tuple[Mapping[str, Any], ...] = ()
    pretraining: Mapping[str, Any] = field(default_factory=dict)
    score: Mapping[str, Any] | None = None


def _load(config: EncoderConfig, weights: Path) -> Encoder:
    check_sizes(weights, lambda: {"": Encoder(config)}, least=least_tensors(config))
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
    with refusing_damage(path, advice=_AGAIN, error=CheckpointError), safe_open(path, "pt") as file:
        stored = (file.metadata() or {}).get(HEADER)
    if stored is None:
        msg = (
            f"{path}: its header holds no configuration of an encoder, and no {CONFIG} lies beside it; "
            "give the folder that `pointdistill export` wrote"
        )
        raise CheckpointError(msg)
    with refusing_damage(path, advice=_AGAIN, error=CheckpointError):
        return parse_json(stored)


def find_encoder(path: Path) -> Path:
    """The encoder folder at ``path``, which may be the folder, its weights file, or a run.

    Raises:
        CheckpointError: if there is none.
    """
    if path.name == WEIGHTS and path.is_file():
        path = path.parent
    for folder in (path, path / "encoder"):
        if holds_encoder(folder):
            return folder
    msg = (
        f"{path}: no encoder here; {suggestion(path)}expected a folder with {WEIGHTS} and {CONFIG}, a run folder "
        "that `pointdistill pretrain` wrote, or a name that `pointdistill weights` lists"
    )
    raise CheckpointError(msg)


def read_encoder_config(folder: Path) -> EncoderConfig:
    """The configuration in an encoder folder.

    Raises:
        CheckpointError: if the file is damaged, or of another format or a newer version.
    """
    path = folder / CONFIG
    with refusing_damage(path, error=CheckpointError):
        return _encoder_config(read_json(path), path)


def _encoder_config(facts: Any, path: Path) -> EncoderConfig:
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        msg = f"{path}: not an encoder's configuration (expected format {FORMAT!r})"
        raise CheckpointError(msg)
    if facts.get("version") != VERSION:
        found = short_repr(facts.get("version"))
        msg = f"{path}: format version {found}, this program reads {VERSION}; update it"
        raise CheckpointError(msg)
    with refusing_damage(path, advice="export it again", error=CheckpointError):
        return from_plain(EncoderConfig, facts.get("encoder", {}), where="encoder")


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
    with refusing_damage(path, advice=_AGAIN, error=CheckpointError):
        # Not mapped: a file that becomes shorter meanwhile would end the process.
        return load(path.read_bytes())


def check_sizes(path: Path, build: Callable[[], Mapping[str, nn.Module]], *, least: int) -> None:
    """Compare a safetensors file's header with a model, before memory is taken for either.

    A configuration of a few bytes may describe a model that no machine holds. What fits the header is no larger
    than the file.

    Args:
        path: the weights.
        build: makes the modules whose tensors the file should have, by the prefix of their names; tensors of other
            names are left alone.
        least: fewest tensors that they can have, so that a model of a million layers is not even outlined.

    Raises:
        CheckpointError: if the file is damaged, or its tensors are others than the modules'.
    """
    with refusing_damage(path, advice=_AGAIN, error=CheckpointError), safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        found = {name: torch.Size(one.get_shape()) for name, one in slices.items()}
        whole = {
            name for name, one in slices.items() if not one.get_dtype().startswith(("F", "BF"))
        }
    if least > len(found):
        msg = f"{path} does not fit this model: it has {len(found)} tensors, the model at least {least:,}"
        raise CheckpointError(msg)
    with refusing_damage(path, error=CheckpointError), torch.device("meta"):
        modules = build()
    expected = {
        prefix + name: value
        for prefix, module in modules.items()
        for name, value in module.state_dict().items()
    }
    found = {name: shape for name, shape in found.items() if name.startswith(tuple(modules))}
    problems = _differences({name: value.shape for name, value in expected.items()}, found)
    problems += [
        f"{name} holds whole numbers"
        for name in sorted(whole & expected.keys())
        if expected[name].is_floating_point()
    ]
    _refuse_different(path, problems)


def least_tensors(config: EncoderConfig) -> int:
    """Fewest tensors that an encoder's weights can have: one for each of its layers."""
    return config.depth + len(config.stage_one) + len(config.stage_two)


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load weights into ``module`` if every name and shape agrees and every value is finite.

    Raises:
        CheckpointError: listing every tensor of ``path`` that does not fit.
    """
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    found = {name: value.shape for name, value in tensors.items()}
    problems = _differences(shapes, found)
    problems += [
        f"{name} holds values that are not finite"
        for name in sorted(shapes.keys() & found.keys())
        if shapes[name] == found[name] and not torch.isfinite(tensors[name]).all()
    ]
    _refuse_different(path, problems)
    module.load_state_dict(dict(tensors))


def _differences(expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size]) -> list[str]:
    """How the shapes of a file's tensors differ from a model's."""
    problems = [f"missing {name}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"unexpected {name[:80]}" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"{name} is {tuple(found[name])}, the model's {tuple(expected[name])}"
        for name in sorted(expected.keys() & found.keys())
        if expected[name] != found[name]
    ]
    return problems


def _refuse_different(path: Path, problems: list[str]) -> None:
    if problems:
        listed = "; ".join(problems[:6]) + (
            f"; and {len(problems) - 6} more" if problems[6:] else ""
        )
        msg = f"{path} does not fit this model: {listed}"
        raise CheckpointError(msg)


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
    names = {entry.name for entry in output.iterdir()} - {LOCK_NAME}
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


def fetch_model(repository: str, *, reporter: Reporter = SILENT) -> Path:
    """The local folder of a repository's encoder or fine-tuned model; only what the cache lacks is downloaded.

    Only the weights, their configuration and their feature statistics are fetched; nothing in them is executed.

    Raises:
        CheckpointError: if it cannot be downloaded; says why.
    """
    reason = ""
    try:
        check_repository(repository)
        check_hub_address()
        if not hub_is_off():
            return fetch_repository(repository, _FETCHED, _wrong_with, reporter)
    except (ConfigError, RefusedError) as error:
        raise _out_of_reach(repository, str(error)) from error
    except UnreachableError:
        reason = "no connection to the Hub"
    except (LostError, DataError) as error:
        reason = str(error)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except hub_errors() as error:
        raise _out_of_reach(repository, reason or reason_of(error)) from error


def _wrong_with(name: str, path: Path) -> str:
    """What is wrong with a downloaded file of a repository; empty if it is what its name says."""
    try:
        with refusing_damage(name):
            if name == CONFIG:
                parse_json(read_bounded(path))
            else:
                with safe_open(path, "pt"):  # compares the length of the file with its header
                    pass
    except DataError as error:
        return str(error).removeprefix(f"{name}: ")
    return ""


def _out_of_reach(repository: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{repository}: neither a folder here nor a Hub repository that can be reached ({reason}); check the "
        "name, or the network for a first download"
    )


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
