"""Shares weights on the Hugging Face Hub: prepares a folder with a model card, and uploads it."""

from __future__ import annotations

import importlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pointdistill.data.files.files import LOCK_NAME, hold_output, read_json, write_aside, write_json
from pointdistill.data.files.schema import from_plain, refusing_damage
from pointdistill.data.files.web import PAGE_SECONDS
from pointdistill.engine.evaluation.results import Result
from pointdistill.engine.evaluation.store import find_results
from pointdistill.engine.pretraining.run_folder import training_record
from pointdistill.engine.sharing.export import copy_statistics
from pointdistill.engine.sharing.model_card import KINDS, load_line, model_card
from pointdistill.engine.weights import check_hub_address, is_name
from pointdistill.engine.weights.encoders import (
    CONFIG,
    FORMAT,
    ONNX,
    STATISTICS,
    WEIGHTS,
    ModelFacts,
    check_repository,
    hub_errors,
    load_encoder,
    locate_encoder,
    read_facts,
    reason_of,
    weights_file,
)
from pointdistill.engine.weights.licences import CardLicence, Terms, card_licence, read_ledger
from pointdistill.errors import CheckpointError, DataError, one_line
from pointdistill.model.encoder import Encoder

CARD = "README.md"
UPLOADED = (CARD, CONFIG, WEIGHTS, ONNX, STATISTICS)
"""The only files that are uploaded; the last two only if there are any."""

_LONGEST_ANSWER = 1 << 24
"""Bytes of an answer to an upload; those of the Hub have a few thousand."""

TOKEN_HELP = "run `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True, slots=True)
class PreparedUpload:
    """A folder that is ready to be uploaded."""

    folder: Path
    source: Path
    """Where the weights come from."""

    is_encoder: bool
    """False for a fine-tuned model."""

    licence: CardLicence
    non_commercial: tuple[str, ...]
    """Names of the sources that do not allow commercial use."""

    results: int
    """Number of results on the card; 1 for a fine-tuned model with a score."""

    load: str
    """Python code that loads it from the Hub."""


def prepare(
    source: Path | str, repository: str, folder: Path, *, working: Path | None = None
) -> PreparedUpload:
    """Write the folder that would be uploaded: weights, configuration, model card.

    Args:
        source: as for ``load_encoder``, or the folder of a fine-tuned model.
        repository: ``owner/name``, for the card.
        folder: created if absent; one that was prepared before is replaced.
        working: the folder that ``evaluate`` was run in; by default the current one.

    Raises:
        CheckpointError: if there are no weights, or they do not load.
        ConfigError: if the Hub does not accept the name of ``repository``.
        DataError: if ``folder`` holds other files.
    """
    check_repository(repository)
    stored, encoder = _load_checked(source)
    facts = read_facts(stored)
    _check_free(folder)
    results: list[Result] = []
    card_facts = facts
    if encoder is not None:
        results = find_results(encoder, stored, facts, working=working or Path())
        card_facts = facts | {"training": training_record(stored, facts)}
    card = model_card(repository, card_facts, results)
    with hold_output(folder):
        _copy_weights(stored, facts, folder)
        with write_aside(folder / CARD) as aside:
            aside.write_text(card, encoding="utf-8")
    sources = read_ledger(facts.get("sources"))
    return PreparedUpload(
        folder=folder,
        source=stored,
        is_encoder=encoder is not None,
        licence=card_licence(sources),
        non_commercial=tuple(s.name for s in sources if s.terms is Terms.NON_COMMERCIAL),
        results=len(results) or int(bool(facts.get("score"))),
        load=load_line(facts, repository),
    )


def upload(folder: Path, repository: str, *, private: bool, stays: bool = True) -> str:
    """Create the repository if necessary, upload a prepared folder, and return its URL.

    Args:
        folder: from `prepare`.
        repository: ``owner/name``.
        private: whether a new repository is private.
        stays: whether the folder is there afterwards, so that an error can name it.

    Raises:
        CheckpointError: if there is no token or no network, or the Hub refuses; the folder is not changed.
    """
    check_hub_address()
    from huggingface_hub import HfApi, get_token

    ready = f". {folder} is ready and stays; the same command tries again" if stays else ""
    if get_token() is None:
        msg = f"no Hugging Face token on this machine: {TOKEN_HELP}{ready}"
        raise CheckpointError(msg)
    api = HfApi()
    try:
        with _bounded_answers():
            address = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                allow_patterns=list(UPLOADED),
                commit_message="Upload weights with their model card",
            )
    except hub_errors() as error:
        msg = (
            f"{repository} could not be uploaded ({reason_of(error)}); check the network, the name and the token "
            f"({TOKEN_HELP}){ready}"
        )
        raise CheckpointError(msg) from error
    return str(address)


