"""Sharing weights on the Hugging Face Hub: a folder with a model card, and its upload with one's own token."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pointdistill.data.files import read_json, write_aside, write_json
from pointdistill.engine.evaluation.results import Result
from pointdistill.engine.exchange.encoders import (
    CONFIG,
    FORMAT,
    ONNX,
    WEIGHTS,
    check_repository,
    hub_errors,
    load_encoder,
    locate_encoder,
    read_facts,
    reason_of,
    weights_file,
)
from pointdistill.engine.exchange.licences import CardLicence, Terms, card_licence, read_ledger
from pointdistill.engine.exchange.model_card import KINDS, load_line, model_card
from pointdistill.engine.exchange.record import find_results, training_record
from pointdistill.errors import CheckpointError, DataError
from pointdistill.model.encoder import Encoder

CARD = "README.md"
UPLOADED = (CARD, CONFIG, WEIGHTS, ONNX)
"""All that is ever uploaded; the ONNX file where there is one."""

TOKEN_HELP = "run `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A folder that is ready to be uploaded."""

    folder: Path
    source: Path
    """Where the weights were taken from."""

    is_encoder: bool
    """False of a fine-tuned model."""

    licence: CardLicence
    non_commercial: tuple[str, ...]
    """Sources that allow no commercial use."""

    results: int
    """What the card shows as measured: rows of an encoder, 1 for a fine-tuned model's score."""

    load: str
    """Python that loads it from the Hub."""


def prepare(
    source: Path | str, repository: str, folder: Path, *, working: Path | None = None
) -> Prepared:
    """Write the folder that would be uploaded: weights, configuration, model card.

    Args:
        source: as for ``load_encoder``, or the folder of a fine-tuned model.
        repository: ``owner/name``, as the card calls it.
        folder: made if absent; one that was prepared before is replaced.
        working: where ``evaluate`` was run; the current folder by default.

    Raises:
        CheckpointError: if there are no weights, or they do not load.
        ConfigError: if ``repository`` is no name of the Hub.
        DataError: if ``folder`` holds other files.
    """
    check_repository(repository)
    found, encoder = _find(source)
    described = read_facts(found)
    _check_free(folder)
    results: list[Result] = []
    told = described
    if encoder is not None:
        results = find_results(encoder, found, described, working=working or Path())
        told = described | {"training": training_record(found, described)}
    card = model_card(repository, told, results)
    _copy_weights(found, described, folder)
    with write_aside(folder / CARD) as aside:
        aside.write_text(card, encoding="utf-8")
    sources = read_ledger(described.get("sources"))
    return Prepared(
        folder=folder,
        source=found,
        is_encoder=encoder is not None,
        licence=card_licence(sources),
        non_commercial=tuple(s.name for s in sources if s.terms is Terms.NON_COMMERCIAL),
        results=len(results) or int(bool(described.get("score"))),
        load=load_line(described, repository),
    )


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Create the repository if there is none, upload a prepared folder, and return its address.

    Raises:
        CheckpointError: without a token or a network, or where the Hub refuses; the folder stays as it is.
    """
    from huggingface_hub import HfApi, get_token

    ready = f"{folder} is ready and stays; the same command tries again"
    if get_token() is None:
        msg = f"no Hugging Face token on this machine: {TOKEN_HELP}. {ready}"
        raise CheckpointError(msg)
    api = HfApi()
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(UPLOADED),
            commit_message="Upload weights with their model card",
        )
    except hub_errors() as error:
        msg = (
            f"{repository} could not be uploaded ({reason_of(error)}); check the network, the name and the token "
            f"({TOKEN_HELP}). {ready}"
        )
        raise CheckpointError(msg) from error
    return str(made)


def _find(source: Path | str) -> tuple[Path, Encoder | None]:
    """Where an encoder or a fine-tuned model lies, once it has proved to load; and the encoder."""
    given = Path(source)
    described = _described(given)
    if described is not None and described.get("format") in KINDS and described["format"] != FORMAT:
        from pointdistill.engine.finetuning.models import load_model

        load_model(given)
        return given, None
    stored = locate_encoder(source)
    return stored, load_encoder(stored)


def _described(folder: Path) -> dict[str, Any] | None:
    """A folder's ``config.json``, if it has one that can be read."""
    if not (folder / CONFIG).is_file():
        return None
    found = read_json(folder / CONFIG)
    return found if isinstance(found, dict) else None


def _check_free(folder: Path) -> None:
    """Raise unless a folder is absent, empty, or one that was prepared before.

    Raises:
        DataError: if it is a file or holds anything else.
    """
    if folder.exists() and not folder.is_dir():
        msg = f"{folder} is a file; name a folder"
        raise DataError(msg)
    others = {entry.name for entry in folder.iterdir()} - {*UPLOADED} if folder.exists() else set()
    if others:
        msg = f"{folder} holds other files ({min(others)}); choose a new folder"
        raise DataError(msg)


def _copy_weights(found: Path, described: dict[str, Any], folder: Path) -> None:
    """Weights, what is recorded of them, and the ONNX file if there is one, by the names that are uploaded."""
    _copy(weights_file(found), folder / WEIGHTS)
    write_json(folder / CONFIG, described)
    if (found / ONNX).is_file():
        _copy(found / ONNX, folder / ONNX)
    else:
        (folder / ONNX).unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    if target.exists() and source.samefile(target):
        msg = f"{target.parent} is where the weights come from; choose another folder"
        raise DataError(msg)
    with write_aside(target) as aside:
        shutil.copyfile(source, aside)
