"""How an encoder was trained: on which corpus, for how many steps, and whether to the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pointdistill.data.files.files import read_json
from pointdistill.engine.pretraining.run_folder import RUN_CONFIG, run_folder_of
from pointdistill.engine.weights import BUNDLED, BUNDLED_TERMS, given_or_default, name_of
from pointdistill.engine.weights.encoders import locate_encoder, read_facts
from pointdistill.errors import CheckpointError, DataError
from pointdistill.reporter import SILENT, Reporter


def training_record(stored: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """How an encoder was trained: what is recorded with it and, if it is still in its run, with the run.

    The run adds the corpus and ``total_steps``, the number of steps of the whole training.
    """
    recorded = facts.get("training")
    training = dict(recorded) if isinstance(recorded, Mapping) else {}
    run = run_folder_of(stored)
    run_config = None if run is None else _read(run / RUN_CONFIG)
    corpus = run_config.get("corpus") if isinstance(run_config, Mapping) else None
    if isinstance(run_config, Mapping) and isinstance(corpus, Mapping):
        training["corpus"] = {k: corpus[k] for k in ("shapes", "fingerprint") if k in corpus}
        total = _total_steps(run_config.get("config"), corpus.get("shapes"))
        training |= {} if total is None else {"total_steps": total}
    return training


def _total_steps(config: Any, shapes: Any) -> int | None:
    """Steps of a whole run, from its configuration and the size of its corpus; None where these are not known.

    Only the three settings that decide it are read: the others may be those of another version.
    """
    if not isinstance(config, Mapping) or not isinstance(shapes, int):
        return None
    steps, epochs, batch_size = map(config.get, ("steps", "epochs", "batch_size"))
    if not isinstance(batch_size, int) or not 1 <= batch_size <= shapes:
        return None
    if isinstance(steps, int):
        return steps
    return epochs * (shapes // batch_size) if isinstance(epochs, int) else None


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except DataError:
        return None


def choose_encoder(
    encoder: Path | str | None,
    *,
    folder: Path = Path(),
    reporter: Reporter = SILENT,
    remark: str = "",
) -> Path:
    """Where the encoder lies that a user named, or else the default one, which is said in a line.

    Args:
        encoder: as for ``load_encoder``; None for the last run in ``folder`` or, without a run, the encoder that
            comes with the program.
        folder: where the last run is looked for.
        reporter: receives the line, and the progress of a download.
        remark: inserted after the path of the last run.

    Raises:
        CheckpointError: if there is none.
    """
    source = given_or_default(encoder, folder=folder)
    stored = locate_encoder(source, reporter=reporter)
    if encoder is None and source == BUNDLED:
        reporter.say(f"{encoder_line(stored)}; another can be chosen", "encoder")
    else:
        reporter.say(encoder_line(stored, remark if encoder is None else ""))
    return stored


def encoder_line(stored: Path, remark: str = "") -> str:
    """A line such as ``encoder: runs/a/encoder, unfinished: step 65 of 400`` or ``encoder: asymdsd-s (FOLDER)``.

    Args:
        stored: the result of ``locate_encoder``. Errors in its files are ignored here and reported on loading.
        remark: why this encoder was chosen, inserted after the path.
    """
    name = name_of(stored)
    if name == BUNDLED:
        return f"encoder: {BUNDLED}, which comes with pointdistill ({BUNDLED_TERMS})"
    if name is not None:
        return f"encoder: {name} ({stored}){remark}"
    try:
        steps = unfinished_steps(training_record(stored, read_facts(stored)))
    except CheckpointError:
        steps = None
    state = "" if steps is None else f", unfinished: step {steps[0]:,} of {steps[1]:,}"
    return f"encoder: {stored}{remark}{state}"


def unfinished_steps(training: Any) -> tuple[int, int] | None:
    """Steps taken and steps of the whole run; None if the run is finished or either number is unknown.

    Args:
        training: the result of ``training_record``.
    """
    if not isinstance(training, Mapping):
        return None
    step, total = training.get("step"), training.get("total_steps")
    if isinstance(step, int) and isinstance(total, int) and step < total:
        return step, total
    return None
