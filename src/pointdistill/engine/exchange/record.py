"""What is known of an encoder besides its weights: its scores, its corpus, whether training was finished."""

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
from pointdistill.engine.exchange.encoders import read_facts
from pointdistill.engine.training.run_folder import METRICS, RUN_CONFIG
from pointdistill.errors import CheckpointError, ConfigError, DataError
from pointdistill.model.encoder import Encoder

RESULTS = "results"
"""Key in an exported encoder's ``config.json`` of the scores that were there when it was exported."""


def fingerprint(encoder: Encoder) -> str:
    """Sixteen hexadecimal digits that identify an encoder's weights and architecture.

    They are the same for a run's encoder and its export, whatever the folder, file or version of this program.
    """
    return encoder_checksum(encoder)[:16]


def find_results(
    encoder: Encoder, stored: Path, facts: Mapping[str, Any], *, working: Path
) -> list[Result]:
    """The scores measured with exactly these weights, one for each setting, without paths of this machine.

    They are looked for in the encoder's ``config.json``, beside the encoder, in its run, and where ``evaluate``
    writes: under ``evaluation/`` in the working folder and in the last run made there. Of several scores for one
    setting, the one over the most seeds is taken. Files that cannot be read are ignored.

    Args:
        encoder: the one in ``stored``.
        stored: its folder, or its file.
        facts: what is recorded of it, from ``encoders.read_facts``.
        working: the folder that commands are run in.
    """
    own = fingerprint(encoder)
    tables = [facts.get(RESULTS)]
    tables += [_read_rows(file) for file in _result_files(stored, working)]
    best: dict[object, Result] = {}
    for result in (result for rows in tables for result in _parse_rows(rows)):
        if result.fingerprint == own:
            earlier = best.get(setting_of(result))
            if earlier is None or len(result.seeds) > len(earlier.seeds):
                # Its name here is the encoder's path on this machine.
                best[setting_of(result)] = replace(result, features="encoder")
    return list(best.values())


def training_record(stored: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """How an encoder was trained: what is recorded with it and, where it is still in its run, with the run.

    The run adds the corpus and ``total_steps``, the number of steps of the whole training.
    """
    recorded = facts.get("training")
    training = dict(recorded) if isinstance(recorded, Mapping) else {}
    run = _run_of(stored)
    run_config = None if run is None else _read(run / RUN_CONFIG)
    corpus = run_config.get("corpus") if isinstance(run_config, Mapping) else None
    if isinstance(run_config, Mapping) and isinstance(corpus, Mapping):
        training["corpus"] = {k: corpus[k] for k in ("shapes", "fingerprint") if k in corpus}
        total = _total_steps(run_config.get("config"), corpus.get("shapes"))
        training |= {} if total is None else {"total_steps": total}
    return training


def _total_steps(config: Any, shapes: Any) -> int | None:
    """Steps of a whole run, from its configuration and the size of its corpus; None where these are not known."""
    if not isinstance(config, Mapping) or not isinstance(shapes, int):
        return None
    try:
        return from_plain(PretrainConfig, config, where="config").total_steps(shapes)
    except (ConfigError, TypeError, ValueError, AttributeError):
        return None


def _result_files(stored: Path, working: Path) -> Iterator[Path]:
    """Every ``results.json`` that may hold an encoder's scores."""
    run, last = _run_of(stored), last_run(folder=working)
    beside = stored if stored.is_dir() else stored.parent
    folders = [beside, *([] if run is None else [run]), working, *([] if last is None else [last])]
    for folder in dict.fromkeys(path.resolve() for path in folders):
        yield from sorted([*folder.glob("results.json"), *folder.glob("evaluation/*/results.json")])


def _run_of(stored: Path) -> Path | None:
    """The run whose encoder this is."""
    run = stored.resolve().parent
    return run if (run / METRICS).is_file() and (run / RUN_CONFIG).is_file() else None


def _read_rows(file: Path) -> Any:
    content = _read(file)
    return content.get("results") if isinstance(content, Mapping) else None


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except DataError:
        return None


def _parse_rows(rows: Any) -> Iterator[Result]:
    """The rows that this version of the program can read."""
    for row in rows if isinstance(rows, list) else []:
        try:
            yield from_plain(Result, row, where="result")
        except (ConfigError, TypeError, ValueError, AttributeError):
            continue


def encoder_line(stored: Path, remark: str = "") -> str:
    """A line such as ``encoder: runs/a/encoder, unfinished: step 65 of 400``.

    Args:
        stored: the result of ``locate_encoder``. Errors in its files are ignored here; loading it reports them.
        remark: inserted after the path: why this encoder was taken.
    """
    try:
        steps = unfinished_steps(training_record(stored, read_facts(stored)))
    except CheckpointError:
        steps = None
    state = "" if steps is None else f", unfinished: step {steps[0]:,} of {steps[1]:,}"
    return f"encoder: {stored}{remark}{state}"


def unfinished_steps(training: Any) -> tuple[int, int] | None:
    """Steps taken and steps of the whole run; None where it was finished, or either is not recorded.

    Args:
        training: the result of ``training_record``.
    """
    if not isinstance(training, Mapping):
        return None
    taken, total = training.get("step"), training.get("total_steps")
    if isinstance(taken, int) and isinstance(total, int) and taken < total:
        return taken, total
    return None