@contextmanager
def _bounded_answers() -> Iterator[None]:
    """Hold what the Hub answers to its own client to the rules of all requests: a size, an end, and no way down
    from https to http. Clients before version 1.0 have no place for that."""
    from huggingface_hub import get_session  # type: ignore[attr-defined,unused-ignore]

    session: Any = get_session()
    if not hasattr(session, "event_hooks"):
        yield
        return
    before = session.event_hooks
    session.event_hooks = before | {"response": [*before.get("response", ()), _bound]}
    try:
        yield
    finally:
        session.event_hooks = before


def _bound(response: Any) -> None:
    """Refuse an answer of the Hub's client that leads off https, and let its body have a size and an end."""
    target = response.headers.get("Location", "")
    if response.url.scheme == "https" and target.lower().startswith("http:"):
        msg = f"{one_line(str(response.url))}: leads to an address that is not encrypted"
        raise OSError(msg)
    library = importlib.import_module(type(response).__module__.partition(".")[0])
    body = response.stream

    class Bounded(library.SyncByteStream):  # type: ignore[misc,name-defined]
        def __iter__(self) -> Iterator[bytes]:
            size, end = 0, time.monotonic() + PAGE_SECONDS
            for block in body:
                size += len(block)
                if size > _LONGEST_ANSWER or time.monotonic() > end:
                    msg = f"{one_line(str(response.url))}: an answer of more than {size:,} bytes does not end"
                    raise OSError(msg)
                yield block

        def close(self) -> None:
            body.close()

    response.stream = Bounded()


def _load_checked(source: Path | str) -> tuple[Path, Encoder | None]:
    """Load an encoder or a fine-tuned model as a check; returns its path, and the encoder if it is one."""
    local = Path(source)
    config = None if is_name(source) else _read_config(local)
    if config is not None and config.get("format") in KINDS and config["format"] != FORMAT:
        from pointdistill.engine.finetuning.models import load_model

        load_model(local)
        return local, None
    stored = locate_encoder(source)
    return stored, load_encoder(stored)


def _read_config(folder: Path) -> dict[str, Any] | None:
    if not (folder / CONFIG).is_file():
        return None
    with refusing_damage(folder / CONFIG, advice="export it again", error=CheckpointError):
        config = read_json(folder / CONFIG)
        from_plain(ModelFacts, config, partial=True)
        return dict(config)


def _check_free(folder: Path) -> None:
    """Check that a folder is absent, empty, or one that was prepared before.

    Raises:
        DataError: if it is a file or holds anything else.
    """
    if folder.exists() and not folder.is_dir():
        msg = f"{folder} is a file; name a folder"
        raise DataError(msg)
    other_files = (
        {entry.name for entry in folder.iterdir()} - {*UPLOADED, LOCK_NAME}
        if folder.exists()
        else set()
    )
    if other_files:
        msg = f"{folder} holds other files ({min(other_files)}); choose a new folder"
        raise DataError(msg)


def _copy_weights(stored: Path, facts: dict[str, Any], folder: Path) -> None:
    """Copy the weights, their configuration and, if there is one, the ONNX file, under the names to upload."""
    _copy(weights_file(stored), folder / WEIGHTS)
    write_json(folder / CONFIG, facts)
    if (stored / ONNX).is_file():
        _copy(stored / ONNX, folder / ONNX)
    else:
        (folder / ONNX).unlink(missing_ok=True)
    copy_statistics(stored, folder)


def _copy(source: Path, target: Path) -> None:
    if target.exists() and source.samefile(target):
        msg = f"{target.parent} is where the weights come from; choose another folder"
        raise DataError(msg)
    with write_aside(target) as aside:
        shutil.copyfile(source, aside)
