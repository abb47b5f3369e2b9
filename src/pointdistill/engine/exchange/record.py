"""What is known of an encoder besides its weights: the scores measured with them, and the corpus they saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pointdistill.data.files import read_json
from pointdistill.data.workspace import last_run
from pointdistill.engine.config import PretrainConfig, from_plain
from pointdistill.engine.embedding.compute import encoder_checksum
from pointdistill.engine.evaluation.results import Result, setting_of
from pointdistill.engine.training.run_folder import RUN_CONFIG, run_folder_of
from pointdistill.errors import ConfigError, DataError
from pointdistill.model.encoder import Encoder

RESULTS = "results"
"""Key in an exported encoder's ``config.json`` of the scores that were there when it was exported."""


def fingerprint(encoder: Encoder) -> str:
    """Sixteen hexadecimal digits that tell an encoder's weights and architecture from any other's.

    The same for a run's encoder and an exported one, in whatever folder, file or version of this program.
    """
    return encoder_checksum(encoder)[:16]


def find_results(
    encoder: Encoder, stored: Path, facts: Mapping[str, Any], *, working: Path
) -> list[Result]:
    """The scores measured with exactly these weights, each once, without paths of this machine.

    They are looked for in what was exported, beside the encoder, in its run, and where ``evaluate`` writes: under
    ``evaluation/`` of the working folder and in the last run made there. Of one setting, the row over the most
    seeds counts. Files that cannot be read are passed over.

    Args:
        encoder: the one in ``stored``.
        stored: its folder, or its file.
        facts: what is recorded of it, see ``weights.read_facts``.
        working: where commands are run.
    """
    wanted = fingerprint(encoder)
    rows = [facts.get(RESULTS)]
    rows += [_rows_of(file) for file in _result_files(stored, working)]
    kept: dict[object, Result] = {}
    for result in (result for found in rows for result in _parsed(found)):
        if result.fingerprint == wanted:
            known = kept.get(setting_of(result))
            if known is None or len(result.seeds) > len(known.seeds):
                # By a name without the path that this machine knows the encoder by.
                kept[setting_of(result)] = replace(result, features="encoder")
    return list(kept.values())


def training_record(stored: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """How an encoder came about: what is recorded of it and, where it lies in its run, what that has to say.

    The run adds the corpus it took and ``total_steps``, the steps that it was to have.
    """
    recorded = facts.get("training")
    training = dict(recorded) if isinstance(recorded, Mapping) else {}
    run = run_folder_of(stored.resolve())
    described = None if run is None else _read(run / RUN_CONFIG)
    corpus = described.get("corpus") if isinstance(described, Mapping) else None
    if isinstance(described, Mapping) and isinstance(corpus, Mapping):
        told = {key: corpus[key] for key in ("shapes", "fingerprint") if key in corpus}
        training |= {"corpus": told}
        total = _total_steps(described.get("config"), corpus.get("shapes"))
        training |= {} if total is None else {"total_steps": total}
    return training


def _total_steps(config: Any, shapes: Any) -> int | None:
    """Steps of a whole run, from its configuration and its corpus's shapes; None where these are not known."""
    if not isinstance(config, Mapping) or not isinstance(shapes, int):
        return None
    try:
        return from_plain(PretrainConfig, config, where="config").total_steps(shapes)
    except (ConfigError, TypeError, ValueError, AttributeError):
        return None


def _result_files(stored: Path, working: Path) -> Iterator[Path]:
    """Every ``results.json`` that may hold scores of an encoder."""
    run, last = run_folder_of(stored.resolve()), last_run(folder=working)
    beside = stored if stored.is_dir() else stored.parent
    places = [beside, *([] if run is None else [run]), working, *([] if last is None else [last])]
    for place in dict.fromkeys(path.resolve() for path in places):
        yield from sorted([*place.glob("results.json"), *place.glob("evaluation/*/results.json")])


def _rows_of(file: Path) -> Any:
    found = _read(file)
    return found.get("results") if isinstance(found, Mapping) else None


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except DataError:
        return None


def _parsed(rows: Any) -> Iterator[Result]:
    """Those of the rows that this version of the program knows."""
    for row in rows if isinstance(rows, list) else []:
        try:
            yield from_plain(Result, row, where="result")
        except (ConfigError, TypeError, ValueError, AttributeError):
            continue
